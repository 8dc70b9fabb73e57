//! Waiting on the network with PostgreSQL's interrupts alive.

use std::future::Future;
use std::sync::Once;

use pgrx::pg_sys;

use super::compat;
use super::error::OrRaise;
use crate::http::runtime;

/// Whether a signal handler wants the main thread's attention: cancel, terminate, a timeout, a
/// recovery conflict, a barrier.
fn pending() -> bool {
    // SAFETY: a plain sig_atomic_t that handlers set; volatile because they do so behind the
    // compiler's back. Read from this process's main thread only.
    unsafe { std::ptr::read_volatile(&raw const pg_sys::InterruptPending) != 0 }
}

/// Shows the wait in pg_stat_activity while it lasts. Not exported as functions on every major, so
/// the variable is written as the inline function in `wait_event.h` does.
struct WaitEvent;

impl WaitEvent {
    fn start() -> Self {
        // SAFETY: my_wait_event_info points to this backend's own slot or a local dummy, always.
        unsafe { pg_sys::my_wait_event_info.write_volatile(pg_sys::PG_WAIT_EXTENSION) };
        Self
    }
}

impl Drop for WaitEvent {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::my_wait_event_info.write_volatile(0) };
    }
}

/// Waits for a future, slice by slice.
///
/// Interrupts are looked at between slices, with no runtime frame on the stack: an ERROR then unwinds
/// through here and drops the future (its request is given up), and a FATAL leaves by exit() with the
/// runtime idle. Looking inside `block_on` instead aborts the process on terminate, which takes the
/// whole cluster through crash recovery. The future itself must not call PostgreSQL.
pub fn wait<F: Future>(future: F) -> F::Output {
    static SETUP: Once = Once::new();
    SETUP.call_once(|| {
        runtime::watch_interrupts(pending);
        // The runtime's epoll and event descriptors, a socket and the resolver's: fd.c must count
        // them or it promises descriptors to others that the process does not have.
        for _ in 0..4 {
            // SAFETY: only counts; called in a backend, never in the postmaster.
            unsafe { pg_sys::ReserveExternalFD() };
        }
    });
    let mut future = Box::pin(future);
    loop {
        let slice = {
            let _shown = WaitEvent::start();
            runtime::drive(future.as_mut())
        };
        if let Some(output) = slice.or_raise() {
            return output;
        }
        pgrx::check_for_interrupts!();
        if !compat::postmaster_is_alive() {
            // As every latch wait in core does: without it a new postmaster could start beside us.
            // SAFETY: leaves by exit(), with no runtime frame on the stack.
            unsafe { pg_sys::proc_exit(1) };
        }
    }
}
