//! Single values, as KEDA reads them with Go's `strconv` and `time`.

use std::time::Duration;

use crate::words::go;

/// A Go duration, or a whole number of milliseconds; not negative.
pub(super) fn duration(text: &str) -> Option<Duration> {
    go::duration(text).or_else(|| {
        let milliseconds = text.parse::<i64>().ok()?.try_into().ok()?;
        Some(Duration::from_millis(milliseconds))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, microseconds: Option<u128>) {
        assert_eq!(duration(text).map(|duration| duration.as_micros()), microseconds, "{text}");
    }

    #[test]
    fn durations_are_gos_or_milliseconds() {
        check("2m30s", Some(150_000_000));
        check("1.5h", Some(5_400_000_000));
        check(".5s", Some(500_000));
        check("1h15m30.918s", Some(4_530_918_000));
        check("250us", Some(250));
        check("250µs", Some(250));
        check("30", Some(30_000));
        for nothing in ["0", "0s", "-0s", "+0"] {
            check(nothing, Some(0));
        }
        for odd in ["", "invalid", "-5s", "-5", "5 s", "5d", "s", ".", "1.5", "99999999999h", "1s1"]
        {
            check(odd, None);
        }
    }
}
