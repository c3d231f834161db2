//! A number as a Cluster Agent writes it: a Kubernetes Quantity, made of the text that Go has for it.

/// Of a finite number below a million, as the waves have. As apimachinery 1.36 does
/// (`resource.ParseQuantity`): what is finer than a billionth is rounded away from zero.
pub(super) fn quantity(value: f64) -> String {
    let decimal = format!("{}", value.abs());
    let (whole, fraction) = decimal.split_once('.').unwrap_or((&decimal, ""));
    let sign = if value < 0.0 { "-" } else { "" };
    // A text with thousandths, millionths or billionths is kept as it is.
    if matches!(fraction.len(), 3 | 6 | 9) && whole != "0" {
        return format!("{sign}{decimal}");
    }
    let (kept, rest) = fraction.split_at(fraction.len().min(9));
    let billionths: u64 = format!("{whole}{kept:0<9}").parse().expect("a wave is below a million");
    let (mut digits, mut exponent) = (billionths + u64::from(!rest.is_empty()), -9);
    if digits == 0 {
        return "0".to_owned();
    }
    while digits.is_multiple_of(1_000) {
        (digits, exponent) = (digits / 1_000, exponent + 3);
    }
    // Go writes what is smaller than that with an exponent, and a Quantity keeps to it.
    let suffix = match exponent {
        0 => String::new(),
        _ if value.abs() < 1e-4 => format!("e{exponent}"),
        -9 => "n".to_owned(),
        -6 => "u".to_owned(),
        -3 => "m".to_owned(),
        _ => "k".to_owned(),
    };
    format!("{sign}{digits}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What apimachinery 1.36.2 made of Go's floats.
    #[test]
    fn numbers_are_written_as_an_api_server_does() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (42.0, "42"),
            (100.0, "100"),
            (1_000.0, "1k"),
            (12_000.0, "12k"),
            (100_000.0, "100k"),
            (123_456.0, "123456"),
            (999_999.0, "999999"),
            (1_977.2, "1977200m"),
            (7.75, "7750m"),
            (0.5, "500m"),
            (0.123, "123m"),
            (1.234, "1.234"),
            (12.34, "12340m"),
            (123.4, "123400m"),
            (99.99, "99990m"),
            (1.1, "1100m"),
            (-1.0, "-1"),
            (-5.5, "-5500m"),
            (0.000_1, "100u"),
            (0.000_123_4, "123400n"),
            (1e-5, "10e-6"),
            (1.234e-5, "12340e-9"),
            (10.0 / 3.0, "3333333334n"),
            (2.000_000_000_1, "2000000001n"),
            (1e-10, "1e-9"),
            (5e-324, "1e-9"),
        ] {
            assert_eq!(quantity(value), expected, "{value}");
        }
    }
}
