//! What a Cluster Agent answered for one `DatadogMetric`: a value, none, or which `SourceError`. Pure.
//!
//! Whatever is wrong with a metric comes as status 500, and only the text tells what it is
//! (DataDog/datadog-agent#46843). Texts change from release to release: they are looked for in
//! parts, and there is a class for those that nobody knows.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    demand::{Account, Point, Query},
    http::{HttpError, Response},
    source::{Answer, SourceError, list::List, outcome::quote, quantity},
};

/// What its texts are known by, in this order, in lower case: the first that is found tells.
const TEXTS: [(&str, Class); 20] = [
    // That comes and goes for sound queries. Its text holds some of the others.
    ("422 unprocessable", Class::Unprocessable),
    ("only null values found", Class::NoData),
    ("no serie was found", Class::NoData),
    ("outdated result", Class::NoData),
    ("is stale", Class::NoData),
    ("missing result from reply", Class::NoData),
    ("not found for metric name", Class::NotReady),
    ("missing error details", Class::NotReady),
    ("multiple series found", Class::Unusable),
    ("invalid query", Class::Unusable),
    ("cannot resolve query", Class::Unusable),
    ("top-level comma", Class::Unusable),
    // The value is NaN or infinite.
    ("quantities must match", Class::Unusable),
    ("does not follow datadogmetric format", Class::Unusable),
    // Their text holds some of the next.
    ("429", Class::Limited),
    ("rate limit", Class::Limited),
    ("datadog api call error", Class::Upstream),
    ("global error", Class::Upstream),
    ("403 forbidden", Class::Upstream),
    ("did not match the submitted query batch", Class::Upstream),
];

#[derive(Clone, Copy)]
enum Class {
    Unprocessable,
    NoData,
    NotReady,
    Unusable,
    Limited,
    Upstream,
}

pub(super) fn not_fetched(error: HttpError, account: &Account, query: &Query) -> SourceError {
    let host = account.host();
    match error {
        HttpError::TimedOut { after } => SourceError::TimedOut { host, after },
        // What rustls says of another's name on it, and the like.
        HttpError::Failed { cause } if !cause.contains("invalid peer certificate") => {
            SourceError::Unreachable { host, cause }
        }
        HttpError::Failed { cause } if cause.contains("ProtocolVersion") => {
            let cause = format!("{cause}; it has to speak TLS 1.3, as Cluster Agents do");
            SourceError::Unreachable { host, cause }
        }
        HttpError::Failed { cause } if cause.contains("not valid for name") => {
            let cause = format!(
                "{cause}; give the name that is on it with `datadogServerName` (or \
                 `--cluster-agent-server-name`)"
            );
            SourceError::Unreachable { host, cause }
        }
        HttpError::Failed { cause } | HttpError::Untrusted { cause } => {
            let cause = format!(
                "{cause}; give the CA that vouches for it with `datadogCaCert` (or \
                 `--cluster-agent-ca`), or, if there is none, set `unsafeSsl: \"true\"` (or \
                 `--cluster-agent-unsafe-ssl`)"
            );
            SourceError::Unreachable { host, cause }
        }
        HttpError::Unsendable => {
            let reason = "its name is too long".to_owned();
            SourceError::Unusable { metric: called(query), reason }
        }
        HttpError::TooLarge { limit } => {
            let what = format!("it has more than {} MiB", limit >> 20);
            SourceError::NotUnderstood { host, what }
        }
    }
}

/// No series is no data. `now` is when it came in.
pub(super) fn interpret(
    response: &Response,
    account: &Account,
    query: &Query,
    now: Timestamp,
) -> Result<Answer, SourceError> {
    let host = account.host();
    let (namespace, _) = query.metric().unwrap_or_default();
    let window_end_ms = now.as_millisecond();
    match response.status.as_u16() {
        200 => match value(&response.body) {
            Ok(point) => Ok(Answer::of_point(point, window_end_ms)),
            Err(what) => Err(SourceError::NotUnderstood { host, what: what.to_owned() }),
        },
        401 => Err(SourceError::TokenRefused { host }),
        403 => {
            let who = who(&response.body).unwrap_or_else(|| "the token's owner".to_owned());
            let who = quote(&who, account);
            Err(SourceError::NotAllowed { host, who, namespace: namespace.to_owned() })
        }
        status @ (300..=399 | 404..=406) => Err(SourceError::NoAgent { status, host }),
        500 => {
            let Some(words) = words(&response.body) else {
                let what = quote(&String::from_utf8_lossy(&response.body), account);
                let what = if what.is_empty() { "500".to_owned() } else { what };
                return Err(SourceError::AgentFails { host, what });
            };
            match of_words(&words, account, query) {
                Some(error) => Err(error),
                None => Ok(Answer::of_point(None, window_end_ms)),
            }
        }
        status @ (408 | 429 | 501..=599) => {
            Err(SourceError::AgentFails { host, what: status.to_string() })
        }
        status => Err(SourceError::NotUnderstood { host, what: format!("HTTP status {status}") }),
    }
}

/// What the Cluster Agent means when it says why there is no value; `None` is no data.
pub(in crate::source) fn of_words(
    text: &str,
    account: &Account,
    query: &Query,
) -> Option<SourceError> {
    let host = if account.is_watched() { String::new() } else { account.host() };
    let what = quote(text, account);
    let text = text.to_lowercase();
    let class = TEXTS.iter().find(|(part, _)| text.contains(part)).map(|(_, class)| *class);
    match class {
        Some(Class::NoData) => None,
        Some(Class::Unprocessable) => Some(SourceError::Unprocessable),
        Some(Class::NotReady) => Some(SourceError::NotReady { metric: called(query) }),
        Some(Class::Unusable) => {
            Some(SourceError::Unusable { metric: called(query), reason: what })
        }
        Some(Class::Limited) => Some(SourceError::Limited { what }),
        Some(Class::Upstream) => Some(SourceError::Upstream { host, what }),
        // One metric's own, for all that is known: others are not to suffer for it.
        None => Some(SourceError::MetricFails { metric: called(query), what }),
    }
}

pub(in crate::source) fn called(query: &Query) -> String {
    let (namespace, name) = query.metric().unwrap_or_default();
    format!("{namespace}/{name}")
}

/// The point of an `ExternalMetricValueList`; `None` if it is empty.
fn value(body: &[u8]) -> Result<Option<Point>, &'static str> {
    #[derive(Deserialize)]
    struct Values<'a> {
        #[serde(borrow)]
        items: Option<List<'a, 1>>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        timestamp: Option<String>,
        #[serde(borrow)]
        value: Option<&'a RawValue>,
    }
    let values: Values<'_> =
        serde_json::from_slice(body).map_err(|_| "it is not a list of metric values")?;
    let items = values.items.ok_or("it has no `items`")?;
    let Some(item) = items.items.first() else { return Ok(None) };
    let item: Item<'_> = serde_json::from_str(item.get()).map_err(|_| "its item is no metric")?;
    let raw = item.value.ok_or("its item has no `value`")?.get();
    // A Quantity, or a number as it stands.
    let quantity = if raw.starts_with('"') {
        serde_json::from_str(raw).map_err(|_| "its `value` is no number")?
    } else {
        raw.to_owned()
    };
    let value = quantity::parse(&quantity).ok_or("its `value` is no finite number")?;
    let taken: Timestamp = item
        .timestamp
        .and_then(|taken| taken.parse().ok())
        .ok_or("its item has no `timestamp`, so that its age is not known")?;
    Ok(Some(Point { at_ms: taken.as_millisecond(), value }))
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    causes: Option<Vec<Cause>>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    message: String,
}

/// What the agent says of the metric: the words of the cause, if there is one. `None` if it is no
/// `Status`, and so says nothing of a metric.
fn words(body: &[u8]) -> Option<String> {
    let status = serde_json::from_slice::<Status>(body).ok()?;
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let cause = causes.into_iter().map(|cause| cause.message).find(|text| !text.is_empty());
    Some(cause.unwrap_or(status.message)).filter(|text| !text.is_empty())
}

/// `User "…" cannot list …`
fn who(body: &[u8]) -> Option<String> {
    let text = words(body)?;
    let (_, rest) = text.split_once("User \"")?;
    let (user, _) = rest.split_once('"')?;
    Some(format!("the user \"{user}\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{demand::Trust, source::scripted::response};

    fn account() -> Account {
        let url = "https://agent.datadog.svc:8443".parse().unwrap();
        Account::of_agent(url, "the-long-token".into(), Trust::Anybody)
    }

    /// A value and its age in seconds, "no data", or the message.
    fn told(status: u16, body: &str) -> String {
        let query = Query::of_metric("apps", "a");
        let now = "2026-11-22T05:36:00Z".parse().unwrap();
        match interpret(&response(status, &[], body.as_bytes()), &account(), &query, now) {
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

    fn of_value(value: &str) -> String {
        format!(
            r#"{{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{{}},"items":[{{"metricName":"datadogmetric@apps:a","metricLabels":null,"timestamp":"2026-11-22T05:35:50Z","value":{value}}}]}}"#
        )
    }

    /// As the agent words whatever is wrong with a metric.
    fn failure(cause: &str) -> String {
        serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("Internal error occurred: {cause}"), "reason": "InternalError",
            "details": {"causes": [{"message": cause}]}, "code": 500,
        })
        .to_string()
    }

    #[test]
    fn values_are_quantities_or_numbers() {
        for (value, expected) in [
            (r#""1977200m""#, "1977.2"),
            (r#""1E""#, "1000000000000000000"),
            (r#""-5500m""#, "-5.5"),
            (r#""1.5e+03""#, "1500"),
            ("7.75", "7.75"),
            ("-2", "-2"),
            ("1e3", "1000"),
        ] {
            assert_eq!(told(200, &of_value(value)), format!("{expected}, 10 s old"));
        }
    }

    #[test]
    fn an_answer_without_a_value_is_no_data_and_one_of_another_shape_is_not_understood() {
        let not_understood = |what| {
            format!(
                "not_understood: the answer from agent.datadog.svc:8443 is not understood: {what}"
            )
        };
        assert_eq!(told(200, r#"{"items":[]}"#), "no data");
        for (body, what) in [
            ("", "it is not a list of metric values"),
            ("<html>", "it is not a list of metric values"),
            ("{}", "it has no `items`"),
            (r#"{"items":[1]}"#, "its item is no metric"),
            (r#"{"items":[{}]}"#, "its item has no `value`"),
            (&of_value("\"NaN\""), "its `value` is no finite number"),
            (&of_value("\"1e400\""), "its `value` is no finite number"),
            (&of_value("1e400"), "its `value` is no finite number"),
            (&of_value("true"), "its `value` is no finite number"),
            (
                r#"{"items":[{"value":"1","timestamp":null}]}"#,
                "its item has no `timestamp`, so that its age is not known",
            ),
        ] {
            assert_eq!(told(200, body), not_understood(what), "{body}");
        }
    }

    /// What each text of an agent comes to.
    #[test]
    fn every_failure_is_told_apart_by_its_text() {
        let texts = [
            "DatadogMetric not found for metric name: datadogmetric@apps:x, datadogmetricid: apps/x",
            "DatadogMetric is invalid, missing error details",
            "DatadogMetric is stale, last updated: 2026-11-22 05:00:00 +0000 UTC. Check datadog-cluster-agent logs for errors",
            "Processing data from API failed, reason: only null values found in API response (5 points), check data is available in the last 300 seconds (interval was 20), query was: avg:a{*}",
            "Processing data from API failed, reason: no serie was found for this query in API Response, check Cluster Agent logs for QueryIndex errors, query was: avg:a{*}",
            "Processing data from API failed, reason: outdated result, check MaxAge setting, query was: avg:a{*}",
            "DatadogMetric is invalid, err: Query returned outdated result, check MaxAge setting, query: avg:a{*}",
            "Processing data from API failed, reason: missing result from reply, query was: avg:a{*}",
            "Processing data from API failed, reason: multiple series found. Please change your query to return a single serie, query was: avg:a{*} by {b}",
            "invalid query \"avg:a{*},avg:b{*}\": query contains a top-level comma",
            "Cannot resolve query: cannot replace tag_kube_cluster_name",
            "ExternalMetric does not follow DatadogMetric format: s0-x",
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            "Datadog API call error (all queries), error: API error 422 Unprocessable Entity: invalid query, will retry at: 05:00",
            "Datadog API call error (all queries), error: API error 500 Internal Server Error: ",
            "Global error: Datadog API rate limit exceeded",
            "Global error (all queries) from backend, invalid status code: 403 Forbidden",
            "something that nobody knows, with the-long-token in it",
            "",
        ];
        let table: Vec<String> = texts.iter().map(|text| told(500, &failure(text))).collect();
        insta::assert_snapshot!(table.join("\n"), @r#"
        not_ready: the Cluster Agent has no value of the DatadogMetric apps/a yet; check that it exists and has the annotation `external-metrics.datadoghq.com/always-active: "true"`, without which it is not read; after that, or a restart of the agent, it takes a minute
        not_ready: the Cluster Agent has no value of the DatadogMetric apps/a yet; check that it exists and has the annotation `external-metrics.datadoghq.com/always-active: "true"`, without which it is not read; after that, or a restart of the agent, it takes a minute
        no data
        no data
        no data
        no data
        no data
        no data
        unusable: the DatadogMetric apps/a has no usable value: Processing data from API failed, reason: multiple series found. Please change your query to return a single serie, query was: avg:a{*} by {b}; correct its `spec.query`
        unusable: the DatadogMetric apps/a has no usable value: invalid query "avg:a{*},avg:b{*}": query contains a top-level comma; correct its `spec.query`
        unusable: the DatadogMetric apps/a has no usable value: Cannot resolve query: cannot replace tag_kube_cluster_name; correct its `spec.query`
        unusable: the DatadogMetric apps/a has no usable value: ExternalMetric does not follow DatadogMetric format: s0-x; correct its `spec.query`
        unusable: the DatadogMetric apps/a has no usable value: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'; correct its `spec.query`
        unprocessable: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
        upstream: the Cluster Agent at agent.datadog.svc:8443 gets nothing from Datadog (Datadog API call error (all queries), error: API error 500 Internal Server Error); nothing is wrong with the DatadogMetric
        limited: Datadog's rate limit is spent for the Cluster Agent (Global error: Datadog API rate limit exceeded); have it read fewer DatadogMetrics, or ask Datadog for a higher limit
        upstream: the Cluster Agent at agent.datadog.svc:8443 gets nothing from Datadog (Global error (all queries) from backend, invalid status code: 403 Forbidden); nothing is wrong with the DatadogMetric
        metric_fails: the Cluster Agent has no value of the DatadogMetric apps/a (something that nobody knows, with [redacted] in it); its log may tell more
        metric_fails: the Cluster Agent has no value of the DatadogMetric apps/a (Internal error occurred); its log may tell more
        "#);
    }

    #[test]
    fn every_status_is_told_apart() {
        let forbidden = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"datadogmetric@apps:a.external.metrics.k8s.io is forbidden: User \"system:serviceaccount:apps:x\" cannot list resource \"datadogmetric@apps:a\" in API group \"external.metrics.k8s.io\" in the namespace \"apps\"","reason":"Forbidden","details":{"group":"external.metrics.k8s.io","kind":"datadogmetric@apps:a"},"code":403}"#;
        let unauthorized = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
        let unavailable = r#"Internal Server Error: "/apis/external.metrics.k8s.io/v1beta1": dial tcp: i/o timeout"#;
        let answers = [
            (401, unauthorized),
            (403, forbidden),
            (403, "<html>"),
            (404, "404 page not found"),
            (405, ""),
            (302, ""),
            (429, "Too many requests"),
            (500, unavailable),
            (500, ""),
            (503, ""),
            (418, ""),
        ];
        let table: Vec<String> = answers.iter().map(|(status, body)| told(*status, body)).collect();
        insta::assert_snapshot!(table.join("\n"), @r#"
        token_refused: the Cluster Agent at agent.datadog.svc:8443 refuses the token (401); if that lasts, give a `token` (or `--cluster-agent-token-file`) of a ServiceAccount of this Kubernetes that is still valid
        not_allowed: the Cluster Agent at agent.datadog.svc:8443 does not let the user "system:serviceaccount:apps:x" read metrics of the namespace apps; allow it to `list` all resources (`*`) of the API group `external.metrics.k8s.io` there
        not_allowed: the Cluster Agent at agent.datadog.svc:8443 does not let the token's owner read metrics of the namespace apps; allow it to `list` all resources (`*`) of the API group `external.metrics.k8s.io` there
        no_agent: agent.datadog.svc:8443 is not a Cluster Agent that serves external metrics (404); check `datadogMetricsService`, `datadogNamespace` and the port, or `--cluster-agent-url`
        no_agent: agent.datadog.svc:8443 is not a Cluster Agent that serves external metrics (405); check `datadogMetricsService`, `datadogNamespace` and the port, or `--cluster-agent-url`
        no_agent: agent.datadog.svc:8443 is not a Cluster Agent that serves external metrics (302); check `datadogMetricsService`, `datadogNamespace` and the port, or `--cluster-agent-url`
        agent_fails: the Cluster Agent at agent.datadog.svc:8443 fails (429); nothing is wrong with the DatadogMetric
        agent_fails: the Cluster Agent at agent.datadog.svc:8443 fails (Internal Server Error: "/apis/external.metrics.k8s.io/v1beta1": dial tcp: i/o timeout); nothing is wrong with the DatadogMetric
        agent_fails: the Cluster Agent at agent.datadog.svc:8443 fails (500); nothing is wrong with the DatadogMetric
        agent_fails: the Cluster Agent at agent.datadog.svc:8443 fails (503); nothing is wrong with the DatadogMetric
        not_understood: the answer from agent.datadog.svc:8443 is not understood: HTTP status 418
        "#);
    }

    proptest! {
        #[test]
        fn any_body_is_decoded_or_refused(status in 200_u16..600, body in any::<String>()) {
            told(status, &body);
        }

        #[test]
        fn a_value_that_is_understood_is_finite(value in "[-+]?[0-9.]{0,9}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,3}") {
            let body = of_value(&serde_json::json!(value).to_string());
            if let Ok(Some(point)) = super::value(body.as_bytes()) {
                prop_assert!(point.value.is_finite());
            }
        }
    }
}
