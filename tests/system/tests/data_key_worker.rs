//! The worker of a database with data keys: the audit is complete, a newer version of a vault key wraps what the old
//! one did, and nobody ever waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::process::Command;
use std::thread;

use emulator::{ANYONE, Fault, Filter, Key, Reply, Rule, VaultOperation};
use server_tests::{Options, World, major, wait};

#[path = "data_key_worker/common.rs"]
mod common;

use common::*;

#[test]
fn what_becomes_of_data_keys_is_written_in_each_database_with_the_vaults_request_id() {
    let (world, mut session) = world();
    let mut second = second(&world);
    // What a database's owner may set does not keep the worker from writing.
    session.run(
        "ALTER DATABASE second SET default_transaction_read_only = on;
         ALTER DATABASE second SET search_path = nowhere; ALTER DATABASE second SET default_transaction_isolation = serializable",
    );
    session.run("SELECT azure_key_vault.rotate_data_key('salary')");
    let vault = world.emulator.vault();
    vault.deny(ANYONE, VaultOperation::UnwrapKey);
    for session in [&mut session, &mut second] {
        wait_for_event(session, "locked");
    }
    vault.allow_again(ANYONE, VaultOperation::UnwrapKey);
    for session in [&mut session, &mut second] {
        wait_for_event(session, "ready");
    }
    session.run("CREATE ROLE owner; ALTER SERVER payroll OWNER TO owner; GRANT USAGE ON FOREIGN SERVER keys TO owner; SET ROLE owner");
    session.run("BEGIN READ ONLY; SELECT azure_key_vault.lock_data_keys('payroll'); ROLLBACK");
    session.run("SELECT azure_key_vault.revalidate_data_keys(); RESET ROLE");
    wait_for_event(&mut session, "unlocked_by_owner");
    idle(&mut session);
    assert_eq!(
        session.rows(
            "SELECT event, vault, data_keys, kid IS NOT NULL, role, reason IS NOT NULL, request_id IS NOT NULL
                      FROM azure_key_vault.data_key_events ORDER BY at"
        ),
        [
            "created|payroll|{salary}|t|postgres|t|t",
            "rotated|payroll|{salary}|t|postgres|t|t",
            "revoked_pending|payroll||t||t|t",
            "locked|payroll||t||t|t",
            "ready|payroll||t||f|t",
            "locked_by_owner|payroll||f|owner|f|f",
            "unlocked_by_owner|payroll||f|owner|f|f",
        ]
    );
    assert_eq!(second.rows(EVENTS), ["created", "revoked_pending", "locked", "ready"]);
    let known: Vec<String> = vault.log().requests().into_iter().filter_map(|entry| entry.request_id).collect();
    for id in session.rows("SELECT request_id FROM azure_key_vault.data_key_events WHERE request_id IS NOT NULL") {
        assert!(known.contains(&id), "{id}");
    }
    // Who may use the server sees what became of its data keys, who may not sees nothing.
    let mut reader = world.role("reader");
    assert_eq!(reader.rows(EVENTS), [""; 0]);
    assert_eq!(reader.sqlstate("SELECT * FROM azure_key_vault.data_key_event"), "42501");
    session.run("GRANT USAGE ON FOREIGN SERVER payroll TO reader");
    assert_eq!(reader.rows(EVENTS).len(), 7);
    session.run("REVOKE USAGE ON FOREIGN SERVER payroll FROM reader; GRANT pg_read_all_stats TO reader");
    assert_eq!(reader.rows(EVENTS).len(), 7);
    // The history is the database's: a dump has it.
    let dump = world.cluster.program("pg_dump").args(["-d", "postgres"]).output().unwrap();
    assert!(String::from_utf8_lossy(&dump.stdout).contains("unlocked_by_owner"));
}

#[test]
fn a_newer_version_wraps_within_the_interval_and_the_old_one_is_not_looked_at_any_more() {
    let (world, mut session) = world();
    let mut second = second(&world);
    create(&mut session, "bonus");
    session.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    let vault = world.emulator.vault();
    let old = vault.key_versions("kek");
    // A vault that does not give back what was wrapped: everything stays as it is.
    let newest = {
        let wrong = "{\"kid\":\"KID\",\"value\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}";
        // The version is not known before it is there, and it is taken up within a second.
        vault.deny(ANYONE, VaultOperation::ReadKey);
        let newest = new_version(&world);
        let body = wrong.replace("KID", &format!("{}/keys/kek/{newest}", vault.uri()));
        let filter = Filter::path(&format!("{newest}/unwrapkey"));
        vault.faults().add(Rule::new(Fault::Status(Reply::new(200).body(body))).when(filter));
        vault.allow_again(ANYONE, VaultOperation::ReadKey);
        newest
    };
    wait::until("the worker says that it could not", || {
        world.cluster.log().contains("could not wrap the data keys of server \"payroll\" with the newest version")
    });
    assert_eq!((wrapped_by(&mut session, &old[0]), wrapped_by(&mut second, &old[0])), (2, 1));
    assert!(world.cluster.log().contains("the vault did not unwrap what was wrapped"));
    vault.faults().clear();
    wait::until("the newest version wraps all", || {
        wrapped_by(&mut session, &newest) == 2 && wrapped_by(&mut second, &newest) == 1
    });
    for session in [&mut session, &mut second] {
        wait_for_event(session, "rewrapped");
    }
    idle(&mut session);
    let event = "SELECT vault, right(kid, 32), role, reason LIKE '%' || '{}' FROM azure_key_vault.data_key_events
                 WHERE event = 'rewrapped'";
    assert_eq!(session.rows(&event.replace("{}", &old[0]))[0], format!("payroll|{newest}||t"));
    // Its owner may disable the old version now.
    vault.change_key("kek", Some(&old[0]), |attributes| attributes.enabled = false).unwrap();
    let asked = vault.log().count();
    vault.log().wait_for_requests(asked + 6, wait::LONG).unwrap();
    let since = vault.log().requests().split_off(asked);
    assert!(since.iter().all(|entry| !entry.path.contains(&old[0])), "{since:?}");
    world.cluster.restart();
    let read = "SELECT convert_from(azure_key_vault.decrypt_value(v), 'UTF8') FROM t";
    assert_eq!(world.session().value(read), "hello");
}

/// Calls the function in a session of its own; its process, and the SQLSTATE that the call ends with, empty where the
/// session ended.
fn call(world: &World) -> (i32, thread::JoinHandle<String>) {
    let mut caller = world.session();
    let pid = caller.pid();
    let call = move || match caller.client().simple_query("SELECT azure_key_vault.rewrap_data_keys('payroll')") {
        Err(error) => error.code().map_or_else(String::new, |state| state.code().to_owned()),
        Ok(rows) => panic!("it succeeded: {rows:?}"),
    };
    (pid, thread::spawn(call))
}

#[test]
fn a_call_that_is_cut_short_keeps_what_it_has_done_and_another_goes_on() {
    let (world, mut session) = world();
    const KEYS: usize = 60;
    for number in 1..KEYS {
        create(&mut session, &format!("key {number}"));
    }
    // Only the call, not the worker by itself.
    world.set("azure_key_vault.revalidate_interval", "1d");
    world.cluster.restart();
    let mut session = world.session();
    let newest = new_version(&world);
    hang_at(&world, &newest, 20);
    let (caller, cancelled) = call(&world);
    wait_for_hanging(&world);
    let worker_is = |what: &str| format!("SELECT {what} FROM pg_stat_activity WHERE backend_type LIKE '%data keys'");
    assert_eq!(session.value(&worker_is("query")), format!("wrapping data keys anew: 21/{KEYS}"));
    assert_eq!(session.value(&worker_is("xact_start IS NULL")), "t", "no transaction while the vault is asked");
    session.run(&format!("SELECT pg_cancel_backend({caller})"));
    assert_eq!(cancelled.join().unwrap(), "57014");
    let_go(&world);
    idle(&mut session);
    assert_eq!(wrapped_by(&mut session, &newest), 21);

    hang_at(&world, &newest, 10);
    let (caller, terminated) = call(&world);
    wait_for_hanging(&world);
    session.run(&format!("SELECT pg_terminate_backend({caller})"));
    // Whether the last words or the end of the connection comes first is the kernel's affair.
    let ended = terminated.join().unwrap();
    assert!(["57P01", ""].contains(&ended.as_str()), "{ended}");
    wait::until("the caller is gone", || {
        session.value(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {caller}")) == "0"
    });
    let_go(&world);
    idle(&mut session);
    assert_eq!(wrapped_by(&mut session, &newest), 32);

    // What the worker has not committed is lost with it.
    hang_at(&world, &newest, 5);
    let (_, without_worker) = call(&world);
    wait_for_hanging(&world);
    session.run(&worker_is("pg_terminate_backend(pid)"));
    assert_eq!(without_worker.join().unwrap(), "58000");
    let_go(&world);
    let done = wrapped_by(&mut session, &newest);
    assert!((32..=37).contains(&done), "{done}");

    let rewrap = "SELECT azure_key_vault.rewrap_data_keys('payroll')";
    assert_eq!(session.value(rewrap), (KEYS - done).to_string());
    assert_eq!(wrapped_by(&mut session, &newest), KEYS);
    assert_eq!(session.value(rewrap), "0");
    let told = "SELECT sum(cardinality(data_keys)) FROM azure_key_vault.data_key_events
                WHERE event = 'rewrapped' AND role = 'postgres'";
    assert_eq!(session.value(told), KEYS.to_string());
}

#[test]
fn in_a_transaction_that_has_changed_something_the_call_is_a_part_of_it() {
    let (world, _) = world();
    let old = world.emulator.vault().key_versions("kek");
    // Only the call, not the worker by itself.
    world.set("azure_key_vault.revalidate_interval", "1d");
    world.cluster.restart();
    let mut session = world.session();
    session.run("BEGIN");
    create(&mut session, "bonus");
    let newest = new_version(&world);
    assert_eq!(session.value("SELECT azure_key_vault.rewrap_data_keys('payroll')"), "2");
    assert_eq!(wrapped_by(&mut session, &newest), 2);
    session.run("ROLLBACK");
    assert_eq!((wrapped_by(&mut session, &old[0]), wrapped_by(&mut session, &newest)), (1, 0));
    assert_eq!(session.value(&format!("SELECT ({ENCRYPT}) IS NOT NULL")), "t");
    // One that has changed nothing has it done, whatever becomes of it.
    session.run("BEGIN; SELECT azure_key_vault.rewrap_data_keys('payroll'); ROLLBACK");
    assert_eq!(wrapped_by(&mut session, &newest), 1);
}

#[test]
fn a_planted_row_stays_as_it_is_and_stands_in_nobodys_way() {
    let (world, mut session) = world();
    create(&mut session, "bonus");
    session.run("UPDATE azure_key_vault.data_key SET check_value = '' WHERE name = 'salary'");
    let newest = new_version(&world);
    wait::until("the other one is wrapped", || wrapped_by(&mut session, &newest) == 1);
    wait::until("the log says why", || world.cluster.log().contains("could not wrap data key \"salary\" anew"));
    let kid = session.value("SELECT right(kid, 32) FROM azure_key_vault.data_key WHERE name = 'salary'");
    assert_ne!(kid, newest);
    let error = session.error("SELECT azure_key_vault.rewrap_data_keys()");
    assert_eq!((error.code().code(), error.message()), ("22000", "data key \"salary\" is not authentic"));
}

#[test]
fn drop_database_and_its_use_as_a_template_do_not_wait_for_a_worker_that_waits() {
    let (world, mut session) = world();
    let vault = world.emulator.vault();
    vault.put_key(Key::rsa("other", 2048)).unwrap();
    let mut other = second(&world);
    other.run("SELECT azure_key_vault.create_data_key('bonus', 'payroll', 'other')");
    drop(other);
    for sql in ["CREATE DATABASE copy TEMPLATE second", "DROP DATABASE second"] {
        idle(&mut session);
        vault.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::path("/sign")));
        vault.put_key(Key::rsa("other", 2048)).unwrap();
        wait_for_hanging(&world);
        session.run(sql);
        let_go(&world);
        wait::until("the worker is gone", || vault.log().held() == 0);
        if sql.starts_with("CREATE") {
            let mut other = world.cluster.session_in("second");
            wait::until("it was done later", || {
                let newest = vault.key_versions("other").pop().unwrap();
                wrapped_by(&mut other, &newest) == 1
            });
        }
    }
    assert_eq!(session.rows("SELECT datname FROM pg_database WHERE datname IN ('second', 'copy')"), ["copy"]);
    let newest = new_version(&world);
    wait::until("the data key here is wrapped", || wrapped_by(&mut session, &newest) == 1);
}

#[test]
fn a_worker_that_is_terminated_or_killed_leaves_nothing_half_done_and_another_goes_on() {
    let (world, mut session) = world();
    create(&mut session, "bonus");
    session.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    let read = "SELECT convert_from(azure_key_vault.decrypt_value(v), 'UTF8') FROM t";
    for signal in ["-TERM", "-KILL"] {
        idle(&mut session);
        let vault = world.emulator.vault();
        vault.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::path("/sign")).times(1));
        let newest = new_version(&world);
        wait_for_hanging(&world);
        let pid = worker(&mut session).unwrap();
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
        if signal == "-KILL" {
            wait::until("the server has noticed", || world.cluster.log().contains("reinitializing"));
            world.cluster.wait_until_back();
            session = world.session();
            assert_eq!(session.value("SELECT count(*) FROM azure_key_vault.data_keys WHERE signed"), "2");
            // From now on it is looked after again.
            assert_eq!(session.value(read), "hello");
        }
        let_go(&world);
        wait::until("the newest version wraps all", || wrapped_by(&mut session, &newest) == 2);
        assert_eq!(world.session().value(read), "hello");
    }
}

#[test]
fn the_server_stops_at_once_while_a_worker_waits() {
    let (world, mut session) = world();
    for mode in ["smart", "fast"] {
        idle(&mut session);
        world.emulator.vault().faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::path("/sign")).times(1));
        new_version(&world);
        wait_for_hanging(&world);
        drop(session);
        world.cluster.stop(mode);
        let_go(&world);
        world.cluster.start_again();
        session = world.session();
        session.run(ENCRYPT);
    }
    assert!(!world.cluster.log().contains("terminated by signal"));
}

/// A session that holds the server's last place for a worker, until it is ended.
fn hold_the_last_place(world: &World) -> i32 {
    let mut session = world.session();
    let pid = session.pid();
    let parallel = if major() < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    thread::spawn(move || session.client().batch_execute(&format!("SET {parallel} = on; SELECT pg_sleep(600)")));
    let mut looking = world.session();
    let held = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'";
    wait::until("the place is taken", || looking.value(held) == "1");
    pid
}

#[test]
fn without_room_for_a_worker_it_is_said_once_and_done_later_and_what_was_lost_is_counted() {
    let (world, mut session) =
        world_with(Options::default().conf("max_worker_processes = 2").conf("max_logical_replication_workers = 0"));
    // All that creating has left to do, so that nobody else takes the place.
    let validated = "SELECT count(*) FROM azure_key_vault.data_key_validated";
    wait::until("it is written", || session.value(validated) == "1");
    idle(&mut session);
    let holder = hold_the_last_place(&world);
    const ROUNDS: usize = 150;
    for _ in 0..ROUNDS {
        session.run(
            "SELECT azure_key_vault.lock_data_keys('payroll'); SELECT azure_key_vault.revalidate_data_keys('payroll')",
        );
    }
    let said = || world.cluster.log().matches("no worker could be started").count();
    wait::until("the log says so", || said() == 1);
    // While it is tried again, nothing more is said.
    let vault = world.emulator.vault();
    vault.log().wait_for_requests(vault.log().count() + 16, wait::LONG).unwrap();
    let newest = new_version(&world);
    let error = session.error("SELECT azure_key_vault.rewrap_data_keys()");
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert!(error.hint().unwrap().contains("max_worker_processes"));
    session.run(&format!("SELECT pg_terminate_backend({holder})"));
    wait_for_event(&mut session, "unlocked_by_owner");
    assert_eq!(world.cluster.log().matches("could be started to write").count(), 1);
    let reason = session.value("SELECT reason FROM azure_key_vault.data_key_events WHERE event = 'events_lost'");
    let lost: usize = reason.split(' ').next().unwrap().parse().unwrap();
    let written = session.value("SELECT count(*) FROM azure_key_vault.data_key_events WHERE event LIKE '%by_owner'");
    assert_eq!(lost + written.parse::<usize>().unwrap(), 2 * ROUNDS);
    wait::until("the newest version wraps", || wrapped_by(&mut session, &newest) == 1);
}

#[test]
fn on_a_standby_no_worker_runs_and_what_it_has_seen_is_written_once_it_is_promoted() {
    let (world, mut session) = world();
    session.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    let standby = world.cluster.standby();
    standby.catch_up(&world.cluster);
    // Only the standby looks at the key.
    world.cluster.stop("fast");
    let mut session = standby.session();
    let read = "SELECT convert_from(azure_key_vault.decrypt_value(v), 'UTF8') FROM t";
    assert_eq!(session.value(read), "hello");
    let vault = world.emulator.vault();
    vault.deny(ANYONE, VaultOperation::UnwrapKey);
    wait::until("it is locked", || session.try_rows(read).is_err());
    vault.allow_again(ANYONE, VaultOperation::UnwrapKey);
    wait::until("it is ready", || session.try_rows(read).is_ok());
    let newest = new_version(&world);
    vault.log().wait_for_requests(vault.log().count() + 6, wait::LONG).unwrap();
    assert_eq!(worker(&mut session), None);
    assert_eq!(session.rows(EVENTS), ["created"]);
    assert_eq!(session.sqlstate("SELECT azure_key_vault.rewrap_data_keys()"), "25006");
    standby.promote();
    wait_for_event(&mut session, "rewrapped");
    assert_eq!(session.rows(EVENTS), ["created", "revoked_pending", "locked", "ready", "rewrapped"]);
    assert_eq!(wrapped_by(&mut session, &newest), 1);
    assert!(!standby.log().contains("cannot execute INSERT"));
}

#[test]
fn a_template_is_left_alone_and_so_is_a_database_without_the_extension() {
    let (world, mut session) = world();
    let mut second = second(&world);
    idle(&mut session);
    session.run("ALTER DATABASE second IS_TEMPLATE true");
    session.run("CREATE DATABASE third");
    let mut third = world.cluster.session_in("third");
    third.run("CREATE EXTENSION managed_identity");
    world.create_servers(&mut third);
    prepare(&world, &mut third);
    // While the worker may be about to begin, or in the middle of it.
    third.run("DROP EXTENSION managed_identity CASCADE");
    world.emulator.vault().deny(ANYONE, VaultOperation::UnwrapKey);
    wait_for_event(&mut session, "locked");
    idle(&mut session);
    assert_eq!(second.rows(EVENTS), ["created"]);
    session.run("ALTER DATABASE second IS_TEMPLATE false");
    assert!(!world.cluster.log().contains("ERROR"), "{}", world.cluster.log());
}

#[test]
fn when_a_vault_key_could_last_be_used_is_known_after_a_restart() {
    let (world, mut session) = world();
    let validated = "SELECT last_validated_at IS NOT NULL FROM azure_key_vault.data_keys";
    wait::until("it is written", || session.value("SELECT count(*) FROM azure_key_vault.data_key_validated") == "1");
    // Not again with every look at the key: an idle server writes no WAL.
    let written = session.value("SELECT xmin FROM azure_key_vault.data_key_validated");
    let vault = world.emulator.vault();
    vault.log().wait_for_requests(vault.log().count() + 6, wait::LONG).unwrap();
    assert_eq!(session.value("SELECT xmin FROM azure_key_vault.data_key_validated"), written);
    world.cluster.restart();
    assert_eq!(world.session().value(validated), "t");
}
