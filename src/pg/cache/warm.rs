//! What the cache held, in memory that outlives a crash of the server's processes.
//!
//! When a process is killed the postmaster makes all shared memory anew, the cache included. What stands
//! here is inherited from the postmaster by every process and made anew by none, so the tokens that were
//! in use are fetched again before anybody asks. It says what was wanted, and holds no token. Whoever was
//! killed may have been writing, so each entry carries a checksum; and a pointer would mean nothing here.

use std::sync::atomic::{AtomicPtr, Ordering};

use aws_lc_rs::digest::{Context, SHA256};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::slot::Wanted;

#[repr(C)]
struct Entry {
    checksum: [u8; 32],
    /// Unix seconds; 0: a free entry.
    used_at: i64,
    wanted: Wanted,
}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());

/// Makes the memory, once, in the postmaster. Without it a crash merely leaves a cold cache.
pub fn init(length: usize) {
    if !ENTRIES.load(Ordering::Relaxed).is_null() {
        return;
    }
    let Ok(bytes) = (length * size_of::<Entry>()).try_into() else { return };
    // SAFETY: new memory at an address of the system's choice, zeroed and never unmapped.
    let memory =
        unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED) };
    if let Ok(memory) = memory {
        ENTRIES.store(memory.as_ptr().cast(), Ordering::Relaxed);
    }
}

/// # Safety
/// `at` is an index of the cache, whose lock the caller holds, or the caller is alone.
unsafe fn entry(at: usize) -> Option<&'static mut Entry> {
    let entries = ENTRIES.load(Ordering::Relaxed);
    // SAFETY: within the memory, aligned as mmap's pages are, and nobody else's as the caller promises.
    (!entries.is_null()).then(|| unsafe { &mut *entries.add(at) })
}

/// # Safety
/// As for [`entry`].
pub unsafe fn remember(at: usize, wanted: &Wanted, used_at: i64) {
    // SAFETY: as the caller promises.
    let Some(entry) = (unsafe { entry(at) }) else { return };
    entry.wanted = *wanted;
    entry.checksum = checksum(wanted);
    entry.used_at = used_at;
}

/// # Safety
/// As for [`entry`].
pub unsafe fn used(at: usize, used_at: i64) {
    // SAFETY: as the caller promises.
    if let Some(entry) = unsafe { entry(at) }
        && entry.used_at != 0
    {
        entry.used_at = used_at;
    }
}

/// # Safety
/// As for [`entry`].
pub unsafe fn forget(at: usize) {
    // SAFETY: as the caller promises.
    if let Some(entry) = unsafe { entry(at) } {
        entry.used_at = 0;
    }
}

/// What was wanted there, and when it was last used.
///
/// # Safety
/// As for [`entry`].
pub unsafe fn remembered(at: usize) -> Option<(Wanted, i64)> {
    // SAFETY: as the caller promises.
    let entry = unsafe { entry(at)? };
    (entry.used_at != 0 && entry.checksum == checksum(&entry.wanted)).then_some((entry.wanted, entry.used_at))
}

fn checksum(wanted: &Wanted) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(&wanted.key);
    context.update(&wanted.identity);
    let texts = [wanted.kind.get(), wanted.id.get(), wanted.resource.get(), wanted.source.get(), wanted.options.get()];
    for text in texts {
        context.update(text.as_bytes());
        context.update(b"\n");
    }
    let mut checksum = [0; 32];
    checksum.copy_from_slice(context.finish().as_ref());
    checksum
}
