//! KEDA's built-in `datadog` scaler and ours on the same Datadog.

use serde_json::json;

use super::{Outcome, QUICK, Scene};
use crate::{
    cluster::ROUNDS,
    stage::{API_KEY, DIAL, DIAL_METRIC},
    wait::until,
};

/// A trigger that moves: the HPA has the same metric, target, value and replicas throughout a rise
/// and a fall.
pub(super) async fn metrics(scene: Scene) -> Outcome {
    let mut stage = scene.stage_at("datadoghq.com").await?;
    stage.start_scaler(&QUICK).await?;
    let keys = json!({"apiKey": API_KEY, "appKey": "app", "datadogSite": stage.datadog.site});
    stage.secret("datadog-keys", &keys).await?;
    stage.may_read_secret("datadog-keys").await?;
    stage.authentication("datadog").await?;
    let metadata = json!({
        "query": DIAL, "queryValue": "4.5", "activationQueryValue": "1", "age": "60",
    });
    let reference = json!({"name": "datadog"});
    let built_in = json!({
        "type": "datadog", "metadata": metadata, "authenticationRef": reference,
    });
    let mut moved = built_in.clone();
    moved["type"] = "external".into();
    moved["metadata"]["scalerAddress"] = stage.scaler_address().into();
    for (name, trigger) in [("built-in", built_in), ("moved", moved)] {
        stage.deployment(name, 0).await?;
        stage.scaled_object(name, &[trigger], &json!({})).await?;
    }

    let mut seen = Vec::new();
    for value in [0.0, 3.0, 9.7, 17.5, 31.0, 38.123, 20.0, 9.0, 2.0, 0.5] {
        stage.datadog.set(value).await?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of replicas"
        )]
        let expected = if value > 1.0 { (value / 4.5).ceil().max(1.0) as u64 } else { 0 };
        let both = async || {
            let replicas = (stage.replicas("built-in").await?, stage.replicas("moved").await?);
            let metrics = [
                stage.hpa_metric("built-in", DIAL_METRIC).await?,
                stage.hpa_metric("moved", DIAL_METRIC).await?,
            ];
            Ok((replicas, metrics))
        };
        let what = format!("equal at {value}, with {expected} replicas");
        until(&what, ROUNDS, both, |(replicas, metrics)| {
            let [(value, target), moved] = metrics;
            // At 0 replicas the HPA looks at nothing.
            let equal = expected == 0 || (!value.is_empty() && *value == moved.0);
            *replicas == (expected, expected) && equal && [target, &moved.1] == ["4.500"; 2]
        })
        .await?;
        let value = stage.hpa_metric("moved", DIAL_METRIC).await?.0;
        seen.push(format!("{expected} ({value})"));
    }
    Ok(seen.join(", "))
}
