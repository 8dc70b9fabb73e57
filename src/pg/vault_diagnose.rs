//! A diagnosis of a vault: the way of its identity's token, and on to the vault. What it finds is
//! `vault::diagnosis`'s to tell; an ERROR is none of it, so that a cancel stays a cancel.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::net::IpAddr;

use url::Host;

use super::error::OrRaise;
use super::interrupts::{Event, wait_as};
use super::servers::{self, Wrapper};
use super::{clock, compat, diagnose, flight, identities, restricted, settings, tokens, vault};
use crate::http::client::{self, Purpose};
use crate::http::request::{Answer, Request};
use crate::http::resolver;
use crate::http::unanswered::Unanswered;
use crate::identity::diagnosis::{PERMISSION, Status, Step};
use crate::token::AccessToken;
use crate::token::claims::claims;
use crate::vault::access::{VaultAccess, check_object};
use crate::vault::diagnosis::{IDENTITY, SERVER, Trial, connected, resolved, trials};

/// The steps to a vault and, where one is named, to a key in it, up to the one that fails. Nothing is contacted
/// without USAGE on the server.
pub fn steps(name: &CStr, key: Option<&str>) -> Vec<Step> {
    let server = servers::named(name, Wrapper::Vault);
    if !compat::has_usage(server.oid, servers::current_user()) {
        return vec![Step::failed(PERMISSION, servers::denied(name))];
    }
    if let Some(key) = key {
        check_object("key", key, None).or_raise();
    }
    if restricted::is_now() {
        Err(restricted::refused()).or_raise()
    }
    let access = match vault::access(&server) {
        Ok(access) => access,
        Err(failure) => return vec![Step::failed(SERVER, failure)],
    };
    let trials = match trials(&access, key) {
        Ok(trials) => trials,
        Err(denied) => return vec![Step::failed(PERMISSION, denied)],
    };
    let mut steps = vec![Step::ok(PERMISSION, format!("The current role may use server \"{}\".", server.display()))];
    let identity = match identities::borrowed_server(&server) {
        Ok(identity) => identity,
        Err(denied) => {
            steps.push(Step::failed(IDENTITY, denied));
            return steps;
        }
    };
    let read = diagnose::identity_of(&identity);
    if read.as_ref().is_ok_and(|read| !read.allows(&access.resource)) {
        steps.push(Step::failed(IDENTITY, tokens::outside_resources(&identity.name)));
        return steps;
    }
    let uses =
        format!("The server uses identity \"{}\" of its owner for {}.", identity.display(), access.resource.as_str());
    steps.push(Step::ok(IDENTITY, uses));
    let (told, token) = diagnose::token(read, &access.resource);
    steps.extend(told);
    let Some(token) = token else {
        return steps;
    };
    steps.extend(of_vault(&access, &token, trials));
    steps
}

fn of_vault(access: &VaultAccess, token: &AccessToken, trials: Vec<Trial>) -> Vec<Step> {
    let tenant = claims(token).get("tid").and_then(|tenant| tenant.as_str()).map(str::to_owned);
    let base = access.destination.base();
    let addresses = match base.host() {
        Some(Host::Domain(name)) => look_up(name),
        Some(Host::Ipv4(address)) => Ok(vec![address.into()]),
        Some(Host::Ipv6(address)) => Ok(vec![address.into()]),
        None => Ok(Vec::new()),
    };
    let mut steps = Vec::new();
    let mut left = VecDeque::from(trials);
    while let Some(trial) = left.pop_front() {
        let outcome = send(access, token, trial.request.clone());
        if steps.is_empty() {
            steps.push(resolved(base.host_str().unwrap_or_default(), addresses.clone(), outcome.is_ok()));
            steps.extend(connected(base, &outcome, clock::now()));
        } else if outcome.is_err() {
            steps.extend(connected(base, &outcome, clock::now()));
        }
        let Ok(answer) = outcome else { break };
        let (step, next) = trial.told(access, &answer, tenant.as_deref(), clock::now());
        steps.push(step);
        left.extend(next);
    }
    // Of a name that leads nowhere there is nothing else to tell.
    if steps.first().is_some_and(|step| step.status == Status::Error) {
        steps.truncate(1);
    }
    steps
}

/// The addresses, or why there are none.
fn look_up(host: &str) -> Result<Vec<IpAddr>, String> {
    let found = wait_as(Event::KeyVault, flight::within(settings::acquire_timeout(), resolver::look_up(host.into())));
    match found {
        Some(Ok(addresses)) => {
            let mut addresses: Vec<_> = addresses.into_iter().map(|address| address.ip()).collect();
            addresses.dedup();
            Ok(addresses)
        }
        Some(Err(error)) => Err(error.to_string()),
        None => Err("there was no answer in time".into()),
    }
}

fn send(access: &VaultAccess, token: &AccessToken, mut request: Request) -> Result<Answer, Unanswered> {
    let options = settings::http_options()?;
    access.destination.attach(&request.url, &mut request.headers, token.bearer()?)?;
    // One try: what passes by itself is a finding, too.
    wait_as(Event::KeyVault, client::send(&options, Purpose::Service, request))
}
