//! Data keys and the vault keys that wrap them, as all sessions see them.
//!
//! One lock, a leaf: while it is held nothing is locked, waited for, allocated from PostgreSQL or able to fail. Beside
//! each data key stands a number that is read without the lock and changes whenever the key may no longer be used
//! as it was: a session's own copy is good while its number is the same.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use pgrx::prelude::*;
use pgrx::{PgSharedMemoryInitialization, pg_shmem_init};

use super::guarded::{self, Sealed};
use crate::pg::cache::{KeptFailure, Text};
use crate::vault::envelope::{CHECK_LENGTH, KeyId};
use crate::vault::watch::Watch;

/// Data keys that are kept unwrapped; beyond them the one unused the longest is unwrapped again when needed.
const KEYS: usize = 2048;
/// Vault keys, each with its version.
pub const VAULT_KEYS: usize = 64;
/// Servers that their owners have locked.
const LOCKS: usize = 64;
/// Bytes of the modulus of the largest RSA key that a vault has, and of what it wraps.
pub const RSA: usize = 512;

/// A vault key version, and all that a probe of it takes without a catalog.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VaultKey {
    pub taken: bool,
    pub watch: Watch,
    /// Hash of vault, kid and identity.
    pub key: [u8; 32],
    pub vault_uri: Text<256>,
    pub api_version: Text<24>,
    pub kid: Text<420>,
    /// The identity's options, as for a token's slot.
    pub identity: Text<1536>,
    /// A data key to unwrap as a probe, and its check value.
    pub sample: Bytes<RSA>,
    pub check: [u8; CHECK_LENGTH],
    /// The public key, as the vault gave it; empty where the identity may not read it.
    pub modulus: Bytes<RSA>,
    pub exponent: Bytes<8>,
    pub last_failure: KeptFailure,
    /// The vault's, of the last look at the key.
    pub request_id: Text<80>,
    /// Whether the vault has a newer version that can wrap.
    pub has_newer: bool,
    /// Unix seconds.
    pub validated_at: i64,
    /// Milliseconds of the monotonic clock.
    pub probe_at: i64,
    pub failed_at: i64,
    pub used_at: i64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    taken: bool,
    database: pg_sys::Oid,
    server: pg_sys::Oid,
    vault_key: u32,
    id: KeyId,
    /// Of the row that was verified, and its server: another row with this id is verified for itself.
    row: [u8; 32],
    sealed: Sealed,
    used_at: i64,
}

/// What a data key is found by.
#[derive(Clone, Copy)]
pub struct Of {
    pub database: pg_sys::Oid,
    pub server: pg_sys::Oid,
    pub id: KeyId,
    /// Hash of its row.
    pub row: [u8; 32],
}

/// Bytes of bounded length.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Bytes<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Bytes<N> {
    /// Keeps nothing of what does not fit.
    pub fn set(&mut self, bytes: &[u8]) {
        let fits = bytes.len() <= N;
        self.length = if fits { bytes.len() as u16 } else { 0 };
        if fits {
            self.bytes[..bytes.len()].copy_from_slice(bytes);
        }
    }

    pub fn get(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length).min(N)]
    }
}

#[repr(C)]
struct Table {
    vault_keys: [VaultKey; VAULT_KEYS],
    entries: [Entry; KEYS],
    /// Database and server; 0: free.
    locks: [(pg_sys::Oid, pg_sys::Oid); LOCKS],
}

#[repr(C)]
struct Shared {
    numbers: [AtomicU64; KEYS],
    table: Table,
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

struct Preloaded;

static PRELOADED: Preloaded = Preloaded;

const NAME: &std::ffi::CStr = c"managed_identity_data_keys";

/// Asks for shared memory; only while the library is preloaded.
pub fn request() {
    pg_shmem_init!(PRELOADED = ());
}

impl PgSharedMemoryInitialization for Preloaded {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called in shmem_request_hook, the place for both requests.
        unsafe {
            pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
            pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1);
        }
        guarded::init();
    }

    unsafe fn on_shmem_startup(&'static self, _value: ()) {
        // SAFETY: called in shmem_startup_hook of the postmaster, before any other process lives, and again after a
        // crash for a new segment; all zeros is an empty table.
        unsafe {
            let mut found = false;
            let shared = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Shared>(), &mut found).cast::<Shared>();
            if !found {
                std::ptr::write_bytes(shared, 0, 1);
            }
            SHARED.store(shared, Ordering::Relaxed);
            LOCK.store(&raw mut (*pg_sys::GetNamedLWLockTranche(NAME.as_ptr())).lock, Ordering::Relaxed);
        }
    }
}

/// Whether there is any: the library was preloaded.
pub fn is_there() -> bool {
    !SHARED.load(Ordering::Relaxed).is_null()
}

/// The vault keys in use, with their versions.
pub fn kids() -> Vec<String> {
    if !is_there() {
        return Vec::new();
    }
    let table = lock();
    table.0.vault_keys.iter().filter(|known| known.taken).map(|known| known.kid.get().to_owned()).collect()
}

/// The number of an entry, without the lock.
pub fn number(at: usize) -> u64 {
    // SAFETY: only called with a place that `Locked` gave out, so the memory is there; the field is atomic.
    unsafe { (&(*SHARED.load(Ordering::Relaxed)).numbers)[at].load(Ordering::Acquire) }
}

/// The table, for as long as this lives.
pub struct Locked(&'static mut Table);

/// Takes the lock. The caller has seen [`is_there`].
pub fn lock() -> Locked {
    // SAFETY: the lock of our own tranche; it makes the reference the only one.
    unsafe {
        pg_sys::LWLockAcquire(LOCK.load(Ordering::Relaxed), pg_sys::LWLockMode::LW_EXCLUSIVE);
        Locked(&mut (*SHARED.load(Ordering::Relaxed)).table)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: held since `lock()`: nothing in between can raise an ERROR that would release it.
        unsafe { pg_sys::LWLockRelease(LOCK.load(Ordering::Relaxed)) };
    }
}

impl Locked {
    pub fn vault_key(&mut self, at: usize) -> &mut VaultKey {
        &mut self.0.vault_keys[at]
    }

    /// All vault keys.
    pub fn vault_keys(&self) -> impl Iterator<Item = &VaultKey> {
        self.0.vault_keys.iter().filter(|known| known.taken)
    }

    /// Forgets a vault key that wraps nothing any more.
    pub fn forget_vault_key(&mut self, key: &[u8; 32]) {
        if let Some(at) = self.find_vault_key(key)
            && !self.is_used(at)
        {
            self.0.vault_keys[at].taken = false;
        }
    }

    pub fn find_vault_key(&self, key: &[u8; 32]) -> Option<usize> {
        self.0.vault_keys.iter().position(|known| known.taken && known.key == *key)
    }

    /// A place for a vault key: a free one, else the one unused the longest, whose data keys go with it.
    pub fn claim_vault_key(&mut self, key: [u8; 32]) -> usize {
        let at = (0..VAULT_KEYS).min_by_key(|at| {
            let known = &self.0.vault_keys[*at];
            if known.taken { known.used_at } else { i64::MIN }
        });
        let at = at.unwrap_or(0);
        self.forget_of(at);
        // SAFETY: of numbers, texts and flags that are valid as zeros.
        self.0.vault_keys[at] = VaultKey { taken: true, key, ..unsafe { std::mem::zeroed() } };
        at
    }

    /// The data key's place.
    pub fn find(&self, of: &Of) -> Option<usize> {
        let is_it = |entry: &Entry| {
            entry.taken && entry.id == of.id && entry.database == of.database && entry.server == of.server
        };
        self.0.entries.iter().position(|entry| is_it(entry) && entry.row == of.row)
    }

    /// Whether data keys that a vault key wraps are kept.
    pub fn is_used(&self, vault_key: usize) -> bool {
        self.0.entries.iter().any(|entry| entry.taken && entry.vault_key as usize == vault_key)
    }

    /// The data key at a place that [`Self::find`] gave, as it is kept.
    pub fn take(&mut self, at: usize, now: i64) -> (Sealed, u64) {
        let entry = &mut self.0.entries[at];
        entry.used_at = now;
        (entry.sealed, number(at))
    }

    /// Keeps an unwrapped data key; gives its place and number.
    pub fn keep(&mut self, of: &Of, vault_key: usize, sealed: Sealed, now: i64) -> (usize, u64) {
        let same =
            self.0.entries.iter().position(|entry| entry.taken && entry.id == of.id && entry.database == of.database);
        let at = same.or_else(|| {
            (0..KEYS).min_by_key(|at| {
                let entry = &self.0.entries[*at];
                if entry.taken { entry.used_at } else { i64::MIN }
            })
        });
        let at = at.unwrap_or(0);
        self.forget(at);
        let (Of { database, server, id, row }, vault_key) = (*of, vault_key as u32);
        self.0.entries[at] = Entry { taken: true, database, server, vault_key, id, row, sealed, used_at: now };
        (at, number(at))
    }

    /// Forgets a data key: no copy of it is good any more.
    fn forget(&mut self, at: usize) {
        // SAFETY: of numbers and bytes that are valid as zeros.
        self.0.entries[at] = unsafe { std::mem::zeroed() };
        // SAFETY: as in `number`.
        unsafe { (&(*SHARED.load(Ordering::Relaxed)).numbers)[at].fetch_add(1, Ordering::Release) };
    }

    /// Forgets the data keys that a vault key wraps; returns how many.
    pub fn forget_of(&mut self, vault_key: usize) -> usize {
        self.forget_where(|entry| entry.vault_key as usize == vault_key)
    }

    /// Forgets the data keys of a server; returns how many.
    pub fn forget_of_server(&mut self, database: pg_sys::Oid, server: pg_sys::Oid) -> usize {
        self.forget_where(|entry| entry.database == database && entry.server == server)
    }

    fn forget_where(&mut self, chosen: impl Fn(&Entry) -> bool) -> usize {
        let chosen: Vec<usize> =
            (0..KEYS).filter(|at| self.0.entries[*at].taken && chosen(&self.0.entries[*at])).collect();
        chosen.iter().for_each(|at| self.forget(*at));
        chosen.len()
    }

    /// Whether the server's owner has locked its data keys.
    pub fn is_locked(&self, database: pg_sys::Oid, server: pg_sys::Oid) -> bool {
        self.0.locks.contains(&(database, server))
    }

    /// False where there is no room for one more.
    pub fn set_locked(&mut self, database: pg_sys::Oid, server: pg_sys::Oid, locked: bool) -> bool {
        const FREE: (pg_sys::Oid, pg_sys::Oid) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        let (from, to) = if locked { (FREE, (database, server)) } else { ((database, server), FREE) };
        if locked && self.is_locked(database, server) {
            return true;
        }
        match self.0.locks.iter_mut().find(|lock| **lock == from) {
            Some(lock) => *lock = to,
            None => return !locked,
        }
        true
    }
}
