//! A client of few manners: one request per connection, and whatever comes back, to the byte.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test program uses a part of it, and a test fails by panicking"
)]

pub mod python;
pub mod vault;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use emulator::{Config, Emulator, Identity, Pki, Secret};
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(20);
pub const STORAGE: &str = "https://storage.azure.com/";
pub const VAULT: &str = "https://vault.azure.net";

/// Everything with a system-assigned identity, one named `keys`, and a secret.
pub fn emulator() -> Emulator {
    let mut config = Config::new(Pki::create().unwrap());
    config.identities = vec![Identity::system(), Identity::user("keys")];
    config.secrets = vec![Secret::new("db", "hunter2")];
    Emulator::start(config).unwrap()
}

/// What came back; `end` is how the connection ended, if not in good order.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub end: Option<ErrorKind>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether all of the announced body is there.
    pub fn is_whole(&self) -> bool {
        let length = self.header("content-length").map(|text| text.parse().unwrap());
        self.status > 0 && self.end.is_none() && length.is_none_or(|n: usize| n == self.body.len())
    }
}

pub trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

pub fn connect(url: &str, pki: Option<&Pki>) -> (Box<dyn Duplex>, String) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let authority = rest.split('/').next().unwrap();
    let stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let path = match &rest[authority.len()..] {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    match scheme {
        "http" => (Box::new(stream), path),
        _ => {
            let config = Arc::new(pki.unwrap().client_config().unwrap());
            let name = authority.split(':').next().unwrap().to_owned();
            let tls = rustls::ClientConnection::new(config, name.try_into().unwrap()).unwrap();
            (Box::new(rustls::StreamOwned::new(tls, stream)), path)
        }
    }
}

pub fn send(pki: Option<&Pki>, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let (mut stream, path) = connect(url, pki);
    let authority = url.split('/').nth(2).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    head += "\r\n";
    let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut received = Vec::new();
    let end = match written {
        Ok(()) => read_all(&mut *stream, &mut received),
        Err(error) => Some(error.kind()),
    };
    parse(&received, end)
}

pub fn get(pki: Option<&Pki>, url: &str, headers: &[(&str, &str)]) -> Answer {
    send(pki, "GET", url, headers, &[])
}

/// A request for a token; `more` is appended to the query.
pub fn ask(emulator: &Emulator, resource: &str, more: &str) -> Answer {
    get(None, &token_url(emulator, resource, more), &[("Metadata", "true")])
}

pub fn token_url(emulator: &Emulator, resource: &str, more: &str) -> String {
    let resource = resource.replace(':', "%3A").replace('/', "%2F");
    let endpoint = emulator.imds_endpoint();
    let path = "metadata/identity/oauth2/token?api-version=2018-02-01";
    format!("{endpoint}/{path}&resource={resource}{more}")
}

/// One JSON request to a vault, as the bearer of `token`; a body that is null is none.
pub fn call(emulator: &Emulator, method: &str, url: &str, token: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(Some(emulator.pki()), method, url, &headers, body.as_bytes())
}

pub fn token(emulator: &Emulator, resource: &str) -> String {
    let answer = ask(emulator, resource, "").json();
    answer["access_token"].as_str().unwrap().to_owned()
}

fn read_all(stream: &mut dyn Duplex, received: &mut Vec<u8>) -> Option<ErrorKind> {
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) => return Some(error.kind()),
        }
    }
}

fn parse(received: &[u8], end: Option<ErrorKind>) -> Answer {
    let split = received.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(split) = split else {
        return Answer { status: 0, headers: Vec::new(), body: Vec::new(), end };
    };
    let head = std::str::from_utf8(&received[..split]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Answer { status: status.unwrap(), headers: headers.collect(), body: received[split + 4..].to_vec(), end }
}
