//! What people read: a good trigger of each kind, and many wrong ones.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anstream::adapter::strip_str;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::{
    demand::{Account, Keys, Point, Series},
    source::{Answer, Batch, SourceError},
};

/// 2026-11-22 12:00:00 UTC
const NOW_MS: i64 = 1_795_348_800_000;

type Script = fn() -> Result<Vec<Series>, SourceError>;

/// Answers as if it were always noon, and counts the requests.
struct Scripted {
    script: Script,
    takes: Duration,
    requests: AtomicUsize,
}

impl Source for Scripted {
    async fn fetch(&self, batch: &Batch) -> Vec<Result<Answer, SourceError>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        sleep(self.takes).await;
        let answer = |series: Vec<Series>| Answer { series: series.into(), window_end_ms: NOW_MS };
        batch.queries.iter().map(|_| (self.script)().map(answer)).collect()
    }
}

/// A point every 10 s, the newest of which is `late` buckets old.
fn series(scope: &str, late: i64, values: &[f64]) -> Series {
    let oldest = i64::try_from(values.len()).unwrap() + late;
    let points = (0..)
        .zip(values)
        .map(|(n, value)| Point { at_ms: NOW_MS - (oldest - n) * 10_000, value: *value });
    Series {
        scope: scope.into(),
        step: Some(Duration::from_secs(10)),
        nulls: usize::try_from(late).unwrap(),
        points: points.collect(),
    }
}

fn one_series() -> Vec<Series> {
    vec![series("*", 0, &[1.0, 2.0, 4.0, 7.0, 8.0, 8.0, 6.0, 12.0, 11.5])]
}

fn two_series() -> Vec<Series> {
    vec![
        series("queue:mails", 0, &[3.0, 3.0, 4.0, 2.5, 2.0, 0.0]),
        series("queue:orders", 1, &[20.0, 21.0, 23.0, 26.0, 30.0]),
    ]
}

fn config() -> Config {
    Config {
        triggers: Triggers::Files(Vec::new()),
        only: None,
        replicas: 2,
        output: Output::Text { width: 80 },
        server: Server {
            refresh: Duration::from_secs(15),
            hold: Duration::from_mins(1),
            patience: Duration::from_millis(2_500),
            strict_metadata: false,
        },
        ask: Ask::Nobody,
    }
}

struct Told {
    /// Without colour.
    text: String,
    fine: bool,
    requests: usize,
}

/// What is told of a file.
async fn told(config: &Config, yaml: &str, script: Script) -> Told {
    told_after(Duration::ZERO, config, yaml, script).await
}

/// The same of a Datadog that takes its time.
async fn told_after(takes: Duration, config: &Config, yaml: &str, script: Script) -> Told {
    let mut found = Found::default();
    found.add("shop.yaml", yaml).unwrap();
    let keys = Keys::Pair { api: "the-api-key".into(), app: "the-app-key".into() };
    let account = Account::new("https://api.datadoghq.eu".parse().unwrap(), keys);
    let mut respondent = Respondent::Datadog {
        source: Scripted { script, takes, requests: AtomicUsize::new(0) },
        account: Ok(Arc::new(account)),
        keys: "the environment".to_owned(),
        fetched: Fetches::default(),
    };
    let mut out = Vec::new();
    let fine = tell_all(config, &found, &mut respondent, &mut out).await.unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(!out.contains("the-a"), "a key is told");
    let Respondent::Datadog { source, .. } = respondent else { panic!("Datadog is asked") };
    let requests = source.requests.into_inner();
    Told { text: strip_str(&out).to_string(), fine, requests }
}

/// What is told of a trigger that is fine.
async fn good(yaml: &str, script: Script) -> String {
    let Told { text, fine, .. } = told(&config(), yaml, script).await;
    assert!(fine, "{text}");
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{text}");
    // Editors take white space at the end of a line away.
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[tokio::test(start_paused = true)]
async fn a_good_trigger_of_a_scaled_object() {
    let yaml = r#"
kind: ScaledObject
metadata: {name: checkout, namespace: shop}
spec:
  triggers:
    - type: external
      metadata:
        scalerAddress: keda-datadog-scaler.keda:9090
        query: "sum:trace.http.request.hits{service:checkout}.as_rate()"
        queryValue: "5"
"#;
    insta::assert_snapshot!(good(yaml, || Ok(one_series())).await, @r"
    ScaledObject shop/checkout, trigger 0, external
    shop.yaml

    Metadata
      query                     sum:trace.http.request.hits{service:checkout}.as_rat
                                e()
      age                       90 s (default)
      timeWindowOffset          0 s (default)
      lastAvailablePointOffset  0 (default)
      timeAggregator            last (default)
      queryAggregator           none (default)
      queryValue                5
      activationQueryValue      0 (default)
      metricUnavailableValue    none (default)
      holdLastValue             60 s (default)
      timeout                   2.5s (default)

    Datadog
      api.datadoghq.eu, with the keys of the environment
      2026-11-22 11:58:30 to 12:00:00 UTC (90 s), answered after 0.0 ms

    Series
      scope  points  nulls  interval  value
      *           9      0      10 s  11.5

      12 │                                                        •       ◆
         │
         │                                •       •
         │                        •                       •
       5 │┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄
         │                •
         │•       •
       0 │
         └─────────────────────────────────────────────────────────────────────────
          11:58:30                                                         12:00:00
          ◆ counts   • does not   ┄ target 5

    Value
      11.5, active (the newest point)

    Replicas
      AverageValue              3 (this trigger): 11.5 / 5
      Value                     5: 2 × 11.5 / 5
      wanted                    3, from 2, between 1 and 100; rounded up, but
                                nothing changes within a tenth

    While Datadog fails
      an active value           for 75 s after it was read; it is due after 15 s
      an inactive one           for 30 s
      then                      an error: KEDA leaves the replicas alone
      cooldownPeriod            300 s
      stabilization             300 s (`scaleDown` of the HPA)
    ");
}

/// These sections of it.
fn sections(text: &str, headings: &[&str]) -> String {
    let mut chosen = String::new();
    for section in text.split("\n\n") {
        let heading = section.lines().next().unwrap_or_default();
        // A chart belongs to the series.
        let is_chart = section.contains('└') && chosen.contains("Series\n");
        if headings.contains(&heading) || is_chart {
            chosen.push_str(section);
            chosen.push_str("\n\n");
        }
    }
    chosen
}

#[tokio::test(start_paused = true)]
async fn a_good_trigger_that_pushes_and_aggregates() {
    let yaml = r#"
kind: ScaledObject
metadata: {name: mailer, namespace: shop}
spec:
  minReplicaCount: 1
  maxReplicaCount: 3
  cooldownPeriod: 120
  advanced:
    horizontalPodAutoscalerConfig: {behavior: {scaleDown: {stabilizationWindowSeconds: 60}}}
  triggers:
    - type: external-push
      name: backlog
      metricType: Value
      metadata:
        scalerAddress: keda-datadog-scaler.keda:9090
        query: "max:queue.length{*} by {queue}"
        targetValue: "7.5"
        activationTargetValue: "100"
        queryAggregator: sum
        timeAggregator: average
        lastAvailablePointOffset: "1"
        age: "120"
        timeout: "5s"
"#;
    let text = good(yaml, || Ok(two_series())).await;
    let headings = ["Metadata", "Series", "Value", "Replicas", "While Datadog fails"];
    insta::assert_snapshot!(sections(&text, &headings), @r"
    Metadata
      query                     max:queue.length{*} by {queue}
      age                       120 s
      timeWindowOffset          0 s (default)
      lastAvailablePointOffset  1
      timeAggregator            average
      queryAggregator           sum
      targetValue               7.5
      activationTargetValue     100
      metricUnavailableValue    none (default)
      holdLastValue             60 s (default)
      timeout                   2.5s
      note: `timeout` is 5s, and has no effect; KEDA has its answer within 2.5s
        (`--patience`)

    Series
      scope         points  nulls  interval  value
      queue:mails        6      0      10 s  2.9
      queue:orders       5      1      10 s  22.5

       30 │                                                           •
          │                                                     ◆
          │                                    ◆    ◆     ◆
          │
          │
      7.5 │┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄
          │                                    ◆    ◆     ◆     ◆
        0 │                                                           ◆     •
          └────────────────────────────────────────────────────────────────────────
           11:58:00                                                        12:00:00
           ◆ counts   • does not   ┄ target 7.5

    Value
      25.4, not active (the average of the points but for the newest one; of 2
      series, the sum)

    Replicas
      AverageValue              4: 25.4 / 7.5
      Value                     7 (this trigger): 2 × 25.4 / 7.5
      wanted                    3, from 2, between 1 and 3; rounded up, but nothing
                                changes within a tenth
      not active                but `minReplicaCount` keeps replicas

    While Datadog fails
      an active value           for 75 s after it was read; it is due after 15 s
      an inactive one           for 30 s
      then                      an error: KEDA leaves the replicas alone
      stabilization             60 s (`scaleDown` of the HPA)
    ");
}

#[tokio::test(start_paused = true)]
async fn a_good_trigger_of_the_built_in_scaler() {
    let yaml = r#"
kind: ScaledObject
metadata: {name: night, namespace: shop}
spec:
  triggers:
    - type: cpu
      metadata: {value: "60"}
    - type: datadog
      metadata:
        query: "avg:shop.night.orders{*}"
        queryValue: "5"
        metricUnavailableValue: "1.5"
      authenticationRef: {name: datadog}
"#;
    let text = good(yaml, || Ok(Vec::new())).await;
    let title = text.split("\n\n").next().unwrap();
    let rest = sections(&text, &["Series", "Value", "Replicas"]);
    insta::assert_snapshot!(format!("{title}\n\n{rest}"), @r#"
    ScaledObject shop/night, trigger 1, datadog
    shop.yaml
      note: to move it here, set `type: external`, and add `scalerAddress` to its
        metadata
      note: `authenticationRef` "datadog" is not resolved here; the keys of your
        shell are used

    Series
      none

    Value
      1.5, active (`metricUnavailableValue`, since there is no data)

    Replicas
      AverageValue              1 (this trigger): 1.5 / 5
      Value                     1: 2 × 1.5 / 5
      wanted                    1, from 2, between 1 and 100; rounded up, but
                                nothing changes within a tenth
      note: of its 2 triggers, the HPA takes what asks for most
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_good_trigger_of_a_scaled_job() {
    let yaml = r#"
kind: ScaledJob
metadata: {name: reports}
spec:
  maxReplicaCount: 2
  triggers:
    - type: external
      metadata:
        scalerAddress: keda-datadog-scaler.keda:9090
        query: "sum:reports.waiting{*}"
        queryValue: "5"
        holdLastValue: "0"
"#;
    let text = good(yaml, || Ok(one_series())).await;
    insta::assert_snapshot!(sections(&text, &["Value", "Jobs", "While Datadog fails"]), @r"
    Value
      11.5, active (the newest point)

    Jobs
      wanted                    2: 11.5 / 5, rounded up, at most 2
      started                   by `scalingStrategy` default, which counts those
                                there are

    While Datadog fails
      an active value           for 15 s after it was read; it is due after 15 s
      an inactive one           for 15 s
      then                      an error: KEDA starts no Jobs
    ");
}

#[tokio::test(start_paused = true)]
async fn what_else_decides_over_the_replicas_is_told() {
    let told = async |spec: Value, activation: &str| {
        let mut object = with(&json!({"activationQueryValue": activation}));
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        let config = Config { replicas: 0, ..config() };
        let told = told(&config, &object.to_string(), || Ok(one_series())).await;
        assert!(told.fine, "{}", told.text);
        sections(&told.text, &["Value", "Replicas"])
    };
    let mut all = told(json!({}), "0").await;
    all += &told(json!({"minReplicaCount": 2}), "20").await;
    let formula = json!({"advanced": {"scalingModifiers": {"formula": "a * 2"}}});
    all += &told(formula, "0").await;
    insta::assert_snapshot!(all, @r"
    Value
      11.5, active (the newest point)

    Replicas
      wanted                    1, by KEDA; the HPA does nothing at 0

    Value
      11.5, not active (the newest point)

    Replicas
      wanted                    2, by KEDA; the HPA does nothing at 0
      not active                but `minReplicaCount` keeps replicas

    Value
      11.5, active (the newest point)

    Replicas
      note: `scalingModifiers` decides over the replicas; this value is one input of
        its formula
    ");
}

#[tokio::test(start_paused = true)]
#[expect(clippy::too_many_lines, reason = "it is one JSON document")]
async fn the_same_as_json() {
    let yaml = r#"
kind: ScaledObject
metadata: {name: checkout, namespace: shop}
spec:
  triggers:
    - type: external
      metadata: {scalerAddress: "a:1", query: "avg:a{*}", queryValue: "5", agee: "60"}
"#;
    let script: Script = || Ok(vec![series("*", 1, &[7.0, 8.0])]);
    let json = Config { output: Output::Json, ..config() };
    let Told { text, fine, .. } = told(&json, yaml, script).await;
    assert!(!fine);
    insta::assert_snapshot!(text, @r#"
    {
      "fine": false,
      "others": 0,
      "triggers": [
        {
          "file": "shop.yaml",
          "kind": "ScaledObject",
          "namespace": "shop",
          "object": "checkout",
          "index": 0,
          "type": "external",
          "findings": [
            {
              "level": "warning",
              "step": "metadata",
              "message": "`agee` is not known; did you mean `age`?"
            }
          ],
          "settings": [
            {
              "key": "query",
              "value": "avg:a{*}",
              "given": true
            },
            {
              "key": "age",
              "value": "90",
              "given": false
            },
            {
              "key": "timeWindowOffset",
              "value": "0",
              "given": false
            },
            {
              "key": "lastAvailablePointOffset",
              "value": "0",
              "given": false
            },
            {
              "key": "timeAggregator",
              "value": "last",
              "given": false
            },
            {
              "key": "queryAggregator",
              "given": false
            },
            {
              "key": "queryValue",
              "value": "5",
              "given": true
            },
            {
              "key": "activationQueryValue",
              "value": "0",
              "given": false
            },
            {
              "key": "metricUnavailableValue",
              "given": false
            },
            {
              "key": "holdLastValue",
              "value": "60",
              "given": false
            },
            {
              "key": "timeout",
              "value": "2.5s",
              "given": false
            }
          ],
          "request": {
            "host": "api.datadoghq.eu",
            "keys": "the environment",
            "took_ms": 0.0
          },
          "window": {
            "from_ms": 1795348710000,
            "to_ms": 1795348800000
          },
          "series": [
            {
              "scope": "*",
              "points": [
                {
                  "at_ms": 1795348770000,
                  "value": 7.0,
                  "counts": false
                },
                {
                  "at_ms": 1795348780000,
                  "value": 8.0,
                  "counts": true
                }
              ],
              "nulls": 1,
              "interval_seconds": 10,
              "value": 8.0
            }
          ],
          "reckoning": "the newest point",
          "outcome": {
            "status": "answered",
            "value": 8.0,
            "active": true,
            "target": 5.0
          },
          "replicas": {
            "current": 2,
            "metric_type": "AverageValue",
            "by_average_value": 2,
            "by_value": 4,
            "wanted": 2,
            "min": 1,
            "max": 100,
            "idle": 0
          },
          "hold": {
            "refresh_seconds": 15.0,
            "hold_seconds": 60.0,
            "active_seconds": 75.0,
            "inactive_seconds": 30.0,
            "cooldown_seconds": 300,
            "stabilization_seconds": 300
          }
        }
      ]
    }
    "#);
}

/// A sound ScaledObject with this metadata added or, where the value is "-", taken away.
fn with(changes: &Value) -> Value {
    let mut metadata =
        json!({"scalerAddress": "a:1", "query": "avg:shop.orders{*}", "queryValue": "5"});
    for (key, value) in changes.as_object().unwrap() {
        metadata[key] = value.clone();
    }
    metadata.as_object_mut().unwrap().retain(|_, value| value != "-");
    json!({
        "kind": "ScaledObject",
        "metadata": {"name": "checkout"},
        "spec": {"triggers": [{"type": "external", "metadata": metadata}]},
    })
}

/// The same with other parts changed, by JSON pointers into `spec`.
fn but(changes: &[(&str, Value)]) -> Value {
    let mut object = with(&json!({}));
    for (pointer, value) in changes {
        match pointer.split_once('/') {
            Some(("trigger", key)) => object["spec"]["triggers"][0][key] = value.clone(),
            _ if *pointer == "kind" => object["kind"] = value.clone(),
            _ => object["spec"][*pointer] = value.clone(),
        }
    }
    object
}

/// What is said of each, without the notes.
async fn said_of(wrong: Vec<Value>, script: Script) -> String {
    let json = Config { output: Output::Json, ..config() };
    let mut said = Vec::new();
    for object in wrong {
        let Told { text, fine, .. } = told(&json, &object.to_string(), script).await;
        assert!(!fine, "{object} is fine");
        let report: Value = serde_json::from_str(&text).unwrap();
        let findings = report["triggers"][0]["findings"].as_array().unwrap();
        for finding in findings.iter().filter(|finding| finding["level"] != "note") {
            let [level, step, message] =
                ["level", "step", "message"].map(|key| finding[key].as_str().unwrap());
            said.push(format!("{level} ({step}): {message}\n"));
        }
    }
    said.concat()
}

#[tokio::test(start_paused = true)]
async fn wrong_metadata_is_told_with_its_remedy() {
    let wrong = [
        json!({"query": "-"}),
        json!({"query": "-", "qeury": "avg:shop.orders{*}"}),
        json!({"query": "avg:shop.orders"}),
        json!({"queryValue": "-"}),
        json!({"queryValue": "many"}),
        json!({"queryValue": "0.0001"}),
        json!({"queryValue": 7}),
        json!({"query": {"avg:shop.orders": null}}),
        json!({"asMetricSource": true}),
        json!({"queryValue": "-", "asMetricSource": "true"}),
        json!({"activationQueryValue": "high"}),
        json!({"age": "90s"}),
        json!({"timeWindowOffset": "-30"}),
        json!({"lastAvailablePointOffset": "newest"}),
        json!({"timeAggregator": "p99"}),
        json!({"queryAggregator": "median"}),
        json!({"metricUnavailableValue": "none"}),
        json!({"holdLastValue": "1m"}),
        json!({"holdLastValue": "600"}),
        json!({"timeout": "-2s"}),
        json!({"useClusterAgentProxy": "yes"}),
        json!({"useClusterAgentProxy": "true", "datadogMetricName": "orders"}),
        json!({"authMode": "basic"}),
        json!({"type": "sum"}),
        json!({"type": "global"}),
        json!({"colour": "red"}),
        json!({"apiKey": "the-secret"}),
        json!({"apiKey": 1_234_567}),
        json!({"unsafeSsl": "maybe"}),
        json!({"scalerAddress": " "}),
        json!({"scalerAddress": "-"}),
        json!({"scalerAddress": ""}),
        json!({"enableTLS": "maybe"}),
        json!({"query": "avg:a{*},avg:b{*}"}),
        json!({"queryvalue": "5", "queryValue": "-", "agee": "60"}),
        json!({"holdLastValue": "18446744073709551615"}),
    ];
    let wrong = wrong.iter().map(with).collect();
    insta::assert_snapshot!(said_of(wrong, || Ok(one_series())).await, @r#"
    error (metadata): `query` is missing; set it
    error (metadata): `qeury` is not known; did you mean `query`, which is missing?
    error (metadata): `query` is "avg:shop.orders", but must be a Datadog query with a scope in braces, such as `avg:system.load.1{*}`
    error (metadata): `queryValue` (or `targetValue`) is missing; set it, or `asMetricSource: "true"` if `scalingModifiers` sets the target
    error (metadata): `queryValue` is "many", but must be a number such as `0.5`
    error (metadata): `queryValue` is "0.0001", but must be at least 0.0005, the smallest target KEDA can express
    error (metadata): `queryValue` is 7 without quotes, but must be a text; quote it
    error (metadata): `query` is a map, but must be a text; quote it
    error (metadata): `asMetricSource` is true without quotes, but must be a text; quote it
    warning (metadata): `asMetricSource` leaves the target to `advanced.scalingModifiers`, but there are none; add them, or set `queryValue`
    error (metadata): `activationQueryValue` is "high", but must be a number such as `0.5`
    error (metadata): `age` is "90s", but must be a whole number of seconds such as `90`, not negative
    error (metadata): `timeWindowOffset` is "-30", but must be a whole number of seconds such as `90`, not negative
    error (metadata): `lastAvailablePointOffset` is "newest", but must be a whole number of points, not negative, or `auto`
    error (metadata): `timeAggregator` is "p99", but must be last, average, max, min or sum
    error (metadata): `queryAggregator` is "median", but must be average, max, min or sum
    error (metadata): `metricUnavailableValue` is "none", but must be a number such as `0.5`
    error (metadata): `holdLastValue` is "1m", but must be a whole number of seconds such as `90`, not negative
    warning (hold): a reading is held for 600 s, longer than `cooldownPeriod` (300 s) keeps the replicas; set `holdLastValue: "300"`, or a longer `cooldownPeriod`
    warning (hold): a reading is held for 600 s, longer than `stabilizationWindowSeconds` (300 s) keeps the replicas; set `holdLastValue: "300"`, or a longer `stabilizationWindowSeconds`
    error (metadata): `timeout` is "-2s", but must be a duration such as `500ms` or `2s`, or a whole number of milliseconds, not negative
    error (metadata): `useClusterAgentProxy` is "yes", but must be true or false
    error (metadata): `datadogMetricNamespace` is missing; set it
    error (metadata): `authMode` is "basic", but must be bearer
    error (metadata): `type` is "sum", but must be average or global; it has no effect, leave it out
    warning (metadata): `type` in the metadata is "global", which has no effect; for one target for all replicas together, set `metricType: Value` for the trigger
    warning (metadata): `colour` is not known; take it out
    warning (metadata): `apiKey` has no effect in metadata; the server uses its own account (`DD_API_KEY`, `DD_APP_KEY` and `DD_SITE`, or `--credentials-dir`)
    error (metadata): `apiKey` is a number without quotes, but must be a text; quote it
    warning (metadata): `apiKey` has no effect in metadata; the server uses its own account (`DD_API_KEY`, `DD_APP_KEY` and `DD_SITE`, or `--credentials-dir`)
    error (metadata): `unsafeSsl` is "maybe", but must be true or false
    error (trigger): `scalerAddress` is missing, and KEDA needs it; set it, such as `keda-datadog-scaler.keda:9090`
    error (trigger): `scalerAddress` is missing, and KEDA needs it; set it, such as `keda-datadog-scaler.keda:9090`
    error (trigger): `scalerAddress` is missing, and KEDA needs it; set it, such as `keda-datadog-scaler.keda:9090`
    error (metadata): `enableTLS` is "maybe", but must be true or false
    warning (metadata): `query` holds 2 queries; set `queryAggregator` to make one value of them
    error (metadata): `queryvalue` is not known; did you mean `queryValue`, which is missing?
    warning (metadata): `agee` is not known; did you mean `age`?
    warning (hold): a reading is held for 18446744073709552000 s, longer than `cooldownPeriod` (300 s) keeps the replicas; set `holdLastValue: "300"`, or a longer `cooldownPeriod`
    warning (hold): a reading is held for 18446744073709552000 s, longer than `stabilizationWindowSeconds` (300 s) keeps the replicas; set `holdLastValue: "300"`, or a longer `stabilizationWindowSeconds`
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_place_for_a_trigger_is_told_with_its_remedy() {
    let metadata = json!({"query": "avg:a{*}", "queryValue": "5"});
    let twin = json!({"type": "external", "name": "a", "metadata": metadata});
    let wrong = vec![
        but(&[("trigger/metricType", json!("Utilization"))]),
        but(&[("kind", json!("ScaledJob")), ("trigger/metricType", json!("Value"))]),
        but(&[("kind", json!("ScaledJob")), ("trigger/type", json!("external-push"))]),
        but(&[("cooldownPeriod", json!(30))]),
        but(&[("minReplicaCount", json!(5)), ("maxReplicaCount", json!(2))]),
        but(&[("minReplicaCount", json!(2)), ("idleReplicaCount", json!(2))]),
        but(&[("trigger/authenticationRef", json!({"nam": "datadog"}))]),
        but(&[("triggers", json!([twin, twin]))]),
    ];
    insta::assert_snapshot!(said_of(wrong, || Ok(one_series())).await, @r#"
    error (trigger): `metricType` is "Utilization", but must be AverageValue or Value
    error (trigger): KEDA refuses `metricType` in the triggers of a ScaledJob; take it out
    warning (hold): a value that is held would start Jobs again for work already done; set `holdLastValue: "0"` for a ScaledJob
    warning (trigger): `type` is "external-push", but KEDA polls a ScaledJob; set `type: external`
    warning (hold): a value that is held would start Jobs again for work already done; set `holdLastValue: "0"` for a ScaledJob
    warning (hold): a reading is held for 60 s, longer than `cooldownPeriod` (30 s) keeps the replicas; set `holdLastValue: "30"`, or a longer `cooldownPeriod`
    error (scaling): `maxReplicaCount` is 2, but must be at least 5; raise it, or lower `minReplicaCount`
    error (scaling): `idleReplicaCount` is 2, but must be less than `minReplicaCount`, 2
    error (trigger): `authenticationRef` has no `name`; set it, or take it out
    error (trigger): `scalerAddress` is missing, and KEDA needs it; set it, such as `keda-datadog-scaler.keda:9090`
    error (trigger): `name` is "a", but so is that of another trigger; KEDA wants it unique
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_is_told_with_its_remedy() {
    let said = async |changes: Value, script| said_of(vec![with(&changes)], script).await;
    let nothing = || json!({});
    let mut all = String::new();
    all += &said(nothing(), || Ok(two_series())).await;
    all += &said(nothing(), || Ok(Vec::new())).await;
    all += &said(json!({"lastAvailablePointOffset": "9"}), || Ok(one_series())).await;
    let agent = json!({
        "useClusterAgentProxy": "true", "datadogMetricName": "a", "datadogMetricNamespace": "b",
    });
    all += &said(agent, || Ok(one_series())).await;
    all += &said(nothing(), || {
        Err(SourceError::Malformed { reason: "unknown function `agv`".to_owned() })
    })
    .await;
    let refused: Script =
        || Err(SourceError::Refused { status: 403, host: "api.datadoghq.eu".to_owned() });
    all += &said(nothing(), refused).await;
    all += &said(nothing(), || Err(SourceError::Unprocessable)).await;
    insta::assert_snapshot!(all, @r"
    error (series): the query returns 2 series; set `queryAggregator`, or change it to return one
    error (series): the query has no data in the last 90 seconds; wait for data, widen `age`, or set `metricUnavailableValue`
    error (series): the query has 9 points with a value in the last 90 seconds, and `lastAvailablePointOffset` leaves none of them; lower it, widen `age`, or set `metricUnavailableValue`
    error (request): `useClusterAgentProxy` is not served by this version; take it out and give a `query`, which is read from the Datadog API
    error (request): Datadog rejects the query: unknown function `agv`
    error (request): Datadog refuses the keys (403) at api.datadoghq.eu; check that they belong to this site and may read metrics (`timeseries_query`)
    error (request): Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
    ");
}

#[tokio::test(start_paused = true)]
async fn a_query_is_read_once_for_several_triggers() {
    let mut object = with(&json!({}));
    let trigger = object["spec"]["triggers"][0].clone();
    object["spec"]["triggers"].as_array_mut().unwrap().push(trigger);
    let told = told(&config(), &object.to_string(), || Ok(one_series())).await;
    assert!(told.fine);
    assert_eq!(told.requests, 1);
    assert!(
        told.text.ends_with(
            "\n\n   fine  checkout[0]: 11.5, active\n   fine  checkout[1]: 11.5, active\n"
        ),
        "{}",
        told.text
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_sound_is_left_alone() {
    let formula = json!({"scalingModifiers": {"formula": "a"}});
    let mut of_modifiers = with(&json!({"queryValue": "-", "asMetricSource": "true"}));
    of_modifiers["spec"]["advanced"] = formula;
    let mut global = with(&json!({"type": "global"}));
    global["spec"]["triggers"][0]["metricType"] = json!("Value");
    let mut job = with(&json!({"holdLastValue": "0"}));
    job["kind"] = json!("ScaledJob");
    job["spec"]["cooldownPeriod"] = json!(10);
    for object in [
        of_modifiers,
        global,
        job,
        with(&json!({"query": "avg:a{*},avg:b{*}", "queryAggregator": "max"})),
        // Nothing cools down that does not go to zero.
        but(&[("minReplicaCount", json!(1)), ("cooldownPeriod", json!(10))]),
        but(&[("minReplicaCount", json!(2)), ("idleReplicaCount", json!(0))]),
    ] {
        let told = told(&config(), &object.to_string(), || Ok(one_series())).await;
        assert!(told.fine, "{}", told.text);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_without_effect_and_defaults_of_others_are_told() {
    let metadata = json!({
        "maxAge": "60",
        "lastAvailablePointOffset": "auto",
        "activationQueryValue": "3",
        "activationTargetValue": "4",
        "holdLastValue": "7",
    });
    let object = with(&metadata).to_string();
    let text = told(&config(), &object, || Ok(one_series())).await.text;
    let agent = json!({
        "useClusterAgentProxy": "true", "datadogMetricName": "a", "datadogMetricNamespace": "b",
        "query": "-", "age": "60", "activationQueryValue": "3",
    });
    let agent = with(&agent).to_string();
    let agent = told(&config(), &agent, || Ok(one_series())).await.text;
    let both = sections(&text, &["Metadata"]) + &sections(&agent, &["Metadata"]);
    insta::assert_snapshot!(both, @r"
    Metadata
      query                     avg:shop.orders{*}
      age                       90 s (default)
      timeWindowOffset          0 s (default)
      lastAvailablePointOffset  auto
      timeAggregator            last (default)
      queryAggregator           none (default)
      queryValue                5
      activationQueryValue      3
      metricUnavailableValue    none (default)
      holdLastValue             7 s
      timeout                   2.5s (default)
      note: `maxAge` has no effect where the Datadog API is asked

    Metadata
      datadogMetricNamespace    b
      datadogMetricName         a
      maxAge                    none (default)
      queryValue                5
      activationQueryValue      3
      metricUnavailableValue    none (default)
      holdLastValue             60 s (default)
      timeout                   2.5s (default)
      note: `age` has no effect where the Cluster Agent is asked
    ");
}

#[tokio::test(start_paused = true)]
async fn what_a_terminal_would_obey_is_not_shown() {
    let evil = "a\u{7}b\u{9b}31mc\u{202e}d";
    let mut object = with(&json!({"query": format!("avg:{evil}{{*}}"), evil: "1"}));
    object["metadata"] = json!({"name": evil, "namespace": evil});
    object["spec"]["triggers"][0]["name"] = json!(evil);
    object["spec"]["triggers"][0]["metricType"] = json!(evil);
    object["spec"]["triggers"][0]["authenticationRef"] = json!({"name": evil});
    let mut found = Found::default();
    // YAML takes such characters as escapes only.
    let object = String::from_utf8(json::line(&object).unwrap()).unwrap();
    found.add("shop.yaml", &object).unwrap();
    found.add("shop.yaml", &object).unwrap();
    let mut told = Vec::new();
    for output in [Output::Text { width: 80 }, Output::Json] {
        let config = Config { output, ..config() };
        let mut respondent = Respondent::<Scripted>::Nobody;
        tell_all(&config, &found, &mut respondent, &mut told).await.unwrap();
    }
    let mut told = String::from_utf8(told).unwrap();
    told += &found.select(Some("nope")).unwrap_err().to_string();
    let happening = report::Happening::Push { active: true };
    told += &text::event(&report::Event { at_ms: 0, trigger: evil.to_owned(), happening });
    assert!(told.matches("b 31mc d").count() > 10 && told.contains("\\u009b"), "{told}");
    assert!(!told.contains(['\u{7}', '\u{9b}', '\u{202e}']), "{told}");
}

#[tokio::test(start_paused = true)]
async fn what_is_strict_is_told_once() {
    let server = Server { strict_metadata: true, ..config().server };
    let config = Config { output: Output::Json, server, ..config() };
    let object = with(&json!({"colour": "red", "apiKey": "the-secret"})).to_string();
    let Told { text, .. } = told(&config, &object, || Ok(one_series())).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    let findings = report["triggers"][0]["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["level"] == "error"), "{findings:?}");
    assert_eq!(findings.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_less_than_usual_is_told_too() {
    let mut all = String::new();
    let mut job = with(&json!({"holdLastValue": "0", "activationQueryValue": "20"}));
    job["kind"] = json!("ScaledJob");
    job["spec"]["minReplicaCount"] = json!(2);
    let told_of = async |object: &Value, script: Script, headings: &[&str]| {
        sections(&told(&config(), &object.to_string(), script).await.text, headings)
    };
    all += &told_of(&job, || Ok(one_series()), &["Jobs"]).await;
    let negative: Script = || Ok(vec![series("*", 0, &[-5.0])]);
    all += &told_of(&with(&json!({})), negative, &["Value", "Replicas"]).await;
    let partly: Script = || Ok(vec![series("a", 0, &[1.0]), series("b", 3, &[])]);
    let of_max = with(&json!({"queryAggregator": "max"}));
    all += &told_of(&of_max, partly, &["Value"]).await;
    all += &told_of(&with(&json!({"age": "x"})), partly, &["Metadata", "Value"]).await;
    insta::assert_snapshot!(all, @r#"
    Jobs
      wanted                    0, since it is not active; KEDA keeps 2

    Value
      -5, not active (the newest point)

    Replicas
      AverageValue              0 (this trigger): 0 / 5
      Value                     0: 2 × 0 / 5
      wanted                    1, from 2, between 1 and 100; rounded up, but
                                nothing changes within a tenth
      not active                KEDA goes to 0 after `cooldownPeriod`, if no trigger
                                is active

    Value
      1, active (the newest point)

    Metadata
      error: `age` is "x", but must be a whole number of seconds such as `90`, not
        negative

    Value
      none: KEDA gets INVALID_ARGUMENT from GetMetricSpec, and can make no HPA of
      it; a `fallback` does not help
    "#);
}

#[tokio::test(start_paused = true)]
async fn triggers_of_others_are_counted() {
    let mut object = with(&json!({"agee": "60"}));
    object["spec"]["triggers"][0]["name"] = json!("orders");
    let triggers = object["spec"]["triggers"].as_array_mut().unwrap();
    triggers.extend([json!({"type": "cpu"}), json!({"type": "cron"})]);
    let Told { text, .. } = told(&config(), &object.to_string(), || Ok(one_series())).await;
    assert!(text.ends_with("\n\n2 triggers are not this scaler's, and left out\n"), "{text}");
    let two = json!({"items": [object, object]});
    let Told { text, .. } = told(&config(), &two.to_string(), || Ok(one_series())).await;
    assert!(text.contains("\nwarning  checkout[orders]: 11.5, active\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_does_not_ask_on() {
    let requests = async |script: Script| {
        let mut object = with(&json!({}));
        let mut other = object["spec"]["triggers"][0].clone();
        other["metadata"]["query"] = json!("avg:shop.other{*}");
        object["spec"]["triggers"].as_array_mut().unwrap().push(other);
        told(&config(), &object.to_string(), script).await.requests
    };
    let throttled: Script =
        || Err(SourceError::Throttled { host: "api.datadoghq.eu".to_owned(), limit: None });
    let malformed: Script = || Err(SourceError::Malformed { reason: "no".to_owned() });
    assert_eq!((requests(throttled).await, requests(malformed).await), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_is_judged_as_of_when_it_came() {
    let mut object = with(&json!({"holdLastValue": "0"}));
    let trigger = object["spec"]["triggers"][0].clone();
    let mut slow = trigger.clone();
    slow["metadata"]["query"] = json!("avg:shop.other{*}");
    slow["metadata"]["timeout"] = json!("2s");
    object["spec"]["triggers"] = json!([trigger, slow, trigger]);
    let config = Config { output: Output::Json, ..config() };
    let takes = Duration::from_secs(20);
    let told = told_after(takes, &config, &object.to_string(), || Ok(one_series())).await;
    let report: Value = serde_json::from_str(&told.text).unwrap();
    assert_eq!(told.requests, 2);
    for trigger in report["triggers"].as_array().unwrap() {
        assert_eq!(trigger["outcome"]["value"], 11.5, "{trigger}");
    }
    assert_eq!(report["triggers"][1]["request"]["took_ms"], 20_000.0);
    let slow = &report["triggers"][1]["findings"][0];
    let message = "the answer took 20.0 s, and KEDA is kept waiting for 2s at most; the first time \
                   it gets DEADLINE_EXCEEDED; make the query quicker";
    assert_eq!((&slow["level"], &slow["message"]), (&json!("warning"), &json!(message)));
}

#[tokio::test(start_paused = true)]
async fn many_series_and_a_far_target_are_drawn() {
    let script: Script = || {
        let mut many: Vec<Series> =
            (0..12).map(|n| series("queue:short", 0, &[f64::from(n)])).collect();
        many.insert(0, series(&"キュー".repeat(30), 0, &[1.0, 2.0]));
        many.insert(0, series("", 2, &[-3.0]));
        Ok(many)
    };
    let object = with(&json!({"queryAggregator": "max", "queryValue": "500", "age": "200000"}));
    let told = told(&config(), &object.to_string(), script).await;
    insta::assert_snapshot!(sections(&told.text, &["Series"]), @r"
    Series
      scope                                          points  nulls  interval  value
      *                                                   1      2      10 s  -3
      キューキューキューキューキューキューキューキ…       2      0      10 s  2
      queue:short                                         1      0      10 s  0
      queue:short                                         1      0      10 s  1
      queue:short                                         1      0      10 s  2
      queue:short                                         1      0      10 s  3
      queue:short                                         1      0      10 s  4
      queue:short                                         1      0      10 s  5
      queue:short                                         1      0      10 s  6
      queue:short                                         1      0      10 s  7
      queue:short                                         1      0      10 s  8
      queue:short                                         1      0      10 s  9
      and 2 more

      11 │                                                                        ◆
         │                                                                        ◆
         │                                                                        ◆
         │                                                                        ◆
         │                                                                        ◆
         │                                                                        ◆
         │
      -3 │                                                                        ◆
         └─────────────────────────────────────────────────────────────────────────
          11-20 04:26                                                   11-22 12:00
          ◆ counts   • does not   the target, 500, is far above
    ");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_does_not_hide_the_others() {
    let sound = with(&json!({}));
    let mut odd = with(&json!({}));
    odd["spec"]["triggers"] = json!({"type": "external"});
    let list = json!({"kind": "List", "items": [odd, sound]});
    let Told { text, fine, .. } = told(&config(), &list.to_string(), || Ok(one_series())).await;
    assert!(!fine);
    assert!(
        text.ends_with(
            "\n\n   fine  checkout[0]: 11.5, active\n  error  the `spec` of ScaledObject \
             `checkout` in shop.yaml: triggers: invalid type: map, expected a sequence\n"
        ),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_trigger_is_found_by_its_index_or_name() {
    let mut object = with(&json!({}));
    let mut trigger = object["spec"]["triggers"][0].clone();
    trigger["name"] = json!("orders");
    object["spec"]["triggers"].as_array_mut().unwrap().push(trigger);
    let only = async |wanted: &str| {
        let config = Config { only: Some(wanted.to_owned()), ..config() };
        let Told { text, .. } = told(&config, &object.to_string(), || Ok(one_series())).await;
        text.lines().filter(|line| line.starts_with("ScaledObject")).collect::<Vec<_>>().join("; ")
    };
    let second = "ScaledObject checkout, trigger 1 (orders), external";
    assert_eq!(only("0").await, "ScaledObject checkout, trigger 0, external");
    assert_eq!((only("1").await, only("orders").await), (second.to_owned(), second.to_owned()));
    let mut found = Found::default();
    found.add("shop.yaml", &object.to_string()).unwrap();
    let error = found.select(Some("mails")).err().unwrap();
    assert_eq!(error.to_string(), "there is no trigger `mails`; there are: 0, 1 (orders)");
}
