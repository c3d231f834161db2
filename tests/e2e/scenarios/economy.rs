//! What many triggers cost, with the built-in scaler and with ours.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use super::{Outcome, Scene};
use crate::{
    cluster::{QUICK_SYNC, USUAL_SYNC},
    datadog::Caller,
    stage::{API_KEY, Stage},
    wait::{seconds, until},
};

const OBJECTS: usize = 200;
const POLLING: Duration = seconds(30);
/// From the third round on.
const SETTLING: Duration = seconds(60);
const PERIOD: Duration = seconds(300);
/// Calls a minute of ours: six batches each 15 seconds, and one of the rounds at either end of the
/// period more.
const MOST: f64 = 24.0 + 6.0 / 5.0;

/// 200 ScaledObjects at KEDA's defaults, each with a query of its own.
pub(super) async fn two_hundred(scene: Scene) -> Outcome {
    let mut stage = scene.stage_at("us3.datadoghq.com").await?;
    // At its defaults too.
    stage.start_scaler(&[]).await?;
    let keys = json!({"apiKey": API_KEY, "appKey": "app", "datadogSite": stage.datadog.site});
    stage.secret("datadog-keys", &keys).await?;
    stage.may_read_secret("datadog-keys").await?;
    stage.authentication("datadog").await?;
    stage.cluster.look_each(USUAL_SYNC).await?;
    let built_in = measure(&stage, "datadog", Caller::BuiltIn).await?;
    let ours = measure(&stage, "external", Caller::Scaler).await?;
    stage.cluster.look_each(QUICK_SYNC).await?;
    let told = format!("{ours} calls a minute, and {built_in} with the built-in");
    ensure!(ours <= MOST && built_in > 1_000.0, told);
    Ok(format!("{OBJECTS} objects: {built_in:.0} calls a minute built in, {ours:.0} with ours"))
}

/// Calls a minute; the objects are gone afterwards.
async fn measure(stage: &Stage, kind: &str, by: Caller) -> anyhow::Result<f64> {
    let name = |index: usize| format!("{kind}-{index}");
    for index in 0..OBJECTS {
        // No bucket is wider than the window, or there would be no data at times.
        let (by, width) = (["avg", "max", "min", "sum"][index % 4], index / 4 + 1);
        let query = format!("{by}:sandbox.flat{{*}}.rollup(avg, {width})");
        let trigger = json!({
            "type": kind,
            "metadata": {
                "scalerAddress": stage.scaler_address(), "query": query, "queryValue": "100",
            },
            "authenticationRef": {"name": "datadog"},
        });
        stage.deployment(&name(index), 1).await?;
        let defaults = json!({
            "pollingInterval": POLLING.as_secs(), "cooldownPeriod": 300, "advanced": {},
        });
        stage.scaled_object(&name(index), &[trigger], &defaults).await?;
    }
    stage.has_condition(&name(OBJECTS - 1), "Ready", "True").await?;
    sleep(SETTLING + PERIOD).await;
    let rate = stage.datadog.rate(by, PERIOD);
    // Few calls are no merit of who has no answers.
    for (index, metric) in [(0, "avg"), (OBJECTS - 1, "sum")] {
        let metric = format!("s0-datadog-{metric}-sandbox-flat");
        let value = stage.value(&name(index), &metric).await?;
        ensure!(value == "12", "{} is {value}", name(index));
    }
    ensure!(stage.failures().await? == 0.0, "the scaler has failed some requests");
    for index in 0..OBJECTS {
        stage.delete("ScaledObject", &name(index)).await?;
        stage.delete("Deployment", &name(index)).await?;
    }
    let left = async || {
        let left = stage.get("ScaledObject", "").await?;
        Ok(left["items"].as_array().map_or(0, Vec::len))
    };
    until("gone: all objects", seconds(120), left, |left| *left == 0).await?;
    Ok(rate)
}
