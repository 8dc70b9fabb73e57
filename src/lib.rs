#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
use pgrx::prelude::*;
::pgrx::pg_module_magic!(name, version);
pub mod blob; pub mod http; pub mod token; pub mod identity; pub mod vault;
