//! The token of a transfer, renewed while the backend is in COPY's callback.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::super::storage::Storage;
use crate::blob::Renewer;

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
