//! The Cluster Agent mode (`useClusterAgentProxy`): whom it asks, as whom, and what comes of each
//! answer.

use std::{fs, path::PathBuf, time::Duration};

use keda_datadog_scaler::{
    credentials::{AgentConfig, AgentText, Pattern, Rules},
    proto::ScaledObjectRef,
    serve,
    source::SourceError,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tonic::Code;

use crate::{
    authentication::{authentication, data, entry},
    authority::{Authority, Pair},
    engine::{Engine, outage},
    fake_agent::{Asked, FakeAgent, failure, now, status, unauthorized, value, value_at},
    fake_kubernetes::FakeKubernetes,
    harness::{Keda, Reply, Server, check_status, config, object, soon},
    kubernetes::{scaled_object, trigger},
};

pub(crate) const TOKEN: &str = "marker-of-the-agents-token";

/// demo/shop, which reads this `DatadogMetric`.
pub(crate) fn metric(namespace: &str, name: &str, extra: &[(&str, &str)]) -> ScaledObjectRef {
    let basis = [
        ("useClusterAgentProxy", "true"),
        ("datadogMetricNamespace", namespace),
        ("datadogMetricName", name),
    ];
    let mut object = object(&[&basis[..], extra].concat());
    object.scaler_metadata.remove("query");
    object
}

/// A server with an agent of its own, and the token's file.
pub(crate) struct Own {
    pub(crate) keda: Keda,
    token: PathBuf,
    _files: TempDir,
    _server: Server,
}

impl Own {
    pub(crate) async fn start(url: &str, ca: Option<&Authority>) -> Self {
        Self::start_with(url, ca, |_| {}).await
    }

    pub(crate) async fn start_with(
        url: &str,
        ca: Option<&Authority>,
        change: impl FnOnce(&mut serve::Config),
    ) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (token, pem) = (files.path().join("token"), files.path().join("ca.crt"));
        fs::write(&token, TOKEN.to_owned() + "\n").unwrap();
        if let Some(ca) = ca {
            fs::write(&pem, ca.pem()).unwrap();
        }
        let mut config = config("http://127.0.0.1:1");
        config.credentials.agent = Some(AgentConfig {
            url: url.parse().unwrap(),
            token: AgentText::File(token.clone()),
            ca: ca.map(|_| AgentText::File(pem)),
            server_name: None,
            is_unsafe: ca.is_none(),
            look_every: Duration::from_millis(20),
        });
        change(&mut config);
        let server = Server::start_with(config).await;
        Self { keda: server.client().await, token, _files: files, _server: server }
    }
}

/// The agent's certificate, and who vouches for it.
pub(crate) fn vouched(name: &str) -> (Authority, Pair) {
    let authority = Authority::new("agents");
    let pair = authority.issue(name);
    (authority, pair)
}

#[tokio::test]
async fn a_metric_is_read_over_one_connection_with_the_servers_own_token() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, |_| value("1977200m")).await;
    let mut own = Own::start(&agent.url, Some(&authority)).await;
    let orders = metric("demo", "Orders", &[]);
    assert_eq!(own.keda.value(&orders).await.unwrap(), 1_977.2);
    assert!(own.keda.is_active(&orders).await.unwrap());
    for n in 0..20 {
        own.keda.value(&metric("demo", &format!("m{n}"), &[])).await.unwrap();
    }
    let asked = agent.asked();
    assert_eq!(
        asked[0].path,
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/demo/datadogmetric@demo:orders"
    );
    // Equal demands are one request.
    assert_eq!(asked.iter().filter(|it| it.metric() == "orders").count(), 1);
    assert!(asked.iter().all(|it| it.bearer == TOKEN && it.peer == asked[0].peer));
    assert_eq!(asked[0].version, axum::http::Version::HTTP_2);
}

/// What `one_of_each` has an answer for.
pub(crate) const NAMES: [&str; 14] = [
    "sound",
    "empty",
    "old",
    "odd",
    "stale",
    "unknown",
    "multiple",
    "unprocessable",
    "limited",
    "unauthorized",
    "forbidden",
    "misplaced",
    "busy",
    "broken",
];

/// By the name of the metric.
pub(crate) fn one_of_each(asked: &Asked) -> Reply {
    let long_ago = now() - jiff::SignedDuration::from_hours(3);
    let forbidden = "datadogmetric@demo:forbidden.external.metrics.k8s.io is forbidden: User \
                     \"system:serviceaccount:demo:x\" cannot list resource \"datadogmetric@demo:forbidden\" \
                     in API group \"external.metrics.k8s.io\" in the namespace \"demo\"";
    match asked.metric() {
        "sound" => value("7750m"),
        "empty" => Reply::json(200, &json!({"items": []})),
        "old" => value_at("1", long_ago),
        "odd" => value("NaN"),
        "stale" => failure("DatadogMetric is stale, last updated: 2026-11-22"),
        "unknown" => failure("DatadogMetric not found for metric name: datadogmetric@demo:unknown"),
        "multiple" => failure("Processing data from API failed, reason: multiple series found."),
        "unprocessable" => failure("Datadog API call error, error: 422 Unprocessable Entity"),
        "limited" => failure("Global error: Datadog API rate limit exceeded"),
        "unauthorized" => unauthorized(),
        "forbidden" => status(403, "Forbidden", forbidden, ""),
        "misplaced" => Reply::status(404),
        "busy" => Reply::status(429),
        _ => Reply::status(503),
    }
}

/// What each answer comes to, and what it comes to where there is a fallback value.
#[tokio::test]
async fn each_answer_has_its_code_its_message_and_its_use_of_the_fallback_value() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, one_of_each).await;
    let mut own = Own::start(&agent.url, Some(&authority)).await;
    let mut table = String::new();
    for name in NAMES {
        for fill in [&[][..], &[("metricUnavailableValue", "3"), ("maxAge", "960")]] {
            let told = match own.keda.value(&metric("demo", name, fill)).await {
                Ok(value) => value.to_string(),
                Err(status) => {
                    let host = agent.url.trim_start_matches("https://");
                    let message = status.message().replace(host, "AGENT");
                    assert!(!message.contains(TOKEN));
                    format!("{:?}: {message}", status.code())
                }
            };
            // It depends on how quick this machine is.
            let told = match (told.split_once("/old is "), told.split_once(" s old")) {
                (Some((before, _)), Some((_, after))) => {
                    format!("{before}/old is AGE s old{after}")
                }
                _ => told,
            };
            match fill {
                [] => table.extend([name, "\n  ", &told, "\n"]),
                _ => table.extend(["  filled: ", told.split(':').next().unwrap(), "\n"]),
            }
        }
    }
    insta::assert_snapshot!(table, @r#"
    sound
      7.75
      filled: 7.75
    empty
      NotFound: the Cluster Agent has no data of the DatadogMetric demo/empty; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
      filled: 3
    old
      NotFound: the newest value of the DatadogMetric demo/old is AGE s old, and 960 s are allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`
      filled: 3
    odd
      Internal: the answer from AGENT is not understood: its `value` is no finite number
      filled: Internal
    stale
      NotFound: the Cluster Agent has no data of the DatadogMetric demo/stale; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
      filled: 3
    unknown
      FailedPrecondition: the Cluster Agent has no value of the DatadogMetric demo/unknown yet; check that it exists and has the annotation `external-metrics.datadoghq.com/always-active: "true"`, without which it is not read; after that, or a restart of the agent, it takes a minute
      filled: FailedPrecondition
    multiple
      InvalidArgument: the DatadogMetric demo/multiple has no usable value: Processing data from API failed, reason: multiple series found; correct its `spec.query`
      filled: InvalidArgument
    unprocessable
      Unavailable: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
      filled: 3
    limited
      ResourceExhausted: Datadog's rate limit is spent for the Cluster Agent (Global error: Datadog API rate limit exceeded); have it read fewer DatadogMetrics, or ask Datadog for a higher limit
      filled: ResourceExhausted
    unauthorized
      FailedPrecondition: the Cluster Agent at AGENT refuses the token (401); if that lasts, give a `token` (or `--cluster-agent-token-file`) of a ServiceAccount of this Kubernetes that is still valid
      filled: FailedPrecondition
    forbidden
      FailedPrecondition: the Cluster Agent at AGENT does not let the user "system:serviceaccount:demo:x" read metrics of the namespace demo; allow it to `list` all resources (`*`) of the API group `external.metrics.k8s.io` there
      filled: FailedPrecondition
    misplaced
      FailedPrecondition: AGENT is not a Cluster Agent that serves external metrics (404); check `datadogMetricsService`, `datadogNamespace` and the port, or `--cluster-agent-url`
      filled: FailedPrecondition
    busy
      Unavailable: the Cluster Agent at AGENT fails (429); nothing is wrong with the DatadogMetric
      filled: Unavailable
    broken
      Unavailable: the Cluster Agent at AGENT fails (503); nothing is wrong with the DatadogMetric
      filled: Unavailable
    "#);
}

/// The message where the certificate is of this name and this authority, and what is trusted.
async fn told_of_certificate(pair: &Pair, ca: Option<&Authority>, name: Option<&str>) -> String {
    let agent = FakeAgent::start(pair, |_| value("1")).await;
    let mut own = Own::start_with(&agent.url, ca, |config| {
        config.credentials.agent.as_mut().unwrap().server_name = name.map(Into::into);
    })
    .await;
    let result = own.keda.value(&metric("demo", "orders", &[])).await;
    let host = agent.url.trim_start_matches("https://");
    match result {
        Ok(value) => value.to_string(),
        Err(status) => format!("{:?}: {}", status.code(), status.message().replace(host, "AGENT")),
    }
}

#[tokio::test]
async fn a_certificate_is_verified_unless_nobody_is_to() {
    let (authority, pair) = vouched("127.0.0.1");
    assert_eq!(told_of_certificate(&pair, Some(&authority), None).await, "1");
    assert_eq!(told_of_certificate(&pair, None, None).await, "1");
    let elsewhere = authority.issue("elsewhere.example");
    assert_eq!(told_of_certificate(&elsewhere, None, None).await, "1");
    let name = Some("elsewhere.example");
    assert_eq!(told_of_certificate(&elsewhere, Some(&authority), name).await, "1");
    let others = Authority::new("others");
    let refused = [
        told_of_certificate(&pair, Some(&others), None).await,
        told_of_certificate(&elsewhere, Some(&authority), None).await,
        told_of_certificate(&elsewhere, Some(&others), name).await,
        told_of_certificate(&pair, Some(&authority), name).await,
    ];
    insta::assert_snapshot!(refused.join("\n"), @r#"
    Unavailable: AGENT cannot be reached: invalid peer certificate: UnknownIssuer; give the CA that vouches for it with `datadogCaCert` (or `--cluster-agent-ca`), or, if there is none, set `unsafeSsl: "true"` (or `--cluster-agent-unsafe-ssl`)
    Unavailable: AGENT cannot be reached: invalid peer certificate: certificate not valid for name "127.0.0.1"; certificate is only valid for DnsName("elsewhere.example"); give the name that is on it with `datadogServerName` (or `--cluster-agent-server-name`)
    Unavailable: AGENT cannot be reached: invalid peer certificate: UnknownIssuer; give the CA that vouches for it with `datadogCaCert` (or `--cluster-agent-ca`), or, if there is none, set `unsafeSsl: "true"` (or `--cluster-agent-unsafe-ssl`)
    Unavailable: AGENT cannot be reached: invalid peer certificate: certificate not valid for name "elsewhere.example"; certificate is only valid for IpAddress(127.0.0.1); give the name that is on it with `datadogServerName` (or `--cluster-agent-server-name`)
    "#);
}

#[tokio::test]
async fn tls_is_1_3_and_who_is_not_there_is_told() {
    let (authority, pair) = vouched("127.0.0.1");
    let old = FakeAgent::speaking(&pair, "127.0.0.1:0", &TLS12, |_| value("1")).await;
    let slow = FakeAgent::start(&pair, |_| value("1").after(Duration::from_mins(10))).await;
    let gone = FakeAgent::start(&pair, |_| value("1")).await.url;
    let mut told = Vec::new();
    for url in [&old.url, &gone, &slow.url] {
        let mut own = Own::start_with(url, Some(&authority), |config| {
            config.http.request_timeout = Duration::from_millis(200);
        })
        .await;
        let status = own.keda.value(&metric("demo", "orders", &[])).await.unwrap_err();
        let host = url.trim_start_matches("https://");
        told.push(format!("{:?}: {}", status.code(), status.message().replace(host, "AGENT")));
    }
    insta::assert_snapshot!(told.join("\n"), @r"
    Unavailable: AGENT cannot be reached: received fatal alert: ProtocolVersion
    Unavailable: AGENT cannot be reached: Connection refused (os error 111)
    Unavailable: AGENT gave no complete answer within 200ms
    ");
}

#[tokio::test]
async fn an_agent_that_restarts_with_another_certificate_is_read_again() {
    let (_, first) = vouched("localhost");
    let agent = FakeAgent::start(&first, |_| value("1")).await;
    let shorten = |config: &mut serve::Config| config.refresh.refresh = Duration::from_millis(20);
    let mut own = Own::start_with(&agent.url, None, shorten).await;
    let orders = metric("demo", "orders", &[]);
    assert_eq!(own.keda.value(&orders).await.unwrap(), 1.0);
    let at = agent.url.trim_start_matches("https://").to_owned();
    agent.stop().await;
    let (_, second) = vouched("localhost");
    let agent = FakeAgent::speaking(&second, &at, &TLS13, |_| value("2")).await;
    agent.was_asked(|_| true).await;
    soon(async { while own.keda.value(&orders).await.ok() != Some(2.0) {} }).await;
}

#[tokio::test]
async fn a_token_that_rotates_costs_no_reading() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, |_| value("1")).await;
    let shorten = |config: &mut serve::Config| config.refresh.refresh = Duration::from_millis(50);
    let mut own = Own::start_with(&agent.url, Some(&authority), shorten).await;
    let orders = metric("demo", "orders", &[]);
    assert_eq!(own.keda.value(&orders).await.unwrap(), 1.0);
    fs::write(&own.token, "another-token").unwrap();
    soon(async {
        while agent.asked().last().unwrap().bearer != "another-token" {
            assert_eq!(own.keda.value(&orders).await.unwrap(), 1.0);
        }
    })
    .await;
    assert_eq!(own.keda.value(&orders).await.unwrap(), 1.0);
}

#[tokio::test]
async fn metrics_of_other_namespaces_are_for_those_who_are_allowed() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, |_| value("1")).await;
    let mut own = Own::start_with(&agent.url, Some(&authority), |config| {
        config.credentials.rules.agent_namespaces = vec!["shared-*".parse::<Pattern>().unwrap()];
    })
    .await;
    own.keda.value(&metric("DEMO", "orders", &[])).await.unwrap();
    own.keda.value(&metric("shared-one", "orders", &[])).await.unwrap();
    let message = "the DatadogMetric is of the namespace shop, and triggers of demo may not read it \
                   by what the scaler itself may; refer to a TriggerAuthentication with a `token`, or \
                   have the administrator add shop to `--cluster-agent-namespaces`";
    let refused = own.keda.value(&metric("shop", "orders", &[])).await;
    check_status(refused, Code::PermissionDenied, message);
    assert_eq!(agent.asked().len(), 2);
}

#[tokio::test]
async fn a_name_that_no_url_of_the_agent_carries_has_a_spec_and_no_value() {
    let (_, pair) = vouched("localhost");
    let agent = FakeAgent::start(&pair, |_| value("1")).await;
    let mut own = Own::start(&agent.url, None).await;
    let dotted = metric("demo", "orders.v2", &[]);
    let spec = soon(own.keda.client.get_metric_spec(dotted.clone())).await.unwrap().into_inner();
    assert_eq!(spec.metric_specs[0].metric_name, "datadogmetric@demo:orders.v2");
    let message = "`datadogMetricName` is \"orders.v2\", but the Cluster Agent's API takes no name \
                   with a dot; make a DatadogMetric of another name, or have the scaler watch them \
                   (`--cluster-agent-source`)";
    check_status(own.keda.value(&dotted).await, Code::InvalidArgument, message);
    for odd in ["../../secrets", "a?watch=true", "a/b", "-", "a%2fb"] {
        let refused = own.keda.value(&metric("demo", odd, &[])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    assert_eq!(agent.asked().len(), 0);
}

/// demo/shop with the TriggerAuthentication demo/agent, whose Secret has these values.
fn cluster(values: &[(&str, &str)]) -> FakeKubernetes {
    let kubernetes = FakeKubernetes::new();
    let request = metric("shop", "orders", &[]);
    let reference = json!({"name": "agent"});
    kubernetes.apply(scaled_object(&request, &[trigger(&request, reference)]));
    let entries: Vec<Value> = values.iter().map(|(name, _)| entry(name, "agent", name)).collect();
    let spec = json!({"secretTargetRef": entries});
    kubernetes.apply(authentication(Some("demo"), "agent", spec));
    kubernetes.apply(data("Secret", "demo", "agent", values));
    kubernetes
}

const SOUND: [(&str, &str); 3] = [
    ("token", "its-token\n"),
    ("datadogNamespace", "datadog\n"),
    ("datadogMetricsService", "dd-metrics-api"),
];

#[tokio::test(start_paused = true)]
async fn a_trigger_authentication_says_which_agent_and_with_which_token() {
    let kubernetes = cluster(&SOUND);
    let engine = Engine::start_in(&kubernetes, |_: &mut Rules| {}, |_, _| Ok(Some(8.0))).await;
    // Whose metric it is, the agent decides by the token.
    let answer = engine.pair(&metric("shop", "orders", &[])).await.unwrap();
    assert_eq!(answer, (8.0, true));
    assert_eq!(engine.newest_request(), "its-token at dd-metrics-api.datadog.svc:8443");
}

#[tokio::test(start_paused = true)]
async fn a_token_goes_to_a_service_of_this_cluster_or_nowhere() {
    for (parameter, odd) in [
        ("datadogNamespace", "evil.com"),
        ("datadogMetricsService", "evil.com/"),
        ("datadogMetricsServicePort", "443@evil.com"),
        ("authMode", "basic"),
        ("unsafeSsl", "perhaps"),
        ("datadogCaCert", "none"),
    ] {
        let mut values = SOUND.to_vec();
        values.retain(|(name, _)| *name != parameter);
        values.push((parameter, odd));
        let kubernetes = cluster(&values);
        let engine = Engine::start_in(&kubernetes, |_| {}, |_, _| Ok(Some(8.0))).await;
        let refused = engine.pair(&metric("shop", "orders", &[])).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let start = format!("`{parameter}` of the TriggerAuthentication demo/agent must be ");
        assert!(refused.message().starts_with(&start), "{}", refused.message());
        assert!(!refused.message().contains(odd), "{}", refused.message());
        assert_eq!(engine.requests(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_the_datadog_api_are_no_account_of_an_agent() {
    let kubernetes = cluster(&[("apiKey", "a"), ("appKey", "b")]);
    let engine = Engine::start_in(&kubernetes, |_| {}, |_, _| Ok(Some(8.0))).await;
    let message = "the TriggerAuthentication demo/agent gives no `token`; add it, such as to its \
                   `secretTargetRef`";
    let refused = engine.pair(&metric("shop", "orders", &[])).await;
    check_status(refused, Code::FailedPrecondition, message);
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_of_its_own_the_server_says_what_to_do() {
    let engine = Engine::start(|_, _| Ok(Some(8.0))).await;
    let message = "the trigger has no `authenticationRef`, and the scaler has no Cluster Agent of \
                   its own; refer to a TriggerAuthentication with `token`, `datadogNamespace` and \
                   `datadogMetricsService`, or have the administrator set `--cluster-agent-url`";
    let refused = engine.pair(&metric("demo", "orders", &[])).await;
    check_status(refused, Code::FailedPrecondition, message);
}

/// A trigger that was answered for a minute, and what it is told while this goes on, at 75 s, and
/// once nothing can be held.
async fn held_and_then(
    fill: &[(&str, &str)],
    then: fn() -> Result<Option<f64>, SourceError>,
) -> [String; 2] {
    let kubernetes = cluster(&SOUND);
    let request = metric("shop", "orders", fill);
    kubernetes.apply(scaled_object(&request, &[trigger(&request, json!({"name": "agent"}))]));
    let script = move |seconds, _: &_| if seconds < 60 { Ok(Some(8.0)) } else { then() };
    let engine = Engine::start_in(&kubernetes, |_| {}, script).await;
    let told = async |until: u64| {
        let mut last = String::new();
        while engine.seconds() < until {
            last = match engine.pair(&request).await {
                Ok((value, _)) => value.to_string(),
                Err(status) => format!("{:?}", status.code()),
            };
            sleep(Duration::from_secs(5)).await;
        }
        last
    };
    [told(75).await, told(200).await]
}

#[tokio::test(start_paused = true)]
async fn the_fallback_value_fires_for_no_data_and_never_for_an_outage() {
    let fill = [("metricUnavailableValue", "3")];
    assert_eq!(held_and_then(&fill, || Ok(None)).await, ["3", "3"]);
    assert_eq!(held_and_then(&[], || Ok(None)).await, ["8", "NotFound"]);
    assert_eq!(held_and_then(&fill, || Err(SourceError::Unprocessable)).await, ["8", "3"]);
    assert_eq!(held_and_then(&[], || Err(SourceError::Unprocessable)).await, ["8", "Unavailable"]);
    assert_eq!(held_and_then(&fill, || Err(outage())).await, ["8", "Unavailable"]);
    let refused = || Err(SourceError::TokenRefused { host: "dd".into() });
    assert_eq!(held_and_then(&fill, refused).await, ["8", "FailedPrecondition"]);
    let not_ready = || Err(SourceError::NotReady { metric: "shop/orders".into() });
    assert_eq!(held_and_then(&fill, not_ready).await, ["8", "FailedPrecondition"]);
}
