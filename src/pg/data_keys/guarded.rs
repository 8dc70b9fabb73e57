//! Memory for keys: in no core dump and, as far as the system allows it, in no swap.
//!
//! The boot key is made by the postmaster and inherited by every process; shared memory, which a core dump contains,
//! holds data keys only as encrypted under it. A process's own data keys lie in pages of the same kind.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous};
use zeroize::Zeroizing;

use crate::http::failure::{Failure, Kind};
use crate::vault::envelope::{DataKey, KEY_LENGTH, KeyId, Secret, no_secret};

const PAGE: usize = 4096;

/// A data key as shared memory holds it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sealed {
    nonce: [u8; NONCE_LEN],
    bytes: [u8; KEY_LENGTH + 16],
}

static BOOT_KEY: AtomicPtr<[u8; KEY_LENGTH]> = AtomicPtr::new(std::ptr::null_mut());

/// New pages that are dumped nowhere, zeroed and never unmapped.
fn pages(bytes: usize) -> Option<NonNull<u8>> {
    let length = bytes.next_multiple_of(PAGE);
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new private memory at an address of the system's choice; the advice and the lock are about it alone.
    unsafe {
        let start = mmap_anonymous(None, length.try_into().ok()?, protection, MapFlags::MAP_PRIVATE).ok()?;
        madvise(start.cast(), length, MmapAdvise::MADV_DONTDUMP).ok()?;
        lock(start.cast(), length);
        Some(start.cast())
    }
}

/// Keeps pages out of swap if the process may; where it may not, RLIMIT_MEMLOCK is what to raise.
///
/// # Safety
/// Mapped memory.
unsafe fn lock(start: NonNull<u8>, length: usize) {
    // SAFETY: as the caller promises.
    let _ = unsafe { mlock(start.cast(), length) };
}

/// Makes the boot key, once, in the postmaster: a crash that ends all other processes leaves it as it is, and finds
/// shared memory empty.
pub fn init() {
    if !BOOT_KEY.load(Ordering::Relaxed).is_null() {
        return;
    }
    let Some(page) = pages(PAGE) else { return };
    let key = page.cast::<[u8; KEY_LENGTH]>();
    // SAFETY: new memory that is large enough, and nobody else's yet.
    if rand::fill(unsafe { &mut *key.as_ptr() }).is_ok() {
        BOOT_KEY.store(key.as_ptr(), Ordering::Relaxed);
    }
}

fn boot_key() -> Result<LessSafeKey, Failure> {
    let failed = || Failure::new(Kind::Local, "there is no memory that is safe for data keys");
    // SAFETY: null, or the page that `init` filled before any other process lived.
    let key = unsafe { BOOT_KEY.load(Ordering::Relaxed).as_ref() }.ok_or_else(failed)?;
    // A lock on pages is not inherited by fork.
    // SAFETY: the page above.
    unsafe { lock(NonNull::from(key).cast(), PAGE) };
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| failed())
}

/// Encrypts a data key for shared memory.
pub fn seal(id: &KeyId, secret: &Secret) -> Result<Sealed, Failure> {
    let failed = |_| Failure::new(Kind::Local, "could not protect a data key");
    let mut sealed = Sealed { nonce: [0; NONCE_LEN], bytes: [0; KEY_LENGTH + 16] };
    rand::fill(&mut sealed.nonce).map_err(failed)?;
    let mut text = secret.clone();
    let nonce = Nonce::assume_unique_for_key(sealed.nonce);
    let tag = boot_key()?.seal_in_place_separate_tag(nonce, Aad::from(id), &mut text[..]).map_err(failed)?;
    sealed.bytes[..KEY_LENGTH].copy_from_slice(&text[..]);
    sealed.bytes[KEY_LENGTH..].copy_from_slice(tag.as_ref());
    Ok(sealed)
}

/// The data key of shared memory's.
pub fn open(id: &KeyId, sealed: &Sealed) -> Result<Secret, Failure> {
    let failed = |_| Failure::new(Kind::Local, "a data key in shared memory is damaged");
    let (text, tag) = sealed.bytes.split_at(KEY_LENGTH);
    let mut secret = no_secret();
    let nonce = Nonce::assume_unique_for_key(sealed.nonce);
    boot_key()?.open_separate_gather(nonce, Aad::from(id), text, tag, &mut secret[..]).map_err(failed)?;
    Ok(secret)
}

/// Data keys that fit one block of this process's own pages.
const IN_A_BLOCK: usize = 64 * 1024 / size_of::<DataKey>();

thread_local! {
    /// Places that hold no key now.
    static FREE: RefCell<Vec<NonNull<DataKey>>> = const { RefCell::new(Vec::new()) };
}

/// A data key in this process's own guarded memory; wiped when dropped.
pub struct Kept(NonNull<DataKey>);

impl Kept {
    pub fn new(id: KeyId, secret: &Secret) -> Result<Self, Failure> {
        let place = FREE.with_borrow_mut(|free| {
            if free.is_empty()
                && let Some(block) = pages(IN_A_BLOCK * size_of::<DataKey>())
            {
                // SAFETY: within the new block, each a place of its own.
                free.extend((0..IN_A_BLOCK).map(|at| unsafe { block.cast::<DataKey>().add(at) }));
            }
            free.pop()
        });
        let place = place.ok_or_else(|| Failure::new(Kind::Local, "there is no memory that is safe for data keys"))?;
        let made = DataKey::new(id, secret);
        // What was moved on the way here is left behind on the stack.
        let made = made.map(|key| {
            // SAFETY: a free place, of the right size and alignment.
            unsafe { place.write(key) };
            Self(place)
        });
        wipe_stack();
        made.inspect_err(|_| FREE.with_borrow_mut(|free| free.push(place)))
    }

    pub fn key(&self) -> &DataKey {
        // SAFETY: written by `new` and dropped by nobody else.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: as above; the key's own destructor wipes it.
        unsafe { self.0.drop_in_place() };
        // When the process ends the list may be gone before the keys.
        let _ = FREE.try_with(|free| free.borrow_mut().push(self.0));
    }
}

/// Overwrites the part of the stack that calls from here have used: ciphers keep their keys there meanwhile.
#[inline(never)]
pub fn wipe_stack() {
    let mut used = Zeroizing::new([0u8; 64 * 1024]);
    std::hint::black_box(&mut *used);
}
