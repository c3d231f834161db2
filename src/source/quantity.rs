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
            ("2000000001n", 2.000_000_001),
            ("1e-09", 1e-9),
            ("1e-9", 1e-9),
            ("999999", 999_999.0),
            ("1977200", 1_977_200.0),
            ("1e+09", 1e9),
            ("10e21", 1e22),
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
            ("12340e-9", 1.234e-5),
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

    /// Digits, and how many of them stand behind the point.
    struct Decimal {
        digits: Vec<u8>,
        behind: usize,
    }

    impl Decimal {
        fn times(mut self, factor: u32) -> Self {
            let mut carry = 0;
            for digit in self.digits.iter_mut().rev() {
                let product = u32::from(*digit) * factor + carry;
                (*digit, carry) = (u8::try_from(product % 10).unwrap(), product / 10);
            }
            while carry > 0 {
                self.digits.insert(0, u8::try_from(carry % 10).unwrap());
                carry /= 10;
            }
            self
        }

        fn with_point_at(mut self, exponent: i32) -> Self {
            let places = usize::try_from(exponent.abs()).unwrap();
            if exponent < 0 {
                self.behind += places;
            } else {
                self.digits.resize(self.digits.len() + places, 0);
            }
            self
        }

        /// In full, without an exponent, for the standard library to round.
        fn nearest(&self) -> f64 {
            let digits: String = self.digits.iter().map(|digit| char::from(b'0' + digit)).collect();
            let padded = format!("{digits:0>width$}", width = self.behind + 1);
            let (whole, rest) = padded.split_at(padded.len() - self.behind);
            format!("{whole}.{rest}").parse().unwrap()
        }
    }

    proptest! {
        /// Against decimals that are exact, and rounded once.
        #[test]
        fn what_is_written_is_read_to_the_nearest_number(
            is_negative: bool,
            whole in "[0-9]{1,25}",
            rest in "[0-9]{0,25}",
            place in 0_usize..18,
            exponent in -60_i32..60,
        ) {
            const POWERS: [(&str, i32); 10] = [
                ("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12),
                ("P", 15), ("E", 18),
            ];
            const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let digits = whole.bytes().chain(rest.bytes()).map(|digit| digit - b'0').collect();
            let mut exact = Decimal { digits, behind: rest.len() };
            let suffix = match place {
                0..10 => {
                    exact = exact.with_point_at(POWERS[place].1);
                    POWERS[place].0.to_owned()
                }
                10..16 => {
                    for _ in 10..=place {
                        exact = exact.times(1024);
                    }
                    BINARY[place - 10].to_owned()
                }
                _ => {
                    exact = exact.with_point_at(exponent);
                    format!("{}{exponent}", if place == 16 { "e" } else { "E" })
                }
            };
            let sign = if is_negative { "-" } else { "" };
            let expected = if is_negative { -exact.nearest() } else { exact.nearest() };
            let parsed = parse(&format!("{sign}{whole}.{rest}{suffix}")).unwrap();
            prop_assert_eq!(parsed.to_bits(), expected.to_bits());
        }

        #[test]
        fn any_text_is_a_finite_number_or_none(text in "[-+]{0,2}[0-9.]{0,6}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,4}") {
            prop_assert!(parse(&text).is_none_or(f64::is_finite));
        }
    }
}
