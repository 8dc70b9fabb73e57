//! Waiting that can be interrupted: wherever a session waits, it is free at once, the endpoint holding on or
//! not, and nothing of the wait is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

mod copy;
mod hang;
mod resolver;
mod server;
mod stage;
mod storms;
mod tokens;
