//! `check` of triggers that ask the Cluster Agent.

use keda_datadog_scaler::serve;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::rustls::version::TLS12;

use crate::{
    check::written,
    cluster_agent::{NAMES, Own, TOKEN, metric, one_of_each, vouched},
    fake_agent::{FakeAgent, value},
    fake_scaler::FakeScaler,
    live::{Cluster, Told, run, said},
};

/// A trigger of this DatadogMetric.
pub(crate) fn trigger(name: &str, extra: &[(&str, &str)]) -> Value {
    let basis = [
        ("scalerAddress", "a:1"),
        ("useClusterAgentProxy", "true"),
        ("datadogMetricNamespace", "shop"),
        ("datadogMetricName", name),
        ("targetValue", "5"),
    ];
    let metadata: Value = basis.iter().chain(extra).copied().collect();
    json!({"type": "external", "metadata": metadata})
}

/// shop/checkout
fn object(triggers: &[Value]) -> Value {
    json!({
        "kind": "ScaledObject", "metadata": {"name": "checkout", "namespace": "shop"},
        "spec": {"triggers": triggers},
    })
}

/// What the shell has of an agent.
struct Shell {
    files: TempDir,
}

impl Shell {
    fn new(ca: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), TOKEN.to_owned() + "\n").unwrap();
        std::fs::write(files.path().join("ca.crt"), ca).unwrap();
        Self { files }
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// What is told of one trigger, in which the agent is called AGENT.
    async fn check(&self, url: &str, arguments: &[&str]) -> Told {
        let manifest = written(&object(&[trigger("orders", &[])]).to_string());
        let (token, manifest) = (self.path("token"), manifest.path().display().to_string());
        let agent = ["--cluster-agent-url", url, "--cluster-agent-token-file", &token];
        let told = run(&[], &[&["-f", &manifest], &agent[..], arguments].concat()).await;
        assert!(!told.stdout.contains(TOKEN) && !told.stderr.contains(TOKEN));
        let here = url.trim_start_matches("https://");
        let files = self.files.path().to_str().unwrap();
        let [stdout, stderr] = [told.stdout, told.stderr]
            .map(|text| text.replace(here, "AGENT").replace(files, "FILES"));
        Told { stdout, stderr, ..told }
    }

    /// Who is trusted, and what is said of the request.
    async fn request(&self, url: &str, arguments: &[&str]) -> String {
        let told = self.check(url, &[&["--output", "json"], arguments].concat()).await;
        assert_eq!(told.stderr, "");
        let report: Value = serde_json::from_str(&told.stdout).unwrap();
        let examined = &report["triggers"][0];
        let findings = examined["findings"].as_array().unwrap().iter();
        let of_request = findings.filter(|finding| finding["step"] == "request");
        let text = |value: &Value| value.as_str().unwrap_or("nobody").to_owned();
        let lines =
            of_request.map(|it| format!("\n  {}: {}", text(&it["level"]), text(&it["message"])));
        text(&examined["request"]["trust"]) + &lines.collect::<String>()
    }
}

pub(crate) fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, after) = text.split_once(&format!("\n{heading}\n")).unwrap();
    after.split("\n\n").next().unwrap()
}

#[tokio::test]
async fn the_agent_of_the_shell_is_asked_once() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, |_| value("20")).await;
    let shell = Shell::new(&authority.pem());
    let ca = shell.path("ca.crt");
    let json = ["--cluster-agent-ca", &ca, "--output", "json", "--cluster-agent-max-age", "7m"];
    let told = shell.check(&agent.url, &json).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    let examined = &report["triggers"][0];
    assert_eq!(examined["outcome"]["value"], 20.0);
    assert_eq!(examined["metric"]["max_age_seconds"], 420);
    assert_eq!(examined["request"]["trust"], "authorities");
    let asked = agent.asked();
    let [asked] = &asked[..] else { panic!("one request: {asked:?}") };
    assert_eq!((&*asked.bearer, asked.metric()), (TOKEN, "orders"));
}

/// Each answer of an agent, as `check` and as the server tells it.
#[tokio::test]
async fn what_is_told_is_what_the_server_answers() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, one_of_each).await;
    let own = |config: &mut serve::Config| {
        config.credentials.rules.agent_namespaces = vec!["shop".parse().unwrap()];
    };
    let shell = Shell::new(&authority.pem());
    let (ca, token) = (shell.path("ca.crt"), shell.path("token"));
    let flags = ["--cluster-agent-url", &agent.url, "--cluster-agent-token-file", &token];
    let flags = [&flags[..], &["--cluster-agent-ca", &ca, "--output", "json"]].concat();
    // Each of these is of the agent as a whole, which is left alone then.
    let of_agent = ["busy", "broken", "unauthorized", "misplaced"];
    let others: Vec<&str> = NAMES.into_iter().filter(|name| !of_agent.contains(name)).collect();
    for names in of_agent.chunks(1).chain([&others[..]]) {
        let mut own = Own::start_with(&agent.url, Some(&authority), own).await;
        let triggers: Vec<Value> = names.iter().map(|name| trigger(name, &[])).collect();
        let manifest = written(&object(&triggers).to_string());
        let arguments = [&flags[..], &["-f", manifest.path().to_str().unwrap()]].concat();
        let told = run(&[], &arguments).await;
        let report: Value = serde_json::from_str(&told.stdout).unwrap();
        for (name, examined) in names.iter().zip(report["triggers"].as_array().unwrap()) {
            let answer = match own.keda.value(&metric("shop", name, &[])).await {
                Ok(value) => json!(value),
                Err(status) => json!(status.message()),
            };
            let outcome = &examined["outcome"];
            let told = if outcome["value"].is_null() { "message" } else { "value" };
            assert_eq!(undated(&outcome[told]), undated(&answer), "{name}");
        }
    }
}

/// The second in which it was asked makes no difference.
fn undated(answer: &Value) -> Value {
    let Value::String(message) = answer else { return answer.clone() };
    message.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>().into()
}

#[tokio::test]
async fn whom_to_trust_is_told_with_what_is_wrong() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, |_| value("20")).await;
    let (other, elsewhere) = vouched("elsewhere.example");
    let shell = Shell::new(&(authority.pem() + &other.pem()));
    let misnamed = FakeAgent::start(&elsewhere, |_| value("20")).await;
    let old = FakeAgent::speaking(&pair, "127.0.0.1:0", &TLS12, |_| value("20")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    let ca = shell.path("ca.crt");
    let ca = ["--cluster-agent-ca", &ca];
    let mut all = Vec::new();
    all.push(shell.request(&agent.url, &[]).await);
    all.push(shell.request(&misnamed.url, &ca).await);
    all.push(shell.request(&old.url, &ca).await);
    all.push(shell.request(&gone, &["--cluster-agent-unsafe-ssl"]).await);
    insta::assert_snapshot!(all.join("\n"), @r#"
    system
      error: AGENT cannot be reached: invalid peer certificate: UnknownIssuer; give the CA that vouches for it with `datadogCaCert` (or `--cluster-agent-ca`), or, if there is none, set `unsafeSsl: "true"` (or `--cluster-agent-unsafe-ssl`)
    authorities
      error: AGENT cannot be reached: invalid peer certificate: certificate not valid for name "127.0.0.1"; certificate is only valid for DnsName("elsewhere.example"); give the name that is on it with `datadogServerName` (or `--cluster-agent-server-name`)
    authorities
      error: AGENT cannot be reached: received fatal alert: ProtocolVersion
    anybody
      error: AGENT cannot be reached: Connection refused (os error 111)
    "#);
    assert_eq!((agent.asked().len(), misnamed.asked().len()), (0, 0));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told() {
    let shell = Shell::new("no PEM");
    let url = "https://127.0.0.1:1";
    let told = shell.check(url, &["--cluster-agent-ca", &shell.path("ca.crt")]).await;
    let message = "error: the file FILES/ca.crt for the Cluster Agent cannot be used: it holds no \
                   certificates (PEM)\n";
    assert_eq!((told.code, &*told.stdout, &*told.stderr), (1, "", message));
    std::fs::write(shell.path("token"), "").unwrap();
    insta::assert_snapshot!(shell.request(url, &[]).await, @r"
    nobody
      error: the file FILES/token for the Cluster Agent cannot be used: it is empty, or holds a character that no token has
      note: `kubectl create token SERVICEACCOUNT --namespace NAMESPACE` prints a token; write it to a file, and give that with `--cluster-agent-token-file`
    ");
}

/// Parameters of a TriggerAuthentication, and their values.
const SOUND: [(&str, &str); 5] = [
    ("token", TOKEN),
    ("datadogNamespace", "datadog\n"),
    ("datadogMetricsService", "dd-metrics-api"),
    ("datadogMetricsServicePort", "8443"),
    ("datadogCaCert", ""),
];
const AGENT: &str = "dd-metrics-api.datadog.svc";

/// Of a `secretTargetRef`.
fn entries(values: &[(&str, &str)]) -> Vec<Value> {
    let entry =
        |(name, _): &(&str, &str)| json!({"parameter": name, "name": "datadog-keys", "key": name});
    values.iter().map(entry).collect()
}

/// shop/checkout, whose trigger reads shop/orders with these parameters.
async fn cluster(values: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start().await;
    // Else it is read there.
    cluster.kubernetes.uninstall("datadoghq.com");
    let mut trigger = trigger("orders", &[]);
    trigger["authenticationRef"] = json!({"name": "datadog"});
    cluster.object("ScaledObject", "checkout", &[trigger]);
    cluster.authentication(&json!({"secretTargetRef": entries(values)}));
    cluster.secret("shop", values);
    cluster
}

/// These, but for those that are changed, and without those that are changed to nothing.
fn but<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let is_changed = |name: &str| changes.iter().any(|(changed, _)| *changed == name);
    let kept = SOUND.into_iter().filter(|(name, _)| !is_changed(name));
    kept.chain(changes.iter().copied()).filter(|(_, value)| !value.is_empty()).collect()
}

#[tokio::test]
async fn an_agent_of_kubernetes_is_read_through_a_forwarded_port() {
    let (authority, pair) = vouched(AGENT);
    let agent = FakeAgent::start(&pair, |_| value("20")).await;
    let pem = authority.pem();
    let cluster = cluster(&but(&[("datadogCaCert", &pem)])).await;
    let here = agent.url.trim_start_matches("https://");
    let forward = format!("{AGENT}:8443={here}");
    let told = cluster.check(&["checkout", "--cluster-agent-forward", &forward]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    insta::assert_snapshot!(section(&told.stdout, "Credentials"), @r"
    authenticationRef         TriggerAuthentication shop/datadog
    token                     `token` of the Secret shop/datadog-keys
    datadogNamespace          `datadogNamespace` of the Secret shop/datadog-keys
    datadogMetricsService     `datadogMetricsService` of the Secret
                              shop/datadog-keys
    datadogMetricsServicePort `datadogMetricsServicePort` of the Secret
                              shop/datadog-keys
    datadogCaCert             `datadogCaCert` of the Secret shop/datadog-keys
    Cluster Agent             dd-metrics-api.datadog.svc:8443
    ");
    let request = section(&told.stdout, "Cluster Agent");
    let words: Vec<&str> = request.split_whitespace().collect();
    let expected = format!(
        "{AGENT}:8443, through {here}, with the token of the TriggerAuthentication shop/datadog "
    );
    assert!(words.join(" ").starts_with(&expected), "{request}");
    assert_eq!(section(&told.stdout, "Value"), "  20, active");
    // Whom else to trust is for the administrator to say.
    cluster.secret("shop", &but(&[]));
    cluster.authentication(&json!({"secretTargetRef": entries(&but(&[]))}));
    let shell = Shell::new(&pem);
    let forwarded = ["checkout", "--cluster-agent-forward", &forward];
    assert_eq!(cluster.check(&forwarded).await.code, 1);
    let ca = ["--cluster-agent-ca", &shell.path("ca.crt")];
    assert_eq!(cluster.check(&[&forwarded[..], &ca].concat()).await.code, 0);
    let asked = agent.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|it| it.bearer == TOKEN && it.metric() == "orders"));
}

#[tokio::test]
async fn a_token_goes_through_no_port_that_is_not_its_agents() {
    let (_, pair) = vouched(AGENT);
    let agent = FakeAgent::start(&pair, |_| value("20")).await;
    let cluster = cluster(&but(&[("unsafeSsl", "true")])).await;
    let here = agent.url.trim_start_matches("https://");
    // The shell's own agent is none of a TriggerAuthentication's business.
    let own = ["checkout", "--cluster-agent-url", &agent.url];
    for forward in ["other.datadog.svc:8443", "dd-metrics-api.datadog.svc:443"] {
        let forward = format!("{forward}={here}");
        let told =
            cluster.check(&[&own[..], &["--cluster-agent-forward", &forward]].concat()).await;
        assert_eq!((told.code, &*told.stderr), (1, ""), "{}", told.stdout);
        insta::allow_duplicates! {
            insta::assert_snapshot!(section(&told.stdout, "Cluster Agent"), @r"
            warning: dd-metrics-api.datadog.svc is a name of Kubernetes, and not looked up
              elsewhere; run `kubectl port-forward --namespace datadog
              service/dd-metrics-api 8443`, and add `--cluster-agent-forward
              dd-metrics-api.datadog.svc:8443=127.0.0.1:8443`
            ");
        }
        assert!(!told.stdout.contains("\nValue\n"), "{}", told.stdout);
    }
    assert_eq!(agent.asked().len(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_the_parameters_is_told_as_the_server_answers() {
    let mut all = Vec::new();
    for changes in [
        &[][..],
        &[("token", "")],
        &[("token", "two words")],
        &[("token", ""), ("bearerToken", TOKEN), ("authModes", "bearer")],
        &[("datadogNamespace", "evil.com")],
        &[("datadogMetricsService", ""), ("unsafeSsl", "perhaps")],
        &[("datadogCaCert", "none")],
        &[("authMode", "basic")],
        &[("token", ""), ("datadogNamespace", ""), ("datadogMetricsService", ""), ("caCert", "a")],
    ] {
        let values: Vec<_> = but(changes)
            .into_iter()
            .filter(|(name, _)| *name != "datadogMetricsServicePort")
            .collect();
        let cluster = cluster(&values).await;
        let examined = cluster.examined(&[]).await;
        let of = &examined["credentials"];
        let code = examined["outcome"]["code"].as_str().unwrap_or("fine");
        all.push(format!("{code}, {}", of["agent"].as_str().unwrap_or("no agent")));
        for finding in said(&examined) {
            assert!(!changes.iter().any(|(_, odd)| odd.len() > 4 && finding.contains(odd)));
            all.push(format!("  {finding}"));
        }
    }
    insta::assert_snapshot!(all.join("\n"), @r"
    fine, dd-metrics-api.datadog.svc:8443
    FAILED_PRECONDITION, no agent
      error: the TriggerAuthentication shop/datadog gives no `token`; add it, such as to its `secretTargetRef`
    FAILED_PRECONDITION, no agent
      error: `token` of the TriggerAuthentication shop/datadog holds a character that no key has; was something else pasted?
    fine, dd-metrics-api.datadog.svc:8443
    FAILED_PRECONDITION, no agent
      error: `datadogNamespace` of the TriggerAuthentication shop/datadog must be the name of a namespace, such as `datadog`
    FAILED_PRECONDITION, no agent
      error: the TriggerAuthentication shop/datadog gives no `datadogMetricsService`; add it, such as to its `secretTargetRef`
    FAILED_PRECONDITION, no agent
      error: `datadogCaCert` of the TriggerAuthentication shop/datadog must be certificates (PEM)
    FAILED_PRECONDITION, no agent
      error: `authMode` of the TriggerAuthentication shop/datadog must be `bearer`
    fine, no agent
      note: the TriggerAuthentication shop/datadog gives no Cluster Agent; the scaler uses its own Cluster Agent, if its `--own-account-namespaces` allow the namespace shop
    ");
}

#[tokio::test]
async fn each_parameter_is_told_by_itself() {
    let cluster = cluster(&but(&[])).await;
    cluster.secret("shop", &[("token", TOKEN), ("datadogNamespace", "datadog")]);
    let examined = cluster.examined(&[]).await;
    let parameters = examined["credentials"]["parameters"].as_array().unwrap().iter();
    let told = parameters.map(|it| format!("{} {} {}", it["name"], it["present"], it["from"]));
    insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"), @r#"
    "token" true "`token` of the Secret shop/datadog-keys"
    "datadogNamespace" true "`datadogNamespace` of the Secret shop/datadog-keys"
    "datadogMetricsService" false "`datadogMetricsService` of the Secret shop/datadog-keys"
    "datadogMetricsServicePort" false "`datadogMetricsServicePort` of the Secret shop/datadog-keys"
    "unsafeSsl" false null
    "datadogCaCert" false null
    "datadogServerName" false null
    "#);
    cluster.kubernetes.forbid("get", "secrets");
    let told = cluster.check(&["checkout"]).await;
    insta::assert_snapshot!(section(&told.stdout, "Credentials"), @r"
    authenticationRef         TriggerAuthentication shop/datadog
    token                     `token` of the Secret shop/datadog-keys (not
                              readable)
    datadogNamespace          `datadogNamespace` of the Secret shop/datadog-keys
                              (not readable)
    datadogMetricsService     `datadogMetricsService` of the Secret
                              shop/datadog-keys (not readable)
    datadogMetricsServicePort `datadogMetricsServicePort` of the Secret
                              shop/datadog-keys (not readable)
    warning: Kubernetes forbids you to get secrets/datadog-keys in the namespace
      shop, so that it is not known here what the scaler finds
    ");
    insta::assert_snapshot!(section(&told.stdout, "Cluster Agent").trim(), @r"
      note: the Cluster Agent is not asked, since there is no token for it here
    ");
}

#[tokio::test]
async fn without_an_authentication_ref_the_agent_of_the_shell_stands_in() {
    let (authority, pair) = vouched("127.0.0.1");
    let agent = FakeAgent::start(&pair, |_| value("20")).await;
    let shell = Shell::new(&authority.pem());
    let cluster = cluster(&but(&[])).await;
    cluster.object("ScaledObject", "checkout", &[trigger("orders", &[])]);
    let elsewhere = trigger("orders", &[("datadogMetricNamespace", "shared")]);
    cluster.object("ScaledObject", "elsewhere", &[elsewhere]);
    let (token, ca) = (shell.path("token"), shell.path("ca.crt"));
    let own = [
        "--cluster-agent-url",
        &agent.url,
        "--cluster-agent-token-file",
        &token,
        "--cluster-agent-ca",
        &ca,
        "--output",
        "json",
    ];
    let mut all = Vec::new();
    for arguments in [
        &["checkout"][..],
        &["checkout", "--own-account-namespaces", "shop"],
        &["checkout", "--own-account-namespaces", "other"],
        &["elsewhere", "--own-account-namespaces", "shop"],
        &["elsewhere", "--own-account-namespaces", "shop", "--cluster-agent-namespaces", "sh*"],
        &["elsewhere", "--own-account-namespaces", "shop", "--cluster-agent-namespaces", "other"],
    ] {
        let told = cluster.check(&[&own[..], arguments].concat()).await;
        let report: Value = serde_json::from_str(&told.stdout).unwrap();
        let examined = &report["triggers"][0];
        let outcome = &examined["outcome"];
        let got = if outcome["value"].is_null() { &outcome["code"] } else { &outcome["value"] };
        all.push(format!("{got}\n  {}", said(examined).join("\n  ")));
    }
    insta::assert_snapshot!(all.join("\n"), @r#"
    20.0
      note: there is no `authenticationRef`; the scaler uses its own Cluster Agent, if its `--own-account-namespaces` allow the namespace shop; here, your `--cluster-agent-url` stands for it
    20.0
      note: there is no `authenticationRef`; the scaler uses its own Cluster Agent, which `--own-account-namespaces` allow; here, your `--cluster-agent-url` stands for it
    "PERMISSION_DENIED"
      error: the trigger has no `authenticationRef`, and the namespace shop may not use the scaler's own account; refer to a TriggerAuthentication, or have the administrator add the namespace to `--own-account-namespaces`
    20.0
      note: there is no `authenticationRef`; the scaler uses its own Cluster Agent, which `--own-account-namespaces` allow; here, your `--cluster-agent-url` stands for it
      note: the DatadogMetric is of another namespace than the trigger; with its own token, the scaler reads it only if its `--cluster-agent-namespaces` have shared
    20.0
      note: there is no `authenticationRef`; the scaler uses its own Cluster Agent, which `--own-account-namespaces` allow; here, your `--cluster-agent-url` stands for it
    "PERMISSION_DENIED"
      note: there is no `authenticationRef`; the scaler uses its own Cluster Agent, which `--own-account-namespaces` allow; here, your `--cluster-agent-url` stands for it
      error: the DatadogMetric is of the namespace shared, and triggers of shop may not read it by what the scaler itself may; refer to a TriggerAuthentication with a `token`, or have the administrator add shared to `--cluster-agent-namespaces`
    "#);
    assert_eq!(agent.asked().len(), 4);
}

#[tokio::test]
async fn a_running_scaler_is_asked_for_a_metric_too() {
    let scaler = FakeScaler::answering(&[(20.0, 20)]);
    let (address, _server) = scaler.start().await;
    let cluster = cluster(&but(&[])).await;
    let address = address.to_string();
    let told = cluster.check(&["checkout", "--through", &address]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    assert_eq!(section(&told.stdout, "Value"), "  20, active");
    assert!(told.stdout.contains("  maxAge                    as the scaler runs (default)\n"));
    let mut dotted = trigger("orders.v2", &[]);
    dotted["authenticationRef"] = json!({"name": "datadog"});
    cluster.object("ScaledObject", "checkout", &[dotted]);
    let told = cluster.check(&["checkout", "--through", &address]).await;
    assert!(
        told.stdout.contains("  warning: `datadogMetricName` is \"orders.v2\""),
        "{}",
        told.stdout
    );
    assert_eq!(section(&told.stdout, "Value"), "  20, active");
}

#[tokio::test]
async fn nobody_needs_keys_to_compare_no_queries() {
    let manifest = written(&object(&[trigger("orders", &[])]).to_string());
    let manifest = manifest.path().to_str().unwrap();
    let told = run(&[], &["-f", manifest, "--compare-batch"]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""));
    insta::assert_snapshot!(told.stdout, @r"
    Queries together and alone
      windows end 60 s earlier than they would, since newer points still change

    nothing to compare: no two queries share a request
      left out: 1 trigger of the Cluster Agent, which is asked for each metric by
      itself
    ");
}
