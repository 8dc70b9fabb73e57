//! COPY by URL as a statement among others: protocols, functions, transactions, row-level security, and
//! how the library is loaded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::{Config, Emulator, Pki};
use server_tests::{Cluster, Options, Session, World, major, outcome, wait};

#[test]
fn every_protocol_and_plpgsql_get_the_count_as_often_as_they_ask() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    let url = world.url("box/a.csv");
    let dump = format!("COPY (SELECT i FROM generate_series(1, 3) i) TO '{url}'");
    let load = format!("COPY t FROM '{url}'");
    for (sql, rows) in [(&dump, "0"), (&load, "9")] {
        let client = session.client();
        assert_eq!(client.execute(sql.as_str(), &[]).unwrap(), 3, "the extended protocol");
        let prepared = client.prepare(sql).unwrap();
        for _ in 0..2 {
            assert_eq!(client.execute(&prepared, &[]).unwrap(), 3, "a prepared statement keeps its tree");
        }
        assert_eq!(session.value("SELECT count(*) FROM t"), rows);
    }
    let psql = world.cluster.psql(&["-c", &dump, "-c", &load]).output().unwrap();
    assert_eq!(String::from_utf8(psql.stdout).unwrap(), "COPY 3\nCOPY 3\n");

    session.run(&format!(
        "CREATE FUNCTION there_and_back() RETURNS text LANGUAGE plpgsql AS $$
         DECLARE dumped bigint; loaded bigint; by_name bigint;
         BEGIN
             {dump}; GET DIAGNOSTICS dumped = ROW_COUNT;
             {load}; GET DIAGNOSTICS loaded = ROW_COUNT;
             EXECUTE format('COPY t FROM %L WHERE a > 1', '{url}'); GET DIAGNOSTICS by_name = ROW_COUNT;
             RETURN format('%s %s %s', dumped, loaded, by_name);
         END$$;
         TRUNCATE t"
    ));
    for total in ["5", "10"] {
        assert_eq!(session.value("SELECT there_and_back()"), "3 3 2");
        assert_eq!(session.value("SELECT count(*) FROM t"), total);
    }
    session.run(&format!("DO $$BEGIN {load}; {load}; END$$"));
    assert_eq!(session.value("SELECT count(*) FROM t"), "16");
    session.run(&format!("BEGIN; {load}; {load}; ROLLBACK"));
    assert_eq!(session.value("SELECT count(*) FROM t"), "16");
    assert_eq!(world.asked(), 1, "one token for all of them");
}

#[test]
fn transactions_rights_and_row_level_security_are_as_with_a_file() {
    let world = World::with_storage();
    let mut session = world.session();
    let mut etl = world.role("etl");
    session.run(
        "CREATE TABLE t (a int, owner text); INSERT INTO t VALUES (1, 'etl'), (2, 'other');
         CREATE TABLE hidden (a int, b int); INSERT INTO hidden VALUES (1, 10);
         GRANT SELECT, INSERT ON t TO etl; GRANT SELECT (a), INSERT (a) ON hidden TO etl;
         GRANT USAGE ON FOREIGN SERVER devstoreaccount1 TO etl; GRANT TEMPORARY ON DATABASE postgres TO etl;
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON t USING (owner = current_user)",
    );
    let url = world.url("box/rls.csv");
    assert_eq!(etl.count(&format!("COPY t TO '{url}'")), 1, "the policy applies");
    assert_eq!(world.azurite().text("box/rls.csv"), "1,etl\n");
    assert_eq!(etl.count(&format!("COPY t (owner) TO '{url}'")), 1);
    assert_eq!(world.azurite().text("box/rls.csv"), "etl\n");
    assert_eq!(session.count(&format!("COPY t TO '{url}'")), 2, "and not to the owner");
    let asked = world.proxy().log().count();
    let error = etl.error(&format!("COPY t FROM '{url}'"));
    assert_eq!(
        (error.code().code(), error.message(), error.hint()),
        ("0A000", "COPY FROM not supported with row-level security", Some("Use INSERT statements instead."))
    );
    assert_eq!(etl.sqlstate(&format!("SET row_security = off; COPY t TO '{url}'")), "42501");
    etl.run("RESET row_security");
    for sql in ["COPY hidden TO", "COPY hidden (b) TO", "COPY hidden FROM", "COPY hidden (b) FROM", "COPY pg_authid TO"]
    {
        assert_eq!(etl.sqlstate(&format!("{sql} '{url}'")), "42501", "{sql}");
    }
    assert_eq!(world.proxy().log().count(), asked, "the database's rights come before any request");
    assert_eq!(etl.count(&format!("COPY hidden (a) TO '{url}'")), 1);
    assert_eq!(etl.count(&format!("COPY hidden (a) FROM '{url}'")), 1);

    etl.run("CREATE TEMPORARY TABLE mine (a int); SET default_transaction_read_only = on");
    let file = world.cluster.file("a.csv", "1\n");
    let mut core = world.session();
    core.run("SET default_transaction_read_only = on");
    let refused = outcome(&mut core, &format!("COPY hidden (a) FROM '{file}'"));
    assert!(refused.starts_with("ERROR 25006"), "{refused}");
    assert_eq!(outcome(&mut etl, &format!("COPY hidden (a) FROM '{url}'")), refused);
    assert_eq!(etl.count(&format!("COPY mine FROM '{url}'")), 1, "a temporary table may be loaded");
    assert_eq!(etl.count(&format!("COPY hidden (a) TO '{url}'")), 2, "and every table read");

    let twice = |option: &str| format!("COPY hidden TO '{url}' WITH ({option}, {option})");
    let core = outcome(&mut session, &twice("FORMAT csv")).replace("FORMAT csv", "OPTION");
    assert!(core.starts_with("ERROR 42601: conflicting or redundant options"), "{core}");
    let server = "server 'devstoreaccount1'";
    assert_eq!(outcome(&mut session, &twice(server)).replace(server, "OPTION"), core);
    assert_eq!(session.count(&format!("COPY hidden TO '{url}' WITH ({server})")), 2);
    assert_eq!(session.sqlstate(&format!("COPY hidden TO '{url}' WITH (server 'nowhere')")), "42704");
}

#[test]
fn a_library_for_sessions_is_enough() {
    let preload = Options { not_preloaded: true, ..Options::default() };
    let world = World::with_storage_and(preload.conf("session_preload_libraries = 'managed_identity'"));
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    let url = world.url("box/a.csv");
    assert_eq!(session.count(&format!("COPY (VALUES (1), (2)) TO '{url}'")), 2);
    assert_eq!(session.count(&format!("COPY t FROM '{url}'")), 2);
    assert_eq!(world.session().count(&format!("COPY t TO '{url}'")), 2);
    assert_eq!(world.azurite().text("box/a.csv"), "1\n2\n");
    // From 17 on nothing is missed then; before, each session has tokens of its own.
    let missed = session.rows("SELECT detail FROM managed_identity.diagnose() WHERE step = 'library'").join("");
    assert!(!missed.contains("URLs"), "{missed}");
    assert_eq!(missed.contains("each session"), major() < 17, "{missed}");
}

#[test]
fn without_preloading_a_url_is_cores_file_name_whatever_was_called_before() {
    let emulator = Emulator::start(Config::new(Pki::create().unwrap())).unwrap();
    let conf = format!("managed_identity.imds_endpoint = '{}'", emulator.imds_endpoint());
    let cluster = Cluster::start(Options { not_preloaded: true, ..Options::default() }.conf(conf));
    let mut session = cluster.session();
    session.run("CREATE EXTENSION managed_identity");
    session.run("CREATE TABLE t (a int)");
    let core = |session: &mut Session| {
        assert_eq!(session.sqlstate("COPY t TO 'https://devstoreaccount1.blob.test/box/a.csv'"), "42602");
        let error = session.error("COPY t FROM 'https://devstoreaccount1.blob.test/box/a.csv'");
        assert_eq!(error.code().code(), "58P01");
        assert!(error.message().starts_with("could not open file"), "{error:?}");
    };
    core(&mut session);
    assert!(!session.value("SELECT managed_identity.access_token('storage')").is_empty());
    core(&mut session);
    let told = session.rows("SELECT status, detail, hint FROM managed_identity.diagnose() WHERE step = 'library'");
    assert!(told.len() == 1 && told[0].starts_with("warn|") && told[0].contains("COPY does not know URLs"), "{told:?}");
    assert!(told[0].contains("shared_preload_libraries"), "{told:?}");
}

#[test]
fn another_librarys_hook_before_ours_is_warned_of_and_ours_first_is_not() {
    let order = |libraries: &str| {
        Options::default().conf("log_min_messages = warning").conf(format!("shared_preload_libraries = '{libraries}'"))
    };
    let warning = "another library's utility hook was set before the one of managed_identity";
    let world = World::with_storage_and(order("pg_stat_statements, managed_identity"));
    let log = world.cluster.log();
    for part in [warning, "Put managed_identity first in shared_preload_libraries."] {
        assert!(log.contains(part), "{log}");
    }
    assert_eq!(world.session().count(&format!("COPY (VALUES (1), (2)) TO '{}'", world.url("box/a.csv"))), 2);

    let world = World::with_storage_and(order("managed_identity, pg_stat_statements"));
    assert!(!world.cluster.log().contains(warning));
    let mut session = world.session();
    session.run("CREATE EXTENSION pg_stat_statements");
    let sql = format!("COPY (VALUES (1), (2)) TO '{}'", world.url("box/a.csv"));
    assert_eq!(session.count(&sql), 2);
    let seen = "SELECT calls, rows FROM pg_stat_statements WHERE query LIKE 'COPY (VALUES%'";
    assert_eq!(session.rows(seen), ["1|2"], "the other library sees the COPY and its count");
}

#[test]
fn a_crash_in_the_middle_of_a_copy_to_leaves_the_old_blob_and_no_temporary_file() {
    let world = World::with_storage();
    world.azurite().put("box/a.csv", "old");
    let mut watcher = world.session();
    watcher.run("SELECT pg_advisory_lock(7)");
    let mut writer = world.session();
    let pid = writer.pid();
    let sql = format!(
        "COPY (SELECT CASE i WHEN 2 THEN pg_advisory_lock(7)::text END FROM generate_series(1, 3) i) TO '{}'",
        world.url("box/a.csv")
    );
    let thread = std::thread::spawn(move || writer.client().simple_query(&sql).is_ok());
    let waits = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
    wait::until("the query waits", || watcher.rows(&waits) == ["advisory"]);
    let folder = world.cluster.data_folder().join("base/pgsql_tmp");
    let files = || std::fs::read_dir(&folder).into_iter().flatten().count();
    assert_eq!(files(), usize::from(major() == 15));
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    assert!(!thread.join().unwrap());
    wait::until("the server starts anew", || world.cluster.log().contains("; reinitializing"));
    world.cluster.wait_until_back();
    assert_eq!(files(), 0);
    assert_eq!(world.azurite().text("box/a.csv"), "old");
    assert_eq!(world.session().count(&format!("COPY (VALUES (1)) TO '{}'", world.url("box/a.csv"))), 1);
}
