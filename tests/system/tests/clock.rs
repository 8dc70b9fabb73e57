//! A machine whose clock jumps, as one does that was asleep, restored or set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::Path;

use emulator::Identity;
use server_tests::{Options, World, wait};
use tempfile::NamedTempFile;

const DAY: i64 = 86_400;

/// The clock of a server and all its processes, ours but for an offset that can be set.
struct Clock(NamedTempFile);

impl Clock {
    fn new() -> Self {
        let clock = Self(tempfile::Builder::new().prefix("mi-clock-").tempfile_in("/tmp").unwrap());
        clock.jump(0);
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(clock.0.path(), readable).unwrap();
        clock
    }

    fn options(&self) -> Options {
        let library = ["x86_64", "aarch64"]
            .map(|processor| format!("/usr/lib/{processor}-linux-gnu/faketime/libfaketime.so.1"))
            .into_iter()
            .find(|library| Path::new(library).exists())
            .expect("libfaketime, which make test installs");
        Options::default()
            .environment("LD_PRELOAD", &library)
            .environment("FAKETIME_TIMESTAMP_FILE", self.0.path().to_str().unwrap())
            .environment("FAKETIME_NO_CACHE", "1")
            // Nobody sets this one: waits and leases are measured by it.
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Of processes that start from now on; whether it is that of older ones, too, is libfaketime's affair.
    fn jump(&self, seconds: i64) {
        std::fs::write(self.0.path(), format!("{seconds:+}\n")).unwrap();
    }
}

#[test]
fn a_jump_of_the_clock_ends_tokens_forgets_the_unused_and_hangs_nobody() {
    let clock = Clock::new();
    let world = World::with(clock.options(), vec![Identity::system()]);
    world.emulator.identity().set_token_life(10 * DAY);
    let call = |resource: &str| format!("SELECT managed_identity.access_token('{resource}')");
    let mut session = world.session();
    let cached = "SELECT string_agg(resource, ' ' ORDER BY resource) FROM managed_identity.cached_tokens";
    let first = session.value(&call("https://first.example.com"));
    // A day and more: nobody has used it since.
    clock.jump(DAY + 3_600);
    let mut session = world.session();
    session.run(&call("https://second.example.com"));
    session.run("SELECT pg_terminate_backend(worker_pid) FROM managed_identity.status");
    wait::until("the first one is forgotten", || session.value(cached) == "https://second.example.com");
    assert_eq!(world.asked(), 2, "it was valid still, and nobody renewed it");
    // Back: what was fetched in the future is served on.
    clock.jump(0);
    let mut session = world.session();
    let second = session.value(&call("https://second.example.com"));
    assert_eq!(world.session().value(&call("https://second.example.com")), second);
    assert_eq!(world.asked(), 2);
    assert_ne!(session.value(&call("https://first.example.com")), first);
    // Past the end of both, and each is fetched once more.
    let before = world.asked();
    world.emulator.identity().set_token_life(30 * DAY);
    clock.jump(11 * DAY);
    let mut session = world.session();
    assert_ne!(session.value(&call("https://second.example.com")), second);
    assert!(world.session().value(&call("https://second.example.com")).starts_with("ey"));
    let seconds = || {
        let log = world.emulator.identity().log().requests();
        log.iter().skip(before).filter(|entry| entry.raw_query.contains("second")).count()
    };
    assert_eq!(seconds(), 1);
    // An hour back, in the middle of a wait: it ends by the clock that nobody sets.
    world.emulator.identity().faults().always(emulator::Fault::HangBeforeHeaders);
    session.run("SET managed_identity.acquire_timeout = '2s'");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| session.sqlstate(&call("https://third.example.com")));
        let held = |state: &emulator::State| {
            state.requests().iter().any(|entry| entry.raw_query.contains("third") && entry.status.is_none())
        };
        world.emulator.identity().log().wait_until("the third one hangs", wait::LONG, held).unwrap();
        clock.jump(11 * DAY - 3_600);
        assert_eq!(waiting.join().unwrap(), "08001");
    });
    world.emulator.identity().faults().release();
}
