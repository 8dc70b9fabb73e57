//! One request as the log keeps it. Nothing is redacted: it is the memory of a test.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Serialize, Serializer};

/// A request and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// From 0, without a gap, in order of arrival.
    pub sequence: u64,
    #[serde(serialize_with = "epoch_millis")]
    pub at: SystemTime,
    pub peer: SocketAddr,
    pub method: String,
    pub path: String,
    pub raw_query: String,
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The token of an `Authorization: Bearer` header.
    pub bearer: Option<String>,
    /// The fields of a posted form, where the service reads one.
    pub form: Vec<(String, String)>,
    /// The identity service and Entra alone: which identity it answered for, and for which resource.
    pub identity: Option<String>,
    pub resource: Option<String>,
    /// The token that was put into the answer.
    pub token: Option<String>,
    pub status: Option<u16>,
    /// The answer's `x-ms-request-id`.
    pub request_id: Option<String>,
    pub bytes_received: u64,
    /// Bytes of the answer's body.
    pub bytes_sent: u64,
    pub ending: Ending,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    UnderWay,
    Answered,
    /// Reset by a fault before an answer.
    Reset,
    /// Cut off by a fault within the body.
    Cut,
    /// The client or, behind a proxy, the upstream closed first.
    Broken,
}

impl Entry {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        first(&self.headers, name)
    }

    /// The first query parameter of this name, decoded.
    pub fn query(&self, name: &str) -> Option<&str> {
        first(&self.query, name)
    }

    /// The first field of this name, decoded.
    pub fn form(&self, name: &str) -> Option<&str> {
        first(&self.form, name)
    }

    /// Hex of the bearer token's SHA-256: two requests used one token if these are equal.
    pub fn bearer_sha256(&self) -> Option<String> {
        let hash = digest(&SHA256, self.bearer.as_ref()?.as_bytes());
        Some(hash.as_ref().iter().map(|b| format!("{b:02x}")).collect())
    }
}

fn first<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let pair = pairs.iter().find(|(key, _)| key == name);
    pair.map(|(_, value)| value.as_str())
}

fn epoch_millis<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u128(since.as_millis())
}
