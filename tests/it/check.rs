//! `check`, against Datadog and against a running scaler.

use std::time::Duration;

use clap::Parser as _;
use keda_datadog_scaler::{
    check::{self, Ask},
    cli::{Cli, Command, Environment},
    credentials::{Given, Origin},
    sandbox::Fault,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    authority::{Authority, Mounted},
    fake_scaler::{FakeScaler, spec},
    harness::{
        API_KEY, APP_KEY, FakeDatadog, Reply, Server, config as serve_config, install_tls, soon,
    },
    sandbox::Sandbox,
    tls::{NAME, Secured, files},
};

pub(crate) const QUERY: [&str; 2] = ["--metadata", "query=sum:shop.orders{*}"];
pub(crate) const TARGET: [&str; 2] = ["--metadata", "queryValue=5"];

pub(crate) fn config(arguments: &[&str]) -> check::Config {
    install_tls();
    let arguments = [&["keda-datadog-scaler", "check"], arguments].concat();
    let Command::Check(check) = Cli::parse_from(arguments).command else { panic!("it is `check`") };
    let environment = Environment::read(|name| match name {
        "DD_API_KEY" => Some(API_KEY.into()),
        "DD_APP_KEY" => Some(APP_KEY.into()),
        _ => None,
    });
    let mut config = check.config(environment).unwrap();
    if let Ask::Datadog { http, .. } = &mut config.ask {
        // A proxy of this machine is none of the tests' business.
        http.proxy_from_environment = false;
    }
    config
}

/// A file with this in it.
pub(crate) fn written(yaml: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    file
}

/// What it prints as JSON, and whether it is fine.
async fn checked(arguments: &[&str]) -> (Value, bool) {
    let config = config(&[arguments, &["--output", "json"]].concat());
    let mut out = Vec::new();
    let checked = Box::pin(check::run(config, &mut out, CancellationToken::new()));
    let fine = soon(checked).await.unwrap();
    (serde_json::from_slice(&out).unwrap(), fine)
}

/// RPC and answer of each call of the first trigger.
fn calls(report: &Value) -> Vec<String> {
    let calls = report["triggers"][0]["calls"].as_array();
    let shown = calls.into_iter().flatten().map(|call| {
        let answer = ["target", "value", "active", "message"].map(|key| &call[key]);
        let answer = answer.into_iter().find(|answer| !answer.is_null()).unwrap();
        format!("{} {} {answer}", call["rpc"].as_str().unwrap(), call["code"].as_str().unwrap())
    });
    shown.collect()
}

/// The findings of the first trigger.
fn findings(report: &Value) -> Vec<&str> {
    let findings = report["triggers"][0]["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_scaler_is_asked_what_keda_asks_in_its_order() {
    let scaler = FakeScaler::answering(&[(0.0, 7)]);
    let (address, _server) = scaler.start().await;
    let address = address.to_string();
    let manifest = written(
        r#"
kind: ScaledObject
metadata: {name: shop, namespace: demo}
spec:
  triggers:
    - type: external
      metadata: {scalerAddress: "here:9090", query: "avg:a{*}", queryValue: "5", nameFromEnv: NAME}
"#,
    );
    let (report, fine) =
        checked(&["-f", manifest.path().to_str().unwrap(), "--through", &address]).await;
    assert!(!fine, "`nameFromEnv` is not known");
    assert_eq!(
        calls(&report),
        ["GetMetricSpec OK 2.5", "GetMetrics OK 7.0", "IsActive OK true"],
        "KEDA reads the whole number where the other is not positive"
    );
    assert_eq!(scaler.methods(), ["GetMetricSpec", "GetMetrics", "IsActive"]);
    for (_, object) in &*scaler.asked.lock().unwrap() {
        assert_eq!((&*object.namespace, &*object.name), ("demo", "shop"));
        let mut metadata: Vec<_> = object.scaler_metadata.iter().collect();
        metadata.sort_unstable();
        let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let sent = [("query", "avg:a{*}"), ("queryValue", "5"), ("scalerAddress", "here:9090")];
        assert_eq!(metadata, sent);
    }
}

#[tokio::test]
async fn what_fails_is_repeated_once_as_keda_does() {
    let scaler = FakeScaler::default();
    let (address, _server) = scaler.start().await;
    let address = address.to_string();
    let arguments = [&QUERY[..], &TARGET, &["--through", &address]].concat();
    let (report, fine) = checked(&arguments).await;
    assert!(!fine);
    assert_eq!(scaler.methods(), ["GetMetricSpec", "GetMetrics", "GetMetrics"]);
    assert_eq!(calls(&report)[2], r#"GetMetrics UNAVAILABLE "the database is away [31m""#);
    let outcome = &report["triggers"][0]["outcome"];
    assert_eq!((&outcome["code"], &outcome["value"]), (&"UNAVAILABLE".into(), &Value::Null));
}

#[tokio::test]
async fn what_is_odd_in_an_answer_is_told() {
    let one = [(7.0, 7)];
    for (specs, values, value, finding) in [
        (
            &[2.5][..],
            &[(7.0, 7), (2.5, 2)][..],
            9.5,
            "GetMetrics answers with 2 values; the HPA adds them up",
        ),
        (
            &[2.5],
            &[(f64::INFINITY, 7)],
            0.0,
            "the value is not finite; KEDA makes 0 or the whole number of it",
        ),
        (&[2.5, 3.5], &one, 7.0, "there are 2 metrics; KEDA asks for each, `check` for one"),
        (&[0.0], &one, 7.0, "the target is 0; the HPA refuses what is less than 0.0005"),
    ] {
        let specs = specs.iter().map(|target| spec(*target)).collect();
        let scaler = FakeScaler { specs: Some(specs), ..FakeScaler::answering(values) };
        let (address, _server) = scaler.start().await;
        let address = address.to_string();
        let (report, fine) =
            checked(&[&QUERY[..], &TARGET, &["--through", &address]].concat()).await;
        assert!(!fine);
        assert_eq!(report["triggers"][0]["outcome"]["value"], value);
        assert_eq!(findings(&report), [finding]);
        assert_eq!(scaler.methods(), ["GetMetricSpec", "GetMetrics", "IsActive"]);
    }
}

#[tokio::test]
async fn an_answer_without_a_value_is_none_and_asked_for_once() {
    let scaler = FakeScaler::answering(&[]);
    let (address, _server) = scaler.start().await;
    let address = address.to_string();
    let (report, fine) = checked(&[&QUERY[..], &TARGET, &["--through", &address]].concat()).await;
    assert!(!fine);
    assert_eq!(scaler.methods(), ["GetMetricSpec", "GetMetrics", "IsActive"]);
    let outcome = &report["triggers"][0]["outcome"];
    assert_eq!((&outcome["status"], &outcome["rpc"]), (&"failed".into(), &"GetMetrics".into()));
    assert_eq!(report["triggers"][0]["replicas"], Value::Null);
}

#[tokio::test]
async fn a_scaler_without_a_metric_is_asked_twice() {
    let scaler = FakeScaler { specs: Some(Vec::new()), ..FakeScaler::answering(&[(7.0, 7)]) };
    let (address, _server) = scaler.start().await;
    let address = address.to_string();
    let config = config(&[&QUERY[..], &TARGET, &["--through", &address]].concat());
    let mut out = Vec::new();
    assert!(!soon(Box::pin(check::run(config, &mut out, CancellationToken::new()))).await.unwrap());
    assert_eq!(scaler.methods(), ["GetMetricSpec", "GetMetricSpec"]);
    let text = String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap();
    let (_, value) = text.split_once("Value\n").unwrap();
    let expected = "  none: KEDA gets an empty answer from GetMetricSpec, and can make no HPA of it;\n  \
                    a `fallback` does not help\n";
    assert_eq!(value, expected);
    assert_eq!(text.matches("there is no metric in the answer").count(), 2, "{text}");
}

#[tokio::test]
async fn the_running_scaler_is_asked_and_not_datadog() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0, 8.0])).await;
    let server = Server::start(&datadog).await;
    let address = server.grpc.trim_start_matches("http://");
    let config = config(&[&QUERY[..], &TARGET, &["--through", address]].concat());
    let mut out = Vec::new();
    let fine =
        soon(Box::pin(check::run(config, &mut out, CancellationToken::new()))).await.unwrap();
    assert!(fine);
    let text = anstream::adapter::strip_bytes(&out).into_vec();
    let text = without_times(&String::from_utf8(text).unwrap());
    insta::assert_snapshot!(text, @r"
    A trigger from `--metadata`

    Metadata
      query                     sum:shop.orders{*}
      age                       90 s (default)
      timeWindowOffset          0 s (default)
      lastAvailablePointOffset  0 (default)
      timeAggregator            last (default)
      queryAggregator           none (default)
      queryValue                5
      activationQueryValue      0 (default)
      metricUnavailableValue    none (default)
      holdLastValue             as the scaler runs (default)
      timeout                   as the scaler runs (default)

    What KEDA asks, and gets
      GetMetricSpec in … ms  datadog-sum-shop-orders, target 5
      GetMetrics in … ms  8
      IsActive in … ms  active

    Value
      8, active

    Replicas
      AverageValue              2 (this trigger): 8 / 5
      Value                     2: 1 × 8 / 5
      wanted                    2, from 1, between 1 and 100; rounded up, but
                                nothing changes within a tenth
    ");
    assert_eq!(datadog.asked().len(), 1);
}

/// `1.5 ms` differs from run to run.
fn without_times(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(" ms  ") {
        Some((before, after)) => {
            let rpc = before.split_whitespace().next().unwrap();
            format!("  {rpc} in … ms  {after}")
        }
        None => line.trim_end().to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn queries_together_and_alone_are_of_the_same_time() {
    let datadog = FakeDatadog::start(|asked| {
        let queries = asked.query.matches('{').count();
        let series = |index| json!({"query_index": index, "scope": "*", "pointlist": [[0, 7]]});
        let series: Vec<Value> = (0..queries).map(series).collect();
        // The clock is to go on between the first and the second request.
        let delay = Duration::from_millis(if queries > 1 { 1_100 } else { 0 });
        Reply::json(200, &json!({"status": "ok", "series": series})).after(delay)
    })
    .await;
    let manifest = written(
        r#"
kind: ScaledObject
metadata: {name: shop}
spec:
  triggers:
    - {type: external, metadata: {scalerAddress: "here:9090", query: "avg:a{*}", queryValue: "5"}}
    - {type: external, metadata: {scalerAddress: "here:9090", query: "avg:b{*}", queryValue: "5"}}
"#,
    );
    let given = ["-f", manifest.path().to_str().unwrap(), "--datadog-url", &datadog.url];
    let (_, fine) = checked(&[&given[..], &["--trigger", "0"]].concat()).await;
    assert!(fine);
    let now = datadog.asked()[0].to;

    let (comparison, fine) = checked(&[&given[..], &["--compare-batch"]].concat()).await;
    assert!(fine, "{comparison}");
    assert_eq!(comparison["requests"], 3);
    let asked = datadog.asked().split_off(1);
    let queries: Vec<&str> = asked.iter().map(|asked| &*asked.query).collect();
    assert_eq!(queries, ["avg:a{*},avg:b{*}", "avg:a{*}", "avg:b{*}"]);
    let to = asked[0].to;
    assert!(asked.iter().all(|asked| (asked.from, asked.to) == (to - 90, to)), "{asked:?}");
    assert!((now - 60..now).contains(&to), "{to} is not a minute before {now}");
}

#[tokio::test]
async fn a_scaler_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (report, fine) = checked(&[&QUERY[..], &TARGET, &["--through", &address]].concat()).await;
    assert!(!fine);
    let [finding] = &findings(&report)[..] else { panic!("one finding") };
    let expected = format!("no connection to {address}: Connection refused");
    assert!(finding.starts_with(&expected), "{finding}");
    assert_eq!(report["triggers"][0]["outcome"]["code"], "UNAVAILABLE");
    assert_eq!(calls(&report), Vec::<String>::new());
}

#[tokio::test]
async fn tls_is_as_keda_has_it() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let scaler = Secured::start(&servers, Some(&clients)).await;
    let through = scaler.server.grpc.trim_start_matches("http://");
    let (pair, ca) = (clients.issue("keda"), servers.pem());
    let secret = Mounted::new(&files(&pair, &ca));
    let [cert, key, ca] =
        ["tls.crt", "tls.key", "ca.crt"].map(|name| secret.path(name).display().to_string());
    let client = ["--tls-client-cert", &*cert, "--tls-client-key", &*key];
    let check = async |extra: &[&str]| {
        let (report, _) =
            checked(&[&QUERY[..], &TARGET, &["--through", through], extra].concat()).await;
        let answered = calls(&report).len() == 3;
        (answered, findings(&report).join("; "))
    };
    let named = ["--server-name", NAME];
    let sound = [&["--ca-cert", &*ca], &client[..], &named].concat();
    assert_eq!(check(&sound).await, (true, String::new()));
    // Any certificate will do, but `unsafeSsl` alone stays plaintext.
    let unsafe_ssl = ["--metadata", "unsafeSsl=true"];
    let enable_tls = ["--metadata", "enableTLS=true"];
    assert!(check(&[&unsafe_ssl[..], &enable_tls, &client].concat()).await.0);
    assert!(!check(&unsafe_ssl).await.0);
    // Certificates turn TLS on, as KEDA does, and `unsafeSsl` takes back what they are for.
    let (answered, why) = check(&[&client[..], &unsafe_ssl].concat()).await;
    assert!(answered && why.starts_with("`unsafeSsl` takes any certificate"), "{why}");

    let why = async |extra: &[&str]| {
        let (answered, why) = check(extra).await;
        assert!(!answered);
        why.replace(through, "HERE")
    };
    let unknown = why(&[&enable_tls[..], &client].concat()).await;
    assert_eq!(
        unknown,
        "no connection to HERE with TLS: nobody that is trusted vouches for its certificate; give \
         its CA with `--ca-cert`"
    );
    let misnamed = why(&[&["--ca-cert", &*ca], &client[..]].concat()).await;
    assert!(misnamed.ends_with("has another name; give that with `--server-name`"), "{misnamed}");
    let nameless = why(&[&["--ca-cert", &*ca], &named[..]].concat()).await;
    assert!(nameless.ends_with("give `--tls-client-cert` and `--tls-client-key`"), "{nameless}");
    let stranger = servers.issue("keda");
    let strange = Mounted::new(&files(&stranger, ""));
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| strange.path(name).display().to_string());
    let client = ["--tls-client-cert", &*cert, "--tls-client-key", &*key];
    let unknown = why(&[&["--ca-cert", &*ca], &client[..], &named[..]].concat()).await;
    assert!(unknown.contains("it does not know the CA of the client certificate"), "{unknown}");
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let plain = Server::start(&datadog).await;
    let through = ["--through", plain.grpc.trim_start_matches("http://")];
    let arguments = [&QUERY[..], &TARGET, &enable_tls, &through].concat();
    let (report, _) = checked(&arguments).await;
    let [finding] = &findings(&report)[..] else { panic!("one finding") };
    assert!(
        finding.contains(" with TLS: it does not speak TLS; take `enableTLS` out"),
        "{finding}"
    );
}

/// What KEDA would have seen, in one line.
async fn seen_under(fault: Fault) -> String {
    let sandbox = Sandbox::start(&["--fault", fault.name()]).await;
    let mut config = serve_config(&sandbox.datadog);
    config.credentials.origin = Origin::Given(Given {
        api_key: Some("sandbox-api-key".into()),
        app_key: Some("sandbox-app-key".into()),
        site: None,
    });
    if matches!(fault, Fault::Slow | Fault::Hang) {
        config.scaler.patience = Duration::from_millis(300);
    }
    let server = Server::start_with(config).await;
    let address = server.grpc.trim_start_matches("http://");
    let query = ["--metadata", "query=avg:sandbox.flat{*}"];
    let (report, _) = checked(&[&query[..], &TARGET, &["--through", address]].concat()).await;
    let outcome = &report["triggers"][0]["outcome"];
    let text = match (&outcome["value"], &outcome["active"], outcome["code"].as_str()) {
        (value, active, None) => format!("{value}, active {active}"),
        (_, _, Some(code)) => format!("{code}: {}", outcome["message"].as_str().unwrap()),
    };
    let here = sandbox.datadog.trim_start_matches("http://");
    format!("{:<10}  {}\n", fault.name(), text.replace(here, "HERE"))
}

#[tokio::test]
async fn no_value_is_wrong_under_any_fault() {
    let mut table = String::new();
    for fault in Fault::ALL {
        table += &seen_under(fault).await;
    }
    // How long it is until the limit resets differs from run to run.
    let (before, after) = table.split_once("it resets in ").unwrap();
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    insta::assert_snapshot!(format!("{before}it resets in …{after}"), @r"
    401         FAILED_PRECONDITION: Datadog refuses the keys (401) at HERE; check that they belong to this site and may read metrics (`timeseries_query`)
    403         FAILED_PRECONDITION: Datadog refuses the keys (403) at HERE; check that they belong to this site and may read metrics (`timeseries_query`)
    422         UNAVAILABLE: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
    429         RESOURCE_EXHAUSTED: Datadog's rate limit is spent at HERE: 1600 requests each 3600 s; it resets in … s; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit
    429-bare    RESOURCE_EXHAUSTED: Datadog's rate limit is spent at HERE; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit
    500         UNAVAILABLE: Datadog fails at HERE (500); nothing is wrong with the query
    502         UNAVAILABLE: Datadog fails at HERE (502); nothing is wrong with the query
    504         UNAVAILABLE: Datadog fails at HERE (504); nothing is wrong with the query
    error       UNAVAILABLE: Datadog fails at HERE (Query timed out); nothing is wrong with the query
    rejected    INVALID_ARGUMENT: Datadog rejects the query: Error parsing query: unable to parse avg:sandbox.flat{*}: Rule 'query' didn't match at 'avg:sandbox.flat{*}' (line 1, column 1)
    latency     12.0, active true
    slow        DEADLINE_EXCEEDED: no reading from HERE within 300ms; it is still being fetched
    hang        DEADLINE_EXCEEDED: no reading from HERE within 300ms; it is still being fetched
    reset       UNAVAILABLE: HERE cannot be reached: the connection broke off (end of file before message length reached)
    garbage     INTERNAL: the answer from HERE is not understood: it is not a JSON object
    truncated   INTERNAL: the answer from HERE is not understood: it is not a JSON object
    huge        INVALID_ARGUMENT: the answer has more than 8 MiB; group by fewer tags, or ask for a shorter `age`
    empty       NOT_FOUND: the query has no data in the last 90 seconds; wait for data, widen `age`, or set `metricUnavailableValue`
    null        NOT_FOUND: the query has no data in the last 90 seconds; wait for data, widen `age`, or set `metricUnavailableValue`
    last-null   12.0, active true
    clock-skew  FAILED_PRECONDITION: this machine's clock and that of HERE are 600 s apart, so that queries look at the wrong time; set it right
    neighbour   12.0, active true
    stale       12.0, active true
    frozen      12.0, active true
    not-ready   12.0, active true
    ");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stays_silent_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let enable_tls = ["--metadata", "enableTLS=true"];
    let arguments = [&QUERY[..], &TARGET, &enable_tls, &["--through", &address]].concat();
    let started_at = Instant::now();
    let (report, _) = checked(&arguments).await;
    assert!(started_at.elapsed() < Duration::from_secs(6));
    let [finding] = &findings(&report)[..] else { panic!("one finding") };
    assert_eq!(*finding, format!("no connection to {address} with TLS: no answer within 5s"));
}
