//! The clock that a token's end is compared with.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in seconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// A number from 0 to 1 that differs between servers and calls; nothing depends on it being secret.
pub fn jitter() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| f64::from(since.subsec_micros() % 1000) / 1000.0)
}
