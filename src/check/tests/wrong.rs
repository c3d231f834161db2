//! Wrong triggers, each told with its remedy; and sound ones, left alone.

use super::*;

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
    error (metadata): `apiKey` does not belong into metadata, which others can read; put the keys into a Secret, and refer to it with a TriggerAuthentication (`authenticationRef`)
    error (metadata): `apiKey` is a number without quotes, but must be a text; quote it
    error (metadata): `apiKey` does not belong into metadata, which others can read; put the keys into a Secret, and refer to it with a TriggerAuthentication (`authenticationRef`)
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
    let mut job_that_holds = with(&json!({"holdLastValue": "7"}));
    job_that_holds["kind"] = json!("ScaledJob");
    let wrong = vec![
        but(&[("trigger/metricType", json!("Utilization"))]),
        but(&[("kind", json!("ScaledJob")), ("trigger/metricType", json!("Value"))]),
        but(&[("kind", json!("ScaledJob")), ("trigger/type", json!("external-push"))]),
        job_that_holds,
        but(&[("cooldownPeriod", json!(30))]),
        but(&[("minReplicaCount", json!(5)), ("maxReplicaCount", json!(2))]),
        but(&[("minReplicaCount", json!(2)), ("idleReplicaCount", json!(2))]),
        but(&[("trigger/authenticationRef", json!({"nam": "datadog"}))]),
        but(&[("triggers", json!([twin, twin]))]),
    ];
    insta::assert_snapshot!(said_of(wrong, || Ok(one_series())).await, @r#"
    error (trigger): `metricType` is "Utilization", but must be AverageValue or Value
    error (trigger): KEDA refuses `metricType` in the triggers of a ScaledJob; take it out
    warning (trigger): `type` is "external-push", but KEDA polls a ScaledJob; set `type: external`
    warning (hold): a value that is held would start Jobs again for work already done; set `holdLastValue: "0"`, or take it out where the scaler uses Kubernetes, and so knows a ScaledJob
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
    error (request): Datadog rejects the query: unknown function `agv`
    error (request): Datadog refuses the keys (403) at api.datadoghq.eu; check that they belong to this site and may read metrics (`timeseries_query`)
    error (request): Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
    ");
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
async fn a_job_is_held_only_by_who_does_not_know_it() {
    let job = but(&[("kind", json!("ScaledJob"))]);
    let held = async |config: &Config| {
        let told = told(config, &job.to_string(), || Ok(one_series())).await;
        assert!(told.fine, "{}", told.text);
        sections(&told.text, &["While Datadog fails"])
    };
    insta::assert_snapshot!(held(&config()).await, @r#"
    While Datadog fails
      an active value           for 15 s after it was read; it is due after 15 s
      an inactive one           for 15 s
      then                      an error: KEDA starts no Jobs
      note: a scaler without Kubernetes does not know a ScaledJob, and holds a value
        for 60 s, which would start Jobs again for work already done; set
        `holdLastValue: "0"` there
    "#);
    // Nobody holds it.
    let server = Server { hold: Duration::ZERO, ..config().server };
    let text = held(&Config { server, ..config() }).await;
    assert!(!text.contains("note"), "{text}");
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
