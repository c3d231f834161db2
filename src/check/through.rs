//! Plays KEDA against a running scaler: the same RPCs in the same order with the same metadata
//! (`pkg/scalers/external_scaler.go` and `pkg/scaling/cache/scalers_cache.go`).

use std::{error::Error as _, future::Future, time::Duration};

use tokio::time::{Instant, timeout};
use tonic::{Code, Response, Status, transport::Channel};

use super::{
    MAX_SHOWN,
    report::{Answer, Call, Failed, Outcome},
};
use crate::{
    proto::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, MetricSpec, MetricValue,
        ScaledObjectRef, external_scaler_client::ExternalScalerClient,
    },
    scaler::code_name,
    trigger::Trigger,
    words::shorten,
};

mod connection;

pub use connection::Tls;
pub(super) use connection::{Pool, Security, Unconnected};

/// KEDA's scale loop would wait for ever; `check` does not.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const NO_VALUE: &str = "there is no value in the answer";

/// Why an RPC gives nothing.
enum Unanswered {
    Failed(Failed),
    /// KEDA would not ask again, since it waits.
    Endless(Failed),
}

/// One trigger, towards one scaler.
#[derive(Clone)]
pub(super) struct Keda {
    pub(super) client: ExternalScalerClient<Channel>,
    pub(super) object: ScaledObjectRef,
}

/// What the scale loop sees at one poll.
pub(super) struct Poll {
    pub(super) calls: Vec<Call>,
    pub(super) outcome: Outcome,
    /// What is odd in the answers, in words.
    pub(super) odd: Vec<String>,
}

impl Keda {
    /// `object` is what KEDA would send, but for keys that end in `FromEnv`: KEDA sends the values
    /// of the variables, which are not known here, and leaves out those that have none.
    pub(super) fn new(channel: Channel, mut object: ScaledObjectRef, address: &str) -> Self {
        object.scaler_metadata.retain(|key, _| !key.ends_with("FromEnv"));
        object.scaler_metadata.entry("scalerAddress".into()).or_insert_with(|| address.into());
        Self { client: ExternalScalerClient::new(channel), object }
    }

    /// GetMetricSpec, then GetMetrics and IsActive for the metric. What fails is repeated at once,
    /// and once.
    pub(super) async fn poll(&mut self) -> Poll {
        let (mut calls, mut odd) = (Vec::new(), Vec::new());
        let outcome = match self.ask(&mut calls, &mut odd).await {
            Ok(outcome) => outcome,
            Err(Unanswered::Failed(failed) | Unanswered::Endless(failed)) => {
                Outcome::Failed(failed)
            }
        };
        Poll { calls, outcome, odd }
    }

    async fn ask(
        &mut self,
        calls: &mut Vec<Call>,
        odd: &mut Vec<String>,
    ) -> Result<Outcome, Unanswered> {
        let specs = match self.specs(calls).await {
            Err(Unanswered::Failed(_)) => self.specs(calls).await?,
            specs => specs?,
        };
        if specs.len() > 1 {
            odd.push(format!(
                "there are {} metrics; KEDA asks for each, `check` for one",
                specs.len()
            ));
        }
        let spec = &specs[0];
        let target = spec.target();
        if target < Trigger::MIN_TARGET {
            let least = Trigger::MIN_TARGET;
            odd.push(format!("the target is {target}; the HPA refuses what is less than {least}"));
        }
        let (values, active) = match self.measure(spec, calls).await {
            Err(Unanswered::Failed(_)) => self.measure(spec, calls).await?,
            measured => measured?,
        };
        if values.iter().any(|value| !value.metric_value_float.is_finite()) {
            odd.push("the value is not finite; KEDA makes 0 or the whole number of it".to_owned());
        }
        let numbers = values.iter().map(|v| number(v.metric_value_float, v.metric_value));
        match values.len() {
            // For KEDA that is no error; it asks no second time.
            0 => {
                let (code, message) = (code_name(Code::Ok), NO_VALUE.to_owned());
                return Err(Unanswered::Failed(Failed { rpc: "GetMetrics", code, message }));
            }
            1 => {}
            several => {
                odd.push(format!("GetMetrics answers with {several} values; the HPA adds them up"));
            }
        }
        Ok(Outcome::Answered { value: numbers.sum(), active, target })
    }

    /// At least one.
    async fn specs(&mut self, calls: &mut Vec<Call>) -> Result<Vec<MetricSpec>, Unanswered> {
        let asked = self.client.get_metric_spec(self.object.clone());
        call("GetMetricSpec", calls, asked, |response: GetMetricSpecResponse| {
            let first = response.metric_specs.first().ok_or("there is no metric in the answer")?;
            let metric = shorten(&first.metric_name, MAX_SHOWN);
            Ok((Answer::Spec { metric, target: first.target() }, response.metric_specs))
        })
        .await
    }

    /// The values, and whether it is active.
    async fn measure(
        &mut self,
        spec: &MetricSpec,
        calls: &mut Vec<Call>,
    ) -> Result<(Vec<MetricValue>, bool), Unanswered> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(self.object.clone()),
            metric_name: spec.metric_name.clone(),
        };
        let asked = self.client.get_metrics(request);
        let values = call("GetMetrics", calls, asked, |response: GetMetricsResponse| {
            let values = response.metric_values;
            let numbers = values.iter().map(|v| number(v.metric_value_float, v.metric_value));
            let answer = if values.is_empty() {
                Answer::Failed { message: NO_VALUE.to_owned() }
            } else {
                Answer::Value { value: numbers.sum() }
            };
            Ok((answer, values))
        })
        .await?;
        let asked = self.client.is_active(self.object.clone());
        let active = call("IsActive", calls, asked, |response| {
            Ok((Answer::Active { active: response.result }, response.result))
        })
        .await?;
        Ok((values, active))
    }
}

/// Waits for the answer, and notes it with the time it took.
async fn call<R, T>(
    rpc: &'static str,
    calls: &mut Vec<Call>,
    asked: impl Future<Output = Result<Response<R>, Status>>,
    understand: impl FnOnce(R) -> Result<(Answer, T), &'static str>,
) -> Result<T, Unanswered> {
    let started_at = Instant::now();
    let answered = timeout(PATIENCE, asked).await;
    let is_endless = answered.is_err();
    let answered = answered.unwrap_or_else(|_| {
        let text = format!("no answer within {PATIENCE:?}; KEDA waits on");
        Err(Status::deadline_exceeded(text))
    });
    let took_ms = started_at.elapsed().as_secs_f64() * 1_000.0;
    let (code, message) = match answered.map(|response| understand(response.into_inner())) {
        Ok(Ok((answer, understood))) => {
            calls.push(Call { rpc, code: code_name(Code::Ok), answer, took_ms });
            return Ok(understood);
        }
        Ok(Err(message)) => (Code::Ok, message.to_owned()),
        Err(status) => (status.code(), in_words(&status)),
    };
    let code = code_name(code);
    calls.push(Call { rpc, code, answer: Answer::Failed { message: message.clone() }, took_ms });
    let failed = Failed { rpc, code, message };
    Err(if is_endless { Unanswered::Endless(failed) } else { Unanswered::Failed(failed) })
}

/// The scaler's own words; or, where the connection failed, the innermost cause of that.
pub(super) fn in_words(status: &Status) -> String {
    let cause = status.source().map(|source| connection::cause(source).to_string());
    shorten(&cause.unwrap_or_else(|| status.message().to_owned()), 10 * MAX_SHOWN)
}

impl MetricSpec {
    fn target(&self) -> f64 {
        number(self.target_size_float, self.target_size)
    }
}

/// As KEDA reads a pair of the two; what is not finite, it takes for 0.
#[expect(clippy::cast_precision_loss, reason = "KEDA sends it on as a float")]
fn number(float: f64, int: i64) -> f64 {
    match float {
        float if float == f64::INFINITY => 0.0,
        float if float > 0.0 => float,
        _ => int as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_keda_does() {
        for (float, int, expected) in [
            (22.5, 22, 22.5),
            (0.0, 7, 7.0),
            (-3.5, -4, -4.0),
            (f64::NAN, 7, 7.0),
            (f64::INFINITY, 7, 0.0),
        ] {
            assert!((number(float, int) - expected).abs() < 1e-9, "{float} {int}");
        }
    }
}
