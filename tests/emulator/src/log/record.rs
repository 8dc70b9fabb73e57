//! The writing side of the log: guards that a service holds, so that no end of a request is missed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use hyper::Request;
use hyper::header::AUTHORIZATION;

use super::{Ending, Entry, Log};

/// One request under way. When the last clone is dropped without an end, the request broke.
pub(crate) struct Record {
    log: Log,
    sequence: u64,
    local: SocketAddr,
    ended: AtomicBool,
}

impl Record {
    pub(crate) fn new<B>(log: &Log, request: &Request<B>, peer: SocketAddr, local: SocketAddr) -> (Self, Entry) {
        let raw_query = request.uri().query().unwrap_or_default();
        let headers = request.headers().iter();
        let mut entry = Entry {
            sequence: 0,
            at: SystemTime::now(),
            peer,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            raw_query: raw_query.to_owned(),
            query: form_urlencoded::parse(raw_query.as_bytes()).into_owned().collect(),
            headers: headers
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    (name.to_string(), value.into_owned())
                })
                .collect(),
            bearer: bearer(request),
            form: Vec::new(),
            identity: None,
            resource: None,
            token: None,
            status: None,
            request_id: None,
            bytes_received: 0,
            bytes_sent: 0,
            ending: Ending::UnderWay,
        };
        log.change(|state| {
            entry.sequence = state.next();
            state.requests.push(entry.clone());
        });
        let record = Self { log: log.clone(), sequence: entry.sequence, local, ended: AtomicBool::new(false) };
        (record, entry)
    }

    /// Our end of the connection.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Changes the entry, unless the log was cleared meanwhile.
    pub(crate) fn note(&self, how: impl FnOnce(&mut Entry)) {
        self.log.change(|state| state.entry(self.sequence).map(how));
    }

    /// Says how the request ended; the first word counts.
    pub(crate) fn end(&self, ending: Ending) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.note(|entry| entry.ending = ending);
        }
    }

    /// Counts the request as held for as long as the guard lives.
    pub(crate) fn held(&self) -> Held {
        Held::new(&self.log)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end(Ending::Broken);
    }
}

/// While it lives, the log counts one more as held.
pub(crate) struct Held(Log);

impl Held {
    pub(crate) fn new(log: &Log) -> Self {
        log.change(|state| state.held += 1);
        Self(log.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.change(|state| state.held -= 1);
    }
}

/// While it lives, the log counts one more connection.
pub(crate) struct Opened(Log);

impl Opened {
    pub(crate) fn new(log: &Log) -> Self {
        log.change(|state| {
            state.connections += 1;
            state.accepted += 1;
        });
        Self(log.clone())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.change(|state| state.connections -= 1);
    }
}

fn bearer<B>(request: &Request<B>) -> Option<String> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}
