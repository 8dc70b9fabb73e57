//! The room of the cache: which tokens it keeps and which it does not, and that it forgets for good.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::process::Command;

use emulator::{Config, Emulator, Fault, Filter, Identity, Pki, Reply, Rule};
use server_tests::{Cluster, Options, Session, World, major, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";

/// A call for a resource of its own, whose requests a filter finds by `name`.
fn call(name: &str) -> String {
    format!("SELECT managed_identity.access_token('https://{name}.example.com')")
}

fn world(conf: &[&str]) -> World {
    let options = conf.iter().fold(Options::default(), |options, line| options.conf(*line));
    World::with(options, vec![Identity::system()])
}

/// How often the endpoint was asked with `name` in the query.
fn asked(world: &World, name: &str) -> usize {
    let log = world.emulator.identity().log().requests();
    log.iter().filter(|entry| entry.raw_query.contains(name)).count()
}

fn strike(world: &World, name: &str, fault: impl Into<Fault>) {
    world.emulator.identity().faults().add(Rule::new(fault).when(Filter::query(name)));
}

#[test]
fn a_token_of_any_length_is_served_whole_and_kept_where_there_is_room() {
    // Room for two of the longest tokens, and for small ones beside them.
    let world = world(&["managed_identity.cache_entries = 8"]);
    let (mut one, mut two) = (world.session(), world.session());
    let cached = "SELECT count(*) FROM managed_identity.cached_tokens WHERE state = 'ready'";
    let token = |resource: &str| format!("SELECT managed_identity.access_token('{resource}')");
    for size in [16_384, 20_000, 65_536] {
        world.emulator.identity().set_token_size(Some(size));
        one.run("SELECT managed_identity.forget_tokens()");
        world.emulator.identity().log().clear();
        for session in [&mut one, &mut two] {
            let token = session.value(TOKEN);
            let issued = world.emulator.identity().log().issued_tokens().pop();
            assert!(token.len() == size && Some(token) == issued, "{size}: the token came whole");
        }
        assert_eq!(
            one.value("SELECT length(managed_identity.authorization_header('storage'))"),
            (size + 7).to_string()
        );
        assert_eq!((world.asked(), two.value(cached).as_str()), (1, "1"), "{size}");
    }
    // The second has room, the third has none: it is served all the same, to everybody anew.
    for (resource, requests, entries) in [("sql", 1, "2"), ("graph", 2, "2")] {
        world.emulator.identity().log().clear();
        for session in [&mut one, &mut two] {
            assert_eq!(session.value(&token(resource)).len(), 65_536, "{resource}");
        }
        assert_eq!((world.asked(), two.value(cached).as_str()), (requests, entries), "{resource}");
    }
    // What is forgotten gives its room back, and leaves nothing to who takes it.
    one.run("SELECT managed_identity.forget_tokens('graph')");
    strike(&world, "refused", Reply::new(400));
    assert_eq!(one.sqlstate(&call("refused")), "28000");
    let times = "SELECT expires_at, refresh_at, fetched_at FROM managed_identity.cached_tokens WHERE state = 'failed'";
    assert_eq!(one.rows(times), ["||"]);
    assert_eq!(one.value("SELECT managed_identity.forget_tokens('sql')"), "1");
    world.emulator.identity().log().clear();
    for session in [&mut one, &mut two] {
        session.run(&token("graph"));
    }
    assert_eq!((world.asked(), two.value(cached).as_str()), (1, "2"));
    world.emulator.identity().set_token_size(Some(65_537));
    for session in [&mut one, &mut two] {
        assert_eq!(session.sqlstate(&token("management")), "54000");
    }
    world.emulator.identity().set_token_size(None);
    one.run(&token("management"));
    assert_eq!(two.value(cached), "3");
}

#[test]
fn invented_resources_and_failures_never_evict_a_token() {
    let world = world(&["managed_identity.cache_entries = 8", "managed_identity.acquire_timeout = '1s'"]);
    let mut session = world.session();
    strike(&world, "invented", Reply::new(400));
    strike(&world, "unwell", Reply::new(503));
    let valid = |session: &mut Session, names: std::ops::Range<usize>| {
        for n in names {
            session.run(&call(&format!("valid{n}-")));
        }
    };
    let invent = |kind: &str, sqlstate: &str| {
        for n in 0..20 {
            assert_eq!(world.session().sqlstate(&call(&format!("{kind}{n}-"))), sqlstate);
        }
    };
    valid(&mut session, 0..4);
    invent("invented", "28000");
    valid(&mut world.session(), 0..4);
    assert_eq!(asked(&world, "valid"), 4, "nothing was lost");
    // What failed makes room for what works.
    valid(&mut session, 4..8);
    valid(&mut world.session(), 0..8);
    assert_eq!(asked(&world, "valid"), 8);
    invent("invented", "28000");
    invent("unwell", "58000");
    valid(&mut world.session(), 0..8);
    assert_eq!(asked(&world, "valid"), 8, "nothing was lost");
    // One more than there is room for is served, and costs none of the others its place.
    valid(&mut session, 8..9);
    valid(&mut world.session(), 0..8);
    assert_eq!(asked(&world, "valid"), 9);
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.cached_tokens WHERE state = 'ready'"), "8");
}

/// Whether any of these texts is anywhere in the memory that the server's processes share.
fn in_shared_memory(cluster: &Cluster, texts: &[&str]) -> Vec<bool> {
    let process = format!("/proc/{}", cluster.postmaster());
    let memory = File::open(format!("{process}/mem")).expect("the server's memory");
    let maps = fs::read_to_string(format!("{process}/maps")).expect("its map");
    let mut found = vec![false; texts.len()];
    for line in maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|mode| mode == "rw-s")) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).expect("an address"));
        let mut bytes = vec![0; usize::try_from(end - start).expect("a length")];
        memory.read_exact_at(&mut bytes, start).unwrap_or_else(|error| panic!("{line}: {error}"));
        let content = String::from_utf8_lossy(&bytes);
        for (found, text) in found.iter_mut().zip(texts) {
            *found |= content.contains(text);
        }
    }
    found
}

#[test]
fn a_token_that_is_dropped_is_wiped() {
    let world = world(&["shared_buffers = '1MB'", "managed_identity.cache_entries = 8"]);
    let probe = File::open(format!("/proc/{}/mem", world.cluster.postmaster()));
    if probe.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
        eprintln!("left out: a_token_that_is_dropped_is_wiped (only root may read a server's memory)");
        return;
    }
    let mut session = world.session();
    let kept = session.value("SELECT managed_identity.access_token('sql')");
    let token = session.value(TOKEN);
    // The signature: all else is much the same in every token.
    let (start, end) = (token.len() - 300, token.len() - 60);
    let pieces = [&kept[kept.len() - 60..], &token[start..start + 60], &token[end..]];
    assert_eq!(in_shared_memory(&world.cluster, &pieces), [true, true, true], "the search finds what is there");
    assert_eq!(session.value("SELECT managed_identity.forget_tokens('storage')"), "1");
    assert_eq!(in_shared_memory(&world.cluster, &pieces), [true, false, false]);
    // Shorter or longer, a token leaves nothing of the one before it in its place.
    world.emulator.identity().set_token_life(1);
    let short = session.value(TOKEN);
    world.emulator.identity().set_token_life(3600);
    wait::until("the next token", || session.value(TOKEN) != short);
    let next = session.value(TOKEN);
    let pieces = [&next[next.len() - 60..], &short[short.len() - 60..]];
    assert_eq!(in_shared_memory(&world.cluster, &pieces), [true, false]);
    // What has no room is never there. In two pieces no shorter than a chunk, one lies within one.
    world.emulator.identity().set_token_size(Some(65_536));
    for (resource, kept) in [("graph", true), ("management", true), ("service-bus", false)] {
        let large = session.value(&format!("SELECT managed_identity.access_token('{resource}')"));
        let (tail, before) = (&large[large.len() - 60..], &large[large.len() - 160..large.len() - 100]);
        let found = in_shared_memory(&world.cluster, &[tail, before]);
        assert_eq!(found.contains(&true), kept, "{resource}");
    }
}

#[test]
fn from_17_on_sessions_share_tokens_and_a_worker_renews_them_without_preloading_too() {
    if major() < 17 {
        eprintln!("left out on {}: shared tokens without preloading (the memory for them came with 17)", major());
        return;
    }
    let world = World::with(Options { not_preloaded: true, ..Options::default() }, vec![Identity::system()]);
    world.emulator.identity().set_token_life(8);
    let (mut one, mut two) = (world.session(), world.session());
    let token = one.value(TOKEN);
    assert_eq!(two.value(TOKEN), token);
    assert_eq!(world.asked(), 1);
    assert!(one.notices().is_empty() && two.notices().is_empty());
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'managed_identity renewal'";
    wait::until("a worker", || two.value(workers) == "1");
    // Nobody is left who has a copy of its own.
    drop((one, two));
    world.emulator.identity().log().wait_for_requests(3, wait::LONG).expect("renewals");
    let mut three = world.session();
    assert_ne!(three.value(TOKEN), token);
    assert_eq!((world.asked(), three.value(workers).as_str()), (3, "1"));
    // Ended, it is back; killed, so is the server, and begins anew.
    three.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'managed_identity renewal'");
    let pid = three.value("SELECT pg_backend_pid()");
    world.emulator.identity().log().wait_for_requests(4, wait::LONG).expect("a renewal by the next worker");
    assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("kill").success());
    drop(three);
    world.cluster.wait_until_back();
    let mut four = world.session();
    let asked = world.asked();
    four.run(TOKEN);
    assert_eq!(world.session().value(TOKEN), four.value(TOKEN));
    assert_eq!(world.asked(), asked + 1);
    wait::until("a worker", || four.value(workers) == "1");
}

#[test]
fn without_preloading_each_session_fetches_for_itself_and_is_told_once() {
    let emulator = Emulator::start(Config::new(Pki::create().expect("certificates"))).expect("an emulator");
    // With `mmap` shared memory is a file, where no token may stand; before 17 it makes no difference.
    let options = Options { not_preloaded: true, ..Options::default() }.conf("dynamic_shared_memory_type = mmap");
    let cluster =
        Cluster::start(options.conf(format!("managed_identity.imds_endpoint = '{}'", emulator.imds_endpoint())));
    cluster.session().run("CREATE EXTENSION managed_identity");
    let (mut one, mut two) = (cluster.session(), cluster.session());
    let mut tokens = BTreeSet::new();
    for session in [&mut one, &mut two] {
        let token = session.value(TOKEN);
        let notices = session.notices();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert_eq!(notices[0].severity(), "NOTICE");
        assert!(notices[0].hint().is_some_and(|hint| hint.contains("shared_preload_libraries")), "{notices:?}");
        for _ in 0..3 {
            assert_eq!(session.value(TOKEN), token);
        }
        session.run("SELECT managed_identity.access_token('sql')");
        assert!(session.notices().is_empty(), "once");
        assert_eq!(session.value("SELECT sum(hits) FROM managed_identity.cached_tokens"), "3");
        tokens.insert(token);
    }
    assert_eq!((tokens.len(), emulator.identity().log().count()), (2, 4));
    assert_eq!(one.value("SELECT managed_identity.forget_tokens()"), "2");
    one.run(TOKEN);
    two.run(TOKEN);
    assert_eq!(emulator.identity().log().count(), 5, "the other session has its own");
    // Failures and refusals are as with a shared cache.
    emulator.identity().faults().next(1, Fault::status(400));
    assert_eq!(one.sqlstate(&call("refused")), "28000");
    one.run(&call("refused"));
}
