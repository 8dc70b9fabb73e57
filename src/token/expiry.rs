//! When a token ends, in every form that endpoints use, and when a new one is due.

use std::time::Duration;

use serde_json::Value;

/// A Unix time below this (2001-01-01) is no date of a token but a duration in the wrong field.
const PLAUSIBLE: i64 = 978_307_200;

/// Reads `expires_on`: seconds since the epoch as a number or a string, ISO 8601, or the date forms
/// that App Service and MSAL's peers have used (all UTC). `None` where it is none of these.
pub fn expires_on(value: &Value) -> Option<i64> {
    let seconds = match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|float| float as i64))?,
        Value::String(text) => text.trim().parse().ok().or_else(|| date(text.trim()))?,
        _ => return None,
    };
    (seconds >= PLAUSIBLE).then_some(seconds)
}

/// Reads a number of seconds, as a number or a string: `expires_in`, `refresh_in`.
pub fn seconds(value: &Value) -> Option<i64> {
    let seconds = match value {
        Value::Number(number) => number.as_i64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (seconds >= 0).then_some(seconds)
}

fn date(text: &str) -> Option<i64> {
    use chrono::NaiveDateTime;
    const FORMS: [&str; 3] = ["%Y-%m-%dT%H:%M:%S%.f", "%m/%d/%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S"];
    let plain = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00")).unwrap_or(text).trim_end();
    FORMS
        .into_iter()
        .find_map(|form| NaiveDateTime::parse_from_str(plain, form).ok())
        .map(|date| date.and_utc().timestamp())
}

/// When a new token is due: after `refresh_in` if the server says so, else at half of a life above
/// two hours, else five minutes before the end; for a life too short for that, at its last quarter.
/// `jitter` (0 to 1) moves it up to 5 % of the life earlier, so that many servers do not ask at once.
pub fn refresh_at(now: i64, expires_at: i64, refresh_in: Option<i64>, jitter: f64) -> i64 {
    const TWO_HOURS: i64 = 7200;
    const AHEAD: i64 = 300;
    let life = (expires_at - now).max(0);
    let due = match refresh_in {
        Some(refresh_in) if refresh_in < life => now + refresh_in,
        _ if life > TWO_HOURS => now + life / 2,
        _ => expires_at - AHEAD.min(life / 4),
    };
    let earlier = (life as f64 * 0.05 * jitter.clamp(0.0, 1.0)) as i64;
    (due - earlier).max(now)
}

/// How long before its end a token is no longer handed out: the request that carries it must arrive.
pub fn margin(life: i64) -> Duration {
    Duration::from_secs((life / 10).clamp(0, 5).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_of_expires_on_is_read() {
        let at = 1_700_000_000;
        for value in [
            json!(at),
            json!("1700000000"),
            json!("2023-11-14T22:13:20Z"),
            json!("2023-11-14T22:13:20.1234567+00:00"),
            json!("11/14/2023 22:13:20 +00:00"),
            json!("2023-11-14 22:13:20"),
        ] {
            assert_eq!(expires_on(&value), Some(at), "{value}");
        }
        for value in [json!(3600), json!("3599"), json!("soon"), json!(null), json!({}), json!(-1)] {
            assert_eq!(expires_on(&value), None, "{value}");
        }
    }

    #[test]
    fn a_new_token_is_due_as_documented() {
        assert_eq!(refresh_at(0, 86_400, None, 0.0), 43_200);
        assert_eq!(refresh_at(0, 3_600, None, 0.0), 3_300);
        assert_eq!(refresh_at(0, 3_600, Some(1_000), 0.0), 1_000);
        assert_eq!(refresh_at(0, 3_600, Some(9_000), 0.0), 3_300);
        assert_eq!(refresh_at(0, 20, None, 0.0), 15);
        assert!(refresh_at(0, 86_400, None, 1.0) < 43_200);
        assert_eq!(refresh_at(10, 5, None, 1.0), 10);
    }
}
