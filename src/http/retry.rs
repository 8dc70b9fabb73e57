//! What is worth another try, and after how long.

use std::time::{Duration, SystemTime};

use super::request::Answer;

/// No answer may make us wait longer than this, in one step.
const LONGEST: Duration = Duration::from_secs(60);

/// The wait before try number `tries + 1` (1, 2, 4 s, as Microsoft's written rule for managed
/// identities), or `None` after the last. `asked` is the service's own wish and wins when longer.
pub fn wait_before_next(tries: u32, asked: Option<Duration>) -> Option<Duration> {
    const WAITS: [u64; 3] = [1, 2, 4];
    let index = usize::try_from(tries.checked_sub(1)?).ok()?;
    let ours = Duration::from_secs(*WAITS.get(index)?);
    Some(asked.map_or(ours, |asked| asked.max(ours)).min(LONGEST))
}

/// The service's wish: `Retry-After` in seconds or as a date, or the millisecond headers.
pub fn asked_for(answer: &Answer, now: SystemTime) -> Option<Duration> {
    for name in ["retry-after-ms", "x-ms-retry-after-ms"] {
        if let Some(milliseconds) = answer.header(name).and_then(|value| value.trim().parse().ok()) {
            return Some(Duration::from_millis(milliseconds).min(LONGEST));
        }
    }
    let value = answer.header("retry-after")?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds).min(LONGEST));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderMap, HeaderValue};

    fn answer(name: &'static str, value: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        Answer { status: 429, headers, body: Default::default() }
    }

    #[test]
    fn waits_grow_and_end() {
        let waits: Vec<_> = (1..=4).map(|tries| wait_before_next(tries, None).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(1), Some(2), Some(4), None]);
    }

    #[test]
    fn the_services_wish_counts_within_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (name, value, seconds) in [
            ("retry-after", "3", Some(3)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("retry-after", "86400", Some(60)),
            ("retry-after", "soon", None),
            ("retry-after-ms", "5000", Some(5)),
        ] {
            assert_eq!(asked_for(&answer(name, value), now).map(|wait| wait.as_secs()), seconds, "{value}");
        }
        assert_eq!(wait_before_next(1, Some(Duration::from_secs(3))), Some(Duration::from_secs(3)));
    }
}
