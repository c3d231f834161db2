//! TLS and client certificates as the README tells, with its own files.

use std::fs;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Outcome, QUICK, Scene};
use crate::{
    api::documents,
    certificates::{Authority, Pair},
    stage::{DIAL, Stage, repository, secret},
    wait::{always, seconds},
};

/// What `deploy/examples/tls.yaml` calls it.
const CLIENT_SECRET: &str = "keda-datadog-scaler-client";

pub(super) async fn tls(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    let example = documents(&repository("deploy/examples/tls.yaml"))?;
    let trigger_of_example = trigger_of(&example)?;
    let address = trigger_of_example["metadata"]["scalerAddress"].as_str().unwrap_or_default();
    let (host, _) = address.split_once(':').context("an address without a port")?;
    // KEDA's operator takes the name to its proxy, as it takes it to a DNS elsewhere.
    stage.cluster.proxy.lead(address, stage.scaler_address().parse()?);

    let mounted = stage.logs.join("scaler-tls");
    let (cert, key) = stage.cluster.authority.server(&[host])?.write(&mounted)?;
    let clients = Authority::new("those who may ask")?;
    let client_ca = mounted.join("ca.crt");
    fs::write(&client_ca, clients.pem())?;
    let flags = [
        format!("--tls-cert={}", cert.display()),
        format!("--tls-key={}", key.display()),
        format!("--tls-client-ca={}", client_ca.display()),
    ];
    let flags: Vec<&str> = QUICK.into_iter().chain(flags.iter().map(String::as_str)).collect();
    stage.start_scaler(&flags).await?;

    stage.datadog.set(12.0).await?;
    show(&stage, &clients.client("keda", None)?).await?;
    for object in example.iter().filter(|object| object["kind"] != "ScaledObject") {
        stage.cluster.api.apply(object).await?;
    }
    let mut trigger = trigger_of_example;
    trigger["metadata"]["query"] = DIAL.into();
    trigger["metadata"]["queryValue"] = "5".into();
    stage.deployment("app", 0).await?;
    stage.scaled_object("app", &[trigger.clone()], &json!({})).await?;
    let with_certificate = stage.has_replicas("app", 3).await?;

    // KEDA has no way to change its mind about a connection: another object, another certificate.
    let strangers = Authority::new("strangers")?;
    show(&stage, &strangers.client("keda", None)?).await?;
    stage.deployment("stranger", 0).await?;
    stage.scaled_object("stranger", &[trigger.clone()], &json!({})).await?;
    stage.has_condition("stranger", "Ready", "False").await?;
    let replicas = async || stage.replicas("stranger").await;
    always("shut out", seconds(5), replicas, |seen| *seen == 0).await?;
    show(&stage, &clients.client("keda", None)?).await?;
    // KEDA reads a Secret anew when a trigger fails, but not that of an object without an HPA.
    stage.patch("ScaledObject", "stranger", &json!({"spec": {"maxReplicaCount": 9}})).await?;
    let let_in = stage.has_replicas("stranger", 3).await?;

    // Plaintext, where TLS is spoken.
    let mut plain = trigger;
    plain.as_object_mut().context("a trigger is no object")?.remove("authenticationRef");
    if let Some(metadata) = plain["metadata"].as_object_mut() {
        metadata.remove("enableTLS");
    }
    stage.deployment("plain", 0).await?;
    stage.scaled_object("plain", &[plain], &json!({})).await?;
    stage.has_condition("plain", "Ready", "False").await?;
    let plain = async || stage.replicas("plain").await;
    always("shut out", seconds(5), plain, |seen| *seen == 0).await?;
    Ok(format!(
        "with a certificate {with_certificate}; a stranger's and plaintext nothing; then {let_in}"
    ))
}

fn trigger_of(example: &[Value]) -> anyhow::Result<Value> {
    let objects = example.iter().find(|object| object["kind"] == "ScaledObject");
    let object = objects.context("the example has no ScaledObject")?;
    Ok(object["spec"]["triggers"][0].clone())
}

/// Makes the Secret of the client as the README does.
async fn show(stage: &Stage, client: &Pair) -> anyhow::Result<()> {
    let data = json!({
        "tls.crt": client.cert, "tls.key": client.key, "ca.crt": stage.cluster.authority.pem(),
    });
    secret(&stage.cluster, "keda", CLIENT_SECRET, &data).await
}
