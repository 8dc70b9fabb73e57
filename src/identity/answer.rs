//! The answer that holds a token, which all endpoints share.

use serde_json::Value;
use zeroize::Zeroizing;

use crate::http::failure::{Failure, Kind};
use crate::http::request::Answer;
use crate::token::{AccessToken, expiry};

/// What a clock that is wrong asks for; an end that has passed and a `Date` far off tell of it.
pub const CLOCK: &str =
    "Correct this machine's clock, for instance by chrony: by it tokens have ended, or do not begin yet.";
/// What to change where the tenant knows no such resource.
pub const RESOURCE: &str = "Correct the resource that the token is asked for; a trailing slash counts.";

/// Whether something in between answered: it says so, and the answer is none of the protocol.
pub fn came_by_proxy(answer: &Answer) -> bool {
    (answer.header("via").is_some() || answer.status == 407) && !is_json(answer)
}

/// Whether the answer is a page for people, which no identity endpoint sends.
pub fn is_page(answer: &Answer) -> bool {
    let html = answer.header("content-type").is_some_and(|kind| kind.to_ascii_lowercase().contains("html"));
    (html || answer.body.trim_ascii_start().starts_with(b"<")) && !is_json(answer)
}

fn is_json(answer: &Answer) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body).is_ok()
}

/// No token lives until the year 10000; a time that far off could not even be shown.
const LATEST: i64 = 253_402_300_800;

/// The token of an answer with status 200 at Unix time `now`, and the rest of the answer; `jitter` as
/// [`expiry::refresh_at`] takes it. `who` answered, for the error (08P01).
pub fn token(answer: &Answer, who: &str, now: i64, jitter: f64) -> Result<(AccessToken, Value), Failure> {
    let unexpected = |why: &str| {
        Failure::new(Kind::Protocol, format!("{who} did not answer as it should"))
            .detail(format!("What is wrong: {why}."))
    };
    let mut body: Value = serde_json::from_slice(&answer.body).map_err(|_| unexpected("its answer is not JSON"))?;
    // Taken out, so that the one copy of the token left is the one that is wiped.
    let secret = match body.get_mut("access_token").map(Value::take) {
        Some(Value::String(text)) => Zeroizing::new(text),
        _ => return Err(unexpected("its answer holds no \"access_token\"")),
    };
    let expires_at = match body.get("expires_on").filter(|value| !value.is_null()) {
        Some(value) => expiry::expires_on(value),
        None => body.get("expires_in").and_then(expiry::seconds).map(|seconds| now.saturating_add(seconds)),
    };
    let Some(expires_at) = expires_at.filter(|at| *at < LATEST) else {
        return Err(unexpected("its answer does not say when the token ends"));
    };
    if expires_at <= now {
        return Err(unexpected("the token in its answer has already ended").hint(CLOCK));
    }
    let refresh_in = body.get("refresh_in").and_then(expiry::seconds);
    let token = AccessToken::new(secret, expires_at, expiry::refresh_at(now, expires_at, refresh_in, jitter))?;
    Ok((token, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

    fn answer(headers: &[(&'static str, &'static str)], body: &str) -> Answer {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        Answer { status: 200, headers, body: Zeroizing::new(body.as_bytes().to_vec()) }
    }

    #[test]
    fn a_proxy_and_a_page_are_told_from_an_answer_that_passed_one() {
        let via = ("via", "1.1 proxy");
        assert!(came_by_proxy(&answer(&[via], "Access denied")) && came_by_proxy(&answer(&[via], "")));
        assert!(!came_by_proxy(&answer(&[via], r#"{"error": "x"}"#)), "one that inspects TLS names itself, too");
        assert!(!came_by_proxy(&answer(&[], "<html>")) && is_page(&answer(&[], " <!DOCTYPE html>")));
        assert!(is_page(&answer(&[("content-type", "text/HTML; charset=utf-8")], "Blocked")));
        for body in ["{}", "[]", "", "Required metadata header not specified"] {
            assert!(!is_page(&answer(&[("content-type", "text/plain")], body)), "{body}");
        }
        let proxys = Answer { status: 407, ..answer(&[], "") };
        assert!(came_by_proxy(&proxys));
    }
}
