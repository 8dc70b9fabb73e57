//! What the tests, the demo and the benchmarks share: a throwaway PostgreSQL with the extension
//! installed, Azurite, and the emulator, wired together. Everything ends when it is dropped.
//!
//! `make test` sets the environment: PG_CONFIG (the server under test), PG15_CONFIG, MI_AZURITE,
//! MI_PGBOUNCER, MI_PYTHON, MI_CACHE.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

mod azurite;
mod cluster;
mod companion;
mod connect_proxy;
mod outcome;
mod peer_vault;
mod pgbouncer;
mod pod;
mod programs;
pub mod wait;
mod world;

pub use azurite::Azurite;
pub use cluster::{Cluster, Options, Session, successful};
pub use companion::has_extension;
pub use connect_proxy::ConnectProxy;
pub use outcome::outcome;
pub use peer_vault::PeerVault;
pub use pgbouncer::PgBouncer;
pub use pod::{Pod, SUBJECT};
pub use programs::{is_root, major, pg_config, programs_of};
pub use world::{ACCOUNT, World};

/// The value of a variable that `make test` sets.
pub fn given(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run this by `make test`"))
}
