//! What went wrong, as a value. `pg::error` turns it into an ERROR, at one place.

use nix::errno::Errno;

/// The situations that a caller can tell apart. Each has one SQLSTATE (see `pg::error`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing answered, or TLS was not trusted, or `acquire_timeout` passed.
    Unreachable = 1,
    /// The endpoint throttles (429) and the tries are used up.
    Throttled = 2,
    /// The service answered 5xx and the tries are used up.
    Unavailable = 3,
    /// The service knows no such identity, another identity answered, or 401/403.
    NotAuthorized = 4,
    /// The answer is not what the protocol says.
    Protocol = 5,
    /// A value given by the user cannot be right: URL, resource, name, option.
    InvalidValue = 6,
    /// A server's own rules (`access`, `locations`, `allow`, `names`, `resources`) forbid it.
    Forbidden = 7,
    /// The blob, container or secret does not exist.
    NotFound = 8,
    /// 409 or 412: the service says that something else is going on with the object.
    Conflict = 9,
    /// The blob changed while it was read.
    Changed = 10,
    /// Truncated or corrupt gzip.
    CorruptData = 11,
    /// An answer, token or blob over our limit.
    TooLarge = 12,
    /// A file, thread or other local means failed.
    Local = 13,
    /// An encrypted value is not what was encrypted.
    NotAuthentic = 14,
}

impl Kind {
    /// The kind whose number this is; used to read a failure back from shared memory.
    pub fn from_number(number: u8) -> Option<Self> {
        use Kind::*;
        [
            Unreachable,
            Throttled,
            Unavailable,
            NotAuthorized,
            Protocol,
            InvalidValue,
            Forbidden,
            NotFound,
            Conflict,
            Changed,
            CorruptData,
            TooLarge,
            Local,
            NotAuthentic,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    /// Whether the cause is the network or the endpoint's state rather than the request: worth a
    /// pause for everybody, and no reason to drop a token that is still valid.
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::Unreachable | Kind::Throttled | Kind::Unavailable)
    }
}

/// An error report in the making: PostgreSQL's message, DETAIL and HINT.
///
/// No text in it may hold a token, key, SAS or a URL's query: build it from our own words, the
/// status, the service's error code (see [`code`]) and request id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What the operating system says of a file, in the words of core's messages.
pub fn said_by_the_system(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().into())
}

/// A service's error code or request id as it may stand in an error text: at most 80 characters of
/// the alphabet that such codes use, because everything else in an answer is the sender's to choose.
pub fn code(text: &str) -> Option<&str> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    (!text.is_empty() && text.len() <= 80 && text.chars().all(fine)).then_some(text)
}

/// "The service answered 403 AuthorizationFailure (request id …)." of what is known.
pub fn answered(who: &str, status: u16, error_code: Option<&str>, request_id: Option<&str>) -> String {
    let mut text = format!("{who} answered {status}");
    if let Some(error_code) = error_code.and_then(code) {
        text.push_str(&format!(", error code {error_code}"));
    }
    if let Some(request_id) = request_id.and_then(code) {
        text.push_str(&format!(", request id {request_id}"));
    }
    text.push('.');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_number() {
        for number in 0..=20 {
            if let Some(kind) = Kind::from_number(number) {
                assert_eq!(kind as u8, number);
            }
        }
        assert_eq!(Kind::from_number(0), None);
    }

    #[test]
    fn a_files_error_is_told_in_cores_words() {
        let said = |number| said_by_the_system(&std::io::Error::from_raw_os_error(number));
        assert_eq!([said(2), said(13)], ["No such file or directory", "Permission denied"]);
    }

    #[test]
    fn a_services_text_is_quoted_only_where_it_is_a_code() {
        let text = answered("The vault", 403, Some("Forbidden"), Some("a b; drop"));
        assert_eq!(text, "The vault answered 403, error code Forbidden.");
    }
}
