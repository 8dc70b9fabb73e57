//! One fetch at a time: of all sessions that need the same token one asks the endpoint, the others
//! wait for its answer.
//!
//! Failure cases. The leader is cancelled, times out or is terminated: its guard (ERROR) or the exit
//! callback (FATAL) gives the slot up without an answer, and a waiter leads. It is killed: the
//! postmaster makes all shared memory anew. It hangs or is stopped: its lease ends, a waiter leads, and
//! its attempt's number no longer fits when it comes back. The endpoint fails: all who waited get that
//! answer at once, and for a while nobody asks again.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::time::Duration;

use pgrx::prelude::*;

use super::cache::{self, Locked, Slot, Wanted};
use super::{clock, interrupts, restricted, settings, worker};
use crate::http::failure::{Failure, Kind};
pub use crate::identity::fetch::Refusal;
use crate::token::{AccessToken, expiry};

/// How long nobody asks after a failure of the network or the endpoint, unless it names a time.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a session does not renew a token that is still valid after a renewal failed.
const REFRESH_PAUSE: i64 = 30_000;
/// How long a caller tries to renew a token that it could as well use.
const RENEWAL: Duration = Duration::from_secs(2);
/// Within this time a forced refresh takes the token that another one fetched.
const FORCE_PAUSE: i64 = 5_000;

/// What a slot stands for.
pub struct Asked<'a> {
    pub key: [u8; 32],
    pub identity: [u8; 32],
    pub kind: &'a str,
    pub id: Option<&'a str>,
    pub resource: &'a str,
    pub source: &'a str,
    /// The identity's options, for the worker.
    pub options: &'a str,
}

/// A token and, when it is kept, where: a copy is good while the slot's generation is the same.
pub struct Served {
    pub token: AccessToken,
    pub usable_until: i64,
    pub place: Option<(usize, u64)>,
    /// Whether a forced refresh was answered with the token there was.
    pub not_forced: bool,
}

enum Step {
    Serve(Served),
    Fail(Failure),
    /// Fetch, and publish in this slot; the old token if it is still good.
    Lead {
        at: usize,
        attempt: u64,
        old: Option<Served>,
    },
    /// No slot is to be had: fetch for oneself.
    Alone,
    /// A fetch is needed where none may be made.
    Refused,
}

enum Next {
    /// Wait for the attempt that runs in this slot.
    Wait {
        at: usize,
        attempt: u64,
    },
    Act(Step),
}

thread_local! {
    /// The slots this process fetches for, and the attempts: one in a session, any number in the worker.
    static LEADING: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
    /// The slot this session waits for.
    static WAITING: Cell<Option<usize>> = const { Cell::new(None) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// The token of a slot: from the cache, from another session's fetch, or fetched here.
///
/// `fetch` gets the time that is left and must not call PostgreSQL. Raises ERRORs for interrupts; a
/// failure of the endpoint comes back as a value.
pub fn token<F>(asked: &Asked, force: bool, fetch: impl Fn(Duration) -> F) -> Result<Served, Failure>
where
    F: Future<Output = Result<AccessToken, Refusal>>,
{
    register();
    // Here it may fail; later, in callbacks, it may not.
    cache::attach();
    let timeout = settings::acquire_timeout();
    let deadline = clock::monotonic() + timeout.as_millis() as i64;
    let mut call = Call { force, came: clock::monotonic(), waited_for: None };
    let waiting = WaitingGuard;
    let step = loop {
        // A statement of its own: in the match's head the lock would be held until its end.
        let next = call.next(asked, &mut cache::lock());
        match next {
            Next::Wait { at, attempt } => {
                call.waited_for = Some(attempt);
                let left = deadline - clock::monotonic();
                if left <= 0 {
                    return Err(too_late());
                }
                wait_for(at, left);
            }
            Next::Act(step) => break step,
        }
    };
    drop(waiting);
    // The wait for another session's fetch counts: the limit is on what one caller waits.
    let left = Duration::from_millis((deadline - clock::monotonic()).max(1).unsigned_abs());
    match step {
        Step::Serve(served) => Ok(served),
        Step::Fail(failure) => Err(failure),
        Step::Lead { at, attempt, old } => {
            let left = if old.is_some() { left.min(RENEWAL) } else { left };
            lead(at, attempt, old, within(left, fetch(left)))
        }
        Step::Alone => alone(within(left, fetch(left))),
        Step::Refused => Err(restricted::refused()),
    }
}

/// What one call knows while it looks at the slot again and again.
struct Call {
    force: bool,
    /// When it began; milliseconds of the monotonic clock.
    came: i64,
    waited_for: Option<u64>,
}

impl Call {
    fn next(&self, asked: &Asked, slots: &mut Locked) -> Next {
        let (now, monotonic) = (clock::now(), clock::monotonic());
        let found = slots.find(&asked.key);
        if found.is_none() && restricted::is_now() {
            return Next::Act(Step::Refused);
        }
        let Some(at) = found.or_else(|| {
            let at = slots.claim(now, monotonic)?;
            describe(&mut slots[at].wanted, asked);
            Some(at)
        }) else {
            return Next::Act(Step::Alone);
        };
        cache::use_at(at, now);
        let served = |not_forced| {
            let place = Some((at, cache::generation(at)));
            let usable_until = slots[at].usable_until;
            slots.copy_token(at).map(|token| Served { token, usable_until, place, not_forced })
        };
        let renewed_elsewhere = worker::renews(slots, at);
        let slot = &slots[at];
        let busy = slot.is_busy(monotonic);
        let usable = slot.has_token() && now < slot.usable_until;
        if usable && self.is_fresh_enough(slot, monotonic) {
            let due = now >= slot.refresh_at && !busy && slot.no_refresh_before <= monotonic;
            if let Some(served) = served(self.force && slot.began_at < self.came) {
                if !due || self.force || renewed_elsewhere || restricted::is_now() {
                    cache::count_hit(at, now);
                    return Next::Act(Step::Serve(served));
                }
                return Next::Act(Step::Lead { at, attempt: take(&mut slots[at], monotonic), old: Some(served) });
            }
        }
        let answered = self.waited_for == Some(slot.last_failure.attempt) || slot.no_retry_before > monotonic;
        if answered && let Some(failure) = slot.last_failure.get() {
            return Next::Act(match served(true) {
                Some(old) if usable => Step::Serve(old),
                _ => Step::Fail(failure),
            });
        }
        if restricted::is_now() {
            return Next::Act(Step::Refused);
        }
        if busy {
            return Next::Wait { at, attempt: slot.attempt };
        }
        if slot.oversize {
            return Next::Act(Step::Alone);
        }
        let slot = &mut slots[at];
        if self.force {
            slot.no_force_before = monotonic + FORCE_PAUSE;
        }
        Next::Act(Step::Lead { at, attempt: take(slot, monotonic), old: None })
    }

    /// A forced refresh wants a token whose fetch began after the call, or was forced a moment before.
    fn is_fresh_enough(&self, slot: &Slot, monotonic: i64) -> bool {
        !self.force || slot.began_at >= self.came || (slot.owner == 0 && slot.no_force_before > monotonic)
    }
}

fn describe(wanted: &mut Wanted, asked: &Asked) {
    wanted.key = asked.key;
    wanted.identity = asked.identity;
    wanted.kind.set(asked.kind);
    wanted.id.set(asked.id.unwrap_or_default());
    wanted.resource.set(asked.resource);
    wanted.source.set(asked.source);
    wanted.set_options(asked.options);
}

/// Makes this process the slot's leader. The lease outlasts the leader's own time limit.
pub fn take(slot: &mut Slot, monotonic: i64) -> u64 {
    // SAFETY: a plain global.
    slot.owner = unsafe { pg_sys::MyProcPid };
    slot.attempt += 1;
    slot.began_at = monotonic;
    slot.lease_until = monotonic + settings::acquire_timeout().as_millis() as i64 + 1_000;
    slot.attempt
}

/// Sleeps until the slot changes. An interrupt raises here; both guards clean up.
fn wait_for(at: usize, milliseconds: i64) {
    if WAITING.get() != Some(at) {
        leave();
        cache::lock()[at].waiting += 1;
        WAITING.set(Some(at));
    }
    // Bounded, because a lease ends without anybody saying so. The first call only registers and
    // returns, so that a change between our look and the sleep is not missed.
    let milliseconds = milliseconds.clamp(1, 1_000);
    let event = interrupts::Event::TokenOfAnother.number();
    // SAFETY: a condition variable that lives as long as the process.
    unsafe { pg_sys::ConditionVariableTimedSleep(cache::condition(at), milliseconds, event) };
}

/// No longer waits for anything.
fn leave() {
    // SAFETY: does nothing where no sleep is prepared.
    unsafe { pg_sys::ConditionVariableCancelSleep() };
    if let Some(at) = WAITING.take() {
        let mut slots = cache::lock();
        slots[at].waiting = (slots[at].waiting - 1).max(0);
    }
}

struct WaitingGuard;

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives a slot up: without an answer, unless it was answered or taken over.
fn give_up(at: usize, attempt: u64) {
    LEADING.with_borrow_mut(|leading| leading.retain(|led| *led != (at, attempt)));
    // SAFETY: a plain global.
    let me = unsafe { pg_sys::MyProcPid };
    {
        let mut slots = cache::lock();
        let slot = &mut slots[at];
        if slot.owner != me || slot.attempt != attempt {
            return;
        }
        slot.owner = 0;
        if !slot.has_token() && slot.last_failure.attempt == 0 && slot.waiting == 0 {
            slots.clear(at);
        }
    }
    // SAFETY: as above; wakes those who wait, one of whom leads.
    unsafe { pg_sys::ConditionVariableBroadcast(cache::condition(at)) };
}

/// This process's lead of a slot; dropped, it gives the slot up.
pub struct Lead {
    pub at: usize,
    pub attempt: u64,
}

impl Lead {
    /// Of an attempt that [`take`] has begun.
    pub fn new(at: usize, attempt: u64) -> Self {
        register();
        LEADING.with_borrow_mut(|leading| leading.push((at, attempt)));
        Self { at, attempt }
    }

    /// Whether the slot is still this lead's: it may have been forgotten meanwhile, and be another key's now.
    pub fn is_current(&self, slot: &Slot) -> bool {
        // SAFETY: a plain global.
        slot.owner == unsafe { pg_sys::MyProcPid } && slot.attempt == self.attempt
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        give_up(self.at, self.attempt);
    }
}

/// FATAL and proc_exit leave without unwinding.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _arg: pg_sys::Datum) {
    for (at, attempt) in LEADING.take() {
        give_up(at, attempt);
    }
    leave();
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: a guarded function, registered once per process; "before" because it takes an LWLock.
        unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
    }
}

fn lead(
    at: usize,
    attempt: u64,
    old: Option<Served>,
    fetch: impl Future<Output = Option<Result<AccessToken, Refusal>>>,
) -> Result<Served, Failure> {
    let guard = Lead::new(at, attempt);
    let answer = match interrupts::wait(fetch) {
        // The caller's own limit says nothing about the endpoint: nobody else is told. But a renewal
        // that took too long is not for the next caller to try at once.
        None => {
            let mut slots = cache::lock();
            let slot = &mut slots[at];
            if guard.is_current(slot) {
                slot.no_refresh_before = clock::monotonic() + REFRESH_PAUSE;
            }
            Err(too_late())
        }
        Some(outcome) => publish(&guard, outcome, REFRESH_PAUSE),
    };
    drop(guard);
    match (answer, old) {
        (Err(_), Some(old)) => Ok(old),
        (answer, _) => answer,
    }
}

fn alone(fetch: impl Future<Output = Option<Result<AccessToken, Refusal>>>) -> Result<Served, Failure> {
    match interrupts::wait(fetch) {
        None => Err(too_late()),
        Some(Err(refusal)) => Err(refusal.failure),
        Some(Ok(token)) => Ok(unkept(token)),
    }
}

fn unkept(token: AccessToken) -> Served {
    let usable_until = token.expires_at;
    Served { token, usable_until, place: None, not_forced: false }
}

/// `None` when the time has passed.
pub async fn within<F: Future>(timeout: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(timeout, future).await.ok()
}

pub fn too_late() -> Failure {
    let limit = settings::acquire_timeout().as_millis();
    Failure::new(Kind::Unreachable, "timed out waiting for an access token")
        .detail(format!("There was none within {limit} ms."))
        .hint("The wait is bounded by managed_identity.acquire_timeout.")
}

/// Writes the outcome into the slot, if the attempt is still the slot's. After a failure a token that is
/// still valid is not renewed for `pause` milliseconds.
pub fn publish(lead: &Lead, outcome: Result<AccessToken, Refusal>, pause: i64) -> Result<Served, Failure> {
    let at = lead.at;
    let (now, monotonic) = (clock::now(), clock::monotonic());
    let mut slots = cache::lock();
    let mine = lead.is_current(&slots[at]);
    match outcome {
        Ok(token) if mine => {
            let margin = expiry::margin(token.expires_at - now).as_secs() as i64;
            let generation = slots.replaced(at);
            let slot = &mut slots[at];
            slot.fetches += 1;
            slot.fetched_at = now;
            slot.expires_at = token.expires_at;
            slot.refresh_at = token.refresh_at;
            slot.usable_until = token.expires_at - margin;
            slot.no_retry_before = 0;
            slot.no_refresh_before = 0;
            slot.failures_in_a_row = 0;
            let usable_until = slot.usable_until;
            let kept = slots.store_token(at, &token);
            slots[at].oversize = !kept;
            drop(slots);
            if !kept {
                return Ok(unkept(token));
            }
            worker::wake();
            Ok(Served { token, usable_until, place: Some((at, generation)), not_forced: false })
        }
        Ok(token) => Ok(unkept(token)),
        Err(Refusal { failure, wait }) => {
            if mine {
                let slot = &mut slots[at];
                slot.failures += 1;
                slot.failures_in_a_row += 1;
                slot.last_failure.set(&failure, lead.attempt, now);
                let asked_for = wait.map_or(0, |wait| wait.as_millis() as i64);
                slot.no_refresh_before = monotonic + pause.max(asked_for);
                if failure.kind.is_transient() {
                    slot.no_retry_before = monotonic + asked_for.max(PAUSE.as_millis() as i64);
                }
            }
            Err(failure)
        }
    }
}

/// Drops every slot that `chosen` picks; returns how many tokens there were. A fetch that is under way
/// for such a slot answers its own caller only.
pub fn forget(chosen: impl Fn(&Slot) -> bool) -> i32 {
    let mut woken = Vec::new();
    let mut tokens = 0;
    {
        let mut slots = cache::lock();
        for at in 0..slots.len() {
            if slots[at].taken && chosen(&slots[at]) {
                tokens += i32::from(slots[at].has_token());
                slots.clear(at);
                woken.push(at);
            }
        }
    }
    for at in woken {
        // SAFETY: a condition variable that lives as long as the process.
        unsafe { pg_sys::ConditionVariableBroadcast(cache::condition(at)) };
    }
    tokens
}
