//! Where readings come from. A source fetches; what a trigger makes of an answer is the
//! trigger's affair.

use std::{future::Future, mem::discriminant, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    demand::{Account, Point, Query, Reading, Series, Service},
    kubernetes::NoWatch,
};

pub mod datadog;
mod outcome;
mod series;
pub mod cluster_agent;
pub mod watched;
mod quantity;
mod list;
pub mod grammar;
#[cfg(test)]
mod scripted;

use cluster_agent::ClusterAgent;
use datadog::Datadog;
use watched::Watched;

/// Something that can be asked for readings.
pub trait Source: Send + Sync + 'static {
    /// Asks once. Ends within the request timeout.
    fn fetch(&self, batch: &Batch) -> impl Future<Output = Reply> + Send;
}

/// Asks whoever an account is of.
pub struct Sources {
    pub datadog: Datadog,
    pub cluster_agent: ClusterAgent,
    pub watched: Watched,
}

impl Source for Sources {
    async fn fetch(&self, batch: &Batch) -> Reply {
        match batch.account.service() {
            Service::DatadogApi => self.datadog.fetch(batch).await,
            Service::ClusterAgent if batch.account.is_watched() => self.watched.fetch(batch).await,
            Service::ClusterAgent => self.cluster_agent.fetch(batch).await,
        }
    }
}

/// Queries of one account and one window, to be read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub account: Arc<Account>,
    pub queries: Vec<Query>,
}

/// What came of one request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// One for each query of the batch, in its order.
    pub outcomes: Vec<Result<Answer, SourceError>>,
    /// What was said of the rate limit, with an answer or an error.
    pub rate_limit: Option<RateLimit>,
}

/// What came back for one query. No series, or none with a point, means that there is no
/// data; that is an answer, not an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub series: Box<[Series]>,
    /// End of the window that was asked for, in milliseconds since the Unix epoch.
    pub window_end_ms: i64,
}

/// Why there is no answer. `host` is where it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("Datadog rejects the query: {reason}")]
    Malformed { reason: String },
    #[error(
        "Datadog refuses the keys ({status}) at {host}; check that they belong to this site and \
         may read metrics (`timeseries_query`)"
    )]
    Refused { status: u16, host: String },
    #[error("Datadog's rate limit is spent at {host}{}; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit", .limit.as_ref().map(RateLimit::describe).unwrap_or_default())]
    Throttled { host: String, limit: Option<RateLimit> },
    /// Comes and goes for sound queries: kedacore/keda#7246.
    #[error(
        "Datadog cannot process the query at the moment (422); that passes, and \
         `metricUnavailableValue` would bridge it"
    )]
    Unprocessable,
    #[error("Datadog fails at {host} ({what}); nothing is wrong with the query")]
    Outage { host: String, what: String },
    #[error("{host} cannot be reached: {cause}")]
    Unreachable { host: String, cause: String },
    #[error("{host} gave no complete answer within {after:?}")]
    TimedOut { host: String, after: Duration },
    /// A redirect, or an address without this API.
    #[error(
        "{host} is not the Datadog API ({status}); check `DD_SITE`, `--datadog-url` and the proxy"
    )]
    Misdirected { status: u16, host: String },
    #[error(
        "this machine's clock and that of {host} are {} s apart, so that queries look at the wrong \
         time; set it right",
        .skew.as_secs()
    )]
    ClockSkew { host: String, skew: Duration },
    #[error("the answer has {what}; group by fewer tags, or ask for a shorter `age`")]
    TooLarge { what: String },
    #[error("the answer from {host} is not understood: {what}")]
    NotUnderstood { host: String, what: String },
    #[error(
        "{host} is not a Cluster Agent that serves external metrics ({status}); check \
         `datadogMetricsService`, `datadogNamespace` and the port, or `--cluster-agent-url`"
    )]
    NoAgent { status: u16, host: String },
    /// 401. It also says so while it cannot ask Kubernetes, and then it passes.
    #[error(
        "the Cluster Agent at {host} refuses the token (401); if that lasts, give a `token` (or \
         `--cluster-agent-token-file`) of a ServiceAccount of this Kubernetes that is still valid"
    )]
    TokenRefused { host: String },
    /// 403. Who asked is told as the agent calls it.
    #[error(
        "the Cluster Agent at {host} does not let {who} read metrics of the namespace {namespace}; \
         allow it to `list` all resources (`*`) of the API group `external.metrics.k8s.io` there"
    )]
    NotAllowed { host: String, who: String, namespace: String },
    #[error("the Cluster Agent at {host} fails ({what}); nothing is wrong with the DatadogMetric")]
    AgentFails { host: String, what: String },
    /// For a reason that nobody knows.
    #[error(
        "the Cluster Agent has no value of the DatadogMetric {metric} ({what}); its log may tell more"
    )]
    MetricFails { metric: String, what: String },
    /// Of the Cluster Agent's requests, not of ours.
    #[error(
        "Datadog's rate limit is spent for the Cluster Agent ({what}); have it read fewer \
         DatadogMetrics, or ask Datadog for a higher limit"
    )]
    Limited { what: String },
    /// `host` is empty if a watch tells it.
    #[error(
        "the Cluster Agent{} gets nothing from Datadog ({what}); nothing is wrong with the \
         DatadogMetric",
        at(.host)
    )]
    Upstream { host: String, what: String },
    #[error(
        "the Cluster Agent has no value of the DatadogMetric {metric} yet; check that it exists and \
         has the annotation `external-metrics.datadoghq.com/always-active: \"true\"`, without which \
         it is not read; after that, or a restart of the agent, it takes a minute"
    )]
    NotReady { metric: String },
    #[error("the DatadogMetric {metric} has no usable value: {reason}; correct its `spec.query`")]
    Unusable { metric: String, reason: String },
    /// The rest is of what a watch tells.
    #[error(
        "there is no DatadogMetric {metric}; create it, or correct `datadogMetricNamespace` and \
         `datadogMetricName`"
    )]
    NoMetric { metric: String },
    #[error(
        "the Cluster Agent does not read the DatadogMetric {metric}; give it the annotation \
         `external-metrics.datadoghq.com/always-active: \"true\"`"
    )]
    Inactive { metric: String },
    #[error(
        "the Cluster Agent has not read the DatadogMetric {metric} yet; wait a minute, and if that \
         lasts, check that it runs with `external_metrics_provider.use_datadogmetric_crd`"
    )]
    Unread { metric: String },
    #[error(
        "the Cluster Agent has written nothing into the DatadogMetric {metric} for {} s{}",
        .since.as_secs(),
        if *.is_told {
            "; check that it runs, and what its log says"
        } else {
            ", as far as Kubernetes has told, which does not answer at the moment"
        }
    )]
    Unrefreshed { metric: String, since: Duration, is_told: bool },
    #[error("{why}")]
    Unwatched { why: NoWatch },
    /// Nothing was asked: our part of the rate limit is spent for now.
    #[error(
        "our part of Datadog's rate limit at {host} is spent for now; the next turn of this query \
         is in {} s; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit",
        .wait.as_secs() + 1
    )]
    Spent { host: String, wait: Duration },
    /// Nothing was asked: beyond what the rate limit carries.
    #[error(
        "Datadog's rate limit at {host} is too low for this query: of this namespace, it carries \
         {capacity} with a reading each {} s (`--max-round`), and others came first; ask for fewer \
         queries or windows (`age`), or ask Datadog for a higher limit",
        .round.as_secs()
    )]
    Crowded { host: String, capacity: usize, round: Duration },
    /// Nothing was asked: there is no room for it.
    #[error(
        "{} {most} queries already, the most it may (`{}`); ask for fewer, or raise that",
        if *.of_namespace { "this namespace asks for" } else { "the scaler knows" },
        if *.of_namespace { "--max-demands-per-namespace" } else { "--max-demands" }
    )]
    Full { most: usize, of_namespace: bool },
}

/// What `X-RateLimit-*` says: `limit` requests each `period`, of which `remaining` are left and
/// which ends in `reset`. <https://docs.datadoghq.com/api/latest/rate-limits/>
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    pub limit: Option<u64>,
    pub period: Option<Duration>,
    pub remaining: Option<u64>,
    pub reset: Option<Duration>,
    /// Which limit it is.
    pub name: Option<Box<str>>,
}

impl Answer {
    pub(crate) fn taken_at(self, taken_at: Instant) -> Reading {
        let Self { series, window_end_ms } = self;
        Reading { series, window_end_ms, taken_at }
    }

    /// The only value there is; `None` is no data.
    fn of_point(point: Option<Point>, window_end_ms: i64) -> Self {
        let series = point.map(|point| Series {
            scope: "*".into(),
            step: None,
            nulls: 0,
            points: Box::new([point]),
        });
        Self { series: series.into_iter().collect(), window_end_ms }
    }
}

impl SourceError {
    /// Whether the same person would do the same about it.
    pub fn is_like(&self, other: &Self) -> bool {
        let is_away = |error: &Self| {
            matches!(
                error,
                Self::Outage { .. }
                    | Self::AgentFails { .. }
                    | Self::Unrefreshed { .. }
                    | Self::Unreachable { .. }
                    | Self::TimedOut { .. }
            )
        };
        (is_away(self) && is_away(other)) || discriminant(self) == discriminant(other)
    }

    /// Whether the keys may be old ones.
    pub fn refuses_keys(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::TokenRefused { .. })
    }

    /// Whether the account as a whole is affected, and not this query only.
    pub fn concerns_account(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Throttled { .. }
            | Self::Outage { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Misdirected { .. }
            | Self::ClockSkew { .. }
            | Self::NoAgent { .. }
            | Self::TokenRefused { .. }
            | Self::AgentFails { .. }
            | Self::Unrefreshed { .. }
            | Self::Unwatched { .. }
            | Self::Spent { .. }
            | Self::Crowded { .. } => true,
            Self::Malformed { .. }
            | Self::NotAllowed { .. }
            | Self::MetricFails { .. }
            | Self::Limited { .. }
            | Self::Upstream { .. }
            | Self::NotReady { .. }
            | Self::Unusable { .. }
            | Self::NoMetric { .. }
            | Self::Inactive { .. }
            | Self::Unread { .. }
            | Self::Unprocessable
            | Self::TooLarge { .. }
            | Self::NotUnderstood { .. }
            | Self::Full { .. } => false,
        }
    }

    /// As metrics name it.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Refused { .. } => "refused",
            Self::Throttled { .. } => "throttled",
            Self::Unprocessable => "unprocessable",
            Self::Outage { .. } => "outage",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Misdirected { .. } => "misdirected",
            Self::ClockSkew { .. } => "clock_skew",
            Self::TooLarge { .. } => "too_large",
            Self::NotUnderstood { .. } => "not_understood",
            Self::NoAgent { .. } => "no_agent",
            Self::TokenRefused { .. } => "token_refused",
            Self::NotAllowed { .. } => "not_allowed",
            Self::AgentFails { .. } => "agent_fails",
            Self::MetricFails { .. } => "metric_fails",
            Self::Limited { .. } => "limited",
            Self::Upstream { .. } => "upstream",
            Self::NotReady { .. } => "not_ready",
            Self::Unusable { .. } => "unusable",
            Self::NoMetric { .. } => "no_metric",
            Self::Inactive { .. } => "inactive",
            Self::Unread { .. } => "unread",
            Self::Unrefreshed { .. } => "unrefreshed",
            Self::Unwatched { .. } => "unwatched",
            Self::Spent { .. } => "spent",
            Self::Crowded { .. } => "crowded",
            Self::Full { .. } => "full",
        }
    }
}

fn at(host: &str) -> String {
    if host.is_empty() { String::new() } else { format!(" at {host}") }
}

impl RateLimit {
    fn describe(&self) -> String {
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs());
        let limit = match (self.limit, seconds(self.period)) {
            (Some(limit), Some(period)) => format!(": {limit} requests each {period} s"),
            (Some(limit), None) => format!(": {limit} requests"),
            (None, _) => String::new(),
        };
        let reset = seconds(self.reset).map(|reset| format!("; it resets in {reset} s"));
        limit + &reset.unwrap_or_default()
    }
}
