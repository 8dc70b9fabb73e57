//! The worker of one database: writes what became of its data keys, and wraps them anew. It ends as soon as there is
//! nothing more to do.
//!
//! It is the bootstrap superuser on our own tables only; what a server's owner or a caller may not, it does not either.
//! While it waits for the vault it holds no transaction, and it makes way for whoever wants the database for himself:
//! DROP DATABASE waits no longer than for a session that is about to leave. Failure cases. It is terminated, or an
//! ERROR ends it: what was committed stays, the rest is taken up by the next one. It is killed: so are the journal and
//! all who wait for it.

use std::ffi::{CStr, CString, c_int};

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;
use pgrx::{PgMemoryContexts, PgTryBuilder};

use super::journal::{self, Use};
use super::rewrap::{self, Rewrapped, Targets, Wanted};
use super::starter::{self, Known};
use super::table::Held;
use super::{events, job, memory, settings, table};
use crate::http::failure::{Failure, Kind};
use crate::pg::error::tell;
use crate::pg::servers::{self, Server, Wrapper};
use crate::pg::{clock, compat, interrupts};

/// In pg_stat_activity.
pub const NAME: &str = "managed_identity data keys";
/// Data keys that are written in one transaction, and the longest time in milliseconds that it waits for more.
const BATCH: usize = 100;
const BATCH_TIME: i64 = 1_000;

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn managed_identity_data_keys(argument: pg_sys::Datum) {
    compat::handle_writer_signals();
    let database = pg_sys::Oid::from(argument.value() as u32);
    // SAFETY: once, and first of all; as the bootstrap superuser. FATAL where there is no such database.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0) };
    // SAFETY: a plain global.
    if !journal::lock().begin(database, unsafe { pg_sys::MyProcPid }) {
        return;
    }
    // SAFETY: a guarded function; "before" because it takes an LWLock.
    unsafe { pg_sys::before_shmem_exit(Some(resign), pg_sys::Datum::from(0)) };
    settle();
    interrupts::between_slices(make_way);
    while work(database) {
        compat::reload_if_asked();
    }
    journal::lock().end_well();
}

#[pg_guard]
unsafe extern "C-unwind" fn resign(_code: c_int, _argument: pg_sys::Datum) {
    // SAFETY: plain globals.
    let (database, me) = unsafe { (pg_sys::MyDatabaseId, pg_sys::MyProcPid) };
    let mut latches = Vec::new();
    {
        let mut journal = journal::lock();
        journal.end(me);
        for job in journal.jobs().iter_mut().filter(|job| job.is_running() && job.database == database) {
            latches.push(job.give_up("Its worker was terminated"));
        }
    }
    latches.into_iter().for_each(job::wake);
}

/// What this process's transactions need, whatever the database's settings are.
fn settle() {
    for (name, value) in [
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        // A standby that does not answer must not hold up DROP DATABASE or shutdown.
        (c"synchronous_commit", c"local"),
        (c"lock_timeout", c"2s"),
        (c"statement_timeout", c"0"),
    ] {
        let (context, source) = (pg_sys::GucContext::PGC_SUSET, pg_sys::GucSource::PGC_S_OVERRIDE);
        // SAFETY: settings of core's.
        unsafe { pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, source) };
    }
}

/// A transaction in which our tables are there; ends the process where they are not, or the database is a template.
fn transaction<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: outside of a transaction; an ERROR ends the process, and the transaction with it.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    // SAFETY: a plain global.
    let database = unsafe { pg_sys::MyDatabaseId };
    let held = if is_template(database) { Held::Gone } else { table::hold() };
    if held != Held::Yes {
        if held == Held::Gone {
            let mut journal = journal::lock();
            journal.forget_database(database);
            journal.end_well();
        }
        // SAFETY: the transaction is aborted on the way out.
        unsafe { pg_sys::proc_exit(0) };
    }
    let result = work();
    // SAFETY: as above.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
    result
}

/// Does what there is to do now; whether there may be more.
fn work(database: pg_sys::Oid) -> bool {
    // Nothing but the look at what is there.
    transaction(|| ());
    let known = starter::known();
    let uses = journal::lock().uses(Some(database));
    let mut worked = write_events(&uses);
    worked |= write_validated(&uses, &known, worked);
    let jobs: Vec<usize> = {
        let mut journal = journal::lock();
        let jobs = journal.jobs().iter().enumerate();
        jobs.filter(|(_, job)| job.is_wanted() && job.database == database).map(|(at, _)| at).collect()
    };
    worked |= !jobs.is_empty();
    jobs.into_iter().for_each(run);
    for of in &uses {
        let is_due = known.iter().any(|known| known.subject == of.subject && known.has_newer);
        if is_due && of.not_before <= clock::monotonic() {
            worked = true;
            take_newer_version(of);
        }
    }
    worked
}

fn is_template(database: pg_sys::Oid) -> bool {
    let cache = pg_sys::SysCacheIdentifier::DATABASEOID as c_int;
    // SAFETY: a syscache look-up by oid, copied and released before anything else.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(database));
        if tuple.is_null() {
            return true;
        }
        let row: pg_sys::Form_pg_database = pg_sys::GETSTRUCT(tuple).cast();
        let is_template = (*row).datistemplate;
        pg_sys::ReleaseSysCache(tuple);
        is_template
    }
}

fn server_of(oid: pg_sys::Oid) -> Option<Server> {
    servers::servers_of(Wrapper::Vault).into_iter().find(|server| server.oid == oid)
}

fn write_events(uses: &[Use]) -> bool {
    let mut worked = false;
    for of in uses {
        let pending = journal::lock().pending(of);
        if pending.is_empty() && of.lost == 0 {
            continue;
        }
        worked = true;
        transaction(|| {
            // Of a server that was dropped they are kept for who may see everything.
            let server = server_of(of.server).map_or_else(String::new, |server| server.display());
            if of.lost > 0 {
                events::insert_lost(of.lost, &server);
            }
            pending.iter().for_each(|event| events::insert(event, &server));
        });
        journal::lock().written(of, pending.last());
    }
    worked
}

/// Writes when vault keys could last be used; with `anyway`, also what could wait.
fn write_validated(uses: &[Use], known: &[Known], anyway: bool) -> bool {
    let mut worked = false;
    for of in uses {
        let Some(known) = known.iter().find(|known| known.subject == of.subject) else { continue };
        let is_newer = known.validated_at > of.validated_at;
        let is_due = starter::is_validation_due(of, known) || anyway && is_newer;
        if !is_due {
            continue;
        }
        worked = true;
        transaction(|| {
            if let (Some(server), Some(at)) = (server_of(of.server), clock::timestamp(known.validated_at)) {
                table::set_validated(&server.display(), &known.kid, at);
            }
        });
        journal::lock().change_use(of, |of| of.validated_at = known.validated_at);
    }
    worked
}

/// Does what a caller waits for.
fn run(at: usize) {
    let (wanted, role) = {
        let mut journal = journal::lock();
        let job = &mut journal.jobs()[at];
        // Its caller may have gone since, and the place be another database's.
        // SAFETY: a plain global.
        if !job.is_wanted() || job.database != unsafe { pg_sys::MyDatabaseId } {
            return;
        }
        job.begin();
        (job.wanted(), job.role)
    };
    let outcome = PgTryBuilder::new(std::panic::AssertUnwindSafe(|| rewrap_as(role, &wanted, Some(at))))
        .catch_others(move |caught| {
            let message = match &caught {
                CaughtError::PostgresError(report)
                | CaughtError::ErrorReport(report)
                | CaughtError::RustPanic { ereport: report, .. } => report.message().to_owned(),
            };
            finish(at, Some(&Failure::new(Kind::Local, message)));
            caught.rethrow()
        })
        .execute();
    finish(at, outcome.err().as_ref());
}

fn finish(at: usize, failure: Option<&Failure>) {
    let latch = journal::lock().jobs()[at].finish(failure);
    job::wake(latch);
}

/// Has the data keys of a server wrapped by the newest version of their vault key, as their owner could.
fn take_newer_version(of: &Use) {
    let again = clock::monotonic() + settings::revalidate_interval();
    journal::lock().change_use(of, |of| of.not_before = again);
    let server = transaction(|| server_of(of.server));
    let Some(server) = server.filter(|_| !memory::lock().is_locked(of.database, of.server)) else { return };
    let wanted = Wanted { server: Some(of.server), to_server: None, to_key: None };
    if let Err(failure) = rewrap_as(server.owner, &wanted, None) {
        let message = format!(
            "could not wrap the data keys of server \"{}\" with the newest version of their vault key",
            server.display()
        );
        let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "");
        tell(report.set_detail(told(&failure)), PgLogLevel::LOG);
    }
}

fn told(failure: &Failure) -> String {
    let detail = failure.detail.as_deref().map_or_else(String::new, |detail| format!(" {detail}"));
    format!("{}.{detail}", failure.message)
}

/// Wraps data keys anew with a role's rights, batch by batch; the first failure, once all that can be done is.
fn rewrap_as(role: pg_sys::Oid, wanted: &Wanted, job: Option<usize>) -> Result<(), Failure> {
    let (steps, database, name) = transaction(|| {
        let steps = as_role(role, || rewrap::steps(wanted));
        // A caller is named; whom the new version is owed to is not known.
        (steps, table::make_database_id(), job.and_then(|_| events::role_name(role)))
    });
    let mut targets = Targets::default();
    let stale = targets.stale(steps)?;
    let (total, mut failed, mut batch) = (stale.len(), None, Batch::new(name, job));
    for (at, step) in stale.into_iter().enumerate() {
        if job.is_some_and(|job| !job::is_wanted_still(job)) {
            break;
        }
        pgrx::check_for_interrupts!();
        make_way();
        show(at + 1, total);
        let name = step.record.name.clone();
        // What one data key takes is not kept for the next.
        // SAFETY: nothing that this makes of PostgreSQL's memory is used afterwards.
        let wrapped = unsafe { PgMemoryContexts::new("a data key").switch_to(|_| targets.wrap(step, &database)) };
        match wrapped {
            Ok(wrapped) => batch.add(wrapped),
            // A row that is not authentic stays as it is, and does not stand in the way of others.
            Err(failure) if failure.kind == Kind::NotAuthentic => {
                let message = format!("could not wrap data key \"{name}\" anew");
                let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "");
                tell(report.set_detail(told(&failure)), PgLogLevel::LOG);
                failed.get_or_insert(failure);
            }
            Err(failure) => {
                failed = Some(failure);
                break;
            }
        }
    }
    batch.write();
    forget_old_versions();
    failed.map_or(Ok(()), Err)
}

/// Data keys that are wrapped anew and not yet written.
struct Batch {
    role: Option<String>,
    job: Option<usize>,
    began: i64,
    wrapped: Vec<Rewrapped>,
}

impl Batch {
    fn new(role: Option<String>, job: Option<usize>) -> Self {
        Self { role, job, began: clock::monotonic(), wrapped: Vec::new() }
    }

    fn add(&mut self, wrapped: Option<Rewrapped>) {
        self.wrapped.extend(wrapped);
        if self.wrapped.len() >= BATCH || clock::monotonic() >= self.began + BATCH_TIME {
            self.write();
        }
    }

    fn write(&mut self) {
        let wrapped = std::mem::take(&mut self.wrapped);
        if !wrapped.is_empty() {
            let written = transaction(|| rewrap::write(wrapped, self.role.as_deref()));
            let count = rewrap::keep(written);
            if let Some(job) = self.job {
                journal::lock().jobs()[job].add(count.unsigned_abs());
            }
        }
        self.began = clock::monotonic();
    }
}

fn as_role<R>(role: pg_sys::Oid, work: impl FnOnce() -> R) -> R {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: plain values; an ERROR ends the process.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        pg_sys::SetUserIdAndSecContext(role, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int);
    }
    let result = work();
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    result
}

/// Vault key versions that wrap nothing here any more need not be looked after: their owner may disable them.
fn forget_old_versions() {
    // SAFETY: a plain global.
    let database = unsafe { pg_sys::MyDatabaseId };
    let old: Vec<Known> = starter::known().into_iter().filter(|known| known.has_newer).collect();
    let uses = journal::lock().uses(Some(database));
    let (rows, servers) = transaction(|| (table::all(), servers::servers_of(Wrapper::Vault)));
    for of in &uses {
        let Some(known) = old.iter().find(|known| known.subject == of.subject) else { continue };
        let server = servers.iter().find(|server| server.oid == of.server).map(Server::display);
        let wraps = rows.iter().any(|row| row.record.kid == known.kid && Some(&row.record.server) == server.as_ref());
        let mut journal = journal::lock();
        if wraps || journal.has_pending(of) {
            continue;
        }
        journal.forget_use(of);
        let is_used = journal.is_used(&known.subject);
        drop(journal);
        if !is_used {
            memory::lock().forget_vault_key(&known.subject);
        }
    }
}

/// How far the work is, for pg_stat_activity.
fn show(at: usize, total: usize) {
    let text = CString::new(format!("wrapping data keys anew: {at}/{total}")).unwrap_or_default();
    report(&text);
}

fn report(text: &CStr) {
    // SAFETY: copies the text.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr()) };
}

/// Ends this process when somebody wants the database for himself, as DROP DATABASE does: he waits for those who are
/// connected, but not for long. Asked between transactions only, by the lock that a new session would have to take.
fn make_way() {
    // SAFETY: a short transaction where there is none; the lock is not waited for and given back at once.
    unsafe {
        if pg_sys::IsTransactionState() {
            return;
        }
        let tag = pg_sys::LOCKTAG {
            locktag_field1: 0,
            locktag_field2: pg_sys::DatabaseRelationId.to_u32(),
            locktag_field3: pg_sys::MyDatabaseId.to_u32(),
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        let mode = pg_sys::RowExclusiveLock as c_int;
        pg_sys::StartTransactionCommand();
        let taken = pg_sys::LockAcquire(&raw const tag, mode, false, true);
        let is_free = taken != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL;
        if is_free {
            pg_sys::LockRelease(&raw const tag, mode, false);
        }
        pg_sys::CommitTransactionCommand();
        if !is_free {
            // With no runtime frame on the stack.
            pg_sys::proc_exit(0);
        }
    }
}
