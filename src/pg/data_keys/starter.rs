//! Which database's worker is started next: by the worker without a database, one at a time.
//!
//! Failure cases. The server has no room for one more worker: one line in the log, and another try in a while. A worker
//! ends before its work is done (an ERROR, terminated, or it makes way for DROP DATABASE): again in a while. One never
//! comes so far: there is no such database any more, or none that can be connected to, and what was kept for it is
//! forgotten. On a standby nothing is started before it is promoted; the journal keeps what it can.

use std::collections::HashMap;
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::journal::{self, Subject, Use};
use super::{memory, writer};
use crate::pg::clock;
use crate::pg::error::tell;

/// Milliseconds until what could not be done is tried again.
const PAUSE: i64 = 5_000;
/// Milliseconds between two looks at a worker that runs; its end is told as well.
const LOOK: i64 = 1_000;
/// Seconds after which the database is told anew that a vault key is valid, if there is nothing else to write: an idle
/// server should write no WAL.
pub const VALIDATED: i64 = 86_400;

/// What the journal and shared memory know of a vault key.
pub struct Known {
    pub subject: Subject,
    pub kid: String,
    /// Unix seconds.
    pub validated_at: i64,
    pub has_newer: bool,
}

/// All vault keys.
pub fn known() -> Vec<Known> {
    let known = |known: &memory::VaultKey| Known {
        subject: known.key,
        kid: known.kid.get().to_owned(),
        validated_at: known.validated_at,
        has_newer: known.has_newer,
    };
    memory::lock().vault_keys().map(known).collect()
}

/// Whether the database of a use has to be told that its vault key is valid.
pub fn is_validation_due(of: &Use, known: &Known) -> bool {
    known.validated_at > 0 && (of.validated_at == 0 || known.validated_at - of.validated_at >= VALIDATED)
}

/// What the worker without a database keeps in mind.
#[derive(Default)]
pub struct Starter {
    running: Option<(pg_sys::Oid, DynamicBackgroundWorker)>,
    /// When a database was last served, and before when it is not to be again; milliseconds of the monotonic clock.
    served: HashMap<pg_sys::Oid, (i64, i64)>,
}

impl Starter {
    /// Starts a worker if one is due; says in how many milliseconds to look again, `longest` at most.
    pub fn look(&mut self, longest: i64) -> i64 {
        if !memory::is_there() {
            return longest;
        }
        let now = clock::monotonic();
        if self.is_running(now) {
            return longest.min(LOOK);
        }
        let databases = due(now);
        self.served.retain(|database, (_, not_before)| databases.contains(database) || *not_before > now);
        if databases.is_empty() {
            return longest;
        }
        // SAFETY: reads shared memory.
        if unsafe { pg_sys::RecoveryInProgress() } {
            return longest.min(PAUSE);
        }
        let times = |database: &pg_sys::Oid| self.served.get(database).copied().unwrap_or_default();
        let ready = databases.iter().filter(|database| times(database).1 <= now);
        match ready.min_by_key(|database| times(database).0) {
            Some(database) => self.start(*database, now),
            None => {
                let next = databases.iter().map(|database| times(database).1 - now).min();
                return longest.min(next.unwrap_or(longest));
            }
        }
        longest.min(LOOK)
    }

    /// Whether a worker runs; sees to what the last one has left when it ended.
    fn is_running(&mut self, now: i64) -> bool {
        let Some((database, worker)) = &self.running else { return journal::lock().is_writing(now) };
        let ended =
            matches!(worker.pid(), Err(BackgroundWorkerStatus::Stopped | BackgroundWorkerStatus::PostmasterDied));
        if !ended {
            return true;
        }
        let database = *database;
        self.running = None;
        let mut journal = journal::lock();
        if !journal.has_come() {
            journal.forget_database(database);
        } else if !journal.has_ended_well(database) {
            self.served.insert(database, (now, now + PAUSE));
        }
        false
    }

    fn start(&mut self, database: pg_sys::Oid, now: i64) {
        journal::lock().expect(database, now);
        self.served.insert(database, (now, 0));
        // SAFETY: a plain global.
        let me = unsafe { pg_sys::MyProcPid };
        let started = BackgroundWorkerBuilder::new(writer::NAME)
            .set_type(writer::NAME)
            .set_library("managed_identity")
            .set_function("managed_identity_data_keys")
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(None::<Duration>)
            .set_argument(Some(pg_sys::Datum::from(database)))
            .set_notify_pid(me)
            .load_dynamic();
        let has_room = started.is_ok();
        let is_new = {
            let mut journal = journal::lock();
            if !has_room {
                journal.has_come();
            }
            journal.set_room(has_room, now)
        };
        match started {
            Ok(worker) => self.running = Some((database, worker)),
            Err(_) => {
                self.served.insert(database, (now, now + PAUSE));
                if is_new {
                    say_no_room();
                }
            }
        }
    }
}

fn say_no_room() {
    let message = "no worker could be started to write what became of data keys";
    let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message, "")
        .set_detail("It is tried again until there is one.")
        .set_hint("You might need to increase max_worker_processes.");
    tell(report, PgLogLevel::LOG);
}

/// The databases whose worker has something to do.
fn due(now: i64) -> Vec<pg_sys::Oid> {
    let known = known();
    let mut databases = Vec::new();
    let mut journal = journal::lock();
    let wanted = |job: &&mut journal::Job| job.is_wanted();
    databases.extend(journal.jobs().iter_mut().filter(wanted).map(|job| job.database));
    for of in journal.uses(None) {
        let known = known.iter().find(|known| known.subject == of.subject);
        let has_news =
            known.is_some_and(|known| (known.has_newer && of.not_before <= now) || is_validation_due(&of, known));
        if has_news || journal.has_pending(&of) {
            databases.push(of.database);
        }
    }
    databases.sort_unstable_by_key(|database| database.to_u32());
    databases.dedup();
    databases
}
