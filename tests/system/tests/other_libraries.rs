//! Libraries beside ours that watch statements: each sees a COPY by URL as it sees one of a file, or there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::path::Path;

use server_tests::{Options, Session, World, major, pg_config, wait};

fn preloading(libraries: &str) -> Options {
    Options::default().conf("log_min_messages = warning").conf(format!("shared_preload_libraries = '{libraries}'"))
}

/// Whether this server has pgaudit; Debian has it for its own server.
fn has_pgaudit(test: &str) -> bool {
    let found = Path::new(&pg_config("--pkglibdir")).join("pgaudit.so").exists();
    if !found {
        assert_ne!(pg_config("--bindir"), "/usr/lib/postgresql/15/bin", "pgaudit is missing: run this by `make test`");
        eprintln!("left out on {}: {test} (apt has no pgaudit for this server)", major());
    }
    found
}

/// What pgaudit has logged of `sql`, without the numbers of session and statement, and without the place.
fn audited(world: &World, session: &mut Session, sql: &str, place: &str) -> Vec<String> {
    let from = world.cluster.log().len();
    session.run(sql);
    session.run("DO $$BEGIN RAISE LOG 'mark'; END$$");
    wait::until("the log is written", || world.cluster.log()[from..].contains("LOG:  mark"));
    let log = world.cluster.log()[from..].to_owned();
    let entry = |line: &str| {
        let (kind, rest) = line.split_once("AUDIT: ")?.1.split_once(',')?;
        Some(format!("{kind},{}", rest.splitn(3, ',').nth(2)?.replace(place, "PLACE")))
    };
    log.lines().filter_map(entry).collect()
}

#[test]
fn pg_stat_statements_counts_a_copy_once_with_its_rows() {
    let world = World::with_storage_and(preloading("managed_identity, pg_stat_statements"));
    let mut session = world.session();
    session.run("CREATE EXTENSION pg_stat_statements; CREATE TABLE t (a int)");
    let (to, from) = (world.url("box/a.csv"), world.url("box/a.csv"));
    let calls = |session: &mut Session, pattern: &str| {
        session.rows(&format!("SELECT calls, rows, toplevel FROM pg_stat_statements WHERE query ~ '{pattern}'"))
    };
    assert_eq!(session.count(&format!("COPY (SELECT generate_series(1, 3)) TO '{to}'")), 3);
    assert_eq!(calls(&mut session, r"^COPY \(SELECT"), ["1|3|t"]);
    for _ in 0..2 {
        assert_eq!(session.count(&format!("COPY t FROM '{from}'")), 3);
    }
    assert_eq!(calls(&mut session, "^COPY t FROM"), ["2|6|t"]);
    session.run("SET pg_stat_statements.track = 'all'; SELECT pg_stat_statements_reset()");
    session.run(&format!("DO $$BEGIN COPY t FROM '{from}'; END$$"));
    assert_eq!(calls(&mut session, "^COPY t FROM"), ["1|3|f"]);
}

#[test]
fn pgaudit_sees_a_copy_as_it_sees_one_of_a_file() {
    if !has_pgaudit("pgaudit sees a COPY") {
        return;
    }
    let options = preloading("managed_identity, pgaudit").conf("pgaudit.role = 'auditor'");
    let world = World::with_storage_and(options);
    let mut session = world.session();
    session.run(
        "CREATE EXTENSION pgaudit; CREATE ROLE auditor; CREATE TABLE t (a int); CREATE TABLE free (a int);
         GRANT SELECT, INSERT ON t TO auditor; INSERT INTO t VALUES (1)",
    );
    let url = world.url("box/a.csv");
    // Written by a COPY TO, and then read.
    let file = world.cluster.folder().join("a.csv").to_str().unwrap().to_owned();
    let statements =
        ["COPY t TO '$'", "COPY t FROM '$'", "COPY (SELECT a FROM t) TO '$'", "DO $$BEGIN COPY t FROM '$'; END$$"];
    let expected = [
        "READ,SELECT,TABLE,public.t",
        "WRITE,INSERT,TABLE,public.t",
        "READ,SELECT,TABLE,public.t",
        "WRITE,INSERT,TABLE,public.t",
    ];
    for (log, kind) in [("none", "OBJECT"), ("read, write", "SESSION"), ("read, write", "OBJECT")] {
        session.run(&format!("SET pgaudit.log = '{log}'"));
        for (sql, expected) in statements.iter().zip(expected) {
            let with = |place: &str| sql.replace("'$'", &format!("'{place}' (FORMAT csv)"));
            let ours = audited(&world, &mut session, &with(&url), &url);
            let cores = audited(&world, &mut session, &with(&file), &file);
            assert_eq!(ours, cores, "{sql}, pgaudit.log = {log}");
            let of_kind: Vec<_> = ours.iter().filter(|entry| entry.starts_with(kind)).collect();
            assert!(!of_kind.is_empty() && of_kind.iter().all(|entry| entry.contains("PLACE")), "{sql}: {ours:?}");
            assert!(kind == "SESSION" || of_kind[0].contains(expected), "{sql}: {ours:?}");
            let distinct: BTreeSet<_> = ours.iter().collect();
            assert_eq!(distinct.len(), ours.len(), "once: {ours:?}");
        }
    }
    session.run("SET pgaudit.log = 'none'");
    assert_eq!(audited(&world, &mut session, &format!("COPY free TO '{url}'"), &url), [""; 0]);
}

#[test]
fn no_copy_escapes_a_library_that_audits_rights_and_stands_before_ours() {
    if !has_pgaudit("a COPY that pgaudit would not see") {
        return;
    }
    let world = World::with_storage_and(preloading("pgaudit, managed_identity").conf("pgaudit.log = 'all'"));
    let warning = "another library's utility hook was set before the one of managed_identity";
    assert!(world.cluster.log().contains(warning));
    world.azurite().put("box/a.csv", "1\n");
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    let url = world.url("box/a.csv");
    for sql in [format!("COPY t FROM '{url}'"), format!("COPY t TO '{url}'"), format!("COPY (SELECT 2) TO '{url}'")] {
        let error = session.error(&sql);
        assert_eq!(error.code().code(), "55000", "{sql}: {error:?}");
        assert!(error.hint().unwrap().contains("first in shared_preload_libraries"), "{error:?}");
    }
    assert_eq!(world.proxy().log().count(), 0);
    assert_eq!(session.value("SELECT count(*) FROM t"), "0");
    assert!(!session.value("SELECT managed_identity.access_token('storage')").is_empty(), "the rest works");
}
