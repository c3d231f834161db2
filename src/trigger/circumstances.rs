//! What is sound in a trigger, but contradicts the object that it belongs to.

use std::{fmt, time::Duration};

/// What the object says that KEDA does not pass on.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    pub owner: Owner,
    /// Of type `external-push`.
    pub pushes: bool,
    /// `metricType: Value`.
    pub is_value: bool,
    /// `type: global` in the metadata.
    pub is_global: bool,
}

/// What the trigger belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Owner {
    ScaledObject {
        /// How long the last replicas are kept; `None` if there is no way to zero.
        cooldown: Option<Duration>,
        /// The HPA's, for scaling down.
        stabilization: Option<Duration>,
    },
    ScaledJob,
}

/// Works, but not as its author thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// `type: global` without `metricType: Value`.
    Global,
    /// KEDA does not stream for a ScaledJob.
    PushOfJob,
    /// Held values of a ScaledJob start Jobs again.
    HoldOfJob,
    /// A reading is held longer than the object keeps its replicas.
    Hold { hold: Duration, name: &'static str, keeps: Duration },
}

impl Circumstances {
    /// `hold` is how long an active reading of the trigger is held.
    pub fn contradictions(&self, hold: Duration) -> Vec<Contradiction> {
        let mut found = Vec::new();
        if self.is_global && !self.is_value {
            found.push(Contradiction::Global);
        }
        match self.owner {
            Owner::ScaledJob => {
                if self.pushes {
                    found.push(Contradiction::PushOfJob);
                }
                if !hold.is_zero() {
                    found.push(Contradiction::HoldOfJob);
                }
            }
            Owner::ScaledObject { cooldown, stabilization } => {
                let windows =
                    [("cooldownPeriod", cooldown), ("stabilizationWindowSeconds", stabilization)];
                for (name, keeps) in windows {
                    if let Some(keeps) = keeps.filter(|keeps| hold > *keeps) {
                        found.push(Contradiction::Hold { hold, name, keeps });
                    }
                }
            }
        }
        found
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str(
                "`type` in the metadata is \"global\", which has no effect; for one target for all \
                 replicas together, set `metricType: Value` for the trigger",
            ),
            Self::PushOfJob => f.write_str(
                "`type` is \"external-push\", but KEDA polls a ScaledJob; set `type: external`",
            ),
            Self::HoldOfJob => f.write_str(
                "a value that is held would start Jobs again for work already done; set \
                 `holdLastValue: \"0\"`, or take it out where the scaler uses Kubernetes, and so \
                 knows a ScaledJob",
            ),
            Self::Hold { hold, name, keeps } => {
                let (hold, keeps) = (hold.as_secs_f64(), keeps.as_secs());
                write!(
                    f,
                    "a reading is held for {hold} s, longer than `{name}` ({keeps} s) keeps the \
                     replicas; set `holdLastValue: \"{keeps}\"`, or a longer `{name}`"
                )
            }
        }
    }
}
