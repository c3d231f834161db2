//! What a trigger makes of what is known of its demand: a value, an error, or a wait. The one
//! place that decides what is served while Datadog fails, and for how long.

use std::{ops::Range, time::Duration};

use tokio::time::Instant;

use super::{Aggregator, PointOffset, Reckoning, Subject, TimeAggregator, Trigger};
use crate::{
    demand::{Reading, Series, Window},
    refresh::{Latest, Verdict},
    source::SourceError,
};

/// What KEDA is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// Finite.
    pub value: f64,
    /// Whether `value` is above the trigger's activation.
    pub active: bool,
}

/// Why a trigger has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unanswered {
    #[error(transparent)]
    Source(SourceError),
    /// `window` is where it was looked for.
    #[error(
        "the query has no data{}; wait for data, widen `age`, or set `metricUnavailableValue`",
        describe(*.window)
    )]
    NoData { window: Window },
    #[error(
        "the query has {points} {} with a value{}, and `lastAvailablePointOffset` leaves none \
         of them; lower it, widen `age`, or set `metricUnavailableValue`",
        if *points == 1 { "point" } else { "points" },
        describe(*.window)
    )]
    NoneLeft { points: usize, window: Window },
    /// Of a `DatadogMetric`.
    #[error(
        "the Cluster Agent has no data of the DatadogMetric {metric}; its status tells why (`kubectl \
         describe datadogmetric`); wait for data, or set `metricUnavailableValue`"
    )]
    NoValue { metric: String },
    #[error(
        "the newest value of the DatadogMetric {metric} is {} s old, and {} s are allowed \
         (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`",
        .age.as_secs(),
        .max_age.as_secs()
    )]
    Stale { metric: String, value: f64, age: Duration, max_age: Duration },
    #[error("the query returns {series} series; set `queryAggregator`, or change it to return one")]
    SeveralSeries { series: usize },
    #[error("the {aggregator} of its series is not a finite number; scale the query down")]
    NotFinite { aggregator: Aggregator },
}

fn describe(window: Window) -> String {
    match window {
        Window { age, offset: 0 } => format!(" in the last {age} seconds"),
        Window { age, offset } => format!(" in the {age} seconds that ended {offset} seconds ago"),
    }
}

impl Trigger {
    /// `default_hold` is the server's.
    ///
    /// A reading past its due instant is held: while its refresh is under way, and while that
    /// fails, as long as `held_for` says.
    pub fn judge(
        &self,
        latest: &Latest,
        now: Instant,
        default_hold: Duration,
    ) -> Verdict<Measure, Unanswered> {
        let measure = |value| Measure { value, active: value > self.activation };
        let fill = self.fill.map(measure);
        let failure = latest.failure.clone().map(Unanswered::Source);
        // HTTP 422 comes and goes: once nothing can be held, it counts as no data.
        let failed = |why| match latest.failure {
            Some(SourceError::Unprocessable) => fill.map_or(Verdict::Failed(why), Verdict::Known),
            _ => Verdict::Failed(why),
        };
        let Some(newest) = latest.readings.first() else {
            return failure.map_or(Verdict::Awaited { otherwise: None }, failed);
        };

        let held_for = |active| self.held_for(active, latest.interval, default_hold);
        let late =
            |reading: &Reading| now.saturating_duration_since(reading.taken_at + latest.interval);
        // Nobody asked for a while: what is known is old, but no failure keeps it from being
        // read again.
        let overdue = failure.is_none() && late(newest) > held_for(false);

        let (reading, measured, failure) = match self.reckon(newest) {
            Ok(value) => (newest, measure(value), failure),
            // The newest value there was, from when it grew too old.
            Err(Unanswered::Stale { value, age, max_age, .. })
                if fill.is_none()
                    && age.saturating_sub(max_age) <= held_for(measure(value).active) =>
            {
                (newest, measure(value), failure)
            }
            Err(
                no_data @ (Unanswered::NoData { .. }
                | Unanswered::NoneLeft { .. }
                | Unanswered::NoValue { .. }
                | Unanswered::Stale { .. }),
            ) => {
                let older = &latest.readings[1..];
                let older =
                    || older.iter().find_map(|older| Some((older, self.reckon(older).ok()?)));
                if let Some(fill) = fill {
                    (newest, fill, failure)
                } else if let Some((older, value)) = older() {
                    (older, measure(value), Some(failure.unwrap_or(no_data)))
                } else if overdue {
                    return Verdict::Awaited { otherwise: None };
                } else {
                    return failed(failure.unwrap_or(no_data));
                }
            }
            Err(_) if overdue => return Verdict::Awaited { otherwise: None },
            Err(unusable) => return failed(failure.unwrap_or(unusable)),
        };

        let may_be_held = late(reading) <= held_for(measured.active);
        match failure {
            _ if overdue => Verdict::Awaited { otherwise: may_be_held.then_some(measured) },
            None => Verdict::Known(measured),
            Some(_) if may_be_held => Verdict::Known(measured),
            Some(failure) => failed(failure),
        }
    }

    /// The value of this reading by itself: no fallback value, and nothing held.
    pub(crate) fn reckon(&self, reading: &Reading) -> Result<f64, Unanswered> {
        let value = self.reckoning.reckon(reading)?;
        match &self.subject {
            Subject::Query(query) => value.ok_or_else(|| {
                let window = query.window;
                match reading.depth() {
                    0 => Unanswered::NoData { window },
                    points => Unanswered::NoneLeft { points, window },
                }
            }),
            Subject::DatadogMetric { namespace, name, max_age } => {
                let metric = || format!("{namespace}/{name}");
                let value = value.ok_or_else(|| Unanswered::NoValue { metric: metric() })?;
                match (age(reading), *max_age) {
                    (age, Some(max_age)) if age > max_age => {
                        Err(Unanswered::Stale { metric: metric(), value, age, max_age })
                    }
                    _ => Ok(value),
                }
            }
        }
    }
}

/// Of the newest point, when the answer came in.
fn age(reading: &Reading) -> Duration {
    let points = reading.series.iter().filter_map(|series| series.points.last());
    let newest = points.map(|point| point.at_ms).max().unwrap_or(reading.window_end_ms);
    let age_ms = reading.window_end_ms.saturating_sub(newest);
    Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
}

impl Reckoning {
    /// First over time, then over the series that have data; `None` if none has.
    fn reckon(&self, reading: &Reading) -> Result<Option<f64>, Unanswered> {
        let aggregator = match (self.over_series, reading.series.len()) {
            (Some(aggregator), _) => aggregator,
            (None, 0 | 1) => Aggregator::Max,
            (None, series) => return Err(Unanswered::SeveralSeries { series }),
        };
        let of_series = reading
            .series
            .iter()
            .filter_map(|series| self.over_time(series, reading.window_end_ms));
        match aggregator.fold(of_series) {
            Some(value) if !value.is_finite() => Err(Unanswered::NotFinite { aggregator }),
            value => Ok(value),
        }
    }

    /// `None` if no point is left after the offset.
    pub(crate) fn over_time(&self, series: &Series, window_end_ms: i64) -> Option<f64> {
        let mut values =
            series.points[self.counted(series, window_end_ms)].iter().map(|point| point.value);
        match self.over_time {
            TimeAggregator::Last => values.next(),
            TimeAggregator::Over(aggregator) => aggregator.fold(values),
        }
    }

    /// The points of a series that its number is made of.
    pub(crate) fn counted(&self, series: &Series, window_end_ms: i64) -> Range<usize> {
        let kept = match self.offset {
            PointOffset::Points(offset) => series.points.len().saturating_sub(offset),
            PointOffset::Auto => series.full_buckets(window_end_ms).len(),
        };
        match self.over_time {
            TimeAggregator::Last => kept.saturating_sub(1)..kept,
            TimeAggregator::Over(_) => 0..kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use super::*;
    use crate::demand::Point;

    const REFRESH: Duration = Duration::from_secs(15);
    const HOLD: Duration = Duration::from_mins(1);

    fn trigger(extra: &[(&str, &str)]) -> Trigger {
        let basis = [("query", "avg:a{*}"), ("queryValue", "10")];
        let metadata: HashMap<String, String> = basis
            .iter()
            .chain(extra)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Trigger::parse(&metadata, false).expect("the metadata is sound").0
    }

    /// A point every 10 s, the newest of which is at 100 s, in a window that ends there.
    fn reading(series: &[&[f64]], taken_at: Instant) -> Arc<Reading> {
        let series = series.iter().map(|values| {
            let points = values.iter().rev().enumerate().map(|(back, value)| Point {
                at_ms: 100_000 - 10_000 * i64::try_from(back).unwrap(),
                value: *value,
            });
            let mut points: Vec<Point> = points.collect();
            points.reverse();
            Series {
                scope: "*".into(),
                step: Some(Duration::from_secs(10)),
                nulls: 0,
                points: points.into(),
            }
        });
        Arc::new(Reading { series: series.collect(), window_end_ms: 100_000, taken_at })
    }

    /// Value of one reading, or the message.
    #[track_caller]
    fn check_value(extra: &[(&str, &str)], series: &[&[f64]], expected: &str) {
        let trigger = trigger(extra);
        let reading = reading(series, Instant::now());
        let shown = match trigger.reckon(&reading) {
            Ok(value) => value.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    const NO_DATA: &str = "the query has no data in the last 90 seconds; wait for data, \
                           widen `age`, or set `metricUnavailableValue`";

    #[test]
    fn the_newest_point_counts() {
        check_value(&[], &[&[1.0, 2.0, 3.0]], "3");
        check_value(&[], &[&[-4.5]], "-4.5");
        check_value(&[], &[], NO_DATA);
        check_value(&[], &[&[]], NO_DATA);
        check_value(
            &[("age", "60"), ("timeWindowOffset", "30")],
            &[],
            "the query has no data in the 60 seconds that ended 30 seconds ago; wait for data, \
             widen `age`, or set `metricUnavailableValue`",
        );
    }

    #[test]
    fn an_offset_leaves_out_the_newest_points() {
        check_value(&[("lastAvailablePointOffset", "1")], &[&[1.0, 2.0, 3.0]], "2");
        check_value(&[("lastAvailablePointOffset", "2")], &[&[1.0, 2.0, 3.0]], "1");
        check_value(
            &[("lastAvailablePointOffset", "3")],
            &[&[1.0, 2.0, 3.0]],
            "the query has 3 points with a value in the last 90 seconds, and \
             `lastAvailablePointOffset` leaves none of them; lower it, widen `age`, or set \
             `metricUnavailableValue`",
        );
        // The bucket that begins at 100 s is not over; the one before it is.
        check_value(&[("lastAvailablePointOffset", "auto")], &[&[1.0, 2.0, 3.0]], "2");
        check_value(
            &[("lastAvailablePointOffset", "auto")],
            &[&[3.0]],
            "the query has 1 point with a value in the last 90 seconds, and \
             `lastAvailablePointOffset` leaves none of them; lower it, widen `age`, or set \
             `metricUnavailableValue`",
        );
    }

    #[test]
    fn points_are_aggregated_over_time_before_series_are() {
        let two: &[&[f64]] = &[&[1.0, 2.0, 6.0], &[10.0, 20.0]];
        for (over_time, over_series, value) in [
            ("last", "sum", "26"),
            ("average", "sum", "18"),
            ("max", "min", "6"),
            ("min", "max", "10"),
            ("sum", "average", "19.5"),
        ] {
            check_value(
                &[("timeAggregator", over_time), ("queryAggregator", over_series)],
                two,
                value,
            );
        }
        check_value(
            &[("timeAggregator", "sum"), ("lastAvailablePointOffset", "1")],
            &[&[1.0, 2.0, 6.0]],
            "3",
        );
    }

    #[test]
    fn several_series_need_an_aggregator() {
        check_value(
            &[],
            &[&[1.0], &[]],
            "the query returns 2 series; set `queryAggregator`, or change it to return one",
        );
    }

    #[test]
    fn a_series_without_data_does_not_spoil_the_others() {
        check_value(&[("queryAggregator", "average")], &[&[1.0], &[], &[3.0]], "2");
        check_value(&[("queryAggregator", "average")], &[&[], &[]], NO_DATA);
    }

    #[test]
    fn a_sum_that_overflows_is_no_value() {
        let sum = [("queryAggregator", "sum")];
        let message = "the sum of its series is not a finite number; scale the query down";
        check_value(&sum, &[&[f64::MAX], &[f64::MAX]], message);
    }

    /// What is served `after` the newest of the readings was taken.
    #[track_caller]
    fn check(
        extra: &[(&str, &str)],
        readings: &[&[&[f64]]],
        failure: impl Into<Option<SourceError>>,
        after: u64,
        expected: &str,
    ) {
        let taken_at = Instant::now() + Duration::from_hours(1);
        let readings = (0u32..)
            .zip(readings)
            .map(|(back, series)| reading(series, taken_at - REFRESH * back))
            .collect();
        let latest = Latest { readings, failure: failure.into(), interval: REFRESH };
        let trigger = trigger(extra);
        let now = taken_at + Duration::from_secs(after);
        let shown = shown(trigger.judge(&latest, now, HOLD));
        assert_eq!(shown, expected, "{after} s after the newest reading");
    }

    fn shown(verdict: Verdict<Measure, Unanswered>) -> String {
        let show =
            |m: Measure| format!("{} {}", m.value, if m.active { "active" } else { "inactive" });
        match verdict {
            Verdict::Known(measure) => show(measure),
            Verdict::Failed(error) => error.to_string(),
            Verdict::Awaited { otherwise: None } => "awaited".to_owned(),
            Verdict::Awaited { otherwise: Some(measure) } => {
                format!("awaited, else {}", show(measure))
            }
        }
    }

    fn outage() -> SourceError {
        SourceError::Outage { host: "dd".into(), what: "503".into() }
    }

    const OUTAGE: &str = "Datadog fails at dd (503); nothing is wrong with the query";

    #[test]
    fn nothing_known_is_awaited_and_a_failure_is_told() {
        check(&[], &[], None, 0, "awaited");
        check(&[], &[], outage(), 0, OUTAGE);
        check(&[("metricUnavailableValue", "5")], &[], outage(), 0, OUTAGE);
    }

    #[test]
    fn activation_is_strictly_above() {
        check(&[("activationQueryValue", "5")], &[&[&[5.0]]], None, 0, "5 inactive");
        check(&[("activationQueryValue", "5")], &[&[&[5.5]]], None, 0, "5.5 active");
        check(&[("activationQueryValue", "-10")], &[&[&[-5.0]]], None, 0, "-5 active");
        check(&[], &[&[&[0.0]]], None, 0, "0 inactive");
    }

    #[test]
    fn an_active_reading_is_held_through_an_outage_for_the_hold() {
        for after in [16, 30, 75] {
            check(&[], &[&[&[5.0]]], outage(), after, "5 active");
        }
        check(&[], &[&[&[5.0]]], outage(), 76, OUTAGE);
    }

    #[test]
    fn an_inactive_reading_is_held_for_one_refresh_only() {
        check(&[], &[&[&[0.0]]], outage(), 30, "0 inactive");
        check(&[], &[&[&[0.0]]], outage(), 31, OUTAGE);
    }

    #[test]
    fn the_trigger_says_how_long_to_hold() {
        check(&[("holdLastValue", "600")], &[&[&[5.0]]], outage(), 615, "5 active");
        check(&[("holdLastValue", "600")], &[&[&[5.0]]], outage(), 616, OUTAGE);
        check(&[("holdLastValue", "5")], &[&[&[0.0]]], outage(), 20, "0 inactive");
        check(&[("holdLastValue", "5")], &[&[&[0.0]]], outage(), 21, OUTAGE);
        // Off: not beyond the due instant, and a refresh under way is waited for.
        check(&[("holdLastValue", "0")], &[&[&[5.0]]], outage(), 15, "5 active");
        check(&[("holdLastValue", "0")], &[&[&[5.0]]], outage(), 16, OUTAGE);
        check(&[("holdLastValue", "0")], &[&[&[5.0]]], None, 15, "5 active");
        check(&[("holdLastValue", "0")], &[&[&[5.0]]], None, 16, "awaited");
    }

    #[test]
    fn a_refresh_under_way_delays_nobody() {
        check(&[], &[&[&[5.0]]], None, 30, "5 active");
        check(&[], &[&[&[0.0]]], None, 30, "0 inactive");
    }

    #[test]
    fn after_a_sleep_a_new_reading_is_awaited() {
        check(&[], &[&[&[5.0]]], None, 31, "awaited, else 5 active");
        check(&[], &[&[&[5.0]]], None, 76, "awaited");
        check(&[], &[&[&[0.0]]], None, 31, "awaited");
        check(&[], &[&[]], None, 31, "awaited");
        check(&[], &[&[&[1.0], &[2.0]]], None, 31, "awaited");
    }

    #[test]
    fn no_data_is_answered_by_the_fallback_value_at_once() {
        let fill = [("metricUnavailableValue", "3")];
        check(&fill, &[&[]], None, 0, "3 active");
        check(&fill, &[&[&[]], &[&[5.0]]], None, 0, "3 active");
        // What was served is held through an outage like any value, and no longer.
        check(&fill, &[&[]], outage(), 75, "3 active");
        check(&fill, &[&[]], outage(), 76, OUTAGE);
    }

    #[test]
    fn without_a_fallback_value_the_last_value_is_held() {
        check(&[], &[&[]], None, 0, NO_DATA);
        // The older reading was due when the newer was taken.
        check(&[], &[&[], &[&[5.0]]], None, 0, "5 active");
        check(&[], &[&[], &[&[5.0]]], outage(), 60, "5 active");
        check(&[], &[&[], &[&[5.0]]], outage(), 61, OUTAGE);
        check(&[], &[&[], &[&[]], &[&[], &[]], &[&[5.0]]], None, 15, "5 active");
        check(&[], &[&[], &[&[]], &[&[], &[]], &[&[0.0]]], None, 0, NO_DATA);
    }

    #[test]
    fn an_offset_beyond_the_newest_answer_looks_into_the_one_before() {
        let back = [("lastAvailablePointOffset", "1")];
        check(&back, &[&[&[7.0]], &[&[5.0, 6.0]]], None, 0, "5 active");
    }

    #[test]
    fn a_422_is_held_then_filled_then_told() {
        let unprocessable = || SourceError::Unprocessable;
        let message = &SourceError::Unprocessable.to_string();
        check(&[], &[&[&[5.0]]], unprocessable(), 75, "5 active");
        check(&[], &[&[&[5.0]]], unprocessable(), 76, message);
        let fill = [("metricUnavailableValue", "0")];
        check(&fill, &[&[&[5.0]]], unprocessable(), 75, "5 active");
        check(&fill, &[&[&[5.0]]], unprocessable(), 76, "0 inactive");
        check(&fill, &[], unprocessable(), 0, "0 inactive");
        check(&[], &[], unprocessable(), 0, message);
    }

    /// Of a trigger that reads a DatadogMetric, of a value so many seconds old, or none.
    #[track_caller]
    fn check_metric(
        extra: &[(&str, &str)],
        age: Option<i64>,
        failure: impl Into<Option<SourceError>>,
        expected: &str,
    ) {
        let agent = [
            ("useClusterAgentProxy", "true"),
            ("datadogMetricNamespace", "shop"),
            ("datadogMetricName", "orders"),
        ];
        let trigger = trigger(&[&agent[..], extra].concat()).or_max_age(Duration::from_mins(16));
        let now = Instant::now();
        let points = age.map(|age| Point { at_ms: 10_000_000 - 1_000 * age, value: 5.0 });
        let series = Series {
            scope: "*".into(),
            step: None,
            nulls: 0,
            points: points.into_iter().collect(),
        };
        let reading =
            Reading { series: Box::new([series]), window_end_ms: 10_000_000, taken_at: now };
        let readings = vec![Arc::new(reading)];
        let latest = Latest { readings, failure: failure.into(), interval: REFRESH };
        assert_eq!(shown(trigger.judge(&latest, now, HOLD)), expected);
    }

    #[test]
    fn a_value_that_is_too_old_is_held_then_none() {
        let stale = |age, most| {
            format!(
                "the newest value of the DatadogMetric shop/orders is {age} s old, and {most} s are \
                 allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`"
            )
        };
        check_metric(&[], Some(960), None, "5 active");
        check_metric(&[], Some(1_020), None, "5 active");
        check_metric(&[], Some(1_021), None, &stale(1_021, 960));
        let fill = ("metricUnavailableValue", "3");
        check_metric(&[fill], Some(960), None, "5 active");
        check_metric(&[fill], Some(961), None, "3 active");
        let max_age = ("maxAge", "30");
        check_metric(&[max_age, fill], Some(31), None, "3 active");
        check_metric(&[max_age, ("holdLastValue", "0")], Some(31), None, &stale(31, 30));
        check_metric(&[("maxAge", "7200")], Some(7_000), None, "5 active");
        // The clock of Datadog may be ahead.
        check_metric(&[max_age], Some(-5), None, "5 active");
    }

    #[test]
    fn a_metric_has_one_value_whatever_is_said_of_points() {
        let offset = [("lastAvailablePointOffset", "1"), ("timeAggregator", "sum")];
        check_metric(&offset, Some(10), None, "5 active");
        let none = "the Cluster Agent has no data of the DatadogMetric shop/orders; its status tells \
                    why (`kubectl describe datadogmetric`); wait for data, or set \
                    `metricUnavailableValue`";
        check_metric(&[], None, None, none);
        check_metric(&[("metricUnavailableValue", "3")], None, None, "3 active");
    }
}
