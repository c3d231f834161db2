//! Requests that are what they claim, and what Kubernetes itself may do meanwhile.

use std::time::Duration;

use keda_datadog_scaler::proto::{ScaledObjectRef, external_scaler_server::ExternalScaler as _};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    engine::Engine,
    fake_kubernetes::FakeKubernetes,
    harness::{check_status, object},
};

/// The ScaledObject demo/shop, whose one trigger is `object(extra)`, and refers to `authentication`.
pub(crate) fn scaled_object(extra: &[(&str, &str)], authentication: &Value) -> Value {
    scaled(&object(extra), authentication)
}

fn scaled(request: &ScaledObjectRef, authentication: &Value) -> Value {
    let mut trigger = json!({"type": "external", "metadata": request.scaler_metadata});
    if !authentication.is_null() {
        trigger["authenticationRef"] = authentication.clone();
    }
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"namespace": request.namespace, "name": request.name},
        "spec": {"scaleTargetRef": {"name": "shop"}, "triggers": [trigger]},
    })
}

/// Everybody may use the server's own account.
async fn start(kubernetes: &FakeKubernetes) -> Engine {
    let everybody = |rules: &mut keda_datadog_scaler::credentials::Rules| {
        rules.own_namespaces = vec!["*".parse().unwrap()];
    };
    Engine::start_in(kubernetes, everybody, |_, _| Ok(Some(8.0))).await
}

const NO_TRIGGER: &str = "no trigger of a ScaledObject or ScaledJob of this name has this metadata";

#[tokio::test(start_paused = true)]
async fn a_trigger_that_exists_is_answered() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(scaled_object(&[], &Value::Null));
    let engine = start(&kubernetes).await;
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    assert_eq!(kubernetes.times_asked("get", "scaledobjects"), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_created_just_now_is_looked_for() {
    let kubernetes = FakeKubernetes::new();
    let engine = start(&kubernetes).await;
    // The watch has yet to tell.
    kubernetes.apply(scaled_object(&[], &Value::Null));
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
}
