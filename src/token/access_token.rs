//! The token itself, in a type that cannot be printed and is wiped on drop.

use reqwest::header::HeaderValue;
use zeroize::Zeroizing;

use crate::http::failure::{Failure, Kind};

/// The longest token that is served, in bytes. Tokens of 10 kB exist (a principal in many groups).
pub const LONGEST: usize = 64 << 10;

/// A bearer token and its times, in seconds since the Unix epoch.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken {
    secret: Zeroizing<String>,
    pub expires_at: i64,
    pub refresh_at: i64,
}

impl AccessToken {
    /// Takes a token as an endpoint or the shared cache gave it. Refuses (08P01) what could not stand
    /// in an `Authorization` header and (54000) what is longer than [`LONGEST`].
    pub fn new(secret: Zeroizing<String>, expires_at: i64, refresh_at: i64) -> Result<Self, Failure> {
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::new(Kind::Protocol, "the identity endpoint's answer holds no usable token")
                .detail("\"access_token\" is empty or holds a character that no token has."));
        }
        if secret.len() > LONGEST {
            return Err(Failure::new(Kind::TooLarge, "the access token is too large")
                .detail(format!("It has {} bytes; at most {LONGEST} are served.", secret.len())));
        }
        Ok(Self { secret, expires_at, refresh_at })
    }

    /// The token's text. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.secret
    }

    /// `Bearer …`, marked so that HTTP code neither prints nor indexes it; for the one gate to attach.
    pub(crate) fn bearer(&self) -> Result<HeaderValue, Failure> {
        let mut text = Zeroizing::new(Vec::with_capacity(7 + self.secret.len()));
        text.extend_from_slice(b"Bearer ");
        text.extend_from_slice(self.secret.as_bytes());
        let mut value = HeaderValue::from_bytes(&text)
            .map_err(|_| Failure::new(Kind::Protocol, "the access token cannot stand in a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Whether the token has ended at `now`, or is so near its end that a request could outlive it.
    pub fn is_spent(&self, now: i64) -> bool {
        now >= self.expires_at
    }

    #[cfg(test)]
    pub fn for_test(secret: &str) -> Self {
        Self { secret: Zeroizing::new(secret.into()), expires_at: i64::MAX, refresh_at: i64::MAX }
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_and_header_debug_show_nothing() {
        let token = AccessToken::for_test("canary");
        assert!(!format!("{token:?}").contains("canary"));
        let header = token.bearer().expect("a header");
        assert!(!format!("{header:?}").contains("canary"));
    }

    #[test]
    fn a_token_that_could_split_a_header_is_refused() {
        for text in ["", "a b", "a\r\nx: y", "é"] {
            let refused = AccessToken::new(Zeroizing::new(text.into()), 1, 1).expect_err(text);
            assert_eq!(refused.kind, Kind::Protocol);
        }
        let long = Zeroizing::new("a".repeat(LONGEST + 1));
        assert_eq!(AccessToken::new(long, 1, 1).expect_err("too long").kind, Kind::TooLarge);
    }
}
