//! When a failed request is sent again, and after how long: what the official SDKs of OpenAI and
//! Anthropic do, so that a provider sees nothing unusual.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

/// A server that asks for a longer pause than this is not waited for.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_mins(2);

/// As good as for ever; the clock can't count much longer pauses.
const NEVER_SECONDS: f64 = 1e9;

/// What a server said about trying again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Advice {
    /// `x-should-retry`, which outranks the status.
    pub(crate) again: Option<bool>,
    /// How long to wait first.
    pub(crate) after: Option<Duration>,
}

impl Advice {
    /// Reads `x-should-retry`, then `retry-after-ms`, else `retry-after` in seconds (a fraction
    /// is fine) or as an HTTP date. What is not understood, zero, or past counts as not said.
    pub(crate) fn of(headers: &HeaderMap, now: SystemTime) -> Self {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim());
        let again = match text("x-should-retry") {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        let ms = text("retry-after-ms").and_then(|text| Some(text.parse::<f64>().ok()? / 1000.0));
        let after = ms.or_else(|| {
            let text = text("retry-after")?;
            let until = |date: SystemTime| date.duration_since(now).ok();
            text.parse::<f64>().ok().or_else(|| {
                let date = httpdate::parse_http_date(text).ok()?;
                Some(until(date)?.as_secs_f64())
            })
        });
        let after = after
            .filter(|seconds| *seconds > 0.0 && seconds.is_finite())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds.min(NEVER_SECONDS)).ok())
            .filter(|pause| !pause.is_zero());
        Self { again, after }
    }
}

/// The pause before attempt `attempt` (the first retry is 1) where the server named none:
/// doubling from half a second to eight, less up to a quarter so that clients part.
pub(crate) fn backoff(attempt: u32, jitter: f64) -> Duration {
    let seconds = (0.5 * f64::from(1_u32 << (attempt - 1).min(4))).min(8.0);
    Duration::from_secs_f64(seconds * (1.0 - 0.25 * jitter))
}

/// Whether a status passes by itself.
pub(crate) fn passes(status: u16) -> bool {
    matches!(status, 408 | 409 | 429 | 500..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    type Headers = &'static [(&'static str, &'static str)];

    #[test]
    fn every_spelling_of_retry_after_is_read() {
        // Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let cases: [(Headers, Option<f64>); 14] = [
            (&[("retry-after", "3")], Some(3.0)),
            (&[("retry-after", "0.25")], Some(0.25)),
            (&[("retry-after-ms", "20")], Some(0.02)),
            (
                &[("retry-after-ms", "20"), ("retry-after", "3")],
                Some(0.02),
            ),
            (
                &[("retry-after-ms", "soon"), ("retry-after", "3")],
                Some(3.0),
            ),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")],
                Some(10.0),
            ),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:27 GMT")], None),
            (&[("retry-after", "0")], None),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "1e-12")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "1e19")], Some(NEVER_SECONDS)),
            (&[("retry-after", "later")], None),
            (&[], None),
        ];
        for (headers, expected) in cases {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            let after = Advice::of(&map, now).after.map(|after| after.as_secs_f64());
            assert_eq!(after, expected, "{headers:?}");
        }
    }

    #[test]
    fn the_pause_doubles_to_eight_seconds() {
        let pauses: Vec<f64> = (1..=7).map(|n| backoff(n, 0.0).as_secs_f64()).collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]);
        assert_eq!(backoff(1, 1.0), Duration::from_millis(375));
    }
}
