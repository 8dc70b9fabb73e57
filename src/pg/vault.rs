//! `azure_key_vault` servers: what each allows, and asking its vault with its owner's identity.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::time::Duration;

use pgrx::prelude::*;
use reqwest::header::HeaderValue;

use super::data_keys;
use super::error::OrRaise;
use super::identities::{self, KnownIdentity};
use super::servers::{self, Server, Wrapper};
use super::stats::{Operation, Tally};
use super::{interrupts, settings, tokens};
use crate::http::failure::Failure;
use crate::http::request::{Answer, Request};
use crate::token::AccessToken;
use crate::vault::access::VaultAccess;
use crate::vault::{ask, refusal};

/// The longest time that tries and the waits between them may take together; the documentation asks
/// for waits of 1, 2, 4 s, and each try has its own limit.
const ALL_TRIES: Duration = Duration::from_secs(60);

/// A vault server on which the current user has USAGE.
pub struct Usable {
    server: Server,
    pub access: VaultAccess,
}

/// The vault server of this name; 42704 and 42809 where there is none, 42501 without USAGE.
pub fn usable(name: &CStr) -> Usable {
    let server = servers::named(name, Wrapper::Vault);
    servers::require_usage(&server);
    let access = access(&server).or_raise();
    Usable { server, access }
}

/// What a server's options say. 22023 also for a vault that was one when the options were set: cloud and hosts can
/// change.
pub fn access(server: &Server) -> Result<VaultAccess, Failure> {
    VaultAccess::from_options(server.options(), settings::cloud(), &settings::current().key_vault_hosts)
}

impl Usable {
    /// The vault for one of `allow`'s words and the object of this name. Every call of a function passes here before
    /// anything is sent: what a server keeps from some of those who may use it is refused here.
    pub fn allowing(self, word: &str, object: &str) -> Vault {
        self.access.check(word, object).or_raise();
        if ["wrap", "unwrap", "encrypt", "decrypt", "sign"].contains(&word) {
            data_keys::refuse_wrapping_key(&self.access, object);
        }
        Vault::of(&self.server, self.access)
    }
}

/// A vault, and the identity that opens it.
pub struct Vault {
    pub server: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    pub name: CString,
    pub access: VaultAccess,
    pub identity: Rc<KnownIdentity>,
    /// The vault's id of the last request that it has answered.
    request_id: RefCell<String>,
}

impl Vault {
    /// Of a server whose use is allowed.
    pub fn of(server: &Server, access: VaultAccess) -> Self {
        let identity = identities::borrowed(server, &access.resource);
        Self {
            server: server.oid,
            owner: server.owner,
            name: server.name.clone(),
            access,
            identity,
            request_id: RefCell::default(),
        }
    }

    /// The vault's id of the last request; empty where it was not answered.
    pub fn request_id(&self) -> String {
        self.request_id.borrow().clone()
    }

    /// Asks, and reads the answer; the failure of either is raised, and counted.
    pub fn ask<T>(
        &self,
        operation: Operation,
        request: Request,
        read: impl FnOnce(&Answer) -> Result<T, Failure>,
    ) -> T {
        self.answered(operation, request, read).or_raise()
    }

    /// The same, for who goes on after a failure. Interrupts are raised, and what stands in the way of a token.
    pub fn answered<T>(
        &self,
        operation: Operation,
        mut request: Request,
        read: impl FnOnce(&Answer) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        request.headers.extend(client_request_id());
        self.request_id.borrow_mut().clear();
        let token = tokens::for_identity(&self.identity, &self.access.resource);
        let tally = Tally::begin(operation, &self.name);
        let mut answer = self.send(&tally, &mut request, &token)?;
        if refusal::wants_a_new_token(&answer) {
            tally.traffic().will_be_repeated();
            let token = tokens::renewed(&self.identity, &self.access.resource);
            answer = self.send(&tally, &mut request, &token)?;
        }
        tally.judged(read(&answer))
    }

    fn send(&self, tally: &Tally, request: &mut Request, token: &AccessToken) -> Result<Answer, Failure> {
        let options = settings::http_options()?;
        let asking = ask::ask(&self.access, &options, request, token, ALL_TRIES, tally.traffic());
        let answer = tally.judged(interrupts::wait_as(tally.event(), asking))?;
        self.request_id.replace(answer.request_id().unwrap_or_default().to_owned());
        Ok(answer)
    }
}

/// Our own name of a request, by which the vault's log and ours can be joined.
fn client_request_id() -> Option<(reqwest::header::HeaderName, HeaderValue)> {
    // SAFETY: takes no argument and gives a value of type uuid.
    let id: Option<pgrx::Uuid> = unsafe { pgrx::direct_function_call(pg_sys::gen_random_uuid, &[]) };
    let id = HeaderValue::try_from(id?.to_string()).ok()?;
    Some((reqwest::header::HeaderName::from_static("x-ms-client-request-id"), id))
}
