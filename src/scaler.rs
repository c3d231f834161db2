//! The RPCs of KEDA's ExternalScaler: understand, read, answer.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::{
    credentials::{Credentials, CredentialsError, Grant, Wanted},
    demand::{Account, Demand, Query},
    kubernetes::{Claim, Kind, Scalable, Stored},
    metrics::{Method, Metrics},
    proto::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
        MetricValue, ScaledObjectRef, external_scaler_server::ExternalScaler,
    },
    refresh::{Asker, Refresher, Unread},
    trigger::{
        Advice, Circumstances, Contradiction, Measure, Owner, PointOffset, Subject, Trigger,
    },
    words::{is_label, is_name, shorten},
};

mod warm;
mod news;
mod status;
mod streams;

use status::Journal;
pub(crate) use status::{Failure, code_name};
use streams::{ActiveStream, OpenStream, SpecStream};

/// Cheap to clone.
#[derive(Clone)]
pub struct Scaler {
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The longest that a unary RPC takes. KEDA's scale loop sets no deadline, and an object
    /// that is waited for is not scaled meanwhile.
    pub patience: Duration,
    /// How long a reading is held past its due refresh, unless the trigger says otherwise.
    pub hold: Duration,
    /// How old a value of a Cluster Agent may be, unless the trigger says otherwise.
    pub max_age: Duration,
    /// Whether unknown metadata keys are errors.
    pub strict_metadata: bool,
}

/// Cluster Agents check the age of values themselves since 7.56, and metrics of cloud providers are a
/// quarter of an hour late by nature.
pub const MAX_AGE: Duration = Duration::from_mins(16);

/// Most metadata keys of a trigger; there are some thirty that mean something.
const MAX_KEYS: usize = 100;

/// What Kubernetes allows for a namespace's name, and for others.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;
/// Most characters of a value that a message repeats.
const MAX_SHOWN: usize = 100;

struct Shared {
    config: Config,
    credentials: Credentials,
    refresher: Refresher,
    metrics: Arc<Metrics>,
    journal: Journal,
    /// Streams end with OK when it fires.
    draining: CancellationToken,
}

impl Scaler {
    pub fn new(
        config: Config,
        credentials: Credentials,
        refresher: Refresher,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        let journal = Journal::default();
        let shared = Shared { config, credentials, refresher, metrics, journal, draining };
        Self { shared: Arc::new(shared) }
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = ResponseStream<IsActiveResponse>;
    type StreamMetricSpecStream = ResponseStream<GetMetricSpecResponse>;

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let started_at = Instant::now();
        let object = request.into_inner();
        let spec = self.shared.understand(&object).map(|trigger| spec(&trigger));
        self.shared.answer(Method::GetMetricSpec, &object, started_at, spec)
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let started_at = Instant::now();
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        let Some(object) = scaled_object_ref else {
            let nobody = ScaledObjectRef::default();
            let failure = Err(Failure::NoScaledObject);
            return self.shared.answer(Method::GetMetrics, &nobody, started_at, failure);
        };
        let measured = self.shared.measure(&object, started_at).await;
        let values = measured.map(|measure| values(metric_name, measure));
        self.shared.answer(Method::GetMetrics, &object, started_at, values)
    }

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let started_at = Instant::now();
        let object = request.into_inner();
        let measured = self.shared.measure(&object, started_at).await;
        let active = measured.map(|measure| IsActiveResponse { result: measure.active });
        self.shared.answer(Method::IsActive, &object, started_at, active)
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let object = request.into_inner();
        let deadline = Instant::now() + self.shared.config.patience;
        let admitted = self.shared.admit(&object, deadline).await;
        let method = Method::StreamIsActive;
        let (trigger, grant) = self.shared.begin(method, &object, admitted)?;
        let open = OpenStream::new(method, self.shared.metrics.clone());
        let stream = ActiveStream::new(open, object, trigger, grant, self.shared.clone());
        let messages = stream::unfold(stream, |mut stream| async {
            let result = stream.next().await?;
            Some((Ok(IsActiveResponse { result }), stream))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let object = request.into_inner();
        let understood = self.shared.understand(&object);
        let method = Method::StreamMetricSpec;
        let trigger = self.shared.begin(method, &object, understood)?;
        let open = OpenStream::new(method, self.shared.metrics.clone());
        let stream = SpecStream::new(open, trigger, self.shared.clone());
        let messages = stream::unfold(stream, |mut stream| async {
            let trigger = stream.next().await?;
            Some((Ok(spec(&trigger)), stream))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// From the metadata alone: no Datadog, no credentials.
pub(crate) fn understand(
    object: &ScaledObjectRef,
    strict_metadata: bool,
) -> Result<(Trigger, Vec<Advice>), Failure> {
    let oversized = [
        (object.namespace.len() > MAX_LABEL, "namespace is"),
        (object.name.len() > MAX_NAME, "name is"),
        (object.scaler_metadata.len() > MAX_KEYS, "metadata has keys"),
    ];
    if let Some((_, what)) = oversized.into_iter().find(|(is_oversized, _)| *is_oversized) {
        return Err(Failure::NoTrigger { what });
    }
    Trigger::parse(&object.scaler_metadata, strict_metadata).map_err(Failure::Metadata)
}

impl Shared {
    fn understand(&self, object: &ScaledObjectRef) -> Result<Trigger, Failure> {
        let (trigger, advice) = understand(object, self.config.strict_metadata)?;
        self.journal.advise(object, &advice);
        Ok(trigger.or_max_age(self.config.max_age))
    }

    /// The trigger, and leave to use an account for it.
    async fn admit(
        &self,
        object: &ScaledObjectRef,
        deadline: Instant,
    ) -> Result<(Trigger, Grant), Failure> {
        let trigger = self.understand(object)?;
        question_names(&trigger)?;
        let mut grant =
            self.grant(object, &trigger, deadline).await.map_err(Failure::Credentials)?;
        if let Ok(account) = grant.account_now() {
            demand(&trigger, account)?;
        }
        if let Some(stored) = &grant.trigger {
            let advice = contradictions(stored, &trigger, self.hold(&grant));
            self.journal.warn(object, &advice);
        }
        Ok((trigger, grant))
    }

    async fn grant(
        &self,
        object: &ScaledObjectRef,
        trigger: &Trigger,
        deadline: Instant,
    ) -> Result<Grant, CredentialsError> {
        let ScaledObjectRef { namespace, name, scaler_metadata: metadata } = object;
        let claim = Claim { namespace, name, metadata };
        self.credentials.grant(&claim, wanted(trigger), deadline).await
    }

    /// How long readings are held, unless the trigger says otherwise. Not at all for a ScaledJob:
    /// KEDA would start Jobs again for a backlog already done.
    fn hold(&self, grant: &Grant) -> Duration {
        match &grant.trigger {
            Some(stored) if stored.object.kind == Kind::ScaledJob => Duration::ZERO,
            _ => self.config.hold,
        }
    }

    async fn measure(
        &self,
        object: &ScaledObjectRef,
        started_at: Instant,
    ) -> Result<Measure, Failure> {
        let deadline = started_at + self.config.patience;
        let (trigger, mut grant) = self.admit(object, deadline).await?;
        let patience = trigger.patience(self.config.patience);
        let deadline = started_at + patience;
        let hold = self.hold(&grant);
        let judge = |latest: &_, now| trigger.judge(latest, now, hold);
        loop {
            let account = grant.account(deadline).await.map_err(Failure::Credentials)?;
            let demand = demand(&trigger, account)?;
            match self
                .refresher
                .read(&demand, asker(&object.namespace, &trigger), deadline, judge)
                .await
            {
                Ok(measure) => return Ok(measure),
                Err(Unread::Failed(unanswered)) => return Err(Failure::Unanswered(unanswered)),
                Err(Unread::TimedOut) => {
                    return Err(Failure::TimedOut { host: demand.account.host(), patience });
                }
                Err(Unread::Withdrawn) if Instant::now() >= deadline => {
                    return Err(Failure::Withdrawn);
                }
                // The successor is published at any moment, by a task that needs a turn for it.
                Err(Unread::Withdrawn) => sleep(Duration::from_millis(1)).await,
            }
        }
    }

    fn answer<T>(
        &self,
        method: Method,
        object: &ScaledObjectRef,
        started_at: Instant,
        answer: Result<T, Failure>,
    ) -> Result<Response<T>, Status> {
        let code = answer.as_ref().map_or_else(Failure::code, |_| Code::Ok);
        self.metrics.answered(method, code_name(code), started_at.elapsed());
        match answer {
            Ok(answer) => {
                // GetMetricSpec works on metadata that GetMetrics fails on.
                if !matches!(method, Method::GetMetricSpec) {
                    self.journal.succeeded(object);
                }
                Ok(Response::new(answer))
            }
            Err(failure) => {
                self.journal.failed(object, &failure);
                Err(failure.status())
            }
        }
    }

    fn begin<T>(
        &self,
        method: Method,
        object: &ScaledObjectRef,
        begun: Result<T, Failure>,
    ) -> Result<T, Status> {
        begun.map_err(|failure| {
            self.metrics.stream_refused(method, failure.code_name());
            self.journal.failed(object, &failure);
            failure.status()
        })
    }
}

/// What the object as a whole makes of a trigger, as only Kubernetes tells.
fn contradictions(stored: &Stored, trigger: &Trigger, hold: Duration) -> Vec<Contradiction> {
    let Scalable { kind, cooldown, stabilization, .. } = *stored.object;
    let circumstances = Circumstances {
        owner: match kind {
            Kind::ScaledObject => Owner::ScaledObject { cooldown, stabilization },
            Kind::ScaledJob => Owner::ScaledJob,
        },
        pushes: stored.pushes,
        is_value: stored.metric_type.as_deref() == Some("Value"),
        is_global: stored.value("type").is_some_and(|it| it.eq_ignore_ascii_case("global")),
    };
    circumstances.contradictions(trigger.hold.unwrap_or(hold))
}

fn asker<'a>(namespace: &'a str, trigger: &Trigger) -> Asker<'a> {
    let needs_step = trigger.reckoning.offset == PointOffset::Auto;
    Asker { namespace, needs_step }
}

/// What is asked for, with this account.
pub(crate) fn demand(trigger: &Trigger, account: Arc<Account>) -> Result<Demand, Failure> {
    let query = match &trigger.subject {
        Subject::Query(query) => query.clone(),
        Subject::DatadogMetric { namespace, name, .. } => {
            if !account.is_watched() && name.contains('.') {
                return Err(Failure::DottedName { name: shorten(name, MAX_SHOWN) });
            }
            Query::of_metric(namespace, name)
        }
    };
    Ok(Demand { account, query })
}

/// That the names are some, before anybody is asked.
pub(crate) fn question_names(trigger: &Trigger) -> Result<(), Failure> {
    let Subject::DatadogMetric { namespace, name, .. } = &trigger.subject else { return Ok(()) };
    let odd = |key, value| Err(Failure::NoMetricName { key, value: shorten(value, MAX_SHOWN) });
    if !is_label(&namespace.to_lowercase()) {
        return odd("datadogMetricNamespace", namespace);
    }
    if !is_name(&name.to_lowercase()) {
        return odd("datadogMetricName", name);
    }
    Ok(())
}

fn wanted(trigger: &Trigger) -> Wanted<'_> {
    match &trigger.subject {
        Subject::Query(_) => Wanted::Query,
        Subject::DatadogMetric { namespace, .. } => Wanted::Metric { namespace },
    }
}

/// Exactly one: KEDA would read each of several, and the HPA would take them all.
fn spec(trigger: &Trigger) -> GetMetricSpecResponse {
    let spec = MetricSpec {
        metric_name: trigger.metric_name(),
        // The HPA refuses a target of 0.
        target_size: whole(trigger.target.ceil()).max(1),
        target_size_float: trigger.target,
    };
    GetMetricSpecResponse { metric_specs: vec![spec] }
}

/// Exactly one, under the name that was asked for: the HPA adds up what it gets.
fn values(metric_name: String, measure: Measure) -> GetMetricsResponse {
    let value = MetricValue {
        metric_name,
        // What KEDA reads when the float is not positive (pkg/scalers/external_scaler.go).
        metric_value: whole(measure.value.round()),
        metric_value_float: measure.value,
    };
    GetMetricsResponse { metric_values: vec![value] }
}

#[expect(clippy::cast_possible_truncation, reason = "a cast saturates")]
fn whole(number: f64) -> i64 {
    number as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_target(target: &str, expected: (i64, f64)) {
        let metadata = [("query", "avg:a{*}"), ("queryValue", target)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let trigger = Trigger::parse(&metadata, false).unwrap().0;
        let [spec] = &*spec(&trigger).metric_specs else { panic!("one spec") };
        assert_eq!((spec.target_size, spec.target_size_float), expected);
    }

    #[test]
    fn targets_are_rounded_up_and_never_zero() {
        check_target("7", (7, 7.0));
        check_target("6.111", (7, 6.111));
        check_target("0.0005", (1, 0.0005));
        check_target("1e300", (i64::MAX, 1e300));
    }

    #[track_caller]
    fn check_value(value: f64, expected: i64) {
        let answer = values("any".to_owned(), Measure { value, active: true });
        let [value] = &*answer.metric_values else { panic!("one value") };
        assert_eq!((&*value.metric_name, value.metric_value), ("any", expected));
    }

    #[test]
    fn values_are_rounded_to_the_nearest() {
        check_value(22.222, 22);
        check_value(0.5, 1);
        check_value(-3.7, -4);
        check_value(1e300, i64::MAX);
    }
}
