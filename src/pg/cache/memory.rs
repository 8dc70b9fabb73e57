//! Where the cache lies: in the server's own shared memory when the library was preloaded; else, from 17 on,
//! in a segment that the first session makes; else in this process's own memory.
//!
//! The worker's place comes first, then the slots, then as many counters, then the pool of tokens.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pgrx::prelude::*;
use pgrx::{PgSharedMemoryInitialization, pg_shmem_init};

use super::slot::Slot;
use super::warm;
use crate::pg::{compat, settings};
use crate::token::pool::Chunk;

/// What is read without the lock.
#[repr(C)]
pub struct Live {
    /// Changes whenever the slot's token does, and never comes back to an old value.
    pub generation: AtomicU64,
    pub hits: AtomicU64,
    /// Unix seconds.
    pub used_at: AtomicI64,
}

/// The worker that renews tokens, as those see it who want to wake it.
#[repr(C)]
pub struct Renewer {
    /// 0: none.
    pub pid: i32,
    /// Milliseconds of the monotonic clock: until then a session that has asked for a worker waits for it.
    pub asked_until: i64,
    pub latch: *mut pg_sys::Latch,
}

#[repr(C)]
struct Header {
    renewer: Renewer,
    /// Used in a segment only: the server's own shared memory has a place for locks.
    lock: pg_sys::LWLock,
    tranche: c_int,
    _to_8_bytes: u32,
}

const _: () = assert!(size_of::<Header>().is_multiple_of(8) && size_of::<Slot>().is_multiple_of(8));

static HEADER: AtomicPtr<Header> = AtomicPtr::new(std::ptr::null_mut());
static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
static LIVE: AtomicPtr<Live> = AtomicPtr::new(std::ptr::null_mut());
static POOL: AtomicPtr<Chunk> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Null for a cache of this process alone.
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());
static IS_SEGMENT: AtomicBool = AtomicBool::new(false);

/// Slots of a cache that one session has for itself.
const LOCAL_LENGTH: usize = 16;
/// Slots of a segment: every session must ask for the same size.
const SEGMENT_LENGTH: usize = 64;
/// The number is the layout's: a library that lays the memory out otherwise must make another segment.
const SEGMENT: &CStr = c"managed_identity/1";
const TRANCHE: &CStr = c"managed_identity";

/// Room for 4 kB of token a slot, and for two tokens of the longest kind beside them.
const fn chunks(length: usize) -> usize {
    length * 4 + 136
}

const fn bytes(length: usize) -> usize {
    size_of::<Header>() + length * (size_of::<Slot>() + size_of::<Live>()) + chunks(length) * size_of::<Chunk>()
}

/// # Safety
/// `start` points to `bytes(length)` bytes, aligned for 8.
unsafe fn publish(start: *mut u8, length: usize) {
    // SAFETY: within the same block, as the caller promises; all sizes but the last are multiples of 8.
    unsafe {
        let slots = start.add(size_of::<Header>());
        let live = slots.add(length * size_of::<Slot>());
        HEADER.store(start.cast(), Ordering::Relaxed);
        SLOTS.store(slots.cast(), Ordering::Relaxed);
        LIVE.store(live.cast(), Ordering::Relaxed);
        POOL.store(live.add(length * size_of::<Live>()).cast(), Ordering::Relaxed);
    }
    LENGTH.store(length, Ordering::Relaxed);
}

/// Makes an empty cache of memory that holds anything, and publishes it.
///
/// # Safety
/// As for [`publish`]; the memory is nobody else's yet.
unsafe fn make(start: *mut u8, length: usize) {
    // SAFETY: as the caller promises; all zeros is an empty cache but for the condition variables.
    unsafe {
        std::ptr::write_bytes(start, 0, bytes(length));
        publish(start, length);
        for at in 0..length {
            pg_sys::ConditionVariableInit(condition(at));
        }
    }
}

struct Preloaded;

static PRELOADED: Preloaded = Preloaded;

/// Asks for a part of the server's own shared memory; only while the library is preloaded.
pub fn request() {
    pg_shmem_init!(PRELOADED = ());
}

/// `lwlocklist.h`: the same number in 15 to 18.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

impl PgSharedMemoryInitialization for Preloaded {
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
            if found {
                publish(start, length);
            } else {
                make(start, length);
                restore();
            }
            LOCK.store(&raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock, Ordering::Relaxed);
            pg_sys::LWLockRelease(addin);
        }
    }
}

/// Takes up again what a crash has interrupted.
///
/// # Safety
/// The published slots are empty and nobody else's yet.
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

/// Finds the cache, or makes it; once in a process. Raises where the server has no memory for it.
pub fn attach() {
    if !SLOTS.load(Ordering::Relaxed).is_null() {
        return;
    }
    let Some(start) = compat::named_segment(SEGMENT, bytes(SEGMENT_LENGTH), make_segment) else {
        return make_local();
    };
    // SAFETY: a segment of this size that stays mapped as long as the process lives, and was made whole by
    // whoever came first.
    unsafe {
        publish(start.cast(), SEGMENT_LENGTH);
        let header = HEADER.load(Ordering::Relaxed);
        pg_sys::LWLockRegisterTranche((*header).tranche, TRANCHE.as_ptr());
        LOCK.store(&raw mut (*header).lock, Ordering::Relaxed);
    }
    IS_SEGMENT.store(true, Ordering::Relaxed);
}

/// Called by the first process that asks for the segment, while the others wait.
#[pg_guard]
unsafe extern "C-unwind" fn make_segment(start: *mut c_void) {
    // SAFETY: new memory of the size that was asked for.
    unsafe {
        make(start.cast(), SEGMENT_LENGTH);
        let header = HEADER.load(Ordering::Relaxed);
        (*header).tranche = pg_sys::LWLockNewTrancheId();
        pg_sys::LWLockInitialize(&raw mut (*header).lock, (*header).tranche);
    }
}

/// A cache of this process alone. It is leaked: it lives as long as the process.
fn make_local() {
    let words = bytes(LOCAL_LENGTH).div_ceil(size_of::<u64>());
    let start = Box::leak(vec![0u64; words].into_boxed_slice()).as_mut_ptr().cast::<u8>();
    // SAFETY: large enough, aligned for 8 bytes as all types need, and never freed.
    unsafe { make(start, LOCAL_LENGTH) };
}

/// Whether all sessions share the cache.
pub fn is_shared() -> bool {
    !LOCK.load(Ordering::Relaxed).is_null()
}

/// Whether it is for sessions to start the worker: the postmaster did not load the library.
pub fn is_started_by_sessions() -> bool {
    IS_SEGMENT.load(Ordering::Relaxed)
}

pub fn shared_lock() -> Option<*mut pg_sys::LWLock> {
    Some(LOCK.load(Ordering::Relaxed)).filter(|lock| !lock.is_null())
}

/// # Safety
/// The cache is attached; its lock, where there is one, is held as long as any of these is used.
pub unsafe fn all() -> (&'static mut Renewer, &'static mut [Slot], &'static mut [Chunk]) {
    let length = LENGTH.load(Ordering::Relaxed);
    // SAFETY: as the caller promises, within the published block.
    unsafe {
        (
            &mut (*HEADER.load(Ordering::Relaxed)).renewer,
            std::slice::from_raw_parts_mut(SLOTS.load(Ordering::Relaxed), length),
            std::slice::from_raw_parts_mut(POOL.load(Ordering::Relaxed), chunks(length)),
        )
    }
}

pub fn live(at: usize) -> &'static Live {
    // SAFETY: `at` is an index of the published array; its fields are atomic.
    unsafe { &*LIVE.load(Ordering::Relaxed).add(at) }
}

/// The condition variable of a slot; valid for the process's life.
pub fn condition(at: usize) -> *mut pg_sys::ConditionVariable {
    // SAFETY: `at` is an index of the published array; only an address is made.
    unsafe { &raw mut (*SLOTS.load(Ordering::Relaxed).add(at)).changed }
}
