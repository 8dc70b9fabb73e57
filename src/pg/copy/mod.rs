//! `COPY … FROM/TO 'https://…'`.
//!
//! A utility [`hook`] takes the statement out of core's hands before core would look for a file of that
//! name. [`statement`] reads our options, [`checks`] does what `DoCopy` does before any data moves, and
//! [`from`] and [`to`] run core's own COPY with a callback at its end, where bytes come from or go to a
//! transfer in `blob`.

mod checks;
mod from;
mod hook;
mod lease;
mod spool;
mod stack;
mod statement;
mod to;

pub use hook::{init, is_installed};
