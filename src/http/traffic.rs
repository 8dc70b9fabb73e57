//! What one call or transfer moved: filled in where requests are made, on whatever thread, and added up by whoever
//! began it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::failure::Failure;

/// The counters of one call or transfer.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    retries: AtomicU64,
    throttled: AtomicU64,
    errors: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    microseconds: AtomicU64,
    /// Requests that came to nothing and will be made again: what retries is told by. The one that is made next
    /// need not be that one, as several are under way at once; their number is the same.
    owed: AtomicU64,
    /// Of the last error, our own words.
    last_error: Mutex<Option<String>>,
}

/// What was counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub retries: u64,
    pub throttled: u64,
    pub errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub microseconds: u64,
    pub last_error: Option<String>,
}

impl Traffic {
    /// A request is about to be made.
    pub fn request(&self) {
        add(&self.requests, 1);
        let owed = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1));
        add(&self.retries, u64::from(owed.is_ok()));
    }

    /// The last request came to nothing, and is made again unless the tries are used up.
    pub fn will_be_repeated(&self) {
        add(&self.owed, 1);
    }

    /// The service said that it is asked too often.
    pub fn throttled(&self) {
        add(&self.throttled, 1);
    }

    /// Bytes of an answer's body have come.
    pub fn received(&self, bytes: usize) {
        add(&self.bytes_in, bytes as u64);
    }

    /// Bytes of a request's body were handed to the connection.
    pub fn sent(&self, bytes: usize) {
        add(&self.bytes_out, bytes as u64);
    }

    /// The call or transfer ended with this.
    pub fn failed(&self, failure: &Failure) {
        add(&self.errors, 1);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.message.clone());
    }

    /// Whether there were requests, and all of them were of use as far as is known.
    pub fn is_without_error(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0 && self.errors.load(Ordering::Relaxed) == 0
    }

    /// Somebody waits as long as the result lives.
    pub fn waiting(&self) -> Waiting<'_> {
        Waiting { traffic: self, since: Instant::now() }
    }

    /// What was counted since the last call: nothing is counted twice, whoever takes it.
    pub fn take(&self) -> Counts {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Counts {
            requests: take(&self.requests),
            retries: take(&self.retries),
            throttled: take(&self.throttled),
            errors: take(&self.errors),
            bytes_in: take(&self.bytes_in),
            bytes_out: take(&self.bytes_out),
            microseconds: take(&self.microseconds),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A wait that is counted however it ends, also by being dropped in the middle.
pub struct Waiting<'t> {
    traffic: &'t Traffic,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        add(&self.traffic.microseconds, microseconds(self.since.elapsed()));
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::failure::Kind;

    #[test]
    fn a_request_after_one_that_came_to_nothing_is_a_retry_whichever_is_made_first() {
        let traffic = Traffic::default();
        // Two at once, of which one fails; a third is made before that one is repeated.
        traffic.request();
        traffic.request();
        traffic.will_be_repeated();
        traffic.request();
        traffic.request();
        let counts = traffic.take();
        assert_eq!((counts.requests, counts.retries), (4, 1));
    }

    #[test]
    fn what_was_taken_is_not_counted_again_and_the_last_error_is_our_words() {
        let traffic = Traffic::default();
        assert!(!traffic.is_without_error(), "nothing was asked");
        traffic.request();
        assert!(traffic.is_without_error());
        traffic.sent(3);
        traffic.received(5);
        traffic.failed(&Failure::new(Kind::Throttled, "first").detail("The service's words."));
        traffic.failed(&Failure::new(Kind::Throttled, "second"));
        assert!(!traffic.is_without_error());
        drop(traffic.waiting());
        let counts = traffic.take();
        assert_eq!((counts.bytes_out, counts.bytes_in, counts.errors), (3, 5, 2));
        assert_eq!(counts.last_error.as_deref(), Some("second"));
        assert_eq!(traffic.take(), Counts::default());
    }
}
