//! A call of `rewrap_data_keys()` whose data keys the worker of the database wraps and commits, batch by batch, while
//! the caller waits: what is done stays done when the call is cancelled, and another call goes on from there.

use std::ffi::c_int;

use pgrx::prelude::*;

use super::journal;
use super::rewrap::Wanted;
use crate::http::failure::{Failure, Kind};
use crate::pg::cache::{KeptFailure, Text};
use crate::pg::error::raise;
use crate::pg::interrupts::Event;
use crate::pg::{clock, servers, worker};

/// Milliseconds between two looks of who waits; a finished job wakes him at once.
const LOOK: i64 = 1_000;
/// Milliseconds that the worker which starts workers may be away: it is started again after five seconds.
const AWAY: i64 = 15_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// As all zeros.
    Free = 0,
    Wanted,
    Running,
    Done,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Job {
    state: State,
    /// The caller is not interested any more.
    cancelled: bool,
    pub database: pg_sys::Oid,
    /// Who called: his rights count.
    pub role: pg_sys::Oid,
    server: pg_sys::Oid,
    to_server: pg_sys::Oid,
    to_key: Text<128>,
    caller: c_int,
    latch: *mut pg_sys::Latch,
    done: u32,
    failure: KeptFailure,
}

impl Job {
    /// Whether a worker is to begin with it.
    pub fn is_wanted(&self) -> bool {
        self.state == State::Wanted
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub fn wanted(&self) -> Wanted {
        let some = |oid: pg_sys::Oid| (oid != pg_sys::InvalidOid).then_some(oid);
        let key = Some(self.to_key.get()).filter(|key| !key.is_empty());
        Wanted { server: some(self.server), to_server: some(self.to_server), to_key: key.map(str::to_owned) }
    }

    /// A worker begins with it.
    pub fn begin(&mut self) {
        self.state = State::Running;
    }

    pub fn add(&mut self, done: u32) {
        self.done += done;
    }

    /// It is done as far as it can be; returns whom to wake.
    pub fn finish(&mut self, failure: Option<&Failure>) -> *mut pg_sys::Latch {
        if let Some(failure) = failure {
            self.failure.set(failure, 1, clock::now());
        }
        self.state = if self.cancelled { State::Free } else { State::Done };
        self.latch
    }

    /// No worker will do it, or go on with it.
    pub fn give_up(&mut self, why: &str) -> *mut pg_sys::Latch {
        let failure = Failure::new(Kind::Local, "could not wrap all data keys anew").detail(format!("{why}."));
        self.finish(Some(&failure.hint("What was wrapped stays so; call the function again to go on.")))
    }
}

/// Whether the caller of a job still waits for it. Not under the lock: it takes one of core's.
pub fn is_wanted_still(at: usize) -> bool {
    let (cancelled, caller) = {
        let mut journal = journal::lock();
        let job = &journal.jobs()[at];
        (job.cancelled, job.caller)
    };
    // SAFETY: looks a process up by its number. One that was terminated could not take its job back.
    !cancelled && !unsafe { pg_sys::BackendPidGetProc(caller) }.is_null()
}

/// Gives the job's place back when the caller leaves, however he does.
struct Waiting(usize);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut journal = journal::lock();
        let job = &mut journal.jobs()[self.0];
        if job.is_running() {
            job.cancelled = true;
        } else {
            job.state = State::Free;
        }
    }
}

/// Has the worker do it, and waits; returns how many data keys it has wrapped anew.
pub fn done_by_the_worker(wanted: &Wanted) -> i32 {
    let (waiting, mut seen_at) = (submit(wanted), clock::monotonic());
    worker::wake();
    loop {
        let (job, no_room) = {
            let mut journal = journal::lock();
            (journal.jobs()[waiting.0], journal.has_no_room())
        };
        if job.state == State::Done {
            return match job.failure.get() {
                Some(failure) => raise(failure),
                None => i32::try_from(job.done).unwrap_or(i32::MAX),
            };
        }
        if worker::pid().is_some() {
            seen_at = clock::monotonic();
        }
        if job.is_wanted() && (no_room || seen_at + AWAY < clock::monotonic()) {
            raise(
                Failure::new(Kind::Throttled, "no worker could be started to wrap data keys anew")
                    .hint("Increase max_worker_processes, or try again."),
            );
        }
        let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as c_int;
        // SAFETY: this process's own latch.
        unsafe {
            pg_sys::WaitLatch(pg_sys::MyLatch, events, LOOK, Event::KeyVault.number());
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        pgrx::check_for_interrupts!();
    }
}

fn submit(wanted: &Wanted) -> Waiting {
    let callers: Vec<c_int> = journal::lock().jobs().iter().map(|job| job.caller).collect();
    // SAFETY: as above.
    let is_gone = |caller: c_int| caller != 0 && unsafe { pg_sys::BackendPidGetProc(caller) }.is_null();
    let gone: Vec<c_int> = callers.into_iter().filter(|caller| is_gone(*caller)).collect();
    // SAFETY: plain globals.
    let (database, caller, latch) = unsafe { (pg_sys::MyDatabaseId, pg_sys::MyProcPid, pg_sys::MyLatch) };
    let role = servers::current_user();
    let mut journal = journal::lock();
    let free = |job: &Job| job.state == State::Free || (!job.is_running() && gone.contains(&job.caller));
    let Some(at) = journal.jobs().iter().position(free) else {
        drop(journal);
        raise(Failure::new(Kind::Conflict, "too many sessions wrap data keys anew").hint("Try again."));
    };
    let job = &mut journal.jobs()[at];
    // SAFETY: of numbers and texts that are valid as zeros.
    *job = unsafe { std::mem::zeroed() };
    (job.database, job.role, job.caller, job.latch) = (database, role, caller, latch);
    job.server = wanted.server.unwrap_or(pg_sys::InvalidOid);
    job.to_server = wanted.to_server.unwrap_or(pg_sys::InvalidOid);
    job.to_key.set(wanted.to_key.as_deref().unwrap_or_default());
    job.state = State::Wanted;
    Waiting(at)
}

/// Tells a caller that his job is finished.
pub fn wake(latch: *mut pg_sys::Latch) {
    if !latch.is_null() {
        // SAFETY: a process's latch in shared memory; to set one whose process is gone, or is another by now, is
        // harmless.
        unsafe { pg_sys::SetLatch(latch) };
    }
}
