//! What failed → the gRPC status that KEDA shows its user, and one line in the log. The only
//! match on gRPC codes.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    credentials::CredentialsError,
    kubernetes::{ClaimError, NoWatch, ReadError},
    proto::ScaledObjectRef,
    source::SourceError,
    trigger::{Advice, Contradiction, MetadataError, Unanswered},
    words::shorten,
};

/// Why an RPC has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the request names no ScaledObject")]
    NoScaledObject,
    #[error(
        "the request is not that of a trigger: its {what} beyond what Kubernetes or KEDA allows"
    )]
    NoTrigger { what: &'static str },
    #[error(transparent)]
    Metadata(MetadataError),
    #[error("`{key}` is \"{value}\", which cannot be a name in Kubernetes; correct it")]
    NoMetricName { key: &'static str, value: String },
    /// `metricNameRegexp`, pkg/clusteragent/autoscaling/externalmetrics of DataDog/datadog-agent.
    #[error(
        "`datadogMetricName` is \"{name}\", but the Cluster Agent's API takes no name with a dot; \
         make a DatadogMetric of another name, or have the scaler watch them \
         (`--cluster-agent-source`)"
    )]
    DottedName { name: String },
    #[error(transparent)]
    Credentials(CredentialsError),
    #[error(transparent)]
    Unanswered(Unanswered),
    #[error("no reading from {host} within {patience:?}; it is still being fetched")]
    TimedOut { host: String, patience: Duration },
    #[error("the credentials changed while the query was read; ask again")]
    Withdrawn,
}

impl Failure {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoScaledObject
            | Self::NoTrigger { .. }
            | Self::Metadata(_)
            | Self::NoMetricName { .. }
            | Self::DottedName { .. } => Code::InvalidArgument,
            Self::Credentials(error) => match error {
                CredentialsError::None
                | CredentialsError::Half { .. }
                | CredentialsError::NotAKey { .. }
                | CredentialsError::Site { .. }
                | CredentialsError::File { .. }
                | CredentialsError::NoSuchKind { .. }
                | CredentialsError::NoAuthentication { .. }
                | CredentialsError::Unresolved { .. }
                | CredentialsError::NotGiven { .. }
                | CredentialsError::Missing { .. }
                | CredentialsError::NoParameterKey { .. }
                | CredentialsError::SiteNotAllowed { .. }
                | CredentialsError::NoAgent
                | CredentialsError::NoWatch {
                    why: NoWatch::Uncovered | NoWatch::Forbidden | NoWatch::Absent,
                }
                | CredentialsError::AgentFile { .. }
                | CredentialsError::AgentParameter { .. } => Code::FailedPrecondition,
                CredentialsError::NotOwn { .. }
                | CredentialsError::NotOwnMetric { .. }
                | CredentialsError::Claim { error: ClaimError::NoTrigger { .. } } => {
                    Code::PermissionDenied
                }
                CredentialsError::Claim { error: ClaimError::Several } => Code::InvalidArgument,
                CredentialsError::Claim { error: ClaimError::Unverified(error) }
                | CredentialsError::Read { error } => match error {
                    ReadError::Forbidden { .. } | ReadError::Absent => Code::FailedPrecondition,
                    ReadError::Unreachable { .. } | ReadError::Busy => Code::Unavailable,
                    ReadError::NotUnderstood { .. } => Code::Internal,
                },
                CredentialsError::NoWatch { why: NoWatch::Unlisted } => Code::Unavailable,
                CredentialsError::Pending => Code::DeadlineExceeded,
                CredentialsError::TooMany { .. } => Code::ResourceExhausted,
            },
            Self::Unanswered(unanswered) => match unanswered {
                Unanswered::Source(error) => match error {
                    SourceError::Malformed { .. }
                    | SourceError::TooLarge { .. }
                    | SourceError::Unusable { .. } => Code::InvalidArgument,
                    SourceError::Refused { .. }
                    | SourceError::Misdirected { .. }
                    | SourceError::ClockSkew { .. }
                    | SourceError::NoAgent { .. }
                    | SourceError::TokenRefused { .. }
                    | SourceError::NotAllowed { .. }
                    | SourceError::NotReady { .. }
                    | SourceError::NoMetric { .. }
                    | SourceError::Inactive { .. }
                    | SourceError::Unread { .. }
                    | SourceError::Unwatched {
                        why: NoWatch::Uncovered | NoWatch::Forbidden | NoWatch::Absent,
                    } => Code::FailedPrecondition,
                    SourceError::Throttled { .. }
                    | SourceError::Limited { .. }
                    | SourceError::Spent { .. }
                    | SourceError::Crowded { .. }
                    | SourceError::Full { .. } => Code::ResourceExhausted,
                    SourceError::Unprocessable
                    | SourceError::Outage { .. }
                    | SourceError::AgentFails { .. }
                    | SourceError::MetricFails { .. }
                    | SourceError::Upstream { .. }
                    | SourceError::Unrefreshed { .. }
                    | SourceError::Unwatched { why: NoWatch::Unlisted }
                    | SourceError::Unreachable { .. }
                    | SourceError::TimedOut { .. } => Code::Unavailable,
                    SourceError::NotUnderstood { .. } => Code::Internal,
                },
                Unanswered::NoData { .. }
                | Unanswered::NoneLeft { .. }
                | Unanswered::NoValue { .. }
                | Unanswered::Stale { .. } => Code::NotFound,
                Unanswered::SeveralSeries { .. } | Unanswered::NotFinite { .. } => {
                    Code::InvalidArgument
                }
            },
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::Withdrawn => Code::Unavailable,
        }
    }

    /// As metrics and gRPC's documentation spell it.
    pub(crate) fn code_name(&self) -> &'static str {
        code_name(self.code())
    }

    pub(super) fn status(&self) -> Status {
        Status::new(self.code(), self.to_string())
    }

    /// What is for our log only, lest it helps to guess.
    fn detail(&self) -> Option<String> {
        let Self::Credentials(CredentialsError::Claim {
            error: ClaimError::NoTrigger { differences },
        }) = self
        else {
            return None;
        };
        Some(match differences {
            Some(keys) => format!("the nearest trigger differs in {}", keys.join(", ")),
            None => "there is no such object".to_owned(),
        })
    }

    /// Whether another room says so, once for all triggers that are affected.
    fn is_told_elsewhere(&self) -> bool {
        match self {
            Self::Unanswered(Unanswered::Source(error)) => error.concerns_account(),
            // Of one trigger; the rest is said of the directory, of the TriggerAuthentication, or
            // of Kubernetes.
            Self::Credentials(error) => !matches!(
                error,
                CredentialsError::NotOwn { .. }
                    | CredentialsError::NotOwnMetric { .. }
                    | CredentialsError::NoAgent
                    | CredentialsError::NoWatch { .. }
                    | CredentialsError::Claim {
                        error: ClaimError::NoTrigger { .. } | ClaimError::Several
                    }
            ),
            // Said of the request, when it ends.
            Self::TimedOut { .. } => true,
            _ => false,
        }
    }
}

/// As metrics and gRPC's documentation spell it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Most characters of a name in the log.
const MAX_NAME: usize = 253;
/// Most triggers that are remembered as failing, and as advised. Beyond that, the log is silent:
/// KEDA's events still tell.
const MAX_REMEMBERED: usize = 10_000;
/// What did not fail again in this time is gone; KEDA polls each 30 s by default.
const MEMORY: Duration = Duration::from_mins(30);
/// How often what is gone is looked for, once there is no room.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// Says that a trigger fails when it starts and when it ends, however often KEDA asks.
#[derive(Default)]
pub(super) struct Journal {
    hasher: RandomState,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// What was last said of a trigger, and when it last failed.
    failing: HashMap<u64, (Code, Instant)>,
    /// When a trigger that was advised last came.
    advised: HashMap<u64, Instant>,
    swept_at: Option<Instant>,
}

impl Journal {
    pub(super) fn succeeded(&self, object: &ScaledObjectRef) {
        if self.memory().failing.is_empty() {
            return;
        }
        let key = self.key(object);
        if self.memory().failing.remove(&key).is_some() {
            tracing::info!(
                trigger.namespace = object.namespace,
                trigger.name = object.name,
                "a trigger is answered again"
            );
        }
    }

    pub(super) fn failed(&self, object: &ScaledObjectRef, failure: &Failure) {
        let is_news = !failure.is_told_elsewhere() && {
            let key = self.key(object);
            self.memory().note_failure(key, failure.code(), Instant::now())
        };
        if is_news {
            tracing::warn!(
                trigger.namespace = shorten(&object.namespace, MAX_NAME),
                trigger.name = shorten(&object.name, MAX_NAME),
                code = failure.code_name(),
                error = %failure,
                detail = failure.detail(),
                "a trigger cannot be answered"
            );
        }
    }

    pub(super) fn advise(&self, object: &ScaledObjectRef, advice: &[Advice]) {
        if advice.is_empty() {
            return;
        }
        let key = self.key(object);
        let is_news = self.memory().note_advice(key, Instant::now());
        if is_news {
            let advice: Vec<String> = advice.iter().map(ToString::to_string).collect();
            tracing::warn!(
                trigger.namespace = object.namespace,
                trigger.name = object.name,
                advice = advice.join("; "),
                "metadata keys have no effect"
            );
        }
    }

    /// Says what Kubernetes tells of a trigger that is hardly meant so.
    pub(super) fn warn(&self, object: &ScaledObjectRef, contradictions: &[Contradiction]) {
        if contradictions.is_empty() {
            return;
        }
        // Another than that of the advice on its keys.
        let key = self.hasher.hash_one(self.key(object));
        let is_news = self.memory().note_advice(key, Instant::now());
        if is_news {
            let advice: Vec<String> = contradictions.iter().map(ToString::to_string).collect();
            tracing::warn!(
                trigger.namespace = object.namespace,
                trigger.name = object.name,
                advice = advice.join("; "),
                "a trigger is hardly what is meant"
            );
        }
    }

    /// One trigger of one object: the map has no order.
    fn key(&self, object: &ScaledObjectRef) -> u64 {
        let metadata = object.scaler_metadata.iter().map(|entry| self.hasher.hash_one(entry));
        let metadata = metadata.fold(0, u64::wrapping_add);
        self.hasher.hash_one((&object.namespace, &object.name, metadata))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// Whether it is to be said.
    fn note_failure(&mut self, key: u64, code: Code, now: Instant) -> bool {
        self.sweep(now);
        let has_room = self.failing.len() < MAX_REMEMBERED || self.failing.contains_key(&key);
        let is_news = |(said, at): (Code, Instant)| said != code || now > at + MEMORY;
        has_room && self.failing.insert(key, (code, now)).is_none_or(is_news)
    }

    /// Whether it is to be said.
    fn note_advice(&mut self, key: u64, now: Instant) -> bool {
        self.sweep(now);
        let has_room = self.advised.len() < MAX_REMEMBERED || self.advised.contains_key(&key);
        has_room && self.advised.insert(key, now).is_none()
    }

    fn sweep(&mut self, now: Instant) {
        let is_full = self.failing.len().max(self.advised.len()) >= MAX_REMEMBERED;
        let swept_lately = self.swept_at.is_some_and(|at| now < at + SWEEP_EVERY);
        if is_full && !swept_lately {
            self.swept_at = Some(now);
            self.failing.retain(|_, (_, seen_at)| now < *seen_at + MEMORY);
            self.advised.retain(|_, seen_at| now < *seen_at + MEMORY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        demand::Window,
        source::RateLimit,
        trigger::{Aggregator, Fault},
    };

    fn table(failures: &[Failure]) -> String {
        let lines = failures.iter().map(|f| format!("{}: {f}", f.code_name()));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_failure_has_its_code_and_a_text_that_helps() {
        let host = || "api.datadoghq.eu".to_owned();
        let source = |error| Failure::Unanswered(Unanswered::Source(error));
        let credentials = Failure::Credentials;
        let claim = |error| credentials(CredentialsError::Claim { error });
        let read = |error| CredentialsError::Read { error };
        let window = Window { age: 90, offset: 30 };
        let limit = RateLimit {
            limit: Some(1_600),
            period: Some(Duration::from_hours(1)),
            reset: Some(Duration::from_secs(84)),
            ..RateLimit::default()
        };
        let failures = [
            Failure::NoScaledObject,
            Failure::NoTrigger { what: "name is" },
            Failure::Metadata(MetadataError {
                faults: vec![
                    Fault::Missing { key: "query", nearest: None },
                    Fault::Unwanted(Advice::Unknown { key: "agee".into() }),
                ],
            }),
            Failure::Credentials(CredentialsError::None),
            Failure::Credentials(CredentialsError::Site { site: "eu".into() }),
            credentials(CredentialsError::NotOwn { namespace: "demo".into() }),
            credentials(CredentialsError::Pending),
            credentials(CredentialsError::TooMany { most: 10_000 }),
            claim(ClaimError::NoTrigger { differences: Some(vec!["query".into()]) }),
            claim(ClaimError::Several),
            claim(ClaimError::Unverified(ReadError::Unreachable { cause: "refused".into() })),
            credentials(read(ReadError::Forbidden { what: "get secrets".into() })),
            credentials(read(ReadError::Busy)),
            credentials(read(ReadError::NotUnderstood { what: "get secrets".into() })),
            Failure::Unanswered(Unanswered::NoData { window }),
            Failure::Unanswered(Unanswered::NoneLeft { points: 3, window }),
            Failure::Unanswered(Unanswered::SeveralSeries { series: 2 }),
            Failure::Unanswered(Unanswered::NotFinite { aggregator: Aggregator::Sum }),
            source(SourceError::Malformed { reason: "no such function".into() }),
            source(SourceError::Refused { status: 403, host: host() }),
            source(SourceError::Throttled { host: host(), limit: Some(limit) }),
            source(SourceError::Unprocessable),
            source(SourceError::Outage { host: host(), what: "502".into() }),
            source(SourceError::Unreachable { host: host(), cause: "Connection refused".into() }),
            source(SourceError::TimedOut { host: host(), after: Duration::from_secs(10) }),
            source(SourceError::Misdirected { status: 302, host: host() }),
            source(SourceError::ClockSkew { host: host(), skew: Duration::from_mins(10) }),
            source(SourceError::TooLarge { what: "6000 series".into() }),
            source(SourceError::NotUnderstood { host: host(), what: "it has no `status`".into() }),
            source(SourceError::Spent { host: host(), wait: Duration::from_secs(83) }),
            source(SourceError::Crowded {
                host: host(),
                capacity: 58,
                round: Duration::from_mins(4),
            }),
            source(SourceError::Full { most: 20_000, of_namespace: false }),
            Failure::TimedOut { host: host(), patience: Duration::from_millis(2_500) },
            Failure::Withdrawn,
        ];
        insta::assert_snapshot!(table(&failures), @r#"
        INVALID_ARGUMENT: the request names no ScaledObject
        INVALID_ARGUMENT: the request is not that of a trigger: its name is beyond what Kubernetes or KEDA allows
        INVALID_ARGUMENT: `query` is missing; set it; also `agee` is not known; did you mean `age`?
        FAILED_PRECONDITION: there are no Datadog keys; set `DD_API_KEY` and `DD_APP_KEY`, or `--credentials-dir`
        FAILED_PRECONDITION: the site is "eu", but must be one such as `datadoghq.com` or `us5.datadoghq.com`
        PERMISSION_DENIED: the trigger has no `authenticationRef`, and the namespace demo may not use the scaler's own account; refer to a TriggerAuthentication, or have the administrator add the namespace to `--own-account-namespaces`
        DEADLINE_EXCEEDED: the credentials are still being read from Kubernetes; ask again
        RESOURCE_EXHAUSTED: more than 10000 `authenticationRef`s are in use, the most the scaler follows
        PERMISSION_DENIED: no trigger of a ScaledObject or ScaledJob of this name has this metadata
        INVALID_ARGUMENT: several triggers have this metadata, but different `authenticationRef`s; tell them apart with a `triggerName` each
        UNAVAILABLE: the trigger cannot be verified: Kubernetes does not answer (refused); it is asked again
        FAILED_PRECONDITION: Kubernetes forbids the scaler to get secrets; grant it (see Rights in the README)
        UNAVAILABLE: too much is being read from Kubernetes at the moment; it is asked again
        INTERNAL: what Kubernetes answers is not understood (to get secrets)
        NOT_FOUND: the query has no data in the 90 seconds that ended 30 seconds ago; wait for data, widen `age`, or set `metricUnavailableValue`
        NOT_FOUND: the query has 3 points with a value in the 90 seconds that ended 30 seconds ago, and `lastAvailablePointOffset` leaves none of them; lower it, widen `age`, or set `metricUnavailableValue`
        INVALID_ARGUMENT: the query returns 2 series; set `queryAggregator`, or change it to return one
        INVALID_ARGUMENT: the sum of its series is not a finite number; scale the query down
        INVALID_ARGUMENT: Datadog rejects the query: no such function
        FAILED_PRECONDITION: Datadog refuses the keys (403) at api.datadoghq.eu; check that they belong to this site and may read metrics (`timeseries_query`)
        RESOURCE_EXHAUSTED: Datadog's rate limit is spent at api.datadoghq.eu: 1600 requests each 3600 s; it resets in 84 s; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit
        UNAVAILABLE: Datadog cannot process the query at the moment (422); that passes, and `metricUnavailableValue` would bridge it
        UNAVAILABLE: Datadog fails at api.datadoghq.eu (502); nothing is wrong with the query
        UNAVAILABLE: api.datadoghq.eu cannot be reached: Connection refused
        UNAVAILABLE: api.datadoghq.eu gave no complete answer within 10s
        FAILED_PRECONDITION: api.datadoghq.eu is not the Datadog API (302); check `DD_SITE`, `--datadog-url` and the proxy
        FAILED_PRECONDITION: this machine's clock and that of api.datadoghq.eu are 600 s apart, so that queries look at the wrong time; set it right
        INVALID_ARGUMENT: the answer has 6000 series; group by fewer tags, or ask for a shorter `age`
        INTERNAL: the answer from api.datadoghq.eu is not understood: it has no `status`
        RESOURCE_EXHAUSTED: our part of Datadog's rate limit at api.datadoghq.eu is spent for now; the next turn of this query is in 84 s; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit
        RESOURCE_EXHAUSTED: Datadog's rate limit at api.datadoghq.eu is too low for this query: of this namespace, it carries 58 with a reading each 240 s (`--max-round`), and others came first; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit
        RESOURCE_EXHAUSTED: the scaler knows 20000 queries already, the most it may (`--max-demands`); ask for fewer, or raise that
        DEADLINE_EXCEEDED: no reading from api.datadoghq.eu within 2.5s; it is still being fetched
        UNAVAILABLE: the credentials changed while the query was read; ask again
        "#);
    }

    #[test]
    fn every_failure_of_the_cluster_agent_mode_has_them_too() {
        let source = |error| Failure::Unanswered(Unanswered::Source(error));
        let credentials = Failure::Credentials;
        let agent = || "agent.datadog.svc:8443".to_owned();
        let metric = || "shop/orders".to_owned();
        let of = || "the TriggerAuthentication shop/agent".to_owned();
        let failures = [
            Failure::NoMetricName { key: "datadogMetricName", value: "orders/v2".into() },
            Failure::DottedName { name: "orders.v2".into() },
            credentials(CredentialsError::NoAgent),
            credentials(CredentialsError::AgentFile {
                path: "/t".into(),
                cause: "it is empty".into(),
            }),
            credentials(CredentialsError::AgentParameter {
                authentication: of(),
                parameter: "datadogNamespace",
                expected: "a namespace such as `datadog`",
            }),
            credentials(CredentialsError::NotOwnMetric {
                namespace: "demo".into(),
                of: "shop".into(),
            }),
            Failure::Unanswered(Unanswered::NoValue { metric: metric() }),
            Failure::Unanswered(Unanswered::Stale {
                metric: metric(),
                value: 1.0,
                age: Duration::from_mins(20),
                max_age: Duration::from_mins(16),
            }),
            source(SourceError::NoAgent { host: agent(), status: 404 }),
            source(SourceError::TokenRefused { host: agent() }),
            source(SourceError::NotAllowed {
                host: agent(),
                who: "the user \"system:serviceaccount:shop:keda\"".into(),
                namespace: "shop".into(),
            }),
            source(SourceError::AgentFails { host: agent(), what: "503".into() }),
            source(SourceError::MetricFails { metric: metric(), what: "no idea".into() }),
            source(SourceError::Limited { what: "rate limit exceeded".into() }),
            source(SourceError::Upstream { host: agent(), what: "500".into() }),
            source(SourceError::NotReady { metric: metric() }),
            source(SourceError::Unusable {
                metric: metric(),
                reason: "multiple series found".into(),
            }),
            source(SourceError::NoMetric { metric: metric() }),
            source(SourceError::Inactive { metric: metric() }),
            source(SourceError::Unread { metric: metric() }),
            source(SourceError::Unrefreshed {
                metric: metric(),
                since: Duration::from_mins(3),
                is_told: true,
            }),
            source(SourceError::Unwatched { why: NoWatch::Forbidden }),
            source(SourceError::Unwatched { why: NoWatch::Unlisted }),
            credentials(CredentialsError::NoWatch { why: NoWatch::Absent }),
        ];
        insta::assert_snapshot!(table(&failures), @r#"
        INVALID_ARGUMENT: `datadogMetricName` is "orders/v2", which cannot be a name in Kubernetes; correct it
        INVALID_ARGUMENT: `datadogMetricName` is "orders.v2", but the Cluster Agent's API takes no name with a dot; make a DatadogMetric of another name, or have the scaler watch them (`--cluster-agent-source`)
        FAILED_PRECONDITION: the trigger has no `authenticationRef`, and the scaler has no Cluster Agent of its own; refer to a TriggerAuthentication with `token`, `datadogNamespace` and `datadogMetricsService`, or have the administrator set `--cluster-agent-url`
        FAILED_PRECONDITION: the file /t for the Cluster Agent cannot be used: it is empty
        FAILED_PRECONDITION: `datadogNamespace` of the TriggerAuthentication shop/agent must be a namespace such as `datadog`
        PERMISSION_DENIED: the DatadogMetric is of the namespace shop, and triggers of demo may not read it by what the scaler itself may; refer to a TriggerAuthentication with a `token`, or have the administrator add shop to `--cluster-agent-namespaces`
        NOT_FOUND: the Cluster Agent has no data of the DatadogMetric shop/orders; its status tells why (`kubectl describe datadogmetric`); wait for data, or set `metricUnavailableValue`
        NOT_FOUND: the newest value of the DatadogMetric shop/orders is 1200 s old, and 960 s are allowed (`maxAge`); wait for data, raise that, or set `metricUnavailableValue`
        FAILED_PRECONDITION: agent.datadog.svc:8443 is not a Cluster Agent that serves external metrics (404); check `datadogMetricsService`, `datadogNamespace` and the port, or `--cluster-agent-url`
        FAILED_PRECONDITION: the Cluster Agent at agent.datadog.svc:8443 refuses the token (401); if that lasts, give a `token` (or `--cluster-agent-token-file`) of a ServiceAccount of this Kubernetes that is still valid
        FAILED_PRECONDITION: the Cluster Agent at agent.datadog.svc:8443 does not let the user "system:serviceaccount:shop:keda" read metrics of the namespace shop; allow it to `list` all resources (`*`) of the API group `external.metrics.k8s.io` there
        UNAVAILABLE: the Cluster Agent at agent.datadog.svc:8443 fails (503); nothing is wrong with the DatadogMetric
        UNAVAILABLE: the Cluster Agent has no value of the DatadogMetric shop/orders (no idea); its log may tell more
        RESOURCE_EXHAUSTED: Datadog's rate limit is spent for the Cluster Agent (rate limit exceeded); have it read fewer DatadogMetrics, or ask Datadog for a higher limit
        UNAVAILABLE: the Cluster Agent at agent.datadog.svc:8443 gets nothing from Datadog (500); nothing is wrong with the DatadogMetric
        FAILED_PRECONDITION: the Cluster Agent has no value of the DatadogMetric shop/orders yet; check that it exists and has the annotation `external-metrics.datadoghq.com/always-active: "true"`, without which it is not read; after that, or a restart of the agent, it takes a minute
        INVALID_ARGUMENT: the DatadogMetric shop/orders has no usable value: multiple series found; correct its `spec.query`
        FAILED_PRECONDITION: there is no DatadogMetric shop/orders; create it, or correct `datadogMetricNamespace` and `datadogMetricName`
        FAILED_PRECONDITION: the Cluster Agent does not read the DatadogMetric shop/orders; give it the annotation `external-metrics.datadoghq.com/always-active: "true"`
        FAILED_PRECONDITION: the Cluster Agent has not read the DatadogMetric shop/orders yet; wait a minute, and if that lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`
        UNAVAILABLE: the Cluster Agent has written nothing into the DatadogMetric shop/orders for 180 s; check that it runs, and what its log says
        FAILED_PRECONDITION: Kubernetes forbids the scaler to watch `datadogmetrics`; grant it (see Rights in the README)
        UNAVAILABLE: Kubernetes has not told of DatadogMetrics yet; it is asked again
        FAILED_PRECONDITION: Kubernetes knows no DatadogMetrics; have the Cluster Agent's chart or operator install their definition; or refer to a TriggerAuthentication with the `token` for a Cluster Agent
        "#);
    }

    #[test]
    fn a_failure_is_said_once_and_again_when_it_changes() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        assert!(memory.note_failure(1, Code::NotFound, now));
        assert!(!memory.note_failure(1, Code::NotFound, now));
        assert!(memory.note_failure(2, Code::NotFound, now));
        assert!(memory.note_failure(1, Code::InvalidArgument, now));
        assert!(memory.note_failure(2, Code::NotFound, now + 2 * MEMORY));
        assert!(memory.note_advice(1, now) && !memory.note_advice(1, now));
    }

    #[test]
    fn a_flood_of_failing_triggers_is_not_remembered_without_end() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let said = (0..20_000).filter(|key| memory.note_failure(*key, Code::NotFound, now)).count();
        assert_eq!((said, memory.failing.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
        assert!(!memory.note_failure(0, Code::NotFound, now + MEMORY / 2));
        // What stayed away makes room, what still fails is remembered.
        let later = now + MEMORY + SWEEP_EVERY;
        assert!(memory.note_failure(20_001, Code::NotFound, later));
        assert_eq!(memory.failing.len(), 2);
        assert!(!memory.note_failure(0, Code::NotFound, later));
    }
}
