//! What `check` found, as data: told as text, or printed as JSON (`--output json`).

use std::fmt;

use serde::Serialize;

/// All of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// There is no error and no warning.
    pub(super) fine: bool,
    pub(super) triggers: Vec<Examined>,
}

/// One trigger, examined. What could not be found out is left out.
#[derive(Debug, Serialize)]
pub(super) struct Examined {
    pub(super) file: String,
    /// `ScaledObject` or `ScaledJob`.
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) object: String,
    /// From 0.
    pub(super) index: usize,
    pub(super) name: Option<String>,
    pub(super) r#type: String,
    pub(super) findings: Vec<Finding>,
    pub(super) settings: Vec<Setting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<Request>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) series: Vec<SeriesSeen>,
    /// How the value was made of the series, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reckoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) calls: Vec<Call>,
    /// What KEDA gets, or would get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replicas: Option<Replicas>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// It does not work.
    Error,
    /// It works, but hardly as meant.
    Warning,
    /// Good to know; nothing is wrong.
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    Trigger,
    Metadata,
    Request,
    Series,
    Calls,
    Hold,
}

/// One metadata key that has an effect, as it was understood.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    pub(super) key: &'static str,
    pub(super) value: String,
    /// Else it is the default.
    pub(super) given: bool,
}

/// What was asked of Datadog.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Request {
    pub(super) host: String,
    /// Where the keys come from.
    pub(super) keys: String,
    /// Milliseconds since the Unix epoch, as all instants here; left out without an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<Span>,
    pub(super) took_ms: f64,
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
    pub(super) interval_seconds: Option<u64>,
    /// What was made of its points; null if none is left.
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

/// What KEDA makes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Value { value: f64, active: bool, target: f64 },
    Failed { code: &'static str, message: String },
}

/// What the HPA, or for a ScaledJob KEDA, would ask for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Replicas {
    /// Replicas that there are.
    pub(super) at: u32,
    pub(super) average_value: Count,
    pub(super) value: Count,
    /// Which of the two the trigger's `metricType` takes.
    pub(super) metric_type: &'static str,
    /// That, within the bounds of the object.
    pub(super) asked: u64,
    pub(super) least: u64,
    pub(super) most: u64,
    /// Where KEDA goes once no trigger is active; left out where it never goes below `least`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Count {
    pub(super) replicas: u64,
    /// The value is off by so little that the HPA leaves the replicas as they are.
    pub(super) within_tolerance: bool,
}

/// How long a reading lasts while Datadog fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_field_names, reason = "JSON has no other place for the unit")]
pub(super) struct Hold {
    /// As the server reads, or would.
    pub(super) refresh_seconds: u64,
    /// Past the due refresh.
    pub(super) hold_seconds: u64,
    /// After the last good reading, an active value is served no longer than this.
    pub(super) active_seconds: u64,
    /// The same of an inactive one.
    pub(super) inactive_seconds: u64,
    /// What keeps the replicas of a ScaledObject up besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cooldown_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stabilization_seconds: Option<u64>,
}

impl Examined {
    pub(super) fn find(&mut self, level: Level, step: Step, message: impl Into<String>) {
        self.findings.push(Finding { level, step, message: message.into() });
    }

    /// The worst of its findings.
    pub(super) fn level(&self) -> Level {
        let any = |level| self.findings.iter().any(|finding| finding.level == level);
        [Level::Error, Level::Warning].into_iter().find(|level| any(*level)).unwrap_or(Level::Note)
    }

    pub(super) fn is_fine(&self) -> bool {
        self.level() == Level::Note
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
