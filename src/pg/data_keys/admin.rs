//! What owners of vault servers do with data keys: create, rotate, wrap anew, lock, unlock.

use std::collections::HashMap;
use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use super::journal::{self, Event};
use super::rewrap::{self, Wanted};
use super::wrap::Target;
use super::{access, events, load, memory, require_preloaded, table};
use crate::http::failure::{Failure, Kind};
use crate::pg::error::{OrRaise, error, raise};
use crate::pg::servers::{self, Wrapper};
use crate::pg::vault::{self, Vault};
use crate::pg::{compat, worker};
use crate::vault::envelope;
use crate::vault::record::Record;

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
    add_generation("created", name, 1, &vault, key);
}

/// Gives a data key a new generation, for new values; old values stay readable.
pub fn rotate(name: &str) {
    require_preloaded();
    refuse_read_only(c"rotate_data_key()");
    let newest = table::newest(name).unwrap_or_else(|| access::unknown(name)).record;
    let (vault, kid) = access::way_of(&newest);
    access::require_ownership(&vault);
    // What the row says of its server and vault key is signed for the next generation: so it must be authentic itself.
    load::load(&newest, &vault, &kid);
    let generation = newest.generation.checked_add(1).unwrap_or_else(|| {
        raise(Failure::new(Kind::TooLarge, format!("data key \"{name}\" has too many generations")))
    });
    add_generation("rotated", name, generation, &vault, kid.name());
}

fn add_generation(event: &str, name: &str, generation: i32, vault: &Vault, key: &str) {
    let secret = envelope::new_secret().or_raise();
    let target = Target::of(vault, key).or_raise();
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
    let database = table::make_database_id();
    let place = target.wrap(vault, &mut record, &secret, &database).or_raise();
    table::insert(&record);
    events::Row::new(event, &record.server)
        .data_keys(&[name])
        .kid(&record.kid)
        .role(events::current_role().as_deref())
        .reason(&format!("generation {generation}"))
        .request_id(&vault.request_id())
        .insert();
    load::keep(&record, vault, &place, secret, Some(database)).or_raise();
}

/// Wraps the data keys of a server (`None`: of all that the current user owns) with the newest version of their key,
/// or of another one's; returns how many were wrapped anew.
pub fn rewrap(server: Option<&CStr>, to_server: Option<&CStr>, to_key: Option<&str>) -> i32 {
    require_preloaded();
    refuse_read_only(c"rewrap_data_keys()");
    let oid = |name| owned_servers(Some(name)).first().map(|(oid, _)| *oid);
    rewrap::call(&Wanted {
        server: server.and_then(oid),
        to_server: to_server.and_then(oid),
        to_key: to_key.map(str::to_owned),
    })
}

/// Locks the data keys of a server (`None`: of all that the current user owns) at once, in every session, until
/// [`revalidate`]; returns how many there are.
pub fn lock(server: Option<&CStr>) -> i32 {
    require_preloaded();
    for (oid, name) in owned_servers(server) {
        let mut table = memory::lock();
        let was_locked = table.is_locked(my_database(), oid);
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
        if !was_locked {
            note(oid, "locked_by_owner");
        }
    }
    worker::wake();
    chosen(server).len() as i32
}

/// Unlocks the data keys of a server (`None`: of all that the current user owns) and tries the keys that wrap them;
/// returns how many data keys may be used.
pub fn revalidate(server: Option<&CStr>) -> i32 {
    require_preloaded();
    for (oid, _) in owned_servers(server) {
        let mut table = memory::lock();
        let was_locked = table.is_locked(my_database(), oid);
        table.set_locked(my_database(), oid, false);
        drop(table);
        if was_locked {
            note(oid, "unlocked_by_owner");
        }
    }
    worker::wake();
    let mut usable = 0;
    // By server and vault key: another server has another identity.
    let mut tried: HashMap<(String, String), bool> = HashMap::new();
    for row in chosen(server) {
        let record = row.record;
        let (vault, kid) = access::way_of(&record);
        let of = (record.server.clone(), record.kid.clone());
        usable += i32::from(*tried.entry(of).or_insert_with(|| load::revalidate(&record, &vault, &kid)));
    }
    usable
}

/// Notes for the audit what the owner of a server does. It counts at once, whatever becomes of his transaction, and
/// where nothing can be written: so it waits for the worker.
fn note(server: pg_sys::Oid, what: &str) {
    let subject = journal::server_subject(my_database(), server);
    let mut event = Event::new(subject, what);
    event.role = servers::current_user();
    let mut journal = journal::lock();
    journal.note_use(my_database(), server, subject);
    journal.add(event);
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
