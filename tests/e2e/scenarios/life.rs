//! A ScaledObject and a ScaledJob from nothing to nothing.

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    api::path,
    cluster::ROUNDS,
    stage::DIAL_METRIC,
    wait::{always, seconds, until},
};

pub(super) async fn scaled_object(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.deployment("app", 0).await?;
    stage.datadog.set(2.0).await?;
    let trigger = stage.trigger(&json!({"activationQueryValue": "2"}));
    stage.scaled_object("app", &[trigger], &json!({})).await?;
    stage.has_condition("app", "Ready", "True").await?;
    let replicas = async || stage.replicas("app").await;
    always("0 replicas", seconds(5), replicas, |seen| *seen == 0).await?;

    let mut seen = Vec::new();
    for (value, expected) in [(3.0, 1), (24.0, 5), (49.0, 10), (12.0, 3), (4.0, 1), (1.0, 0)] {
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("app", expected).await?);
    }
    let (_, target) = stage.hpa_metric("app", DIAL_METRIC).await?;
    ensure!(target == "5", "the target is {target}");
    Ok(seen.join(", "))
}

/// Jobs for what there is, none for what is gone, and none again during an outage.
pub(super) async fn scaled_job(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    let template = json!({"spec": {
        "containers": [{"name": "app", "image": "none"}], "restartPolicy": "Never",
    }});
    let scaled_job = json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledJob",
        "metadata": {"name": "job", "namespace": stage.namespace},
        "spec": {
            "jobTargetRef": {"template": template},
            "pollingInterval": 1,
            "maxReplicaCount": 10,
            "successfulJobsHistoryLimit": 0,
            "triggers": [stage.trigger(&json!({}))],
        },
    });
    stage.cluster.api.apply(&scaled_job).await?;
    // No kubelet ever starts one, so they run until we say that they are done.
    let jobs = async || {
        let jobs = stage.get("Job", "").await?;
        let jobs = jobs["items"].as_array().into_iter().flatten();
        let running = jobs.filter(|job| job["status"]["completionTime"].is_null());
        Ok(running.count())
    };
    always("0 Jobs", seconds(4), jobs, |count| *count == 0).await?;
    stage.datadog.set(12.0).await?;
    let took = until("3 Jobs", ROUNDS, jobs, |count| *count == 3).await?;
    always("3 Jobs", seconds(4), jobs, |count| *count == 3).await?;

    // The backlog is done, and Datadog is away before it can say so.
    stage.datadog.fault("504").await?;
    stage.datadog.set(0.0).await?;
    sleep(seconds(3)).await;
    let pods = stage.get("Pod", "").await?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = path("Pod", Some(&stage.namespace), name)? + "/status";
        stage.cluster.api.merge(&path, &json!({"status": {"phase": "Succeeded"}})).await?;
    }
    until("0 Jobs", ROUNDS, jobs, |count| *count == 0).await?;
    always("0 Jobs", seconds(10), jobs, |count| *count == 0).await?;
    stage.datadog.set(8.0).await?;
    stage.datadog.mend().await?;
    let again = until("2 Jobs", ROUNDS, jobs, |count| *count == 2).await?;
    let (took, again) = (took.as_secs_f64(), again.as_secs_f64());
    Ok(format!("3 after {took:.1} s, none in an outage, 2 after {again:.1} s"))
}

/// KEDA never asks below one replica, and with 2.21 only the HPA asks.
pub(super) async fn at_least_one(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.deployment("app", 1).await?;
    let trigger = stage.trigger(&json!({}));
    stage.scaled_object("app", &[trigger], &json!({"minReplicaCount": 1})).await?;
    let mut seen = Vec::new();
    for (value, expected) in [(24.0, 5), (7.0, 2), (0.0, 1), (14.0, 3)] {
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("app", expected).await?);
    }
    let asked = async || stage.metric("rpcs_total", &["\"GetMetrics\""]).await;
    let before = asked().await?;
    sleep(seconds(12)).await;
    let asked = asked().await? - before;
    Ok(format!("{}; {asked} times GetMetrics in 12 s", seen.join(", ")))
}
