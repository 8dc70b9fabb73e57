//! Customer-managed keys: a key in the vault wraps data keys that are kept, wrapped and signed, in the database.
//!
//! A data key is unwrapped once for the whole server. Its way: row ([`table`]), rights and vault ([`access`]),
//! signature and unwrapping ([`load`]), shared memory ([`memory`]), this process's own pages ([`guarded`]). From
//! then on the worker looks after the vault key ([`probe`]) and takes away what may no longer be used; a session's
//! copy is good while its number in shared memory is the same, so that a lock holds at once everywhere.
//!
//! What must be written waits in the [`journal`] until the worker without a database starts one for the database
//! ([`starter`]), which writes the audit ([`events`]) and wraps data keys anew ([`rewrap`]) in short transactions
//! ([`writer`]).

mod access;
pub mod admin;
mod events;
mod guarded;
mod job;
mod journal;
mod load;
mod memory;
pub mod probe;
mod rewrap;
pub mod rows;
mod session;
pub mod settings;
pub mod starter;
pub mod table;
mod watching;
mod wrap;
mod writer;

pub use access::refuse_wrapping_key;
pub use session::{decrypt, encrypt};

use pgrx::prelude::*;

use super::error::{OrRaise, error};
use crate::vault::envelope;

/// Asks for shared memory; only while the library is preloaded.
pub fn request() {
    memory::request();
    journal::request();
}

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
