//! A hot standby: all that writes no table works there, with the primary's servers and grants, and goes on when the
//! standby is promoted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::thread;

use emulator::{Fault, Filter, Rule};
use server_tests::{ACCOUNT, Cluster, Session, World, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const SECRET: &str = "SELECT azure_key_vault.secret('vault', 'db-password')";

/// A world with a table of two rows and role `etl`, who may call everything and use no server; and its standby.
fn world() -> (World, Cluster) {
    let world = World::with_storage();
    drop(world.role("etl"));
    world.session().run(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); GRANT ALL ON t TO etl;
         GRANT EXECUTE ON FUNCTION managed_identity.access_token, azure_key_vault.secret TO etl",
    );
    let standby = world.cluster.standby();
    standby.catch_up(&world.cluster);
    (world, standby)
}

#[test]
fn a_standby_gets_tokens_and_secrets_and_writes_blobs_and_no_table() {
    let (world, standby) = world();
    let mut session = standby.session();
    assert_eq!(session.value("SELECT pg_is_in_recovery()"), "t");
    let token = session.value(TOKEN);
    assert_eq!(session.value(TOKEN), token);
    assert_eq!(world.asked(), 1, "it has a cache, and one of its own");
    assert_ne!(world.session().value(TOKEN), token);
    assert_ne!(session.value("SELECT managed_identity.access_token('storage', NULL, true)"), token);
    assert_eq!(session.value(SECRET), "hunter2");
    let cached =
        "SELECT string_agg(identity || ' ' || state, ', ' ORDER BY identity) FROM managed_identity.cached_tokens";
    assert_eq!(session.value(cached), "keys ready, machine ready");

    let url = |name: &str| world.url(&format!("box/{name}"));
    assert_eq!(session.count(&format!("COPY (SELECT a * 2 FROM t ORDER BY a) TO '{}'", url("query.csv"))), 2);
    assert_eq!(world.azurite().text("box/query.csv"), "2\n4\n");
    session.run("SET azure_storage.blob_block_size_mb = 1");
    let large = "SELECT repeat('x', 999) FROM generate_series(1, 4000)";
    assert_eq!(session.count(&format!("COPY ({large}) TO '{}'", url("large.csv"))), 4000);
    assert_eq!(world.azurite().text("box/large.csv").len(), 4_000_000);
    assert_eq!(session.count(&format!("COPY t TO '{}'", url("table.csv.gz"))), 2);

    // As core says it of a file, and before anything is read.
    let file = standby.file("t.csv", "3\n");
    let core = session.error(&format!("COPY t FROM '{file}' WITH (FORMAT csv)"));
    let requests = world.proxy().log().count();
    let ours = session.error(&format!("COPY t FROM '{}'", url("query.csv")));
    assert_eq!((ours.code().code(), ours.message()), ("25006", core.message()));
    assert_eq!(world.proxy().log().count(), requests);
    let create = "CREATE SERVER more FOREIGN DATA WRAPPER azure_storage";
    assert_eq!(session.sqlstate(create), "25006");
    assert_eq!(session.value("SELECT managed_identity.forget_tokens()"), "2");
}

#[test]
fn what_the_primary_grants_revokes_and_alters_counts_in_open_sessions_as_soon_as_it_is_replayed() {
    let (world, standby) = world();
    let copy = format!("COPY t TO '{}'", world.url("box/a.csv"));
    let mut etl = standby.session_as("etl");
    let mut primary = world.session();
    let change = |primary: &mut Session, sql: &str| {
        primary.run(sql);
        standby.catch_up(&world.cluster);
    };
    let outcomes = |etl: &mut Session| {
        [TOKEN, SECRET, &copy].map(|sql| etl.try_rows(sql).map_or_else(|e| e.code().code().to_owned(), |_| "ok".into()))
    };
    assert_eq!(outcomes(&mut etl), ["42501", "42501", "42501"]);
    change(&mut primary, &format!("GRANT USAGE ON FOREIGN SERVER machine, vault, {ACCOUNT} TO etl"));
    assert_eq!(outcomes(&mut etl), ["ok", "ok", "ok"]);
    change(&mut primary, "REVOKE USAGE ON FOREIGN SERVER vault FROM etl; CREATE ROLE team ROLE etl");
    assert_eq!(outcomes(&mut etl), ["ok", "42501", "ok"]);
    change(&mut primary, "GRANT USAGE ON FOREIGN SERVER vault TO team");
    assert_eq!(outcomes(&mut etl), ["ok", "ok", "ok"]);
    change(
        &mut primary,
        &format!("ALTER SERVER {ACCOUNT} OPTIONS (ADD access 'read'); ALTER SERVER vault OPTIONS (DROP allow)"),
    );
    assert_eq!(outcomes(&mut etl), ["ok", "42501", "42501"]);
    change(&mut primary, "REVOKE EXECUTE ON FUNCTION managed_identity.access_token FROM etl; DROP SERVER vault");
    assert_eq!(outcomes(&mut etl), ["42501", "42704", "42501"]);
}

#[test]
fn what_is_under_way_while_a_standby_is_promoted_ends_well_and_its_session_then_writes() {
    let (world, standby) = world();
    let (identity, proxy) = (world.emulator.identity(), world.proxy());
    let (mut fetching, mut copying) = (standby.session(), standby.session());
    // What it needs, so that it hangs at the blob.
    copying.run(TOKEN);
    identity.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::query("sql.example.com")).times(1));
    proxy.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::method("PUT")).times(1));
    let url = world.url("box/a.csv");
    thread::scope(|scope| {
        let fetch = scope.spawn(|| {
            let token = fetching.value("SELECT managed_identity.access_token('https://sql.example.com')");
            let entry = identity.log().requests().into_iter().find(|entry| entry.token.as_ref() == Some(&token));
            assert_eq!(entry.unwrap().resource.as_deref(), Some("https://sql.example.com"));
            fetching.run("INSERT INTO t VALUES (3)");
            assert_eq!(fetching.value("SELECT managed_identity.access_token('https://sql.example.com')"), token);
        });
        let copy = scope.spawn(|| {
            assert_eq!(copying.count(&format!("COPY (SELECT a FROM t ORDER BY a LIMIT 2) TO '{url}'")), 2);
            assert_eq!(copying.count(&format!("COPY t FROM '{url}'")), 2);
        });
        identity.log().wait_for_held(1, wait::LONG).expect("the fetch");
        proxy.log().wait_for_held(1, wait::LONG).expect("the blob");
        standby.promote();
        assert_eq!(standby.session().value("SELECT pg_is_in_recovery()"), "f");
        assert!(!fetch.is_finished() && !copy.is_finished(), "promoted in the middle of both");
        identity.faults().release();
        proxy.faults().release();
        fetch.join().expect("a token");
        copy.join().expect("a blob");
    });
    assert_eq!(standby.session().value("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t"), "1 1 2 2 3");
    assert_eq!(world.session().value("SELECT count(*) FROM t"), "2", "the former primary is another server now");
}
