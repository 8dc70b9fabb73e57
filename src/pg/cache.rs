//! The token cache: a fixed number of slots in shared memory, or in this process's own when the
//! library was not preloaded.
//!
//! One lock for all slots; its order is: nothing is locked before it and nothing while it is held. While
//! it is held nothing may fail, allocate from PostgreSQL or wait. Beside each slot stand two counters
//! that are read and counted without the lock, so that a warm token costs no lock at all.

use std::ffi::c_int;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pgrx::prelude::*;
use pgrx::{PgSharedMemoryInitialization, pg_shmem_init};
use zeroize::Zeroize;

use super::settings;
use crate::http::failure::{Failure, Kind};
use crate::identity::{resource, selector};
use crate::token::AccessToken;

/// The longest token that is kept, in bytes; a longer one is served and not kept.
pub const TOKEN_ROOM: usize = 16 << 10;

/// A text of bounded length that can live in shared memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Text<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    /// Keeps what fits, cut at a character.
    pub fn set(&mut self, text: &str) {
        let mut length = text.len().min(N);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        self.bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length = length as u16;
    }

    pub fn get(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

/// A failure as it is kept for those who wait: our own words only.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KeptFailure {
    kind: u8,
    /// The attempt that ended with it; 0: none.
    pub attempt: u64,
    /// Unix seconds.
    pub at: i64,
    message: Text<160>,
    detail: Text<240>,
    hint: Text<240>,
}

impl KeptFailure {
    pub fn set(&mut self, failure: &Failure, attempt: u64, at: i64) {
        self.kind = failure.kind as u8;
        self.attempt = attempt;
        self.at = at;
        self.message.set(&failure.message);
        self.detail.set(failure.detail.as_deref().unwrap_or_default());
        self.hint.set(failure.hint.as_deref().unwrap_or_default());
    }

    pub fn get(&self) -> Option<Failure> {
        let kind = Kind::from_number(self.kind)?;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Failure {
            kind,
            message: self.message.get().into(),
            detail: some(self.detail.get()),
            hint: some(self.hint.get()),
        })
    }
}

/// Room for one token and for all that is known about fetching it. All zeros is a free slot.
#[repr(C)]
pub struct Slot {
    pub changed: pg_sys::ConditionVariable,
    /// Whether the slot stands for anything.
    pub taken: bool,
    /// The last token did not fit: there is nothing to wait for, everybody fetches.
    pub oversize: bool,
    /// Hash of all that shaped the request.
    pub key: [u8; 32],
    /// Hash of all that shaped it but the resource: the identity.
    pub identity: [u8; 32],
    pub kind: Text<24>,
    pub id: Text<{ selector::LONGEST_ID }>,
    pub resource: Text<{ resource::LONGEST }>,
    pub source: Text<24>,
    /// Who fetches; 0: nobody.
    pub owner: c_int,
    /// The number of the last attempt to fetch; grows with each.
    pub attempt: u64,
    /// Milliseconds of the monotonic clock, which all processes of a machine share.
    pub lease_until: i64,
    pub no_retry_before: i64,
    pub no_refresh_before: i64,
    pub no_force_before: i64,
    pub began_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
    pub refresh_at: i64,
    pub usable_until: i64,
    pub fetched_at: i64,
    pub fetches: i64,
    pub failures: i64,
    pub waiting: c_int,
    pub last_failure: KeptFailure,
    length: u32,
    token: [u8; TOKEN_ROOM],
}

impl Slot {
    pub fn has_token(&self) -> bool {
        self.length > 0
    }

    /// A copy of the token. It was checked when it was stored.
    pub fn copy_token(&self) -> Option<AccessToken> {
        let bytes = self.token.get(..self.length as usize)?;
        let text = std::str::from_utf8(bytes).ok()?.to_owned();
        AccessToken::new(text.into(), self.expires_at, self.refresh_at).ok()
    }

    /// Keeps the token if it fits: its bytes first, the length that makes them valid last.
    pub fn store_token(&mut self, token: &AccessToken) -> bool {
        self.wipe_token();
        let bytes = token.expose().as_bytes();
        let Some(room) = self.token.get_mut(..bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.length = bytes.len() as u32;
        true
    }

    pub fn wipe_token(&mut self) {
        let used = (self.length as usize).min(TOKEN_ROOM);
        self.length = 0;
        self.token[..used].zeroize();
    }
}

/// What is read without the lock.
#[repr(C)]
struct Live {
    /// Changes whenever the slot's token does, and never comes back to an old value.
    generation: AtomicU64,
    hits: AtomicU64,
}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
static LIVE: AtomicPtr<Live> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Null for a cache of this process alone.
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

/// Entries of a cache that one session has for itself.
const LOCAL_LENGTH: usize = 16;

struct SharedTable;

static SHARED: SharedTable = SharedTable;
const TRANCHE: &std::ffi::CStr = c"managed_identity";

fn bytes(length: usize) -> usize {
    length * (size_of::<Slot>() + size_of::<Live>())
}

impl PgSharedMemoryInitialization for SharedTable {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called in shmem_request_hook, the place for both requests.
        unsafe {
            pg_sys::RequestAddinShmemSpace(bytes(settings::cache_entries()));
            pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
        }
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
                init_conditions(start.cast(), length);
            }
            publish(start, length);
            LOCK.store(&raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock, Ordering::Relaxed);
            pg_sys::LWLockRelease(addin);
        }
    }
}

/// `lwlocklist.h`: the same number in 15 to 18.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// # Safety
/// `slots` points to `length` zeroed slots.
unsafe fn init_conditions(slots: *mut Slot, length: usize) {
    for at in 0..length {
        // SAFETY: within the array, as the caller promises.
        unsafe { pg_sys::ConditionVariableInit(&raw mut (*slots.add(at)).changed) };
    }
}

/// Slots first, then as many counters.
///
/// # Safety
/// `start` points to `bytes(length)` bytes, aligned for both.
unsafe fn publish(start: *mut u8, length: usize) {
    SLOTS.store(start.cast(), Ordering::Relaxed);
    // SAFETY: within the same block, as the caller promises.
    LIVE.store(unsafe { start.add(length * size_of::<Slot>()) }.cast(), Ordering::Relaxed);
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
    // SAFETY: zeroed, large enough, aligned for 8 bytes as both types need, and never freed.
    unsafe {
        init_conditions(start.cast(), LOCAL_LENGTH);
        publish(start, LOCAL_LENGTH);
    }
}

/// The slots, for as long as this lives.
pub struct Locked {
    slots: &'static mut [Slot],
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
    // SAFETY: the array published above; the lock (or being the only process) makes this the only
    // reference to it.
    let slots =
        unsafe { std::slice::from_raw_parts_mut(SLOTS.load(Ordering::Relaxed), LENGTH.load(Ordering::Relaxed)) };
    Locked { slots }
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
        self.iter().position(|slot| slot.taken && slot.key == *key)
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
        Some(at)
    }

    /// Makes a slot free again. The condition variable stays: somebody may be about to sleep on it.
    pub fn clear(&mut self, at: usize) {
        self.replaced(at);
        let attempt = self[at].attempt;
        let slot = &mut self[at];
        slot.wipe_token();
        slot.taken = false;
        slot.oversize = false;
        slot.owner = 0;
        // Never starts again from nothing: a leader that comes back late must not meet its own number.
        slot.attempt = attempt + 1;
        slot.no_retry_before = 0;
        slot.no_refresh_before = 0;
        slot.no_force_before = 0;
        slot.began_at = 0;
        slot.fetches = 0;
        slot.failures = 0;
        slot.fetched_at = 0;
        slot.last_failure.attempt = 0;
        slot.last_failure.kind = 0;
        live(at).hits.store(0, Ordering::Relaxed);
    }

    /// Tells every session that its copy of this slot's token is no longer the slot's.
    pub fn replaced(&mut self, at: usize) -> u64 {
        live(at).generation.fetch_add(1, Ordering::Release) + 1
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
pub fn count_hit(at: usize) {
    live(at).hits.fetch_add(1, Ordering::Relaxed);
}

pub fn hits(at: usize) -> u64 {
    live(at).hits.load(Ordering::Relaxed)
}

/// The condition variable of a slot; valid for the process's life.
pub fn condition(at: usize) -> *mut pg_sys::ConditionVariable {
    // SAFETY: `at` is an index of the published array; only an address is made.
    unsafe { &raw mut (*SLOTS.load(Ordering::Relaxed).add(at)).changed }
}
