//! What the author of a ScaledObject wrote, understood: `metadata` turns the map into a
//! `Trigger`, `interpret` says what a trigger makes of a reading.

use std::{fmt, time::Duration};

use crate::demand::Query;

mod metadata;
mod values;
mod keys;
mod fault;
mod interpret;
mod circumstances;

pub use circumstances::{Circumstances, Contradiction, Owner};
pub use fault::{Fault, MetadataError};
pub use interpret::{Measure, Unanswered};
pub use keys::{Advice, KEYS};
pub(crate) use keys::{KEYS_OF_KEDA, advice, is_meant_for_us};

/// One trigger of a ScaledObject or ScaledJob. Whatever it holds has been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    pub subject: Subject,
    pub reckoning: Reckoning,
    /// The HPA's target, at least `MIN_TARGET`.
    pub target: f64,
    /// The trigger is active while its value is above this.
    pub activation: f64,
    /// Served when there is no data (`metricUnavailableValue`).
    pub fill: Option<f64>,
    /// `holdLastValue`; `None` leaves it to the server.
    pub hold: Option<Duration>,
    /// `timeout`; can only shorten the server's patience.
    pub timeout: Option<Duration>,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// A query, read from the Datadog API.
    Query(Query),
    /// A `DatadogMetric`, read from the Cluster Agent (`useClusterAgentProxy`).
    DatadogMetric {
        namespace: String,
        name: String,
        /// A value that is older is none. `None` leaves it to the server.
        max_age: Option<Duration>,
    },
}

/// How one number comes of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reckoning {
    /// First over time: which of a series' newest points count, and what is made of them.
    pub offset: PointOffset,
    pub over_time: TimeAggregator,
    /// Then over the series; required when there is more than one.
    pub over_series: Option<Aggregator>,
}

impl Reckoning {
    /// The newest point of the one series that there is.
    pub const NEWEST: Self =
        Self { offset: PointOffset::Points(0), over_time: TimeAggregator::Last, over_series: None };
}

/// `lastAvailablePointOffset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointOffset {
    /// Leave out this many of the newest points that have a value.
    Points(usize),
    /// Leave out the bucket that is still filling.
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeAggregator {
    Last,
    Over(Aggregator),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregator {
    Average,
    Max,
    Min,
    Sum,
}

impl Trigger {
    /// The smallest target that KEDA can express: it formats targets with three decimals
    /// (`quantityFromFloat64`, `pkg/scalers/external_scaler.go`).
    pub const MIN_TARGET: f64 = 0.0005;

    /// The same, with the server's own idea of when a value of a Cluster Agent is too old, unless
    /// the trigger has one.
    #[must_use]
    pub fn or_max_age(mut self, default: Duration) -> Self {
        if let Subject::DatadogMetric { max_age, .. } = &mut self.subject {
            max_age.get_or_insert(default);
        }
        self
    }

    /// How long an answer may take; `default` is the server's patience.
    pub(crate) fn patience(&self, default: Duration) -> Duration {
        self.timeout.map_or(default, |timeout| timeout.min(default))
    }

    /// How long a reading is held past its due refresh, `interval` after it was taken. One that
    /// says *inactive* is not held beyond one missed refresh, for what it leads to is the end of
    /// the workload. `default_hold` is the server's.
    pub(crate) fn held_for(
        &self,
        active: bool,
        interval: Duration,
        default_hold: Duration,
    ) -> Duration {
        let hold = self.hold.unwrap_or(default_hold);
        if active { hold } else { hold.min(interval) }
    }

    /// The name the built-in scaler would give the HPA metric, without the `sN-` that KEDA puts
    /// before it.
    pub fn metric_name(&self) -> String {
        match &self.subject {
            Subject::Query(query) => {
                let text = &*query.text;
                let head = text.split('{').next().unwrap_or(text);
                // `NormalizeString`, pkg/util/normalize_string.go
                let replaced = ['/', '.', ':', '%', '(', ')'];
                format!("datadog-{head}").replace(replaced, "-")
            }
            Subject::DatadogMetric { namespace, name, .. } => {
                format!("datadogmetric@{namespace}:{name}")
            }
        }
    }
}

impl Aggregator {
    /// `None` of nothing.
    fn fold(self, values: impl Iterator<Item = f64>) -> Option<f64> {
        let mut count = 0.0;
        let folded = values.inspect(|_| count += 1.0).reduce(|a, b| match self {
            Self::Average | Self::Sum => a + b,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
        })?;
        Some(if self == Self::Average { folded / count } else { folded })
    }
}

impl fmt::Display for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Average => "average",
            Self::Max => "max",
            Self::Min => "min",
            Self::Sum => "sum",
        })
    }
}
