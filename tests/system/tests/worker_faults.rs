//! The background worker in the middle of a renewal: cancelled, ended, killed, stopped, out of time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::process::Command;
use std::thread;

use emulator::{Fault, Identity};
use server_tests::{Options, Session, World, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const FORCED: &str = "SELECT managed_identity.access_token('storage', NULL, true)";

/// A server whose worker gives up after two seconds, with a token in its cache that is due to be renewed at once,
/// again and again.
fn world() -> World {
    let options = Options::default().conf("managed_identity.acquire_timeout = '2s'");
    let world = World::with(options, vec![Identity::system()]);
    world.emulator.identity().set_refresh_in(Some(1));
    world.session().run(TOKEN);
    world
}

fn worker(session: &mut Session) -> Option<i32> {
    session.value("SELECT worker_pid FROM managed_identity.status").parse().ok()
}

fn signal(name: &str, pid: i32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// Waits until the endpoint holds a renewal; gives back whose it is.
fn renewal_hangs(world: &World) -> i32 {
    let identity = world.emulator.identity();
    identity.faults().next(1, Fault::HangBeforeHeaders);
    identity.log().wait_until("a renewal hangs", wait::LONG, |state| state.held() == 1).unwrap();
    worker(&mut world.session()).expect("a worker")
}

/// Waits until a request that comes after all these was answered.
fn renews_again(world: &World) {
    let log = world.emulator.identity().log();
    let before = log.count();
    let answered = |state: &emulator::State| state.requests()[before..].iter().any(|entry| entry.status == Some(200));
    log.wait_until("a renewal", wait::LONG, answered).unwrap();
}

fn let_go(world: &World) {
    world.emulator.identity().faults().release();
    world.emulator.identity().log().wait_until("none held", wait::LONG, |state| state.held() == 0).unwrap();
}

#[test]
fn cancelled_ended_or_killed_it_leaves_nothing_and_goes_on() {
    let world = world();
    for name in ["-INT", "-TERM", "-KILL"] {
        let pid = renewal_hangs(&world);
        signal(name, pid);
        if name == "-KILL" {
            wait::until("the server knows", || world.cluster.log().contains("was terminated by signal 9"));
            world.cluster.wait_until_back();
        }
        let mut session = world.session();
        // A cancel is for statements, of which it has none: it may end by it or go on.
        wait::until("a worker", || worker(&mut session).is_some_and(|now| now != pid || name == "-INT"));
        renews_again(&world);
        assert!(session.value(TOKEN).starts_with("ey"), "{name}");
        let row = "SELECT state, waiting FROM managed_identity.cached_tokens";
        assert_eq!(session.rows(row), ["ready|0"], "{name}");
        let_go(&world);
    }
    let log = world.cluster.log();
    assert_eq!(log.matches("was terminated by signal").count(), 1, "the one that was killed: {log}");
    assert!(!log.contains("PANIC"), "{log}");
}

#[test]
fn stopped_for_longer_than_its_lease_it_is_overtaken_and_changes_nothing_when_it_comes_back() {
    let world = world();
    let identity = world.emulator.identity();
    let mut session = world.session();
    let old = session.value(TOKEN);
    let pid = renewal_hangs(&world);
    signal("-STOP", pid);
    // What is valid is served all the while; who wants another one waits until the lease has ended.
    let valid = session.value(TOKEN);
    session.run("SET managed_identity.acquire_timeout = '30s'");
    identity.set_refresh_in(None);
    let new = thread::scope(|scope| {
        let forced = scope.spawn(|| session.value(FORCED));
        let mut other = world.session();
        wait::until("it waits for the worker's fetch", || {
            other.value("SELECT sum(waiting) FROM managed_identity.cached_tokens") == "1"
        });
        let new = forced.join().unwrap();
        assert_eq!(identity.log().held(), 1, "the worker's request is still held");
        new
    });
    assert!(new != old && new != valid);
    // It comes back, finds that its time has passed, and neither its answer nor its failure is kept.
    let row = "SELECT state, fetches, failures, waiting FROM managed_identity.cached_tokens";
    let before = session.rows(row);
    signal("-CONT", pid);
    wait::until("it knows", || world.cluster.log().contains("could not renew the access token"));
    let_go(&world);
    assert_eq!((session.value(TOKEN), session.rows(row)), (new, before));
    assert_eq!(worker(&mut session), Some(pid), "it goes on");
    assert!(!world.cluster.log().contains("terminated by signal"));
}

#[test]
fn a_renewal_that_takes_too_long_is_given_up_and_tried_again() {
    let world = world();
    let mut session = world.session();
    let pid = renewal_hangs(&world);
    let failures = "SELECT failures > 0, state, last_error FROM managed_identity.cached_tokens";
    let given_up = "t|ready|timed out waiting for an access token";
    wait::until("it is given up", || session.rows(failures) == [given_up]);
    renews_again(&world);
    assert_eq!(worker(&mut session), Some(pid));
    let_go(&world);
}
