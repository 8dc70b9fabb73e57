//! The endpoints that fail before HTTP begins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use emulator::{NeverAccepts, Refuses, ResetOnAccept, TlsNeverAnswers};

const SOON: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(200);

#[test]
fn a_handshake_that_never_ends_is_held_after_the_client_has_left() {
    let listener = TlsNeverAnswers::start().unwrap();
    let endpoint = listener.endpoint();
    let address = endpoint.strip_prefix("https://").unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"\x16\x03\x01").unwrap();
    listener.log().wait_for_held(1, SOON).unwrap();
    client.set_read_timeout(Some(MOMENT)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(client);
    thread::sleep(MOMENT);
    assert_eq!(listener.log().held(), 1);
    listener.release();
    assert_eq!(listener.log().held(), 0);
}

#[test]
fn connecting_takes_for_ever() {
    let listener = NeverAccepts::start().unwrap();
    for _ in 0..3 {
        let connected = TcpStream::connect_timeout(&listener.address(), MOMENT);
        assert_eq!(connected.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}

#[test]
fn each_connection_is_reset() {
    let listener = ResetOnAccept::start().unwrap();
    let mut client = TcpStream::connect(listener.address()).unwrap();
    listener.log().wait_until("one", SOON, |state| state.accepted() == 1).unwrap();
    let read = client.read(&mut [0]);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn nobody_listens() {
    let port = Refuses::start().unwrap();
    let connected = TcpStream::connect(port.address());
    assert_eq!(connected.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
