//! Customer-managed keys: a key in the vault wraps data keys that are kept, wrapped and signed, in the database.
//!
//! A data key is unwrapped once for the whole server. Its way: row ([`table`]), rights and vault ([`access`]),
//! signature and unwrapping ([`load`]), shared memory ([`memory`]), this process's own pages ([`guarded`]). From
//! then on the worker looks after the vault key ([`probe`]) and takes away what may no longer be used; a session's
//! copy is good while its number in shared memory is the same, so that a lock holds at once everywhere.

mod access;
pub mod admin;
mod guarded;
mod load;
mod memory;
pub mod probe;
pub mod rows;
mod session;
pub mod settings;
pub mod table;
mod watching;

pub use access::refuse_wrapping_key;
pub use memory::request;
pub use session::{decrypt, encrypt};

use pgrx::prelude::*;

use super::error::{OrRaise, error};
use crate::vault::envelope;

/// Raises unless there is memory that all sessions share and no core dump holds.
fn require_preloaded() {
    if !memory::is_there() {
        error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "data keys need managed_identity in shared_preload_libraries",
            None,
            Some("Put managed_identity first in shared_preload_libraries and restart.".into()),
        );
    }
}

/// Name and generation of the data key that a value was encrypted under.
pub fn of_value(value: &[u8]) -> Option<(String, i32)> {
    let id = envelope::key_id(value).or_raise();
    table::by_id(&id).map(|row| (row.record.name, row.record.generation))
}
