//! Asking a source for a token. The one place of this room that sends.

use std::time::{Duration, SystemTime};

use super::{Resource, Source};
use crate::http::failure::Failure;
use crate::http::traffic::Traffic;
use crate::http::{client, retry};
use crate::token::{AccessToken, clock};

/// Why the endpoint gave no token, and how long it wants to be left alone.
pub struct Refusal {
    pub failure: Failure,
    pub wait: Option<Duration>,
}

/// Asks the source, for no longer than `left`.
pub async fn fetch(
    source: &Source,
    resource: &Resource,
    options: &client::Options,
    left: Duration,
    traffic: &Traffic,
) -> Result<AccessToken, Refusal> {
    let fetched = fetched(source, resource, options, left, traffic).await;
    // Counted here, for who has an old token that is still good is not told.
    fetched.inspect_err(|refusal| traffic.failed(&refusal.failure))
}

async fn fetched(
    source: &Source,
    resource: &Resource,
    options: &client::Options,
    left: Duration,
    traffic: &Traffic,
) -> Result<AccessToken, Refusal> {
    let plain = |failure| Refusal { failure, wait: None };
    let request = || source.request(resource);
    let answer = client::ask_anew(options, source.purpose(), request, source.worth_a_retry(), left, traffic)
        .await
        .map_err(|unanswered| plain(source.unanswered(unanswered)))?;
    let wait = retry::asked_for(&answer, SystemTime::now());
    source.read(&answer, clock::now(), clock::jitter()).map_err(|failure| Refusal { failure, wait })
}
