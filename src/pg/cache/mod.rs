//! The token cache: a fixed number of slots in memory that all sessions share, or in this process's own.
//!
//! One lock for all slots; its order is: nothing is locked before it and nothing while it is held. While
//! it is held nothing may fail, allocate from PostgreSQL or wait. Beside each slot stand three numbers
//! that are read and written without the lock, so that a warm token costs no lock at all.

mod memory;
mod slot;
mod warm;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

use pgrx::prelude::*;

pub use memory::{Renewer, attach, condition, is_shared, is_started_by_sessions, request};
pub use slot::{KeptFailure, Slot, Text, Wanted};

use crate::token::AccessToken;
use crate::token::pool::{self, Chunk};

/// The cache, for as long as this lives.
pub struct Locked {
    pub renewer: &'static mut Renewer,
    slots: &'static mut [Slot],
    pool: &'static mut [Chunk],
}

/// Takes the lock. Nothing that can fail, wait or allocate from PostgreSQL may be called before the
/// result is dropped.
pub fn lock() -> Locked {
    attach();
    if let Some(lock) = memory::shared_lock() {
        // SAFETY: the lock of our own tranche.
        unsafe { pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE) };
    }
    // SAFETY: the lock (or being the only process) makes these the only references.
    let (renewer, slots, pool) = unsafe { memory::all() };
    Locked { renewer, slots, pool }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Some(lock) = memory::shared_lock() {
            // SAFETY: held since `lock()`: nothing in between can raise an ERROR that would release it.
            unsafe { pg_sys::LWLockRelease(lock) };
        }
    }
}

impl Deref for Locked {
    type Target = [Slot];

    fn deref(&self) -> &[Slot] {
        self.slots
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut [Slot] {
        self.slots
    }
}

impl Locked {
    /// The slot of this key.
    pub fn find(&self, key: &[u8; 32]) -> Option<usize> {
        self.iter().position(|slot| slot.taken && slot.wanted.key == *key)
    }

    /// A slot for a new key: a free one, else the one unused the longest of those that hold no token
    /// that is still valid. A token is never thrown out for a resource somebody invented.
    pub fn claim(&mut self, now: i64, monotonic: i64) -> Option<usize> {
        let idle = |slot: &Slot| slot.owner == 0 && slot.waiting == 0 && slot.no_retry_before <= monotonic;
        let at = self.iter().position(|slot| !slot.taken).or_else(|| {
            let old =
                self.iter().enumerate().filter(|(_, slot)| idle(slot) && (!slot.has_token() || slot.expires_at <= now));
            old.min_by_key(|(_, slot)| slot.began_at).map(|(at, _)| at)
        })?;
        self.clear(at);
        self[at].taken = true;
        Some(at)
    }

    /// Makes a slot free again. The condition variable stays: somebody may be about to sleep on it.
    pub fn clear(&mut self, at: usize) {
        self.replaced(at);
        self.wipe_token(at);
        let slot = &mut self[at];
        slot.taken = false;
        slot.oversize = false;
        slot.lost = false;
        slot.owner = 0;
        // Never starts again from nothing: a leader that comes back late must not meet its own number.
        slot.attempt += 1;
        slot.no_retry_before = 0;
        slot.no_refresh_before = 0;
        slot.no_force_before = 0;
        slot.began_at = 0;
        slot.fetches = 0;
        slot.failures = 0;
        slot.failures_in_a_row = 0;
        slot.fetched_at = 0;
        slot.expires_at = 0;
        slot.refresh_at = 0;
        slot.usable_until = 0;
        slot.last_failure.clear();
        memory::live(at).hits.store(0, Ordering::Relaxed);
        // SAFETY: the lock is held.
        unsafe { warm::forget(at) };
    }

    /// A copy of the slot's token. It was checked when it was stored.
    pub fn copy_token(&self, at: usize) -> Option<AccessToken> {
        let slot = &self[at];
        let mut bytes = pool::load(self.pool, slot.place)?;
        let text = String::from_utf8(std::mem::take(&mut *bytes)).ok()?;
        AccessToken::new(text.into(), slot.expires_at, slot.refresh_at).ok()
    }

    /// Keeps the token if it has room.
    pub fn store_token(&mut self, at: usize, token: &AccessToken) -> bool {
        self.wipe_token(at);
        let place = pool::store(self.pool, token.expose().as_bytes());
        self[at].place = place.unwrap_or_default();
        self[at].lost = false;
        if place.is_some() {
            // SAFETY: the lock is held.
            unsafe { warm::remember(at, &self[at].wanted, used_at(at)) };
        }
        place.is_some()
    }

    fn wipe_token(&mut self, at: usize) {
        let place = std::mem::take(&mut self[at].place);
        pool::wipe(self.pool, place);
    }

    /// Tells every session that its copy of this slot's token is no longer the slot's.
    pub fn replaced(&mut self, at: usize) -> u64 {
        memory::live(at).generation.fetch_add(1, Ordering::Release) + 1
    }

    /// Writes down for after a crash when the slot was last used.
    pub fn note_use(&mut self, at: usize) {
        // SAFETY: the lock is held.
        unsafe { warm::used(at, used_at(at)) };
    }
}

/// The generation of a slot's token, without the lock.
pub fn generation(at: usize) -> u64 {
    memory::live(at).generation.load(Ordering::Acquire)
}

/// Counts a call that was served from the cache.
pub fn count_hit(at: usize, now: i64) {
    memory::live(at).hits.fetch_add(1, Ordering::Relaxed);
    use_at(at, now);
}

/// Notes that somebody needed the slot's token.
pub fn use_at(at: usize, now: i64) {
    memory::live(at).used_at.store(now, Ordering::Relaxed);
}

/// When the slot was last used, in Unix seconds.
pub fn used_at(at: usize) -> i64 {
    memory::live(at).used_at.load(Ordering::Relaxed)
}

pub fn hits(at: usize) -> u64 {
    memory::live(at).hits.load(Ordering::Relaxed)
}
