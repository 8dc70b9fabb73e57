//! A diagnosis: the way of a token, gone once and past the cache. What it finds is `identity::diagnosis`'s to
//! tell; an ERROR is none of it, so that a cancel stays a cancel.

use std::ffi::CStr;

use super::error::OrRaise;
use super::{cache, clock, copy, flight, identities, interrupts, restricted, settings, tokens};
use crate::http::unanswered::Unanswered;
use crate::http::{client, roots};
use crate::identity::diagnosis::{self, Asked, PERMISSION, ROOTS, SOURCE, Step};
use crate::identity::{Identity, Resource};

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
    let settings = settings::current();
    let machine = &settings.machine;
    let identity = Identity::from_options(server.kind_and_options(), machine.cloud);
    if identity.as_ref().is_ok_and(|identity| !identity.allows(&resource)) {
        return vec![Step::failed(PERMISSION, tokens::outside_resources(&server.name))];
    }
    let granted = format!("The current role may use server \"{}\" for {}.", server.display(), resource.as_str());
    cache::attach();
    let mut steps = vec![Step::ok(PERMISSION, granted)];
    steps.extend(diagnosis::library(copy::is_installed(), cache::is_shared()));
    let found = identity.and_then(|identity| machine.source_of(&identity).map(|source| (identity, source)));
    let (identity, source) = match found {
        Ok(found) => found,
        Err(failure) => {
            steps.push(Step::failed(SOURCE, failure));
            return steps;
        }
    };
    steps.push(diagnosis::source(machine, &identity, &source));
    let asked = match Asked::new(&source, &resource) {
        Ok(asked) => asked,
        Err(failed) => {
            steps.push(failed);
            return steps;
        }
    };
    let options = match settings::http_options() {
        Ok(options) => options,
        Err(failure) => {
            steps.push(Step::failed(ROOTS, failure));
            return steps;
        }
    };
    let trusted = roots::trusted(options.ca_file.as_ref());
    let request = client::send(&options, source.purpose(), asked.request.clone());
    let outcome = interrupts::wait(flight::within(settings::acquire_timeout(), request));
    let outcome = outcome.unwrap_or_else(|| Err(Unanswered::from(flight::too_late())));
    steps.extend(asked.steps(trusted, outcome, clock::now()));
    steps
}
