//! What is to be written into databases: events of vault keys and servers, in shared memory until the worker of each
//! database that is concerned has written them.
//!
//! An event can happen anywhere: in the worker without a database, on a standby, while a transaction is aborted. So it
//! is only queued here. The queue is bounded: its oldest event makes way for the newest, and who has not written
//! that one yet is told how many he has missed. One lock, a leaf, as in [`super::memory`].

use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::prelude::*;
use pgrx::{PgSharedMemoryInitialization, pg_shmem_init};

pub use super::job::Job;
use crate::pg::cache::Text;
use crate::pg::{clock, tokens};

/// Events that wait.
const EVENTS: usize = 256;
/// Uses of vault keys and servers; beyond them the one that is the longest ago is forgotten.
const USES: usize = 1024;
/// Calls that a worker works for at the same time.
pub const JOBS: usize = 8;
/// Milliseconds in which a started worker that has not come is waited for.
const START: i64 = 10_000;

/// What an event is about, as a hash: a vault key with its identity, or a server of a database.
pub type Subject = [u8; 32];

/// All zeros is a free place.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Event {
    /// Grows by one with each event; 0: none.
    number: u64,
    pub subject: Subject,
    /// Microseconds since 1970.
    pub at: i64,
    pub what: Text<24>,
    pub kid: Text<420>,
    pub reason: Text<480>,
    pub request_id: Text<80>,
    /// Who did it; invalid where nobody did.
    pub role: pg_sys::Oid,
}

impl Event {
    pub fn new(subject: Subject, what: &str) -> Self {
        let mut text = Text::EMPTY;
        text.set(what);
        Self {
            number: 0,
            subject,
            at: clock::microseconds(),
            what: text,
            kid: Text::EMPTY,
            reason: Text::EMPTY,
            request_id: Text::EMPTY,
            role: pg_sys::InvalidOid,
        }
    }
}

/// A server of a database whose data keys a vault key wraps, and how far its worker is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Use {
    /// 0: a free place.
    pub database: pg_sys::Oid,
    pub server: pg_sys::Oid,
    pub subject: Subject,
    /// The number of the last event that is written.
    written: u64,
    /// Events that made way before they were written.
    pub lost: u32,
    /// Milliseconds of the monotonic clock.
    used_at: i64,
    /// Before this, the worker does not try again to wrap with a newer version.
    pub not_before: i64,
    /// When the vault key was validated, as the database says; Unix seconds.
    pub validated_at: i64,
}

/// The worker of a database that runs now.
#[derive(Clone, Copy)]
#[repr(C)]
struct Writer {
    /// 0: none.
    pid: i32,
    /// The last one's database, and whether it found nothing more to do.
    database: pg_sys::Oid,
    ended_well: bool,
    /// Milliseconds of the monotonic clock: until then one that was started is waited for.
    expected_until: i64,
}

#[repr(C)]
struct Journal {
    last: u64,
    writer: Writer,
    /// Since when, in milliseconds of the monotonic clock, the server has had no room for a worker; 0: it has.
    no_room_since: i64,
    jobs: [Job; JOBS],
    uses: [Use; USES],
    events: [Event; EVENTS],
}

static SHARED: AtomicPtr<Journal> = AtomicPtr::new(std::ptr::null_mut());
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

struct Preloaded;

static PRELOADED: Preloaded = Preloaded;

const NAME: &std::ffi::CStr = c"managed_identity_data_key_events";

/// Asks for shared memory; only while the library is preloaded.
pub fn request() {
    pg_shmem_init!(PRELOADED = ());
}

impl PgSharedMemoryInitialization for Preloaded {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called in shmem_request_hook, the place for both requests.
        unsafe {
            pg_sys::RequestAddinShmemSpace(size_of::<Journal>());
            pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1);
        }
    }

    unsafe fn on_shmem_startup(&'static self, _value: ()) {
        // SAFETY: called in shmem_startup_hook of the postmaster, before any other process lives, and again after a
        // crash for a new segment; all zeros is an empty journal.
        unsafe {
            let mut found = false;
            let shared = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Journal>(), &mut found).cast::<Journal>();
            if !found {
                std::ptr::write_bytes(shared, 0, 1);
            }
            SHARED.store(shared, Ordering::Relaxed);
            LOCK.store(&raw mut (*pg_sys::GetNamedLWLockTranche(NAME.as_ptr())).lock, Ordering::Relaxed);
        }
    }
}

/// The journal, for as long as this lives.
pub struct Locked(&'static mut Journal);

/// Takes the lock. The caller has seen that the library is preloaded.
pub fn lock() -> Locked {
    // SAFETY: the lock of our own tranche; it makes the reference the only one.
    unsafe {
        pg_sys::LWLockAcquire(LOCK.load(Ordering::Relaxed), pg_sys::LWLockMode::LW_EXCLUSIVE);
        Locked(&mut *SHARED.load(Ordering::Relaxed))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: held since `lock()`: nothing in between can raise an ERROR that would release it.
        unsafe { pg_sys::LWLockRelease(LOCK.load(Ordering::Relaxed)) };
    }
}

/// A server of a database as the subject of events.
pub fn server_subject(database: pg_sys::Oid, server: pg_sys::Oid) -> Subject {
    tokens::digest(format!("server\n{}\n{}", database.to_u32(), server.to_u32()))
}

impl Locked {
    /// Queues an event.
    pub fn add(&mut self, event: Event) {
        let journal = &mut *self.0;
        journal.last += 1;
        let place = &mut journal.events[(journal.last % EVENTS as u64) as usize];
        let dropped = std::mem::replace(place, Event { number: journal.last, ..event });
        let missed =
            |of: &&mut Use| dropped.number != 0 && of.subject == dropped.subject && of.written < dropped.number;
        journal.uses.iter_mut().filter(|of| of.database != pg_sys::InvalidOid).filter(missed).for_each(|of| {
            of.lost = of.lost.saturating_add(1);
        });
    }

    /// Notes that a server of a database uses a vault key, or is the subject itself: events from now on are its.
    pub fn note_use(&mut self, database: pg_sys::Oid, server: pg_sys::Oid, subject: Subject) {
        let (now, last) = (clock::monotonic(), self.0.last);
        if let Some(known) = self.find(database, server, &subject) {
            known.used_at = now;
            return;
        }
        let free = |of: &&mut Use| if of.database == pg_sys::InvalidOid { i64::MIN } else { of.used_at };
        if let Some(place) = self.0.uses.iter_mut().min_by_key(free) {
            *place =
                Use { database, server, subject, written: last, lost: 0, used_at: now, not_before: 0, validated_at: 0 };
        }
    }

    fn find(&mut self, database: pg_sys::Oid, server: pg_sys::Oid, subject: &Subject) -> Option<&mut Use> {
        let is_it = |of: &&mut Use| of.database == database && of.server == server && of.subject == *subject;
        self.0.uses.iter_mut().find(is_it)
    }

    /// Changes a use that [`Self::uses`] gave, if it is still there.
    pub fn change_use(&mut self, of: &Use, change: impl FnOnce(&mut Use)) {
        if let Some(of) = self.find(of.database, of.server, &of.subject) {
            change(of);
        }
    }

    /// All uses, of one database or of all.
    pub fn uses(&self, database: Option<pg_sys::Oid>) -> Vec<Use> {
        let wanted = |of: &&Use| of.database != pg_sys::InvalidOid && database.is_none_or(|only| of.database == only);
        self.0.uses.iter().filter(wanted).copied().collect()
    }

    /// Whether any server of any database uses a vault key.
    pub fn is_used(&self, subject: &Subject) -> bool {
        self.0.uses.iter().any(|of| of.database != pg_sys::InvalidOid && of.subject == *subject)
    }

    pub fn forget_use(&mut self, of: &Use) {
        self.change_use(of, |of| of.database = pg_sys::InvalidOid);
    }

    pub fn forget_database(&mut self, database: pg_sys::Oid) {
        self.0.uses.iter_mut().filter(|of| of.database == database).for_each(|of| of.database = pg_sys::InvalidOid);
        for job in self.0.jobs.iter_mut().filter(|job| job.is_wanted() && job.database == database) {
            job.give_up("No worker can work in this database");
        }
    }

    /// The events of a use that are not written yet, from old to new.
    pub fn pending(&self, of: &Use) -> Vec<Event> {
        let mut events: Vec<Event> = self.0.events.iter().filter(|event| is_pending(of, event)).copied().collect();
        events.sort_by_key(|event| event.number);
        events
    }

    pub fn has_pending(&self, of: &Use) -> bool {
        of.lost > 0 || self.0.events.iter().any(|event| is_pending(of, event))
    }

    /// Events up to this one are written, and it is said that some were lost.
    pub fn written(&mut self, of: &Use, up_to: Option<&Event>) {
        let (number, lost) = (up_to.map_or(0, |event| event.number), of.lost);
        self.change_use(of, |of| {
            of.written = of.written.max(number);
            of.lost -= lost.min(of.lost);
        });
    }

    pub fn jobs(&mut self) -> &mut [Job; JOBS] {
        &mut self.0.jobs
    }

    /// The worker that runs; one that was started and may yet come counts.
    pub fn is_writing(&self, now: i64) -> bool {
        self.0.writer.pid != 0 || now < self.0.writer.expected_until
    }

    /// A worker has been started.
    pub fn expect(&mut self, database: pg_sys::Oid, now: i64) {
        self.0.writer = Writer { pid: 0, database, ended_well: false, expected_until: now + START };
    }

    /// The worker of a database begins; false where another one runs.
    pub fn begin(&mut self, database: pg_sys::Oid, pid: i32) -> bool {
        self.0.writer.expected_until = 0;
        let free = self.0.writer.pid == 0;
        if free {
            self.0.writer = Writer { pid, database, ended_well: false, expected_until: 0 };
        }
        free
    }

    /// It has nothing more to do.
    pub fn end_well(&mut self) {
        self.0.writer.ended_well = true;
    }

    /// It is gone.
    pub fn end(&mut self, pid: i32) {
        if self.0.writer.pid == pid {
            self.0.writer.pid = 0;
        }
    }

    /// Whether the last worker was of this database and found nothing more to do.
    pub fn has_ended_well(&self, database: pg_sys::Oid) -> bool {
        self.0.writer.database == database && self.0.writer.ended_well
    }

    /// None is waited for any longer; whether the one that was has begun.
    pub fn has_come(&mut self) -> bool {
        std::mem::replace(&mut self.0.writer.expected_until, 0) == 0
    }

    /// The server has room for a worker, or has not; true where that is new.
    pub fn set_room(&mut self, room: bool, now: i64) -> bool {
        let since = if room { 0 } else { now.max(1) };
        let is_new = (self.0.no_room_since == 0) != room;
        if is_new {
            self.0.no_room_since = since;
        }
        is_new
    }

    pub fn has_no_room(&self) -> bool {
        self.0.no_room_since != 0
    }
}

fn is_pending(of: &Use, event: &Event) -> bool {
    event.number > of.written && event.subject == of.subject
}
