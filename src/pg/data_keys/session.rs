//! Encrypting and decrypting values with this session's copies of data keys.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;

use pgrx::prelude::*;

use super::guarded::{Kept, wipe_stack};
use super::{access, load, memory, require_preloaded, table};
use crate::pg::bytes::Bytea;
use crate::pg::error::{OrRaise, raise};
use crate::pg::servers;
use crate::pg::{access_log, compat, settings};
use crate::vault::envelope::{self, KeyId, OVERHEAD};

/// Data keys that a session keeps a copy of.
const COPIES: usize = 1024;

/// A copy of a data key, good while its number in shared memory is the same.
struct Copy {
    key: Kept,
    name: String,
    server: pg_sys::Oid,
    server_name: CString,
    /// The identity that the server borrows, and from whom.
    lent: (pg_sys::Oid, pg_sys::Oid),
    at: usize,
    number: u64,
    /// The catalog, the settings and the rows that it was checked by.
    checked: (u64, u64, u64),
    /// In which transaction the log has said that it is used, and by whom.
    logged: (pg_sys::TimestampTz, pg_sys::Oid),
}

#[derive(Default)]
struct Copies {
    by_id: HashMap<KeyId, Copy>,
    /// The newest generation of each name, as of so many changes of the table.
    newest: HashMap<String, KeyId>,
    changes: u64,
}

thread_local! {
    static COPIES_HERE: RefCell<Copies> = RefCell::default();
}

/// The value of a plaintext under the newest generation of a data key.
pub fn encrypt(data_key: &str, plaintext: &[u8], context: &[u8]) -> Bytea {
    require_preloaded();
    let changes = table::changes();
    let known = COPIES_HERE.with_borrow_mut(|copies| {
        if copies.changes != changes {
            copies.newest.clear();
            copies.changes = changes;
        }
        copies.newest.get(data_key).copied()
    });
    let id = known.unwrap_or_else(|| {
        let row = table::newest(data_key).unwrap_or_else(|| access::unknown(data_key));
        COPIES_HERE.with_borrow_mut(|copies| copies.newest.insert(data_key.to_owned(), row.record.id));
        row.record.id
    });
    let mut value = Bytea::new(plaintext.len() + OVERHEAD);
    with_key(&id, |copy| copy.key.key().seal(plaintext, context, value.bytes())).or_raise();
    value
}

/// The plaintext of a value.
pub fn decrypt(value: &[u8], context: &[u8]) -> Bytea {
    require_preloaded();
    let id = envelope::key_id(value).or_raise();
    let mut plaintext = Bytea::new(value.len() - OVERHEAD);
    with_key(&id, |copy| copy.key.key().open(value, context, plaintext.bytes())).or_raise();
    plaintext
}

/// Gives the data key to `use_it`, which must not raise, once the current user's right to it is checked.
fn with_key<R>(id: &KeyId, use_it: impl FnOnce(&Copy) -> R) -> R {
    let checked = (servers::catalog_changes(), settings::changes(), table::changes());
    let good = COPIES_HERE.with_borrow(|copies| {
        let copy = copies.by_id.get(id)?;
        (copy.checked == checked && memory::number(copy.at) == copy.number).then_some((copy.server, copy.lent))
    });
    match good {
        Some((server, (identity, owner)))
            if compat::has_usage(server, servers::current_user()) && compat::has_usage(identity, owner) => {}
        _ => {
            // A copy that is no longer good is wiped before anything can fail.
            COPIES_HERE.with_borrow_mut(|copies| copies.by_id.remove(id));
            let copy = fetch(id, checked);
            COPIES_HERE.with_borrow_mut(|copies| {
                if copies.by_id.len() >= COPIES {
                    copies.by_id.clear();
                }
                copies.by_id.insert(*id, copy);
            });
        }
    }
    log_first_use(id);
    let result = COPIES_HERE.with_borrow(|copies| copies.by_id.get(id).map(use_it));
    result.unwrap_or_else(|| raise(envelope::not_authentic()))
}

/// By way of the table, the server's rules and shared memory or the vault.
fn fetch(id: &KeyId, checked: (u64, u64, u64)) -> Copy {
    let row = table::by_id(id).unwrap_or_else(|| access::unknown_id());
    let (vault, kid) = access::way_of(&row.record);
    let loaded = load::load(&row.record, &vault, &kid);
    let key = Kept::new(*id, &loaded.secret);
    wipe_stack();
    Copy {
        key: key.or_raise(),
        name: row.record.name,
        server: vault.server,
        lent: (vault.identity.oid, vault.owner),
        server_name: vault.name,
        at: loaded.at,
        number: loaded.number,
        checked,
        logged: (0, pg_sys::InvalidOid),
    }
}

/// One line for each data key, role and transaction, however many values there are.
fn log_first_use(id: &KeyId) {
    if !access_log::secrets() {
        return;
    }
    // SAFETY: a plain read.
    let now = (unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }, servers::current_user());
    let first = COPIES_HERE.with_borrow_mut(|copies| {
        let copy = copies.by_id.get_mut(id)?;
        (std::mem::replace(&mut copy.logged, now) != now).then(|| (copy.server_name.clone(), copy.name.clone()))
    });
    if let Some((server, name)) = first {
        access_log::data_key(&server, &name);
    }
}
