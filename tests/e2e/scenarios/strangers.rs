//! Who reaches the port and is not KEDA.

use anyhow::{Context as _, ensure};
use keda_datadog_scaler::proto::{
    GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
};
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};

use super::{Outcome, QUICK, Scene};
use crate::stage::{FLAT, Stage};

const DENIED: Result<f64, Code> = Err(Code::PermissionDenied);

/// Only what a trigger in Kubernetes asks for is answered.
pub(super) async fn strangers(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    stage.start_scaler(&QUICK).await?;
    stage.datadog.set(12.0).await?;
    stage.deployment("app", 0).await?;
    let trigger = stage.trigger(&json!({}));
    let (namespace, metadata) = (stage.namespace.clone(), trigger["metadata"].clone());
    stage.scaled_object("app", &[trigger], &json!({})).await?;
    stage.has_replicas("app", 3).await?;

    let own = ("app", namespace.as_str(), metadata.clone());
    let mut narrower = metadata.clone();
    narrower["query"] = FLAT.into();
    let requests = [
        ("KEDA's own", own, Ok(12.0)),
        ("of an object that is not there", ("nobody", &namespace, metadata.clone()), DENIED),
        ("of an object of another namespace", ("app", "keda", metadata), DENIED),
        ("of another query", ("app", &namespace, narrower), DENIED),
    ];
    for (what, (name, namespace, metadata), expected) in requests {
        let value = ask(&stage, name, namespace, metadata).await?;
        ensure!(value == expected, "a request {what} comes to {value:?}");
    }
    Ok("a request that no trigger makes is denied".to_owned())
}

/// What a scaler answers to who asks for the value of a trigger, as KEDA does.
pub(super) async fn ask(
    stage: &Stage,
    name: &str,
    namespace: &str,
    metadata: Value,
) -> anyhow::Result<Result<f64, Code>> {
    let channel = Channel::from_shared(format!("http://{}", stage.scaler_address()))?;
    let object = ScaledObjectRef {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scaler_metadata: serde_json::from_value(metadata)?,
    };
    let metric_name = String::new();
    let request = GetMetricsRequest { scaled_object_ref: Some(object), metric_name };
    let answer = ExternalScalerClient::new(channel.connect().await?).get_metrics(request).await;
    Ok(match answer {
        Ok(answer) => {
            let values = answer.into_inner().metric_values;
            Ok(values.first().context("there is no value")?.metric_value_float)
        }
        Err(status) => Err(status.code()),
    })
}
