//! What owners of vault servers do with data keys: create, rotate, wrap anew, lock, unlock.

use std::collections::HashSet;
use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use super::watching::{Place, place_of};
use super::{access, load, memory, require_preloaded, table};
use crate::http::failure::{Failure, Kind};
use crate::pg::compat;
use crate::pg::error::{OrRaise, error, raise};
use crate::pg::servers::{self, Wrapper};
use crate::pg::stats::Operation;
use crate::pg::vault::{self, Vault};
use crate::vault::envelope::{self, Secret};
use crate::vault::key::unusable;
use crate::vault::kid::Kid;
use crate::vault::operation::{self, KeyOperation};
use crate::vault::record::{Record, SIGNING, WRAPPING, digest_of};

/// Makes a data key and has a key of the vault wrap it.
pub fn create(name: &str, server: &CStr, key: &str) {
    require_preloaded();
    refuse_read_only(c"create_data_key()");
    if name.is_empty() {
        raise(Failure::new(Kind::InvalidValue, "a data key must have a name"));
    }
    let vault = owned(server, key);
    if table::newest(name).is_some() {
        error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("data key \"{name}\" already exists"),
            None,
            Some("azure_key_vault.rotate_data_key() gives it a new generation.".into()),
        );
    }
    add_generation(name, 1, &vault, key);
}

/// Gives a data key a new generation, for new values; old values stay readable.
pub fn rotate(name: &str) {
    require_preloaded();
    refuse_read_only(c"rotate_data_key()");
    let newest = table::newest(name).unwrap_or_else(|| access::unknown(name)).record;
    let (vault, kid) = access::way_of(&newest);
    access::require_ownership(&vault);
    add_generation(name, newest.generation + 1, &vault, kid.name());
}

fn add_generation(name: &str, generation: i32, vault: &Vault, key: &str) {
    let secret = envelope::new_secret().or_raise();
    let target = Target::of(vault, key);
    let mut record = Record {
        id: envelope::new_id().or_raise(),
        name: name.to_owned(),
        generation,
        server: vault.name.to_string_lossy().into_owned(),
        kid: String::new(),
        wrapped: Vec::new(),
        check: envelope::check_value(&secret).to_vec(),
        signature: None,
    };
    let place = target.wrap(&mut record, &secret);
    table::insert(&record);
    load::keep(&record, vault, &place, secret);
}

/// Wraps the data keys of a server (`None`: of all that the current user owns) with the newest version of their key,
/// or of another one's; returns how many were wrapped anew.
pub fn rewrap(server: Option<&CStr>, to_server: Option<&CStr>, to_key: Option<&str>) -> i32 {
    require_preloaded();
    refuse_read_only(c"rewrap_data_keys()");
    let mut count = 0;
    for row in chosen(server) {
        let old = row.record;
        let (vault, kid) = access::way_of(&old);
        access::require_ownership(&vault);
        let key = to_key.unwrap_or_else(|| kid.name());
        let moved = to_server.map(|server| owned(server, key));
        let target = Target::of(moved.as_ref().unwrap_or(&vault), key);
        if target.is_kid(&old.kid) && (old.signature.is_some() || vault.access.unsigned_keys) {
            continue;
        }
        // Whatever it is wrapped by, it must be what its row says before it is wrapped and signed anew.
        let secret = load::load(&old, &vault, &kid).secret;
        let mut new = Record { server: target.vault.name.to_string_lossy().into_owned(), ..old.clone() };
        let place = target.wrap(&mut new, &secret);
        if table::replace(&old, &new) {
            load::keep(&new, target.vault, &place, secret);
            count += 1;
        }
    }
    count
}

/// Locks the data keys of a server (`None`: of all that the current user owns) at once, in every session, until
/// [`revalidate`]; returns how many there are.
pub fn lock(server: Option<&CStr>) -> i32 {
    require_preloaded();
    for (oid, name) in owned_servers(server) {
        let mut table = memory::lock();
        let room = table.set_locked(my_database(), oid, true);
        table.forget_of_server(my_database(), oid);
        drop(table);
        if !room {
            error(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("could not lock the data keys of server \"{}\"", name.to_string_lossy()),
                Some("Too many servers are locked.".into()),
                None,
            );
        }
    }
    chosen(server).len() as i32
}

/// Unlocks the data keys of a server (`None`: of all that the current user owns) and tries the keys that wrap them;
/// returns how many data keys may be used.
pub fn revalidate(server: Option<&CStr>) -> i32 {
    require_preloaded();
    for (oid, _) in owned_servers(server) {
        memory::lock().set_locked(my_database(), oid, false);
    }
    let mut usable = 0;
    let mut refused: HashSet<String> = HashSet::new();
    let mut tried: HashSet<String> = HashSet::new();
    for row in chosen(server) {
        let record = row.record;
        let (vault, kid) = access::way_of(&record);
        if tried.insert(record.kid.clone()) && !load::revalidate(&record, &vault, &kid) {
            refused.insert(record.kid.clone());
        }
        usable += i32::from(!refused.contains(&record.kid));
    }
    usable
}

/// A vault server that the current user owns, for data keys that this key wraps.
fn owned(server: &CStr, key: &str) -> Vault {
    let vault = vault::usable(server).allowing(access::OPERATION, key);
    access::require_ownership(&vault);
    vault
}

/// The named server, which the current user must own, or all vault servers that he owns.
fn owned_servers(server: Option<&CStr>) -> Vec<(pg_sys::Oid, CString)> {
    let user = servers::current_user();
    match server {
        Some(name) => {
            let server = servers::named(name, Wrapper::Vault);
            if !compat::owns_server(server.oid, user) {
                access::not_owner(name);
            }
            vec![(server.oid, server.name)]
        }
        None => servers::servers_of(Wrapper::Vault)
            .into_iter()
            .filter(|server| compat::owns_server(server.oid, user))
            .map(|server| (server.oid, server.name))
            .collect(),
    }
}

/// The rows of those servers.
fn chosen(server: Option<&CStr>) -> Vec<table::Row> {
    let servers = owned_servers(server);
    let is_of = |row: &table::Row| servers.iter().any(|(_, name)| name.to_bytes() == row.record.server.as_bytes());
    table::all().into_iter().filter(is_of).collect()
}

fn my_database() -> pg_sys::Oid {
    // SAFETY: a plain global.
    unsafe { pg_sys::MyDatabaseId }
}

fn refuse_read_only(command: &CStr) {
    // SAFETY: raise core's own errors, 25006.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(command.as_ptr());
        pg_sys::PreventCommandDuringRecovery(command.as_ptr());
    }
}

/// The newest version of a vault key, to wrap with.
struct Target<'v> {
    vault: &'v Vault,
    name: String,
    /// The version and its place; None where the identity may not read the key: then the vault wraps, and says which
    /// version it took.
    known: Option<(Kid, Place)>,
}

impl<'v> Target<'v> {
    fn of(vault: &'v Vault, name: &str) -> Self {
        let known = match load::read_key(vault, name, None) {
            Ok((key, now)) => {
                if let Some(failure) = unusable(&key, now) {
                    raise(failure);
                }
                let public = load::require_rsa(&key);
                let place = place_of(vault, &key.kid);
                place.know(&public);
                Some((key.kid, place))
            }
            Err(failure) if failure.kind == Kind::NotAuthorized => None,
            Err(failure) => raise(failure),
        };
        Self { vault, name: name.to_owned(), known }
    }

    fn is_kid(&self, kid: &str) -> bool {
        self.known.as_ref().is_some_and(|(known, _)| known.to_string() == kid)
    }

    /// Wraps the secret, has the vault unwrap it again and compares, and has the row signed.
    fn wrap(&self, record: &mut Record, secret: &Secret) -> Place {
        let (kid, place) = match &self.known {
            Some((kid, place)) => {
                let public = load::public_key(self.vault, kid, place);
                let public = public.unwrap_or_else(|| raise(Failure::new(Kind::Protocol, "the vault's key is gone")));
                record.wrapped = public.wrap_oaep_sha256(&secret[..]).or_raise();
                (kid.clone(), place_of(self.vault, kid))
            }
            None => {
                let done = self.operate(KeyOperation::Wrap, Operation::Wrap, None, WRAPPING, &secret[..]).or_raise();
                record.wrapped = done.value.to_vec();
                let place = place_of(self.vault, &done.kid);
                (done.kid, place)
            }
        };
        record.kid = kid.to_string();
        let back = load::unwrapped(self.vault, &kid, &record.wrapped).or_raise();
        if !envelope::is_key_of(&back, &record.check) {
            raise(
                Failure::new(Kind::Protocol, "the vault did not unwrap what was wrapped")
                    .detail("No data key was changed."),
            );
        }
        let digest = digest_of(&record.message(&table::make_database_id()));
        record.signature =
            match self.operate(KeyOperation::Sign, Operation::Sign, Some(kid.version()), SIGNING, &digest) {
                Ok(done) => Some(done.value.to_vec()),
                Err(failure) if failure.kind == Kind::NotAuthorized && self.vault.access.unsigned_keys => None,
                Err(failure) if failure.kind == Kind::NotAuthorized => raise(failure.hint(
                    "A data key's row is signed, which takes the role \"Key Vault Crypto User\"; a superuser can set \
                     option unsigned_keys 'allow' on the server to do without.",
                )),
                Err(failure) => raise(failure),
            };
        place
    }

    fn operate(
        &self,
        what: KeyOperation,
        counted: Operation,
        version: Option<&str>,
        algorithm: &str,
        value: &[u8],
    ) -> Result<operation::Done, Failure> {
        let access = &self.vault.access;
        let request = operation::request(access, what, &self.name, version, algorithm, value)?;
        self.vault.answered(counted, request, |answer| operation::read(access, what, answer, &self.name))
    }
}
