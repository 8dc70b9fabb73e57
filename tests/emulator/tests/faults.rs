//! Each fault, as a client sees it, and what the log says of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{ErrorKind, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{SOON, STORAGE, VAULT, ask, emulator, get, token, token_url};
use emulator::{Emulator, Ending, Fault, Filter, Identity, Reply, Rule};

/// Sends a request for a token and reads nothing; the connection is the caller's to close.
fn ask_and_leave(emulator: &Emulator, more: &str) -> Box<dyn common::Duplex> {
    let url = token_url(emulator, STORAGE, more);
    let (mut stream, path) = common::connect(&url, None);
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nMetadata: true\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Time enough for a server that reads to notice that its client has left.
const MOMENT: Duration = Duration::from_millis(200);

#[test]
fn a_status_for_the_next_requests_only() {
    let emulator = emulator();
    let faults = emulator.identity().faults();
    let reply = Reply::new(429).header("retry-after", "7").body("slow down");
    faults.next(2, reply);
    faults.next(1, Fault::status(500));
    let first = ask(&emulator, STORAGE, "");
    assert_eq!((first.status, first.header("retry-after")), (429, Some("7")));
    assert_eq!(first.body, b"slow down");
    let rest: Vec<u16> = (0..3).map(|_| ask(&emulator, STORAGE, "").status).collect();
    assert_eq!(rest, [429, 500, 200]);
    let counters = emulator.identity().log().counters();
    assert_eq!(counters.by_status[&429], 2);
    assert_eq!(counters.issued("system", STORAGE), 1);
}

#[test]
fn filters_choose_the_identity_the_method_and_the_path() {
    let emulator = emulator();
    let keys = Identity::user("keys").client_id;
    let faults = emulator.identity().faults();
    let filter = Filter::query(&keys).and_method("get").and_path("oauth2");
    faults.add(Rule::new(Fault::status(503)).when(filter));
    faults.add(Rule::new(Fault::status(418)).when(Filter::query("resource=https://vault")));
    faults.add(Rule::new(Fault::status(410)).when(Filter::header("x-test", "go")));
    faults.add(Rule::new(Fault::status(501)).when(Filter::method("POST")));
    let selected = format!("&client_id={keys}");
    assert_eq!(ask(&emulator, STORAGE, &selected).status, 503);
    assert_eq!(ask(&emulator, VAULT, "").status, 418);
    assert_eq!(ask(&emulator, STORAGE, "").status, 200);
    let url = token_url(&emulator, STORAGE, "");
    let headers = [("metadata", "true"), ("X-Test", "go on")];
    assert_eq!(get(None, &url, &headers).status, 410);
    faults.clear();
    assert_eq!(ask(&emulator, STORAGE, &selected).status, 200);
}

#[test]
fn a_delay_goes_together_with_a_status() {
    let emulator = emulator();
    let faults = emulator.identity().faults();
    faults.always(Fault::delay(Duration::from_millis(150)));
    faults.next(1, Fault::status(500));
    let start = Instant::now();
    assert_eq!(ask(&emulator, STORAGE, "").status, 500);
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert_eq!(ask(&emulator, STORAGE, "").status, 200);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_hang_before_headers_outlives_its_client() {
    let emulator = emulator();
    let identity = emulator.identity();
    identity.faults().next(2, Fault::HangBeforeHeaders);
    let first = ask_and_leave(&emulator, "");
    identity.log().wait_for_held(1, SOON).unwrap();
    let second = ask_and_leave(&emulator, "");
    identity.log().wait_for_held(2, SOON).unwrap();
    drop((first, second));
    thread::sleep(MOMENT);
    assert_eq!(identity.log().held(), 2);
    // The others are served meanwhile.
    assert_eq!(ask(&emulator, STORAGE, "").status, 200);
    identity.faults().release();
    let none = |state: &emulator::State| state.held() == 0;
    identity.log().wait_until("none held", SOON, none).unwrap();
}

#[test]
fn a_hang_that_is_released_ends_in_the_right_answer() {
    let emulator = emulator();
    emulator.identity().faults().next(1, Fault::HangBeforeHeaders);
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&emulator, STORAGE, ""));
        let log = emulator.identity().log();
        log.wait_for_held(1, SOON).unwrap();
        emulator.identity().faults().release();
        assert_eq!(asked.join().unwrap().status, 200);
    });
}

#[test]
fn a_hang_in_the_body_sends_the_first_bytes_and_outlives_its_client() {
    let emulator = emulator();
    let identity = emulator.identity();
    identity.faults().next(2, Fault::HangInBody { after: 10 });
    // Beyond the end: before the last byte.
    identity.faults().next(1, Fault::HangInBody { after: u64::MAX });
    let mut clients: Vec<_> = (0..3).map(|_| ask_and_leave(&emulator, "")).collect();
    identity.log().wait_for_held(3, SOON).unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        clients[0].read_exact(&mut byte).unwrap();
        received.push(byte[0]);
    }
    clients[0].read_exact(&mut [0; 10]).unwrap();
    drop(clients);
    thread::sleep(MOMENT);
    assert_eq!(identity.log().held(), 3);
    assert_eq!(identity.log().requests()[0].bytes_sent, 10);
    identity.faults().release();
    identity.log().wait_for_ended(3, SOON).unwrap();
}

#[test]
fn dropping_the_emulator_ends_what_is_held() {
    let emulator = emulator();
    emulator.identity().faults().always(Fault::HangBeforeHeaders);
    let mut stream = ask_and_leave(&emulator, "");
    emulator.identity().log().wait_for_held(1, SOON).unwrap();
    drop(emulator);
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{ended:?}");
}

#[test]
fn a_reset_before_the_answer() {
    let emulator = emulator();
    emulator.identity().faults().next(1, Fault::Reset);
    let answer = ask(&emulator, STORAGE, "");
    assert_eq!((answer.status, answer.end), (0, Some(ErrorKind::ConnectionReset)));
    let log = emulator.identity().log();
    log.wait_for_ended(1, SOON).unwrap();
    assert_eq!(log.requests()[0].ending, Ending::Reset);
    assert_eq!(ask(&emulator, STORAGE, "").status, 200);
}

#[test]
fn a_body_is_cut_by_a_reset_or_by_a_close() {
    let emulator = emulator();
    let faults = emulator.identity().faults();
    faults.next(1, Fault::Cut { after: 100 });
    faults.next(1, Fault::Truncate { after: 200 });
    let cut = ask(&emulator, STORAGE, "");
    assert_eq!((cut.status, cut.body.len()), (200, 100));
    assert_eq!(cut.end, Some(ErrorKind::ConnectionReset));
    let truncated = ask(&emulator, STORAGE, "");
    assert_eq!((truncated.body.len(), truncated.end), (200, None));
    assert!(!truncated.is_whole());
    let log = emulator.identity().log();
    let endings: Vec<_> = log.requests().iter().map(|entry| entry.ending).collect();
    assert_eq!(endings, [Ending::Cut, Ending::Cut]);
}

#[test]
fn the_vault_has_the_same_faults_over_tls() {
    let emulator = emulator();
    let bearer = format!("Bearer {}", token(&emulator, VAULT));
    let headers = [("authorization", bearer.as_str())];
    let url = format!("{}/secrets/db?api-version=7.4", emulator.vault_uri());
    let read = || get(Some(emulator.pki()), &url, &headers);
    let faults = emulator.vault().faults();
    faults.next(1, Fault::status(429));
    faults.next(1, Fault::Reset);
    faults.next(1, Fault::Cut { after: 20 });
    assert_eq!(read().status, 429);
    assert_eq!(read().end, Some(ErrorKind::ConnectionReset));
    let cut = read();
    assert_eq!((cut.body.len(), cut.end), (20, Some(ErrorKind::ConnectionReset)));
    faults.next(1, Fault::HangInBody { after: 5 });
    thread::scope(|scope| {
        let reading = scope.spawn(read);
        emulator.vault().log().wait_for_held(1, SOON).unwrap();
        faults.release();
        assert!(reading.join().unwrap().is_whole());
    });
}

#[test]
fn a_callback_runs_in_the_middle_of_the_chosen_request() {
    let emulator = emulator();
    let (sender, receiver) = mpsc::channel();
    let callback = Fault::call(move |entry| sender.send(entry.sequence).unwrap());
    emulator.identity().faults().add(Rule::new(callback).skip(1).times(1));
    for _ in 0..3 {
        assert_eq!(ask(&emulator, STORAGE, "").status, 200);
    }
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [1]);
    let panics = Fault::call(|_| panic!("as a test's assertion does"));
    emulator.identity().faults().next(1, panics);
    assert_eq!(ask(&emulator, STORAGE, "").status, 500);
}

#[test]
fn a_client_that_leaves_is_told_from_one_that_was_answered() {
    let emulator = emulator();
    let identity = emulator.identity();
    identity.set_token_size(Some(8_000_000));
    drop(ask_and_leave(&emulator, ""));
    identity.log().wait_for_ended(1, SOON).unwrap();
    assert_eq!(identity.log().requests()[0].ending, Ending::Broken);
}

#[test]
fn a_hang_over_tls_outlives_a_client_that_resets() {
    let emulator = emulator();
    let vault = emulator.vault();
    vault.faults().next(1, Fault::HangBeforeHeaders);
    let address = emulator.vault_uri().replace("https://", "");
    let stream = std::net::TcpStream::connect(address).unwrap();
    let config = std::sync::Arc::new(emulator.pki().client_config().unwrap());
    let tls = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut client = rustls::StreamOwned::new(tls, stream);
    client.write_all(b"GET /secrets/db HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    vault.log().wait_for_held(1, SOON).unwrap();
    socket2::SockRef::from(&client.sock).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    thread::sleep(MOMENT);
    assert_eq!(vault.log().held(), 1);
    assert_eq!(vault.log().requests()[0].ending, Ending::UnderWay);
}

#[test]
fn one_identity_hangs_and_two_hundred_others_are_answered_at_once() {
    let emulator = emulator();
    let keys = Identity::user("keys").client_id;
    let faults = emulator.identity().faults();
    faults.add(Rule::new(Fault::HangBeforeHeaders).when(Filter::query(&keys)));
    faults.always(Fault::delay(Duration::from_millis(50)));
    let hung: Vec<_> = (0..20).map(|_| ask_and_leave(&emulator, &format!("&client_id={keys}"))).collect();
    thread::scope(|scope| {
        let asking: Vec<_> = (0..200).map(|_| scope.spawn(|| ask(&emulator, STORAGE, "").status)).collect();
        assert!(asking.into_iter().all(|asked| asked.join().unwrap() == 200));
    });
    emulator.identity().log().wait_for_held(20, SOON).unwrap();
    assert_eq!(emulator.identity().log().counters().issued("system", STORAGE), 200);
    drop(hung);
}
