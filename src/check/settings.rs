//! A trigger's metadata with its defaults filled in.

use std::time::Duration;

use super::{Server, report::Setting};
use crate::trigger::{PointOffset, Subject, TimeAggregator, Trigger};

/// Each key that has an effect, in the order in which it has it. What the server decides has no
/// value if it is not known how that runs.
pub(super) fn settings(
    trigger: &Trigger,
    is_given: &impl Fn(&str) -> bool,
    server: Option<&Server>,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |key: &'static str, value: Option<String>| {
        settings.push(Setting { key, value, given: is_given(key) });
    };
    match &trigger.subject {
        Subject::Query(query) => {
            set("query", Some(query.text.to_string()));
            set("age", Some(query.window.age.to_string()));
            set("timeWindowOffset", Some(query.window.offset.to_string()));
            let reckoning = &trigger.reckoning;
            let offset = match reckoning.offset {
                PointOffset::Points(points) => points.to_string(),
                PointOffset::Auto => "auto".to_owned(),
            };
            set("lastAvailablePointOffset", Some(offset));
            let over_time = match reckoning.over_time {
                TimeAggregator::Last => "last".to_owned(),
                TimeAggregator::Over(aggregator) => aggregator.to_string(),
            };
            set("timeAggregator", Some(over_time));
            set("queryAggregator", reckoning.over_series.map(|aggregator| aggregator.to_string()));
        }
        Subject::DatadogMetric { namespace, name, max_age } => {
            set("datadogMetricNamespace", Some(namespace.clone()));
            set("datadogMetricName", Some(name.clone()));
            set("maxAge", max_age.map(|age| age.as_secs().to_string()));
        }
    }
    let target = if is_given("targetValue") { "targetValue" } else { "queryValue" };
    // Else `scalingModifiers` sets it.
    set(target, is_given(target).then(|| trigger.target.to_string()));
    let (first, second) = match trigger.subject {
        Subject::Query(_) => ("activationQueryValue", "activationTargetValue"),
        Subject::DatadogMetric { .. } => ("activationTargetValue", "activationQueryValue"),
    };
    let activation = if !is_given(first) && is_given(second) { second } else { first };
    set(activation, Some(trigger.activation.to_string()));
    set("metricUnavailableValue", trigger.fill.map(|fill| fill.to_string()));
    let hold = trigger.hold.or(server.map(|server| server.hold));
    set("holdLastValue", hold.map(in_seconds));
    let timeout = server.map_or(trigger.timeout, |server| Some(trigger.patience(server.patience)));
    set("timeout", timeout.map(|timeout| format!("{timeout:?}")));
    settings
}

fn in_seconds(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        duration.as_secs().to_string()
    } else {
        duration.as_secs_f64().to_string()
    }
}
