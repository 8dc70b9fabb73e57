//! What a transfer borrows: its token, renewed while the backend is in COPY's callback, and descriptors.

use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::blob::Renewer;
use crate::pg::storage::Storage;

/// How often an old token is looked at again: the cache keeps serving it while it lives.
const PAUSE: Duration = Duration::from_secs(1);

/// Where new tokens come from, and when to ask.
pub struct Lease {
    storage: Rc<Storage>,
    asked: Instant,
}

impl Lease {
    pub fn new(storage: Rc<Storage>) -> Self {
        Self { storage, asked: Instant::now() }
    }

    /// Puts a new token into the cell when the one in it is due.
    pub fn keep_fresh(&mut self, renewer: &Renewer) {
        if renewer.is_due() && self.asked.elapsed() >= PAUSE {
            self.renew(renewer);
        }
    }

    /// Puts a token into the cell, because the helper asked for one.
    pub fn renew(&mut self, renewer: &Renewer) {
        self.asked = Instant::now();
        renewer.renew(self.storage.token());
    }
}

/// The sockets and the runtime of a transfer. fd.c must count them, or it promises descriptors to
/// others that the process does not have.
pub struct Descriptors;

impl Descriptors {
    const COUNT: usize = 8;

    pub fn reserve() -> Self {
        for _ in 0..Self::COUNT {
            // SAFETY: only counts, and closes files that fd.c can open again.
            unsafe { pg_sys::ReserveExternalFD() };
        }
        Self
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        for _ in 0..Self::COUNT {
            // SAFETY: only counts.
            unsafe { pg_sys::ReleaseExternalFD() };
        }
    }
}
