//! A DatadogMetric in place of a query: from a Cluster Agent over HTTPS, or as it is
//! written into Kubernetes.

use std::{fs, time::Duration};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Outcome, QUICK, Scene, examples};
use crate::{
    api::documents,
    cluster::{INSTALLED, ROUNDS},
    cluster_agent::{ANNOTATION, ClusterAgent},
    stage::{Stage, repository},
    wait::{always, seconds, until},
};

/// The scaler looks each minute for what it could not watch; a round of KEDA comes on top.
const LOOKED_FOR: Duration = seconds(90);
/// A watch that has begun is allowed until it ends, which is after two minutes.
const WATCH: Duration = seconds(150);
/// Of a poll that would come too late.
const POLLING_SECONDS: u64 = 300;

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

/// No agent to ask and no token: what Kubernetes tells is all that there is.
pub(super) async fn watch(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    let agent = ClusterAgent::start(&scene.cluster.api, &stage.namespace, &stage.logs)?;
    // Rarely read, so that what is seen soon has come by the watch.
    stage.start_scaler(&["--refresh=1m", "--hold=8s"]).await?;
    let seen = [
        begins(&stage, &agent).await?,
        pushes(&stage, &agent).await?,
        is_taken_away(&stage, &agent).await?,
        is_forbidden(&stage, &agent).await?,
    ];
    stage.end_scaler().await?;
    stage.start_scaler(&QUICK).await?;
    let failing = fails(&stage, &agent).await?;
    let inactive = is_inactive(&stage, &agent).await?;
    let calls = stage.datadog.calls().len();
    ensure!(calls == 0, "{calls} requests to Datadog itself");
    Ok(format!("{}; {failing}; {inactive}", seen.join("; ")))
}

/// The scaler runs before Kubernetes knows DatadogMetrics.
async fn begins(stage: &Stage, agent: &ClusterAgent) -> Outcome {
    scaled_object(stage, "app", "orders", &json!({})).await?;
    stage.has_event("app", "Kubernetes knows no DatadogMetrics").await?;
    agent.define().await?;
    examples::are_sound(&stage.cluster, |kind| kind == "DatadogMetric").await?;
    agent.create("orders", true).await?;
    agent.set("orders", 3.0).await?;
    let replicas = async || stage.replicas("app").await;
    let found = until("1 replica", LOOKED_FOR, replicas, |seen| *seen == 1).await?.as_secs();
    let mut seen = Vec::new();
    for (value, expected) in [(24.0, 5), (0.0, 0), (12.0, 3)] {
        agent.set("orders", value).await?;
        seen.push(stage.has_replicas("app", expected).await?);
    }
    stage.sleeps_late("app").await?;
    Ok(format!("defined while it ran: 1 after {found} s, {}", seen.join(", ")))
}

async fn pushes(stage: &Stage, agent: &ClusterAgent) -> Outcome {
    agent.create("pushed", true).await?;
    agent.set("pushed", 0.0).await?;
    stage.deployment("pushed", 0).await?;
    let mut trigger = stage.agent_trigger("pushed", &json!({}));
    trigger["type"] = "external-push".into();
    let rare = json!({"pollingInterval": POLLING_SECONDS});
    stage.scaled_object("pushed", &[trigger], &rare).await?;
    let open = async || stage.metric("open_streams", &["StreamIsActive"]).await;
    until("open: the stream", ROUNDS, open, |open| *open >= 1.0).await?;
    // KEDA drops what is pushed before it has built the HPA.
    stage.has_condition("pushed", "Ready", "True").await?;
    let hpa = async || stage.hpa("pushed").await;
    until("there: the HPA", ROUNDS, hpa, |hpa| !hpa.is_null()).await?;
    sleep(seconds(3)).await;

    agent.set("pushed", 12.0).await?;
    let replicas = async || stage.replicas("pushed").await;
    let took = until("active by push", seconds(5), replicas, |seen| *seen > 0).await?;
    stage.has_replicas("pushed", 3).await?;
    Ok(format!("active by push after {:.1} s", took.as_secs_f64()))
}

/// The definition goes, and all DatadogMetrics with it, and comes again.
async fn is_taken_away(stage: &Stage, agent: &ClusterAgent) -> Outcome {
    let told = || anyhow::Ok(fs::read_to_string(stage.logs.join("scaler.log"))?);
    // An API server that has just begun may say that it is not ready, with HTTP 429.
    let before = told()?.len();
    agent.undefine().await?;
    let replicas = async || stage.replicas("app").await;
    always("as it was", seconds(15), replicas, |seen| *seen == 3).await?;
    agent.define().await?;
    for name in ["orders", "pushed"] {
        agent.create(name, true).await?;
    }
    agent.set("orders", 24.0).await?;
    let took = until("5 replicas", LOOKED_FOR, replicas, |seen| *seen == 5).await?;
    let log = told()?.split_off(before);
    ensure!(!log.contains("Kubernetes does not tell"), "it is said that Kubernetes was away");
    Ok(format!("defined anew: recovered after {} s", took.as_secs()))
}

/// The rule of `deploy/install.yaml` goes while the scaler watches, and comes again.
async fn is_forbidden(stage: &Stage, agent: &ClusterAgent) -> Outcome {
    let api = &stage.cluster.api;
    let rbac = repository(INSTALLED);
    let roles = documents(&rbac)?.into_iter().filter(|object| object["kind"] == "ClusterRole");
    for mut role in roles {
        if let Some(rules) = role["rules"].as_array_mut() {
            rules.retain(|rule| rule["apiGroups"] != json!(["datadoghq.com"]));
        }
        api.apply(&role).await?;
    }
    let told = async || Ok(fs::read_to_string(stage.logs.join("scaler.log"))?);
    let said = |log: &String| log.matches("a watch is forbidden").count();
    let noticed = until("said", WATCH, told, |log| said(log) == 1).await?.as_secs();
    let replicas = async || stage.replicas("app").await;
    // It is tried again meanwhile.
    always("frozen at 5 replicas", seconds(65), replicas, |seen| *seen == 5).await?;
    let log = told().await?;
    ensure!(said(&log) == 1, "it is said {} times what is forbidden", said(&log));
    ensure!(log.contains("to list and watch datadogmetrics"), "but not what");

    api.apply_file(&rbac).await?;
    agent.set("orders", 12.0).await?;
    let took = until("3 replicas", LOOKED_FOR, replicas, |seen| *seen == 3).await?.as_secs();
    Ok(format!("forbidden: said once after {noticed} s; allowed: recovered after {took} s"))
}

/// The agent gets nothing from Datadog, which is an error; or no series, which is none.
async fn fails(stage: &Stage, agent: &ClusterAgent) -> Outcome {
    let filled = json!({"metricUnavailableValue": "35"});
    scaled_object(stage, "bare", "orders", &json!({})).await?;
    scaled_object(stage, "filled", "orders", &filled).await?;
    for name in ["bare", "filled"] {
        stage.has_replicas(name, 3).await?;
        stage.sleeps_late(name).await?;
    }
    let replicas = async || Ok((stage.replicas("bare").await?, stage.replicas("filled").await?));

    let error = "Datadog API call error (all queries), error: API error 500";
    agent.fail("orders", error).await?;
    let ready = async || Ok(stage.condition("bare", "Ready").await?.0);
    always("held", seconds(5), ready, |ready| ready == "True").await?;
    stage.has_condition("bare", "Ready", "False").await?;
    stage.has_event("bare", error).await?;
    always("frozen at 3 replicas", seconds(10), replicas, |seen| *seen == (3, 3)).await?;
    agent.set("orders", 24.0).await?;
    stage.has_replicas("bare", 5).await?;
    stage.has_replicas("filled", 5).await?;

    let error = "Processing data from API failed, reason: no serie was found for this query in API \
                 Response, check Cluster Agent logs for QueryIndex errors";
    agent.fail("orders", error).await?;
    let filled = stage.has_replicas("filled", 7).await?;
    stage.has_condition("bare", "Ready", "False").await?;
    always("5 and 7 replicas", seconds(5), replicas, |seen| *seen == (5, 7)).await?;
    agent.set("orders", 0.0).await?;
    stage.has_replicas("bare", 1).await?;
    stage.has_replicas("filled", 1).await?;
    Ok(format!("an error: held, then frozen at 3; no data: frozen at 5, or filled to {filled}"))
}

/// The annotation is not there; then it is.
async fn is_inactive(stage: &Stage, agent: &ClusterAgent) -> Outcome {
    agent.create("idle", false).await?;
    agent.set("idle", 12.0).await?;
    scaled_object(stage, "idle", "idle", &json!({})).await?;
    stage.has_event("idle", ANNOTATION).await?;
    agent.create("idle", true).await?;
    let active = stage.has_replicas("idle", 3).await?;
    Ok(format!("without the annotation, an event names it; with it {active}"))
}

/// With a Deployment, and a trigger of this DatadogMetric.
async fn scaled_object(
    stage: &Stage,
    name: &str,
    metric: &str,
    more: &Value,
) -> anyhow::Result<()> {
    stage.deployment(name, 0).await?;
    let trigger = stage.agent_trigger(metric, more);
    stage.scaled_object(name, &[trigger], &json!({})).await
}
