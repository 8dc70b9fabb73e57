//! The fence: every line that touches PostgreSQL's internals, and nearly all unsafe code.

#![allow(unsafe_code)]
#![deny(ffi_unwind_calls)]

pub mod cache;
pub mod clock;
pub mod compat;
pub mod copy;
pub mod error;
pub mod flight;
pub mod identities;
pub mod interrupts;
pub mod name;
pub mod options;
pub mod servers;
pub mod settings;
pub mod storage;
pub mod text;
pub mod tokens;
pub mod vault;
