//! The token cache: a fixed number of slots in shared memory, or in this process's own when the
//! library was not preloaded.
//!
//! One lock for all slots; its order is: nothing is locked before it and nothing while it is held. While
//! it is held nothing may fail, allocate from PostgreSQL or wait. Beside each slot stand three numbers
//! that are read and written without the lock, so that a warm token costs no lock at all.

mod slot;
mod warm;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pgrx::prelude::*;
use pgrx::{PgSharedMemoryInitialization, pg_shmem_init};

pub use slot::{Slot, Wanted};

use super::settings;
use crate::token::AccessToken;
use crate::token::pool::{self, Chunk};

/// What is read without the lock.
#[repr(C)]
struct Live {
    /// Changes whenever the slot's token does, and never comes back to an old value.
    generation: AtomicU64,
    hits: AtomicU64,
    /// Unix seconds.
    used_at: AtomicI64,
}

/// The worker that renews tokens, as those see it who want to wake it.
#[repr(C)]
pub struct Renewer {
    /// 0: none.
    pub pid: i32,
    pub latch: *mut pg_sys::Latch,
}

static RENEWER: AtomicPtr<Renewer> = AtomicPtr::new(std::ptr::null_mut());
static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
static LIVE: AtomicPtr<Live> = AtomicPtr::new(std::ptr::null_mut());
static POOL: AtomicPtr<Chunk> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Null for a cache of this process alone.
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

/// Entries of a cache that one session has for itself.
const LOCAL_LENGTH: usize = 16;

struct SharedTable;

static SHARED: SharedTable = SharedTable;
const TRANCHE: &std::ffi::CStr = c"managed_identity";

/// Room for 4 kB of token a slot, and for two tokens of the longest kind beside them.
const fn chunks(length: usize) -> usize {
    length * 4 + 136
}

fn bytes(length: usize) -> usize {
    size_of::<Renewer>() + length * (size_of::<Slot>() + size_of::<Live>()) + chunks(length) * size_of::<Chunk>()
}

impl PgSharedMemoryInitialization for SharedTable {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called in shmem_request_hook, the place for both requests.
        unsafe {
            pg_sys::RequestAddinShmemSpace(bytes(settings::cache_entries()));
            pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
        }
        warm::init(settings::cache_entries());
    }

    unsafe fn on_shmem_startup(&'static self, _value: ()) {
        let length = settings::cache_entries();
        // SAFETY: called in shmem_startup_hook of the postmaster, before any other process lives; after
        // a crash it is called again for a new, empty segment. AddinShmemInitLock guards the look-up
        // as for every extension, and the pointers are the same in every child.
        unsafe {
            let addin = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
            pg_sys::LWLockAcquire(addin, pg_sys::LWLockMode::LW_EXCLUSIVE);
            let mut found = false;
            let start = pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), bytes(length), &mut found).cast::<u8>();
            if !found {
                std::ptr::write_bytes(start, 0, bytes(length));
            }
            publish(start, length);
            if !found {
                init_conditions();
                restore();
            }
            LOCK.store(&raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock, Ordering::Relaxed);
            pg_sys::LWLockRelease(addin);
        }
    }
}

/// `lwlocklist.h`: the same number in 15 to 18.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// # Safety
/// The published slots are zeroed, and nobody else's yet.
unsafe fn init_conditions() {
    for at in 0..LENGTH.load(Ordering::Relaxed) {
        // SAFETY: within the array, as the caller promises.
        unsafe { pg_sys::ConditionVariableInit(condition(at)) };
    }
}

/// Takes up again what a crash has interrupted.
///
/// # Safety
/// As for [`init_conditions`].
unsafe fn restore() {
    for at in 0..LENGTH.load(Ordering::Relaxed) {
        // SAFETY: within the array, and the caller is alone.
        unsafe {
            let Some((wanted, used_at)) = warm::remembered(at) else { continue };
            let slot = &mut *SLOTS.load(Ordering::Relaxed).add(at);
            slot.taken = true;
            slot.lost = true;
            slot.wanted = wanted;
            live(at).used_at.store(used_at, Ordering::Relaxed);
        }
    }
}

/// The worker's place first, then the slots, then as many counters, then the pool.
///
/// # Safety
/// `start` points to `bytes(length)` bytes, aligned for 8.
unsafe fn publish(start: *mut u8, length: usize) {
    // SAFETY: within the same block, as the caller promises; each type's size is a multiple of 8, but for
    // the last one's, which needs no more than 4.
    unsafe {
        let slots = start.add(size_of::<Renewer>());
        let live = slots.add(length * size_of::<Slot>());
        RENEWER.store(start.cast(), Ordering::Relaxed);
        SLOTS.store(slots.cast(), Ordering::Relaxed);
        LIVE.store(live.cast(), Ordering::Relaxed);
        POOL.store(live.add(length * size_of::<Live>()).cast(), Ordering::Relaxed);
    }
    LENGTH.store(length, Ordering::Relaxed);
}

/// Asks for shared memory; only while the library is preloaded.
pub fn init() {
    pg_shmem_init!(SHARED = ());
}

/// Whether all sessions share the cache.
pub fn is_shared() -> bool {
    !LOCK.load(Ordering::Relaxed).is_null()
}

/// A cache of this process alone, made on first use. It is leaked: it lives as long as the process.
fn make_local() {
    let words = bytes(LOCAL_LENGTH).div_ceil(size_of::<u64>());
    let start = Box::leak(vec![0u64; words].into_boxed_slice()).as_mut_ptr().cast::<u8>();
    // SAFETY: zeroed, large enough, aligned for 8 bytes as all types need, and never freed.
    unsafe {
        publish(start, LOCAL_LENGTH);
        init_conditions();
    }
}

/// The cache, for as long as this lives.
pub struct Locked {
    pub renewer: &'static mut Renewer,
    slots: &'static mut [Slot],
    pool: &'static mut [Chunk],
}

/// Takes the lock. Nothing that can fail, wait or allocate from PostgreSQL may be called before the
/// result is dropped.
pub fn lock() -> Locked {
    if SLOTS.load(Ordering::Relaxed).is_null() {
        make_local();
    }
    let lock = LOCK.load(Ordering::Relaxed);
    if !lock.is_null() {
        // SAFETY: the lock of our own tranche.
        unsafe { pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE) };
    }
    let length = LENGTH.load(Ordering::Relaxed);
    // SAFETY: the arrays published above; the lock (or being the only process) makes these the only
    // references to them.
    unsafe {
        Locked {
            renewer: &mut *RENEWER.load(Ordering::Relaxed),
            slots: std::slice::from_raw_parts_mut(SLOTS.load(Ordering::Relaxed), length),
            pool: std::slice::from_raw_parts_mut(POOL.load(Ordering::Relaxed), chunks(length)),
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let lock = LOCK.load(Ordering::Relaxed);
        if !lock.is_null() {
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
        slot.last_failure.clear();
        live(at).hits.store(0, Ordering::Relaxed);
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
        live(at).generation.fetch_add(1, Ordering::Release) + 1
    }

    /// Writes down for after a crash when the slot was last used.
    pub fn note_use(&mut self, at: usize) {
        // SAFETY: the lock is held.
        unsafe { warm::used(at, used_at(at)) };
    }
}

fn live(at: usize) -> &'static Live {
    // SAFETY: `at` is an index of the published array; its fields are atomic.
    unsafe { &*LIVE.load(Ordering::Relaxed).add(at) }
}

/// The generation of a slot's token, without the lock.
pub fn generation(at: usize) -> u64 {
    live(at).generation.load(Ordering::Acquire)
}

/// Counts a call that was served from the cache.
pub fn count_hit(at: usize, now: i64) {
    live(at).hits.fetch_add(1, Ordering::Relaxed);
    use_at(at, now);
}

/// Notes that somebody needed the slot's token.
pub fn use_at(at: usize, now: i64) {
    live(at).used_at.store(now, Ordering::Relaxed);
}

/// When the slot was last used, in Unix seconds.
pub fn used_at(at: usize) -> i64 {
    live(at).used_at.load(Ordering::Relaxed)
}

pub fn hits(at: usize) -> u64 {
    live(at).hits.load(Ordering::Relaxed)
}

/// The condition variable of a slot; valid for the process's life.
pub fn condition(at: usize) -> *mut pg_sys::ConditionVariable {
    // SAFETY: `at` is an index of the published array; only an address is made.
    unsafe { &raw mut (*SLOTS.load(Ordering::Relaxed).add(at)).changed }
}
