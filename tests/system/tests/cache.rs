//! The shared cache: one request for all sessions, what a failure leaves behind, what is never kept.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;

use emulator::{Fault, Filter, Identity, Reply, Rule};
use postgres::error::{DbError, SqlState};
use server_tests::{Options, Session, World, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";

/// A call for a resource of its own, whose requests a filter finds by `name`.
fn call(name: &str) -> String {
    format!("SELECT managed_identity.access_token('https://{name}.example.com')")
}

/// How often the endpoint was asked with `name` in the query.
fn asked(world: &World, name: &str) -> usize {
    let log = world.emulator.identity().log().requests();
    log.iter().filter(|entry| entry.raw_query.contains(name)).count()
}

fn strike(world: &World, name: &str, fault: impl Into<Fault>) {
    world.emulator.identity().faults().add(Rule::new(fault).when(Filter::query(name)));
}

/// Waits until so many sessions wait for the fetch of another.
fn wait_for_waiting(session: &mut Session, name: &str, count: usize) {
    let sql = format!("SELECT waiting FROM managed_identity.cached_tokens WHERE resource LIKE '%{name}%'");
    wait::until(&format!("{count} wait"), || session.rows(&sql) == [count.to_string()]);
}

fn signal(name: &str, pid: i32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().expect("kill runs").success());
}

fn told(error: &DbError) -> (String, String, Option<String>, Option<String>) {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    (error.code().code().into(), error.message().into(), owned(error.detail()), owned(error.hint()))
}

#[test]
fn an_entry_is_seen_by_all_and_its_hits_are_those_of_all() {
    let world = World::new();
    let mut first = world.session();
    let token = first.value(TOKEN);
    first.run(&format!("{TOKEN}; {TOKEN}; SELECT managed_identity.access_token('key-vault', 'keys')"));
    drop(first);
    let mut second = world.session();
    let columns =
        "SELECT identity, kind, id, resource, source, state, hits, fetches, failures, last_error, last_error_at,
        waiting, now() BETWEEN refresh_at - interval '1 day' AND refresh_at, refresh_at <= expires_at,
        fetched_at BETWEEN now() - interval '10 minutes' AND now()
        FROM managed_identity.cached_tokens ORDER BY identity";
    let keys = Identity::user("keys").client_id;
    let row = |who: &str, hits| format!("{who}|imds|ready|{hits}|1|0|||0|t|t|t");
    let (vault, storage) = ("https://vault.azure.net", "https://storage.azure.com/");
    let rows = |hits| {
        [row(&format!("keys|user-assigned|{keys}|{vault}"), 0), row(&format!("machine|automatic||{storage}"), hits)]
    };
    assert_eq!(second.rows(columns), rows(2));
    assert_eq!(second.value(TOKEN), token);
    world.session().run(&format!("{TOKEN}; {TOKEN}; SELECT managed_identity.authorization_header('storage')"));
    second.run(TOKEN);
    assert_eq!(second.rows(columns), rows(7));
    assert_eq!(world.asked(), 2);
    assert!(!second.rows("TABLE managed_identity.cached_tokens").concat().contains(&token));
    assert_eq!(second.notices().len(), 0, "nothing to say about a shared cache");
}

#[test]
fn two_hundred_sessions_are_one_request_per_identity_and_one_that_hangs_holds_up_no_other() {
    let identities: Vec<_> = (0..10).map(|n| Identity::user(&format!("id{n}"))).collect();
    let options = Options::default().conf("managed_identity.acquire_timeout = '60s'");
    let world = World::with(options, identities.clone());
    let mut admin = world.session();
    for identity in &identities {
        let (name, id) = (&identity.name, &identity.client_id);
        admin.run(&format!("CREATE SERVER {name} FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{id}')"));
    }
    let (log, faults) = (world.emulator.identity().log(), world.emulator.identity().faults());
    let mut sessions: Vec<Session> = (0..200).map(|_| world.session()).collect();
    let (start, storage) = (Barrier::new(sessions.len()), "https://storage.azure.com/");
    faults.add(Rule::new(Fault::HangBeforeHeaders).when(Filter::query(&identities[0].client_id)));
    thread::scope(|scope| {
        let (say, hear) = channel();
        for (n, session) in sessions.iter_mut().enumerate() {
            let (say, start) = (say.clone(), &start);
            scope.spawn(move || {
                start.wait();
                let token = session.value(&format!("SELECT managed_identity.access_token('storage', 'id{}')", n % 10));
                say.send((n % 10, token)).expect("a listener");
            });
        }
        let mut tokens = BTreeSet::new();
        for _ in 0..180 {
            let (identity, token) = hear.recv_timeout(wait::LONG).expect("an answer while one identity hangs");
            assert_ne!(identity, 0);
            tokens.insert((identity, token));
        }
        log.wait_for_held(1, wait::LONG).expect("the one that hangs");
        assert_eq!((log.held(), log.count(), tokens.len()), (1, 10, 9));
        for identity in &identities[1..] {
            assert_eq!(log.counters().issued(&identity.name, storage), 1, "{}", identity.name);
        }
        let waiting = "SELECT state, waiting FROM managed_identity.cached_tokens WHERE identity = 'id0'";
        wait::until("19 wait for one", || admin.rows(waiting) == ["fetching|19"]);
        faults.clear();
        faults.release();
        let late: BTreeSet<_> = (0..20).map(|_| hear.recv_timeout(wait::LONG).expect("the rest")).collect();
        assert_eq!((late.len(), log.count()), (1, 10), "the twenty share one token");
    });
    // All at once for a single one.
    assert_eq!(admin.value("SELECT managed_identity.forget_tokens()"), "10");
    log.clear();
    faults.next(1, Fault::HangBeforeHeaders);
    let tokens: BTreeSet<String> = thread::scope(|scope| {
        let ask = "SELECT managed_identity.access_token('sql', 'id1')";
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| session.value(ask))).collect();
        wait_for_waiting(&mut admin, "database", 199);
        log.wait_for_held(1, wait::LONG).expect("the one request");
        faults.release();
        threads.into_iter().map(|thread| thread.join().expect("a token")).collect()
    });
    assert_eq!((tokens.len(), log.count()), (1, 1));
}

#[test]
fn after_a_failure_of_the_network_or_the_endpoint_nobody_asks_for_a_while() {
    let options = Options::default().conf("managed_identity.acquire_timeout = '1s'");
    let world = World::with(options, vec![Identity::system()]);
    let mut sessions: Vec<Session> = (0..4).map(|_| world.session()).collect();
    let wish = |status| Reply::new(status).header("retry-after", "40");
    strike(&world, "wish429", wish(429));
    strike(&world, "wish503", wish(503));
    strike(&world, "broken", Fault::Reset);
    strike(&world, "slow", Reply::new(429));
    strike(&world, "down", Reply::new(503));
    let cases = [("wish429", "53400"), ("wish503", "58000"), ("broken", "08001"), ("slow", "53400"), ("down", "58000")];
    let mut refusals = Vec::new();
    for (name, sqlstate) in cases {
        let error = sessions[0].error(&call(name));
        assert_eq!(error.code().code(), sqlstate, "{name}: {error:?}");
        for session in &mut sessions {
            assert_eq!(told(&session.error(&call(name))), told(&error), "{name}: all get the same answer");
        }
        assert_eq!(asked(&world, name), 1, "{name}: nobody asked again");
        refusals.push(error);
    }
    let state = "SELECT state, failures, last_error IS NOT NULL, last_error_at <= now()
                 FROM managed_identity.cached_tokens WHERE resource LIKE '%slow%'";
    assert_eq!(world.session().rows(state), ["failed|1|t|t"]);
    // Others are not held up by it.
    sessions[0].run(TOKEN);
    // The endpoint is well again. It is asked once the pause is over, at the first call after it.
    world.emulator.identity().faults().clear();
    for (name, _) in &cases[2..] {
        wait::until(&format!("{name} is asked again"), || sessions[1].try_rows(&call(name)).is_ok());
        assert_eq!(asked(&world, name), 2, "{name}");
    }
    // It wanted to be left alone for longer than the others.
    for ((name, _), refusal) in cases[..2].iter().zip(&refusals) {
        assert_eq!(told(&sessions[3].error(&call(name))), told(refusal), "{name}");
        assert_eq!(asked(&world, name), 1, "{name}");
    }
}

#[test]
fn a_refusal_is_shared_by_those_who_wait_and_not_kept() {
    let world = World::new();
    let faults = world.emulator.identity().faults();
    let mut sessions: Vec<Session> = (0..8).map(|_| world.session()).collect();
    for (name, status) in [("r400", 400), ("r401", 401), ("r403", 403)] {
        faults.next(1, Fault::HangBeforeHeaders);
        strike(&world, name, Reply::new(status).body(r#"{"error": "some_code"}"#));
        let errors: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                sessions.iter_mut().map(|session| scope.spawn(|| session.error(&call(name)))).collect();
            wait_for_waiting(&mut world.session(), name, 7);
            world.emulator.identity().log().wait_for_held(1, wait::LONG).expect("the one request");
            faults.release();
            threads.into_iter().map(|thread| told(&thread.join().expect("an error"))).collect()
        });
        assert_eq!(asked(&world, name), 1, "{name}");
        assert_eq!(errors[0].0, "28000");
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        for (session, asking) in sessions[..2].iter_mut().zip(2..) {
            assert_eq!(session.sqlstate(&call(name)), "28000");
            assert_eq!(asked(&world, name), asking, "{name}: the next call asks again");
        }
        faults.clear();
        sessions[0].run(&call(name));
        assert_eq!(asked(&world, name), 4, "{name}: and gets its token at once");
    }
}

#[test]
fn a_leader_that_goes_leaves_the_fetch_to_one_who_waits() {
    let world = World::new();
    let (log, faults) = (world.emulator.identity().log(), world.emulator.identity().faults());
    let mut admin = world.session();
    for (name, function) in [("cancelled", "pg_cancel_backend"), ("ended", "pg_terminate_backend")] {
        let (mut leader, mut waiter) = (world.session(), world.session());
        let pid = leader.pid();
        faults.next(1, Fault::HangBeforeHeaders);
        thread::scope(|scope| {
            let leading =
                scope.spawn(move || leader.client().simple_query(&call(name)).map_err(|error| error.code().cloned()));
            log.wait_for_held(1, wait::LONG).expect("a leader");
            let waiting = scope.spawn(move || waiter.value(&call(name)));
            wait_for_waiting(&mut admin, name, 1);
            admin.run(&format!("SELECT {function}({pid})"));
            let outcome = leading.join().expect("an outcome").expect_err("its end");
            assert!(function == "pg_terminate_backend" || outcome == Some(SqlState::QUERY_CANCELED), "{outcome:?}");
            let token = waiting.join().expect("a token");
            assert_eq!((log.held(), asked(&world, name)), (1, 2), "{name}: while the first still hangs");
            assert_eq!(admin.value(&call(name)), token);
        });
        let row = format!(
            "SELECT state, fetches, failures, waiting FROM managed_identity.cached_tokens WHERE resource LIKE '%{name}%'"
        );
        assert_eq!(admin.rows(&row), ["ready|1|0|0"], "{name}");
        faults.release();
        log.wait_until("nothing held", wait::LONG, |state| state.held() == 0).expect("a release");
    }
    assert!(world.cluster.log().contains("terminating connection due to administrator command"));
    // Killed: the server makes its shared memory anew, and the tokens with it; the worker fetches again what
    // there was, but not what there never was.
    let (mut leader, mut waiter) = (world.session(), world.session());
    let pid = leader.pid();
    faults.next(1, Fault::HangBeforeHeaders);
    thread::scope(|scope| {
        let leading = scope.spawn(move || leader.client().simple_query(&call("killed")).is_err());
        log.wait_for_held(1, wait::LONG).expect("a leader");
        let waiting = scope.spawn(move || waiter.client().simple_query(&call("killed")).is_err());
        wait_for_waiting(&mut admin, "killed", 1);
        signal("-KILL", pid);
        assert!(leading.join().unwrap() && waiting.join().unwrap(), "all sessions end when one is killed");
    });
    world.cluster.wait_until_back();
    let mut session = world.session();
    session.run(&call("killed"));
    assert_eq!(asked(&world, "killed"), 2);
    let rows = "SELECT state, fetches, waiting FROM managed_identity.cached_tokens";
    wait::until("what there was", || session.rows(rows) == ["ready|1|0"; 3]);
    faults.release();
}

#[test]
fn a_leader_that_is_stopped_or_forgotten_is_overtaken_and_changes_nothing_when_it_comes_back() {
    let world = World::new();
    let (log, faults) = (world.emulator.identity().log(), world.emulator.identity().faults());
    let mut admin = world.session();
    let row = |name| {
        format!(
            "SELECT state, fetches, failures, waiting FROM managed_identity.cached_tokens WHERE resource LIKE '%{name}%'"
        )
    };
    // Stopped: its lease ends, which is a little longer than it would have waited.
    let (mut leader, mut waiter) = (world.session(), world.session());
    let pid = leader.pid();
    leader.run("SET managed_identity.acquire_timeout = '1s'");
    faults.next(1, Fault::HangBeforeHeaders);
    thread::scope(|scope| {
        let leading = scope.spawn(move || leader.sqlstate(&call("stopped")));
        log.wait_for_held(1, wait::LONG).expect("a leader");
        signal("-STOP", pid);
        let token = waiter.try_rows(&call("stopped"));
        signal("-CONT", pid);
        assert_eq!(leading.join().expect("an error"), "08001");
        assert_eq!((log.held(), asked(&world, "stopped")), (1, 2));
        assert_eq!(admin.rows(&call("stopped")), token.expect("a token while the leader is stopped"));
    });
    assert_eq!(admin.rows(&row("stopped")), ["ready|1|0|0"]);
    faults.release();
    log.wait_until("nothing held", wait::LONG, |state| state.held() == 0).expect("a release");
    // Forgotten: a token that was asked for before is not what comes after.
    let (mut leader, mut waiter) = (world.session(), world.session());
    faults.next(1, Fault::HangBeforeHeaders);
    thread::scope(|scope| {
        let leading = scope.spawn(move || leader.value(&call("forgotten")));
        log.wait_for_held(1, wait::LONG).expect("a leader");
        let waiting = scope.spawn(move || waiter.value(&call("forgotten")));
        wait_for_waiting(&mut admin, "forgotten", 1);
        assert_eq!(admin.value("SELECT managed_identity.forget_tokens('https://forgotten.example.com')"), "0");
        let token = waiting.join().expect("a token");
        assert_eq!((log.held(), asked(&world, "forgotten")), (1, 2), "while the first still hangs");
        faults.release();
        assert_ne!(leading.join().expect("a token of its own"), token);
        assert_eq!(admin.value(&call("forgotten")), token);
    });
    assert_eq!(admin.rows(&row("forgotten")), ["ready|1|0|0"]);
}
