//! Threads beside PostgreSQL's one.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Starts a thread that no signal can interrupt.
///
/// PostgreSQL's handlers touch the backend's state and must run on its main thread only; a thread
/// inherits its creator's mask, so everything is blocked while it is created, SIGURG (the latch's
/// signal) included.
pub fn spawn_masked(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    spawned.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn the_thread_has_every_signal_blocked_and_the_caller_has_not() {
        let (answer, receive) = std::sync::mpsc::channel();
        spawn_masked("masked", move || {
            let _ = answer.send(SigSet::thread_get_mask().map(|mask| mask.contains(Signal::SIGURG)));
        })
        .expect("a thread");
        assert_eq!(receive.recv().expect("its answer"), Ok(true));
        assert!(!SigSet::thread_get_mask().expect("a mask").contains(Signal::SIGURG));
    }
}
