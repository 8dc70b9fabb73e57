//! The proxy passes all on, tells of all, and breaks what it is told to break.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{SOON, VAULT, connect, emulator, get, send, token};
use emulator::{Ending, Fault, Filter, Pki, Proxy, Reply, Rule};

/// A blob service in the small: `GET /N` gives N bytes, a PUT tells how many it got.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    format!("http://{address}")
}

fn serve(stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some((method, path, length)) = head(&mut reader) {
        let copied = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink());
        let got = copied.unwrap();
        let path = path.split('?').next().unwrap();
        let size: usize = path.trim_start_matches('/').parse().unwrap_or(0);
        let answer = if method == "PUT" {
            format!("HTTP/1.1 201 Created\r\nx-got: {got}\r\ncontent-length: 0\r\n\r\n")
        } else {
            format!("HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: {size}\r\n\r\n")
        };
        let stream = reader.get_mut();
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
        if method == "GET" && !body(stream, size) {
            return;
        }
    }
}

fn head(reader: &mut BufReader<TcpStream>) -> Option<(String, String, u64)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            return Some((method, path, length));
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
}

fn body(stream: &mut TcpStream, mut size: usize) -> bool {
    let chunk = [b'x'; 65_536];
    while size > 0 {
        let n = size.min(chunk.len());
        if stream.write_all(&chunk[..n]).is_err() {
            return false;
        }
        size -= n;
    }
    true
}

fn start() -> (Pki, Proxy) {
    let pki = Pki::create().unwrap();
    let proxy = Proxy::start(&pki, &upstream(), 0).unwrap();
    (pki, proxy)
}

#[test]
fn requests_pass_and_are_logged_whole() {
    let (pki, proxy) = start();
    let at = format!("{}/5000?sig=s%2Fecret&comp=block", proxy.endpoint());
    let headers = [
        ("Authorization", "Bearer abc"),
        ("Range", "bytes=0-9"),
        ("If-Match", "\"1\""),
        ("x-ms-blob-type", "BlockBlob"),
    ];
    let answer = get(Some(&pki), &at, &headers);
    assert_eq!((answer.status, answer.header("etag")), (200, Some("\"1\"")));
    assert_eq!(answer.body.len(), 5000);
    assert!(answer.is_whole());
    let put = send(Some(&pki), "PUT", &at, &[], &[b'y'; 300_000]);
    assert_eq!((put.status, put.header("x-got")), (201, Some("300000")));
    let head = send(Some(&pki), "HEAD", &at, &[], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("5000")));

    proxy.log().wait_for_ended(3, SOON).unwrap();
    let log = proxy.log().requests();
    assert_eq!(log[0].query("sig"), Some("s/ecret"));
    assert_eq!(log[0].bearer.as_deref(), Some("abc"));
    assert_eq!(log[0].bearer_sha256().unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(log[0].header("range"), Some("bytes=0-9"));
    assert_eq!(log[0].header("if-match"), Some("\"1\""));
    assert_eq!(log[0].header("x-ms-blob-type"), Some("BlockBlob"));
    assert_eq!((log[0].bytes_sent, log[1].bytes_received), (5000, 300_000));
    assert!(log.iter().all(|entry| entry.ending == Ending::Answered));
    let without: Vec<_> = proxy.log().without_bearer();
    assert_eq!(without.len(), 2);
}

#[test]
fn it_stands_before_the_vault_too() {
    let emulator = emulator();
    let proxy = emulator.proxy(&emulator.vault_uri()).unwrap();
    let bearer = format!("Bearer {}", token(&emulator, VAULT));
    let at = format!("{}/secrets/db?api-version=7.4", proxy.endpoint());
    let answer = get(Some(emulator.pki()), &at, &[("authorization", &bearer)]);
    assert_eq!(answer.json()["value"], "hunter2");
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with(&proxy.endpoint()), "{id}");
    let path = |at: &str| {
        get(Some(emulator.pki()), &format!("{}/{at}?a=b", proxy.endpoint()), &[]);
        emulator.vault().log().requests().pop().unwrap().path
    };
    assert_eq!(path("keys/kek//wrapkey"), "/keys/kek//wrapkey");
    proxy.join_slashes();
    assert_eq!(path("keys/kek//wrapkey"), "/keys/kek/wrapkey");
}

#[test]
fn every_download_is_cut_after_so_many_bytes() {
    let (pki, proxy) = start();
    let cut = Rule::new(Fault::Cut { after: 1_000_000 }).when(Filter::method("GET"));
    proxy.faults().add(cut);
    for _ in 0..3 {
        let answer = get(Some(&pki), &format!("{}/3000000", proxy.endpoint()), &[]);
        assert_eq!((answer.status, answer.body.len()), (200, 1_000_000));
        assert_eq!(answer.end, Some(ErrorKind::ConnectionReset));
        assert_eq!(answer.header("content-length"), Some("3000000"));
    }
    let short = get(Some(&pki), &format!("{}/1000000", proxy.endpoint()), &[]);
    assert!(short.is_whole());
    let log = proxy.log().requests();
    let endings: Vec<_> = log.iter().map(|entry| (entry.ending, entry.bytes_sent)).collect();
    let cut = (Ending::Cut, 1_000_000);
    assert_eq!(endings, [cut, cut, cut, (Ending::Answered, 1_000_000)]);
    proxy.faults().clear();
    assert!(get(Some(&pki), &format!("{}/3000000", proxy.endpoint()), &[]).is_whole());
}

#[test]
fn a_status_instead_of_passing_an_upload_on() {
    let (pki, proxy) = start();
    proxy.faults().next(1, Reply::new(503).header("Retry-After", "1"));
    let at = format!("{}/blob", proxy.endpoint());
    let refused = send(Some(&pki), "PUT", &at, &[], &vec![0; 8_000_000]);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    let passed = send(Some(&pki), "PUT", &at, &[], &vec![0; 8_000_000]);
    assert_eq!(passed.header("x-got"), Some("8000000"));
}

#[test]
fn a_test_acts_at_the_chosen_request_while_it_waits() {
    let (pki, proxy) = start();
    let acted = Arc::new(AtomicBool::new(false));
    let act = Arc::clone(&acted);
    let callback = Fault::call(move |entry| {
        assert_eq!(entry.header("range"), Some("bytes=2-"));
        act.store(true, Ordering::SeqCst);
    });
    let second = Rule::new(callback).when(Filter::header("range", "bytes=")).skip(1).times(1);
    proxy.faults().add(second);
    let at = format!("{}/10", proxy.endpoint());
    get(Some(&pki), &at, &[]);
    get(Some(&pki), &at, &[("range", "bytes=1-")]);
    assert!(!acted.load(Ordering::SeqCst));
    assert_eq!(get(Some(&pki), &at, &[("range", "bytes=2-")]).status, 200);
    assert!(acted.load(Ordering::SeqCst));

    // The same from the test's own thread: the request waits at the proxy until released.
    proxy.faults().add(Rule::new(Fault::HangBeforeHeaders).skip(1).times(1));
    thread::scope(|scope| {
        let reading = scope.spawn(|| [1, 2].map(|_| get(Some(&pki), &at, &[]).status));
        proxy.log().wait_for_held(1, SOON).unwrap();
        proxy.faults().release();
        assert_eq!(reading.join().unwrap(), [200, 200]);
    });
}

#[test]
fn a_download_hangs_within_its_body() {
    let (pki, proxy) = start();
    proxy.faults().next(1, Fault::HangInBody { after: 200_000 });
    thread::scope(|scope| {
        let at = format!("{}/400000", proxy.endpoint());
        let pki = &pki;
        let reading = scope.spawn(move || get(Some(pki), &at, &[]));
        proxy.log().wait_for_held(1, SOON).unwrap();
        assert_eq!(proxy.log().requests()[0].bytes_sent, 200_000);
        proxy.faults().release();
        assert!(reading.join().unwrap().is_whole());
    });
}

#[test]
fn bandwidth_is_limited() {
    let (pki, proxy) = start();
    let limit = Fault::Bandwidth { bytes_per_second: 1_000_000 };
    proxy.faults().always(limit);
    let start = Instant::now();
    assert!(get(Some(&pki), &format!("{}/300000", proxy.endpoint()), &[]).is_whole());
    assert!(start.elapsed() >= Duration::from_millis(290));
}

#[test]
fn an_upstream_that_is_not_there_is_a_bad_gateway() {
    let pki = Pki::create().unwrap();
    let nobody = emulator::Refuses::start().unwrap();
    let upstream = format!("https://{}", nobody.address());
    let proxy = Proxy::start(&pki, &upstream, 0).unwrap();
    assert_eq!(get(Some(&pki), &proxy.endpoint(), &[]).status, 502);
    assert!(Proxy::start(&pki, "/relative", 0).is_err());
}

#[test]
fn memory_does_not_grow_with_the_blob() {
    let (pki, proxy) = start();
    let highest = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let size = 200_000_000_u64;
    let at = format!("{}/{size}", proxy.endpoint());
    let before = highest();
    let (mut stream, path) = connect(&at, Some(&pki));
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let got = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    assert!(got > size);
    let grown = highest() - before;
    // Other tests of this program run beside it, hence the room.
    assert!(grown < 64_000, "{grown} kB");
}
