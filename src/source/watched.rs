//! What a watch of `DatadogMetric`s has told: nobody is asked. Here it is decided whether what stands
//! in one is a value, since it stays there when it is none any more.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Answer, Batch, Reply, Source, SourceError,
    cluster_agent::answer::{called, of_words},
    datadog::wall_clock,
};
use crate::{
    demand::{Account, Point, Query},
    kubernetes::{DatadogMetric, Kubernetes, NoWatch, WatchState},
};

/// What nothing was written into for so long has no Cluster Agent that reads it: five of its rounds
/// at the default of 30 s (`external_metrics_provider.refresh_period`).
const SILENCE: Duration = Duration::from_secs(150);
/// What the Cluster Agent allows beyond `spec.maxAge`
/// (`external_metrics_provider.query_validity_period`).
const GRACE: Duration = Duration::from_secs(30);

pub struct Watched {
    /// `None` is without Kubernetes: then no account is one of a watch.
    kubernetes: Option<Kubernetes>,
}

impl Watched {
    pub fn new(kubernetes: Option<Kubernetes>) -> Self {
        Self { kubernetes }
    }

    fn read(&self, account: &Account, query: &Query) -> Result<Answer, SourceError> {
        let (namespace, name) = query.metric().unwrap_or_default();
        let why = NoWatch::Uncovered;
        let kubernetes = self.kubernetes.as_ref().ok_or(SourceError::Unwatched { why })?;
        let metric = kubernetes.datadog_metric(namespace, name);
        let metric = metric.map_err(|why| SourceError::Unwatched { why })?;
        let watch = kubernetes.datadog_metrics_watch(namespace);
        let is_told = watch == Some(WatchState::Working);
        interpret(metric.as_deref(), is_told, account, query, wall_clock())
    }
}

impl Source for Watched {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let read = |query| self.read(&batch.account, query);
        Reply { outcomes: batch.queries.iter().map(read).collect(), rate_limit: None }
    }
}

/// No series is no data. `is_told` if Kubernetes would have told of a change.
pub(crate) fn interpret(
    metric: Option<&DatadogMetric>,
    is_told: bool,
    account: &Account,
    query: &Query,
    now: Timestamp,
) -> Result<Answer, SourceError> {
    let metric = metric.ok_or_else(|| SourceError::NoMetric { metric: called(query) })?;
    let unread = || SourceError::Unread { metric: called(query) };
    match metric.is_active {
        None => return Err(unread()),
        Some(false) => return Err(SourceError::Inactive { metric: called(query) }),
        Some(true) => {}
    }
    let since = age(metric.refreshed_at.ok_or_else(unread)?, now);
    if since > SILENCE {
        return Err(SourceError::Unrefreshed { metric: called(query), since, is_told });
    }
    let window_end_ms = now.as_millisecond();
    let no_data = Answer::of_point(None, window_end_ms);
    if !metric.is_valid {
        let words = metric.error.as_deref().ok_or_else(unread)?;
        return of_words(words, account, query).map_or(Ok(no_data), Err);
    }
    let taken_at = metric.taken_at.ok_or_else(unread)?;
    // At its next round, the Cluster Agent would have found that it is no value any more.
    if metric.max_age.is_some_and(|max_age| age(taken_at, now) > max_age + GRACE) {
        let what =
            "its value is older than `spec.maxAge`, and it has not been read since".to_owned();
        return Err(SourceError::MetricFails { metric: called(query), what });
    }
    let value = metric.value.filter(|value| value.is_finite()).ok_or_else(|| {
        let reason = "it is not a finite number".to_owned();
        SourceError::Unusable { metric: called(query), reason }
    })?;
    let point = Point { at_ms: taken_at.as_millisecond(), value };
    Ok(Answer::of_point(Some(point), window_end_ms))
}

/// None for what is to come: the clocks of others may be ahead.
fn age(at: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(at).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T05:36:00Z";

    fn ago(seconds: i64) -> Timestamp {
        let now: Timestamp = NOW.parse().unwrap();
        now - jiff::SignedDuration::from_secs(seconds)
    }

    fn sound() -> DatadogMetric {
        DatadogMetric {
            is_active: Some(true),
            is_valid: true,
            error: None,
            value: Some(1_977.2),
            taken_at: Some(ago(70)),
            refreshed_at: Some(ago(10)),
            max_age: None,
        }
    }

    fn invalid(error: &str) -> DatadogMetric {
        DatadogMetric { is_valid: false, error: Some(error.into()), ..sound() }
    }

    /// A value and its age in seconds, "no data", or the message.
    fn told(metric: &DatadogMetric) -> String {
        let account = Account::of_watch();
        let query = Query::of_metric("shop", "orders");
        match interpret(Some(metric), true, &account, &query, NOW.parse().unwrap()) {
            Ok(answer) => match answer.series.first() {
                Some(series) => {
                    let Point { at_ms, value } = series.points[0];
                    format!("{value}, {} s old", (answer.window_end_ms - at_ms) / 1_000)
                }
                None => "no data".to_owned(),
            },
            Err(error) => format!("{}: {error}", error.outcome()),
        }
    }

    #[test]
    fn every_state_is_told_apart() {
        let states = [
            sound(),
            DatadogMetric::default(),
            DatadogMetric { is_active: Some(false), ..sound() },
            // The Cluster Agent is gone, and what it last wrote stays.
            DatadogMetric { refreshed_at: Some(ago(150)), ..sound() },
            DatadogMetric { refreshed_at: Some(ago(151)), ..sound() },
            DatadogMetric { refreshed_at: None, ..sound() },
            DatadogMetric { refreshed_at: Some(ago(-40)), ..sound() },
            invalid("only null values found in API response (7 points)"),
            invalid(
                "Processing data from API failed, reason: outdated result, check MaxAge setting",
            ),
            invalid("multiple series found. Please change your query to return a single serie"),
            invalid(
                "Datadog API call error (all queries), error: API error 422 Unprocessable Entity",
            ),
            invalid("Datadog API call error (all queries), error: API error 500"),
            invalid("something that nobody knows"),
            DatadogMetric { is_valid: false, ..sound() },
            DatadogMetric { taken_at: None, ..sound() },
            DatadogMetric { value: None, ..sound() },
            DatadogMetric { value: Some(f64::NAN), ..sound() },
            DatadogMetric { max_age: Some(Duration::from_secs(40)), ..sound() },
            DatadogMetric { max_age: Some(Duration::from_secs(39)), ..sound() },
        ];
        let table: Vec<String> = states.iter().map(told).collect();
        insta::assert_snapshot!(table.join("\n"), @r#"
        1977.2, 70 s old
        unread: the Cluster Agent has not read the DatadogMetric shop/orders yet; wait a minute, and if that lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`
        inactive: the Cluster Agent does not read the DatadogMetric shop/orders; give it the annotation `external-metrics.datadoghq.com/always-active: "true"`
        1977.2, 70 s old
        unrefreshed: the Cluster Agent has written nothing into the DatadogMetric shop/orders for 151 s; check that it runs, and what its log says
        unread: the Cluster Agent has not read the DatadogMetric shop/orders yet; wait a minute, and if that lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`
        1977.2, 70 s old
        no data
        no data
        unusable: the DatadogMetric shop/orders has no usable value: multiple series found. Please change your query to return a single serie; correct its `spec.query`
        unprocessable: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
        upstream: the Cluster Agent gets nothing from Datadog (Datadog API call error (all queries), error: API error 500); nothing is wrong with the DatadogMetric
        metric_fails: the Cluster Agent has no value of the DatadogMetric shop/orders (something that nobody knows); its log may tell more
        unread: the Cluster Agent has not read the DatadogMetric shop/orders yet; wait a minute, and if that lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`
        unread: the Cluster Agent has not read the DatadogMetric shop/orders yet; wait a minute, and if that lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`
        unusable: the DatadogMetric shop/orders has no usable value: it is not a finite number; correct its `spec.query`
        unusable: the DatadogMetric shop/orders has no usable value: it is not a finite number; correct its `spec.query`
        1977.2, 70 s old
        metric_fails: the Cluster Agent has no value of the DatadogMetric shop/orders (its value is older than `spec.maxAge`, and it has not been read since); its log may tell more
        "#);
    }
}
