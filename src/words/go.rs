//! Texts as Go reads them (`strconv`, `time`), and so KEDA and the Cluster Agent.

use std::time::Duration;

/// What `strconv.ParseBool` takes.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// What `time.ParseDuration` takes, unless it is negative:
/// `1h15m30.918s`, `1.5h`, `300us`, `0`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
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

    #[test]
    fn booleans_are_gos() {
        assert_eq!(
            (boolean("T"), boolean("0"), boolean("False")),
            (Some(true), Some(false), Some(false))
        );
        assert_eq!((boolean("yes"), boolean("tRUE"), boolean("")), (None, None, None));
    }

    #[test]
    fn durations_are_gos() {
        let check = |text, seconds: Option<f64>| {
            assert_eq!(duration(text).map(|it| it.as_secs_f64()), seconds, "{text}");
        };
        check("300s", Some(300.0));
        check("1h15m30.918s", Some(4_530.918));
        check("0", Some(0.0));
        for odd in ["300", "", "-5s", "5 s", "1s1"] {
            check(odd, None);
        }
    }
}
