//! When and after which delay a request is sent again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use super::RetryOptions;
use super::runtime::CANCEL_TICK;
use crate::cancel::Cancel;

/// Answers that may be better next time. 499 and 522 come from proxies in front of registries.
pub(super) fn is_temporary(status: u16) -> bool {
    matches!(status, 408 | 429 | 499 | 500 | 502 | 503 | 504 | 522)
}

impl RetryOptions {
    /// Delay before attempt `next` (2 for the first repetition); `None` if that is one too many or the server asks for too
    /// long a pause.
    pub fn delay(&self, next: u32, retry_after: Option<Duration>) -> Option<Duration> {
        if next > self.attempts {
            return None;
        }
        match retry_after {
            Some(asked) => (asked <= self.max_retry_after).then_some(asked),
            None => {
                let doublings = next.saturating_sub(2).min(16);
                let full = self.first_delay.saturating_mul(1 << doublings).min(self.max_delay);
                // A random half, so that many clients of one failing server do not come back together. The keys of
                // `RandomState` are random per process and differ per call, which is all that is needed.
                let random = RandomState::new().build_hasher().finish() % 1000;
                Some(full - full.mul_f64(random as f64 / 2000.0))
            }
        }
    }
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or a date that is compared with the answer's own `Date`, so that our
/// clock does not matter.
pub(super) fn retry_after(value: Option<&str>, date: Option<&str>) -> Option<Duration> {
    let value = value?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let parse = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_second());
    let seconds = parse(value)?.saturating_sub(parse(date?)?);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Sleeps, unless cancelled; says whether it slept to the end.
pub(crate) fn sleep(delay: Duration, cancel: &Cancel) -> bool {
    let start = Instant::now();
    loop {
        if cancel.is_cancelled() {
            return false;
        }
        let left = delay.saturating_sub(start.elapsed());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(CANCEL_TICK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_bounds_and_end() {
        let options = RetryOptions::default();
        for (next, most) in [(2, 500), (3, 1000), (4, 2000)] {
            let delay = options.delay(next, None).expect("attempts are left").as_millis();
            assert!(most / 2 <= delay && delay <= most, "attempt {next} after {delay} ms");
        }
        assert_eq!(options.delay(5, None), None);
        assert_eq!(options.delay(2, Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert_eq!(options.delay(2, Some(Duration::from_secs(7200))), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = Some("Wed, 21 Oct 2015 07:28:00 GMT");
        for (value, date, seconds) in [
            (Some("3"), None, Some(3)),
            (Some(" 0 "), None, Some(0)),
            (Some("Wed, 21 Oct 2015 07:28:09 GMT"), date, Some(9)),
            (Some("Wed, 21 Oct 2015 07:00:00 GMT"), date, Some(0)),
            (Some("Wed, 21 Oct 2015 07:00:00 GMT"), None, None),
            (Some("soon"), date, None),
            (None, date, None),
        ] {
            assert_eq!(retry_after(value, date), seconds.map(Duration::from_secs), "{value:?}");
        }
    }
}
