//! A diagnosis: the way of a token, gone once and past the cache. What it finds is `identity::diagnosis`'s to
//! tell; an ERROR is none of it, so that a cancel stays a cancel.

use std::ffi::CStr;

use super::error::OrRaise;
use super::servers::Server;
use super::{cache, clock, copy, flight, identities, interrupts, restricted, settings, tokens};
use crate::http::failure::Failure;
use crate::http::unanswered::Unanswered;
use crate::http::{client, roots};
use crate::identity::diagnosis::{self, Asked, PERMISSION, ROOTS, SOURCE, Step};
use crate::identity::{Identity, Resource};
use crate::token::AccessToken;

/// The steps of a token for `resource`, as a user writes it, up to the one that fails. Nothing is contacted
/// without USAGE on the identity.
pub fn steps(resource: &str, identity: Option<&CStr>) -> Vec<Step> {
    let server = match identities::own_server(identity) {
        Ok(server) => server,
        Err(denied) => return vec![Step::failed(PERMISSION, denied)],
    };
    let resource = Resource::parse(resource, settings::cloud()).or_raise();
    if restricted::is_now() {
        Err(restricted::refused()).or_raise()
    }
    let identity = identity_of(&server);
    if identity.as_ref().is_ok_and(|identity| !identity.allows(&resource)) {
        return vec![Step::failed(PERMISSION, tokens::outside_resources(&server.name))];
    }
    let granted = format!("The current role may use server \"{}\" for {}.", server.display(), resource.as_str());
    cache::attach();
    let mut steps = vec![Step::ok(PERMISSION, granted)];
    steps.extend(diagnosis::library(copy::is_installed(), cache::is_shared()));
    steps.extend(token(identity, &resource).0);
    steps
}

/// What the options of an identity's server say.
pub fn identity_of(server: &Server) -> Result<Identity, Failure> {
    Identity::from_options(server.kind_and_options(), settings::cloud())
}

/// The steps of a token for a resource that an identity may be used for, and the token.
pub fn token(identity: Result<Identity, Failure>, resource: &Resource) -> (Vec<Step>, Option<AccessToken>) {
    let settings = settings::current();
    let machine = &settings.machine;
    let found = identity.and_then(|identity| machine.source_of(&identity).map(|source| (identity, source)));
    let (identity, source) = match found {
        Ok(found) => found,
        Err(failure) => return (vec![Step::failed(SOURCE, failure)], None),
    };
    let mut steps = vec![diagnosis::source(machine, &identity, &source)];
    let asked = match Asked::new(&source, resource) {
        Ok(asked) => asked,
        Err(failed) => {
            steps.push(failed);
            return (steps, None);
        }
    };
    let options = match settings::http_options() {
        Ok(options) => options,
        Err(failure) => {
            steps.push(Step::failed(ROOTS, failure));
            return (steps, None);
        }
    };
    let trusted = roots::trusted(options.ca_file.as_ref());
    let request = client::send(&options, source.purpose(), asked.request.clone());
    let outcome = interrupts::wait(flight::within(settings::acquire_timeout(), request));
    let outcome = outcome.unwrap_or_else(|| Err(Unanswered::from(flight::too_late())));
    let (told, token) = asked.steps(trusted, outcome, clock::now());
    steps.extend(told);
    (steps, token)
}
