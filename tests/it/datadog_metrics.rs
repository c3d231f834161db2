//! `DatadogMetric`s as a watch of Kubernetes tells them: what is served, who may have it, and when a
//! Cluster Agent is asked instead. On a paused clock; what the objects say is as old as by the real
//! one.

use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::SignedDuration;
use keda_datadog_scaler::{
    credentials::{AgentSource, Rules},
    proto::{ScaledObjectRef, external_scaler_server::ExternalScaler as _},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tonic::Request;

use crate::{
    authentication::{authentication, data, entry},
    cluster_agent::metric,
    engine::Engine,
    fake_agent::now,
    fake_kubernetes::{FakeKubernetes, Trouble},
    kubernetes::{scaled_object, trigger},
};

/// What came by the watch, as it is now; the script answers for Cluster Agents.
const AGENT: f64 = 99.0;

/// A sound one, with this value.
pub(crate) fn datadog_metric(namespace: &str, name: &str, value: &str) -> Value {
    let ago = |seconds| (now() - SignedDuration::from_secs(seconds)).to_string();
    let condition = |name: &str, status: &str, at: String| {
        json!({
            "type": name, "status": status, "lastUpdateTime": at,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    json!({
        "apiVersion": "datadoghq.com/v1alpha1",
        "kind": "DatadogMetric",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"query": "avg:shop.orders{*}"},
        "status": {
            "currentValue": value,
            "conditions": [
                condition("Active", "True", ago(5)),
                condition("Valid", "True", ago(5)),
                condition("Updated", "True", ago(40)),
                condition("Error", "False", ago(5)),
            ],
        },
    })
}

pub(crate) const ACTIVE: usize = 0;
const VALID: usize = 1;
const UPDATED: usize = 2;
const ERROR: usize = 3;

/// The condition is as it is not in a sound one.
pub(crate) fn turned(mut metric: Value, condition: usize) -> Value {
    let status = &mut metric["status"]["conditions"][condition]["status"];
    *status = if *status == "True" { "False" } else { "True" }.into();
    metric
}

pub(crate) fn invalid(mut metric: Value, why: &str) -> Value {
    metric["status"]["conditions"][ERROR]["message"] = why.into();
    turned(turned(metric, VALID), ERROR)
}

fn aged(mut metric: Value, condition: usize, seconds: i64) -> Value {
    let at = (now() - SignedDuration::from_secs(seconds)).to_string();
    metric["status"]["conditions"][condition]["lastUpdateTime"] = at.into();
    metric
}

/// The Cluster Agent wrote into it so long ago for the last time.
fn abandoned(metric: Value, seconds: i64) -> Value {
    [ACTIVE, VALID, ERROR].into_iter().fold(metric, |it, at| aged(it, at, seconds))
}

/// With the ScaledObject of each request, none of which has an `authenticationRef`.
fn cluster(requests: &[&ScaledObjectRef]) -> FakeKubernetes {
    let kubernetes = FakeKubernetes::new();
    for request in requests {
        kubernetes.apply(scaled_object(request, &[trigger(request, Value::Null)]));
    }
    kubernetes
}

async fn start(kubernetes: &FakeKubernetes, change: impl FnOnce(&mut Rules)) -> Engine {
    Engine::start_in(kubernetes, change, |_, _| Ok(Some(AGENT))).await
}

fn crd(rules: &mut Rules) {
    rules.agent_source = AgentSource::Crd;
}

/// The value, or code and message.
async fn told(engine: &Engine, request: &ScaledObjectRef) -> String {
    match engine.pair(request).await {
        Ok((value, _)) => value.to_string(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_metric_of_the_own_namespace_needs_neither_token_nor_agent() {
    let orders = metric("Demo", "Orders", &[]);
    let kubernetes = cluster(&[&orders]);
    kubernetes.apply(datadog_metric("demo", "orders", "1977.25"));
    let engine = start(&kubernetes, |_| {}).await;
    assert_eq!(engine.pair(&orders).await.unwrap(), (1_977.25, true));
    assert_eq!(engine.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_pushed_at_once() {
    let orders = metric("demo", "orders", &[("activationTargetValue", "5")]);
    let kubernetes = cluster(&[&orders]);
    kubernetes.apply(datadog_metric("demo", "orders", "1"));
    let engine = start(&kubernetes, |_| {}).await;
    let stream = engine.scaler.stream_is_active(Request::new(orders)).await;
    let mut stream = stream.unwrap().into_inner();
    let mut soon = async || {
        let next = timeout(Duration::from_millis(100), stream.next()).await;
        next.expect("it is told before a refresh is due").unwrap().unwrap().result
    };
    assert!(!soon().await);
    for value in ["9", "2", "7"] {
        kubernetes.apply(datadog_metric("demo", "orders", value));
        assert_eq!(soon().await, value != "2");
    }
    // It is gone, which is no reason to say anything; and it is there again.
    kubernetes.delete("datadogmetrics", "demo", "orders");
    sleep(Duration::from_secs(200)).await;
    kubernetes.apply(datadog_metric("demo", "orders", "3"));
    while soon().await {}
}

/// What a trigger is told of this object that is no reading.
async fn told_of(object: Option<Value>, extra: &[(&str, &str)]) -> String {
    let orders = metric("demo", "orders", extra);
    let kubernetes = cluster(&[&orders]);
    if let Some(object) = object {
        kubernetes.apply(object);
    }
    let engine = start(&kubernetes, |_| {}).await;
    told(&engine, &orders).await
}

#[tokio::test(start_paused = true)]
async fn each_state_has_a_code_and_a_remedy() {
    let sound = || datadog_metric("demo", "orders", "5");
    let mut unread = sound();
    unread["status"] = Value::Null;
    let mut strict = aged(sound(), UPDATED, 100);
    strict["spec"]["maxAge"] = "60s".into();
    let states = [
        None,
        Some(unread),
        Some(turned(sound(), ACTIVE)),
        Some(abandoned(sound(), 200)),
        Some(invalid(sound(), "no serie was found for this query in API Response")),
        Some(invalid(sound(), "multiple series found. Please change your query")),
        Some(invalid(sound(), "Datadog API call error, error: API error 422 Unprocessable Entity")),
        Some(invalid(sound(), "Datadog API call error, error: Datadog API rate limit exceeded")),
        Some(datadog_metric("demo", "orders", "NaN")),
        Some(strict),
        Some(aged(sound(), UPDATED, 3_600)),
    ];
    let mut table = Vec::new();
    for state in states {
        table.push(told_of(state, &[("holdLastValue", "0")]).await);
    }
    insta::assert_snapshot!(table.join("\n"), @r#"
    FailedPrecondition: there is no DatadogMetric demo/orders; create it, or correct `datadogMetricNamespace` and `datadogMetricName`
    FailedPrecondition: the Cluster Agent has not read the DatadogMetric demo/orders yet; wait a minute, and if that lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`
    FailedPrecondition: the Cluster Agent does not read the DatadogMetric demo/orders; give it the annotation `external-metrics.datadoghq.com/always-active: "true"`
    Unavailable: the Cluster Agent has written nothing into the DatadogMetric demo/orders for 200 s; check that it runs, and what its log says
    NotFound: the Cluster Agent has no data of the DatadogMetric demo/orders; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
    InvalidArgument: the DatadogMetric demo/orders has no usable value: multiple series found. Please change your query; correct its `spec.query`
    Unavailable: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
    ResourceExhausted: Datadog's rate limit is spent for the Cluster Agent (Datadog API call error, error: Datadog API rate limit exceeded); have it read fewer DatadogMetrics, or ask Datadog for a higher limit
    InvalidArgument: the DatadogMetric demo/orders has no usable value: it is not a finite number; correct its `spec.query`
    Unavailable: the Cluster Agent has no value of the DatadogMetric demo/orders (its value is older than `spec.maxAge`, and it has not been read since); its log may tell more
    NotFound: the newest value of the DatadogMetric demo/orders is 3600 s old, and 960 s are allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`
    "#);
}

#[tokio::test(start_paused = true)]
async fn the_fallback_value_fires_for_no_data_and_never_for_an_outage() {
    let sound = || datadog_metric("demo", "orders", "5");
    let fill = [("metricUnavailableValue", "3")];
    for no_data in [
        invalid(sound(), "only null values found in API response"),
        invalid(sound(), "API error 422 Unprocessable Entity"),
        aged(sound(), UPDATED, 3_600),
    ] {
        assert_eq!(told_of(Some(no_data), &fill).await, "3");
    }
    for failure in [
        None,
        Some(turned(sound(), ACTIVE)),
        Some(abandoned(sound(), 200)),
        Some(invalid(sound(), "Datadog API call error (all queries), error: 500")),
        Some(invalid(sound(), "a text that nobody knows")),
    ] {
        let told = told_of(failure, &fill).await;
        let code = told.split(':').next().unwrap_or_default();
        assert!(["FailedPrecondition", "Unavailable"].contains(&code), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reading_is_held_while_the_cluster_agent_is_away_and_back_with_its_next_word() {
    let orders = metric("demo", "orders", &[]);
    let kubernetes = cluster(&[&orders]);
    kubernetes.apply(datadog_metric("demo", "orders", "8"));
    let engine = start(&kubernetes, |_| {}).await;
    assert_eq!(told(&engine, &orders).await, "8");
    kubernetes.apply(abandoned(datadog_metric("demo", "orders", "8"), 200));
    let mut seen = Vec::new();
    for _ in 0..30 {
        sleep(Duration::from_secs(5)).await;
        seen.push(told(&engine, &orders).await);
    }
    assert_eq!(seen[10], "8");
    assert!(seen[29].starts_with("Unavailable: the Cluster Agent has written nothing into"));
    kubernetes.apply(datadog_metric("demo", "orders", "9"));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(told(&engine, &orders).await, "9");
}

#[tokio::test(start_paused = true)]
async fn while_kubernetes_is_away_the_message_says_so() {
    let orders = metric("demo", "orders", &[]);
    let kubernetes = cluster(&[&orders]);
    kubernetes.apply(abandoned(datadog_metric("demo", "orders", "8"), 200));
    let engine = start(&kubernetes, |_| {}).await;
    kubernetes.trouble("datadogmetrics", Trouble::Fails(503));
    sleep(Duration::from_mins(1)).await;
    let told = told(&engine, &orders).await;
    let end = "s, as far as Kubernetes has told, which does not answer at the moment";
    assert!(told.ends_with(end), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_name_with_a_dot_is_served() {
    let dotted = metric("demo", "orders.v2", &[]);
    let kubernetes = cluster(&[&dotted]);
    kubernetes.apply(datadog_metric("demo", "orders.v2", "7"));
    let engine = start(&kubernetes, |_| {}).await;
    assert_eq!(told(&engine, &dotted).await, "7");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_name_is_not_read_before_keda_asks_either() {
    let orders = metric("demo", "orders", &[]);
    let odd = [metric("demo", "../orders", &[]), metric("demo", "orders:v2", &[])];
    let kubernetes = FakeKubernetes::new();
    let triggers = odd.iter().chain([&orders]).map(|request| trigger(request, Value::Null));
    kubernetes.apply(scaled_object(&orders, &triggers.collect::<Vec<_>>()));
    let (engine, watches) = Engine::begin_in(&kubernetes, &[], |_| {}, |_, _| Ok(None)).await;
    engine.scaler.warm(&watches).await;
    let demanded = engine.refresher.snapshot().demands;
    let demanded: Vec<&str> = demanded.iter().map(|it| &*it.query.text).collect();
    assert_eq!(demanded, ["datadogmetric@demo:orders"]);
}

#[tokio::test(start_paused = true)]
async fn metrics_of_other_namespaces_are_for_those_who_are_allowed() {
    let (theirs, shared) = (metric("bank", "orders", &[]), metric("shared-one", "orders", &[]));
    let kubernetes = FakeKubernetes::new();
    let triggers = [trigger(&theirs, Value::Null), trigger(&shared, Value::Null)];
    kubernetes.apply(scaled_object(&theirs, &triggers));
    for namespace in ["bank", "shared-one"] {
        kubernetes.apply(datadog_metric(namespace, "orders", "7"));
    }
    for source in [AgentSource::Auto, AgentSource::Crd] {
        let engine = start(&kubernetes, |rules| {
            rules.agent_source = source;
            rules.agent_namespaces = vec!["shared-*".parse().unwrap()];
        })
        .await;
        assert_eq!(told(&engine, &shared).await, "7");
        let refused = told(&engine, &theirs).await;
        let start =
            "PermissionDenied: the DatadogMetric is of the namespace bank, and triggers of demo";
        assert!(refused.starts_with(start), "{refused}");
        assert_eq!(engine.requests(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_metrics_of_one_namespace_is_no_affair_of_another() {
    let orders = metric("demo", "orders", &[]);
    let theirs = ["a", "b"].map(|name| {
        let basis = metric("bank", name, &[]);
        ScaledObjectRef { namespace: "bank".into(), name: name.into(), ..basis }
    });
    let kubernetes = cluster(&[&orders, &theirs[0], &theirs[1]]);
    kubernetes.apply(datadog_metric("demo", "orders", "7"));
    let sound = |name| datadog_metric("bank", name, "1");
    kubernetes.apply(invalid(sound("a"), "a text that nobody knows"));
    kubernetes.apply(abandoned(sound("b"), 200));
    // At whichever instant of their trouble it is asked for the first time.
    for seconds in (30..60).step_by(2) {
        let engine = start(&kubernetes, |_| {}).await;
        for request in &theirs {
            assert!(told(&engine, request).await.starts_with("Unavailable"));
        }
        sleep(Duration::from_secs(seconds)).await;
        assert_eq!(told(&engine, &orders).await, "7", "after {seconds} s");
    }
}

/// demo/shop reads these with the token of the TriggerAuthentication demo/agent.
fn with_token(requests: &[&ScaledObjectRef]) -> FakeKubernetes {
    let kubernetes = FakeKubernetes::new();
    let reference = || json!({"name": "agent"});
    let triggers: Vec<_> = requests.iter().map(|it| trigger(it, reference())).collect();
    kubernetes.apply(scaled_object(requests[0], &triggers));
    let names = ["token", "datadogNamespace", "datadogMetricsService"];
    let entries: Vec<Value> = names.iter().map(|name| entry(name, "agent", name)).collect();
    kubernetes.apply(authentication(Some("demo"), "agent", json!({"secretTargetRef": entries})));
    kubernetes.apply(data("Secret", "demo", "agent", &names.map(|name| (name, "datadog"))));
    kubernetes
}

#[tokio::test(start_paused = true)]
async fn with_a_token_the_agent_is_asked_where_the_watch_may_not_tell() {
    let (own, theirs) = (metric("demo", "orders", &[]), metric("bank", "orders", &[]));
    let kubernetes = with_token(&[&own, &theirs]);
    for namespace in ["demo", "bank"] {
        kubernetes.apply(datadog_metric(namespace, "orders", "7"));
    }
    let open = |rules: &mut Rules| rules.agent_namespaces = vec!["*".parse().unwrap()];
    let engine = start(&kubernetes, open).await;
    assert_eq!(told(&engine, &own).await, "7");
    assert_eq!(told(&engine, &theirs).await, AGENT.to_string());
    let engine = start(&kubernetes, crd).await;
    assert_eq!(told(&engine, &own).await, "7");
    assert!(told(&engine, &theirs).await.starts_with("PermissionDenied"));
    let engine = start(&kubernetes, |rules| rules.agent_source = AgentSource::Http).await;
    for request in [&own, &theirs] {
        assert_eq!(told(&engine, request).await, AGENT.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_watch_the_agent_is_asked_until_there_is_one() {
    let orders = metric("demo", "orders", &[]);
    let kubernetes = with_token(&[&orders]);
    kubernetes.uninstall("datadoghq.com");
    let engine = start(&kubernetes, |_| {}).await;
    assert_eq!(told(&engine, &orders).await, AGENT.to_string());
    kubernetes.forbid("*", "datadogmetrics");
    kubernetes.install("datadoghq.com/v1alpha1", "DatadogMetric", "datadogmetrics", true);
    kubernetes.apply(datadog_metric("demo", "orders", "7"));
    sleep(Duration::from_secs(90)).await;
    assert_eq!(told(&engine, &orders).await, AGENT.to_string());
    kubernetes.allow("*", "datadogmetrics");
    sleep(Duration::from_secs(90)).await;
    assert_eq!(told(&engine, &orders).await, "7");
    // And it is taken away again: the watch that is open ends at some time.
    kubernetes.forbid("*", "datadogmetrics");
    kubernetes.cut_watches();
    sleep(Duration::from_secs(90)).await;
    assert_eq!(told(&engine, &orders).await, AGENT.to_string());
    // And given back: it tells at once what has changed since, but all else is forgotten.
    kubernetes.apply(datadog_metric("demo", "orders", "8"));
    kubernetes.allow("*", "datadogmetrics");
    sleep(Duration::from_secs(90)).await;
    assert_eq!(told(&engine, &orders).await, "8");
}

/// An API server that has just begun may forbid everything, until it knows the roles.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_forbidden_only_once_stays_in_use() {
    let orders = metric("demo", "orders", &[]);
    let kubernetes = cluster(&[&orders]);
    kubernetes.apply(datadog_metric("demo", "orders", "7"));
    let engine = start(&kubernetes, |_| {}).await;
    kubernetes.forbid("*", "datadogmetrics");
    kubernetes.cut_watches();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(told(&engine, &orders).await, "7");
    kubernetes.allow("*", "datadogmetrics");
    for _ in 0..30 {
        sleep(Duration::from_secs(5)).await;
        assert_eq!(told(&engine, &orders).await, "7");
    }
    kubernetes.forbid("*", "datadogmetrics");
    kubernetes.cut_watches();
    sleep(Duration::from_secs(90)).await;
    assert!(told(&engine, &orders).await.starts_with("FailedPrecondition: Kubernetes forbids"));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_can_tell_it_is_said_what_to_do() {
    let orders = metric("demo", "orders", &[]);
    let mut table = Vec::new();
    for source in [AgentSource::Auto, AgentSource::Crd, AgentSource::Http] {
        let kubernetes = cluster(&[&orders]);
        kubernetes.forbid("*", "datadogmetrics");
        let engine = start(&kubernetes, |rules| rules.agent_source = source).await;
        table.push(told(&engine, &orders).await);
        let kubernetes = cluster(&[&orders]);
        kubernetes.uninstall("datadoghq.com");
        let engine = start(&kubernetes, |rules| rules.agent_source = source).await;
        table.push(told(&engine, &orders).await);
    }
    let elsewhere = metric("shared", "orders", &[]);
    let kubernetes = cluster(&[&elsewhere]);
    let open = |rules: &mut Rules| rules.agent_namespaces = vec!["shared".parse().unwrap()];
    let (engine, _) = Engine::begin_in(&kubernetes, &["demo"], open, |_, _| Ok(None)).await;
    table.push(told(&engine, &elsewhere).await);
    insta::assert_snapshot!(table.join("\n"), @r"
    FailedPrecondition: Kubernetes forbids the scaler to watch `datadogmetrics`; grant it (see Rights in the README); or refer to a TriggerAuthentication with the `token` for a Cluster Agent
    FailedPrecondition: Kubernetes knows no DatadogMetrics; have the Cluster Agent's chart or operator install their definition; or refer to a TriggerAuthentication with the `token` for a Cluster Agent
    FailedPrecondition: Kubernetes forbids the scaler to watch `datadogmetrics`; grant it (see Rights in the README)
    FailedPrecondition: Kubernetes knows no DatadogMetrics; have the Cluster Agent's chart or operator install their definition
    FailedPrecondition: the trigger has no `authenticationRef`, and the scaler has no Cluster Agent of its own; refer to a TriggerAuthentication with `token`, `datadogNamespace` and `datadogMetricsService`, or have the administrator set `--cluster-agent-url`
    FailedPrecondition: the trigger has no `authenticationRef`, and the scaler has no Cluster Agent of its own; refer to a TriggerAuthentication with `token`, `datadogNamespace` and `datadogMetricsService`, or have the administrator set `--cluster-agent-url`
    FailedPrecondition: the scaler does not watch the DatadogMetrics of that namespace; add it to `--namespaces`; or refer to a TriggerAuthentication with the `token` for a Cluster Agent
    ");
}
