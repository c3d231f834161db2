//! `deploy/examples`: what Kubernetes, with the definitions of KEDA, says to each of them as it is;
//! and what answers when in the one that is about that. Other scenarios apply others.

use std::fs;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{Outcome, QUICK, Scene};
use crate::{
    api::documents,
    cluster::{Cluster, ROUNDS},
    stage::{DIAL, hastened, repository},
    wait::{always, seconds, until},
};

/// Places in an object where a field can be misspelt.
const PLACES: [&str; 6] = [
    "",
    "/rules/0",
    "/spec",
    "/spec/secretTargetRef/0",
    "/spec/triggers/0",
    "/spec/jobTargetRef/template/spec/containers/0",
];

pub(super) async fn dry_run(scene: Scene) -> Outcome {
    // What defines a DatadogMetric comes and goes in another scenario, which looks at it then.
    are_sound(&scene.cluster, |kind| kind != "DatadogMetric").await
}

/// Kubernetes would take the objects of this kind, of all examples, and none with a field that it
/// does not know.
pub(super) async fn are_sound(cluster: &Cluster, is_wanted: impl Fn(&str) -> bool) -> Outcome {
    let (mut taken, mut refused) = (0, 0);
    for file in fs::read_dir(repository("deploy/examples"))? {
        let file = file?.path();
        for object in documents(&file)? {
            if !object["kind"].as_str().is_some_and(&is_wanted) {
                continue;
            }
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                cluster.namespace(namespace).await?;
            }
            let told = cluster.api.dry_run(&object).await;
            told.with_context(|| file.display().to_string())?;
            taken += 1;
            for place in PLACES {
                let mut object = object.clone();
                let fields = object.pointer_mut(place).and_then(Value::as_object_mut);
                let Some(fields) = fields else { continue };
                fields.insert("misspelt".into(), "any".into());
                let Err(error) = cluster.api.dry_run(&object).await else {
                    bail!("{}: a field of no meaning is taken, in {place}", file.display());
                };
                let error = format!("{error:#}");
                ensure!(error.contains("misspelt"), "{}: {error}", file.display());
                refused += 1;
            }
        }
    }
    ensure!(taken > 0, "there are none");
    Ok(format!("{taken} objects are taken, {refused} with a misspelt field refused"))
}

/// As `fallback.yaml` says: no data, then an outage, from below and from above what KEDA falls
/// back to.
pub(super) async fn who_answers(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(600.0).await?;
    let mut object = hastened(stage.example("fallback.yaml", &[DIAL]).await?);
    object["spec"]["triggers"][0]["metadata"]["holdLastValue"] = "8".into();
    stage.cluster.api.apply(&object).await?;
    stage.has_replicas("search", 4).await?;

    stage.datadog.fault("empty").await?;
    let filled = stage.has_replicas("search", 2).await?;
    stage.has_condition("search", "Fallback", "False").await?;
    stage.datadog.mend().await?;

    let mut seen = Vec::new();
    for (value, before, expected) in [(600.0, 4, 6), (1_200.0, 8, 8)] {
        stage.datadog.set(value).await?;
        stage.has_replicas("search", before).await?;
        stage.datadog.fault("504").await?;
        // What there would be if an outage were taken for a value, or for no data.
        stage.datadog.set(0.0).await?;
        let fallback = async || Ok(stage.condition("search", "Fallback").await?.0);
        always("held", seconds(5), fallback, |status| status != "True").await?;
        stage.has_condition("search", "Fallback", "True").await?;
        stage.has_replicas("search", expected).await?;
        let replicas = async || stage.replicas("search").await;
        always("as it fell back", seconds(8), replicas, |seen| *seen == expected).await?;
        seen.push(format!("{before} to {expected}"));
        stage.datadog.mend().await?;
        until("answered again", ROUNDS, fallback, |status| status == "False").await?;
    }
    Ok(format!("no data: {filled}; an outage: {}", seen.join(", ")))
}
