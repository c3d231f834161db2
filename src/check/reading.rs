//! Asks Datadog once, and tells what the trigger makes of the answer, point by point.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::report::{Examined, Level, Outcome, PointSeen, Request, SeriesSeen, Span, Step};
use crate::{
    demand::{Account, Demand, Query, Reading, Series},
    refresh::{Latest, Verdict},
    scaler::Failure,
    source::{Batch, Source, SourceError},
    trigger::{Measure, PointOffset, Reckoning, TimeAggregator, Trigger, Unanswered},
};

/// Whom to ask, and with which keys.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) account: Arc<Account>,
    /// Where the keys come from.
    pub(super) keys: String,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    result: Result<Arc<Reading>, SourceError>,
    took: Duration,
}

/// Once, without the engine.
pub(super) async fn ask<S: Source>(source: &S, demand: &Demand, refresh: Duration) -> Seen {
    let batch = Batch { account: demand.account.clone(), queries: vec![demand.query.clone()] };
    let started_at = Instant::now();
    let result = source.fetch(&batch).await.pop().unwrap_or_else(|| {
        let what = "nothing came of the request; please report it".to_owned();
        Err(SourceError::NotUnderstood { host: demand.account.host(), what })
    });
    let taken_at = Instant::now();
    let result = result.map(|answer| {
        let (series, window_end_ms) = (answer.series, answer.window_end_ms);
        Arc::new(Reading { series, window_end_ms, taken_at, interval: refresh })
    });
    Seen { result, took: taken_at - started_at }
}

/// Fills in what was asked, what came, and what KEDA would get of it.
pub(super) fn explain(
    trigger: &Trigger,
    query: &Query,
    asked: &Asked,
    seen: &Seen,
    hold: Duration,
    examined: &mut Examined,
) {
    let reading = seen.result.as_ref().ok();
    examined.request = Some(Request {
        host: asked.account.host(),
        keys: asked.keys.clone(),
        window: reading.map(|reading| span(query, reading)),
        took_ms: seen.took.as_secs_f64() * 1_000.0,
    });
    let latest = match &seen.result {
        Ok(reading) => {
            examined.series =
                reading.series.iter().map(|s| series(&trigger.reckoning, s, reading)).collect();
            Latest { readings: vec![reading.clone()], failure: None }
        }
        Err(error) => Latest { readings: Vec::new(), failure: Some(error.clone()) },
    };
    match trigger.judge(&latest, Instant::now(), hold) {
        Verdict::Known(Measure { value, active })
        | Verdict::Awaited { otherwise: Some(Measure { value, active }) } => {
            match reading.map(|reading| trigger.reckon(reading)) {
                Some(Ok(_)) => examined.reckoning = Some(in_words(&trigger.reckoning, examined)),
                Some(Err(error)) => fallback(examined, &error.to_string()),
                None => fallback(examined, "Datadog cannot process the query (422)"),
            }
            examined.outcome = Some(Outcome::Value { value, active, target: trigger.target });
        }
        Verdict::Failed(why) => {
            // Where it stands: the request failed, or something is wrong with what came.
            let step = match why {
                Unanswered::Source(_) => Step::Request,
                _ => Step::Series,
            };
            fail(examined, step, &Failure::Unanswered(why));
        }
        // Only what is overdue is waited for, and this was taken just now.
        Verdict::Awaited { otherwise: None } => {}
    }
}

/// What KEDA would get is an error.
pub(super) fn fail(examined: &mut Examined, step: Step, failure: &Failure) {
    let (code, message) = (failure.code_name(), failure.to_string());
    examined.find(Level::Error, step, message.clone());
    examined.outcome = Some(Outcome::Failed { code, message });
}

fn fallback(examined: &mut Examined, why: &str) {
    let why = why.split(';').next().unwrap_or(why);
    examined.reckoning = Some(format!("`metricUnavailableValue`, since {why}"));
}

fn span(query: &Query, reading: &Reading) -> Span {
    let age = i64::try_from(query.window.age).unwrap_or(i64::MAX).saturating_mul(1_000);
    let to_ms = reading.window_end_ms;
    Span { from_ms: to_ms.saturating_sub(age).max(0), to_ms }
}

fn series(reckoning: &Reckoning, series: &Series, reading: &Reading) -> SeriesSeen {
    let (counted, value) = reckoning.over_time(series, reading.window_end_ms);
    let points = series.points.iter().enumerate().map(|(index, point)| PointSeen {
        at_ms: point.at_ms,
        value: point.value,
        counts: counted.contains(&index),
    });
    SeriesSeen {
        scope: series.scope.to_string(),
        points: points.collect(),
        nulls: series.nulls,
        interval_seconds: series.step.map(|step| step.as_secs()),
        value,
    }
}

/// How the value was made.
fn in_words(reckoning: &Reckoning, examined: &Examined) -> String {
    let left_out = match reckoning.offset {
        PointOffset::Points(0) => String::new(),
        PointOffset::Points(1) => ", without the newest point".to_owned(),
        PointOffset::Points(points) => format!(", without the {points} newest points"),
        PointOffset::Auto => ", without the bucket that is still filling".to_owned(),
    };
    let over_time = match reckoning.over_time {
        TimeAggregator::Last => "the newest point".to_owned(),
        TimeAggregator::Over(aggregator) => format!("the {aggregator} of the points"),
    };
    let with_data = examined.series.iter().filter(|series| series.value.is_some()).count();
    let over_series = match (reckoning.over_series, with_data) {
        (Some(aggregator), 2..) => format!("; of {with_data} series, the {aggregator}"),
        _ => String::new(),
    };
    format!("{over_time}{left_out}{over_series}")
}
