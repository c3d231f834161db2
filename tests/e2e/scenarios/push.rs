//! `external-push`: KEDA is told, and does not have to ask.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene};
use crate::{
    cluster::ROUNDS,
    stage::{DIAL_METRIC, LATE_SECONDS, Stage},
    wait::{always, seconds, until},
};

/// Of a poll that would come too late.
const POLLING_SECONDS: u64 = 300;

pub(super) async fn push(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    let mut trigger = begin(&stage).await?;

    stage.datadog.set(12.0).await?;
    let replicas = async || stage.replicas("app").await;
    let took = until("active by push", seconds(10), replicas, |seen| *seen > 0).await?;
    stage.has_replicas("app", 3).await?;

    // KEDA 2.21 asks for no metric spec any more, since it is told.
    let asked = async || stage.metric("rpcs_total", &["GetMetricSpec"]).await;
    let before = asked().await?;
    if scene.cluster.keda.streams_metric_specs() {
        always("told, not asked", seconds(10), asked, |count| *count <= before).await?;
    }
    trigger["metadata"]["queryValue"] = "3".into();
    stage.scaled_object("app", &[trigger], &rare()).await?;
    let target = async || Ok(stage.hpa_metric("app", DIAL_METRIC).await?.1);
    let changed = until("the target is 3", ROUNDS, target, |target| target == "3").await?;
    stage.has_replicas("app", 4).await?;

    // The HPA's own way down; to 0 it would be the poll's.
    stage.datadog.set(2.0).await?;
    stage.has_replicas("app", 1).await?;
    ensure!(took < Duration::from_secs(POLLING_SECONDS / 10), "active after {took:?}");
    let (took, changed) = (took.as_secs_f64(), changed.as_secs_f64());
    Ok(format!(
        "active after {took:.1} s, polled each {POLLING_SECONDS}; target after {changed:.1} s"
    ))
}

/// While nobody knows, the streams are silent and stay: KEDA comes back the later, the more often one
/// has ended with an error.
pub(super) async fn in_outage(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    begin(&stage).await?;
    let expected = open(&stage).await?;
    stage.datadog.fault("504").await?;
    let look = async || Ok((open(&stage).await?, stage.replicas("app").await?));
    always("as it was", seconds(20), look, |seen| *seen == (expected, 0)).await?;

    stage.datadog.mend().await?;
    // An account that failed is tried each half minute.
    let answered = async || Ok(stage.datadog.calls().last().is_some_and(|call| call.status == 200));
    until("answered again", seconds(60), answered, |is_answered| *is_answered).await?;
    stage.datadog.set(12.0).await?;
    let replicas = async || stage.replicas("app").await;
    let took = until("active by push", seconds(5), replicas, |seen| *seen > 0).await?;
    Ok(format!("silent for 20 s, then active after {:.1} s", took.as_secs_f64()))
}

/// Waits until KEDA takes what is pushed; the trigger is inactive.
async fn begin(stage: &Stage) -> anyhow::Result<Value> {
    stage.deployment("app", 0).await?;
    let mut trigger = stage.trigger(&json!({}));
    trigger["type"] = "external-push".into();
    stage.scaled_object("app", &[trigger.clone()], &rare()).await?;
    let specs = if stage.cluster.keda.streams_metric_specs() { 1.0 } else { 0.0 };
    let streams = async || open(stage).await;
    until("streams are open", ROUNDS, streams, |seen| *seen == (1.0, specs)).await?;
    // KEDA drops what is pushed before it has built the HPA.
    stage.has_condition("app", "Ready", "True").await?;
    let hpa = async || stage.hpa("app").await;
    until("there: the HPA", ROUNDS, hpa, |hpa| !hpa.is_null()).await?;
    sleep(seconds(3)).await;
    Ok(trigger)
}

/// What goes to 0 would stay there until the next poll.
fn rare() -> Value {
    json!({"pollingInterval": POLLING_SECONDS, "cooldownPeriod": LATE_SECONDS})
}

/// How many streams are: of states, and of metric specs.
async fn open(stage: &Stage) -> anyhow::Result<(f64, f64)> {
    let active = stage.metric("open_streams", &["StreamIsActive"]).await?;
    Ok((active, stage.metric("open_streams", &["StreamMetricSpec"]).await?))
}
