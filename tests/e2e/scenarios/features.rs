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
    // Streams count as they end, a moment after they are closed.
    let asked = async || {
        let mut asked = 0.0;
        for method in ["GetMetrics", "IsActive", "GetMetricSpec"] {
            asked += stage.metric("rpcs_total", &[&format!("\"{method}\"")]).await?;
        }
        anyhow::Ok(asked)
    };
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

/// `metricType: Value`: the HPA multiplies by the pods that are ready, and KEDA's fallback divides by
/// them.
pub(super) async fn value_metric(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let mut trigger = stage.trigger(&json!({}));
    trigger["metricType"] = "Value".into();
    let fallback = json!({"fallback": {"failureThreshold": 3, "replicas": 8}});
    stage.scaled_object("app", &[trigger], &fallback).await?;
    stage.has_replicas("app", 1).await?;
    let replicas = async || stage.replicas("app").await;
    let value = async || stage.hpa_metric("app", DIAL_METRIC).await;
    let expected = ("12".to_owned(), "5".to_owned());
    until("seen: the value", ROUNDS, value, |seen| *seen == expected).await?;
    let kind = &stage.hpa("app").await?["spec"]["metrics"][0]["external"]["target"]["type"];
    ensure!(kind == "Value", "the target is of type {kind}");
    always("1 replica, while no pod is ready", seconds(5), replicas, |seen| *seen == 1).await?;

    let mut seen = Vec::new();
    for (ready, value, expected) in [(1, 12.0, 3), (2, 12.0, 5), (2, 16.0, 7), (3, 7.0, 5)] {
        stage.has_ready("app", ready).await?;
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("app", expected).await?);
    }

    stage.sleeps_late("app").await?;
    stage.datadog.fault("504").await?;
    stage.datadog.set(0.0).await?;
    stage.has_condition("app", "Fallback", "True").await?;
    let fell_back = stage.has_replicas("app", 8).await?;
    stage.datadog.set(8.0).await?;
    stage.datadog.mend().await?;
    stage.has_condition("app", "Fallback", "False").await?;
    seen.push(stage.has_replicas("app", 5).await?);
    stage.sleeps_soon("app").await?;
    for (value, expected) in [(2.5, 1), (0.0, 0)] {
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("app", expected).await?);
    }
    Ok(format!("{}; fallback to {fell_back}", seen.join(", ")))
}
