//! Who goes away and comes back: the scaler, and the API server.

use anyhow::ensure;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Outcome, QUICK, Scene, strangers};
use crate::{
    stage::LATE_SECONDS,
    wait::{always, seconds, until},
};

/// Ended and killed, with a pause: replicas stay, and a new one goes on where the old one was.
pub(super) async fn scaler(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let mut push = stage.trigger(&json!({}));
    push["type"] = "external-push".into();
    stage.scaled_object("app", &[push], &json!({"cooldownPeriod": LATE_SECONDS})).await?;
    stage.has_replicas("app", 3).await?;

    let mut seen = Vec::new();
    for (how, value, expected) in [("ended", 24.0, 5), ("killed", 7.0, 2)] {
        let before = stage.replicas("app").await?;
        match how {
            "ended" => stage.end_scaler().await?,
            _ => stage.kill_scaler().await?,
        }
        stage.datadog.set(value).await?;
        let replicas = async || stage.replicas("app").await;
        always("as it was", seconds(6), replicas, |seen| *seen == before).await?;
        stage.restart_scaler().await?;
        seen.push(format!("{how}: {}", stage.has_replicas("app", expected).await?));
        stage.has_condition("app", "Ready", "True").await?;
    }
    // A stream that KEDA has opened anew, and not because the object has changed.
    let open = async || stage.metric("open_streams", &["StreamIsActive"]).await;
    let took = until("open: the stream", seconds(90), open, |open| *open >= 1.0).await?;
    stage.sleeps_soon("app").await?;
    stage.datadog.set(0.0).await?;
    stage.has_replicas("app", 0).await?;
    Ok(format!("{}; the stream is back {:.0} s later", seen.join("; "), took.as_secs_f64()))
}

/// A minute without an API server: what is known is answered, also with a new value.
pub(super) async fn api_server(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let trigger = stage.trigger(&json!({}));
    let metadata = trigger["metadata"].clone();
    stage.scaled_object("app", &[trigger], &json!({})).await?;
    stage.has_replicas("app", 3).await?;
    let (before_answered, before_failed) = (stage.answers().await?, stage.failures().await?);

    let since = Instant::now();
    stage.cluster.take_api_away().await?;
    stage.datadog.set(24.0).await?;
    sleep(seconds(60)).await;
    let answers = stage.answers().await? - before_answered;
    let value = strangers::ask(&stage, "app", &stage.namespace, metadata).await?;
    stage.cluster.bring_api_back().await?;
    let away = since.elapsed().as_secs();
    ensure!(answers > 0.0, "KEDA had no answer in {away} s without an API server");
    ensure!(value == Ok(24.0), "without an API server, the new value is {value:?}");
    let recovered = stage.has_replicas("app", 5).await?;

    // And what is new is found.
    stage.deployment("new", 0).await?;
    stage.scaled_object("new", &[stage.trigger(&json!({"queryValue": "2"}))], &json!({})).await?;
    // KEDA's own watches are back within a minute or so.
    let replicas = async || stage.replicas("new").await;
    let found = until("10 replicas of new", seconds(120), replicas, |seen| *seen == 10).await?;
    let found = found.as_secs();
    let failures = stage.failures().await? - before_failed;
    ensure!(failures == 0.0, "{failures} of KEDA's requests failed");
    Ok(format!("away for {away} s, {answers} answers; then {recovered}; a new one {found} s later"))
}
