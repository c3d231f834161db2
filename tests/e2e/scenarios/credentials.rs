//! Keys of a TriggerAuthentication and of a ClusterTriggerAuthentication, which change.

use std::collections::HashSet;

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    datadog::Caller,
    stage::{Stage, authentication, secret},
    wait::{seconds, until},
};

/// Of ScaledObjects, each with its authentication.
const NAMES: [&str; 2] = ["own", "shared"];

/// New keys are in use without a failed reading, whether or not the old ones are revoked first;
/// keys that are wrong are told.
pub(super) async fn rotated(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    let cluster = scene.cluster.clone();
    // The ClusterTriggerAuthentication's Secret is one that `deploy/install.yaml` lets the scaler read.
    let places = [
        (stage.namespace.clone(), "TriggerAuthentication"),
        ("keda".to_owned(), "ClusterTriggerAuthentication"),
    ];
    let put = async |key: &str| -> anyhow::Result<()> {
        let data = json!({"apiKey": key, "appKey": "app", "datadogSite": stage.datadog.site});
        for (namespace, _) in &places {
            secret(&cluster, namespace, "datadog-keys", &data).await?;
        }
        Ok(())
    };
    stage.datadog.allow(&["first"]);
    put("first").await?;
    stage.may_read_secret("datadog-keys").await?;
    stage.datadog.set(12.0).await?;
    for (name, (namespace, kind)) in NAMES.into_iter().zip(&places) {
        let scope = (*kind == "TriggerAuthentication").then_some(namespace.as_str());
        cluster.api.apply(&authentication(kind, scope, name)).await?;
        let mut trigger = stage.trigger(&json!({"triggerName": name}));
        trigger["authenticationRef"] = json!({"name": name, "kind": kind});
        stage.deployment(name, 0).await?;
        stage.scaled_object(name, &[trigger], &json!({})).await?;
    }
    both(&stage, 3).await?;

    // As the README tells: new ones first, a minute, then the old ones are revoked.
    let failures = stage.failures().await?;
    stage.datadog.allow(&["first", "second"]);
    put("second").await?;
    // Who still had the first one would use it each second.
    let lately = async || Ok(stage.datadog.keys(seconds(4)));
    let only = |keys: &HashSet<String>| *keys == HashSet::from(["second".to_owned()]);
    let took = until("used: only the second key", seconds(120), lately, only).await?;
    stage.datadog.allow(&["second"]);
    stage.datadog.set(24.0).await?;
    both(&stage, 5).await?;
    // Held values would hide from KEDA that one was.
    let refused = stage.datadog.refused();
    ensure!(refused == 0, "{refused} requests were refused, though the new keys came first");
    ensure!(stage.failures().await? <= failures, "a request of KEDA failed");

    // Two objects, equal keys, one query: one call each second, as ever.
    sleep(seconds(25)).await;
    let calls = stage.datadog.rate(Caller::Scaler, seconds(20));
    ensure!(calls < 90.0, "{calls} calls a minute after new keys, at a refresh each second");

    // The other way round: revoked at once, and one request is refused.
    put("third").await?;
    stage.datadog.allow(&["third"]);
    stage.datadog.set(7.0).await?;
    both(&stage, 2).await?;
    let refused = stage.datadog.refused();
    ensure!(stage.failures().await? <= failures, "a request of KEDA failed");
    ensure!(refused <= 3, "{refused} requests were refused");

    for name in NAMES {
        stage.sleeps_late(name).await?;
    }
    put("wrong").await?;
    stage.datadog.allow(&[]);
    stage.has_event("own", "FailedPrecondition").await?;
    stage.has_event("own", "Datadog refuses the keys").await?;
    stage.datadog.set(0.0).await?;
    both(&stage, 2).await?;
    stage.datadog.allow(&["wrong"]);
    both(&stage, 1).await?;
    for name in NAMES {
        stage.sleeps_soon(name).await?;
    }
    both(&stage, 0).await?;
    Ok(format!(
        "new keys in use after {:.0} s, {refused} refused when revoked at once",
        took.as_secs_f64()
    ))
}

async fn both(stage: &Stage, replicas: u64) -> anyhow::Result<()> {
    for name in NAMES {
        stage.has_replicas(name, replicas).await?;
    }
    Ok(())
}
