//! Tokens: six places, each way to be interrupted.

use server_tests::{Session, major, wait};

use crate::hang::{ENDS, End, Running, threads};
use crate::stage::{Place, Stage, TOKEN_PLACES, call};

/// Points the server at the emulator, and waits until an open session knows.
fn point_at_the_emulator(stage: &Stage, session: &mut Session) {
    stage.point(Place::Headers);
    let endpoint = stage.world.emulator.imds_endpoint();
    wait::until("the session knows", || session.value("SHOW managed_identity.imds_endpoint") == endpoint);
}

#[test]
fn in_every_place_a_session_is_free_while_the_endpoint_holds_on() {
    let stage = Stage::new();
    let log = stage.world.emulator.identity().log();
    for place in TOKEN_PLACES {
        for end in ENDS {
            let name = format!("{place:?}-{end:?}").to_lowercase();
            let hang = stage.hang_until(place, &name, Some(end));
            let pid = hang.running.pid;
            let looking_up = usize::from(place == Place::Resolving);
            assert_eq!(threads(pid), 1 + looking_up, "{name}");
            let (session, leader) = stage.interrupt(hang, end);
            if let Some(leader) = leader {
                let seen = "SELECT state, waiting FROM managed_identity.cached_tokens WHERE state = 'fetching'";
                assert_eq!(stage.world.session().rows(seen), ["fetching|0"], "{name}: the other one goes on");
                stage.interrupt(leader, end_without_preparation(end));
            }
            stage.assert_no_slot_is_owned();
            if place == Place::Connecting {
                wait::until("the attempt is given up", || stage.attempts() == 0);
            }
            // While the old connection is still held.
            let held = stage.held(place);
            let lives = session.is_some();
            let mut session = session.unwrap_or_else(|| stage.world.session());
            point_at_the_emulator(&stage, &mut session);
            let before = log.count();
            session.run(&call(&format!("free{before}")));
            assert_eq!(log.count(), before + 1, "{name}");
            assert_eq!((stage.held(place), held > 0), (held, true), "{name}");
            if lives {
                assert_eq!(threads(pid), 1 + looking_up, "{name}");
            }
            stage.release();
            if lives {
                wait::until("no thread is left", || threads(pid) == 1);
            }
            // An interrupt is nothing that the endpoint said.
            session.run(&call(&name));
        }
    }
    stage.assert_no_crash();
}

/// A timeout cannot be set for a statement that runs.
fn end_without_preparation(end: End) -> End {
    if end == End::StatementTimeout { End::Cancel } else { end }
}

#[test]
fn when_the_one_that_fetches_is_interrupted_one_that_waits_fetches() {
    let stage = Stage::new();
    let identity = stage.world.emulator.identity();
    for end in ENDS {
        let name = format!("handed-{end:?}").to_lowercase();
        let leader = stage.hang_until(Place::Headers, &name, Some(end));
        // The next request is answered.
        identity.faults().clear();
        let waiter = Running::start(stage.world.session(), &call(&name));
        let before = identity.log().count();
        // A timeout that comes first is as good: then it does not wait, but fetches.
        let waits = format!("SELECT waiting FROM managed_identity.cached_tokens WHERE resource LIKE '%{name}%'");
        wait::until("the other one waits", || leader.running.is_over() || stage.world.session().rows(&waits) == ["1"]);
        stage.interrupt(leader, end);
        let (succeeded, said, _) = waiter.end();
        assert!(succeeded, "{end:?}: the interrupt is not passed on: {said:?}");
        assert_eq!(identity.log().count(), before + 1, "{end:?}");
        assert_eq!(identity.log().held(), 1, "{end:?}: all this while the first connection is held");
        stage.assert_no_slot_is_owned();
        stage.release();
    }
    stage.assert_no_crash();
}

#[test]
fn look_ups_that_never_end_leave_one_thread_however_many_are_interrupted() {
    let stage = Stage::new();
    let hang = stage.hang(Place::Resolving, "first");
    let pid = hang.running.pid;
    let (session, _) = stage.interrupt(hang, End::Cancel);
    let mut session = session.unwrap();
    for count in 0..5 {
        let again = Running::start(session, &call(&format!("again{count}")));
        let fetches = "SELECT state FROM managed_identity.cached_tokens WHERE state = 'fetching'";
        wait::until("it fetches", || stage.world.session().rows(fetches) == ["fetching"]);
        stage.world.session().run(&format!("SELECT pg_cancel_backend({pid})"));
        let (_, said, back) = again.end();
        assert_eq!(said.map(|said| said.0).as_deref(), Some("57014"));
        session = back;
        assert_eq!((threads(pid), stage.held(Place::Resolving)), (2, 1));
        stage.assert_no_slot_is_owned();
    }
    // One that comes while the abandoned look-up lasts is served when that has ended.
    let waits = Running::start(session, &call("last"));
    wait::until("it fetches", || {
        !stage.world.session().rows("SELECT 1 FROM managed_identity.cached_tokens WHERE state = 'fetching'").is_empty()
    });
    stage.let_names_be_found();
    let (succeeded, said, mut session) = waits.end();
    assert!(succeeded, "{said:?}");
    session.run(&call("one-more"));
    wait::until("no thread is left", || threads(pid) == 1);
    stage.assert_no_crash();
}

#[test]
fn a_transaction_that_times_out_in_a_fetch_ends_its_session_and_leaves_nothing() {
    if major() < 17 {
        eprintln!("left out on {}: there is no transaction_timeout", major());
        return;
    }
    let stage = Stage::new();
    let hang = stage.hang(Place::Headers, "first");
    // Whoever waits for the fetch, and whoever fetches, once nobody else does.
    for name in ["first", "second"] {
        stage.world.emulator.identity().faults().always(emulator::Fault::HangBeforeHeaders);
        let mut session = stage.world.session();
        session.run("SET transaction_timeout = '500ms'");
        let (succeeded, said, _) = Running::start(session, &call(name)).end();
        assert!(!succeeded);
        assert!(said.is_none_or(|said| said.0 == "25P04"), "{name}");
    }
    stage.interrupt(hang, End::Cancel);
    stage.assert_no_slot_is_owned();
    stage.release();
    for name in ["first", "second"] {
        stage.world.session().run(&call(name));
    }
    stage.assert_no_crash();
}
