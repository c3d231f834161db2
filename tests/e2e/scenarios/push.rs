//! `external-push`, as `push.yaml` has it: KEDA is told, and does not have to ask.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    cluster::ROUNDS,
    stage::{DIAL, DIAL_METRIC, Stage},
    wait::{always, seconds, until},
};

pub(super) async fn push(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    let mut object = begin(&stage).await?;
    let polling = object["spec"]["pollingInterval"].as_u64().context("it has no interval")?;

    stage.datadog.set(200.0).await?;
    let replicas = async || stage.replicas("receipts").await;
    let took = until("active by push", seconds(10), replicas, |seen| *seen > 0).await?;
    stage.has_replicas("receipts", 3).await?;

    // KEDA 2.21 asks for no metric spec any more, since it is told.
    let asked = async || stage.metric("rpcs_total", &["GetMetricSpec"]).await;
    let before = asked().await?;
    if scene.cluster.keda.streams_metric_specs() {
        always("told, not asked", seconds(10), asked, |count| *count <= before).await?;
    }
    object["spec"]["triggers"][0]["metadata"]["queryValue"] = "50".into();
    stage.cluster.api.apply(&object).await?;
    let target = async || Ok(stage.hpa_metric("receipts", DIAL_METRIC).await?.1);
    let changed = until("the target is 50", ROUNDS, target, |target| target == "50").await?;
    stage.has_replicas("receipts", 4).await?;

    // The HPA's own way down; to 0 it would be the poll's.
    stage.datadog.set(2.0).await?;
    stage.has_replicas("receipts", 1).await?;
    ensure!(took < Duration::from_secs(polling / 10), "active after {took:?}");
    let (took, changed) = (took.as_secs_f64(), changed.as_secs_f64());
    Ok(format!("active after {took:.1} s, polled each {polling}; target after {changed:.1} s"))
}

/// While nobody knows, the streams are silent and stay: KEDA comes back the later, the more often one
/// has ended with an error.
pub(super) async fn in_outage(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    begin(&stage).await?;
    let expected = open(&stage).await?;
    stage.datadog.fault("504").await?;
    let look = async || Ok((open(&stage).await?, stage.replicas("receipts").await?));
    always("as it was", seconds(20), look, |seen| *seen == (expected, 0)).await?;

    stage.datadog.mend().await?;
    let answered = async || Ok(stage.datadog.calls().last().is_some_and(|call| call.status == 200));
    until("answered again", ROUNDS, answered, |is_answered| *is_answered).await?;
    stage.datadog.set(200.0).await?;
    let replicas = async || stage.replicas("receipts").await;
    let took = until("active by push", seconds(10), replicas, |seen| *seen > 0).await?;
    Ok(format!("silent for 20 s, then active after {:.1} s", took.as_secs_f64()))
}

/// Applies the example, not hastened: what is seen soon is not by a poll. Waits until KEDA takes what
/// is pushed; the trigger is inactive.
async fn begin(stage: &Stage) -> anyhow::Result<Value> {
    let object = stage.example("push.yaml", &[DIAL]).await?;
    stage.cluster.api.apply(&object).await?;
    let specs = if stage.cluster.keda.streams_metric_specs() { 1.0 } else { 0.0 };
    let streams = async || open(stage).await;
    until("streams are open", ROUNDS, streams, |seen| *seen == (1.0, specs)).await?;
    // KEDA drops what is pushed before it has built the HPA.
    stage.has_condition("receipts", "Ready", "True").await?;
    let hpa = async || stage.hpa("receipts").await;
    until("there: the HPA", ROUNDS, hpa, |hpa| !hpa.is_null()).await?;
    sleep(seconds(5)).await;
    Ok(object)
}

/// How many streams are: of states, and of metric specs.
async fn open(stage: &Stage) -> anyhow::Result<(f64, f64)> {
    let active = stage.metric("open_streams", &["StreamIsActive"]).await?;
    Ok((active, stage.metric("open_streams", &["StreamMetricSpec"]).await?))
}
