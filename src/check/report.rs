//! What `check` found, as data: told as text, or printed as JSON (`--output json`). Instants are
//! milliseconds since the Unix epoch; what is not known is left out.

use std::fmt;

use serde::Serialize;

use crate::{demand::Service, kubernetes::Kind};

/// All of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// There is no error and no warning.
    pub(super) fine: bool,
    /// Objects that cannot be read, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unreadable: Vec<String>,
    /// Triggers that are not this scaler's.
    pub(super) others: usize,
    pub(super) triggers: Vec<Examined>,
}

/// One trigger, examined.
#[derive(Debug, Serialize)]
pub(super) struct Examined {
    pub(super) file: String,
    pub(super) kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    pub(super) object: String,
    /// From 0.
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) r#type: String,
    /// Whom it asks; its `settings` say so too.
    #[serde(skip)]
    pub(super) service: Service,
    pub(super) findings: Vec<Finding>,
    /// None if the metadata has a fault.
    pub(super) settings: Vec<Setting>,
    /// Of a live object whose trigger has an `authenticationRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) credentials: Option<Credentials>,
    #[serde(flatten)]
    pub(super) evidence: Evidence,
    /// What KEDA gets, or would get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) scaling: Option<Scaling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hold: Option<Hold>,
}

/// Something to say, at the step where it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) step: Step,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Good to know; nothing is wrong.
    Note,
    /// It works, but hardly as meant.
    Warning,
    /// It does not work.
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    Trigger,
    Metadata,
    Credentials,
    Request,
    Series,
    Calls,
    Scaling,
    Hold,
}

/// One metadata key that has an effect, as it was understood.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    pub(super) key: &'static str,
    /// As it could be written in the metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// Else it is the default.
    pub(super) given: bool,
}

/// Where a trigger's keys come from; no value of theirs.
#[derive(Debug, Serialize)]
pub(super) struct Credentials {
    /// What they are read from, such as `TriggerAuthentication shop/datadog`.
    pub(super) authentication: String,
    /// None if it cannot be read.
    pub(super) parameters: Vec<ParameterSeen>,
    /// Where the keys are sent, if that is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) site: Option<String>,
    /// The Cluster Agent that the token is sent to, if all is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) agent: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ParameterSeen {
    pub(super) name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    /// Left out if that is not known here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) present: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<String>,
}

/// Who was asked for a reading, and what came.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Evidence {
    Nobody {},
    Datadog {
        request: Request,
        #[serde(flatten)]
        seen: Option<Seen>,
    },
    ClusterAgent {
        request: Request,
        metric: MetricSeen,
        /// How the value was made, if it is not the agent's as it stands.
        #[serde(skip_serializing_if = "Option::is_none")]
        reckoning: Option<String>,
    },
    Scaler {
        calls: Vec<Call>,
    },
}

/// What was asked of Datadog or a Cluster Agent.
#[derive(Debug, Serialize)]
pub(super) struct Request {
    pub(super) host: String,
    /// Where the keys come from, or the token.
    pub(super) keys: String,
    /// Where the connection to an agent went instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) through: Option<String>,
    /// Who vouches for an agent: `system`, `authorities` or `anybody`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trust: Option<&'static str>,
    pub(super) took_ms: f64,
}

/// What a Cluster Agent has of a `DatadogMetric`.
#[derive(Debug, Serialize)]
pub(super) struct MetricSeen {
    /// As the agent calls it.
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<f64>,
    /// Of Datadog's point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) at_ms: Option<i64>,
    /// Below 0 if the clocks differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) age_seconds: Option<i64>,
    /// Beyond that, the value is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_age_seconds: Option<u64>,
}

/// An answer of Datadog's.
#[derive(Debug, Serialize)]
pub(super) struct Seen {
    pub(super) window: Span,
    pub(super) series: Vec<SeriesSeen>,
    /// How the value was made of the series, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reckoning: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Span {
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct SeriesSeen {
    pub(super) scope: String,
    /// Oldest first; only those that have a value.
    pub(super) points: Vec<PointSeen>,
    pub(super) nulls: usize,
    /// Width of a bucket, where it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interval_seconds: Option<u64>,
    /// What was made of its points, if any is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PointSeen {
    pub(super) at_ms: i64,
    pub(super) value: f64,
    /// Whether the value was made of it.
    pub(super) counts: bool,
}

/// One RPC.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Call {
    pub(super) rpc: &'static str,
    /// As gRPC spells it.
    pub(super) code: &'static str,
    #[serde(flatten)]
    pub(super) answer: Answer,
    pub(super) took_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Spec { metric: String, target: f64 },
    Value { value: f64 },
    Active { active: bool },
    Failed { message: String },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(super) enum Outcome {
    Answered { value: f64, active: bool, target: f64 },
    Failed(Failed),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Failed {
    /// The first that has no answer.
    pub(super) rpc: &'static str,
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// What follows from a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scaling {
    /// Of a ScaledObject.
    Replicas(Replicas),
    /// Of a ScaledJob.
    Jobs(Jobs),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Replicas {
    /// That there are.
    pub(super) current: u32,
    /// Which of the next two counts.
    pub(super) metric_type: MetricType,
    pub(super) by_average_value: u64,
    pub(super) by_value: u64,
    /// Within the bounds.
    pub(super) wanted: u64,
    pub(super) min: u64,
    pub(super) max: u64,
    /// Where KEDA goes once no trigger is active, if that is below `min`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum MetricType {
    AverageValue,
    Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Jobs {
    /// Before `strategy` takes off those that there are.
    pub(super) wanted: u64,
    /// That KEDA keeps besides.
    pub(super) min: u64,
    /// Beyond those.
    pub(super) max: u64,
    pub(super) strategy: String,
}

/// How long a reading lasts while Datadog fails.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "JSON has no other place for the unit")]
pub(super) struct Hold {
    /// As the server reads, or would.
    pub(super) refresh_seconds: f64,
    /// An active value, past its due refresh.
    pub(super) hold_seconds: f64,
    /// An active value, after it was read.
    pub(super) active_seconds: f64,
    /// One that is not active, after it was read.
    pub(super) inactive_seconds: f64,
    /// What keeps the replicas of a ScaledObject up besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cooldown_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stabilization_seconds: Option<u64>,
}

/// One thing that KEDA sees while `--watch` goes on.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    pub(super) at_ms: i64,
    /// Which trigger, in short.
    pub(super) trigger: String,
    #[serde(flatten)]
    pub(super) happening: Happening,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Happening {
    Poll {
        #[serde(flatten)]
        outcome: Outcome,
        took_ms: f64,
    },
    Push {
        active: bool,
    },
    /// The stream ended, with this code.
    Ended {
        code: &'static str,
        #[serde(skip_serializing_if = "String::is_empty")]
        message: String,
    },
}

impl Examined {
    pub(super) fn find(&mut self, level: Level, step: Step, message: impl Into<String>) {
        self.findings.push(Finding { level, step, message: message.into() });
    }

    pub(super) fn says(&self, message: &str) -> bool {
        self.findings.iter().any(|finding| finding.message == message)
    }

    /// The worst of its findings.
    pub(super) fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Note)
    }

    pub(super) fn is_fine(&self) -> bool {
        self.level() == Level::Note
    }

    /// `demo/shop[0]`, as one line names it.
    pub(super) fn label(&self) -> String {
        let namespace = self.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
        let trigger = self.name.as_ref().map_or_else(|| self.index.to_string(), Clone::clone);
        format!("{namespace}{}[{trigger}]", self.object)
    }
}

impl Failed {
    /// As a sentence says what KEDA gets.
    pub(super) fn gets(&self) -> &'static str {
        if self.code == "OK" { "an empty answer" } else { self.code }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AverageValue => "AverageValue",
            Self::Value => "Value",
        })
    }
}
