//! What pg_stat_activity says that a session waits for, while an endpoint holds on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::thread::{self, JoinHandle};

use emulator::Fault;
use server_tests::{Session, World, major, wait};

/// Runs a statement in a session of its own until it waits; says for what.
fn waiting(world: &World, watcher: &mut Session, sql: &str) -> (String, JoinHandle<bool>) {
    let mut session = world.session();
    let (pid, sql) = (session.pid(), sql.to_owned());
    let thread = thread::spawn(move || session.client().simple_query(&sql).is_ok());
    let ours = format!(
        "SELECT wait_event FROM pg_stat_activity
         WHERE pid = {pid} AND wait_event_type = 'Extension' AND state = 'active'"
    );
    let mut seen = String::new();
    wait::until("it waits", || {
        seen = watcher.rows(&ours).pop().unwrap_or_default();
        !seen.is_empty()
    });
    (seen, thread)
}

#[test]
fn a_wait_has_the_name_of_what_is_waited_for_from_17_on() {
    let world = World::with_storage();
    let mut watcher = world.session();
    watcher.run("CREATE TABLE t (a int)");
    world.azurite().put("box/in.csv", "1\n");
    // Tokens that are there already, so that a COPY and a secret wait for nothing but their service.
    watcher.run("SELECT managed_identity.access_token('storage'), managed_identity.access_token('key-vault', 'keys')");
    let token = "SELECT managed_identity.access_token('graph')";
    let copy = |what: &str, blob: &str| format!("COPY {what} '{}'", world.url(&format!("box/{blob}.csv")));
    let hang = Fault::HangBeforeHeaders;
    let (identity, vault) = (world.emulator.identity().faults(), world.emulator.vault().faults());

    identity.next(1, hang.clone());
    let (leads, leader) = waiting(&world, &mut watcher, token);
    let (follows, follower) = waiting(&world, &mut watcher, token);
    world.proxy().faults().next(2, hang.clone());
    let (reads, reader) = waiting(&world, &mut watcher, &copy("t FROM", "in"));
    let (writes, writer) = waiting(&world, &mut watcher, &copy("(SELECT 1) TO", "out"));
    vault.next(1, hang);
    let (asks, asker) = waiting(&world, &mut watcher, "SELECT azure_key_vault.secret('vault', 'db-password')");

    let names = [leads, follows, reads, writes, asks];
    let expected =
        ["ManagedIdentityToken", "ManagedIdentityTokenWait", "AzureStorageRead", "AzureStorageWrite", "AzureKeyVault"];
    assert_eq!(names, if major() < 17 { ["Extension"; 5] } else { expected });
    // A session waits already while it connects.
    for (log, held) in
        [(world.emulator.identity().log(), 1), (world.proxy().log(), 2), (world.emulator.vault().log(), 1)]
    {
        log.wait_for_held(held, wait::LONG).unwrap();
    }
    identity.release();
    vault.release();
    world.proxy().faults().release();
    for thread in [leader, follower, reader, writer, asker] {
        assert!(thread.join().unwrap());
    }
    if major() >= 17 {
        let known =
            "SELECT count(*) FROM pg_wait_events WHERE type = 'Extension' AND name ~ '^(ManagedIdentity|Azure)'";
        // And the worker's, which sleeps by now.
        assert_eq!(watcher.value(known), "6", "each is registered once, whoever waits");
    }
}
