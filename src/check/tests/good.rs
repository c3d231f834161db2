//! A good trigger of each kind, as a person and as a program reads it.

use super::*;

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
