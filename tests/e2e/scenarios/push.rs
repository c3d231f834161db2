//! `external-push`, as `push.yaml` has it: KEDA is told, and does not have to ask.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    cluster::ROUNDS,
    stage::{DIAL, DIAL_METRIC},
    wait::{always, seconds, until},
};

pub(super) async fn push(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    // Not hastened: what is seen soon is not by a poll.
    let mut object = stage.example("push.yaml", &[DIAL]).await?;
    let polling = object["spec"]["pollingInterval"].as_u64().context("it has no interval")?;
    stage.cluster.api.apply(&object).await?;
    let open = async || {
        let active = stage.metric("open_streams", &["StreamIsActive"]).await?;
        let specs = stage.metric("open_streams", &["StreamMetricSpec"]).await?;
        Ok((active, specs))
    };
    let specs = if scene.cluster.keda.streams_metric_specs() { 1.0 } else { 0.0 };
    let expected = (1.0, specs);
    until("streams are open", ROUNDS, open, |seen| *seen == expected).await?;
    // KEDA drops what is pushed before it has built the HPA.
    stage.has_condition("receipts", "Ready", "True").await?;
    let hpa = async || stage.hpa("receipts").await;
    until("there: the HPA", ROUNDS, hpa, |hpa| !hpa.is_null()).await?;
    sleep(seconds(3)).await;

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
