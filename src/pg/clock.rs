//! The two clocks: what a token's end is compared with, and what waits and leases are measured by.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;

pub use crate::token::clock::now;

/// Milliseconds of the clock that no one sets. All processes of a machine share it, which Rust's
/// `Instant` does not promise; a lease in shared memory needs that.
pub fn monotonic() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000)
}

/// Unix seconds as SQL shows them; `None` for 0, which stands for "never", and for what no timestamp can be.
pub fn timestamp(seconds: i64) -> Option<TimestampWithTimeZone> {
    (seconds != 0).then(|| timestamp_of(seconds.checked_mul(1_000_000)?))?
}

/// The same of microseconds since 1970.
pub fn timestamp_of(microseconds: i64) -> Option<TimestampWithTimeZone> {
    const POSTGRES_EPOCH: i64 =
        (pg_sys::POSTGRES_EPOCH_JDATE as i64 - pg_sys::UNIX_EPOCH_JDATE as i64) * 86_400_000_000;
    TimestampWithTimeZone::try_from(microseconds.checked_sub(POSTGRES_EPOCH)?).ok()
}

/// Microseconds since 1970.
pub fn microseconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
