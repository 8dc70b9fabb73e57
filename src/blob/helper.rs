//! The thread beside a COPY: with a runtime of its own it moves bytes while PostgreSQL parses, formats
//! or waits in a trigger.

use std::future::Future;

use crate::http::failure::{Failure, Kind};
use crate::http::thread::spawn_masked;

/// Runs `work` on a thread of its own. The thread ends with it, and takes with it what it spawned.
pub fn start(name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Kind::Local, "could not start a thread for the transfer").detail(error.to_string())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
    // Dropped there, where nobody waits for it; it has no blocking tasks to wait for either.
    spawn_masked(name, move || runtime.block_on(work)).map_err(failed)
}

/// The other end is gone without a word.
pub fn vanished() -> Failure {
    Failure::new(Kind::Local, "the thread for the transfer ended unexpectedly")
}
