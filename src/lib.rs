//! `managed_identity`: a self-hosted PostgreSQL signs in to Azure as itself.
//!
//! The rooms, from what a user sees to what is sent:
//!
//! | room | what it knows |
//! |---|---|
//! | [`sql`] | the SQL functions, one file per schema: arguments in, one call, result out |
//! | [`pg`] | PostgreSQL: settings, foreign servers and rights, the shared cache, waiting, COPY, errors |
//! | [`blob`] | blobs: URLs, formats, compression, moving their bytes |
//! | [`vault`] | Key Vault: requests, answers, what a server allows |
//! | [`token`] | an access token: how it is held, when it ends |
//! | [`identity`] | who the server is: sources, selectors, resources, clouds |
//! | [`http`] | requests and failures as values; the client, its runtime, the one gate for credentials |
//!
//! `sql` calls `pg`, `pg` calls the rest, all call `http`; never back. Only `pg` and `sql` may name
//! PostgreSQL, and unsafe code stands in `pg` alone. Without one of the features `pg15` to `pg18` these two are not
//! there: so the command `managed-identity` (`src/bin`) is built, on the same rooms below them.

// Here and not in the workspace's lints: cargo-pgrx compiles the embed binary from text of its own.
#![deny(unsafe_code)]

#[cfg(feature = "pgrx")]
use pgrx::prelude::*;

#[cfg(not(panic = "unwind"))]
compile_error!("an ERROR must be able to unwind through Rust: build with panic = \"unwind\"");

#[forbid(unsafe_code)]
pub mod blob;
#[forbid(unsafe_code)]
pub mod http;
#[forbid(unsafe_code)]
pub mod identity;
#[cfg(feature = "pgrx")]
pub mod pg;
#[cfg(feature = "pgrx")]
mod sql;
#[forbid(unsafe_code)]
pub mod token;
#[forbid(unsafe_code)]
pub mod vault;

#[cfg(feature = "pgrx")]
::pgrx::pg_module_magic!(name, version);

#[cfg(feature = "pgrx")]
extension_sql_file!("../sql/bootstrap.sql", name = "bootstrap", finalize);

/// Runs in every process that loads the library: defines settings and, while preloading, asks for
/// shared memory. Fails for nothing and waits for nothing.
#[cfg(feature = "pgrx")]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::init();
}
