//! Asking a vault by a token. The one place of this room that sends.

use std::time::Duration;

use super::access::VaultAccess;
use super::refusal;
use crate::http::client::{self, Options, Purpose};
use crate::http::failure::Failure;
use crate::http::request::{Answer, Request};
use crate::http::traffic::Traffic;
use crate::token::AccessToken;

/// Sends a request with this token, for no longer than `limit`; where it would leave the vault, nothing is sent.
pub async fn ask(
    access: &VaultAccess,
    options: &Options,
    request: &mut Request,
    token: &AccessToken,
    limit: Duration,
    traffic: &Traffic,
) -> Result<Answer, Failure> {
    access.destination.attach(&request.url, &mut request.headers, token.bearer()?)?;
    let worth = refusal::is_worth_a_retry;
    client::ask(options, Purpose::Service, request, worth, limit, traffic).await.map_err(Failure::from)
}
