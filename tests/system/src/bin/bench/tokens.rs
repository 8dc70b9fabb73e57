//! Tokens: warm, a million times, and cold for 200 sessions at once.

use std::sync::Barrier;
use std::time::Duration;

use emulator::Fault;
use server_tests::{Session, World};

use crate::measure::{in_turn, line, median, seconds};

pub fn run(world: &World) {
    per_transaction(world);
    in_one_statement(world);
    cold_for_all(world);
}

fn per_transaction(world: &World) {
    let mut session = world.session();
    let length = session.value("SELECT length(managed_identity.access_token('storage'))");
    let token = world.cluster.file("token.sql", "SELECT managed_identity.access_token('storage');\n");
    let repeat = world.cluster.file("repeat.sql", format!("SELECT repeat('x', {length});\n"));
    let tps = |script: &str| {
        let mut pgbench = world.cluster.program("pgbench");
        let output = pgbench.args(["-n", "-T", "2", "-f", script, "postgres"]).output().expect("pgbench runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
        tps.and_then(|tps| tps.parse::<f64>().ok()).expect("transactions per second")
    };
    let [ours, theirs] = in_turn(&mut [&mut || tps(&token), &mut || tps(&repeat)]);
    line("warm access_token per transaction / repeat('x', n), tps", ours / theirs, ">= 0.95");
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
    println!("{:<64} {most_requests:>10}   1", "  requests they made");
}
