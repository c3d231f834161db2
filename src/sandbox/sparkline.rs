//! A metric as a small picture.

use maud::{Markup, html};

use super::catalogue::Sample;

const WIDTH: f64 = 150.0;
const HEIGHT: f64 = 30.0;
/// Of the line, so that it is not cut at the edge.
const MARGIN: f64 = 2.0;

/// From the oldest to the newest, at equal distances. What has no value is a gap.
pub(super) fn sparkline(samples: &[Sample]) -> Markup {
    let values: Vec<Option<f64>> = samples
        .iter()
        .map(|sample| if let Sample::Value(value) = sample { Some(*value) } else { None })
        .collect();
    let low = values.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
            aria-label=(format!("between {low:.1} and {high:.1}")) {
            path d=(path(&values, low, high)) {}
        }
    }
}

fn path(values: &[Option<f64>], low: f64, high: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "there are few samples")]
    let step = (WIDTH - 2.0 * MARGIN) / values.len().saturating_sub(1).max(1) as f64;
    let mut path = String::new();
    let (mut x, mut is_drawing) = (MARGIN, false);
    for value in values {
        if let Some(value) = value {
            // What does not change is drawn in the middle.
            let share = if high > low { (value - low) / (high - low) } else { 0.5 };
            let y = HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN);
            // A line of no length is a dot, for a value between two gaps.
            let to =
                if is_drawing { format!("L{x:.1} {y:.1}") } else { format!("M{x:.1} {y:.1}h0") };
            path += &to;
        }
        is_drawing = value.is_some();
        x += step;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[Option<f64>], expected: &str) {
        let samples: Vec<Sample> =
            values.iter().map(|value| value.map_or(Sample::Missing, Sample::Value)).collect();
        let picture = sparkline(&samples).into_string();
        assert!(picture.contains(&format!(r#"<path d="{expected}">"#)), "{picture}");
    }

    #[test]
    fn a_line_goes_from_the_lowest_to_the_highest() {
        check(&[Some(-5.0), Some(0.0), Some(5.0)], "M2.0 28.0h0L75.0 15.0L148.0 2.0");
        check(&[Some(7.0), Some(7.0)], "M2.0 15.0h0L148.0 15.0");
    }

    #[test]
    fn what_has_no_value_is_a_gap() {
        check(&[Some(0.0), None, Some(1.0)], "M2.0 28.0h0M148.0 2.0h0");
        check(&[None, None], "");
        check(&[], "");
    }
}
