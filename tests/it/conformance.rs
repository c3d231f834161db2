//! Metadata that KEDA's built-in scaler accepts or refuses, and what we make of it. The cases are
//! those of KEDA's own unit tests (`pkg/scalers/datadog_scaler_test.go`, v2.20.2), with other
//! values; `differs` says why we do not agree.

use std::collections::HashMap;

use keda_datadog_scaler::proto::ScaledObjectRef;
use serde_json::Value;
use tonic::Request;

use crate::{engine::Engine, harness::repository};

#[tokio::test]
async fn metadata_means_what_it_means_to_keda() {
    use keda_datadog_scaler::proto::external_scaler_server::ExternalScaler as _;

    let engine = Engine::start(|_, _| Ok(None)).await;
    let cases = std::fs::read(repository().join("tests/data/keda_cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    let mut different = 0;
    for case in &cases {
        let scaler_metadata: HashMap<String, String> =
            serde_json::from_value(case["metadata"].clone()).unwrap();
        let object =
            ScaledObjectRef { name: "shop".into(), namespace: "demo".into(), scaler_metadata };
        let spec = engine.scaler.get_metric_spec(Request::new(object)).await;
        let ours = spec.map(|response| response.into_inner().metric_specs.remove(0));
        let agrees = match (&case["keda"], &ours) {
            (Value::String(keda), ours) => (keda == "accepts") == ours.is_ok(),
            (keda, Ok(ours)) => {
                let target = format!("{:.3}", ours.target_size_float);
                keda["metric"] == *ours.metric_name && keda["target"] == *target
            }
            (_, Err(_)) => false,
        };
        let is_deliberate = case["differs"].is_string();
        assert_ne!(agrees, is_deliberate, "{case}\nis {ours:?}");
        different += usize::from(is_deliberate);
    }
    assert_eq!((cases.len(), different), (67, 4));
}
