//! Kubernetes' Quantity → number: digits with an optional suffix. All of its grammar
//! (`k8s.io/apimachinery/pkg/api/resource`), read to the nearest `f64`.

/// Longest text that is read; an API server's have some thirty characters.
const MAX_LENGTH: usize = 400;

/// `None` for what is no Quantity, and for one beyond what an `f64` holds.
pub(super) fn parse(text: &str) -> Option<f64> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (digits, suffix) = unsigned.split_at(end);
    let is_number = digits.matches('.').count() <= 1 && digits != "." && !digits.is_empty();
    if !is_number {
        return None;
    }
    let sign = if text.starts_with('-') { "-" } else { "" };
    // Rounded once: the exponent goes into the text that is read.
    let scaled = |exponent: i32| format!("{sign}{digits}e{exponent}").parse::<f64>().ok();
    let value = match suffix {
        "n" => scaled(-9),
        "u" => scaled(-6),
        "m" => scaled(-3),
        "" => scaled(0),
        "k" => scaled(3),
        "M" => scaled(6),
        "G" => scaled(9),
        "T" => scaled(12),
        "P" => scaled(15),
        "E" => scaled(18),
        _ => match suffix.strip_suffix('i') {
            Some(unit) => binary(unit).and_then(|power| Some(scaled(0)? * power)),
            None => exponent(suffix).and_then(scaled),
        },
    };
    value.filter(|value| value.is_finite())
}

/// 1024, as often as the unit says.
fn binary(unit: &str) -> Option<f64> {
    let times = ["K", "M", "G", "T", "P", "E"].iter().position(|known| *known == unit)?;
    Some(1024_f64.powi(i32::try_from(times).ok()? + 1))
}

/// Of `e3`, `E-9`, `e+06`.
fn exponent(suffix: &str) -> Option<i32> {
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let is_number = !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit());
    // One that no `i32` holds is nothing, or more than there is.
    is_number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: f64) {
        let parsed = parse(text).unwrap_or_else(|| panic!("{text} is a quantity"));
        assert_eq!(parsed.to_bits(), expected.to_bits(), "{text} is {parsed}");
    }

    /// What an API server makes of Go's floats (apimachinery 1.36.2), and what was meant.
    #[test]
    fn what_an_api_server_writes_is_read_exactly() {
        for (text, expected) in [
            ("0", 0.0),
            ("1", 1.0),
            ("42", 42.0),
            ("1k", 1e3),
            ("12k", 12e3),
            ("100k", 100e3),
            ("123456", 123_456.0),
            ("1977200m", 1_977.2),
            ("7750m", 7.75),
            ("500m", 0.5),
            ("123m", 0.123),
            ("1.234", 1.234),
            ("12340m", 12.34),
            ("123400m", 123.4),
            ("99990m", 99.99),
            ("1100m", 1.1),
            ("-1", -1.0),
            ("-5500m", -5.5),
            ("1e+06", 1e6),
            ("1.234567e+06", 1_234_567.0),
            ("2.68435456e+08", 268_435_456.0),
            ("2500e3", 2.5e6),
            ("1500e6", 1.5e9),
            ("1.23456789123e+08", 123_456_789.123),
            ("9.007199254740992e+15", 9_007_199_254_740_992.0),
            ("10e18", 1e19),
            ("1e+21", 1e21),
            ("1500e297", 1.5e300),
            ("179769313486231570e291", f64::MAX),
            ("100u", 0.000_1),
            ("123400n", 0.000_123_4),
            ("10e-6", 1e-5),
            ("12340e-9", 1.234e-5),
            ("3333333334n", 3.333_333_334),
            ("1e-09", 1e-9),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn all_of_the_grammar_is_read() {
        for (text, expected) in [
            ("1.", 1.0),
            (".5", 0.5),
            ("+1", 1.0),
            ("1E", 1e18),
            ("12E", 12e18),
            ("1E3", 1e3),
            ("2M", 2e6),
            ("3G", 3e9),
            ("4T", 4e12),
            ("5P", 5e15),
            ("1Ki", 1024.0),
            ("-1.5Mi", -1_572_864.0),
            ("16Ei", 18_446_744_073_709_551_616.0),
            ("00012", 12.0),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for odd in [
            "",
            " 1",
            "1 ",
            "1K",
            "1e",
            "1e+",
            "1mi",
            "1KI",
            "1p",
            "0x10",
            "1_0",
            "1.2.3",
            "1e3k",
            "1,5",
            "abc",
            ".",
            "+",
            "-",
            "--1",
            "NaN",
            "Inf",
            "+Inf",
            "1e400",
            "1i",
            "1e3i",
            "m",
            "1e99999999999",
        ] {
            assert_eq!(parse(odd), None, "{odd}");
        }
        assert_eq!(parse(&"1".repeat(10_000)), None);
    }

    proptest! {
        /// Against whole numbers, which are exact.
        #[test]
        fn a_suffix_is_a_power(digits in 0_u32.., place in 0_usize..10) {
            let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
            let exponent: i32 = [-9, -6, -3, 0, 3, 6, 9, 12, 15, 18][place];
            let parsed = parse(&format!("{digits}{}", suffixes[place])).unwrap();
            let exact = i128::from(digits) * 10_i128.pow(27);
            let expected = if exponent < 0 {
                // Divided exactly, then rounded by the standard library's own reading.
                let whole = exact / 10_i128.pow((-exponent).unsigned_abs());
                format!("{whole}e-27").parse::<f64>().unwrap()
            } else {
                #[expect(clippy::cast_precision_loss, reason = "that is the rounding")]
                let nearest = (i128::from(digits) * 10_i128.pow(exponent.unsigned_abs())) as f64;
                nearest
            };
            prop_assert_eq!(parsed.to_bits(), expected.to_bits());
        }

        #[test]
        fn any_text_is_a_finite_number_or_none(text in "[-+]{0,2}[0-9.]{0,6}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,4}") {
            prop_assert!(parse(&text).is_none_or(f64::is_finite));
        }
    }
}
