//! `managed_identity` servers: what each stands for, and whose right it is to use it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::prelude::*;

use super::error::{OrRaise, raise};
use super::servers::{self, Server, Wrapper};
use super::settings::Settings;
use super::{compat, settings, tokens};
use crate::http::failure::Failure;
use crate::identity::{Identity, Resource, Source};

/// The changes of the catalog and of the settings up to which something derived from both is good.
type Changes = (u64, u64);

thread_local! {
    static KNOWN: RefCell<HashMap<pg_sys::Oid, (Changes, Rc<KnownIdentity>)>> = RefCell::new(HashMap::new());
}

/// An identity's server with what was derived from it, kept while nothing changes.
pub struct KnownIdentity {
    pub oid: pg_sys::Oid,
    pub name: CString,
    pub identity: Identity,
    /// What its options come to on this machine.
    pub source: Source,
    /// The identity as the cache's worker reads it.
    pub text: String,
    /// Hash of everything that distinguishes this identity from others; equal identities share it.
    pub key: [u8; 32],
}

impl KnownIdentity {
    /// 22023 where the server's options contradict each other or this machine.
    fn of(server: &Server, settings: &Settings) -> Result<Self, Failure> {
        let identity = Identity::from_options(server.kind_and_options(), settings.machine.cloud)?;
        let source = settings.machine.source_of(&identity)?;
        let key = tokens::digest(source.identity_key());
        let text = identity.to_text();
        Ok(Self { oid: server.oid, name: server.name.clone(), identity, source, text, key })
    }
}

/// The identity of a server that is one. Rights are the caller's business.
fn identity_of(oid: pg_sys::Oid, name: &CStr) -> Rc<KnownIdentity> {
    let changes = (servers::catalog_changes(), settings::changes());
    let known = |kept: &HashMap<_, (Changes, Rc<KnownIdentity>)>| {
        kept.get(&oid).filter(|(at, _)| *at == changes).map(|(_, known)| known.clone())
    };
    if let Some(known) = KNOWN.with_borrow(known) {
        return known;
    }
    let server = servers::of(oid, name, Wrapper::Identity);
    server.refuse_changed_member();
    let known = Rc::new(KnownIdentity::of(&server, &settings::current()).or_raise());
    KNOWN.with_borrow_mut(|kept| kept.insert(oid, (changes, known.clone())));
    known
}

/// The server of this name (`None`: the default one).
fn oid_of(given: Option<&CStr>) -> (pg_sys::Oid, CString) {
    let name = given.map_or_else(settings::default_identity, CString::from);
    // SAFETY: a syscache look-up by name.
    let oid = unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) };
    if oid == pg_sys::InvalidOid {
        if given.is_none() && name.as_c_str() != servers::MACHINE {
            let hint = "managed_identity.default_identity names it: set that to a server of foreign-data wrapper managed_identity, or create this one.";
            servers::missing(&name, hint.into());
        }
        servers::named(&name, Wrapper::Identity);
    }
    (oid, name)
}

/// The identity server of this name (`None`: the default one), which `role` must have USAGE on.
fn identity_for(name: Option<&CStr>, role: pg_sys::Oid, borrower: Option<&Server>) -> Rc<KnownIdentity> {
    let (oid, name) = oid_of(name);
    if !compat::has_usage(oid, role) {
        raise(match borrower {
            None => servers::denied(&name),
            Some(server) => owner_denied(&name, server),
        });
    }
    identity_of(oid, &name)
}

/// The identity server that the current user names, for a diagnosis: that he may not use it is a value.
pub fn own_server(name: Option<&CStr>) -> Result<Server, Failure> {
    let (oid, name) = oid_of(name);
    if !compat::has_usage(oid, servers::current_user()) {
        return Err(servers::denied(&name));
    }
    let server = servers::of(oid, &name, Wrapper::Identity);
    server.refuse_changed_member();
    Ok(server)
}

/// The identity server that a storage or vault server borrows, for a diagnosis: that its owner may not use it is a
/// value.
pub fn borrowed_server(server: &Server) -> Result<Server, Failure> {
    let (oid, name) = oid_of(named_by(server).as_deref());
    if !compat::has_usage(oid, server.owner) {
        return Err(owner_denied(&name, server));
    }
    let identity = servers::of(oid, &name, Wrapper::Identity);
    identity.refuse_changed_member();
    Ok(identity)
}

/// What option `identity` says.
fn named_by(server: &Server) -> Option<CString> {
    server.option("identity").map(|name| CString::new(name).unwrap_or_default())
}

/// 42501. Whoever asks needs no right on the identity, and should not be given one.
fn owner_denied(name: &CStr, server: &Server) -> Failure {
    servers::denied(name)
        .detail(format!("Server \"{}\" uses this identity, and its owner must have USAGE on it.", server.display()))
        .hint(servers::grant_hint(name, Some(server.owner)))
}

/// The identity that the current user names, with USAGE checked.
pub fn own(name: Option<&CStr>) -> Rc<KnownIdentity> {
    identity_for(name, servers::current_user(), None)
}

/// The identity that a storage or vault server borrows from its owner, as a view borrows its owner's
/// rights on tables.
pub fn borrowed(server: &Server, resource: &Resource) -> Rc<KnownIdentity> {
    let identity = identity_for(named_by(server).as_deref(), server.owner, Some(server));
    if !identity.identity.allows(resource) {
        Err(tokens::outside_resources(&identity.name)).or_raise()
    }
    identity
}

/// Every identity server of this database on which the current user has USAGE, or every one.
pub fn visible(all: bool) -> Vec<Rc<KnownIdentity>> {
    let role = servers::current_user();
    let settings = settings::current();
    let mut found: Vec<_> = servers::servers_of(Wrapper::Identity)
        .into_iter()
        .filter(|server| all || compat::has_usage(server.oid, role))
        // One broken server must not hide the others from a view, so nothing here raises.
        .filter_map(|server| KnownIdentity::of(&server, &settings).ok().map(Rc::new))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
