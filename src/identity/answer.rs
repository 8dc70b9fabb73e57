//! The answer that holds a token, which all endpoints share.

use serde_json::Value;
use zeroize::Zeroizing;

use crate::http::failure::{Failure, Kind};
use crate::http::request::Answer;
use crate::token::{AccessToken, expiry};

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
        return Err(unexpected("the token in its answer has already ended").hint("Check this machine's clock."));
    }
    let refresh_in = body.get("refresh_in").and_then(expiry::seconds);
    let token = AccessToken::new(secret, expires_at, expiry::refresh_at(now, expires_at, refresh_in, jitter))?;
    Ok((token, body))
}
