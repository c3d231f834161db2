//! Queries together and each alone, in front of a Datadog that tells them apart.

use std::sync::Mutex;

use super::*;

/// What the nth request gets for its queries.
type Replies = fn(usize, &[&str]) -> Vec<Result<Vec<Series>, SourceError>>;

struct Telling {
    replies: Replies,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Source for Telling {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let texts: Vec<&str> = batch.queries.iter().map(|query| &*query.text).collect();
        let nth = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(texts.join(" "));
            asked.len()
        };
        let answer =
            |series: Vec<Series>| Answer { series: series.into(), window_end_ms: NOW_MS - 60_000 };
        let outcomes = (self.replies)(nth, &texts).into_iter().map(|series| series.map(answer));
        Reply { outcomes: outcomes.collect(), rate_limit: None }
    }
}

/// ScaledObject `shop` with a trigger for each of these.
fn shop(metadata: &[Value]) -> Value {
    let trigger = |metadata: &Value| with(metadata)["spec"]["triggers"][0].clone();
    json!({
        "kind": "ScaledObject",
        "metadata": {"name": "shop"},
        "spec": {"triggers": metadata.iter().map(trigger).collect::<Vec<_>>()},
    })
}

fn queries(texts: &[&str]) -> Value {
    shop(&texts.iter().map(|text| json!({"query": text})).collect::<Vec<_>>())
}

/// What is told, whether it is fine, and what was asked.
async fn compared(
    config: &Config,
    object: &Value,
    replies: Replies,
) -> (String, bool, Vec<String>) {
    let mut found = Found::default();
    found.add("shop.yaml", &object.to_string()).unwrap();
    let keys = Keys::Pair { api: "the-api-key".into(), app: "the-app-key".into() };
    let account = Account::new("https://api.datadoghq.eu".parse().unwrap(), keys);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let source = Telling { replies, asked: asked.clone() };
    let asking = asking(source, Ok(Arc::new(account)));
    let mut out = Vec::new();
    let fine = compare::run(config, &found, &asking, &mut out).await.unwrap();
    let text = strip_str(std::str::from_utf8(&out).unwrap()).to_string();
    let asked = asked.lock().unwrap().clone();
    (text, fine, asked)
}

/// The same for all.
fn equal(texts: &[&str]) -> Vec<Result<Vec<Series>, SourceError>> {
    texts.iter().map(|_| Ok(two_series())).collect()
}

fn throttled(texts: &[&str]) -> Vec<Result<Vec<Series>, SourceError>> {
    let error = SourceError::Throttled { host: "api.datadoghq.eu".to_owned(), limit: None };
    texts.iter().map(|_| Err(error.clone())).collect()
}

#[tokio::test(start_paused = true)]
async fn all_are_equal() {
    let sum = |query: &str| json!({"query": query, "queryAggregator": "sum"});
    let other_window = json!({"query": "avg:c{*}", "age": "600", "queryAggregator": "max"});
    let agent = json!({
        "query": "-", "useClusterAgentProxy": "true", "datadogMetricName": "a",
        "datadogMetricNamespace": "b",
    });
    let mut object = shop(&[
        sum("avg:a{*}"),
        sum("avg:b{*}"),
        // The same query once more.
        json!({"query": "avg:a{*}", "queryAggregator": "max"}),
        other_window,
        sum("avg:d{*}"),
        sum("avg:left.open{x:(}"),
        agent,
        json!({"queryValue": "many"}),
    ]);
    object["spec"]["triggers"].as_array_mut().unwrap().push(json!({"type": "cpu"}));
    // In another order, with other nulls.
    let (text, fine, asked) = compared(&config(), &object, |nth, texts| {
        let mut series = two_series();
        if nth > 1 {
            series.reverse();
            series[0].nulls = 7;
        }
        // Of another query, there is nothing, either way.
        let reply = |text: &&str| Ok(if *text == "avg:d{*}" { Vec::new() } else { series.clone() });
        texts.iter().map(reply).collect()
    })
    .await;
    assert!(fine);
    assert_eq!(asked, ["avg:a{*} avg:b{*} avg:d{*}", "avg:a{*}", "avg:b{*}", "avg:d{*}"]);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    3 queries in one request, 2026-11-22 11:57:30 to 11:59:00 UTC (90 s)
        equal  avg:a{*}
        equal  avg:b{*}
        equal  avg:d{*} (no data)

    Sent alone by the server too, and not asked for
        alone  avg:c{*}
        alone  avg:left.open{x:(}

    3 queries in 1 request and alone: all equal, 1 without data; 4 requests were made
      left out: 1 trigger of the Cluster Agent, which is asked for each metric by
      itself
      left out: 1 trigger whose metadata cannot be used (`check` alone tells why)
      left out: 1 trigger of other scalers
    ");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_differs_is_told() {
    let auto = json!({"query": "avg:b{*}", "lastAvailablePointOffset": "auto"});
    let object = shop(&[json!({"query": "avg:a{*}"}), auto, json!({"query": "avg:c{*}"})]);
    let (text, fine, _) = compared(&config(), &object, |_, texts| {
        let reply = |text: &&str| {
            let mut series = one_series();
            match (*text, texts.len()) {
                ("avg:a{*}", 1) => series[0].points[8].value = 12.000_000_1,
                ("avg:b{*}", 1) => series[0].step = Some(Duration::from_secs(20)),
                _ => {}
            }
            Ok(series)
        };
        texts.iter().map(reply).collect()
    })
    .await;
    assert!(!fine);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    3 queries in one request, 2026-11-22 11:57:30 to 11:59:00 UTC (90 s)
      differs  avg:a{*}
                 another value at 1 point, at most 0.5 apart: 11.5 together,
                 12.0000001 alone (* at 11:59:50)
                 value of shop[0]: 11.5 together, 12.0000001 alone, 0.5 apart
      differs  avg:b{*}
                 width of a bucket, for `lastAvailablePointOffset: auto`: 10 s
                 together, 20 s alone (*)
                 value of shop[1]: 4 together, 2 alone, 2 apart
        equal  avg:c{*}

    3 queries in 1 request and alone: 1 equal, 2 differ; 4 requests were made
    ");
}

#[tokio::test(start_paused = true)]
async fn a_series_that_is_missing_in_the_batch_is_told() {
    let object = shop(&[
        json!({"query": "avg:a{*} by {queue}", "queryAggregator": "sum"}),
        json!({"query": "avg:b{*}", "queryAggregator": "sum"}),
    ]);
    let replies: Replies = |_, texts| {
        let reply = |text: &&str| {
            let mut series = two_series();
            if *text == "avg:a{*} by {queue}" && texts.len() > 1 {
                series.pop();
            }
            Ok(series)
        };
        texts.iter().map(reply).collect()
    };
    let (text, fine, _) = compared(&config(), &object, replies).await;
    assert!(!fine);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    2 queries in one request, 2026-11-22 11:57:30 to 11:59:00 UTC (90 s)
      differs  avg:a{*} by {queue}
                 1 series together, 2 alone; only alone: queue:orders
                 value of shop[0]: 0 together, 30 alone, 30 apart
        equal  avg:b{*}

    2 queries in 1 request and alone: 1 equal, 1 differs; 3 requests were made
    ");
    let config = Config { output: Output::Json, ..config() };
    let (json, fine, _) = compared(&config, &object, replies).await;
    assert!(!fine);
    insta::assert_snapshot!(json, @r#"
    {
      "fine": false,
      "left_out": {
        "others": 0,
        "cluster_agent": 0,
        "unusable": 0,
        "excess": 0
      },
      "host": "api.datadoghq.eu",
      "keys": "the environment",
      "settled_seconds": 60,
      "batches": [
        {
          "age_seconds": 90,
          "offset_seconds": 0,
          "window": {
            "from_ms": 1795348650000,
            "to_ms": 1795348740000
          },
          "queries": [
            {
              "query": "avg:a{*} by {queue}",
              "triggers": [
                "shop[0]"
              ],
              "verdict": "differs",
              "points": 11,
              "differences": [
                {
                  "what": "series",
                  "together": 1,
                  "alone": 2,
                  "only_together": [],
                  "only_alone": [
                    "queue:orders"
                  ]
                },
                {
                  "what": "value",
                  "trigger": "shop[0]",
                  "together": {
                    "value": 0.0
                  },
                  "alone": {
                    "value": 30.0
                  }
                }
              ]
            },
            {
              "query": "avg:b{*}",
              "triggers": [
                "shop[1]"
              ],
              "verdict": "equal",
              "points": 11
            }
          ]
        }
      ],
      "requests": 3
    }
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_rejected_as_a_whole_is_told() {
    let object = queries(&["avg:a{*}", "avg:b{x y}"]);
    let (text, fine, asked) = compared(&config(), &object, |_, texts| {
        let is_bad = texts.contains(&"avg:b{x y}");
        let error = SourceError::Malformed { reason: "unable to parse avg:b{x y}".to_owned() };
        let reply = |_: &&str| if is_bad { Err(error.clone()) } else { Ok(one_series()) };
        texts.iter().map(reply).collect()
    })
    .await;
    assert!(!fine);
    assert_eq!(asked.len(), 3);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    2 queries in one request of 90 s
      it failed as a whole: Datadog rejects the query: unable to parse avg:b{x y};
      the server would divide the request until what fails stands alone
       failed  avg:a{*}
                 alone it is answered
       failed  avg:b{x y}
                 alone: Datadog rejects the query: unable to parse avg:b{x y}

    2 queries in 1 request and alone: 2 failed; 3 requests were made
    ");
}

#[tokio::test(start_paused = true)]
async fn who_is_throttled_does_not_compare_on() {
    let object = queries(&["avg:a{*}", "avg:b{*}", "avg:c{*}", "avg:d{*}"]);
    let mut config = config();
    config.server.batch_queries = 2;
    let in_the_middle: Replies = |nth, texts| if nth < 3 { equal(texts) } else { throttled(texts) };
    let (text, fine, asked) = compared(&config, &object, in_the_middle).await;
    assert!(!fine);
    assert_eq!(asked, ["avg:a{*} avg:b{*}", "avg:a{*}", "avg:b{*}"]);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    2 queries in one request, 2026-11-22 11:57:30 to 11:59:00 UTC (90 s)
        equal  avg:a{*}
       failed  avg:b{*}
                 alone: Datadog's rate limit is spent at api.datadoghq.eu; ask for
                 fewer queries or windows (`age`), or ask Datadog for a higher limit

    stopped, since no other request would be answered

    4 queries in 2 requests and alone: 1 equal, 1 failed, 2 not compared; 3 requests were made
    ");
    let at_once: Replies = |_, texts| throttled(texts);
    let (text, fine, asked) = compared(&config, &object, at_once).await;
    assert!(!fine);
    assert_eq!(asked, ["avg:a{*} avg:b{*}"]);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    2 queries in one request of 90 s
      it failed as a whole: Datadog's rate limit is spent at api.datadoghq.eu; ask
      for fewer queries or windows (`age`), or ask Datadog for a higher limit; the
      server would hold what it has, and ask again

    stopped, since no other request would be answered

    4 queries in 2 requests and alone: 4 not compared; 1 request was made
    ");
}

#[tokio::test(start_paused = true)]
async fn one_query_has_nothing_to_be_compared_with() {
    let object = queries(&["avg:a{*}", "avg:a{*}"]);
    let (text, fine, asked) = compared(&config(), &object, |_, texts| equal(texts)).await;
    assert!(fine);
    assert_eq!(asked, [""; 0]);
    insta::assert_snapshot!(text, @r"
    Queries together and alone
      api.datadoghq.eu, with the keys of the environment
      windows end 60 s earlier than they would, since newer points still change

    Sent alone by the server too, and not asked for
        alone  avg:a{*}

    nothing to compare: no two queries share a request
    ");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_or_unreadable_is_left_out() {
    let texts: Vec<String> = (0..203).map(|n| format!("avg:a{n}{{*}}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut odd = with(&json!({}));
    odd["spec"]["triggers"] = json!({"type": "external"});
    let all = json!({"kind": "List", "items": [queries(&texts), odd]});
    let (text, fine, asked) = compared(&config(), &all, |_, texts| equal(texts)).await;
    assert!(!fine, "nobody knows what is in the second");
    assert_eq!(asked.len(), 6 + 200);
    let (_, end) = text.rsplit_once("\n\n").unwrap();
    insta::assert_snapshot!(end, @r"
    200 queries in 6 requests and alone: all equal; 206 requests were made
      left out: 3 queries, beyond 200
      error  the `spec` of ScaledObject `checkout` in shop.yaml: triggers: invalid type: map, expected a sequence
    ");
}
