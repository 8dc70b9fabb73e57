//! COPY by URL while the network and the storage service misbehave: the same rows as without, or the
//! error that says what happened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;

use emulator::{Ending, Entry, Fault, Filter, Refuses, Reply, Rule};
use flate2::Compression;
use flate2::write::GzEncoder;
use server_tests::{ACCOUNT, Options, Session, World, outcome, wait};

const MIB: usize = 1 << 20;
const SUM: &str = "SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM t";

/// Lines of 100 bytes, about `mib` MiB of them.
fn lines(mib: usize) -> Vec<u8> {
    let line = |i: u64| format!("{i:010},{:0>88}\n", i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (0..(mib * MIB / 100) as u64).map(line).collect::<String>().into_bytes()
}

/// A world with table `t`, blob `box/big.csv` of so many MiB, and what `SUM` says once it is loaded.
fn world_with(mib: usize) -> (World, Session, String) {
    let world = World::with_storage_and(Options::default().no_renewal_ahead());
    let mut session = world.session();
    session.run("CREATE TABLE t (a bigint, b text)");
    let data = lines(mib);
    let file = world.cluster.file("big.csv", &data);
    world.azurite().put("box/big.csv", data);
    session.run(&format!("COPY t FROM '{file}' (FORMAT csv)"));
    let expected = session.value(SUM);
    session.run("TRUNCATE t");
    (world, session, expected)
}

/// Runs a COPY on a thread of its own, `meanwhile`, and gives back the session and what it said.
fn beside(mut session: Session, sql: String, meanwhile: impl FnOnce()) -> (Session, String) {
    let thread = thread::spawn(move || {
        let said = outcome(&mut session, &sql);
        (session, said)
    });
    meanwhile();
    thread.join().unwrap()
}

#[test]
fn a_download_that_is_cut_after_every_5_mib_is_whole_and_asks_for_nothing_twice() {
    let (world, mut session, expected) = world_with(30);
    let load = format!("TRUNCATE t; COPY t FROM '{}'", world.url("box/big.csv"));
    let (log, faults) = (world.proxy().log(), world.proxy().faults());

    faults.always(Fault::Cut { after: 5 * MIB as u64 });
    session.run(&load);
    assert_eq!(session.value(SUM), expected, "each answer is cut after 5 MiB");
    let requests = log.requests();
    assert!(requests.iter().filter(|entry| entry.ending == Ending::Cut).count() >= 3);
    let sent: u64 = requests.iter().map(|entry| entry.bytes_sent).sum();
    assert!(sent < 45 * MIB as u64, "what arrived is not asked for again: {sent}");
    let first = &requests[0];
    assert!(first.header("if-match").is_none(), "there is no ETag yet");
    assert!(requests[1..].iter().all(|entry| entry.header("if-match").is_some()), "one version only");

    assert_eq!(world.asked(), 1, "none of this was the token's fault");
}

#[test]
fn a_download_that_is_cut_reset_refused_and_throttled_here_and_there_is_whole() {
    let (world, mut session, expected) = world_with(10);
    let load = format!("TRUNCATE t; COPY t FROM '{}'", world.url("box/big.csv"));
    let (log, faults) = (world.proxy().log(), world.proxy().faults());
    for (what, fault, times) in [
        ("cut after a byte", Fault::Cut { after: 1 }, 4),
        ("ended early in good order", Fault::Truncate { after: 100_000 }, 4),
        ("reset", Fault::Reset, 3),
        ("503", Fault::status(503), 3),
        ("500", Fault::status(500), 2),
        ("429", Reply::new(429).header("retry-after", "1").into(), 1),
    ] {
        // The first request of all, and one in the middle.
        for skip in [0, 2] {
            faults.clear();
            log.clear();
            faults.add(Rule::new(fault.clone()).times(times).skip(skip));
            session.run(&load);
            assert_eq!(session.value(SUM), expected, "{what} after {skip}");
            assert!(log.count() >= 3 + times as usize, "{what} after {skip}: it struck");
        }
    }
    faults.clear();
    faults.always(Fault::Bandwidth { bytes_per_second: 40_000_000 });
    session.run(&load);
    assert_eq!(session.value(SUM), expected, "slow");
    assert_eq!(world.asked(), 1, "none of this was the token's fault");
}

#[test]
fn a_gzipped_blob_that_seems_to_end_early_is_never_taken_for_whole() {
    let (world, mut session, expected) = world_with(12);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&lines(12)).unwrap();
    let gzip = gzip.finish().unwrap();
    // Cut where one of two members ends: what is there is a whole gzip file.
    let member = gzip.len() as u64;
    world.azurite().put("box/big.csv.gz", [gzip.clone(), gzip].concat());
    let load = format!("COPY t FROM '{}'", world.url("box/big.csv.gz"));
    let first_range = MIB as u64;
    assert!(member > first_range + 1000);
    world.proxy().faults().add(Rule::new(Fault::Truncate { after: member - first_range }).skip(1).times(1));
    assert_eq!(session.count(&load), 2 * lines(12).len() as u64 / 100);
    let requests = world.proxy().log().requests();
    assert!(requests.iter().any(|entry| entry.bytes_sent == member - first_range), "it was cut between the members");
    session.run("DELETE FROM t WHERE ctid NOT IN (SELECT DISTINCT ON (a) ctid FROM t)");
    assert_eq!(session.value(SUM), expected);
}

/// Waits, with the requests held, until every token there is has ended; says how often one was asked for.
fn outlive_the_token(world: &World) -> usize {
    let mut watcher = world.session();
    wait::until("the token has ended", || {
        let ended = "SELECT bool_and(now() > expires_at + interval '1 second') FROM managed_identity.cached_tokens";
        watcher.value(ended) == "t"
    });
    world.emulator.identity().set_token_life(86_400);
    world.asked()
}

/// Azurite itself refused the held requests, each was sent once more, with another token.
fn renewed_once(requests: &[Entry], key: impl Fn(&Entry) -> String, held: usize) {
    let mut tries: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
    for entry in requests {
        tries.entry(key(entry)).or_default().push(entry);
    }
    let mut refused = 0;
    for (key, tries) in &tries {
        let spent: Vec<_> = tries.iter().filter(|entry| matches!(entry.status, Some(401 | 403))).collect();
        assert!(spent.len() <= 1, "{key}: one refusal is enough");
        if let [entry] = spent.as_slice() {
            refused += 1;
            assert!(
                tries.iter().all(|other| other.sequence == entry.sequence || other.bearer != entry.bearer),
                "{key}"
            );
            assert_eq!(tries.len(), 2, "{key}: sent once more");
        }
    }
    assert_eq!(refused, held);
}

#[test]
fn a_copy_outlives_its_token_in_both_directions() {
    let (world, session, expected) = world_with(30);
    let (log, faults) = (world.proxy().log(), world.proxy().faults());
    world.emulator.identity().set_token_life(5);
    // One answer stands still, and two requests reach Azurite when their token has ended.
    faults.add(Rule::new(Fault::HangInBody { after: 1000 }).times(1));
    faults.add(Rule::new(Fault::HangBeforeHeaders).skip(1).times(2));
    let mut before = 0;
    let (mut session, said) = beside(session, format!("COPY t FROM '{}'", world.url("box/big.csv")), || {
        log.wait_for_held(3, wait::LONG).unwrap();
        before = outlive_the_token(&world);
        faults.release();
    });
    assert_eq!(said, format!("COPY {}", lines(30).len() / 100));
    assert_eq!(session.value(SUM), expected);
    assert_eq!(world.asked(), before + 1, "one token more for both");
    renewed_once(&log.requests(), |entry| entry.header("range").unwrap_or_default().into(), 2);

    log.clear();
    session.run("SELECT managed_identity.forget_tokens(); SET azure_storage.blob_block_size_mb = 1");
    world.emulator.identity().set_token_life(5);
    faults.add(Rule::new(Fault::HangBeforeHeaders).skip(1).times(2).when(Filter::query("comp=block")));
    let dump = "COPY (SELECT lpad(a::text, 10, '0'), b FROM t ORDER BY a LIMIT 120000) TO";
    let (_, said) = beside(session, format!("{dump} '{}'", world.url("box/out.csv")), || {
        log.wait_for_held(2, wait::LONG).unwrap();
        before = outlive_the_token(&world);
        faults.release();
    });
    assert_eq!(said, "COPY 120000");
    assert!(world.azurite().get("box/out.csv").unwrap() == lines(30)[..12_000_000]);
    assert_eq!(world.asked(), before + 1, "one token more for both");
    renewed_once(&log.requests(), |entry| entry.raw_query.clone(), 2);
}

#[test]
fn a_refusal_of_a_token_that_lives_is_final_and_says_what_is_missing() {
    let (world, mut session, _) = world_with(3);
    let url = world.url("box/big.csv");
    session.run("INSERT INTO t VALUES (1, 'x')");
    let reply = || {
        let code = "AuthorizationPermissionMismatch";
        Reply::new(403).header("x-ms-error-code", code).header("x-ms-request-id", "12ab-34").body("canary")
    };
    for (status, skip, sql, role) in [
        (403, 0, format!("COPY t FROM '{url}'"), "Storage Blob Data Reader"),
        (403, 1, format!("COPY t FROM '{url}'"), "Storage Blob Data Reader"),
        (403, 0, format!("COPY t TO '{url}'"), "Storage Blob Data Contributor"),
        (401, 0, format!("COPY t FROM '{url}'"), "Storage Blob Data Reader"),
    ] {
        world.proxy().log().clear();
        world.proxy().faults().clear();
        world.proxy().faults().add(Rule::new(Reply { status, ..reply() }).skip(skip));
        let error = session.error(&sql);
        assert_eq!(error.code().code(), "28000", "{error:?}");
        for part in [&status.to_string(), "AuthorizationPermissionMismatch", "12ab-34"] {
            assert!(error.detail().unwrap().contains(part), "{error:?}");
        }
        assert!(error.hint().unwrap().contains(role), "{error:?}");
        assert!(!format!("{error:?}").contains("canary"));
        let mut tries = BTreeMap::new();
        for entry in world.proxy().log().requests() {
            *tries.entry(entry.header("range").map(str::to_owned)).or_insert(0) += 1;
        }
        assert!(tries.values().all(|count| *count == 1), "asked once: {tries:?}");
    }
    assert_eq!(world.asked(), 1, "no renewal");
    assert_eq!(session.value("SELECT count(*) FROM t"), "1", "no row came");
}

#[test]
fn a_blob_that_changes_or_goes_meanwhile_leaves_no_row() {
    let (world, session, _) = world_with(20);
    let load = |path: &str| format!("COPY t FROM '{}'", world.url(path));
    let mut session = session;
    let held = |session: Session, path: &str, meanwhile: &dyn Fn()| {
        world.proxy().faults().add(Rule::new(Fault::HangBeforeHeaders).skip(1).times(2));
        beside(session, load(path), || {
            world.proxy().log().wait_for_held(2, wait::LONG).unwrap();
            meanwhile();
            world.proxy().faults().release();
        })
    };
    // Rewritten with other bytes, with the very same ones, and shorter than what is still to be read.
    for content in [lines(20).into_iter().rev().collect(), lines(20), b"1,short\n".to_vec()] {
        world.azurite().put("box/big.csv", lines(20));
        let said;
        (session, said) = held(session, "box/big.csv", &|| world.azurite().put("box/big.csv", content.clone()));
        assert!(said.starts_with("ERROR 58030: the blob changed while it was read"), "{said}");
        assert_eq!(session.value("SELECT count(*) FROM t"), "0");
    }
    world.azurite().create_container("other");
    world.azurite().put("other/big.csv", lines(20));
    let said;
    (session, said) = held(session, "other/big.csv", &|| world.azurite().delete_container("other"));
    assert!(said.starts_with("ERROR 58P01: azure_storage: container with the given name does not exist"), "{said}");
    assert_eq!(session.value("SELECT count(*) FROM t"), "0");

    let container = "azure_storage: container with the given name does not exist";
    let refuses = Refuses::start().unwrap();
    session.run(&format!(
        "CREATE SERVER refuses FOREIGN DATA WRAPPER azure_storage OPTIONS (endpoint 'https://{}/{ACCOUNT}')",
        refuses.address()
    ));
    let nobody = format!("https://{}/{ACCOUNT}/box/a.csv", refuses.address());
    for (sql, sqlstate, message) in [
        (load("other/big.csv"), "58P01", container),
        (load("box/none.csv"), "58P01", "azure_storage: blob with the given name does not exist"),
        (format!("COPY (SELECT 1) TO '{}'", world.url("other/a.csv")), "58P01", container),
        (format!("COPY t FROM '{nobody}'"), "08001", "could not reach"),
        (format!("COPY (SELECT 1) TO '{nobody}'"), "08001", "could not reach"),
    ] {
        let error = session.error(&sql);
        assert_eq!((error.code().code(), error.where_()), (sqlstate, None), "{error:?}");
        assert!(error.message().starts_with(message), "{error:?}");
        assert!(error.detail().is_some(), "{error:?}");
    }
}

#[test]
fn an_upload_that_is_cut_reset_refused_and_throttled_is_whole_and_one_that_cannot_end_leaves_the_old_blob() {
    let (world, mut session, _) = world_with(8);
    session.run(&format!("COPY t FROM '{}'; SET azure_storage.blob_block_size_mb = 1", world.url("box/big.csv")));
    let (log, faults) = (world.proxy().log(), world.proxy().faults());
    let dump = "COPY (SELECT lpad(a::text, 10, '0'), b FROM t ORDER BY a) TO";
    for (what, fault, times) in [
        ("reset", Fault::Reset, 3),
        // Done, but nobody hears of it: the next try finds a blob where it expects blocks.
        ("lost", Fault::Lose, 2),
        ("503", Fault::status(503), 3),
        ("500", Fault::status(500), 2),
        ("429", Reply::new(429).header("retry-after", "1").into(), 1),
    ] {
        for query in ["comp=block&", "comp=blocklist"] {
            faults.clear();
            log.clear();
            let name = format!("box/{what}.csv");
            faults.add(Rule::new(fault.clone()).times(times).when(Filter::query(query)));
            assert_eq!(session.count(&format!("{dump} '{}'", world.url(&name))), lines(8).len() as u64 / 100);
            assert!(world.azurite().get(&name).unwrap() == lines(8), "{what} {query}");
            assert!(log.count() >= 9 + times as usize, "{what} {query}: it struck {}", log.count());
        }
    }
    // One request makes a small blob.
    faults.clear();
    faults.next(2, Fault::Reset);
    faults.next(2, Fault::status(503));
    session.run(&format!("COPY (SELECT 'small') TO '{}'", world.url("box/small.csv")));
    assert_eq!(world.azurite().text("box/small.csv"), "small\n");

    for (query, sql) in [("comp=blocklist", dump), ("", "COPY (SELECT 'new') TO")] {
        world.azurite().put("box/kept.csv", "old");
        faults.clear();
        faults.add(Rule::new(Fault::status(503)).when(Filter::method("PUT").and_query(query)));
        let error = session.error(&format!("{sql} '{}'", world.url("box/kept.csv")));
        assert_eq!(error.code().code(), "58000", "{query}: {error:?}");
        assert!(error.detail().unwrap().contains("503"), "{error:?}");
        faults.clear();
        assert_eq!(world.azurite().text("box/kept.csv"), "old", "{query}");
    }
    // Another's blob in place of our blocks is not ours, however it came there.
    let mut other = world.session();
    other.run("SET azure_storage.blob_block_size_mb = 1");
    faults.add(Rule::new(Fault::HangBeforeHeaders).when(Filter::query("comp=blocklist")).times(1));
    let to_theirs = format!("'{}'", world.url("box/theirs.csv"));
    let (_, said) = beside(session, format!("{dump} {to_theirs}"), || {
        log.wait_for_held(1, wait::LONG).unwrap();
        other.run(&format!("COPY (SELECT 'theirs' FROM t, generate_series(1, 5)) TO {to_theirs}"));
        faults.release();
    });
    assert!(said.starts_with("ERROR 55006: another upload to this blob stands in the way"), "{said}");
    assert!(world.azurite().text("box/theirs.csv").starts_with("theirs"));
    assert_eq!(world.asked(), 1, "none of this was the token's fault");
}
