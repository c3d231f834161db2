//! What is wrong with a trigger's metadata, and how its author is told.

use std::fmt;

use super::keys::Advice;

/// All that is wrong with one metadata map; at least one fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; also "))]
pub struct MetadataError {
    pub faults: Vec<Fault>,
}

impl MetadataError {
    /// Whether a fault says as much.
    pub(crate) fn mentions(&self, advice: &Advice) -> bool {
        self.faults.iter().any(|fault| match fault {
            Fault::Missing { nearest: Some(nearest), .. } => nearest == advice.key(),
            Fault::Unwanted(unwanted) => unwanted == advice,
            Fault::Missing { nearest: None, .. } | Fault::Invalid { .. } | Fault::Secret { .. } => {
                false
            }
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Missing {
        key: &'static str,
        /// A key that was given, is unknown, and looks like this one.
        nearest: Option<String>,
    },
    Invalid {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
    /// A key or token, whose value is not repeated.
    Secret {
        key: String,
    },
    /// With `--strict-metadata` only.
    Unwanted(Advice),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { key, nearest: Some(nearest) } => {
                write!(f, "`{nearest}` is not known; did you mean `{key}`, which is missing?")
            }
            Self::Missing { key: key @ "queryValue", nearest: None } => write!(
                f,
                "`{key}` (or `targetValue`) is missing; set it, or `asMetricSource: \"true\"` if \
                 `scalingModifiers` sets the target"
            ),
            Self::Missing { key, nearest: None } => write!(f, "`{key}` is missing; set it"),
            Self::Invalid { key, value, expected } => {
                write!(f, "`{key}` is \"{value}\", but must be {expected}")
            }
            Self::Secret { key } => write!(
                f,
                "`{key}` does not belong into metadata, which others can read; put the keys into a \
                 Secret, and refer to it with a TriggerAuthentication (`authenticationRef`)"
            ),
            Self::Unwanted(advice) => advice.fmt(f),
        }
    }
}
