//! The row of view `status`: how this server is set up.

use super::{cache, clock, settings, stats, worker};
use crate::http::roots;

pub struct Status {
    pub version: &'static str,
    pub preloaded: bool,
    pub worker_pid: Option<i32>,
    pub source: &'static str,
    pub roots: &'static str,
    pub slots_used: i32,
    pub slots_total: i32,
    /// Until the first of the cached tokens ends that have not yet.
    pub next_expiry_seconds: Option<i64>,
}

pub fn status() -> Status {
    let source = settings::current().machine.detected().as_str();
    let roots = roots::in_use(settings::has_ca_file());
    let now = clock::now();
    let (used, total, next) = {
        let slots = cache::lock();
        let tokens = slots.iter().filter(|slot| slot.taken && slot.has_token());
        let next = tokens.map(|slot| slot.expires_at - now).filter(|left| *left > 0).min();
        (slots.iter().filter(|slot| slot.taken).count(), slots.len(), next)
    };
    Status {
        version: env!("CARGO_PKG_VERSION"),
        preloaded: stats::is_shared(),
        worker_pid: worker::pid(),
        source,
        roots,
        slots_used: i32::try_from(used).unwrap_or(i32::MAX),
        slots_total: i32::try_from(total).unwrap_or(i32::MAX),
        next_expiry_seconds: next,
    }
}
