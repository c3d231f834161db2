//! A DatadogMetric in place of a query: from a Cluster Agent over HTTPS.

use std::fs;

use anyhow::ensure;
use serde_json::json;

use super::{Outcome, QUICK, Scene};
use crate::wait::{always, seconds};

/// What the sandbox's Cluster Agent takes.
const TOKEN: &str = "sandbox-token";

/// The scaler's own agent, which nobody vouches for, as is usual.
pub(super) async fn https(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    let token = stage.logs.join("agent.token");
    fs::write(&token, TOKEN)?;
    let flags = [
        format!("--cluster-agent-url={}", stage.datadog.agent_url),
        format!("--cluster-agent-token-file={}", token.display()),
        "--cluster-agent-unsafe-ssl".into(),
        "--cluster-agent-source=http".into(),
    ];
    let flags: Vec<&str> = QUICK.into_iter().chain(flags.iter().map(String::as_str)).collect();
    stage.start_scaler(&flags).await?;
    stage.datadog.set(2.0).await?;
    stage.deployment("app", 0).await?;
    let trigger = stage.agent_trigger("dial", &json!({"activationTargetValue": "2"}));
    stage.scaled_object("app", &[trigger], &json!({})).await?;
    stage.has_condition("app", "Ready", "True").await?;
    let replicas = async || stage.replicas("app").await;
    always("0 replicas", seconds(5), replicas, |seen| *seen == 0).await?;
    let mut seen = Vec::new();
    for (value, expected) in [(3.0, 1), (24.0, 5), (1.0, 0), (12.0, 3)] {
        stage.datadog.set(value).await?;
        seen.push(stage.has_replicas("app", expected).await?);
    }

    stage.sleeps_late("app").await?;
    stage.datadog.fault("500").await?;
    stage.datadog.set(0.0).await?;
    stage.has_condition("app", "Ready", "False").await?;
    stage.has_event("app", "the Cluster Agent at 127.0.0.1").await?;
    always("frozen at 3 replicas", seconds(15), replicas, |seen| *seen == 3).await?;
    stage.datadog.set(24.0).await?;
    stage.datadog.mend().await?;
    let recovered = stage.has_replicas("app", 5).await?;
    stage.has_condition("app", "Ready", "True").await?;

    let calls = stage.datadog.calls().len();
    ensure!(calls == 0, "{calls} requests to Datadog itself");
    Ok(format!("{}; frozen at 3; recovered to {recovered}", seen.join(", ")))
}
