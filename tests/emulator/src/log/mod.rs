//! What a service was asked, what it answered and what it holds open, for tests to read and to wait for.

mod counters;
mod entry;
mod record;

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub use counters::{Counters, IdentityCount};
pub use entry::{Ending, Entry};
pub(crate) use record::{Held, Opened, Record};

use crate::Error;
use crate::error::lock;

/// The log of one service; cheap to clone, all clones are one log.
#[derive(Clone)]
pub struct Log(Arc<Board>);

struct Board {
    service: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

/// What waiting helpers look at.
#[derive(Debug, Default)]
pub struct State {
    requests: Vec<Entry>,
    /// The sequence number of the first entry, since `clear` forgets but never renumbers.
    first: u64,
    held: usize,
    connections: usize,
    accepted: u64,
}

impl State {
    /// The requests since the start or the last `clear`, those under way included.
    pub fn requests(&self) -> &[Entry] {
        &self.requests
    }

    /// Requests that a fault is holding now, and connections that a special listener is.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Connections that are open at this end, idle ones included.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Connections ever accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Requests that have ended in whichever way.
    pub fn ended(&self) -> usize {
        let under_way = |entry: &&Entry| entry.ending == Ending::UnderWay;
        self.requests.len() - self.requests.iter().filter(under_way).count()
    }

    fn next(&self) -> u64 {
        self.first + self.requests.len() as u64
    }

    fn entry(&mut self, sequence: u64) -> Option<&mut Entry> {
        let index = sequence.checked_sub(self.first)?;
        self.requests.get_mut(usize::try_from(index).ok()?)
    }
}

impl Log {
    pub(crate) fn new(service: &'static str) -> Self {
        Self(Arc::new(Board { service, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// The service whose log it is.
    pub fn service(&self) -> &'static str {
        self.0.service
    }

    pub fn requests(&self) -> Vec<Entry> {
        self.state().requests.clone()
    }

    /// The requests that came without a bearer token.
    pub fn without_bearer(&self) -> Vec<Entry> {
        let mut requests = self.requests();
        requests.retain(|entry| entry.bearer.is_none());
        requests
    }

    pub fn count(&self) -> usize {
        self.state().requests.len()
    }

    pub fn held(&self) -> usize {
        self.state().held
    }

    pub fn counters(&self) -> Counters {
        Counters::of(self.service(), &self.state())
    }

    /// The tokens in this log. Those that `clear` forgot are still in the issuer's list.
    pub fn issued_tokens(&self) -> Vec<String> {
        let state = self.state();
        let tokens = state.requests.iter();
        tokens.filter_map(|entry| entry.token.clone()).collect()
    }

    /// Forgets the requests; what is held stays held, and sequence numbers go on.
    pub fn clear(&self) {
        self.change(|state| {
            state.first = state.next();
            state.requests.clear();
        });
    }

    /// Waits until `n` requests have arrived since the last `clear`.
    pub fn wait_for_requests(&self, n: usize, within: Duration) -> Result<(), Error> {
        let what = format!("{n} requests");
        self.wait_until(&what, within, |state| state.requests.len() >= n)
    }

    /// Waits until `n` requests have ended: their entries change no more.
    pub fn wait_for_ended(&self, n: usize, within: Duration) -> Result<(), Error> {
        let what = format!("{n} ended requests");
        self.wait_until(&what, within, |state| state.ended() >= n)
    }

    /// Waits until at least `n` are held open.
    pub fn wait_for_held(&self, n: usize, within: Duration) -> Result<(), Error> {
        let what = format!("{n} held");
        self.wait_until(&what, within, |state| state.held >= n)
    }

    /// Waits for any state; `what` names it in the error.
    pub fn wait_until(&self, what: &str, within: Duration, reached: impl Fn(&State) -> bool) -> Result<(), Error> {
        let end = Instant::now() + within;
        let mut state = self.state();
        while !reached(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut {
                    what: format!("{} at {}", what, self.service()),
                    waited: within,
                    seen: format!(
                        "{} requests, {} of them ended, {} held, {} connections",
                        state.requests.len(),
                        state.ended(),
                        state.held,
                        state.connections
                    ),
                });
            }
            state = match self.0.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    fn change<T>(&self, how: impl FnOnce(&mut State) -> T) -> T {
        let result = how(&mut self.state());
        self.0.changed.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_fails_tells_what_was_seen() {
        let log = Log::new("identity");
        let error = log.wait_for_requests(1, Duration::from_millis(1));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("1 requests at identity"), "{text}");
        assert!(text.contains("0 requests, 0 of them ended"), "{text}");
    }

    #[test]
    fn a_wait_ends_when_another_thread_changes_the_state() {
        let log = Log::new("identity");
        let other = log.clone();
        let thread = std::thread::spawn(move || Held::new(&other));
        log.wait_for_held(1, Duration::from_secs(10)).unwrap();
        drop(thread.join());
        assert_eq!(log.held(), 0);
    }
}
