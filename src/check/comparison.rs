//! What `--compare-batch` found, as data: told as text, or printed as JSON. Instants are milliseconds
//! since the Unix epoch; what is not known is left out.

use serde::Serialize;

use super::report::Span;

/// All of one run.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    /// Nothing differs, nothing failed, and everything could be read.
    pub(super) fine: bool,
    /// Objects that cannot be read, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unreadable: Vec<String>,
    pub(super) left_out: LeftOut,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<String>,
    /// Where the keys come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<String>,
    /// How long before the run the windows end.
    pub(super) settled_seconds: i64,
    /// Each request that the server would make.
    pub(super) batches: Vec<Together>,
    /// That were made in all.
    pub(super) requests: usize,
    /// Why no more were made, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stopped: Option<String>,
}

/// What is not compared: triggers, and queries beyond the most that are.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct LeftOut {
    /// Triggers that are not this scaler's.
    pub(super) others: usize,
    /// Those that ask the Cluster Agent.
    pub(super) cluster_agent: usize,
    /// Those whose metadata has a fault.
    pub(super) unusable: usize,
    /// Queries.
    pub(super) excess: usize,
}

/// The queries of one request.
#[derive(Debug, Serialize)]
pub(super) struct Together {
    pub(super) age_seconds: u64,
    pub(super) offset_seconds: u64,
    /// None if it was not asked for, or failed as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<Span>,
    /// Why it failed as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// What the server would do about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) then: Option<&'static str>,
    pub(super) queries: Vec<Compared>,
}

#[derive(Debug, Serialize)]
pub(super) struct Compared {
    pub(super) query: String,
    /// Whose query it is, in short.
    pub(super) triggers: Vec<String>,
    pub(super) verdict: Verdict,
    /// That the answer alone has. Two that are empty are equal, but prove little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) points: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) differences: Vec<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) together_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) alone_error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Equal,
    Differs,
    /// There was no answer, together or alone.
    Failed,
    /// The server sends it alone, too.
    Alone,
    /// One of the two requests was not made.
    Unasked,
}

/// One thing in which a query's answer together with others is not the one that it has alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub(super) enum Difference {
    /// Numbers of series, and the scopes of those that the other answer lacks.
    Series { together: usize, alone: usize, only_together: Vec<String>, only_alone: Vec<String> },
    /// Of the series that both have.
    Points(Points),
    /// Widths of buckets, where a trigger has to know them.
    Interval {
        /// Series that differ; what follows is of the first.
        series: usize,
        scope: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        together_seconds: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        alone_seconds: Option<u64>,
    },
    /// What a trigger makes of it.
    Value { trigger: String, together: Made, alone: Made },
}

/// Counts of points that have a value.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Points {
    pub(super) only_together: usize,
    pub(super) only_alone: usize,
    /// With another value.
    pub(super) changed: usize,
    /// Of these, where the values are furthest apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) furthest: Option<Change>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    pub(super) scope: String,
    pub(super) at_ms: i64,
    pub(super) together: f64,
    pub(super) alone: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Made {
    Value {
        value: f64,
    },
    /// Why there is none.
    Nothing {
        message: String,
    },
}

impl Compared {
    pub(super) fn is_empty(&self) -> bool {
        self.verdict == Verdict::Equal && self.points == Some(0)
    }
}

impl Comparison {
    pub(super) fn queries(&self) -> impl Iterator<Item = &Compared> {
        self.batches.iter().flat_map(|batch| &batch.queries)
    }
}
