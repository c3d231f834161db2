//! How two readings of one query differ. Pure.

use std::{cmp::Ordering, collections::BTreeMap};

use super::{
    super::comparison::{Change, Difference, Made, Points},
    Owner,
};
use crate::{
    demand::{Reading, Series},
    trigger::{PointOffset, Unanswered},
};

/// Empty if they are equal, but for the order of the series, and for nulls, with which Datadog pads
/// what it answers together.
pub(super) fn between(
    mut together: Reading,
    mut alone: Reading,
    owners: &[Owner],
) -> Vec<Difference> {
    // A sum of floats depends on their order.
    for reading in [&mut together, &mut alone] {
        reading.series.sort_by(order);
    }
    let matched = Matched::of(&together.series, &alone.series);
    let mut found = Vec::new();
    if !matched.only_together.is_empty() || !matched.only_alone.is_empty() {
        found.push(Difference::Series {
            together: together.series.len(),
            alone: alone.series.len(),
            only_together: scopes(&matched.only_together),
            only_alone: scopes(&matched.only_alone),
        });
    }
    let mut points = Points::default();
    for (together, alone) in &matched.pairs {
        points.add(together, alone);
    }
    if points != Points::default() {
        found.push(Difference::Points(points));
    }
    let needs_step = |owner: &Owner| owner.trigger.reckoning.offset == PointOffset::Auto;
    if owners.iter().any(needs_step) {
        found.extend(matched.interval());
    }
    found.extend(owners.iter().filter_map(|Owner { label, trigger }| {
        let (together, alone) = (trigger.reckon(&together), trigger.reckon(&alone));
        (together != alone).then(|| Difference::Value {
            trigger: label.clone(),
            together: made(together),
            alone: made(alone),
        })
    }));
    found
}

/// Any that both readings have.
fn order(one: &Series, other: &Series) -> Ordering {
    let points = |series: &Series| -> Vec<(i64, u64)> {
        series.points.iter().map(|point| (point.at_ms, point.value.to_bits())).collect()
    };
    one.scope
        .cmp(&other.scope)
        .then_with(|| points(one).cmp(&points(other)))
        .then_with(|| one.step.cmp(&other.step))
}

fn scopes(series: &[&Series]) -> Vec<String> {
    series.iter().map(|series| series.scope.to_string()).collect()
}

fn made(value: Result<f64, Unanswered>) -> Made {
    match value {
        Ok(value) => Made::Value { value },
        Err(why) => Made::Nothing { message: why.to_string() },
    }
}

/// Which series of the one reading is which of the other.
#[derive(Default)]
struct Matched<'a> {
    pairs: Vec<(&'a Series, &'a Series)>,
    only_together: Vec<&'a Series>,
    only_alone: Vec<&'a Series>,
}

impl<'a> Matched<'a> {
    fn of(together: &'a [Series], alone: &'a [Series]) -> Self {
        let mut by_scope: BTreeMap<&str, (Vec<&Series>, Vec<&Series>)> = BTreeMap::new();
        for series in together {
            by_scope.entry(&series.scope).or_default().0.push(series);
        }
        for series in alone {
            by_scope.entry(&series.scope).or_default().1.push(series);
        }
        let mut matched = Self::default();
        for (mut together, mut alone) in by_scope.into_values() {
            // A comma list has several of one scope: those with the same points belong together.
            together.retain(|series| {
                let same = alone.iter().position(|other| other.points == series.points);
                matched.pairs.extend(same.map(|place| (*series, alone.remove(place))));
                same.is_none()
            });
            let pairs = together.len().min(alone.len());
            matched.only_together.extend(together.drain(pairs..));
            matched.only_alone.extend(alone.drain(pairs..));
            matched.pairs.extend(together.into_iter().zip(alone));
        }
        matched
    }

    fn interval(&self) -> Option<Difference> {
        let mut differ = self.pairs.iter().filter(|(together, alone)| together.step != alone.step);
        let (together, alone) = differ.next()?;
        Some(Difference::Interval {
            series: 1 + differ.count(),
            scope: together.scope.to_string(),
            together_seconds: together.step.map(|step| step.as_secs()),
            alone_seconds: alone.step.map(|step| step.as_secs()),
        })
    }
}

impl Points {
    fn add(&mut self, together: &Series, alone: &Series) {
        let (mut here, mut there) = (together.points.iter(), alone.points.iter());
        let (mut one, mut other) = (here.next(), there.next());
        loop {
            match (one, other) {
                (None, None) => return,
                (Some(point), same) if same.is_none_or(|same| point.at_ms < same.at_ms) => {
                    self.only_together += 1;
                    one = here.next();
                }
                (Some(point), Some(same)) if point.at_ms == same.at_ms => {
                    self.change(&together.scope, point.at_ms, point.value, same.value);
                    (one, other) = (here.next(), there.next());
                }
                _ => {
                    self.only_alone += 1;
                    other = there.next();
                }
            }
        }
    }

    #[expect(clippy::float_cmp, reason = "the same number is to come twice")]
    fn change(&mut self, scope: &str, at_ms: i64, together: f64, alone: f64) {
        if together == alone {
            return;
        }
        self.changed += 1;
        let change = Change { scope: scope.to_owned(), at_ms, together, alone };
        if self.furthest.as_ref().is_none_or(|furthest| furthest.apart() < change.apart()) {
            self.furthest = Some(change);
        }
    }
}

impl Change {
    pub(in crate::check) fn apart(&self) -> f64 {
        (self.together - self.alone).abs()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::{demand::Point, trigger::Trigger};

    /// Scope, step in seconds, and points in seconds and values.
    type Given = (&'static str, Option<u64>, &'static [(i64, f64)]);

    fn reading(series: &[Given]) -> Reading {
        let series = series.iter().map(|(scope, step, points)| Series {
            scope: (*scope).into(),
            step: step.map(Duration::from_secs),
            // That is no difference.
            nulls: points.len() * series.len(),
            points: points
                .iter()
                .map(|(at, value)| Point { at_ms: at * 1_000, value: *value })
                .collect(),
        });
        Reading { series: series.collect(), window_end_ms: 60_000, taken_at: Instant::now() }
    }

    fn differences(together: &[Given], alone: &[Given], extra: &[(&str, &str)]) -> Vec<Difference> {
        let basis = [("query", "avg:a{*}"), ("queryValue", "5"), ("queryAggregator", "sum")];
        let metadata: HashMap<String, String> =
            basis.iter().chain(extra).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let trigger = Trigger::parse(&metadata, true).unwrap().0;
        let owner = Owner { label: "shop[0]".to_owned(), trigger };
        between(reading(together), reading(alone), &[owner])
    }

    const A: Given = ("a", Some(10), &[(0, 0.1), (10, 0.2)]);
    const B: Given = ("b", Some(10), &[(0, 0.3), (10, 0.3)]);
    const C: Given = ("c", Some(10), &[(0, 0.4), (10, 0.6)]);

    #[test]
    fn neither_order_nor_nulls_nor_a_width_that_nobody_needs_is_a_difference() {
        // 0.2 + 0.3 + 0.6 is not 0.6 + 0.3 + 0.2.
        assert_eq!(differences(&[A, B, C], &[C, B, A], &[]), []);
        let finer = ("a", Some(5), A.2);
        assert_eq!(differences(&[finer], &[A], &[]), []);
        let empty = ("b", None, &[][..]);
        assert_eq!(differences(&[A, empty], &[empty, A], &[]), []);
    }

    #[test]
    fn several_series_of_one_scope_are_told_apart_by_their_points() {
        let same = |points| -> Given { ("*", Some(10), points) };
        let (one, two) = (same(&[(0, 1.0)]), same(&[(0, 2.0)]));
        assert_eq!(differences(&[one, two], &[two, one], &[]), []);
        let other = same(&[(0, 2.5)]);
        let found = differences(&[one, other], &[two, one], &[]);
        let Difference::Points(points) = &found[0] else { panic!("{found:?}") };
        assert_eq!((points.changed, points.only_together, points.only_alone), (1, 0, 0));
        let found = differences(&[one, one], &[one], &[]);
        let Difference::Series { together: 2, alone: 1, only_together, only_alone } = &found[0]
        else {
            panic!("{found:?}")
        };
        assert_eq!((&only_together[..], only_alone.len()), (&["*".to_owned()][..], 0));
    }

    #[test]
    fn points_are_matched_by_their_time() {
        let together = ("a", Some(10), &[(0, 1.0), (10, 2.0), (30, 4.0), (40, 5.0)][..]);
        let alone = ("a", Some(10), &[(10, 2.5), (20, 3.0), (30, 3.0), (40, 5.0), (50, 5.0)][..]);
        let change = Change { scope: "a".to_owned(), at_ms: 30_000, together: 4.0, alone: 3.0 };
        let points = Points { only_together: 1, only_alone: 2, changed: 2, furthest: Some(change) };
        // The newest point is the same, so that the value is.
        assert_eq!(differences(&[together], &[alone], &[]), [Difference::Points(points)]);
    }

    #[test]
    fn the_width_of_a_bucket_counts_where_it_is_needed() {
        let auto = [("lastAvailablePointOffset", "auto")];
        let lone = |step| ("a", step, &[(55, 7.0)][..]);
        let found = differences(&[lone(None), B], &[lone(Some(10)), B], &auto);
        let interval = Difference::Interval {
            series: 1,
            scope: "a".to_owned(),
            together_seconds: None,
            alone_seconds: Some(10),
        };
        // Whether the bucket is still filling decides over the value.
        let value = Difference::Value {
            trigger: "shop[0]".to_owned(),
            together: Made::Value { value: 7.3 },
            alone: Made::Value { value: 0.3 },
        };
        assert_eq!(found, [interval, value]);
    }

    #[test]
    fn why_there_is_no_value_is_told() {
        let found = differences(&[], &[A], &[]);
        let Some(Difference::Value { together, alone, .. }) = found.last() else {
            panic!("{found:?}")
        };
        let Made::Nothing { message } = together else { panic!("{together:?}") };
        assert!(message.starts_with("the query has no data"), "{message}");
        assert_eq!(alone, &Made::Value { value: 0.2 });
    }
}
