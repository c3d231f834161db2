//! Credentials as KEDA resolves them: from TriggerAuthentications and what they refer to.

use std::time::Duration;

use keda_datadog_scaler::{credentials::Rules, proto::ScaledObjectRef};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    engine::Engine,
    fake_kubernetes::FakeKubernetes,
    harness::{check_status, object},
    kubernetes::{scaled_job, scaled_object, trigger},
};

/// A Secret or ConfigMap.
pub(crate) fn data(kind: &str, namespace: &str, name: &str, values: &[(&str, &str)]) -> Value {
    let field = if kind == "Secret" { "stringData" } else { "data" };
    let values: serde_json::Map<_, _> =
        values.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
    json!({
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        field: values,
    })
}

/// The Secret demo/keys.
pub(crate) fn keys(app_key: &str) -> Value {
    data("Secret", "demo", "keys", &[("api", "marker-api-key"), ("app", app_key)])
}

pub(crate) fn authentication(namespace: Option<&str>, name: &str, spec: impl Into<Value>) -> Value {
    let kind = match namespace {
        Some(_) => "TriggerAuthentication",
        None => "ClusterTriggerAuthentication",
    };
    let metadata = json!({"namespace": namespace, "name": name});
    let spec: Value = spec.into();
    json!({"apiVersion": "keda.sh/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

pub(crate) fn entry(parameter: &str, name: &str, key: &str) -> Value {
    json!({"parameter": parameter, "name": name, "key": key})
}

/// Both keys from the Secret `keys`.
pub(crate) fn from_secret() -> Value {
    json!({"secretTargetRef": [entry("apiKey", "keys", "api"), entry("appKey", "keys", "app")]})
}

/// demo/shop, with the TriggerAuthentication demo/datadog.
fn referring() -> Value {
    scaled_object(&object(&[]), &[trigger(&object(&[]), json!({"name": "datadog"}))])
}

/// demo/shop, demo/datadog with this specification, and the Secret with the keys.
pub(crate) fn cluster(spec: Value) -> FakeKubernetes {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(referring());
    kubernetes.apply(authentication(Some("demo"), "datadog", spec));
    kubernetes.apply(keys("one"));
    kubernetes
}

pub(crate) async fn start(kubernetes: &FakeKubernetes) -> Engine {
    start_with(kubernetes, |_| {}).await
}

async fn start_with(kubernetes: &FakeKubernetes, change: impl FnOnce(&mut Rules)) -> Engine {
    Engine::start_in(kubernetes, change, |_, _| Ok(Some(8.0))).await
}

/// With which application key and where the trigger of demo/shop is read.
async fn read_with(kubernetes: &FakeKubernetes, change: impl FnOnce(&mut Rules)) -> String {
    let engine = start_with(kubernetes, change).await;
    engine.pair(&object(&[])).await.unwrap();
    engine.newest_request()
}

#[tokio::test(start_paused = true)]
async fn keys_come_from_the_secret_of_a_trigger_authentication() {
    let read = read_with(&cluster(from_secret()), |_| {}).await;
    assert_eq!(read, "one at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn the_last_source_wins_in_kedas_order() {
    let kubernetes = cluster(json!({
        "secretTargetRef": [
            entry("apiKey", "keys", "api"),
            entry("appKey", "gone", "app"),
            entry("appKey", "keys", "app"),
        ],
        "configMapTargetRef": [
            entry("appKey", "settings", "app"),
            entry("datadogSite", "settings", "site"),
        ],
        "env": [
            {"parameter": "datadogSite", "name": "SITE"},
            {"parameter": "appKey", "name": "APP"},
        ],
    }));
    let settings = [("app", "two"), ("site", "us5.datadoghq.com\n")];
    kubernetes.apply(data("ConfigMap", "demo", "settings", &settings));
    assert_eq!(read_with(&kubernetes, |_| {}).await, "one at api.us5.datadoghq.com");
    // What is overridden is not even read.
    assert_eq!(kubernetes.times_asked("get", "secrets"), 1);
    assert_eq!(kubernetes.times_asked("get", "deployments"), 0);
}

#[tokio::test(start_paused = true)]
async fn keys_come_from_the_environment_of_the_workload() {
    let from_env = json!({"env": [
        {"parameter": "apiKey", "name": "API"},
        {"parameter": "appKey", "name": "APP", "containerName": "app"},
    ]});
    let template = |app: &str| {
        let secret = json!({"secretKeyRef": {"name": "keys", "key": app}});
        json!({"spec": {"containers": [
            {"name": "sidecar", "image": "i", "env": [{"name": "API", "value": "a"}]},
            {"name": "app", "image": "i", "env": [{"name": "APP", "valueFrom": secret}]},
        ]}})
    };
    let workload = |api_version: &str, kind: &str| {
        json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"namespace": "demo", "name": "shop"},
            "spec": {"template": template("app")},
        })
    };
    for (api_version, kind) in
        [("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("argoproj.io/v1alpha1", "Rollout")]
    {
        let kubernetes = cluster(from_env.clone());
        kubernetes.apply(workload(api_version, kind));
        let mut object = referring();
        object["spec"]["scaleTargetRef"] =
            json!({"apiVersion": api_version, "kind": kind, "name": "shop"});
        kubernetes.apply(object);
        assert_eq!(read_with(&kubernetes, |_| {}).await, "one at api.datadoghq.com", "{kind}");
    }
    let kubernetes = cluster(from_env);
    let mut job = scaled_job(&object(&[]), &[trigger(&object(&[]), json!({"name": "datadog"}))]);
    job["spec"]["jobTargetRef"]["template"] = template("app");
    kubernetes.delete("scaledobjects", "demo", "shop");
    kubernetes.apply(job);
    assert_eq!(read_with(&kubernetes, |_| {}).await, "one at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_trigger_authentication_has_its_secrets_in_kedas_namespace() {
    let kubernetes = FakeKubernetes::new();
    let reference = json!({"name": "datadog", "kind": "ClusterTriggerAuthentication"});
    kubernetes.apply(scaled_object(&object(&[]), &[trigger(&object(&[]), reference)]));
    kubernetes.apply(authentication(None, "datadog", from_secret()));
    kubernetes.apply(keys("of-the-tenant"));
    let values = [("api", "marker-api-key"), ("app", "of-keda")];
    kubernetes.apply(data("Secret", "keda-system", "keys", &values));
    let read = read_with(&kubernetes, |rules| rules.keda_namespace = "keda-system".into()).await;
    assert_eq!(read, "of-keda at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn what_many_refer_to_is_read_once_a_minute() {
    let kubernetes = FakeKubernetes::new();
    let values = [("api", "marker-api-key"), ("app", "of-keda")];
    kubernetes.apply(data("Secret", "keda", "keys", &values));
    kubernetes.apply(authentication(None, "datadog", from_secret()));
    let requests: Vec<_> = (0..100)
        .map(|n| {
            let namespace = format!("team-{n}");
            kubernetes.apply(authentication(Some(&namespace), "datadog", from_secret()));
            ScaledObjectRef { namespace, ..object(&[]) }
        })
        .collect();
    for (n, request) in requests.iter().enumerate() {
        let kind = ["TriggerAuthentication", "ClusterTriggerAuthentication"][n % 2];
        let reference = json!({"name": "datadog", "kind": kind});
        kubernetes.apply(scaled_object(request, &[trigger(request, reference)]));
    }
    let engine = start_with(&kubernetes, |rules| rules.restricts_secrets = true).await;
    for _ in 0..30 {
        for request in &requests {
            engine.pair(request).await.unwrap();
        }
        sleep(Duration::from_secs(10)).await;
    }
    let reads = kubernetes.times_asked("get", "secrets");
    assert!((5..=12).contains(&reads), "{reads}");
}

#[tokio::test(start_paused = true)]
async fn restricted_secrets_are_read_in_kedas_namespace_only() {
    let kubernetes = cluster(from_secret());
    let values = [("api", "marker-api-key"), ("app", "of-keda")];
    kubernetes.apply(data("Secret", "keda", "keys", &values));
    let read = read_with(&kubernetes, |rules| rules.restricts_secrets = true).await;
    assert_eq!(read, "of-keda at api.datadoghq.com");
    let of_tenants = |asked: &&crate::fake_kubernetes::Asked| {
        asked.resource == "secrets" && asked.namespace != "keda"
    };
    assert_eq!(kubernetes.asked().iter().filter(of_tenants).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn restricted_secrets_of_a_workload_are_not_read() {
    let kubernetes = cluster(json!({"env": [
        {"parameter": "apiKey", "name": "API"}, {"parameter": "appKey", "name": "APP"},
    ]}));
    kubernetes.apply(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": "demo", "name": "shop"},
        "spec": {"template": {"spec": {"containers": [{"name": "app", "env": [
            {"name": "API", "value": "a"},
            {"name": "APP", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "app"}}},
        ]}]}}},
    }));
    let engine = start_with(&kubernetes, |rules| rules.restricts_secrets = true).await;
    let message = "the TriggerAuthentication demo/datadog gives no `appKey`: the container has no \
                   variable `APP`, or nothing in it";
    check_status(engine.pair(&object(&[])).await, Code::FailedPrecondition, message);
    assert_eq!(kubernetes.times_asked("get", "secrets"), 0);
}

#[tokio::test(start_paused = true)]
async fn names_that_cannot_be_do_not_reach_kubernetes() {
    for name in ["../../keda/secrets/keys", "keys?x", "Keys", "..", ""] {
        let spec = json!({"secretTargetRef": [
            entry("apiKey", name, "api"), entry("appKey", name, "app"),
        ]});
        let kubernetes = cluster(spec);
        let message = format!(
            "FailedPrecondition: the TriggerAuthentication demo/datadog gives no `apiKey`: the \
             Secret demo/{name} does not exist"
        );
        assert_eq!(told(&kubernetes).await, message);
        assert_eq!(kubernetes.times_asked("get", "*"), 0, "{name}");
    }
    // Nor one of another namespace.
    let kubernetes = cluster(from_secret());
    kubernetes.apply(authentication(Some("other"), "datadog", from_secret()));
    let reference = json!({"name": "../other/datadog"});
    kubernetes.apply(scaled_object(&object(&[]), &[trigger(&object(&[]), reference)]));
    let message = "FailedPrecondition: the TriggerAuthentication demo/../other/datadog does not \
                   exist; create it, or correct `authenticationRef`";
    assert_eq!(told(&kubernetes).await, message);
}

#[tokio::test(start_paused = true)]
async fn equal_keys_are_one_account_whatever_names_them() {
    let kubernetes = cluster(from_secret());
    let other = ScaledObjectRef { namespace: "other".into(), ..object(&[]) };
    kubernetes.apply(scaled_object(&other, &[trigger(&other, json!({"name": "dd"}))]));
    kubernetes.apply(authentication(
        Some("other"),
        "dd",
        json!({
            "secretTargetRef": [entry("apiKey", "mine", "x"), entry("appKey", "mine", "y")],
        }),
    ));
    let values = [("x", " marker-api-key\n"), ("y", "one")];
    kubernetes.apply(data("Secret", "other", "mine", &values));
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    engine.pair(&other).await.unwrap();
    assert_eq!(engine.requests(), 1);
    // One of them has new keys; the other keeps its readings.
    kubernetes.apply(keys("two"));
    sleep(Duration::from_secs(61)).await;
    let asked_at = Instant::now();
    engine.pair(&other).await.unwrap();
    assert_eq!(asked_at.elapsed(), Duration::ZERO);
    engine.pair(&object(&[])).await.unwrap();
    assert!(engine.requests_with("two") > 0);
    let before = engine.requests_with("one");
    sleep(Duration::from_secs(20)).await;
    engine.pair(&other).await.unwrap();
    assert!(engine.requests_with("one") > before);
}

#[tokio::test(start_paused = true)]
async fn the_servers_own_account_is_for_those_who_may_use_it() {
    let kubernetes = FakeKubernetes::new();
    for namespace in ["team-a", "demo"] {
        let request = ScaledObjectRef { namespace: namespace.into(), ..object(&[]) };
        kubernetes.apply(scaled_object(&request, &[trigger(&request, Value::Null)]));
    }
    let teams = |rules: &mut Rules| rules.own_namespaces = vec!["team-*".parse().unwrap()];
    let engine = start_with(&kubernetes, teams).await;
    let team = ScaledObjectRef { namespace: "team-a".into(), ..object(&[]) };
    engine.pair(&team).await.unwrap();
    let message = "the trigger has no `authenticationRef`, and the namespace demo may not use the \
                   scaler's own account; refer to a TriggerAuthentication, or have the \
                   administrator add the namespace to `--own-account-namespaces`";
    check_status(engine.pair(&object(&[])).await, Code::PermissionDenied, message);
}

#[tokio::test(start_paused = true)]
async fn one_that_says_how_keda_reaches_the_scaler_leaves_the_own_account() {
    let spec = json!({"secretTargetRef": [
        entry("caCert", "tls", "ca.crt"),
        entry("tlsClientCert", "tls", "tls.crt"),
        entry("tlsClientKey", "tls", "tls.key"),
    ]});
    let kubernetes = cluster(spec.clone());
    let everybody = |rules: &mut Rules| rules.own_namespaces = vec!["*".parse().unwrap()];
    let own = read_with(&kubernetes, everybody).await;
    assert!(own.starts_with("marker-of-the-app-key at "), "{own}");
    // The key of KEDA's certificate is none of our business.
    assert_eq!(kubernetes.times_asked("get", "secrets"), 0);
    let message = "FailedPrecondition: the TriggerAuthentication demo/datadog gives no `apiKey`; \
                   add it, such as to its `secretTargetRef`";
    assert_eq!(told(&cluster(spec)).await, message);
}

/// What KEDA is told of demo/shop, and how often Datadog was asked for it.
pub(crate) async fn told(kubernetes: &FakeKubernetes) -> String {
    let engine = start(kubernetes).await;
    let status = engine.pair(&object(&[])).await.unwrap_err();
    assert_eq!(engine.requests(), 0);
    format!("{:?}: {}", status.code(), status.message())
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_named_where_keda_is_silent() {
    let mut all = String::new();
    let mut add = |told: String| {
        all += &told;
        all.push('\n');
    };
    let kubernetes = cluster(from_secret());
    kubernetes.delete("triggerauthentications", "demo", "datadog");
    add(told(&kubernetes).await);
    let kubernetes = cluster(from_secret());
    kubernetes.delete("secrets", "demo", "keys");
    add(told(&kubernetes).await);
    let secret = |app: Value| json!({"secretTargetRef": [entry("apiKey", "keys", "api"), app]});
    add(told(&cluster(secret(entry("appKey", "keys", "none")))).await);
    add(told(&cluster(secret(entry("appkey", "keys", "app")))).await);
    add(told(&cluster(json!({}))).await);
    let site = |key: &str| {
        let mut spec = from_secret();
        spec["configMapTargetRef"] = json!([entry("datadogSite", "settings", key)]);
        let kubernetes = cluster(spec);
        let values = [("site", "dd.evil.example.com"), ("odd", "marker-api-key")];
        kubernetes.apply(data("ConfigMap", "demo", "settings", &values));
        kubernetes
    };
    add(told(&site("site")).await);
    add(told(&site("odd")).await);
    add(told(&site("none")).await);
    let kubernetes = cluster(from_secret());
    kubernetes.apply(keys("two words"));
    add(told(&kubernetes).await);
    let env = |variable: Value| {
        let kubernetes = cluster(json!({
            "secretTargetRef": [entry("apiKey", "keys", "api")], "env": [variable],
        }));
        kubernetes.apply(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": "demo", "name": "shop"},
            "spec": {"template": {"spec": {"containers": [{"name": "app"}]}}},
        }));
        kubernetes
    };
    let variable = json!({"parameter": "appKey", "name": "APP"});
    add(told(&env(variable.clone())).await);
    let container = json!({"parameter": "appKey", "name": "APP", "containerName": "none"});
    add(told(&env(container)).await);
    let kubernetes = env(variable);
    kubernetes.delete("deployments", "demo", "shop");
    add(told(&kubernetes).await);
    let kubernetes = cluster(from_secret());
    kubernetes.forbid("get", "secrets");
    add(told(&kubernetes).await);
    let kubernetes = cluster(from_secret());
    let reference = json!({"name": "x", "kind": "Secret"});
    kubernetes.apply(scaled_object(&object(&[]), &[trigger(&object(&[]), reference)]));
    add(told(&kubernetes).await);
    insta::assert_snapshot!(all, @r#"
    FailedPrecondition: the TriggerAuthentication demo/datadog does not exist; create it, or correct `authenticationRef`
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `apiKey`: the Secret demo/keys does not exist
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `appKey`: the Secret demo/keys has no key `none`, or nothing in it
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `appKey`; add it, such as to its `secretTargetRef`
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `apiKey`; add it, such as to its `secretTargetRef`
    FailedPrecondition: `datadogSite` of the TriggerAuthentication demo/datadog is not one of Datadog's sites, such as `us5.datadoghq.com`; correct it, or have the administrator allow it with `--allow-site`
    FailedPrecondition: `datadogSite` of the TriggerAuthentication demo/datadog is not one of Datadog's sites, such as `us5.datadoghq.com`; correct it, or have the administrator allow it with `--allow-site`
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `datadogSite`: the ConfigMap demo/settings has no key `none`, or nothing in it
    FailedPrecondition: `appKey` of the TriggerAuthentication demo/datadog holds a character that no key has; was something else pasted?
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `appKey`: the container has no variable `APP`, or nothing in it
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `appKey`: the Deployment shop has no container `none`
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `appKey`: there is no Deployment shop, or it has no containers
    FailedPrecondition: the TriggerAuthentication demo/datadog gives no `apiKey`: Kubernetes forbids the scaler to get secrets/keys in the namespace demo; grant it (see Rights in the README)
    FailedPrecondition: `authenticationRef` is to a "Secret", but must be to a TriggerAuthentication or ClusterTriggerAuthentication
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_not_resolved_is_named_with_the_way_out() {
    for source in [
        "filePath",
        "hashiCorpVault",
        "azureKeyVault",
        "gcpSecretManager",
        "awsSecretManager",
        "boundServiceAccountToken",
        "azureServicePrincipal",
        "oauth2",
    ] {
        let mut spec = from_secret();
        spec[source] = match source {
            "filePath" => "keys.json".into(),
            "boundServiceAccountToken" => json!([{"parameter": "token"}]),
            _ => json!({"secrets": []}),
        };
        let message = format!(
            "FailedPrecondition: the TriggerAuthentication demo/datadog uses `{source}`, which \
             this version does not resolve; put the keys into a Secret, and use `secretTargetRef`"
        );
        assert_eq!(told(&cluster(spec)).await, message);
    }
    // An empty list is none.
    let mut spec = from_secret();
    (spec["boundServiceAccountToken"], spec["env"]) = (json!([]), Value::Null);
    spec["podIdentity"] = json!({"provider": "none"});
    assert_eq!(read_with(&cluster(spec), |_| {}).await, "one at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn a_site_that_the_administrator_allows_is_used() {
    let mut spec = from_secret();
    spec["configMapTargetRef"] = json!([entry("datadogSite", "settings", "site")]);
    let kubernetes = cluster(spec);
    let values = [("site", "https://app.DD.example.com/")];
    kubernetes.apply(data("ConfigMap", "demo", "settings", &values));
    let allow = |rules: &mut Rules| rules.sites = vec!["*.example.com".parse().unwrap()];
    assert_eq!(read_with(&kubernetes, allow).await, "one at api.dd.example.com");
}
