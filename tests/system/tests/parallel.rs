//! Parallel plans: what reaches Azure is called by the leader, also while workers run; and COPY takes the rows of all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use server_tests::{Session, World, major, outcome};

const TOKEN: &str = "managed_identity.access_token('storage')";
const SECRET: &str = "azure_key_vault.secret('vault', 'db-password')";

/// A table that is worth workers; `pid` and `run` say that they may be called in a worker, and tell where they were.
fn world() -> (World, Session) {
    let world = World::with_storage();
    let mut session = world.session();
    session.run(
        "CREATE TABLE big AS SELECT a, repeat('x', 50) AS filler FROM generate_series(1, 50000) a; ANALYZE big;
         CREATE FUNCTION pid() RETURNS int PARALLEL SAFE LANGUAGE plpgsql AS 'BEGIN RETURN pg_backend_pid(); END';
         CREATE FUNCTION run(sql text) RETURNS int PARALLEL SAFE LANGUAGE plpgsql
             AS 'BEGIN EXECUTE sql; RETURN pg_backend_pid(); END';
         SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET max_parallel_workers_per_gather = 2",
    );
    (world, session)
}

/// Every query that can runs in a worker from now on.
fn force(session: &mut Session) {
    let setting = if major() < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    session.run(&format!("SET {setting} = on"));
}

/// Runs a query and says whether it did by workers, and whether one of `calls` was among what they did.
fn plan(session: &mut Session, sql: &str, calls: &[&str]) -> (bool, bool) {
    let plan = session.rows(&format!("EXPLAIN (ANALYZE, VERBOSE, TIMING off) {sql}"));
    let gather = plan.iter().position(|line| line.contains("Gather"));
    let launched = plan.iter().any(|line| line.contains("Workers Launched: ") && !line.ends_with(" 0"));
    let below = &plan[gather.map_or(plan.len(), |at| at + 1)..];
    // The lines of a node's own list stand right below it; those of the nodes that workers run are deeper.
    let deeper = below.iter().skip_while(|line| !line.contains("->"));
    let called = deeper.into_iter().any(|line| calls.iter().any(|call| line.contains(call)));
    (launched, called)
}

#[test]
fn the_leader_alone_fetches_and_can_while_workers_run() {
    let (world, mut session) = world();
    for force_it in [false, true] {
        if force_it {
            force(&mut session);
        }
        for (call, right) in [(TOKEN, "length(v) > 100"), (SECRET, "v = 'hunter2'")] {
            session.run("SELECT managed_identity.forget_tokens()");
            let asked = world.asked();
            let rows = format!("SELECT a, {call} AS v FROM big WHERE a % 25000 = 0");
            let sql = format!("SELECT count(*), bool_and({right}), count(DISTINCT v) FROM ({rows} OFFSET 0) r");
            assert_eq!(session.rows(&sql), ["2|t|1"], "{call}");
            assert_eq!(world.asked(), asked + 1, "{call}: fetched within a parallel plan, once");
            let calls = ["access_token", "secret"];
            assert_eq!(plan(&mut session, &sql, &calls), (true, false), "{call}");
        }
        let joined = "SELECT count(*) FROM big, managed_identity.cached_tokens";
        assert_eq!(session.rows(joined), ["50000"]);
        assert_eq!(plan(&mut session, joined, &["cached_tokens"]), (true, false));
    }
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.resource_aliases"), "11", "by a worker");
    assert_eq!(
        plan(&mut session, "SELECT count(*) FROM managed_identity.resource_aliases", &["aliases"]),
        (true, true)
    );
}

#[test]
fn a_blob_gets_the_rows_of_all_workers() {
    let (world, mut session) = world();
    force(&mut session);
    // Else it might be through before the workers begin.
    session.run("SET parallel_leader_participation = off");
    let own = session.pid().to_string();
    let url = world.url("box/big.csv");
    assert_eq!(session.count(&format!("COPY (SELECT a, pid() FROM big) TO '{url}'")), 50_000);
    let blob = world.azurite().text("box/big.csv");
    assert!(blob.lines().all(|line| line.rsplit(',').next() != Some(&own)), "none is the leader's");
    let mut rows: Vec<u32> = blob.lines().map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    rows.sort_unstable();
    assert!(rows.into_iter().eq(1..=50_000));
    session.run("CREATE TABLE back (a int, pid int)");
    assert_eq!(session.count(&format!("COPY back FROM '{url}'")), 50_000);
}

#[test]
fn what_is_called_safe_and_is_not_ends_in_a_worker_as_it_does_with_a_file() {
    let (world, mut session) = world();
    session.run("CREATE TABLE back (a int)");
    let own = session.pid().to_string();
    force(&mut session);
    // The server's own folder, for it writes there.
    let file = world.cluster.data_folder().join("rows.csv").to_str().unwrap().to_owned();
    for statement in ["COPY (SELECT 1) TO '{}' WITH (FORMAT csv)", "COPY back FROM '{}' WITH (FORMAT csv)"] {
        let mut run = |place: &str| {
            let sql = format!("SELECT run($c${}$c$)", statement.replace("{}", place));
            let said = outcome(&mut session, &sql);
            // Where it went well, in the worker.
            if said.starts_with("COPY 1") {
                assert_ne!(session.value(&sql), own);
            }
            said.replace(place, "PLACE").lines().filter(|line| !line.starts_with("at: ")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(run(&world.url("box/rows.csv")), run(&file));
    }
    for call in [TOKEN, SECRET] {
        session.run("SELECT managed_identity.forget_tokens()");
        assert_ne!(session.value(&format!("SELECT run($c$SELECT {call}$c$)")), own);
    }
}
