//! Waiting for a state that nobody announces: the one place that looks again and again.

use std::time::{Duration, Instant};

/// The longest wait for anything that should happen; long, because the machine may be busy.
pub const LONG: Duration = Duration::from_secs(60);

/// Looks until `reached` is true; panics with `what` when it never is.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !reached() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
