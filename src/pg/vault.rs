//! Asking a vault, with the identity that its server borrows from its owner.

use std::ffi::CStr;
use std::time::Duration;

use super::error::OrRaise;
use super::text::SqlText;
use super::{interrupts, servers, settings};
use crate::http::client::{self, Purpose};
use crate::vault::secret;

/// The longest time that tries and the waits between them may take together; the documentation asks
/// for waits of 1, 2, 4 s, and each try has its own limit.
const ALL_TRIES: Duration = Duration::from_secs(60);

/// A secret's value as SQL text, in the database's encoding: JSON is UTF-8, the database need not be.
pub fn secret(vault: &CStr, name: &str, version: Option<&str>) -> SqlText {
    let vault = servers::vault_for(vault, "secrets", name);
    let mut request = secret::request(&vault.access, name, version).or_raise();
    let options = settings::http_options();
    let token = vault.token();
    vault.access.destination.attach(&request.url, &mut request.headers, &token).or_raise();
    let answer =
        interrupts::wait(client::ask(&options, Purpose::Service, &request, secret::is_worth_a_retry, ALL_TRIES)).or_raise();
    SqlText::from_utf8(&secret::read(&answer, name).or_raise())
}
