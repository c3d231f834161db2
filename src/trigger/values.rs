//! Single values, as KEDA reads them with Go's `strconv` and `time`.

use std::time::Duration;

/// A Go duration, or a whole number of milliseconds; not negative.
pub(super) fn duration(text: &str) -> Option<Duration> {
    go_duration(text).or_else(|| {
        let milliseconds = text.parse::<i64>().ok()?.try_into().ok()?;
        Some(Duration::from_millis(milliseconds))
    })
}

/// What Go's `time.ParseDuration` takes, and KEDA does not refuse as negative:
/// `1h15m30.918s`, `1.5h`, `300us`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = tail;
    }
    // Go counts nanoseconds in 63 bits.
    (!(negative && seconds > 0.0) && seconds < 9_223_372_036.0)
        .then(|| Duration::from_secs_f64(seconds))
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
