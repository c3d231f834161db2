//! What else is told of a trigger, and of several.

use super::*;

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
      maxAge                    960 s (default)
      queryValue                5
      activationQueryValue      3
      metricUnavailableValue    none (default)
      holdLastValue             60 s (default)
      timeout                   2.5s (default)
      note: `age` has no effect where the Cluster Agent is asked
    ");
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
        tell_all(&config, &found, None, &mut respondent, &mut told).await.unwrap();
    }
    let mut told = String::from_utf8(told).unwrap();
    told += &found.select(Some("nope")).unwrap_err().to_string();
    let happening = report::Happening::Push { active: true };
    told += &text::event(&report::Event { at_ms: 0, trigger: evil.to_owned(), happening });
    assert!(told.matches("b 31mc d").count() > 10 && told.contains("\\u009b"), "{told}");
    assert!(!told.contains(['\u{7}', '\u{9b}', '\u{202e}']), "{told}");
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
