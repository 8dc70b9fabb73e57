//! The rows of view `data_keys`.

use std::ffi::CString;

use pgrx::prelude::*;

use super::memory::{self, VAULT_KEYS};
use super::{settings, table};
use crate::pg::servers::{self, Server, Wrapper};
use crate::pg::{clock, compat};
use crate::vault::watch::State;

/// A row.
pub struct Row {
    pub name: String,
    pub vault: CString,
    pub kid: String,
    pub generation: i32,
    pub state: &'static str,
    pub locked_reason: Option<String>,
    pub signed: bool,
    pub created_at: Option<TimestampWithTimeZone>,
    pub rotated_at: Option<TimestampWithTimeZone>,
    pub last_validated_at: Option<TimestampWithTimeZone>,
}

/// What a vault key's state is, and why it is no better.
struct Known {
    kid: String,
    state: State,
    why: Option<String>,
    validated_at: i64,
}

/// The data keys of the servers that the current user may use; all of them for a role with pg_read_all_stats.
pub fn rows() -> Vec<Row> {
    let user = servers::current_user();
    // SAFETY: reads the syscache by plain values.
    let all = unsafe { pg_sys::has_privs_of_role(user, pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS)) };
    let servers = servers::servers_of(Wrapper::Vault);
    let (known, validated) = (vault_keys(), table::validated());
    let rows = table::all();
    let next = |row: &table::Row| {
        let is_next = |other: &&table::Row| {
            other.record.name == row.record.name && other.record.generation == row.record.generation + 1
        };
        rows.iter().find(is_next).and_then(|next| next.created_at)
    };
    let shown = rows.iter().filter_map(|row| {
        let server = servers.iter().find(|server| server.name.to_bytes() == row.record.server.as_bytes());
        let may_see = all || server.is_some_and(|server| compat::has_usage(server.oid, user));
        may_see.then(|| shown(row, next(row), server, &known, &validated))
    });
    shown.collect()
}

fn vault_keys() -> Vec<Known> {
    if !memory::is_there() {
        return Vec::new();
    }
    let (now, grace) = (clock::monotonic(), settings::grace());
    let mut copies = Vec::with_capacity(VAULT_KEYS);
    let mut table = memory::lock();
    for at in 0..VAULT_KEYS {
        let known = table.vault_key(at);
        if known.taken {
            copies.push((known.kid, known.watch, known.last_failure, known.validated_at));
        }
    }
    drop(table);
    let known = copies.into_iter().map(|(kid, watch, failure, validated_at)| Known {
        kid: kid.get().into(),
        state: watch.at(now, grace).state(),
        why: failure.get().map(|failure| failure.message),
        validated_at,
    });
    known.collect()
}

fn shown(
    row: &table::Row,
    rotated_at: Option<TimestampWithTimeZone>,
    server: Option<&Server>,
    known: &[Known],
    validated: &[table::Validated],
) -> Row {
    let record = &row.record;
    let vault_key = known.iter().filter(|known| known.kid == record.kid).max_by_key(|known| known.state as u8);
    // SAFETY: a plain global.
    let database = unsafe { pg_sys::MyDatabaseId };
    let owner_locked =
        server.is_some_and(|server| memory::is_there() && memory::lock().is_locked(database, server.oid));
    let (state, locked_reason) = match (server, vault_key) {
        (None, _) => ("no server", None),
        _ if owner_locked => (State::Locked.as_str(), Some("locked by lock_data_keys()".to_owned())),
        (_, Some(known)) => (known.state.as_str(), known.why.clone().filter(|_| known.state != State::Ready)),
        (_, None) => (State::Ready.as_str(), None),
    };
    Row {
        name: record.name.clone(),
        vault: CString::new(record.server.as_str()).unwrap_or_default(),
        kid: record.kid.clone(),
        generation: record.generation,
        state,
        locked_reason,
        signed: record.signature.is_some(),
        created_at: row.created_at,
        rotated_at,
        last_validated_at: vault_key.and_then(|known| clock::timestamp(known.validated_at)).or_else(|| {
            // Not since the server was started: as a worker has written it.
            let written = validated.iter().find(|of| of.server == record.server && of.kid == record.kid);
            written.map(|of| of.at)
        }),
    }
}
