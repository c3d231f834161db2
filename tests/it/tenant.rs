//! What one tenant does with objects of its own is no trouble for the others.

use std::time::Duration;

use keda_datadog_scaler::{credentials::Rules, proto::ScaledObjectRef};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    authentication::{authentication, data, entry},
    engine::Engine,
    fake_kubernetes::FakeKubernetes,
    harness::object,
    kubernetes::{scaled_object, trigger},
};

/// demo/shop, which uses keys of its own namespace.
fn victim(kubernetes: &FakeKubernetes, app_key: &str) -> ScaledObjectRef {
    let request = object(&[]);
    kubernetes.apply(scaled_object(&request, &[trigger(&request, json!({"name": "datadog"}))]));
    let entries = [entry("apiKey", "keys", "api"), entry("appKey", "keys", "app")];
    let spec = json!({"secretTargetRef": entries});
    kubernetes.apply(authentication(Some("demo"), "datadog", spec));
    keys(kubernetes, app_key);
    request
}

fn keys(kubernetes: &FakeKubernetes, app_key: &str) {
    let values = [("api", "marker-api-key"), ("app", app_key)];
    kubernetes.apply(data("Secret", "demo", "keys", &values));
}

/// So many triggers in the namespace evil, each with a reference to another
/// TriggerAuthentication, which does not exist.
fn many(kubernetes: &FakeKubernetes, count: usize) -> Vec<ScaledObjectRef> {
    let request = |n: usize| ScaledObjectRef {
        namespace: "evil".into(),
        name: format!("many-{}", n / 100),
        ..object(&[("triggerName", &n.to_string())])
    };
    let requests: Vec<_> = (0..count).map(request).collect();
    for requests in requests.chunks(100) {
        let refer = |it: &ScaledObjectRef| {
            trigger(it, json!({"name": format!("none-{}", it.scaler_metadata["triggerName"])}))
        };
        let triggers: Vec<Value> = requests.iter().map(refer).collect();
        kubernetes.apply(scaled_object(&requests[0], &triggers));
    }
    requests
}

async fn start(kubernetes: &FakeKubernetes) -> Engine {
    Engine::start_in(kubernetes, |_: &mut Rules| {}, |_, _| Ok(Some(8.0))).await
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_names_thousands_of_secrets_keeps_no_others_waiting() {
    let kubernetes = FakeKubernetes::new();
    let spec = json!({"env": [
        {"parameter": "apiKey", "name": "API"}, {"parameter": "appKey", "name": "APP"},
    ]});
    kubernetes.apply(authentication(Some("evil"), "env", spec));
    let optional = |n: usize| json!({"secretRef": {"name": format!("s-{n}"), "optional": true}});
    let sources: Vec<Value> = (0..400).map(optional).collect();
    let mut requests = Vec::new();
    for n in 0..20 {
        let name = format!("w-{n}");
        let request =
            ScaledObjectRef { namespace: "evil".into(), name: name.clone(), ..object(&[]) };
        let mut scaled = scaled_object(&request, &[trigger(&request, json!({"name": "env"}))]);
        scaled["spec"]["scaleTargetRef"]["name"] = (*name).into();
        kubernetes.apply(scaled);
        kubernetes.apply(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": "evil", "name": name},
            "spec": {"template": {"spec": {"containers": [{"name": "app", "envFrom": sources}]}}},
        }));
        requests.push(request);
    }
    let victim = victim(&kubernetes, "one");
    let engine = start(&kubernetes).await;
    for request in &requests {
        engine.pair(request).await.unwrap_err();
    }
    let asked_at = Instant::now();
    engine.pair(&victim).await.unwrap();
    assert!(asked_at.elapsed() < Duration::from_secs(2), "{:?}", asked_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn references_without_end_do_not_keep_others_from_new_keys() {
    let kubernetes = FakeKubernetes::new();
    let victim = victim(&kubernetes, "one");
    let requests = many(&kubernetes, 1_000);
    let engine = start(&kubernetes).await;
    engine.pair(&victim).await.unwrap();
    for request in &requests {
        // KEDA would wait; this one only makes the reference known.
        let _ = timeout(Duration::from_millis(1), engine.pair(request)).await;
    }
    keys(&kubernetes, "two");
    engine.refuse("one");
    for _ in 0..2 {
        sleep(Duration::from_secs(10)).await;
        engine.pair(&victim).await.unwrap();
    }
    assert!(engine.requests_with("two") > 0);
}
