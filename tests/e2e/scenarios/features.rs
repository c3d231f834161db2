//! What KEDA can do with a trigger of any kind.

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    cluster::ROUNDS,
    stage::{DIAL, DIAL_METRIC, hastened},
    wait::{always, seconds, until},
};

/// `useCachedMetrics`: what the poll saw is what the HPA sees.
pub(super) async fn cached(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let mut trigger = stage.trigger(&json!({}));
    trigger["useCachedMetrics"] = true.into();
    stage.scaled_object("app", &[trigger], &json!({"pollingInterval": 8})).await?;
    stage.has_replicas("app", 3).await?;
    let asked = async || stage.metric("rpcs_total", &["\"GetMetrics\""]).await;
    let before = asked().await?;
    sleep(seconds(24)).await;
    let asked = asked().await? - before;
    ensure!(asked <= 4.0, "GetMetrics was asked {asked} times in three polls");
    stage.datadog.set(24.0).await?;
    let up = stage.has_replicas("app", 5).await?;
    Ok(format!("GetMetrics {asked} times in 24 s at a poll each 8 s; {up}"))
}

/// `scalingModifiers`, as `modifiers.yaml` has it: two triggers, neither of which has a target.
pub(super) async fn modifiers(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(0.0).await?;
    // The second is 12, always.
    let example = stage.example("modifiers.yaml", &[DIAL, "avg:sandbox.flat{*}"]).await?;
    stage.cluster.api.apply(&hastened(example)).await?;
    stage.has_condition("invoices", "Ready", "True").await?;
    let replicas = async || stage.replicas("invoices").await;
    always("0 replicas", seconds(4), replicas, |seen| *seen == 0).await?;
    let mut seen = Vec::new();
    for (value, expected) in [(5.0, 1), (17.5, 4), (0.0, 0)] {
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("invoices", expected).await?);
    }
    Ok(seen.join(", "))
}

/// `autoscaling.keda.sh/paused`: nobody asks, and then all goes on.
pub(super) async fn paused(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let mut trigger = stage.trigger(&json!({}));
    trigger["type"] = "external-push".into();
    stage.scaled_object("app", &[trigger], &json!({})).await?;
    stage.has_replicas("app", 3).await?;

    let annotate = |paused: Option<&str>| json!({"metadata": {"annotations": {"autoscaling.keda.sh/paused": paused}}});
    stage.patch("ScaledObject", "app", &annotate(Some("true"))).await?;
    stage.has_condition("app", "Paused", "True").await?;
    let hpa = async || stage.hpa("app").await;
    until("gone: the HPA", ROUNDS, hpa, serde_json::Value::is_null).await?;
    let open = async || stage.metric("open_streams", &[]).await;
    until("closed: the streams", ROUNDS, open, |open| *open == 0.0).await?;
    let asked = async || stage.metric("rpcs_total", &["\"GetMetrics\""]).await;
    let before = asked().await?;
    stage.datadog.set(24.0).await?;
    always("not asked", seconds(8), asked, |count| *count <= before).await?;
    ensure!(stage.replicas("app").await? == 3, "it was scaled while it was paused");

    stage.patch("ScaledObject", "app", &annotate(None)).await?;
    let resumed = stage.has_replicas("app", 5).await?;
    let value = stage.value("app", DIAL_METRIC).await?;
    ensure!(value == "24", "the value is {value}");
    Ok(format!("no RPC in 8 s, then {resumed}"))
}
