//! The keys of a trigger's metadata, and what is said of those that mean nothing.

use std::{collections::HashMap, fmt};

use crate::words::shorten;

/// Every key that means something, to us or to KEDA.
pub const KEYS: [&str; 31] = [
    "activationQueryValue",
    "activationTargetValue",
    "age",
    "asMetricSource",
    "authMode",
    "authModes",
    "datadogMetricName",
    "datadogMetricNamespace",
    "enableTLS",
    "holdLastValue",
    "hpaMetricName",
    "lastAvailablePointOffset",
    "maxAge",
    "metricUnavailableValue",
    "query",
    "queryAggregator",
    "queryValue",
    "scalerAddress",
    "targetValue",
    "timeAggregator",
    "timeWindowOffset",
    "timeout",
    "triggerName",
    "type",
    "unsafeSsl",
    "useClusterAgentProxy",
    // KEDA's generic external scaler reads these from a TriggerAuthentication only; older
    // documentation shows them in the metadata, where they do no harm.
    "caCert",
    "tlsCertFile",
    "tlsClientCert",
    "tlsClientKey",
    "tlsKeyFile",
];

/// Those of `KEYS` that say how KEDA reaches a scaler, whichever that is.
pub(crate) const KEYS_OF_KEDA: [&str; 9] = [
    "caCert",
    "enableTLS",
    "hpaMetricName",
    "scalerAddress",
    "tlsCertFile",
    "tlsClientCert",
    "tlsClientKey",
    "tlsKeyFile",
    "unsafeSsl",
];

/// Parameters of a TriggerAuthentication that are secrets. Metadata is read by whoever may read
/// the ScaledObject, and KEDA sends it in each request.
const SECRETS: [&str; 4] = ["apiKey", "appKey", "bearerToken", "token"];
/// The others. In the metadata they have no effect: keys go only where whoever gave them says.
const PARAMETERS: [&str; 5] = [
    "datadogCaCert",
    "datadogMetricsService",
    "datadogMetricsServicePort",
    "datadogNamespace",
    "datadogSite",
];

/// How alike two keys must be (0 to 1) for one to be taken for the other.
const LIKENESS: f64 = 0.7;
/// Most unknown keys of one trigger that are looked at.
const MAX_QUESTIONED: usize = 20;
/// Most characters of a value or unknown key that a message repeats.
pub(super) const MAX_SHOWN: usize = 100;

/// Something that works, but perhaps not as its author thinks. Values are not repeated: that of
/// an unknown key may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    Unknown { key: String },
    Parameter { key: String },
}

/// Whether it is one of ours, or was probably meant to be.
pub(crate) fn is_meant_for_us(key: &str) -> bool {
    let known = KEYS.iter().find(|known| **known == key).copied();
    known.or_else(|| nearest_key(key)).is_some_and(|known| !KEYS_OF_KEDA.contains(&known))
}

/// What is to be said of the keys. Cheap: it is asked for with each RPC.
pub(crate) fn advice(metadata: &HashMap<String, String>) -> Vec<Advice> {
    let question = |key: &str| {
        if PARAMETERS.contains(&key.strip_suffix("FromEnv").unwrap_or(key)) {
            Advice::Parameter { key: key.to_owned() }
        } else {
            Advice::Unknown { key: shorten(key, MAX_SHOWN) }
        }
    };
    unknown_keys(metadata).filter(|key| !is_secret(key)).map(question).collect()
}

/// Whether it is a key or token, or the name of a variable that holds one.
pub(super) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key.strip_suffix("FromEnv").unwrap_or(key))
}

/// In alphabetical order, and not too many.
pub(super) fn unknown_keys(metadata: &HashMap<String, String>) -> impl Iterator<Item = &str> {
    let keys = metadata.keys().map(String::as_str);
    let mut unknown: Vec<&str> = keys.filter(|key| !KEYS.contains(key)).collect();
    unknown.sort_unstable();
    unknown.into_iter().take(MAX_QUESTIONED)
}

/// The known key that an unknown one was probably meant to be.
pub(super) fn nearest_key(key: &str) -> Option<&'static str> {
    // The distance takes time in both lengths; a key may be anything.
    if key.len() > MAX_SHOWN {
        return None;
    }
    let key = key.to_lowercase();
    KEYS.iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(&key, &known.to_lowercase()), *known))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

impl Advice {
    /// The key that it is about.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Unknown { key } | Self::Parameter { key } => key,
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { key } => match nearest_key(key) {
                Some(nearest) => {
                    write!(f, "`{key}` is not known; did you mean `{nearest}`?")
                }
                None => write!(f, "`{key}` is not known; take it out"),
            },
            Self::Parameter { key } => write!(
                f,
                "`{key}` has no effect in metadata; it belongs into the TriggerAuthentication that \
                 has the keys"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_questioned_without_its_value() {
        let keys = ["query", "datadogSite", "colour", "queryAggregater", "scalerAddress"];
        let metadata = keys.map(|key| (key.to_owned(), "secret".to_owned())).into();
        let advice: Vec<String> = advice(&metadata).iter().map(ToString::to_string).collect();
        assert_eq!(
            advice,
            [
                "`colour` is not known; take it out",
                "`datadogSite` has no effect in metadata; it belongs into the \
                 TriggerAuthentication that has the keys",
                "`queryAggregater` is not known; did you mean `queryAggregator`?",
            ]
        );
    }
}
