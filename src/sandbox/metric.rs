//! The DatadogMetrics of the simulated Cluster Agent: the waves of the simulated Datadog, and what the
//! agent makes of them.

use jiff::Timestamp;

use super::{
    broken::Trouble,
    catalogue::{METRICS, Metric},
    failure::datadogs_clock,
    fault::{Fault, METRIC_PREFIX},
    query::SimulatedQuery,
    reply,
};
use crate::words::is_name;

/// What the agent asks Datadog for, in seconds (`external_metrics_provider.bucket_size`).
const WINDOW: i64 = 300;
/// How old a value may be that the agent still answers with, in seconds: `max_age` and
/// `query_validity_period`.
const VALID: i64 = 150;
/// How old that of `Fault::Frozen` is from the start, in seconds.
const FROZEN: i64 = 1_800;

/// A DatadogMetric, which is there in every namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DatadogMetric {
    pub(super) name: String,
    pub(super) query: String,
}

/// One of all series together, and one of each series, if it has several.
pub(super) fn of(metric: &Metric) -> Vec<DatadogMetric> {
    let name = metric.name.trim_start_matches("sandbox.").replace('.', "-");
    let each = metric.queues.iter().map(|queue| DatadogMetric {
        name: format!("{name}-{queue}"),
        query: format!("avg:{}{{queue:{queue}}}", metric.name),
    });
    let by = if metric.queues.is_empty() { "" } else { " by {queue}" };
    let all = DatadogMetric { query: format!("avg:{}{{*}}{by}", metric.name), name: name.clone() };
    [all].into_iter().chain(each).collect()
}

/// When the point was that the agent has, in seconds since the epoch, and its value; or its words for
/// why it has none. `called` is in lower case, as `datadogmetric@demo:steps`.
///
/// A real agent asks Datadog each 30 seconds; this one whenever it is asked.
pub(super) fn read(called: &str, trouble: &Trouble, now: i64) -> Result<(i64, f64), String> {
    let Some((namespace, name)) = parse(called) else {
        return Err(format!("ExternalMetric does not follow DatadogMetric format: {called}"));
    };
    let known = METRICS.iter().flat_map(of).find(|metric| metric.name == name);
    let Some(DatadogMetric { query, .. }) = known else {
        return Err(format!(
            "DatadogMetric not found for metric name: {called}, datadogmetricid: {namespace}/{name}"
        ));
    };
    let fault = trouble.fault();
    let since = trouble.whole.as_ref().map_or(now, |on| on.since);
    if let Some(words) = fault.and_then(|fault| words(fault, &query, since)) {
        return Err(words);
    }
    let now = if fault == Some(Fault::Frozen) { since - FROZEN } else { now };
    let fails = |reason: &str| {
        format!("Processing data from API failed, reason: {reason}, query was: {query}")
    };
    let parsed = SimulatedQuery::parse(&query).expect("the simulation understands its own queries");
    let mut found = parsed.answer(now - WINDOW, now, datadogs_clock(fault, now));
    found.retain(|series| !series.points.is_empty());
    if let Some(Some(fault)) = trouble.data.first().copied() {
        reply::spoil(&mut found, fault);
    }
    let series = match &found[..] {
        [series] => series,
        [] => {
            return Err(fails(
                "no serie was found for this query in API Response, check Cluster Agent logs for \
                 QueryIndex errors",
            ));
        }
        _ => {
            return Err(fails(
                "multiple series found. Please change your query to return a single serie",
            ));
        }
    };
    let points: Vec<(i64, f64)> =
        series.points.iter().filter_map(|(at, value)| Some((*at, (*value)?))).collect();
    match points[..] {
        [.., penultimate, _] => Ok(penultimate),
        [only] => Ok(only),
        [] => Err(fails(&format!(
            "only null values found in API response ({} points), check data is available in the \
             last {WINDOW} seconds (interval was {})",
            series.points.len(),
            parsed.step
        ))),
    }
}

/// Namespace and name.
fn parse(called: &str) -> Option<(&str, &str)> {
    let (namespace, name) = called.strip_prefix(METRIC_PREFIX)?.split_once(':')?;
    let is_sound = |part: &str| is_name(part) && !part.contains('.');
    (is_sound(namespace) && is_sound(name)).then_some((namespace, name))
}

/// What a real agent says (`pkg/clusteragent/autoscaling/externalmetrics`). `None` if it has a value.
fn words(fault: Fault, query: &str, since: i64) -> Option<String> {
    let of_datadog =
        |error: &str| Some(format!("Datadog API call error (all queries), error: {error}"));
    match fault {
        Fault::Unprocessable => of_datadog(
            r#"API error 422 Unprocessable Entity: {"errors":["Unprocessable Content"]}"#,
        ),
        Fault::Throttled => {
            of_datadog(r#"API error 429 Too Many Requests: {"errors":["Too many requests"]}"#)
        }
        Fault::BadGateway => of_datadog("API error 502 Bad Gateway: \"Bad Gateway\""),
        Fault::GatewayTimeout => {
            of_datadog("API error 504 Gateway Timeout: upstream request timeout")
        }
        Fault::Error => of_datadog("Query timed out"),
        Fault::Rejected => Some(format!(
            "Processing data from API failed, reason: invalid query \"{query},\": query contains a \
             top-level comma, query was: {query},"
        )),
        Fault::Stale => {
            let updated = Timestamp::from_second(since - VALID).unwrap_or_default();
            Some(format!(
                "DatadogMetric is stale, last updated: {}. Check datadog-cluster-agent logs for \
                 errors",
                updated.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
            ))
        }
        Fault::NotReady => Some("DatadogMetric is invalid, missing error details".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{demand::Service, sandbox::broken::Faults};

    /// What is broken is so since the second 3600.
    fn read_under(breakages: &[&str], called: &str) -> Result<(i64, f64), String> {
        let breakages = breakages.iter().map(|text| text.parse().unwrap()).collect();
        let faults = Faults::new(breakages, 3_600).unwrap();
        read(called, &faults.trouble(Service::ClusterAgent, called), 3_998)
    }

    #[track_caller]
    fn check(called: &str, expected: Result<(i64, f64), &str>) {
        let read = read_under(&[], called);
        assert_eq!(read.as_ref().map_err(String::as_str), expected.as_ref().map_err(|e| *e));
    }

    #[test]
    fn the_value_is_that_of_the_last_but_one_point() {
        check("datadogmetric@demo:steps", Ok((3_980, 2.0)));
        check("datadogmetric@other:flat", Ok((3_980, 12.0)));
        check("datadogmetric@demo:negative", Ok((3_980, -5.0)));
        // Every third point is missing; nulls do not count.
        check("datadogmetric@demo:gaps", Ok((3_970, 7.0)));
        check("datadogmetric@demo:late", Ok((3_950, 9.0)));
    }

    #[test]
    fn a_metric_by_queue_has_too_many_series_and_one_queue_has_one() {
        check(
            "datadogmetric@demo:queue-length",
            Err(
                "Processing data from API failed, reason: multiple series found. Please change your \
                 query to return a single serie, query was: avg:sandbox.queue.length{*} by {queue}",
            ),
        );
        assert!(read_under(&[], "datadogmetric@demo:queue-length-mails").is_ok());
    }

    #[test]
    fn what_is_not_there_is_named() {
        check(
            "datadogmetric@demo:queue-length-letters",
            Err("DatadogMetric not found for metric name: \
                 datadogmetric@demo:queue-length-letters, datadogmetricid: demo/queue-length-letters"),
        );
        for odd in
            ["steps", "s0-datadogmetric@demo:steps", "datadogmetric@demo:a.b", "datadogmetric@:a"]
        {
            let error = format!("ExternalMetric does not follow DatadogMetric format: {odd}");
            check(odd, Err(&error));
        }
    }

    #[test]
    fn each_fault_has_an_agents_words() {
        let table = Fault::ALL.map(|fault| {
            let seen = match read_under(&[fault.name()], "datadogmetric@demo:flat") {
                Ok((at, value)) => format!("{value} at {at}"),
                Err(words) => words,
            };
            format!("{fault:<10}  {seen}\n")
        });
        insta::assert_snapshot!(table.concat(), @r#"
        401         12 at 3980
        403         12 at 3980
        422         Datadog API call error (all queries), error: API error 422 Unprocessable Entity: {"errors":["Unprocessable Content"]}
        429         Datadog API call error (all queries), error: API error 429 Too Many Requests: {"errors":["Too many requests"]}
        429-bare    12 at 3980
        500         12 at 3980
        502         Datadog API call error (all queries), error: API error 502 Bad Gateway: "Bad Gateway"
        504         Datadog API call error (all queries), error: API error 504 Gateway Timeout: upstream request timeout
        error       Datadog API call error (all queries), error: Query timed out
        rejected    Processing data from API failed, reason: invalid query "avg:sandbox.flat{*},": query contains a top-level comma, query was: avg:sandbox.flat{*},
        latency     12 at 3980
        slow        12 at 3980
        hang        12 at 3980
        reset       12 at 3980
        garbage     12 at 3980
        truncated   12 at 3980
        huge        12 at 3980
        empty       Processing data from API failed, reason: no serie was found for this query in API Response, check Cluster Agent logs for QueryIndex errors, query was: avg:sandbox.flat{*}
        null        Processing data from API failed, reason: only null values found in API response (30 points), check data is available in the last 300 seconds (interval was 10), query was: avg:sandbox.flat{*}
        last-null   12 at 3950
        clock-skew  Processing data from API failed, reason: no serie was found for this query in API Response, check Cluster Agent logs for QueryIndex errors, query was: avg:sandbox.flat{*}
        neighbour   12 at 3980
        stale       DatadogMetric is stale, last updated: 1970-01-01 00:57:30 +0000 UTC. Check datadog-cluster-agent logs for errors
        frozen      12 at 1790
        not-ready   DatadogMetric is invalid, missing error details
        "#);
    }
}
