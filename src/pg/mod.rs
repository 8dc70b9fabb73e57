//! The fence: every line that touches PostgreSQL's internals, and nearly all unsafe code.

#![allow(unsafe_code)]
#![deny(ffi_unwind_calls)]

pub mod access_log;
mod allocator;
pub mod bytes;
pub mod cache;
pub mod clock;
pub mod compat;
pub mod copy;
pub mod data_keys;
pub mod diagnose;
pub mod error;
pub mod flight;
pub mod identities;
pub mod interrupts;
pub mod name;
pub mod options;
pub mod record;
pub mod restricted;
pub mod servers;
pub mod settings;
pub mod stats;
pub mod status;
pub mod storage;
pub mod text;
pub mod tokens;
pub mod vault;
pub mod vault_calls;
pub mod vault_diagnose;
pub mod worker;

/// What `_PG_init` does.
pub fn init() {
    settings::init();
    // SAFETY: a plain global, set before any library is loaded.
    if unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress } {
        cache::request();
        data_keys::request();
        stats::init();
        worker::register();
    }
    copy::init();
}
