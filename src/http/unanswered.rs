//! No answer, and how far the request got: what helps depends on it, and on who was asked.

use std::error::Error;
use std::io::{self, ErrorKind};

use super::failure::Failure;

/// What stood between a request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The host's name has no address.
    Name,
    /// The host is there and nothing listens.
    Refused,
    /// Nothing comes back from there: no route, or no connection within `connect_timeout`.
    NoWay,
    /// The certificate is not of an authority that is trusted.
    Untrusted,
    /// Anything else, such as a connection that broke.
    Other,
}

/// A request that got no answer.
#[derive(Debug)]
pub struct Unanswered {
    pub failure: Failure,
    pub obstacle: Obstacle,
    /// Whether there was a connection to get an answer from.
    pub connected: bool,
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self { failure, obstacle: Obstacle::Other, connected: false }
    }
}

impl From<Unanswered> for Failure {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.failure
    }
}

/// A look-up that failed, so that it can be told from a connection that did.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotResolved(pub io::Error);

impl Obstacle {
    /// What a transport error says of it.
    pub fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() && error.is_connect() {
            return Self::NoWay;
        }
        Self::of_chain(error)
    }

    fn of_chain(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<NotResolved>() {
                return Self::Name;
            }
            match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(ErrorKind::ConnectionRefused) => return Self::Refused,
                // The last is what a route says that is there to prohibit.
                Some(
                    ErrorKind::NetworkUnreachable
                    | ErrorKind::HostUnreachable
                    | ErrorKind::TimedOut
                    | ErrorKind::PermissionDenied,
                ) => return Self::NoWay,
                _ => {}
            }
            match error.source() {
                None if error.to_string().to_ascii_lowercase().contains("certificate") => return Self::Untrusted,
                next => cause = next,
            }
        }
        Self::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_is_told_by_its_cause_however_deep() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Box<dyn Error + Send + Sync>);
        let deep = |cause: Box<dyn Error + Send + Sync>| Obstacle::of_chain(&Outer(Outer(cause).into()));
        for (kind, obstacle) in [
            (ErrorKind::ConnectionRefused, Obstacle::Refused),
            (ErrorKind::NetworkUnreachable, Obstacle::NoWay),
            (ErrorKind::HostUnreachable, Obstacle::NoWay),
            (ErrorKind::TimedOut, Obstacle::NoWay),
            (ErrorKind::PermissionDenied, Obstacle::NoWay),
            (ErrorKind::ConnectionReset, Obstacle::Other),
        ] {
            assert_eq!(deep(io::Error::from(kind).into()), obstacle, "{kind}");
        }
        assert_eq!(deep(NotResolved(io::Error::other("no such name")).into()), Obstacle::Name);
        assert_eq!(deep("invalid peer certificate: UnknownIssuer".into()), Obstacle::Untrusted);
    }
}
