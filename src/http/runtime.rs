//! The backend's own runtime, and how a backend waits on it without becoming deaf.
//!
//! One current-thread runtime per process, built on first use (never in the postmaster: its epoll
//! descriptor would be inherited) and leaked: dropping a runtime at exit, from a thread-local's
//! destructor, aborts the process, and with it the cluster, when the exit came from inside it.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::failure::{Failure, Kind};

/// Set by PostgreSQL's side once: whether a signal handler has asked for attention.
static PENDING: OnceLock<fn() -> bool> = OnceLock::new();
static WAKE: Notify = Notify::const_new();

/// The flag can be set between our look at it and the sleep in epoll_wait; this bounds the delay.
const BACKSTOP: Duration = Duration::from_millis(250);

/// Names the function that tells whether an interrupt is pending.
pub fn watch_interrupts(pending: fn() -> bool) {
    let _ = PENDING.set(pending);
}

/// The process's runtime. Fails when the operating system gives no descriptor for it.
fn runtime() -> Result<&'static Runtime, Failure> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let built = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // A handler that ran during epoll_wait makes it return EINTR, which tokio swallows; this hook
        // still runs, and wakes the root future so that the slice ends at once.
        .on_thread_unpark(|| {
            if PENDING.get().is_some_and(|pending| pending()) {
                WAKE.notify_one();
            }
        })
        .build()
        .map_err(|error| Failure::new(Kind::Local, "could not start the network runtime").detail(error.to_string()))?;
    Ok(RUNTIME.get_or_init(|| built))
}

/// Runs a future for one slice: `Some(output)`, or `None` when the caller should look at its
/// interrupts and call again. Returns with no runtime frame on the stack.
pub fn drive<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Result<Option<F::Output>, Failure> {
    Ok(runtime()?.block_on(async {
        tokio::select! {
            biased;
            _ = WAKE.notified() => None,
            output = future.as_mut() => Some(output),
            _ = tokio::time::sleep(BACKSTOP) => None,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_ends_without_its_future_and_the_future_goes_on() {
        let (send, receive) = tokio::sync::oneshot::channel::<u8>();
        let mut future = Box::pin(receive);
        assert!(drive(future.as_mut()).expect("a runtime").is_none());
        send.send(7).expect("a receiver");
        assert_eq!(drive(future.as_mut()).expect("a runtime"), Some(Ok(7)));
    }
}
