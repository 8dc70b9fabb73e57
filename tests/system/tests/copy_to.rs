//! COPY TO a blob.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use emulator::{CA_CERTIFICATE, Fault, Filter, Rule};
use flate2::read::MultiGzDecoder;
use server_tests::{ACCOUNT, Session, World, given, major, outcome, wait};

const TABLES: &str = "
    CREATE TABLE t (a int, b text, c text);
    INSERT INTO t VALUES (1, 'one', NULL), (2, 'two, \"2\"', ''), (3, 'café', E'tab\\tline\\nend\\\\'), (4, '\\.', 'x');
    CREATE TABLE wide (b text); INSERT INTO wide VALUES ('日本');
    CREATE TABLE g (a int, b int GENERATED ALWAYS AS (a * 2) STORED, c int DEFAULT 5); INSERT INTO g VALUES (1), (2);
    CREATE TABLE u (a int PRIMARY KEY, b text); INSERT INTO u VALUES (1, 'one');
    CREATE TABLE p (a int) PARTITION BY RANGE (a); CREATE TABLE p1 PARTITION OF p DEFAULT; INSERT INTO p VALUES (1), (2);
    CREATE VIEW v AS SELECT a FROM t; CREATE MATERIALIZED VIEW m AS SELECT a FROM t; CREATE SEQUENCE q;
    CREATE TABLE nothing (); CREATE TABLE empty (a int, b text);";

/// What is copied, and what follows the place.
const CASES: &[(&str, &str)] = &[
    ("t", "(FORMAT csv)"),
    ("t", "(FORMAT text)"),
    ("t", "(FORMAT binary)"),
    ("t", "(FORMAT csv, HEADER)"),
    ("t", "(FORMAT text, HEADER)"),
    ("t", "CSV HEADER"),
    ("t (c, a)", "(FORMAT csv, HEADER)"),
    ("t", "(FORMAT csv, NULL 'nil', DELIMITER ';', QUOTE '''', ESCAPE '\\')"),
    ("t", "(FORMAT csv, FORCE_QUOTE *)"),
    ("t", "(FORMAT csv, FORCE_QUOTE (b))"),
    ("t", "(FORMAT csv, ENCODING 'LATIN1')"),
    ("wide", "(FORMAT csv, ENCODING 'LATIN1')"),
    ("empty", "(FORMAT csv)"),
    ("empty", "(FORMAT csv, HEADER)"),
    ("empty", "(FORMAT binary)"),
    ("nothing", "(FORMAT csv)"),
    ("g", "(FORMAT csv, HEADER)"),
    ("g (b)", "(FORMAT csv)"),
    ("p1", "(FORMAT csv)"),
    ("p", "(FORMAT csv)"),
    ("v", "(FORMAT csv)"),
    ("m", "(FORMAT csv)"),
    ("q", "(FORMAT csv)"),
    ("nowhere", "(FORMAT csv)"),
    ("t (nope)", "(FORMAT csv)"),
    ("t (a, a)", "(FORMAT csv)"),
    ("(SELECT a, upper(b) AS big FROM t WHERE a > 1 ORDER BY a DESC)", "(FORMAT csv, HEADER)"),
    ("(SELECT * FROM v)", "(FORMAT csv)"),
    ("(SELECT * FROM p)", "(FORMAT text)"),
    ("(VALUES (1, NULL), (2, 'x'))", "(FORMAT csv)"),
    ("(WITH r AS (SELECT 1 AS a) SELECT * FROM r)", "(FORMAT csv)"),
    ("(INSERT INTO empty VALUES (1, 'one'), (2, 'two') RETURNING b, a)", "(FORMAT csv, HEADER)"),
    ("(UPDATE empty SET b = 'three' WHERE a = 1 RETURNING *)", "(FORMAT csv)"),
    ("(DELETE FROM empty RETURNING a)", "(FORMAT csv)"),
    ("(INSERT INTO empty VALUES (1, 'one'))", "(FORMAT csv)"),
    ("(INSERT INTO u VALUES (2, 'two'), (1, 'again') RETURNING a)", "(FORMAT csv)"),
    ("(SELECT a INTO made FROM t)", "(FORMAT csv)"),
    ("(SELECT nope FROM t)", "(FORMAT csv)"),
    ("(SELECT 1 / (a - 3) FROM t)", "(FORMAT csv)"),
    ("(SELECT FROM t)", "(FORMAT csv)"),
    ("t", "(FORMAT csv, HEADER MATCH)"),
    ("t", "(FORMAT csv, FORCE_NULL (b))"),
    ("t", "(FORMAT csv, FREEZE)"),
    ("t", "(FORMAT csv, QUOTE 'ab')"),
    ("t", "(FORMAT text, QUOTE 'a')"),
    ("t", "(FORMAT nope)"),
    ("t", "(FORMAT csv, FORMAT csv)"),
    ("t", "(FORMAT csv, WRONG 1)"),
];

#[test]
fn every_option_every_query_and_every_error_is_as_with_a_file_to_the_byte() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run(TABLES);
    for (at, (what, tail)) in CASES.iter().enumerate() {
        let file = world.cluster.folder().join(format!("{at}.out"));
        let file = file.to_str().unwrap();
        let expected = said(&mut session, what, file, tail);
        for name in [format!("box/{at}.out"), format!("box/{at}.out.gz")] {
            let got = said(&mut session, what, &world.url(&name), tail);
            assert_eq!(got, expected, "{what} {tail} {name}");
            let blob = world.azurite().get(&name).map(|blob| if name.ends_with(".gz") { gunzip(&blob) } else { blob });
            let wanted = expected.starts_with("COPY ").then(|| fs::read(file).unwrap());
            assert_eq!(blob, wanted, "{what} {tail} {name}");
        }
    }
    assert_eq!(world.asked(), 1, "one token for all of them");
    assert!(world.proxy().log().without_bearer().is_empty());
}

/// What it says; what it did in the database is taken back.
fn said(session: &mut Session, what: &str, place: &str, tail: &str) -> String {
    let keeps = what.starts_with("(INSERT INTO empty") || what.starts_with("(UPDATE") || what.starts_with("(DELETE");
    session.run(if keeps { "BEGIN; INSERT INTO empty VALUES (1, 'old'), (5, 'five')" } else { "BEGIN" });
    let said = outcome(session, &format!("COPY {what} TO '{place}' {tail}")).replace(place, "PLACE");
    session.run("ROLLBACK");
    said
}

fn gunzip(data: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(data).read_to_end(&mut plain).unwrap();
    plain
}

#[test]
fn the_suffix_names_the_format() {
    let world = World::with_storage();
    let mut session = world.session();
    for (name, expected) in [("a.csv", "1,a\n2,a\n"), ("A.TSV", "1\ta\n2\ta\n")] {
        for name in [format!("box/{name}"), format!("box/in.d/{name}.gz")] {
            let sql = format!("COPY (SELECT i, 'a' FROM generate_series(1, 2) i) TO '{}'", world.url(&name));
            assert_eq!(session.count(&sql), 2);
            let blob = world.azurite().get(&name).unwrap();
            let plain = if name.ends_with(".gz") { gunzip(&blob) } else { blob };
            assert_eq!(String::from_utf8(plain).unwrap(), expected, "{name}");
        }
    }
    let before = world.proxy().log().count();
    for name in ["a.json", "a", "a.csv.zst", "a.gz", "a.parquet"] {
        let sqlstate = session.sqlstate(&format!("COPY (SELECT 1) TO '{}'", world.url(&format!("box/{name}"))));
        assert_eq!(sqlstate, "22023", "{name}");
    }
    assert_eq!(world.proxy().log().count(), before, "nothing was asked for");
}

/// Rows of 1 MB in all for each 10,000 of them.
fn rows(count: u32) -> String {
    format!("SELECT i, repeat(chr(97 + i % 26), 91) AS b FROM generate_series(100001, {}) i", 100_000 + count)
}

#[test]
fn the_blob_changes_when_the_statement_has_succeeded_and_only_then() {
    let world = World::with_storage();
    let mut session = world.session();
    let (blob, url) = ("box/t.csv", world.url("box/t.csv"));
    session.run("CREATE TABLE u (a int PRIMARY KEY, b text); SET azure_storage.blob_block_size_mb = 1");
    session.run(&format!("BEGIN; COPY (SELECT 'rolled back') TO '{url}'; ROLLBACK"));
    assert_eq!(world.azurite().text(blob), "rolled back\n", "as a file would, it stays");

    world.azurite().put(blob, "old");
    let half_way = format!("SELECT 1 / (i - 150000), b FROM ({}) r", rows(60_000));
    for (sql, sqlstate) in [
        (format!("COPY ({half_way}) TO '{url}'"), "22012"),
        (
            format!("COPY (INSERT INTO u ({} UNION ALL SELECT 100001, 'again') RETURNING *) TO '{url}'", rows(40_000)),
            "23505",
        ),
    ] {
        assert_eq!(session.sqlstate(&sql), sqlstate);
        assert_eq!(world.azurite().text(blob), "old");
    }
    assert_eq!(session.sqlstate(&format!("COPY ({half_way}) TO '{}'", world.url("box/new.csv"))), "22012");
    assert_eq!(world.azurite().get("box/new.csv"), None, "no part of it is visible");

    let pid = session.pid();
    let big = rows(80_000);
    for (name, before) in [(blob, Some(b"old".to_vec())), ("box/new.csv", None)] {
        let hold = Rule::new(Fault::HangBeforeHeaders).skip(2).when(Filter::query("comp=block"));
        world.proxy().faults().add(hold);
        let sql = format!("COPY ({big}) TO '{}'", world.url(name));
        let thread = thread::spawn(move || (session.sqlstate(&sql), session));
        world.proxy().log().wait_for_held(1, wait::LONG).unwrap();
        world.session().run(&format!("SELECT pg_cancel_backend({pid})"));
        let (sqlstate, back) = thread.join().unwrap();
        session = back;
        assert_eq!(sqlstate, "57014");
        world.proxy().faults().clear();
        world.proxy().faults().release();
        assert_eq!(world.azurite().get(name), before, "{name}");
    }
    assert_eq!(session.count(&format!("COPY ({big}) TO '{url}'")), 80_000, "the session goes on");
    let written = world.azurite().get(blob).unwrap();
    assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 80_000);
}

#[test]
fn many_blocks_make_the_bytes_that_a_file_has() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("SET azure_storage.blob_block_size_mb = 1");
    let file = world.cluster.folder().join("rows.csv");
    session.run(&format!("COPY ({}) TO '{}' (FORMAT csv, HEADER)", rows(80_000), file.display()));
    let expected = fs::read(file).unwrap();
    assert!(expected.len() > 7 << 20);
    for name in ["box/r.csv", "box/r.csv.gz"] {
        let sql = format!("COPY ({}) TO '{}' (FORMAT csv, HEADER)", rows(80_000), world.url(name));
        assert_eq!(session.count(&sql), 80_000);
        let blob = world.azurite().get(name).unwrap();
        assert!(if name.ends_with("gz") { gunzip(&blob) } else { blob } == expected, "{name}");
    }
    let requests = world.proxy().log().requests();
    let blocks: Vec<_> = requests.iter().filter(|entry| entry.query("comp") == Some("block")).collect();
    assert_eq!(blocks.len(), 8);
    assert!(blocks.iter().all(|entry| entry.bytes_received <= 1 << 20));
    assert_eq!(requests.iter().filter(|entry| entry.query("comp") == Some("blocklist")).count(), 1);
}

/// Runs COPY TO until its query waits in the second row, then `then`, then lets the query go on; says
/// whether it succeeded.
fn with_a_slow_query(world: &World, then: impl FnOnce(&mut Session, i32, &dyn Fn() -> Vec<String>)) -> bool {
    let (mut watcher, mut writer) = (world.session(), world.session());
    watcher.run("SELECT pg_advisory_lock(7)");
    let pid = writer.pid();
    let sql = format!(
        "COPY (SELECT i, repeat('x', 300000), CASE i WHEN 2 THEN pg_advisory_lock(7)::text END
               FROM generate_series(1, 3) i) TO '{}'",
        world.url("box/slow.csv")
    );
    let thread = thread::spawn(move || writer.client().simple_query(&sql).is_ok());
    let waits = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
    wait::until("the query waits", || watcher.rows(&waits) == ["advisory"]);
    let folder = world.cluster.data_folder().join("base/pgsql_tmp");
    let spools = move || {
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        files.map(|file| file.file_name().into_string().unwrap()).collect()
    };
    then(&mut watcher, pid, &spools);
    watcher.run("SELECT pg_advisory_unlock(7)");
    let done = thread.join().unwrap();
    wait::until("the backend is gone", || watcher.rows(&waits) == [""; 0]);
    assert_eq!(spools(), [""; 0], "the spool file is removed");
    done
}

#[test]
fn on_15_the_data_waits_in_a_temporary_file_that_is_always_removed_and_later_in_none() {
    let world = World::with_storage();
    let spooled = |pid: i32, spools: &dyn Fn() -> Vec<String>| match (major(), spools().as_slice()) {
        (15, [file]) => assert!(file.starts_with(&format!("pgsql_tmp{pid}.")), "{file}"),
        (15, files) => panic!("one spool file is due: {files:?}"),
        (_, files) => assert!(files.is_empty(), "{files:?}"),
    };
    let succeeded = with_a_slow_query(&world, |watcher, pid, spools| {
        spooled(pid, spools);
        // Its own size, as core tells it: the first row.
        let kind = if major() == 15 { "FILE" } else { "CALLBACK" };
        let seen = format!(
            "SELECT command, type, bytes_processed > 300000, bytes_total, tuples_processed, relid
             FROM pg_stat_progress_copy WHERE pid = {pid}"
        );
        assert_eq!(watcher.rows(&seen), [format!("COPY TO|{kind}|t|0|1|0")]);
    });
    assert!(succeeded);
    assert_eq!(world.azurite().text("box/slow.csv").lines().count(), 3);
    world.azurite().put("box/slow.csv", "old");
    for end in ["pg_cancel_backend", "pg_terminate_backend"] {
        let succeeded = with_a_slow_query(&world, |watcher, pid, spools| {
            spooled(pid, spools);
            watcher.run(&format!("SELECT {end}({pid})"));
            wait::until("no spool file is left", || spools().is_empty());
        });
        assert!(!succeeded, "{end}");
        assert_eq!(world.azurite().text("box/slow.csv"), "old", "{end}");
    }
}

/// Prints every blob's name and what is in it, as any client of Azure would read them.
const MICROSOFTS_CLIENT: &str = r#"
import sys, time
from azure.core.credentials import AccessToken
from azure.storage.blob import ContainerClient
class Given:
    def get_token(self, *scopes, **kwargs):
        return AccessToken(token, int(time.time()) + 3600)
token = sys.stdin.readline().strip()
account, container, ca = sys.argv[1:]
box = ContainerClient(account, container, credential=Given(), connection_verify=ca, api_version="2023-11-03")
for blob in box.list_blobs():
    sys.stdout.buffer.write(f"{blob.name}: {box.download_blob(blob.name).readall().decode()}".encode())
"#;

#[test]
fn microsofts_client_reads_every_name_and_its_content() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a text)");
    let deep = format!("{}end.csv", "deep/".repeat(40));
    let names = [
        ("plain.csv", "plain.csv"),
        ("with%20space.csv", "with space.csv"),
        ("50%25.csv", "50%.csv"),
        ("%2541.csv", "%41.csv"),
        ("a+b.csv", "a+b.csv"),
        ("a%2Bc.csv", "a+c.csv"),
        ("q%3F%23%26%3D.csv", "q?#&=.csv"),
        ("%C3%A4/%E6%97%A5%E6%9C%AC.csv", "ä/日本.csv"),
        ("a~b-c_d.e(f).csv", "a~b-c_d.e(f).csv"),
        (&deep, &deep),
    ];
    for (encoded, name) in names {
        let url = world.url(&format!("box/{encoded}"));
        session.run(&format!("COPY (SELECT 'this is {name}') TO '{url}'"));
        session.run(&format!("TRUNCATE t; COPY t FROM '{url}'"));
        assert_eq!(session.value("SELECT a FROM t"), format!("this is {name}"));
    }
    let token = session.value("SELECT managed_identity.access_token('storage')");
    let mut python = Command::new(given("MI_PYTHON"))
        .args(["-c", MICROSOFTS_CLIENT, &format!("{}/{ACCOUNT}", world.azurite().endpoint()), "box"])
        .arg(world.cluster.folder().join(CA_CERTIFICATE))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(python.stdin.take().unwrap(), "{token}").unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let mut seen: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let mut expected: Vec<String> = names.iter().map(|(_, name)| format!("{name}: this is {name}")).collect();
    (seen.sort(), expected.sort());
    assert_eq!(seen, expected);
}
