//! The simulated Cluster Agent: what it answers whom, and what the scaler makes of each of its faults.

use std::time::Duration;

use jiff::Timestamp;
use keda_datadog_scaler::{
    credentials::{AgentConfig, AgentText},
    demand::Service,
    sandbox::Fault,
};
use reqwest::{Client, Method, Version, tls};

use crate::{
    cluster_agent::metric,
    fake_agent::now,
    harness::{Server, config, install_tls, soon},
    sandbox::{FLAT, Sandbox},
};

const TOKEN: &str = "sandbox-token";
const METRICS: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces";

fn client() -> Client {
    install_tls();
    // Nobody vouches for the certificate of an agent that is run by itself, as with a real one.
    Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build().unwrap()
}

/// Status and text of the answer.
async fn get(sandbox: &Sandbox, path: &str, bearer: Option<&str>) -> (u16, String) {
    let request = client().get(format!("{}{path}", sandbox.agent));
    let request = match bearer {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    let response = soon(request.send()).await.unwrap();
    (response.status().as_u16(), soon(response.text()).await.unwrap())
}

#[tokio::test]
async fn a_value_is_a_list_of_one_item_as_kubernetes_writes_it() {
    let sandbox = Sandbox::start(&[]).await;
    let (status, text) =
        get(&sandbox, &format!("{METRICS}/any/datadogmetric%40Demo%3AFlat"), Some(TOKEN)).await;
    let (before, after) = text.split_once('2').unwrap();
    let (timestamp, after) = after.split_once('"').unwrap();
    let taken: Timestamp = format!("2{timestamp}").parse().unwrap();
    let age = now().duration_since(taken).as_secs();
    assert!((10..60).contains(&age), "{age} s old");
    insta::assert_snapshot!(
        format!("{status} {before}…\"{after}"),
        @r#"200 {"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{},"items":[{"metricName":"datadogmetric@demo:flat","metricLabels":null,"timestamp":"…","value":"12"}]}"#
    );
}

#[tokio::test]
async fn who_has_no_token_or_asks_for_something_else_is_told_as_by_kubernetes() {
    let sandbox = Sandbox::start(&[]).await;
    let steps = format!("{METRICS}/other/datadogmetric@demo:steps");
    let mut told = Vec::new();
    for (path, bearer) in [
        (&*steps, None),
        (&*steps, Some("")),
        (&*steps, Some("wrong")),
        (&*format!("{METRICS}/demo/datadogmetric@demo:unheard"), Some(TOKEN)),
        ("/apis", Some(TOKEN)),
        ("/apis", None),
    ] {
        let (status, text) = get(&sandbox, path, bearer).await;
        told.push(format!("{status} {text}"));
    }
    let request = client().post(format!("{}{steps}", sandbox.agent)).bearer_auth(TOKEN);
    let response = soon(request.send()).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let status = response.status().as_u16();
    told.push(format!("{status} {}", soon(response.text()).await.unwrap()));
    insta::assert_snapshot!(told.join("\n"), @r#"
    403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"datadogmetric@demo:steps.external.metrics.k8s.io is forbidden: User \"system:anonymous\" cannot list resource \"datadogmetric@demo:steps\" in API group \"external.metrics.k8s.io\" in the namespace \"other\"","reason":"Forbidden","details":{"group":"external.metrics.k8s.io","kind":"datadogmetric@demo:steps"},"code":403}
    403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"datadogmetric@demo:steps.external.metrics.k8s.io is forbidden: User \"system:anonymous\" cannot list resource \"datadogmetric@demo:steps\" in API group \"external.metrics.k8s.io\" in the namespace \"other\"","reason":"Forbidden","details":{"group":"external.metrics.k8s.io","kind":"datadogmetric@demo:steps"},"code":403}
    401 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}
    500 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Internal error occurred: DatadogMetric not found for metric name: datadogmetric@demo:unheard, datadogmetricid: demo/unheard","reason":"InternalError","details":{"causes":[{"message":"DatadogMetric not found for metric name: datadogmetric@demo:unheard, datadogmetricid: demo/unheard"}]},"code":500}
    404 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server could not find the requested resource","reason":"NotFound","details":{},"code":404}
    403 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"forbidden: User \"system:anonymous\" cannot get path \"/apis\"","reason":"Forbidden","details":{},"code":403}
    405 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server does not allow this method on the requested resource","reason":"MethodNotAllowed","details":{},"code":405}
    "#);
    let (_, page) = sandbox.switch(Method::GET, "/", None).await;
    for shown in ["no token", "a wrong token", "<code>datadogmetric@demo:unheard</code>"] {
        assert!(page.contains(shown), "no {shown} in\n{page}");
    }
    assert!(!page.contains(TOKEN), "the token is in\n{page}");
}

#[tokio::test]
async fn one_switch_breaks_both_and_one_metric_can_be_broken_alone() {
    let sandbox = Sandbox::start(&["--fault", "not-ready=datadogmetric@demo:zero"]).await;
    let status = async |name: &str| {
        get(&sandbox, &format!("{METRICS}/demo/datadogmetric@demo:{name}"), Some(TOKEN)).await.0
    };
    assert_eq!((status("zero").await, status("flat").await), (500, 200));
    sandbox.switch(Method::DELETE, "/faults", Some("datadogmetric@demo:zero")).await;
    assert_eq!(status("zero").await, 200);
    sandbox.break_all(Fault::GatewayTimeout).await;
    assert_eq!((status("flat").await, sandbox.ask(FLAT).await.status().as_u16()), (500, 504));
    sandbox.break_all(Fault::Stale).await;
    assert_eq!((status("flat").await, sandbox.ask(FLAT).await.status().as_u16()), (500, 200));
    sandbox.break_all(Fault::Neighbour).await;
    assert_eq!(status("flat").await, 200);
}

#[tokio::test]
async fn as_with_a_real_one_tls_is_1_3() {
    let sandbox = Sandbox::start(&[]).await;
    for (version, is_spoken) in [(tls::Version::TLS_1_2, false), (tls::Version::TLS_1_3, true)] {
        install_tls();
        let client = Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
        let client = client.tls_version_max(version).build().unwrap();
        let answered = soon(client.get(&sandbox.agent).send()).await;
        assert_eq!(answered.is_ok(), is_spoken, "{version:?}");
    }
}

/// What KEDA would have seen of a new DatadogMetric, in one line.
async fn seen_under(fault: Fault) -> String {
    let sandbox = Sandbox::start(&["--fault", fault.name()]).await;
    let mut config = config(&sandbox.datadog);
    config.credentials.agent = Some(AgentConfig {
        url: sandbox.agent.parse().unwrap(),
        token: AgentText::Given(TOKEN.into()),
        ca: None,
        server_name: None,
        is_unsafe: true,
        look_every: Duration::from_mins(1),
    });
    if matches!(fault, Fault::Slow | Fault::Hang) {
        config.scaler.patience = Duration::from_millis(300);
    }
    let server = Server::start_with(config).await;
    let text = match server.client().await.value(&metric("demo", "flat", &[])).await {
        Ok(value) => value.to_string(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    };
    let here = sandbox.agent.trim_start_matches("https://");
    format!("{:<10}  {}\n", fault.name(), text.replace(here, "HERE"))
}

#[tokio::test]
async fn no_value_of_the_agent_is_wrong_under_any_fault() {
    let mut table = String::new();
    for fault in Fault::ALL.into_iter().filter(|fault| fault.concerns(Service::ClusterAgent)) {
        table += &seen_under(fault).await;
    }
    // How old it is differs from run to run.
    let (before, after) = table.split_once("demo/flat is ").unwrap();
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    insta::assert_snapshot!(format!("{before}demo/flat is …{after}"), @r#"
    401         FailedPrecondition: the Cluster Agent at HERE refuses the token (401); if that lasts, give a `token` (or `--cluster-agent-token-file`) of a ServiceAccount of this Kubernetes that is still valid
    403         FailedPrecondition: the Cluster Agent at HERE does not let the user "system:serviceaccount:keda:keda-datadog-scaler" read metrics of the namespace demo; allow it to `list` all resources (`*`) of the API group `external.metrics.k8s.io` there
    422         Unavailable: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
    429         ResourceExhausted: Datadog's rate limit is spent for the Cluster Agent (Datadog API call error (all queries), error: API error 429 Too Many Requests: {"errors":["Too many requests"]}); have it read fewer DatadogMetrics, or ask Datadog for a higher limit
    429-bare    Unavailable: the Cluster Agent at HERE fails (429); nothing is wrong with the DatadogMetric
    500         Unavailable: the Cluster Agent at HERE fails (Internal Server Error: "/apis/external.metrics.k8s.io/v1beta1/namespaces/demo/datadogmetric@demo:flat": context deadline exceeded); nothing is wrong with the DatadogMetric
    502         Unavailable: the Cluster Agent at HERE gets nothing from Datadog (Datadog API call error (all queries), error: API error 502 Bad Gateway: "Bad Gateway"); nothing is wrong with the DatadogMetric
    504         Unavailable: the Cluster Agent at HERE gets nothing from Datadog (Datadog API call error (all queries), error: API error 504 Gateway Timeout: upstream request timeout); nothing is wrong with the DatadogMetric
    error       Unavailable: the Cluster Agent at HERE gets nothing from Datadog (Datadog API call error (all queries), error: Query timed out); nothing is wrong with the DatadogMetric
    rejected    InvalidArgument: the DatadogMetric demo/flat has no usable value: Processing data from API failed, reason: invalid query "avg:sandbox.flat{*},": query contains a top-level comma, query was: avg:sandbox.flat{*},; correct its `spec.query`
    latency     12
    slow        DeadlineExceeded: no reading from HERE within 300ms; it is still being fetched
    hang        DeadlineExceeded: no reading from HERE within 300ms; it is still being fetched
    reset       Unavailable: HERE cannot be reached: the connection broke off (stream error received: unexpected internal error encountered)
    garbage     Internal: the answer from HERE is not understood: it is not a list of metric values
    truncated   Internal: the answer from HERE is not understood: it is not a list of metric values
    huge        Internal: the answer from HERE is not understood: it has more than 8 MiB
    empty       NotFound: the Cluster Agent has no data of the DatadogMetric demo/flat; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
    null        NotFound: the Cluster Agent has no data of the DatadogMetric demo/flat; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
    last-null   12
    clock-skew  NotFound: the Cluster Agent has no data of the DatadogMetric demo/flat; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
    stale       NotFound: the Cluster Agent has no data of the DatadogMetric demo/flat; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
    frozen      NotFound: the newest value of the DatadogMetric demo/flat is … s old, and 960 s are allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`
    not-ready   FailedPrecondition: the Cluster Agent has no value of the DatadogMetric demo/flat yet; check that it exists and has the annotation `external-metrics.datadoghq.com/always-active: "true"`, without which it is not read; after that, or a restart of the agent, it takes a minute
    "#);
}
