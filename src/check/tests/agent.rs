//! What is told of triggers that ask the Cluster Agent.

use super::*;

/// One that reads shop/orders, with these changes.
fn metric(changes: &Value) -> Value {
    let mut all = json!({
        "query": "-", "useClusterAgentProxy": "true", "datadogMetricName": "Orders",
        "datadogMetricNamespace": "shop",
    });
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    with(&all)
}

/// A value that Datadog had so many seconds before.
fn aged(seconds: i64) -> Vec<Series> {
    vec![Series {
        scope: "*".into(),
        step: None,
        nulls: 0,
        points: Box::new([Point { at_ms: NOW_MS - seconds * 1_000, value: 20.0 }]),
    }]
}

/// Level and message of what is said of a trigger, and what KEDA gets.
async fn said(object: &Value, script: Script) -> String {
    let config = Config { output: Output::Json, ..config() };
    said_by(&config, object, script).await
}

async fn said_by(config: &Config, object: &Value, script: Script) -> String {
    let told = told(config, &object.to_string(), script).await;
    let report: Value = serde_json::from_str(&told.text).unwrap();
    let examined = &report["triggers"][0];
    let got = match &examined["outcome"] {
        Value::Null => "open".to_owned(),
        outcome if outcome["code"].is_null() => {
            let how = examined["reckoning"].as_str().unwrap_or("as the agent has it");
            format!("{} ({how})", outcome["value"])
        }
        outcome => outcome["code"].as_str().unwrap().to_owned(),
    };
    let findings = examined["findings"].as_array().unwrap().iter().map(|finding| {
        let text = |key: &str| finding[key].as_str().unwrap();
        format!("  {} ({}): {}\n", text("level"), text("step"), text("message"))
    });
    format!("{got}\n{}", findings.collect::<String>())
}

#[tokio::test(start_paused = true)]
async fn everything_is_told_of_a_metric_too() {
    let told = told(&config(), &metric(&json!({})).to_string(), || Ok(aged(25))).await;
    assert!(told.fine && told.requests == 1);
    insta::assert_snapshot!(told.text, @r"
    ScaledObject checkout, trigger 0, external
    shop.yaml

    Metadata
      datadogMetricNamespace    shop
      datadogMetricName         Orders
      maxAge                    960 s (default)
      queryValue                5
      activationTargetValue     0 (default)
      metricUnavailableValue    none (default)
      holdLastValue             60 s (default)
      timeout                   2.5s (default)

    Cluster Agent
      127.0.0.1:8443, with the token of /run/token
      datadogmetric@shop:orders, answered after 0.0 ms
      trusted                   whoever answers there: nothing is verified
      value                     20
      point                     2026-11-22 11:59:35 UTC, 25 s old; 960 s are allowed

    Value
      20, active

    Replicas
      AverageValue              4 (this trigger): 20 / 5
      Value                     8: 2 × 20 / 5
      wanted                    4, from 2, between 1 and 100; rounded up, but
                                nothing changes within a tenth

    While the Cluster Agent fails
      an active value           for 75 s after it was read; it is due after 15 s
      an inactive one           for 30 s
      then                      an error: KEDA leaves the replicas alone
      cooldownPeriod            300 s
      stabilization             300 s (`scaleDown` of the HPA)
    ");
}

#[tokio::test(start_paused = true)]
async fn programs_read_of_a_metric_too() {
    let config = Config { output: Output::Json, ..config() };
    let told = told(&config, &metric(&json!({"maxAge": "60"})).to_string(), || Ok(aged(25))).await;
    let report: Value = serde_json::from_str(&told.text).unwrap();
    let examined = &report["triggers"][0];
    let request = json!({
        "host": "127.0.0.1:8443", "keys": "/run/token", "trust": "anybody", "took_ms": 0.0,
    });
    let seen = json!({
        "name": "datadogmetric@shop:orders", "value": 20.0, "at_ms": NOW_MS - 25_000,
        "age_seconds": 25, "max_age_seconds": 60,
    });
    assert_eq!((&examined["request"], &examined["metric"]), (&request, &seen));
    assert_eq!(examined["outcome"]["value"], 20.0);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_old_is_told_with_its_end() {
    let fill = json!({"metricUnavailableValue": "3"});
    let mut all = said(&metric(&json!({})), || Ok(aged(980))).await;
    all += &said(&metric(&fill), || Ok(aged(980))).await;
    all += &said(&metric(&json!({"maxAge": "1000"})), || Ok(aged(980))).await;
    all += &said(&metric(&json!({"maxAge": "60"})), || Ok(aged(980))).await;
    all += &said(&metric(&json!({})), || Ok(aged(-31))).await;
    insta::assert_snapshot!(all, @r"
    20.0 (held, though it is too old)
      warning (request): it is held for 40 s more: the newest value of the DatadogMetric shop/Orders is 980 s old, and 960 s are allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`
    3.0 (`metricUnavailableValue`, since the agent's is too old)
    20.0 (as the agent has it)
    NOT_FOUND
      error (request): the newest value of the DatadogMetric shop/Orders is 980 s old, and 60 s are allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`
    20.0 (as the agent has it)
      warning (request): the value is of a time 31 s ahead of this machine's clock; set that right, or that of the agent's node, else a value that is too old is found out as much later
    ");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_fails_with_is_told_with_what_to_type() {
    let fill = json!({"metricUnavailableValue": "3"});
    let not_ready: Script = || Err(SourceError::NotReady { metric: "shop/orders".to_owned() });
    let mut all = said(&metric(&json!({})), not_ready).await;
    all += &said(&metric(&json!({})), || Ok(Vec::new())).await;
    all += &said(&metric(&fill), || Ok(Vec::new())).await;
    all += &said(&metric(&fill), || Err(SourceError::Unprocessable)).await;
    insta::assert_snapshot!(all, @r#"
    FAILED_PRECONDITION
      error (request): the Cluster Agent has no value of the DatadogMetric shop/orders yet; check that it exists and has the annotation `external-metrics.datadoghq.com/always-active: "true"`, without which it is not read; after that, or a restart of the agent, it takes a minute
      note (request): `kubectl annotate datadogmetric orders --namespace shop external-metrics.datadoghq.com/always-active=true` adds the annotation
    NOT_FOUND
      error (request): the Cluster Agent has no data of the DatadogMetric shop/Orders; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
    3.0 (`metricUnavailableValue`, since there is no data)
    3.0 (`metricUnavailableValue`, since Datadog cannot process it)
    "#);
}

#[tokio::test(start_paused = true)]
async fn what_is_told_without_the_agent() {
    let mut moving = metric(&json!({"scalerAddress": "-", "age": "60", "timeWindowOffset": "5"}));
    moving["spec"]["triggers"][0]["type"] = json!("datadog");
    let mut all = said(&moving, || Ok(aged(5))).await;
    all += &said(&metric(&json!({"datadogMetricName": "orders.v2"})), || Ok(aged(5))).await;
    let mut elsewhere = metric(&json!({"datadogMetricNamespace": "Shared"}));
    elsewhere["metadata"]["namespace"] = json!("shop");
    all += &said(&elsewhere, || Ok(aged(5))).await;
    let with_namespaces = |pattern: &str| Config {
        output: Output::Json,
        agent_namespaces: vec![pattern.parse().unwrap()],
        ..config()
    };
    all += &said_by(&with_namespaces("sha*"), &elsewhere, || Ok(aged(5))).await;
    all += &said_by(&with_namespaces("other"), &elsewhere, || Ok(aged(5))).await;
    // It has a token of its own.
    elsewhere["spec"]["triggers"][0]["authenticationRef"] = json!({"name": "agent"});
    all += &said_by(&with_namespaces("other"), &elsewhere, || Ok(aged(5))).await;
    insta::assert_snapshot!(all, @r#"
    20.0 (as the agent has it)
      note (trigger): to move it here, set `type: external`, and add `scalerAddress` to its metadata
      note (metadata): `age` has no effect where the Cluster Agent is asked
      note (metadata): `timeWindowOffset` has no effect where the Cluster Agent is asked
      note (trigger): once it is moved, the HPA's metric is `s0-datadogmetric@shop:Orders`, which the Cluster Agent does not know for its own; the DatadogMetric then needs the annotation `external-metrics.datadoghq.com/always-active: "true"`
    open
      warning (metadata): `datadogMetricName` is "orders.v2", but the Cluster Agent's API takes no name with a dot; make a DatadogMetric of another name, or have the scaler watch them (`--cluster-agent-source`)
    20.0 (as the agent has it)
      note (credentials): the DatadogMetric is of another namespace than the trigger; with its own token, the scaler reads it only if its `--cluster-agent-namespaces` have shared
    20.0 (as the agent has it)
    PERMISSION_DENIED
      error (credentials): the DatadogMetric is of the namespace shared, and triggers of shop may not read it by what the scaler itself may; refer to a TriggerAuthentication with a `token`, or have the administrator add shared to `--cluster-agent-namespaces`
    20.0 (as the agent has it)
      note (trigger): `authenticationRef` "agent" is not resolved here, but with `-n`; your `--cluster-agent-url` stands for it
    "#);
}

/// What is said of shop/orders by who has this account of an agent, or none.
async fn said_with(
    account: Result<&str, CredentialsError>,
    forward: Option<&str>,
    is_in_pod: bool,
    script: Script,
) -> String {
    let account = account.map(|url| {
        let url = url.parse().unwrap();
        Arc::new(Account::of_agent(url, "the-agents-token".into(), Trust::System))
    });
    let source = Scripted { script, takes: Duration::ZERO, requests: Arc::default() };
    let mut asking = asking(source, Err(CredentialsError::None));
    asking.agents.own.account = account;
    asking.agents.is_in_pod = is_in_pod;
    asking.agents.forwards.extend(forward.map(|host| crate::http::Forward {
        host: host.to_owned(),
        port: 8443,
        to: "127.0.0.1:18443".parse().unwrap(),
    }));
    let requests = asking.source.requests.clone();
    let mut found = Found::default();
    found.add("shop.yaml", &metric(&json!({})).to_string()).unwrap();
    let mut out = Vec::new();
    let mut respondent = Respondent::Datadog(asking);
    tell_all(&config(), &found, None, &mut respondent, &mut out).await.unwrap();
    let text = strip_str(std::str::from_utf8(&out).unwrap()).to_string();
    let requests = requests.load(Ordering::Relaxed);
    format!("{}requests: {requests}\n\n", sections(&text, &["Cluster Agent", "Value"]))
}

#[tokio::test(start_paused = true)]
async fn a_name_of_kubernetes_is_asked_only_where_it_is_one() {
    let agent = "dd-metrics-api.datadog.svc";
    let url = format!("https://{agent}:8443");
    let sound: Script = || Ok(aged(25));
    let refused: Script = || {
        Err(SourceError::Unreachable {
            host: "dd-metrics-api.datadog.svc:8443".to_owned(),
            cause: "Connection refused (os error 111)".to_owned(),
        })
    };
    let unknown: Script = || {
        Err(SourceError::Unreachable {
            host: "dd-metrics-api.datadog.svc:8443".to_owned(),
            cause: "failed to lookup address information: Name or service not known".to_owned(),
        })
    };
    let mut all = said_with(Ok(&url), None, false, sound).await;
    all += &said_with(Ok("https://dd.datadog.svc"), Some(agent), false, sound).await;
    all += &said_with(Ok(&url), Some(agent), false, sound).await;
    all += &said_with(Ok(&url), Some(agent), false, refused).await;
    all += &said_with(Ok(&url), None, true, refused).await;
    all += &said_with(Ok(&url), None, true, unknown).await;
    let of_authority: Script = || {
        Err(SourceError::Unreachable {
            host: "dd-metrics-api.datadog.svc:8443".to_owned(),
            cause: "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))".to_owned(),
        })
    };
    all += &said_with(Ok(&url), None, true, of_authority).await;
    insta::assert_snapshot!(all, @r"
    Cluster Agent
      warning: dd-metrics-api.datadog.svc is a name of Kubernetes, and not looked up
        elsewhere; run `kubectl port-forward --namespace datadog
        service/dd-metrics-api 8443`, and add `--cluster-agent-forward
        dd-metrics-api.datadog.svc:8443=127.0.0.1:8443`

    requests: 0

    Cluster Agent
      warning: dd.datadog.svc is a name of Kubernetes, and not looked up elsewhere;
        run `kubectl port-forward --namespace datadog service/dd 8443:443`, and add
        `--cluster-agent-forward dd.datadog.svc:443=127.0.0.1:8443`

    requests: 0

    Cluster Agent
      dd-metrics-api.datadog.svc:8443, through 127.0.0.1:18443, with the token of
      /run/token
      datadogmetric@shop:orders, answered after 0.0 ms
      trusted                   whom the CAs of the system vouch for
      value                     20
      point                     2026-11-22 11:59:35 UTC, 25 s old; 960 s are allowed

    Value
      20, active

    requests: 1

    Cluster Agent
      dd-metrics-api.datadog.svc:8443, through 127.0.0.1:18443, with the token of
      /run/token
      datadogmetric@shop:orders, no value, after 0.0 ms
      trusted                   whom the CAs of the system vouch for
      warning: nobody listens at 127.0.0.1:18443, so that it is not known here what
        the scaler gets of dd-metrics-api.datadog.svc:8443; is `kubectl
        port-forward` running?

    requests: 1

    Cluster Agent
      dd-metrics-api.datadog.svc:8443, with the token of /run/token
      datadogmetric@shop:orders, no value, after 0.0 ms
      trusted                   whom the CAs of the system vouch for
      error: dd-metrics-api.datadog.svc:8443 cannot be reached: Connection refused
        (os error 111)

    Value
      none: KEDA gets UNAVAILABLE from GetMetrics, and leaves the replicas as they
      are, unless there is a `fallback`

    requests: 1

    Cluster Agent
      dd-metrics-api.datadog.svc:8443, with the token of /run/token
      datadogmetric@shop:orders, no value, after 0.0 ms
      trusted                   whom the CAs of the system vouch for
      error: dd-metrics-api.datadog.svc:8443 cannot be reached: failed to lookup
        address information: Name or service not known
      note: is there a Service? `kubectl get service dd-metrics-api --namespace
        datadog`

    Value
      none: KEDA gets UNAVAILABLE from GetMetrics, and leaves the replicas as they
      are, unless there is a `fallback`

    requests: 1

    Cluster Agent
      dd-metrics-api.datadog.svc:8443, with the token of /run/token
      datadogmetric@shop:orders, no value, after 0.0 ms
      trusted                   whom the CAs of the system vouch for
      error: dd-metrics-api.datadog.svc:8443 cannot be reached: invalid peer
        certificate: Other(OtherError(CaUsedAsEndEntity))
      note: the agent shows the certificate of a CA (`CA:TRUE`), which is none of a
        server; have that CA issue one for the agent, with the name of its Service

    Value
      none: KEDA gets UNAVAILABLE from GetMetrics, and leaves the replicas as they
      are, unless there is a `fallback`

    requests: 1
    ");
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_told_with_the_flag_that_gives_it() {
    let sound: Script = || Ok(aged(25));
    let mut all = said_with(Err(CredentialsError::NoAgent), None, false, sound).await;
    let path = "/run/token".to_owned();
    let no_file = CredentialsError::AgentFile { path, cause: "it is empty".to_owned() };
    all += &said_with(Err(no_file), None, false, sound).await;
    insta::assert_snapshot!(all, @r"
    Cluster Agent
      warning: no Cluster Agent is known here; give its address with
        `--cluster-agent-url`, and a token with `--cluster-agent-token-file`

    requests: 0

    Cluster Agent
      error: the file /run/token for the Cluster Agent cannot be used: it is empty
      note: `kubectl create token SERVICEACCOUNT --namespace NAMESPACE` prints a
        token; write it to a file, and give that with `--cluster-agent-token-file`

    Value
      none: KEDA gets FAILED_PRECONDITION from GetMetrics, and leaves the replicas
      as they are, unless there is a `fallback`

    requests: 0
    ");
}
