//! The background worker: tokens are there before anybody asks, whoever is killed meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use emulator::{Entry, Fault, Filter, Identity, Rule};
use server_tests::{Options, Session, World, major, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const STATE: &str = "SELECT state FROM managed_identity.cached_tokens ORDER BY 1";

/// The worker's process, as the operating system shows it: no session is needed to find it.
fn worker(world: &World) -> Option<i32> {
    let postmaster = world.cluster.postmaster();
    let is_ours = |pid: &i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("cmdline").starts_with("postgres: managed_identity renewal")
            && read("status").contains(&format!("\nPPid:\t{postmaster}\n"))
    };
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.into_iter().find(is_ours)
}

fn kill(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// The times of the requests for each token, in seconds.
fn times(requests: &[Entry]) -> BTreeMap<String, Vec<f64>> {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for entry in requests {
        let at = entry.at.duration_since(requests[0].at).unwrap().as_secs_f64();
        times.entry(entry.raw_query.clone()).or_default().push(at);
    }
    times
}

/// What a session is given without asking the endpoint.
fn is_warm(world: &World, session: &mut Session, sql: &str) {
    let before = world.asked();
    assert!(session.value(sql).starts_with("ey"), "{sql}");
    assert_eq!(world.asked(), before, "{sql}: it was there");
}

#[test]
fn for_two_minutes_with_nobody_connected_tokens_are_renewed_before_they_end_though_the_worker_is_killed() {
    const LIFE: i64 = 20;
    let world = World::new();
    let identity = world.emulator.identity();
    identity.set_token_life(LIFE);
    let keys = "SELECT managed_identity.access_token('key-vault', 'keys')";
    let mut session = world.session();
    session.run(TOKEN);
    session.run(keys);
    drop(session);
    // A renewal is due five seconds before the end, or one more: some eight of them in two minutes, twice.
    for round in 1..=8 {
        identity.log().wait_for_requests(2 + 2 * round, wait::LONG).unwrap();
        match round {
            // Right after a renewal: it is back before the next one.
            2 => kill("-TERM", worker(&world).expect("a worker")),
            // All of the server's memory goes with it.
            5 => kill("-KILL", worker(&world).expect("a worker")),
            _ => {}
        }
    }
    let requests = identity.log().requests();
    for (token, times) in times(&requests) {
        assert!(times.len() >= 8 && *times.last().unwrap() > 100.0, "{token}: {times:?}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] < LIFE as f64), "{token}: {times:?}");
    }
    assert!(world.cluster.log().contains("all server processes terminated; reinitializing"));
    let mut session = world.session();
    is_warm(&world, &mut session, TOKEN);
    is_warm(&world, &mut session, keys);
    assert_eq!(session.rows(STATE), ["ready", "ready"]);
}

#[test]
fn while_the_endpoint_is_down_tokens_are_served_tries_grow_rare_and_all_heals_by_itself() {
    let world = World::new();
    let identity = world.emulator.identity();
    let mut session = world.session();
    identity.set_token_life(30);
    identity.set_refresh_in(Some(2));
    session.run(TOKEN);
    // 400 is asked once a try.
    identity.faults().always(Fault::status(400));
    identity.log().wait_for_requests(5, wait::LONG).unwrap();
    is_warm(&world, &mut session, TOKEN);
    assert_eq!(
        session.rows("SELECT state, failures > 1, last_error IS NOT NULL FROM managed_identity.cached_tokens"),
        ["ready|t|t"]
    );
    let tries = times(&identity.log().requests()[1..]).into_values().next().unwrap();
    let pauses: Vec<f64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "each longer than the one before: {pauses:?}");
    assert!(world.cluster.log().contains("could not renew the access token for \"https://storage.azure.com/\""));
    wait::until("the token has ended", || session.rows(STATE) != ["ready"]);
    identity.faults().clear();
    wait::until("a token again", || session.rows(STATE) == ["ready"]);
    is_warm(&world, &mut session, TOKEN);
}

#[test]
fn a_service_that_is_updated_for_a_minute_costs_no_valid_token_and_no_restart() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let identity = world.emulator.identity();
    let mut session = world.session();
    identity.set_refresh_in(Some(1));
    session.run(TOKEN);
    identity.faults().always(Fault::status(410));
    let refused = |requests: &[Entry]| requests.last().is_some_and(|last| last.status == Some(410));
    identity.log().wait_until("a 410", wait::LONG, |state| refused(state.requests())).unwrap();
    // One, unless the worker was faster than the fault.
    let fetches = "SELECT max(fetches) FROM managed_identity.cached_tokens";
    let before = session.value(fetches);
    let lasted_a_minute = |requests: &[Entry]| match requests {
        [_, first, .., last] => last.at.duration_since(first.at).unwrap() > Duration::from_secs(60),
        _ => false,
    };
    identity.log().wait_until("a minute of 410", 2 * wait::LONG, |state| lasted_a_minute(state.requests())).unwrap();
    is_warm(&world, &mut session, TOKEN);
    session.run("SET managed_identity.acquire_timeout = '100ms'");
    assert_eq!(session.sqlstate("SELECT managed_identity.access_token('sql')"), "58000");
    assert_eq!(session.value(fetches), before);
    identity.set_refresh_in(None);
    identity.faults().clear();
    // A minute after the last try at the latest.
    let succeeded = |requests: &[Entry]| requests.last().is_some_and(|last| last.status == Some(200));
    identity.log().wait_until("a renewal", 2 * wait::LONG, |state| succeeded(state.requests())).unwrap();
    wait::until("the renewed token", || session.value(fetches) != before);
    wait::until("a token that was refused", || session.try_rows("SELECT managed_identity.access_token('sql')").is_ok());
}

#[test]
fn an_endpoint_that_hangs_holds_up_neither_the_start_nor_other_tokens_nor_the_workers_end() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let identity = world.emulator.identity();
    identity.set_token_life(20);
    let mut session = world.session();
    let other = "SELECT managed_identity.access_token('sql')";
    session.run(TOKEN);
    session.run(other);
    let hangs = Rule::new(Fault::HangBeforeHeaders).when(Filter::query("storage.azure.com"));
    identity.faults().add(hangs);
    identity.log().wait_for_held(1, wait::LONG).unwrap();
    let renewed = || identity.log().requests().iter().filter(|entry| entry.raw_query.contains("database")).count();
    wait::until("the other was renewed", || renewed() >= 2);
    is_warm(&world, &mut session, TOKEN);
    // The worker waits for an answer: it ends all the same, and the one after it, too.
    let first = worker(&world).expect("a worker");
    kill("-TERM", first);
    wait::until("another worker", || worker(&world).is_some_and(|pid| pid != first));
    drop(session);
    world.cluster.restart();
    let mut session = world.session();
    wait::until("a worker", || worker(&world).is_some());
    assert!(!world.cluster.log().contains("FATAL"), "to end a worker is no failure");
    assert_eq!(session.rows(STATE), Vec::<String>::new(), "a restart begins anew");
    assert!(session.value(other).starts_with("ey"));
    identity.faults().clear();
    identity.faults().release();
}

#[test]
fn what_settings_no_longer_mean_is_not_renewed_and_goes_with_its_end() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let identity = world.emulator.identity();
    let mut session = world.session();
    identity.set_token_life(20);
    session.run(TOKEN);
    world.set("managed_identity.imds_api_version", "2019-08-01");
    session.run(TOKEN);
    let asked = |version: &str| {
        identity.log().requests().iter().filter(|entry| entry.query("api-version") == Some(version)).count()
    };
    wait::until("the new one was renewed", || asked("2019-08-01") >= 3);
    assert_eq!(asked("2018-02-01"), 1);
    let rows = "SELECT count(*) FROM managed_identity.cached_tokens";
    wait::until("one entry is left", || session.value(rows) == "1");
    // Switched off it renews nothing, at once.
    world.set("managed_identity.refresh_ahead", "off");
    wait::until("the token has ended", || session.rows(STATE) == ["expired"]);
    let before = world.asked();
    assert!(session.value(TOKEN).starts_with("ey"));
    assert_eq!(world.asked(), before + 1);
}

#[test]
fn the_worker_shows_where_it_should() {
    let world = World::new();
    let mut session = world.session();
    let activity = "SELECT wait_event_type, wait_event FROM pg_stat_activity
                    WHERE backend_type = 'managed_identity renewal'";
    let named = if major() < 17 { "Extension|Extension" } else { "Extension|ManagedIdentityRenewalMain" };
    wait::until("it sleeps", || session.rows(activity) == [named]);
    let pid = session.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'managed_identity renewal'");
    assert_eq!(session.value("SELECT worker_pid FROM managed_identity.status"), pid);
}
