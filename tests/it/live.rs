//! `check` of an object that Kubernetes has, and where its keys come from.

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use crate::{
    binary::program,
    check::written,
    cluster::Proxy,
    fake_kubernetes::{FakeKubernetes, Listening, TOKEN, Trouble},
    fake_scaler::FakeScaler,
    harness::{API_KEY, APP_KEY, FakeDatadog, Reply, soon},
};

/// A trigger of these, in the namespace shop.
const METADATA: [(&str, &str); 3] =
    [("scalerAddress", "a:1"), ("query", "avg:shop.orders{*}"), ("queryValue", "5")];

/// Has the ScaledObject shop/checkout, whose keys are in a Secret.
pub(crate) struct Cluster {
    pub(crate) kubernetes: FakeKubernetes,
    pub(crate) listening: Listening,
    kubeconfig: NamedTempFile,
}

/// What came of a `check`.
pub(crate) struct Told {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let kubernetes = FakeKubernetes::new();
        let listening = kubernetes.listen().await;
        let kubeconfig = written(&listening.kubeconfig());
        let cluster = Self { kubernetes, listening, kubeconfig };
        cluster.namespace("shop");
        cluster.object("ScaledObject", "checkout", &[trigger(&json!({"name": "datadog"}))]);
        cluster.authentication(&json!({}));
        cluster.secret("shop", &[("api-key", API_KEY), ("app-key", APP_KEY)]);
        cluster
    }

    fn namespace(&self, name: &str) {
        let metadata = json!({"name": name});
        self.kubernetes.apply(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": metadata,
        }));
    }

    pub(crate) fn object(&self, kind: &str, name: &str, triggers: &[Value]) {
        self.kubernetes.apply(json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": kind,
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"scaleTargetRef": {"name": "checkout"}, "triggers": triggers},
        }));
    }

    /// The TriggerAuthentication shop/datadog with this in place of its Secret.
    pub(crate) fn authentication(&self, changes: &Value) {
        self.kubernetes.apply(json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "TriggerAuthentication",
            "metadata": {"namespace": "shop", "name": "datadog"},
            "spec": spec(changes),
        }));
    }

    pub(crate) fn secret(&self, namespace: &str, values: &[(&str, &str)]) {
        let values: Value = values.iter().map(|(key, value)| (*key, *value)).collect();
        self.kubernetes.apply(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": namespace, "name": "datadog-keys"},
            "stringData": values,
        }));
    }

    pub(crate) async fn check(&self, arguments: &[&str]) -> Told {
        self.check_in(&[], arguments).await
    }

    /// `check -n shop`; no key and no token is in what it prints.
    async fn check_in(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Told {
        let kubeconfig = self.kubeconfig.path().to_str().unwrap();
        let environment = [&[("KUBECONFIG", kubeconfig)], environment].concat();
        let told = run(&environment, &[&["-n", "shop"], arguments].concat()).await;
        let here = self.listening.address.to_string();
        let [stdout, stderr] = [told.stdout, told.stderr].map(|text| text.replace(&here, "HERE"));
        Told { stdout, stderr, ..told }
    }

    /// The first trigger of `check --offline --output json shop/checkout`.
    pub(crate) async fn examined(&self, arguments: &[&str]) -> Value {
        self.examined_in(&[], arguments).await
    }

    async fn examined_in(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Value {
        let json = ["checkout", "--output", "json", "--offline"];
        let told = self.check_in(environment, &[&json, arguments].concat()).await;
        assert_eq!(told.stderr, "");
        let mut report: Value = serde_json::from_str(&told.stdout).unwrap();
        report["triggers"][0].take()
    }
}

/// With all of its output, though the program needs to be answered meanwhile.
pub(crate) async fn run(environment: &[(&str, &str)], arguments: &[&str]) -> Told {
    let mut command = program(&[&["check"], arguments].concat());
    command.envs(environment.iter().copied());
    let output = soon(spawn_blocking(move || command.output().unwrap())).await.unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    for marker in [API_KEY, APP_KEY, TOKEN] {
        assert!(!stdout.contains(marker) && !stderr.contains(marker), "{stdout}{stderr}");
    }
    Told { code: output.status.code().unwrap(), stdout, stderr }
}

pub(crate) fn trigger(authentication: &Value) -> Value {
    let metadata: Value = METADATA.into_iter().collect();
    let mut trigger = json!({"type": "external", "metadata": metadata});
    if !authentication.is_null() {
        trigger["authenticationRef"] = authentication.clone();
    }
    trigger
}

/// Of a TriggerAuthentication.
fn spec(changes: &Value) -> Value {
    let mut spec = json!({"secretTargetRef": [
        {"parameter": "apiKey", "name": "datadog-keys", "key": "api-key"},
        {"parameter": "appKey", "name": "datadog-keys", "key": "app-key"},
    ]});
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// Level and message of what is said of the keys.
pub(crate) fn said(examined: &Value) -> Vec<String> {
    let findings = examined["findings"].as_array().unwrap().iter();
    let of_keys = findings.filter(|finding| finding["step"] == "credentials");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    of_keys.map(|it| format!("{}: {}", text(&it["level"]), text(&it["message"]))).collect()
}

#[tokio::test]
async fn it_is_told_where_the_keys_come_from() {
    let cluster = Cluster::start().await;
    let told = cluster.check(&["checkout", "--offline"]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""));
    insta::assert_snapshot!(told.stdout, @r"
    ScaledObject shop/checkout, trigger 0, external
    Kubernetes at HERE

    Metadata
      query                     avg:shop.orders{*}
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

    Credentials
      authenticationRef         TriggerAuthentication shop/datadog
      apiKey                    `api-key` of the Secret shop/datadog-keys
      appKey                    `app-key` of the Secret shop/datadog-keys
      site                      datadoghq.com (default)

    While Datadog fails
      an active value           for 75 s after it was read; it is due after 15 s
      an inactive one           for 30 s
      then                      an error: KEDA leaves the replicas alone
      cooldownPeriod            300 s
      stabilization             300 s (`scaleDown` of the HPA)
    ");
}

#[tokio::test]
async fn programs_read_where_the_keys_come_from_too() {
    let cluster = Cluster::start().await;
    cluster.authentication(&json!({
        "secretTargetRef": [{"parameter": "appKey", "name": "datadog-keys", "key": "nothing"}],
        "configMapTargetRef": [{"parameter": "datadogSite", "name": "datadog", "key": "site"}],
        "env": [{"parameter": "apiKey", "name": "DD_KEY", "containerName": "main"}],
    }));
    cluster.kubernetes.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"site": "https://app.datadoghq.eu/"},
        "metadata": {"namespace": "shop", "name": "datadog"},
    }));
    let environment = json!([{"name": "DD_KEY", "value": API_KEY}]);
    cluster.kubernetes.apply(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "shop", "name": "checkout"},
        "spec": {"template": {"spec": {"containers": [
            {"name": "proxy"}, {"name": "main", "env": environment},
        ]}}},
    }));
    let examined = cluster.examined(&[]).await;
    let problem = "the Secret shop/datadog-keys has no key `nothing`, or nothing in it";
    let from = "`nothing` of the Secret shop/datadog-keys";
    let message = format!("the TriggerAuthentication shop/datadog gives no `appKey`: {problem}");
    assert_eq!(
        examined["credentials"],
        json!({
            "authentication": "TriggerAuthentication shop/datadog",
            "parameters": [
                {
                    "name": "apiKey", "present": true,
                    "from": "the variable `DD_KEY` of the container `main`",
                },
                {"name": "appKey", "from": from, "present": false, "problem": problem},
                {
                    "name": "datadogSite", "present": true,
                    "from": "`site` of the ConfigMap shop/datadog",
                },
            ],
            "site": "datadoghq.eu",
        })
    );
    assert_eq!(said(&examined), [format!("error: {message}")]);
    let outcome = json!({
        "status": "failed", "rpc": "GetMetrics", "code": "FAILED_PRECONDITION", "message": message,
    });
    assert_eq!(examined["outcome"], outcome);
}

/// What is said of the keys of a trigger that refers to the TriggerAuthentication shop/datadog.
async fn said_of(cluster: &Cluster, changes: &Value, arguments: &[&str]) -> String {
    cluster.authentication(changes);
    let examined = cluster.examined(arguments).await;
    let code = examined["outcome"]["code"].as_str().unwrap_or("fine");
    said(&examined).iter().fold(format!("{code}\n"), |all, said| all + "  " + said + "\n")
}

#[tokio::test]
async fn what_is_wrong_is_told_as_the_server_answers() {
    let cluster = Cluster::start().await;
    let mut all = String::new();
    let of = |entries: &[(&str, &str, &str)]| {
        let entry = |&(parameter, name, key): &(&str, &str, &str)| json!({"parameter": parameter, "name": name, "key": key});
        json!({"secretTargetRef": entries.iter().map(entry).collect::<Vec<_>>()})
    };
    let keys = [("apiKey", "datadog-keys", "api-key"), ("appKey", "datadog-keys", "app-key")];
    cluster.secret(
        "shop",
        &[
            ("api-key", API_KEY),
            ("app-key", APP_KEY),
            ("token", "ddpat_marker"),
            ("odd", "two words"),
            ("evil", "datadoghq.com.evil.org"),
        ],
    );
    for changes in [
        of(&[]),
        of(&[keys[0]]),
        of(&[("apiKey", "nowhere", "a"), ("appKey", "nowhere", "b")]),
        of(&[("apiKey", "datadog-keys", "odd"), keys[1]]),
        of(&[("appKey", "datadog-keys", "token")]),
        of(&[("apiKey", "nowhere", "a"), ("appKey", "datadog-keys", "token")]),
        of(&[keys[0], keys[1], ("datadogSite", "datadog-keys", "evil")]),
        of(&[("datadogSite", "datadog-keys", "evil")]),
        of(&[keys[0], keys[1], ("datadogSite", "datadog-keys", "nothing")]),
        json!({"hashiCorpVault": {"address": "https://vault"}}),
    ] {
        all += &said_of(&cluster, &changes, &[]).await;
    }
    let evil = of(&[keys[0], keys[1], ("datadogSite", "datadog-keys", "evil")]);
    all += &said_of(&cluster, &evil, &["--allow-site", "*.evil.org"]).await;
    for reference in [json!({"name": "other"}), json!({"name": "a", "kind": "Secret"})] {
        cluster.object("ScaledObject", "checkout", &[trigger(&reference)]);
        all += &said_of(&cluster, &json!({}), &[]).await;
    }
    let [one, other] = [json!({"name": "datadog"}), json!({"name": "other"})];
    cluster.object("ScaledObject", "checkout", &[trigger(&one), trigger(&other)]);
    all += &said_of(&cluster, &json!({}), &[]).await;
    insta::assert_snapshot!(all, @r#"
    fine
      note: the TriggerAuthentication shop/datadog gives no keys of Datadog's; the scaler uses its own account, if its `--own-account-namespaces` allow the namespace shop
    FAILED_PRECONDITION
      error: the TriggerAuthentication shop/datadog gives no `appKey`; add it, such as to its `secretTargetRef`
    FAILED_PRECONDITION
      error: the TriggerAuthentication shop/datadog gives no `apiKey`: the Secret shop/nowhere does not exist
      error: the TriggerAuthentication shop/datadog gives no `appKey`: the Secret shop/nowhere does not exist
    FAILED_PRECONDITION
      error: `apiKey` of the TriggerAuthentication shop/datadog holds a character that no key has; was something else pasted?
    fine
    fine
      note: `apiKey` is missing, but not needed: the Secret shop/nowhere does not exist
    FAILED_PRECONDITION
      error: `datadogSite` of the TriggerAuthentication shop/datadog is not one of Datadog's sites, such as `us5.datadoghq.com`; correct it, or have the administrator allow it with `--allow-site`
    FAILED_PRECONDITION
      error: the TriggerAuthentication shop/datadog gives no `apiKey`; add it, such as to its `secretTargetRef`
      error: `datadogSite` of the TriggerAuthentication shop/datadog is not one of Datadog's sites, such as `us5.datadoghq.com`; correct it, or have the administrator allow it with `--allow-site`
    FAILED_PRECONDITION
      error: the TriggerAuthentication shop/datadog gives no `datadogSite`: the Secret shop/datadog-keys has no key `nothing`, or nothing in it
    FAILED_PRECONDITION
      error: the TriggerAuthentication shop/datadog uses `hashiCorpVault`, which this version does not resolve; put the keys into a Secret, and use `secretTargetRef`
    fine
    FAILED_PRECONDITION
      error: the TriggerAuthentication shop/other does not exist; create it, or correct `authenticationRef`
    FAILED_PRECONDITION
      error: `authenticationRef` is to a "Secret", but must be to a TriggerAuthentication or ClusterTriggerAuthentication
    INVALID_ARGUMENT
      error: several triggers have this metadata, but different `authenticationRef`s; tell them apart with a `triggerName` each
    "#);
}

#[tokio::test]
async fn a_cluster_trigger_authentication_has_its_secrets_where_keda_is() {
    let cluster = Cluster::start().await;
    let reference = json!({"name": "everybody", "kind": "ClusterTriggerAuthentication"});
    cluster.object("ScaledObject", "checkout", &[trigger(&reference)]);
    cluster.kubernetes.apply(json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ClusterTriggerAuthentication",
        "metadata": {"name": "everybody"},
        "spec": spec(&json!({})),
    }));
    cluster.secret("scaling", &[("api-key", API_KEY), ("app-key", APP_KEY)]);
    let of = "the ClusterTriggerAuthentication everybody";
    let missing = |name: &str| {
        format!("error: {of} gives no `{name}`: the Secret keda/datadog-keys does not exist")
    };
    assert_eq!(said(&cluster.examined(&[]).await), [missing("apiKey"), missing("appKey")]);
    assert_eq!(said(&cluster.examined(&["--keda-namespace", "scaling"]).await), [""; 0]);
    let environment = [("KEDA_CLUSTER_OBJECT_NAMESPACE", "scaling")];
    let examined = cluster.examined_in(&environment, &[]).await;
    assert_eq!(said(&examined), [""; 0]);
    assert_eq!(examined["credentials"]["authentication"], "ClusterTriggerAuthentication everybody");

    // As KEDA's operator: Secrets are read there only.
    cluster.object("ScaledObject", "checkout", &[trigger(&json!({"name": "datadog"}))]);
    let restricted = [("KEDA_RESTRICT_SECRET_ACCESS", "true")];
    let examined = cluster.examined_in(&restricted, &["--keda-namespace", "away"]).await;
    let said = said(&examined);
    assert!(said[0].ends_with("the Secret away/datadog-keys does not exist"), "{said:?}");
}

#[tokio::test]
async fn what_is_forbidden_here_may_be_there_for_the_scaler() {
    let cluster = Cluster::start().await;
    cluster.kubernetes.forbid("get", "secrets");
    let told = cluster.check(&["checkout"]).await;
    assert_eq!((told.code, &*told.stderr), (1, ""));
    let (_, of_keys) = told.stdout.split_once("\nCredentials\n").unwrap();
    let (of_keys, _) = of_keys.split_once("\nWhile").unwrap();
    insta::assert_snapshot!(of_keys, @r"
      authenticationRef         TriggerAuthentication shop/datadog
      apiKey                    `api-key` of the Secret shop/datadog-keys (not
                                readable)
      appKey                    `app-key` of the Secret shop/datadog-keys (not
                                readable)
      site                      datadoghq.com (default)
      warning: Kubernetes forbids you to get secrets/datadog-keys in the namespace
        shop, so that it is not known here what the scaler finds

    Datadog
      note: Datadog is not asked, since there are no keys for it here
    ");
    let examined = cluster.examined(&[]).await;
    assert_eq!(examined["credentials"]["parameters"][0]["present"], Value::Null);
    assert_eq!(examined["outcome"], Value::Null);

    cluster.kubernetes.forbid("get", "triggerauthentications");
    let expected = "warning: Kubernetes forbids you to get triggerauthentications/datadog in the namespace \
                    shop, so that it is not known here what the scaler finds";
    let examined = cluster.examined(&[]).await;
    assert_eq!(said(&examined), [expected]);
    assert_eq!(examined["credentials"]["parameters"], json!([]));

    // It answers by itself.
    let scaler = FakeScaler::answering(&[(7.0, 7)]);
    let (address, _server) = scaler.start().await;
    let told = cluster.check(&["checkout", "--through", &address.to_string()]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    assert!(told.stdout.contains("  note: Kubernetes forbids you to"), "{}", told.stdout);
    let asked = scaler.asked.lock().unwrap();
    let (_, object) = asked.first().unwrap();
    assert_eq!((&*object.namespace, &*object.name), ("shop", "checkout"));
    let sent = METADATA.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(object.scaler_metadata, sent.into());
}

#[tokio::test]
async fn kubernetes_may_fail_half_way() {
    let cluster = Cluster::start().await;
    cluster.kubernetes.trouble("secrets", Trouble::Fails(500));
    let examined = cluster.examined(&[]).await;
    assert_eq!(said(&examined), ["error: Kubernetes at HERE cannot be asked: 500 InternalError"]);
    assert_eq!(examined["outcome"], Value::Null);
}

#[tokio::test]
async fn without_an_authentication_ref_the_keys_of_the_shell_stand_in() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let cluster = Cluster::start().await;
    cluster.object("ScaledObject", "checkout", &[trigger(&Value::Null)]);
    let shell = [("DD_API_KEY", API_KEY), ("DD_APP_KEY", APP_KEY), ("DATADOG_HOST", &*datadog.url)];
    let check = async |arguments: &[&str]| {
        let arguments = [&["checkout", "--output", "json"], arguments].concat();
        let told = cluster.check_in(&shell, &arguments).await;
        let report: Value = serde_json::from_str(&told.stdout).unwrap();
        let examined = &report["triggers"][0];
        (told.code, said(examined).join("; "), examined["outcome"]["value"].clone())
    };
    let (code, said, value) = check(&[]).await;
    assert_eq!((code, value), (0, json!(8.0)));
    insta::assert_snapshot!(said, @r"note: there is no `authenticationRef`; the scaler uses its own account, if its `--own-account-namespaces` allow the namespace shop; here, the keys of your shell stand for it");
    let (code, said, value) = check(&["--own-account-namespaces", "other,sh*"]).await;
    assert_eq!((code, value), (0, json!(8.0)));
    insta::assert_snapshot!(said, @r"note: there is no `authenticationRef`; the scaler uses its own account, which `--own-account-namespaces` allow; here, the keys of your shell stand for it");
    let (code, said, value) = check(&["--own-account-namespaces", "other"]).await;
    assert_eq!((code, value), (1, Value::Null));
    insta::assert_snapshot!(said, @r"error: the trigger has no `authenticationRef`, and the namespace shop may not use the scaler's own account; refer to a TriggerAuthentication, or have the administrator add the namespace to `--own-account-namespaces`");
    assert_eq!(datadog.asked().len(), 2);
}

#[tokio::test]
async fn nothing_is_held_for_a_job_that_kubernetes_knows() {
    let cluster = Cluster::start().await;
    cluster.object("ScaledJob", "mails", &[trigger(&json!({"name": "datadog"}))]);
    let told = cluster.check(&["--offline", "mails"]).await;
    assert_eq!(told.code, 0);
    let (_, hold) = told.stdout.split_once("While Datadog fails\n").unwrap();
    insta::assert_snapshot!(hold, @r"
    an active value           for 15 s after it was read; it is due after 15 s
    an inactive one           for 15 s
    then                      an error: KEDA starts no Jobs
    ");
}

#[tokio::test]
async fn datadog_is_read_with_the_keys_that_were_found() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let proxy = Proxy::start(&datadog).await;
    let cluster = Cluster::start().await;
    // Neither the proxy nor these keys are for Kubernetes, or a TriggerAuthentication.
    let shell =
        [("HTTPS_PROXY", &*proxy.url), ("DD_API_KEY", "another"), ("DD_APP_KEY", "another")];
    let ca = ["--ca-file", proxy.ca_file.to_str().unwrap()];
    let told = cluster.check_in(&shell, &[&["checkout"], &ca[..]].concat()).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    let asked = datadog.asked();
    let [asked] = &asked[..] else { panic!("one request: {asked:?}") };
    let keys = ["DD-API-KEY", "DD-APPLICATION-KEY"].map(|name| &asked.headers[name]);
    assert_eq!(keys, [API_KEY, APP_KEY]);
    let (_, told) = told.stdout.split_once("\nDatadog\n").unwrap();
    let expected = "  api.datadoghq.com, with the keys of the TriggerAuthentication shop/datadog\n";
    assert!(told.starts_with(expected), "{told}");
    assert!(told.contains("\nValue\n  8, active (the newest point)\n"), "{told}");
}
