//! Plays KEDA against a running scaler: the same RPCs in the same order with the same metadata
//! (`GetMetricsAndActivity`, `pkg/scalers/external_scaler.go`, and its callers).

use std::{collections::HashMap, future::Future, time::Duration};

use tokio::time::{Instant, timeout};
use tonic::{Code, Response, Status, transport::Channel};

use super::{
    examine::metadata,
    manifest::{Manifest, Written},
    report::{Answer, Call, Outcome},
};
use crate::{
    proto::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, MetricSpec, ScaledObjectRef,
        external_scaler_client::ExternalScalerClient,
    },
    scaler::code_name,
    words::shorten,
};

mod connection;

pub use connection::Tls;
pub(super) use connection::{Pool, Security, Unconnected};

/// KEDA's scale loop would wait for ever; `check` does not.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most characters of a message or a metric's name.
const MAX_SHOWN: usize = 1_000;

/// One trigger, towards one scaler.
#[derive(Clone)]
pub(super) struct Keda {
    pub(super) client: ExternalScalerClient<Channel>,
    pub(super) object: ScaledObjectRef,
}

/// What KEDA sends of a trigger: never what it reads from a TriggerAuthentication, and of keys
/// that end in `FromEnv` the value of a variable that is not known here.
pub(super) fn reference(manifest: &Manifest, written: &Written, address: &str) -> ScaledObjectRef {
    let mut scaler_metadata: HashMap<String, String> =
        metadata(written).into_iter().filter(|(key, _)| !key.ends_with("FromEnv")).collect();
    scaler_metadata.entry("scalerAddress".to_owned()).or_insert_with(|| address.to_owned());
    ScaledObjectRef {
        name: manifest.name.clone(),
        namespace: manifest.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        scaler_metadata,
    }
}

impl Keda {
    /// What the scale loop does at each poll: GetMetricSpec, then GetMetrics and IsActive for the
    /// metric. What fails is repeated at once, and once.
    pub(super) async fn poll(&mut self) -> (Vec<Call>, Outcome) {
        let mut calls = Vec::new();
        let spec = match self.spec(&mut calls).await {
            Err(_) => self.spec(&mut calls).await,
            spec => spec,
        };
        let spec = match spec {
            Ok(spec) => spec,
            Err(failed) => return (calls, failed),
        };
        let measured = match self.measure(&spec, &mut calls).await {
            Err(_) => self.measure(&spec, &mut calls).await,
            measured => measured,
        };
        let target = target(&spec);
        let outcome = measured.map_or_else(
            |failed| failed,
            |(value, active)| Outcome::Value { value, active, target },
        );
        (calls, outcome)
    }

    async fn spec(&mut self, calls: &mut Vec<Call>) -> Result<MetricSpec, Outcome> {
        let asked = self.client.get_metric_spec(self.object.clone());
        call("GetMetricSpec", calls, asked, |response: GetMetricSpecResponse| {
            // KEDA would ask for each of several; there should be one.
            let spec = response.metric_specs.into_iter().next();
            let spec = spec.ok_or_else(|| "got empty metric spec".to_owned())?;
            let metric = shorten(&spec.metric_name, MAX_SHOWN);
            Ok((Answer::Spec { metric, target: target(&spec) }, spec))
        })
        .await
    }

    async fn measure(
        &mut self,
        spec: &MetricSpec,
        calls: &mut Vec<Call>,
    ) -> Result<(f64, bool), Outcome> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(self.object.clone()),
            metric_name: spec.metric_name.clone(),
        };
        let asked = self.client.get_metrics(request);
        let value = call("GetMetrics", calls, asked, |response: GetMetricsResponse| {
            if response.metric_values.is_empty() {
                return Err("there is no value in the answer".to_owned());
            }
            // The HPA adds up what it gets.
            let value = response
                .metric_values
                .iter()
                .map(|v| float_or_int(v.metric_value_float, v.metric_value))
                .sum();
            Ok((Answer::Value { value }, value))
        })
        .await?;
        let asked = self.client.is_active(self.object.clone());
        let active = call("IsActive", calls, asked, |response| {
            Ok((Answer::Active { active: response.result }, response.result))
        })
        .await?;
        Ok((value, active))
    }
}

/// Waits for the answer, and notes it with the time it took.
async fn call<R, T>(
    rpc: &'static str,
    calls: &mut Vec<Call>,
    asked: impl Future<Output = Result<Response<R>, Status>>,
    understand: impl FnOnce(R) -> Result<(Answer, T), String>,
) -> Result<T, Outcome> {
    let started_at = Instant::now();
    let answered = timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let text = format!("no answer within {PATIENCE:?}; KEDA would wait on");
        Err(Status::deadline_exceeded(text))
    });
    let took_ms = started_at.elapsed().as_secs_f64() * 1_000.0;
    let failed = match answered {
        Ok(response) => match understand(response.into_inner()) {
            Ok((answer, understood)) => {
                calls.push(Call { rpc, code: code_name(Code::Ok), answer, took_ms });
                return Ok(understood);
            }
            Err(message) => (code_name(Code::Ok), message),
        },
        Err(status) => (code_name(status.code()), shorten(status.message(), MAX_SHOWN)),
    };
    let (code, message) = failed;
    calls.push(Call { rpc, code, answer: Answer::Failed { message: message.clone() }, took_ms });
    Err(Outcome::Failed { code, message })
}

fn target(spec: &MetricSpec) -> f64 {
    float_or_int(spec.target_size_float, spec.target_size)
}

/// As KEDA reads a pair of the two.
#[expect(clippy::cast_precision_loss, reason = "KEDA sends it on as a float")]
fn float_or_int(float: f64, int: i64) -> f64 {
    if float > 0.0 { float } else { int as f64 }
}
