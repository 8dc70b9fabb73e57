//! `stat_requests`, `stat_reset` and `status`: what was asked of Azure is counted once, however a statement ends, and
//! those who watch the server see it without seeing a secret.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use emulator::{Config, Emulator, Fault, Filter, Identity, Pki, Reply, Rule};
use server_tests::{ACCOUNT, Cluster, Options, Session, World, major, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const SECRET: &str = "SELECT azure_key_vault.secret('vault', 'db-password')";

/// The columns of one server's row.
fn row(session: &mut Session, server: &str, operation: &str, columns: &str) -> String {
    let rows = session.rows(&format!(
        "SELECT {columns} FROM managed_identity.stat_requests
         WHERE server = '{server}' AND operation = '{operation}' AND database = current_database()"
    ));
    assert!(rows.len() <= 1, "{rows:?}");
    rows.into_iter().next().unwrap_or_default()
}

fn number(session: &mut Session, server: &str, operation: &str, column: &str) -> usize {
    row(session, server, operation, column).parse().unwrap_or(0)
}

/// Runs a statement on a thread, to hang there.
fn start(mut session: Session, sql: &str) -> JoinHandle<bool> {
    let sql = sql.to_owned();
    thread::spawn(move || session.client().simple_query(&sql).is_ok())
}

#[test]
fn what_the_endpoints_saw_is_what_is_counted_in_all_sessions_and_databases() {
    // Whole seconds, as those of `stats_reset`, which counts from before the server calls itself started.
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let world = World::with_storage();
    let mut session = world.session();
    let mut other = world.session();
    let text = "0123456789\n".repeat(300_000);
    world.azurite().put("box/in.csv", text.as_str());
    session.run("CREATE TABLE t (a text); SET azure_storage.blob_block_size_mb = 1");
    let (from, to) = (world.url("box/in.csv"), world.url("box/out.csv"));
    assert_eq!(session.count(&format!("COPY t FROM '{from}'")), 300_000);
    let got = world.proxy().log().count();
    assert!(got > 1, "a blob of several ranges");
    other.run("SET azure_storage.blob_block_size_mb = 1");
    assert_eq!(other.count(&format!("COPY t TO '{to}'")), 300_000);
    let put = world.proxy().log().count() - got;
    assert!(put > 1, "a blob of several blocks");
    other.run(SECRET);
    other.run(SECRET);
    session.run(TOKEN);

    let mut watcher = world.role("watcher");
    let mut nobody = world.role("nobody");
    session.run("GRANT pg_monitor TO watcher");
    let clean = "requests, retries, throttled, errors, last_error, last_error_at";
    let mut counted = |server, operation| row(&mut watcher, server, operation, clean);
    assert_eq!(counted(ACCOUNT, "get"), format!("{got}|0|0|0||"));
    assert_eq!(counted(ACCOUNT, "put"), format!("{put}|0|0|0||"));
    assert_eq!(counted("vault", "secret"), format!("{}|0|0|0||", world.emulator.vault().log().count()));
    let tokens = ["machine", "keys"].map(|identity| number(&mut watcher, identity, "token", "requests"));
    assert_eq!((tokens, world.asked()), ([1, 1], 2), "cached tokens are asked for once");
    assert_eq!(number(&mut watcher, ACCOUNT, "get", "bytes_in"), text.len());
    assert_eq!(number(&mut watcher, ACCOUNT, "get", "bytes_out"), 0);
    // A block list is sent, too.
    let sent = number(&mut watcher, ACCOUNT, "put", "bytes_out");
    assert!(sent >= text.len() && sent < text.len() + 10_000, "{sent}");
    let all = format!(
        "SELECT bool_and(bytes_in > 0 OR bytes_out > 0), bool_and(total_time_ms > 0),
                string_agg(DISTINCT kind, ',' ORDER BY kind), count(DISTINCT stats_reset),
                bool_and(stats_reset BETWEEN to_timestamp({before}) AND now())
         FROM managed_identity.stat_requests"
    );
    assert_eq!(watcher.value(&all), "t|t|azure_key_vault,azure_storage,managed_identity|1|t");

    // Another database's server of the same name is another row, until its database is gone.
    session.run("CREATE DATABASE second");
    let mut in_second = world.cluster.session_in("second");
    in_second.run("CREATE EXTENSION managed_identity; SELECT managed_identity.access_token('key-vault')");
    drop(in_second);
    let databases = "SELECT database, requests FROM managed_identity.stat_requests WHERE server = 'machine' ORDER BY 1";
    assert_eq!(watcher.rows(databases), ["postgres|1", "second|1"]);
    session.run("DROP DATABASE second");
    assert_eq!(watcher.rows(databases), ["postgres|1"]);

    // Who may see and who may reset.
    for view in ["stat_requests", "status"] {
        for sql in [format!("SELECT FROM managed_identity.{view}"), format!("SELECT managed_identity.{view}()")] {
            assert_eq!(nobody.sqlstate(&sql), "42501", "{sql}");
        }
    }
    assert_eq!(watcher.sqlstate("SELECT managed_identity.stat_reset()"), "42501");
    let before = session.value("SELECT date_trunc('second', now())");
    session.run("SELECT managed_identity.stat_reset()");
    assert_eq!(watcher.rows("SELECT FROM managed_identity.stat_requests"), [""; 0]);
    session.run("SELECT managed_identity.forget_tokens()");
    session.run(TOKEN);
    let columns = format!("requests, stats_reset BETWEEN '{before}' AND now()");
    assert_eq!(row(&mut watcher, "machine", "token", &columns), "1|t");
}

#[test]
fn retries_throttling_and_errors_are_told_apart_and_an_error_is_in_our_words() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a text)");
    let columns = "requests, retries, throttled, errors, last_error IS NOT NULL, last_error_at IS NOT NULL";
    let reply = |status| Reply::new(status).body("canary");

    world.emulator.identity().faults().next(1, reply(429));
    session.run(TOKEN);
    assert_eq!(row(&mut session, "machine", "token", columns), "2|1|1|0|f|f");
    session.run("SELECT managed_identity.forget_tokens()");
    world.emulator.identity().faults().next(1, reply(400));
    session.sqlstate(TOKEN);
    assert_eq!(row(&mut session, "machine", "token", columns), "3|1|1|1|t|t");

    world.emulator.vault().faults().next(1, reply(429));
    world.emulator.vault().faults().next(1, Fault::Reset);
    session.run(SECRET);
    assert_eq!(row(&mut session, "vault", "secret", columns), "3|2|1|0|f|f");
    session.sqlstate("SELECT azure_key_vault.secret('vault', 'missing')");
    assert_eq!(row(&mut session, "vault", "secret", columns), "4|2|1|1|t|t");

    world.azurite().put("box/in.csv", "1\n2\n");
    world.proxy().faults().next(1, reply(503).header("x-ms-error-code", "ServerBusy"));
    world.proxy().faults().next(1, Fault::Cut { after: 2 });
    let from = format!("COPY t FROM '{}'", world.url("box/in.csv"));
    assert_eq!(session.count(&from), 2);
    assert_eq!(row(&mut session, ACCOUNT, "get", columns), "3|2|1|0|f|f");
    session.sqlstate(&format!("COPY t FROM '{}'", world.url("box/missing.csv")));
    assert_eq!(row(&mut session, ACCOUNT, "get", columns), "4|2|1|1|t|t");
    world.proxy().faults().next(1, reply(403));
    session.sqlstate(&format!("COPY t TO '{}'", world.url("box/out.csv")));
    assert_eq!(row(&mut session, ACCOUNT, "put", columns), "1|0|0|1|t|t");
    // What core refuses of the data is no error of the service's.
    session.run("CREATE TABLE numbers (a int); SELECT managed_identity.stat_reset()");
    world.azurite().put("box/words.csv", "words\n");
    assert_eq!(session.sqlstate(&format!("COPY numbers FROM '{}'", world.url("box/words.csv"))), "22P02");
    assert_eq!(row(&mut session, ACCOUNT, "get", &format!("{columns}, bytes_in")), "1|0|0|0|f|f|6");

    // An endpoint that nobody listens at; a failure that was shared is of who asked.
    world.set("managed_identity.imds_endpoint", "http://127.0.0.1:1");
    let mut session = world.session();
    for _ in 0..2 {
        assert_eq!(session.sqlstate(TOKEN), "08001");
    }
    assert_eq!(row(&mut session, "machine", "token", columns), "1|0|0|1|t|t");
    let errors = session.rows("SELECT last_error FROM managed_identity.stat_requests");
    assert!(errors.iter().any(|error| error.contains("could not reach")), "{errors:?}");
    assert!(errors.iter().all(|error| !error.contains("canary") && !error.contains('/')), "{errors:?}");
}

#[test]
fn a_copy_that_is_cancelled_or_terminated_has_moved_what_it_moved() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a text)");
    world.azurite().put("box/in.csv", "0123456789\n".repeat(300_000));
    // The ranges after the first are pinned.
    let later = Filter::path("/in.csv").and_header("if-match", "");
    world.proxy().faults().add(Rule::new(Fault::HangInBody { after: 1000 }).when(later));
    for (times, end) in [(1, "pg_cancel_backend"), (2, "pg_terminate_backend")] {
        let mut copying = world.session();
        let pid = copying.pid();
        let held = world.proxy().log().held();
        let thread = start(copying, &format!("COPY t FROM '{}'", world.url("box/in.csv")));
        let progress = format!("SELECT 1 FROM pg_stat_progress_copy WHERE pid = {pid} AND tuples_processed > 90000");
        wait::until("it has the first range, and hangs", || {
            world.proxy().log().held() > held && !session.rows(&progress).is_empty()
        });
        assert!(number(&mut session, ACCOUNT, "get", "bytes_in") < times << 20, "counted when it ends");
        session.run(&format!("SELECT {end}({pid})"));
        assert!(!thread.join().unwrap());
        wait::until("it is counted", || number(&mut session, ACCOUNT, "get", "bytes_in") >= times << 20);
        assert_eq!(number(&mut session, ACCOUNT, "get", "errors"), 0, "it was no error of the service");
    }
    let waited = row(&mut session, ACCOUNT, "get", "total_time_ms");
    assert!(waited.parse::<f64>().unwrap() > 0.0, "{waited}");
}

#[test]
fn without_preloading_each_session_counts_for_itself() {
    let emulator = Emulator::start(Config::new(Pki::create().unwrap())).unwrap();
    let conf = format!("managed_identity.imds_endpoint = '{}'", emulator.imds_endpoint());
    let cluster = Cluster::start(Options { not_preloaded: true, ..Options::default() }.conf(conf));
    let mut session = cluster.session();
    session.run("CREATE EXTENSION managed_identity");
    session.run(TOKEN);
    assert_eq!(number(&mut session, "machine", "token", "requests"), 1);
    // From 17 on the tokens are all sessions' together even so.
    let slots = if major() < 17 { 16 } else { 64 };
    let status = session.value("SELECT preloaded, slots_used, slots_total FROM managed_identity.status");
    assert_eq!(status, format!("f|1|{slots}"));
    assert_eq!(cluster.session().rows("SELECT FROM managed_identity.stat_requests"), [""; 0]);
    session.run("SELECT managed_identity.stat_reset()");
    assert_eq!(session.rows("SELECT FROM managed_identity.stat_requests"), [""; 0]);
}

#[test]
fn the_status_tells_in_one_row_how_the_server_is_set_up() {
    let world = World::with(Options::default().conf("managed_identity.cache_entries = 64"), vec![Identity::system()]);
    let mut session = world.session();
    let status = "SELECT version, preloaded, worker_pid IS NULL OR worker_pid IN (SELECT pid FROM pg_stat_activity),
                         source, roots, slots_used, slots_total, next_expiry_seconds IS NULL
                  FROM managed_identity.status";
    let version = session.value("SELECT extversion FROM pg_extension WHERE extname = 'managed_identity'");
    assert_eq!(session.rows(status), [format!("{version}|t|t|imds|tls_ca_file|0|64|t")]);
    session.run(TOKEN);
    session.run("SELECT managed_identity.access_token('key-vault')");
    assert_eq!(session.rows(status), [format!("{version}|t|t|imds|tls_ca_file|2|64|f")]);
    let next = "SELECT next_expiry_seconds BETWEEN 1 AND
                       (SELECT extract(epoch FROM min(expires_at) - now()) + 1 FROM managed_identity.cached_tokens)
                FROM managed_identity.status";
    assert_eq!(session.value(next), "t");
    session.run("SELECT managed_identity.forget_tokens()");
    assert_eq!(session.rows(status), [format!("{version}|t|t|imds|tls_ca_file|0|64|t")]);
}
