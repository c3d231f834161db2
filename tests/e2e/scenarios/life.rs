//! A ScaledObject and a ScaledJob from nothing to nothing.

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    api::path,
    cluster::ROUNDS,
    stage::{DIAL, DIAL_METRIC, hastened},
    tools::Keda,
    wait::{always, seconds, until},
};

/// What KEDA labels a Job with.
const OWNER: &str = "scaledjob.keda.sh/name";

/// As `scaledobject.yaml` has it.
pub(super) async fn scaled_object(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(5.0).await?;
    let example = stage.example("scaledobject.yaml", &[DIAL]).await?;
    stage.cluster.api.apply(&hastened(example)).await?;
    stage.has_condition("checkout", "Ready", "True").await?;
    let replicas = async || stage.replicas("checkout").await;
    always("0 replicas", seconds(5), replicas, |seen| *seen == 0).await?;

    let mut seen = Vec::new();
    for (value, expected) in [(6.0, 1), (600.0, 5), (2_500.0, 20), (300.0, 3), (100.0, 1), (5.0, 0)]
    {
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("checkout", expected).await?);
    }
    let (_, target) = stage.hpa_metric("checkout", DIAL_METRIC).await?;
    ensure!(target == "120", "the target is {target}");
    Ok(seen.join(", "))
}

/// Jobs for what there is, none for what is gone, and none again during an outage: as
/// `scaledjob.yaml` has it, and where it is not said that nothing is to be held.
pub(super) async fn scaled_job(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    let example = hastened(stage.example("scaledjob.yaml", &[DIAL]).await?);
    let mut unsaid = example.clone();
    unsaid["metadata"]["name"] = "unsaid".into();
    let metadata = unsaid["spec"]["triggers"][0]["metadata"].as_object_mut();
    let said = metadata.and_then(|metadata| metadata.remove("holdLastValue"));
    ensure!(said.is_some(), "the example does not say it");
    for scaled_job in [example, unsaid] {
        stage.cluster.api.apply(&scaled_job).await?;
    }
    // No kubelet ever starts one, so they run until we say that they are done.
    let jobs = async || {
        let jobs = stage.get("Job", "").await?;
        let jobs = jobs["items"].as_array().into_iter().flatten();
        let running = jobs.filter(|job| job["status"]["completionTime"].is_null());
        let owners = running.map(|job| job["metadata"]["labels"][OWNER].clone());
        let (of_example, of_unsaid): (Vec<_>, Vec<_>) = owners.partition(|it| it == "mail-sender");
        Ok((of_example.len(), of_unsaid.len()))
    };
    always("0 Jobs", seconds(4), jobs, |count| *count == (0, 0)).await?;
    stage.datadog.set(240.0).await?;
    let took = until("3 Jobs", ROUNDS, jobs, |count| *count == (3, 3)).await?;
    always("3 Jobs", seconds(4), jobs, |count| *count == (3, 3)).await?;

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
    until("0 Jobs", ROUNDS, jobs, |count| *count == (0, 0)).await?;
    always("0 Jobs", seconds(10), jobs, |count| *count == (0, 0)).await?;
    stage.datadog.set(160.0).await?;
    stage.datadog.mend().await?;
    let again = until("2 Jobs", ROUNDS, jobs, |count| *count == (2, 2)).await?;
    let (took, again) = (took.as_secs_f64(), again.as_secs_f64());
    Ok(format!("3 after {took:.1} s, none in an outage, 2 after {again:.1} s"))
}

/// There is always one replica, and with 2.21 only the HPA asks, each 3 seconds.
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
    let only_hpa = stage.cluster.keda == Keda::V2_21;
    ensure!(!only_hpa || asked <= 8.0, "{asked} times GetMetrics in 12 s");
    Ok(format!("{}; {asked} times GetMetrics in 12 s", seen.join(", ")))
}
