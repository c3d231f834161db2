//! A Datadog that fails: what KEDA and the HPA make of what we say.

use anyhow::ensure;
use serde_json::json;

use super::{Outcome, QUICK, Scene};
use crate::{
    cluster::ROUNDS,
    datadog::Caller,
    stage::{DIAL_METRIC, FLAT, LATE_SECONDS, Stage},
    wait::{always, seconds, until},
};

/// Held, then an error: replicas stay, or KEDA's own fallback answers; then all is as before.
pub(super) async fn outage(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    let trigger = [stage.trigger(&json!({}))];
    for (name, more) in [
        ("frozen", json!({})),
        ("fallback", json!({"fallback": {"failureThreshold": 3, "replicas": 7}})),
    ] {
        stage.deployment(name, 0).await?;
        stage.scaled_object(name, &trigger, &more).await?;
    }
    for name in ["frozen", "fallback"] {
        stage.has_replicas(name, 3).await?;
        stage.sleeps_late(name).await?;
    }

    stage.datadog.fault("504").await?;
    // If a failure were taken for an empty queue, this is where it would show.
    stage.datadog.set(0.0).await?;
    let held = async || stage.value("frozen", DIAL_METRIC).await;
    always("held", seconds(5), held, |value| value == "12").await?;
    stage.has_condition("frozen", "Ready", "False").await?;
    stage.has_event("frozen", "Unavailable").await?;
    stage.has_event("frozen", "Datadog fails at api.outage.datadoghq.com (504)").await?;
    stage.has_condition("fallback", "Fallback", "True").await?;
    let fell_back = stage.has_replicas("fallback", 7).await?;
    let replicas = async || stage.replicas("frozen").await;
    always("frozen at 3 replicas", seconds(15), replicas, |seen| *seen == 3).await?;

    stage.datadog.set(24.0).await?;
    stage.datadog.mend().await?;
    let recovered = stage.has_replicas("frozen", 5).await?;
    stage.has_replicas("fallback", 5).await?;
    stage.has_condition("frozen", "Ready", "True").await?;
    stage.has_condition("fallback", "Fallback", "False").await?;
    stage.datadog.set(0.0).await?;
    stage.has_replicas("frozen", 1).await?;
    Ok(format!("held, frozen at 3; fallback to {fell_back}; recovered to {recovered}"))
}

/// A rate limit that is spent, by someone else's doing.
pub(super) async fn throttled(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    stage.scaled_object("app", &[stage.trigger(&json!({}))], &json!({})).await?;
    stage.has_replicas("app", 3).await?;
    stage.sleeps_late("app").await?;

    stage.datadog.fault("429-bare").await?;
    stage.datadog.set(0.0).await?;
    stage.has_event("app", "ResourceExhausted").await?;
    let before = stage.datadog.calls().len();
    let replicas = async || stage.replicas("app").await;
    always("frozen at 3 replicas", seconds(15), replicas, |seen| *seen == 3).await?;
    // The built-in scaler would ask twice at every poll.
    let calls = stage.datadog.calls().len() - before;
    ensure!(calls <= 2, "{calls} calls in 15 s of a rate limit");

    stage.datadog.mend().await?;
    // It has been told to wait, and half a minute is what it waits without being told how long.
    let took = until("1 replica", seconds(90), replicas, |seen| *seen == 1).await?;
    Ok(format!("frozen at 3, {calls} calls in 15 s; 1 again {:.0} s later", took.as_secs_f64()))
}

/// HTTP 422 comes and goes for good queries.
pub(super) async fn unprocessable(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    let filled = stage.trigger(&json!({"metricUnavailableValue": "21"}));
    for (name, trigger) in [("bare", stage.trigger(&json!({}))), ("filled", filled)] {
        stage.deployment(name, 0).await?;
        stage.scaled_object(name, &[trigger], &json!({})).await?;
    }
    for name in ["bare", "filled"] {
        stage.has_replicas(name, 3).await?;
        stage.sleeps_late(name).await?;
    }

    stage.datadog.fault("422").await?;
    stage.datadog.set(0.0).await?;
    let held = async || stage.replicas("filled").await;
    always("held", seconds(5), held, |seen| *seen == 3).await?;
    let filled = stage.has_replicas("filled", 5).await?;
    stage.has_event("bare", "422").await?;
    let bare = stage.replicas("bare").await?;
    ensure!(bare == 3, "{bare} replicas without `metricUnavailableValue`");

    stage.datadog.mend().await?;
    stage.has_replicas("bare", 1).await?;
    stage.has_replicas("filled", 1).await?;
    Ok(format!("held, then frozen at 3, and filled to {filled}"))
}

/// One of two triggers can never be answered; the other goes on scaling up, but never down.
pub(super) async fn one_bad(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let bad = stage.trigger(&json!({"query": "avg:sandbox.flat{a b}"}));
    let late = json!({"cooldownPeriod": LATE_SECONDS});
    stage.scaled_object("app", &[stage.trigger(&json!({})), bad], &late).await?;
    stage.has_replicas("app", 3).await?;
    stage.has_event("app", "InvalidArgument").await?;
    let ready = async || stage.condition("app", "Ready").await;
    until("partly in error", ROUNDS, ready, |ready| ready.1 == "PartialTriggerError").await?;
    stage.datadog.set(24.0).await?;
    let up = stage.has_replicas("app", 5).await?;
    stage.datadog.set(7.0).await?;
    let value = async || stage.value("app", DIAL_METRIC).await;
    until("7", ROUNDS, value, |value| value == "7").await?;
    stays(&stage, 5).await?;
    Ok(format!("up: {up}; no way down"))
}

/// Datadog rejects a call for one query in it; the others of that call go on.
pub(super) async fn bad_neighbour(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    let bad = stage.trigger(&json!({"query": FLAT}));
    let late = json!({"cooldownPeriod": LATE_SECONDS});
    for (name, trigger) in [("good", stage.trigger(&json!({}))), ("bad", bad)] {
        stage.deployment(name, 0).await?;
        stage.scaled_object(name, &[trigger], &late).await?;
    }
    for name in ["good", "bad"] {
        stage.has_replicas(name, 3).await?;
    }
    let calls = async || Ok(stage.datadog.rate(Caller::Scaler, seconds(6)));
    until("in one call a second", ROUNDS, calls, |calls| *calls < 90.0).await?;

    stage.datadog.fault_of("rejected", FLAT).await?;
    stage.has_event("bad", "InvalidArgument").await?;
    stage.datadog.set(24.0).await?;
    let up = stage.has_replicas("good", 5).await?;
    let seen = async || {
        let ready = stage.condition("good", "Ready").await?.0;
        Ok((ready, stage.replicas("good").await?, stage.replicas("bad").await?))
    };
    let expected = ("True".to_owned(), 5, 3);
    always("as they are", seconds(10), seen, |seen| *seen == expected).await?;
    let good = stage.events("good").await?;
    let failed = good.iter().find(|message| message.contains("rpc error"));
    ensure!(failed.is_none(), "KEDA had an error for the good one: {failed:?}");

    stage.datadog.mend().await?;
    // It is tried after pauses that double.
    let ready = async || Ok(stage.condition("bad", "Ready").await?.0);
    let mended = until("mended", seconds(90), ready, |ready| ready == "True").await?;
    Ok(format!("the good one {up}; the bad one ready {:.0} s after it is", mended.as_secs_f64()))
}

async fn stays(stage: &Stage, replicas: u64) -> anyhow::Result<()> {
    let look = async || stage.replicas("app").await;
    always(&format!("{replicas} replicas"), seconds(10), look, |seen| *seen == replicas).await
}
