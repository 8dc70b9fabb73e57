//! `azure_key_vault` servers: what each allows, and asking its vault with its owner's identity.

use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::time::Duration;

use super::error::OrRaise;
use super::identities::{self, KnownIdentity};
use super::servers::{self, Wrapper};
use super::stats::{Operation, Tally};
use super::text::SqlText;
use super::{access_log, interrupts, settings, tokens};
use crate::http::client::{self, Purpose};
use crate::http::failure::Failure;
use crate::token::AccessToken;
use crate::vault::access::VaultAccess;
use crate::vault::{refusal, secret};

/// The longest time that tries and the waits between them may take together; the documentation asks
/// for waits of 1, 2, 4 s, and each try has its own limit.
const ALL_TRIES: Duration = Duration::from_secs(60);

/// A secret's value as SQL text, in the database's encoding: JSON is UTF-8, the database need not be.
pub fn secret(vault: &CStr, name: &str, version: Option<&str>) -> SqlText {
    let vault = vault_for(vault, "secrets", name);
    let mut request = secret::request(&vault.access, name, version).or_raise();
    let options = settings::http_options().or_raise();
    let token = vault.token();
    vault.access.destination.attach(&request.url, &mut request.headers, token.bearer().or_raise()).or_raise();
    let tally = Tally::begin(Operation::Secret, &vault.server);
    let ask = client::ask(&options, Purpose::Service, &request, refusal::is_worth_a_retry, ALL_TRIES, tally.traffic());
    let answer = interrupts::wait_as(tally.event(), ask).map_err(Failure::from);
    let answer = tally.judged(answer).or_raise();
    let value = SqlText::from_utf8(&tally.judged(secret::read(&vault.access, &answer, name)).or_raise());
    access_log::secret(&vault.server, name, answer.header("x-ms-request-id"));
    value
}

/// A vault that the current user may reach, and the identity that opens it.
struct Vault {
    server: CString,
    access: VaultAccess,
    identity: Rc<KnownIdentity>,
}

impl Vault {
    fn token(&self) -> AccessToken {
        tokens::for_identity(&self.identity, &self.access.resource)
    }
}

/// The vault server of this name, for `operation` on the object `object`.
fn vault_for(name: &CStr, operation: &str, object: &str) -> Vault {
    let server = servers::named(name, Wrapper::Vault);
    servers::require_usage(&server);
    let settings = settings::current();
    let access = VaultAccess::from_options(server.options(), settings::cloud(), &settings.key_vault_hosts).or_raise();
    access.check(operation, object).or_raise();
    let identity = identities::borrowed(&server, &access.resource);
    Vault { server: name.into(), access, identity }
}
