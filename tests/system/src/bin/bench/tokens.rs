//! Tokens: warm, a million times, and cold for hundreds of sessions at once.

use std::sync::Barrier;
use std::time::Duration;

use emulator::{Fault, Identity};
use server_tests::{Options, Session, World};

use crate::measure::{figure, in_turn, line, median, seconds};

pub fn run(world: &World) {
    per_transaction(world);
    in_one_statement(world);
    cold_for_all(world);
}

/// Transactions per second of a script in so many clients.
fn tps(world: &World, script: &str, clients: u32) -> f64 {
    let mut pgbench = world.cluster.program("pgbench");
    let threads = clients.min(2).to_string();
    pgbench.args(["-n", "-T", "2", "-c", &clients.to_string(), "-j", &threads, "-f", script, "postgres"]);
    let output = pgbench.output().expect("pgbench runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
    tps.and_then(|tps| tps.parse::<f64>().ok()).expect("transactions per second")
}

fn per_transaction(world: &World) {
    let mut session = world.session();
    let length = session.value("SELECT length(managed_identity.access_token('storage'))");
    let token = world.cluster.file("token.sql", "SELECT managed_identity.access_token('storage');\n");
    let repeat = world.cluster.file("repeat.sql", format!("SELECT repeat('x', {length});\n"));
    let [ours, theirs] = in_turn(&mut [&mut || tps(world, &token, 1), &mut || tps(world, &repeat, 1)]);
    line("warm access_token per transaction / repeat('x', n), tps", ours / theirs, ">= 0.95");
}

/// With many sessions and many tokens.
pub fn run_crowded() {
    const IDENTITIES: usize = 20;
    let identities: Vec<_> = (0..IDENTITIES).map(|nth| Identity::user(&format!("u{nth}"))).collect();
    let options = Options::default().conf("max_connections = 600").conf("managed_identity.cache_entries = 300");
    let mut assigned = identities.clone();
    assigned.extend([Identity::system(), Identity::user("keys")]);
    let world = World::with(options, assigned);
    cold_for_many(&world, &identities);
    with_entries(&world);
    with_clients(&world);
}

fn cold_for_many(world: &World, identities: &[Identity]) {
    const SESSIONS: usize = 500;
    let mut admin = world.session();
    for Identity { name, client_id, .. } in identities {
        let options = format!("OPTIONS (client_id '{client_id}')");
        admin.run(&format!("CREATE SERVER {name} FOREIGN DATA WRAPPER managed_identity {options}"));
    }
    let mut sessions: Vec<Session> = (0..SESSIONS).map(|_| world.session()).collect();
    world.emulator.identity().log().clear();
    let start = Barrier::new(SESSIONS);
    std::thread::scope(|scope| {
        for (session, identity) in sessions.iter_mut().zip(identities.iter().cycle()) {
            let (start, name) = (&start, &identity.name);
            scope.spawn(move || {
                start.wait();
                session.run(&format!("SELECT managed_identity.access_token('storage', '{name}')"));
            });
        }
    });
    let requests = world.emulator.identity().log().count();
    figure("requests of 500 cold sessions over 20 identities", requests as f64, "", "20");
}

fn with_entries(world: &World) {
    let mut admin = world.session();
    let mut one = world.session();
    let calls = "SELECT count(managed_identity.access_token('storage')) FROM generate_series(1, 300000)";
    admin.run("SELECT managed_identity.forget_tokens()");
    one.run(calls);
    let mut warm = Vec::new();
    let mut live = 1;
    for entries in [1, 64, 256] {
        while live < entries {
            admin.run(&format!("SELECT managed_identity.access_token('https://r{live}.example.com')"));
            live += 1;
        }
        warm.push(median((0..5).map(|_| seconds(|| one.run(calls))).collect()));
    }
    line("warm call with 64 live entries / with 1, time", warm[1] / warm[0], "flat");
    line("warm call with 256 live entries / with 1, time", warm[2] / warm[0], "flat");
}

fn with_clients(world: &World) {
    let token = world.cluster.file("token.sql", "SELECT managed_identity.access_token('storage');\n");
    let one = world.cluster.file("one.sql", "SELECT 1;\n");
    let mut alone = None;
    for clients in [1, 2, 8, 64] {
        let [ours, theirs] = in_turn(&mut [&mut || tps(world, &token, clients), &mut || tps(world, &one, clients)]);
        match alone {
            None => alone = Some((ours, theirs)),
            Some((our_one, their_one)) => {
                let what = format!("scaling from 1 to {clients} clients / that of SELECT 1, tps");
                line(&what, (ours / our_one) / (theirs / their_one), "1");
            }
        }
    }
}

fn in_one_statement(world: &World) {
    let (mut a, mut b) = (world.session(), world.session());
    let time = |session: &mut Session, call: &str| {
        seconds(|| session.run(&format!("SELECT count({call}) FROM generate_series(1, 1000000) i")))
    };
    let [ours, theirs] = in_turn(&mut [&mut || time(&mut a, "managed_identity.access_token('storage')"), &mut || {
        time(&mut b, "md5(i::text)")
    }]);
    line("1,000,000 warm calls in one statement / md5(i::text), time", ours / theirs, "<= 1");
}

fn cold_for_all(world: &World) {
    const SESSIONS: usize = 200;
    let identity = world.emulator.identity();
    identity.faults().always(Fault::delay(Duration::from_millis(50)));
    let fetch = "SELECT managed_identity.access_token('storage')";
    let mut ratios = Vec::new();
    let mut most_requests = 0;
    for _ in 0..5 {
        let mut sessions: Vec<Session> = (0..SESSIONS).map(|_| world.session()).collect();
        let mut one = world.session();
        one.run("SELECT managed_identity.forget_tokens()");
        let alone = seconds(|| one.run(fetch));
        one.run("SELECT managed_identity.forget_tokens()");
        identity.log().clear();
        let start = Barrier::new(SESSIONS + 1);
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = sessions
                .iter_mut()
                .map(|session| {
                    scope.spawn(|| {
                        start.wait();
                        session.run(fetch);
                    })
                })
                .collect();
            start.wait();
            seconds(|| threads.into_iter().for_each(|thread| thread.join().expect("a session")))
        });
        ratios.push(all / alone);
        most_requests = most_requests.max(identity.log().count());
    }
    identity.faults().clear();
    line("200 cold sessions at once, the last / one alone, time", median(ratios), "<= 2");
    figure("  requests they made", most_requests as f64, "", "1");
}
