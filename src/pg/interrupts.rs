//! Waiting on the network with PostgreSQL's interrupts alive.

use std::cell::Cell;
use std::ffi::CStr;
use std::future::Future;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::pg_sys;

use super::compat;
use super::error::OrRaise;
use crate::http::runtime;

/// Whether a signal handler wants the main thread's attention: cancel, terminate, a timeout, a
/// recovery conflict, a barrier.
fn pending() -> bool {
    // SAFETY: a plain sig_atomic_t that handlers set; volatile because they do so behind the
    // compiler's back. Read from this process's main thread only.
    unsafe { std::ptr::read_volatile(&raw const pg_sys::InterruptPending) != 0 || compat::is_asked_to_end() }
}

/// What is waited for, as pg_stat_activity calls it from 17 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The identity's endpoint.
    Token,
    /// Another session's fetch of the same token.
    TokenOfAnother,
    StorageRead,
    StorageWrite,
    KeyVault,
    /// The worker, until something is due.
    RenewalMain,
}

impl Event {
    fn name(self) -> &'static CStr {
        match self {
            Self::Token => c"ManagedIdentityToken",
            Self::TokenOfAnother => c"ManagedIdentityTokenWait",
            Self::StorageRead => c"AzureStorageRead",
            Self::StorageWrite => c"AzureStorageWrite",
            Self::KeyVault => c"AzureKeyVault",
            Self::RenewalMain => c"ManagedIdentityRenewalMain",
        }
    }

    /// As PostgreSQL numbers it.
    pub fn number(self) -> u32 {
        static NUMBERS: [AtomicU32; 6] = [const { AtomicU32::new(0) }; 6];
        let known = &NUMBERS[self as usize];
        if known.load(Ordering::Relaxed) == 0 {
            known.store(compat::wait_event(self.name()), Ordering::Relaxed);
        }
        known.load(Ordering::Relaxed)
    }
}

/// Shows the wait in pg_stat_activity while it lasts. Not exported as functions on every major, so
/// the variable is written as the inline function in `wait_event.h` does.
struct WaitEvent;

impl WaitEvent {
    fn start(number: u32) -> Self {
        // SAFETY: my_wait_event_info points to this backend's own slot or a local dummy, always.
        unsafe { pg_sys::my_wait_event_info.write_volatile(number) };
        Self
    }
}

impl Drop for WaitEvent {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::my_wait_event_info.write_volatile(0) };
    }
}

thread_local! {
    static BETWEEN: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Names what this process looks at between slices, a few times a second, beside its interrupts.
pub fn between_slices(look: fn()) {
    BETWEEN.set(Some(look));
}

/// Waits for what the identity's endpoint is asked for: see [`wait_as`].
pub fn wait<F: Future>(future: F) -> F::Output {
    wait_as(Event::Token, future)
}

/// Waits for a future, slice by slice, and shows the event meanwhile.
///
/// Interrupts are looked at between slices, with no runtime frame on the stack: an ERROR then unwinds
/// through here and drops the future (its request is given up), and a FATAL leaves by exit() with the
/// runtime idle. Looking inside `block_on` instead aborts the process on terminate, which takes the
/// whole cluster through crash recovery. The future itself must not call PostgreSQL.
pub fn wait_as<F: Future>(event: Event, future: F) -> F::Output {
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
    let number = event.number();
    let mut future = Box::pin(future);
    loop {
        let slice = {
            let _shown = WaitEvent::start(number);
            runtime::drive(future.as_mut())
        };
        if let Some(output) = slice.or_raise() {
            return output;
        }
        pgrx::check_for_interrupts!();
        compat::end_if_asked();
        if let Some(look) = BETWEEN.get() {
            look();
        }
        if !compat::postmaster_is_alive() {
            // As every latch wait in core does: without it a new postmaster could start beside us.
            // SAFETY: leaves by exit(), with no runtime frame on the stack.
            unsafe { pg_sys::proc_exit(1) };
        }
    }
}
