//! The background worker: fetches tokens anew before they end, and forgets what nobody uses any more.
//!
//! One for the whole server, also on a standby, and without a database: a slot says all that a request
//! takes beside the settings. Sessions do not depend on it. Failure cases. It is terminated or fails: the
//! postmaster starts it again, and its slots are given up by the exit callback. It is killed: so is all
//! shared memory, and what the cache remembers of itself is fetched again. An endpoint hangs or fails:
//! each slot waits for itself, longer after each failure, while its token is served as long as it lives.

use std::ffi::c_int;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::cache::{self, Locked, Wanted};
use super::data_keys::probe;
use super::data_keys::starter::Starter;
use super::error::tell;
use super::flight::{self, Lead, Refusal};
use super::stats::{Operation, Tally};
use super::{clock, compat, interrupts, settings, tokens};
use crate::http::client;
use crate::http::failure::Failure;
use crate::identity::{Identity, Resource, Source};
use crate::token::AccessToken;

/// Seconds after which a token that nobody asked for is not kept any longer.
const UNUSED: i64 = 86_400;
/// Milliseconds. The wall clock may be set while the worker sleeps, and a renewal be due at once.
const LONGEST_SLEEP: i64 = 60_000;
/// The longest time, in milliseconds, between two tries for one token.
const LONGEST_PAUSE: i64 = 60_000;
/// Milliseconds that a worker may take to start before a session asks for another.
const START: i64 = 10_000;
/// Requests at the same time.
const TOGETHER: usize = 16;

/// What has ended.
enum Done {
    Token(Box<Due>, Option<Result<AccessToken, Refusal>>),
    VaultKey(probe::Due, Result<probe::Seen, Failure>),
}

/// Registers the worker; only while the library is preloaded.
pub fn register() {
    // SAFETY: a plain global.
    if !unsafe { pg_sys::IsBinaryUpgrade } {
        described().load();
    }
}

fn described() -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new("managed_identity renewal")
        .set_type("managed_identity renewal")
        .set_library("managed_identity")
        .set_function("managed_identity_renewal")
        // For a line in pg_stat_activity, and for pg_terminate_backend.
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(Duration::from_secs(5)))
}

/// Whether the worker renews this slot's token, so that no session needs to.
pub fn renews(slots: &Locked, at: usize) -> bool {
    slots.renewer.pid != 0 && settings::refresh_ahead() && is_described(&slots[at].wanted)
}

fn is_described(wanted: &Wanted) -> bool {
    !wanted.options.get().is_empty()
}

/// Lets the worker look at the cache again: something may be due earlier than it knew. Starts one where that
/// is for sessions to do; where the server has no room for it, sessions renew for themselves.
pub fn wake() {
    let (latch, start) = {
        let slots = cache::lock();
        let monotonic = clock::monotonic();
        let missing = slots.renewer.pid == 0 && slots.renewer.asked_until <= monotonic;
        let start = missing && cache::is_started_by_sessions() && settings::refresh_ahead();
        if start {
            slots.renewer.asked_until = monotonic + START;
        }
        (slots.renewer.latch, start)
    };
    if !latch.is_null() {
        // SAFETY: a process's latch in the server's own shared memory; to set one whose process is gone, or is
        // another by now, is harmless.
        unsafe { pg_sys::SetLatch(latch) };
    }
    if start {
        let _ = described().load_dynamic();
    }
}

/// The worker's process id.
pub fn pid() -> Option<i32> {
    Some(cache::lock().renewer.pid).filter(|pid| *pid != 0)
}

#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn managed_identity_renewal(_argument: pg_sys::Datum) {
    compat::handle_worker_signals();
    // SAFETY: once, and first of all. To no database, as the launcher of logical replication: no catalog is read.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::InvalidOid, pg_sys::InvalidOid, 0) };
    announce();
    let mut starter = Starter::default();
    let mut running: FuturesUnordered<Pin<Box<dyn Future<Output = Done>>>> = FuturesUnordered::new();
    loop {
        let (tokens, next) = take_due(TOGETHER - running.len());
        for due in tokens {
            match request_of(&due.wanted) {
                Ok((source, resource, options)) => {
                    let left = settings::acquire_timeout();
                    let traffic = due.tally.traffic().clone();
                    running.push(Box::pin(async move {
                        let fetch = tokens::fetch(&source, &resource, &options, left, &traffic);
                        let outcome = flight::within(left, fetch).await;
                        Done::Token(Box::new(due), outcome)
                    }));
                }
                Err(stale) => postpone(due, stale),
            }
        }
        let (vault_keys, next) = probe::take_due(TOGETHER - running.len(), next);
        for due in vault_keys {
            match probe::prepare(&due) {
                Ok(prepared) => running.push(Box::pin(async move {
                    let (due, outcome) = probe::probe(prepared, due).await;
                    Done::VaultKey(due, outcome)
                })),
                Err(failure) => probe::conclude(&due, Err(failure)),
            }
        }
        let next = starter.look(next);
        if running.is_empty() {
            sleep(next);
        } else {
            let pause = Duration::from_millis(next.clamp(1, 1_000).unsigned_abs());
            match interrupts::wait(flight::within(pause, running.next())) {
                Some(Some(Done::Token(due, outcome))) => conclude(*due, outcome),
                Some(Some(Done::VaultKey(due, outcome))) => probe::conclude(&due, outcome),
                _ => {}
            }
        }
        compat::reload_if_asked();
    }
}

/// Tells sessions whom to wake, until this process ends.
fn announce() {
    // SAFETY: a guarded function; "before" because it takes an LWLock. Plain globals of this process.
    let (pid, latch) = unsafe {
        pg_sys::before_shmem_exit(Some(resign), pg_sys::Datum::from(0));
        (pg_sys::MyProcPid, pg_sys::MyLatch)
    };
    let slots = cache::lock();
    slots.renewer.pid = pid;
    slots.renewer.latch = latch;
}

#[pg_guard]
unsafe extern "C-unwind" fn resign(_code: c_int, _argument: pg_sys::Datum) {
    let slots = cache::lock();
    slots.renewer.pid = 0;
    slots.renewer.latch = std::ptr::null_mut();
}

/// Waits until somebody sets the latch, or for so many milliseconds.
fn sleep(milliseconds: i64) {
    let milliseconds = milliseconds.clamp(0, LONGEST_SLEEP);
    let number = interrupts::Event::RenewalMain.number();
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, milliseconds, number);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
    compat::end_if_asked();
}

/// A token to be fetched.
struct Due {
    lead: Lead,
    wanted: Wanted,
    /// Under no server's name, for the worker knows none.
    tally: Tally,
}

/// Takes the lead of up to `room` slots whose time has come; says in how many milliseconds the next one's does.
fn take_due(room: usize) -> (Vec<Due>, i64) {
    let (now, monotonic) = (clock::now(), clock::monotonic());
    let (mut taken, mut next) = (Vec::new(), LONGEST_SLEEP);
    {
        let mut slots = cache::lock();
        for at in 0..slots.len() {
            if !slots[at].taken {
                continue;
            }
            slots.note_use(at);
            let slot = &mut slots[at];
            if slot.owner == 0 && slot.waiting == 0 && cache::used_at(at) + UNUSED <= now {
                slots.clear(at);
                continue;
            }
            if !(slot.has_token() || slot.lost) || !settings::refresh_ahead() || !is_described(&slot.wanted) {
                continue;
            }
            let lease = if slot.owner == 0 { i64::MIN } else { slot.lease_until };
            let refresh = if slot.lost { 0 } else { (slot.refresh_at - now).saturating_mul(1_000) };
            let pause = slot.no_refresh_before.max(slot.no_retry_before).max(lease).saturating_sub(monotonic);
            let wait = refresh.max(pause);
            if wait > 0 {
                next = next.min(wait);
            } else if taken.len() < room {
                taken.push((at, flight::take(slot, monotonic), slot.wanted));
            }
        }
    }
    let due = |(at, attempt, wanted)| Due {
        lead: Lead::new(at, attempt),
        wanted,
        tally: Tally::begin(Operation::Token, c""),
    };
    (taken.into_iter().map(due).collect(), next)
}

/// What a request takes, or why none can be made: the settings of today make another identity of the options.
fn request_of(wanted: &Wanted) -> Result<(Source, Resource, client::Options), Option<Failure>> {
    let settings = settings::current();
    let identity = Identity::from_text(wanted.options.get(), settings.machine.cloud)?;
    let source = settings.machine.source_of(&identity)?;
    let resource = Resource::stored(wanted.resource.get());
    if tokens::cache_key(&source, &resource) != wanted.key {
        return Err(None);
    }
    Ok((source, resource, settings::http_options()?))
}

/// A slot that cannot be renewed now: it may go once its token has ended.
fn postpone(due: Due, failure: Option<Failure>) {
    if let Some(failure) = failure {
        return conclude(due, Some(Err(Refusal { failure, wait: None })));
    }
    let mut slots = cache::lock();
    let slot = &mut slots[due.lead.at];
    if due.lead.is_current(slot) {
        if slot.lost || slot.expires_at <= clock::now() {
            slots.clear(due.lead.at);
        } else {
            let left = (slot.expires_at - clock::now()).saturating_mul(1_000);
            slot.no_refresh_before = clock::monotonic() + left.clamp(1_000, LONGEST_SLEEP);
        }
    }
    // The lead ends by its drop, which takes the lock.
    drop(slots);
}

/// Keeps what the endpoint said.
fn conclude(due: Due, outcome: Option<Result<AccessToken, Refusal>>) {
    let outcome = outcome.unwrap_or_else(|| Err(Refusal { failure: flight::too_late(), wait: None }));
    let failed_before = cache::lock()[due.lead.at].failures_in_a_row.min(16);
    let pause = (1_000 << failed_before).min(LONGEST_PAUSE);
    if let Err(failure) = flight::publish(&due.lead, outcome, pause) {
        let what = format!("could not renew the access token for \"{}\"", due.wanted.resource.get());
        let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, what, "").set_detail(format!(
            "{} ({})",
            failure.message,
            identity(&due.wanted)
        ));
        tell(report, PgLogLevel::LOG);
    }
}

/// An identity as the log names it: the worker knows no server.
fn identity(wanted: &Wanted) -> String {
    match wanted.id.get() {
        "" => format!("{} identity", wanted.kind.get()),
        id => format!("{} identity {id}", wanted.kind.get()),
    }
}
