//! A trigger's metadata with its defaults filled in.

use std::{collections::HashMap, time::Duration};

use super::{examine::Server, report::Setting};
use crate::trigger::{PointOffset, Subject, TimeAggregator, Trigger};

/// Each key that has an effect, in the order in which it has it.
pub(super) fn settings(
    trigger: &Trigger,
    metadata: &HashMap<String, String>,
    server: &Server,
) -> Vec<Setting> {
    let given = |key: &str| metadata.get(key).is_some_and(|value| !value.trim().is_empty());
    let either = |first: &'static str, second| if given(second) { second } else { first };
    let mut settings = Vec::new();
    let mut set = |key: &'static str, value: String| {
        settings.push(Setting { key, value, given: given(key) });
    };
    let none = || "none".to_owned();
    match &trigger.subject {
        Subject::Query(query) => {
            set("query", query.text.to_string());
            set("age", format!("{} s", query.window.age));
            set("timeWindowOffset", format!("{} s", query.window.offset));
            let reckoning = &trigger.reckoning;
            set(
                "lastAvailablePointOffset",
                match reckoning.offset {
                    PointOffset::Points(points) => points.to_string(),
                    PointOffset::Auto => "auto".to_owned(),
                },
            );
            set(
                "timeAggregator",
                match reckoning.over_time {
                    TimeAggregator::Last => "last".to_owned(),
                    TimeAggregator::Over(aggregator) => aggregator.to_string(),
                },
            );
            set("queryAggregator", reckoning.over_series.map_or_else(none, |a| a.to_string()));
        }
        Subject::DatadogMetric { namespace, name, max_age } => {
            set("datadogMetricNamespace", namespace.clone());
            set("datadogMetricName", name.clone());
            set("maxAge", max_age.map_or_else(none, seconds));
        }
    }
    set(either("queryValue", "targetValue"), trigger.target.to_string());
    set(activation_key(trigger, &given), trigger.activation.to_string());
    set("metricUnavailableValue", trigger.fill.map_or_else(none, |fill| fill.to_string()));
    set("holdLastValue", seconds(trigger.hold.unwrap_or(server.hold)));
    let timeout = trigger.timeout.map_or(server.patience, |t| t.min(server.patience));
    set("timeout", seconds(timeout));
    settings
}

/// The one that is read.
fn activation_key(trigger: &Trigger, given: &impl Fn(&str) -> bool) -> &'static str {
    let (first, second) = match trigger.subject {
        Subject::Query(_) => ("activationQueryValue", "activationTargetValue"),
        Subject::DatadogMetric { .. } => ("activationTargetValue", "activationQueryValue"),
    };
    if !given(first) && given(second) { second } else { first }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
