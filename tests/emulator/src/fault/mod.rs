//! Faults on demand: what a service does to which requests, instead of or on top of its right answer.

mod faults;
mod filter;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use faults::Faults;
pub use filter::Filter;
pub(crate) use plan::{BodyFault, BodyFaultKind, Instead, Plan};

use crate::log::Entry;

/// What a test runs in the middle of a request.
pub type Callback = Arc<dyn Fn(&Entry) + Send + Sync>;

/// One thing that goes wrong. Several can strike one request together, then in this order.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// Waits before anything else.
    Delay { milliseconds: u64 },
    /// Runs a test's code, on a thread of its own, before the request is answered or passed on.
    #[serde(skip)]
    Call(Callback),
    /// Holds the connection before the answer's first byte, until [`Faults::release`]; then goes on as usual.
    HangBeforeHeaders,
    /// Answers this instead.
    Status(Reply),
    /// Resets the connection before the answer's first byte; nothing was done.
    Reset,
    /// Does what the request asks for, and resets the connection before the answer's first byte.
    Lose,
    /// Holds the connection after this many bytes of the answer's body, until [`Faults::release`].
    HangInBody { after: u64 },
    /// Resets the connection when the client's machine has received this many bytes of the body.
    Cut { after: u64 },
    /// Closes the connection in good order after this many bytes of the body: fewer than were announced.
    Truncate { after: u64 },
    /// Sends the body no faster than this.
    Bandwidth { bytes_per_second: u64 },
}

/// An answer made up by a test.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reply {
    pub status: u16,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub body: String,
}

/// A fault, and which requests it strikes.
#[derive(Clone, Serialize, Deserialize)]
pub struct Rule {
    pub fault: Fault,
    /// How many requests; `None` strikes until cleared.
    #[serde(default)]
    pub times: Option<u32>,
    /// How many matching requests it lets pass first.
    #[serde(default)]
    pub skip: u32,
    #[serde(default)]
    pub filter: Filter,
}

impl Fault {
    pub fn status(status: u16) -> Self {
        Reply::new(status).into()
    }

    pub fn delay(delay: Duration) -> Self {
        let milliseconds = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Self::Delay { milliseconds }
    }

    /// Whether a request has a use for only one of these, so that counted ones queue up.
    fn ends_the_request(&self) -> bool {
        !matches!(self, Self::Delay { .. } | Self::Call(_) | Self::Bandwidth { .. })
    }

    pub fn call(callback: impl Fn(&Entry) + Send + Sync + 'static) -> Self {
        Self::Call(Arc::new(callback))
    }
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// As a vault answers too many requests: it does not say when to come back.
    pub fn throttled() -> Self {
        let error = serde_json::json!({"error": {
            "code": "Throttled",
            "message": "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached",
        }});
        Self::new(429).header("content-type", "application/json; charset=utf-8").body(error.to_string())
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }
}

impl From<Reply> for Fault {
    fn from(reply: Reply) -> Self {
        Self::Status(reply)
    }
}

impl Rule {
    /// Strikes every request until cleared.
    pub fn new(fault: impl Into<Fault>) -> Self {
        Self { fault: fault.into(), times: None, skip: 0, filter: Filter::default() }
    }

    /// Strikes this many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Lets this many matching requests pass first.
    #[must_use]
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// Strikes only requests that match.
    #[must_use]
    pub fn when(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }
}
