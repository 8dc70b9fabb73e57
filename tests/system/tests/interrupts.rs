//! Waiting on the network can be interrupted, wherever it hangs: the session is back while the endpoint
//! still holds its connection, is as good as new, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use emulator::{Fault, Filter, NeverAccepts, Rule, TlsNeverAnswers};
use server_tests::{Options, Session, World, major, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Cancel,
    Terminate,
    StatementTimeout,
}

const ALL: [How; 3] = [How::Cancel, How::Terminate, How::StatementTimeout];

/// Lets a session hang in `sql` until `reached`, interrupts it, and checks that it came back for that
/// reason while `held` is true.
fn interrupt(world: &World, how: How, sql: &str, reached: impl Fn(i32) -> bool, held: impl Fn(i32) -> bool) {
    let mut session = world.session();
    session.run("SET managed_identity.acquire_timeout = '5min'; SET azure_storage.blob_block_size_mb = 1");
    let pid = session.pid();
    let hanging = sql.to_owned();
    let victim = thread::spawn(move || {
        if how == How::StatementTimeout {
            // Long enough that the statement hangs by then.
            session.run("SET statement_timeout = '2s'");
        }
        let error = session.client().simple_query(&hanging).expect_err("interrupted");
        (session, error.code().map(|state| state.code().to_owned()))
    });
    wait::until(&format!("{sql} hangs"), || reached(pid));
    let function = match how {
        How::Cancel => Some("pg_cancel_backend"),
        How::Terminate => Some("pg_terminate_backend"),
        How::StatementTimeout => None,
    };
    if let Some(function) = function {
        assert_eq!(world.session().value(&format!("SELECT {function}({pid})::text")), "true");
    }
    let (mut session, sqlstate) = victim.join().expect("the session is back");
    assert!(held(pid), "{how:?}: the endpoint still holds its connection");
    if how == How::Terminate {
        // The client may notice the end of the connection before the server's last word.
        assert!(sqlstate.is_none() || sqlstate.as_deref() == Some("57P01"), "{sql}: {sqlstate:?}");
        let word = format!("[{pid}] FATAL:  terminating connection due to administrator command");
        wait::until("the server has ended the session", || world.cluster.log().contains(&word));
    } else {
        assert_eq!(sqlstate.as_deref(), Some("57014"), "{how:?} {sql}");
    }
    let owned = "SELECT count(*) FROM managed_identity.cached_tokens WHERE state = 'fetching' AND waiting > 0";
    assert_eq!(world.session().value(owned), "0");
    if how == How::Terminate {
        wait::until("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    } else {
        session.run("SET statement_timeout = 0");
        assert_eq!(session.value("SELECT 6 * 7"), "42");
    }
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// No process of the server died by a signal, and it never recovered.
fn nothing_crashed(world: &World) {
    let log = world.cluster.log();
    for sign in ["was terminated by signal", "terminating any other active", "automatic recovery", "panicked"] {
        assert!(!log.contains(sign), "the log says \"{sign}\"");
    }
}

fn nobody_fetches(world: &World) {
    let fetching = "SELECT count(*) FROM managed_identity.cached_tokens WHERE state = 'fetching' OR waiting > 0";
    wait::until("no slot is owned", || world.session().value(fetching) == "0");
}

/// After everything was released: a token comes as ever.
fn all_is_well(world: &World) {
    nobody_fetches(world);
    let faults = world.emulator.identity().faults();
    faults.clear();
    faults.release();
    assert!(!world.session().value(TOKEN).is_empty());
    nothing_crashed(world);
}

#[test]
fn for_an_answers_headers() {
    let world = World::new();
    let identity = world.emulator.identity();
    for (count, how) in ALL.into_iter().enumerate() {
        identity.faults().next(1, Fault::HangBeforeHeaders);
        let held = |_| identity.log().held() == count + 1;
        interrupt(&world, how, TOKEN, held, held);
        nobody_fetches(&world);
    }
    all_is_well(&world);
}

#[test]
fn in_the_middle_of_a_body() {
    let world = World::new();
    let identity = world.emulator.identity();
    for (count, how) in ALL.into_iter().enumerate() {
        identity.faults().next(1, Fault::HangInBody { after: 100 });
        let held = |_| identity.log().held() == count + 1;
        interrupt(&world, how, TOKEN, held, held);
        nobody_fetches(&world);
    }
    all_is_well(&world);
}

#[test]
fn for_another_sessions_fetch() {
    let world = World::new();
    let identity = world.emulator.identity();
    for how in ALL {
        identity.faults().next(1, Fault::HangBeforeHeaders);
        let held = || identity.log().held() == 1;
        let mut leader = world.session();
        leader.run("SELECT managed_identity.forget_tokens()");
        let leader = thread::spawn(move || leader.value(TOKEN));
        wait::until("the leader's fetch hangs", held);
        let waits = |_| world.session().rows("SELECT waiting FROM managed_identity.cached_tokens") == ["1"];
        interrupt(&world, how, TOKEN, waits, |_| held());
        identity.faults().release();
        assert!(!leader.join().expect("the leader").is_empty(), "the leader is not touched");
    }
    all_is_well(&world);
}

#[test]
fn for_a_connection() {
    let world = World::new();
    let endpoint = NeverAccepts::start().expect("a listener");
    world.set("managed_identity.connect_timeout", "5min");
    world.set("managed_identity.imds_endpoint", &format!("http://{}", endpoint.address()));
    // The kernel's own view: a connection that was asked for and not answered.
    let asked = |pid| has_connection_in_state(pid, "02");
    for how in ALL {
        interrupt(&world, how, TOKEN, asked, |_| true);
        nobody_fetches(&world);
    }
    world.set("managed_identity.imds_endpoint", &world.emulator.imds_endpoint());
    all_is_well(&world);
}

/// Whether a process has a socket in this state of `/proc/net/tcp` (02: SYN_SENT).
fn has_connection_in_state(pid: i32, state: &str) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&state) && fields.get(9).is_some_and(|inode| sockets.iter().any(|own| own == inode))
    })
}

#[test]
fn for_tls() {
    let world = World::new();
    let endpoint = TlsNeverAnswers::start().expect("a listener");
    world.set("managed_identity.connect_timeout", "5min");
    world.set("managed_identity.imds_endpoint", &endpoint.endpoint());
    for (count, how) in ALL.into_iter().enumerate() {
        let held = |_| endpoint.log().held() == count + 1;
        interrupt(&world, how, TOKEN, held, held);
        nobody_fetches(&world);
    }
    world.set("managed_identity.imds_endpoint", &world.emulator.imds_endpoint());
    all_is_well(&world);
}

#[test]
fn for_a_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), everyone).unwrap();
    let (library, fifo) = (folder.path().join("hang.so"), folder.path().join("fifo"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hanging_resolver.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.expect("cc runs").success());
    assert!(Command::new("mkfifo").args(["-m", "666"]).arg(&fifo).status().expect("mkfifo runs").success());
    let options = Options::default()
        .environment("LD_PRELOAD", library.to_str().unwrap())
        .environment("HANG_FIFO", fifo.to_str().unwrap());
    let world = World::with(options, vec![emulator::Identity::system()]);
    let endpoint = world.emulator.imds_endpoint().replace("127.0.0.1", "slow.hang.test");
    world.set("managed_identity.connect_timeout", "5min");
    world.set("managed_identity.imds_endpoint", &endpoint);
    // The look-up runs on a thread of its own: getaddrinfo cannot be interrupted, only left.
    let looks_up = |pid| threads(pid) == 2;
    interrupt(&world, How::Cancel, TOKEN, looks_up, looks_up);
    interrupt(&world, How::StatementTimeout, TOKEN, looks_up, looks_up);
    interrupt(&world, How::Terminate, TOKEN, looks_up, |_| true);
    // A session that was interrupted in a look-up looks up again when that one has ended.
    let mut session = world.session();
    let pid = session.pid();
    let cancelled = thread::spawn(move || (session.sqlstate(TOKEN), session));
    wait::until("it looks up", || looks_up(pid));
    world.session().run(&format!("SELECT pg_cancel_backend({pid})"));
    let (sqlstate, mut session) = cancelled.join().unwrap();
    assert_eq!(sqlstate, "57014");
    let again = thread::spawn(move || session.value(TOKEN));
    // Each look-up reads the FIFO once, when somebody opens it to write.
    wait::until("the token comes", || {
        const NONBLOCK: i32 = 0o4000;
        let _ =
            std::os::unix::fs::OpenOptionsExt::custom_flags(fs::OpenOptions::new().write(true), NONBLOCK).open(&fifo);
        again.is_finished()
    });
    assert!(!again.join().unwrap().is_empty());
    wait::until("no thread is left", || threads(pid) <= 1);
    nothing_crashed(&world);
}

#[test]
fn in_a_copy_at_each_place() {
    let world = World::with_storage();
    let faults = world.proxy().faults();
    world.azurite().put("box/big.csv", "1,some text that fills a line\n".repeat(1_000_000));
    world.session().run("CREATE TABLE t (a int, b text)");
    let from = format!("COPY t FROM '{}'", world.url("box/big.csv"));
    let to =
        format!("COPY (SELECT i, md5(i::text) FROM generate_series(1, 60000) i) TO '{}'", world.url("box/out.csv"));
    let places = [
        (&from, Filter::method("GET"), Fault::HangBeforeHeaders),
        (&from, Filter::method("GET"), Fault::HangInBody { after: 1 << 19 }),
        // A block, not the list: a commit that has reached the service cannot be called back.
        (&to, Filter::query("blockid"), Fault::HangBeforeHeaders),
    ];
    for (sql, filter, fault) in places {
        for how in ALL {
            faults.add(Rule::new(fault.clone()).when(filter.clone()));
            let held = |_| world.proxy().log().held() >= 1;
            interrupt(&world, how, sql, held, held);
            faults.clear();
            faults.release();
            wait::until("the proxy has let go", || world.proxy().log().held() == 0);
        }
    }
    assert_eq!(world.session().value("SELECT count(*) FROM t"), "0");
    assert!(world.azurite().get("box/out.csv").is_none(), "no blob appeared");
    if major() < 16 {
        let spool = world.cluster.data_folder().join("base/pgsql_tmp");
        assert_eq!(fs::read_dir(spool).map_or(0, Iterator::count), 0, "no spool file is left");
    }
    // A session that was cancelled has no thread any more.
    faults.add(Rule::new(Fault::HangInBody { after: 1 << 20 }).when(Filter::method("GET")));
    let mut session = world.session();
    let pid = session.pid();
    let sql = from.clone();
    let cancelled = thread::spawn(move || (session.sqlstate(&sql), session));
    wait::until("it hangs", || world.proxy().log().held() >= 1);
    assert!(threads(pid) > 1);
    world.session().run(&format!("SELECT pg_cancel_backend({pid})"));
    let (sqlstate, mut session) = cancelled.join().unwrap();
    assert_eq!(sqlstate, "57014");
    wait::until("the helper thread is gone", || threads(pid) == 1);
    faults.clear();
    faults.release();
    assert_eq!(session.count(&from), 1_000_000);
    nothing_crashed(&world);
}

#[test]
fn by_a_fast_shutdown_and_by_the_postmasters_death() {
    let world = World::with_storage();
    world.azurite().put("box/big.csv", "1\n".repeat(2_000_000));
    world.session().run("CREATE TABLE t (a int)");
    let from = format!("COPY t FROM '{}'", world.url("box/big.csv"));
    let (identity, proxy) = (world.emulator.identity(), world.proxy());
    world.session().run(TOKEN);
    let hang = || {
        identity.faults().next(1, Fault::HangBeforeHeaders);
        proxy.faults().add(Rule::new(Fault::HangInBody { after: 1 << 20 }).when(Filter::method("GET")));
        let (before, copies) = (identity.log().held(), proxy.log().held());
        let sql = ["SELECT managed_identity.access_token('sql')", "SELECT managed_identity.access_token('sql')", &from];
        let mut pids = Vec::new();
        for (at, sql) in sql.into_iter().enumerate() {
            let mut session: Session = world.session();
            pids.push(session.pid());
            let sql = sql.to_owned();
            thread::spawn(move || {
                let _ = session.client().simple_query(&sql);
            });
            match at {
                0 => wait::until("the fetch hangs", || identity.log().held() == before + 1),
                1 => wait::until("the next waits", || {
                    world.session().value("SELECT coalesce(sum(waiting), 0) FROM managed_identity.cached_tokens") == "1"
                }),
                _ => wait::until("the COPY hangs", || proxy.log().held() > copies),
            }
        }
        pids
    };
    let gone = |pids: &[i32]| pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    let let_go = || {
        proxy.faults().clear();
        proxy.faults().release();
        identity.faults().release();
    };

    let pids = hang();
    world.cluster.stop("fast");
    assert!(identity.log().held() >= 1 && proxy.log().held() >= 1, "the endpoints still hold their connections");
    assert!(gone(&pids));
    nothing_crashed(&world);
    let_go();
    world.cluster.start_again();
    assert!(!world.session().value(TOKEN).is_empty());

    let pids = hang();
    let postmaster = world.cluster.postmaster();
    assert!(Command::new("kill").args(["-9", &postmaster.to_string()]).status().unwrap().success());
    wait::until("all sessions are gone with the postmaster", || gone(&pids));
    assert!(identity.log().held() >= 1 && proxy.log().held() >= 1, "the endpoints still hold their connections");
    let_go();
}
