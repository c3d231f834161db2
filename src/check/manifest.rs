//! ScaledObjects and ScaledJobs as they are written down, with KEDA's defaults. Tolerant: what
//! Kubernetes or KEDA would refuse is for the examination to say, where it stands.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{
    demand::Service,
    kubernetes::{Kind, Reference},
    proto::ScaledObjectRef,
    trigger::is_meant_for_us,
    words::boolean,
};

/// In place of a file's name.
pub(super) const OF_METADATA: &str = "--metadata";

/// A ScaledObject or ScaledJob as it is written down.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// As messages name it.
    pub(super) file: String,
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) spec: Spec,
}

/// Defaults are those of `apis/keda/v1alpha1`; counts of seconds and of replicas.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) triggers: Vec<TriggerSpec>,
    pub(super) polling_interval: u64,
    pub(super) cooldown_period: u64,
    pub(super) idle_replica_count: Option<u64>,
    min_replica_count: Option<u64>,
    max_replica_count: Option<u64>,
    advanced: Advanced,
    scaling_strategy: ScalingStrategy,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            triggers: Vec::new(),
            polling_interval: 30,
            cooldown_period: 300,
            idle_replica_count: None,
            min_replica_count: None,
            max_replica_count: None,
            advanced: Advanced::default(),
            scaling_strategy: ScalingStrategy::default(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Advanced {
    horizontal_pod_autoscaler_config: HpaConfig,
    scaling_modifiers: ScalingModifiers,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ScalingModifiers {
    formula: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct HpaConfig {
    behavior: Behavior,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Behavior {
    scale_down: ScaleDown,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScaleDown {
    stabilization_window_seconds: u64,
}

impl Default for ScaleDown {
    fn default() -> Self {
        Self { stabilization_window_seconds: 300 }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ScalingStrategy {
    strategy: String,
}

/// One trigger as it is written down.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TriggerSpec {
    pub(super) r#type: String,
    #[serde(deserialize_with = "filled")]
    pub(super) name: Option<String>,
    /// Kubernetes takes texts only, but people write numbers.
    pub(super) metadata: BTreeMap<String, Value>,
    #[serde(deserialize_with = "filled")]
    pub(super) metric_type: Option<String>,
    pub(super) authentication_ref: Option<AuthenticationRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthenticationRef {
    pub(super) name: String,
    kind: String,
}

/// An empty text is none.
fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// A trigger that is to be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) spec: &'a TriggerSpec,
    /// From 0.
    pub(super) index: usize,
}

impl Manifest {
    /// One trigger of a ScaledObject that there need not be. As KEDA opens a stream for a trigger
    /// that pushes, it does.
    pub(super) fn of_metadata(metadata: &BTreeMap<String, String>) -> Self {
        let text = |(key, value): (&String, &String)| (key.clone(), Value::String(value.clone()));
        let metadata = metadata.iter().map(text).collect();
        let r#type = "external-push".to_owned();
        let trigger = TriggerSpec { r#type, metadata, ..TriggerSpec::default() };
        Self {
            file: OF_METADATA.to_owned(),
            kind: Kind::ScaledObject,
            namespace: None,
            name: "check".to_owned(),
            spec: Spec { triggers: vec![trigger], ..Spec::default() },
        }
    }
}

impl Selected<'_> {
    pub(super) fn is(&self, wanted: &str) -> bool {
        self.spec.name.as_deref() == Some(wanted) || self.index.to_string() == wanted
    }

    /// Whom it asks, sound or not.
    pub(super) fn service(&self) -> Service {
        let metadata = self.reference().scaler_metadata;
        let uses_agent = metadata.get("useClusterAgentProxy").map(|text| boolean(text.trim()));
        if uses_agent == Some(Some(true)) { Service::ClusterAgent } else { Service::DatadogApi }
    }

    /// Whether KEDA opens streams for it.
    pub(super) fn pushes(&self) -> bool {
        self.manifest.kind == Kind::ScaledObject && self.spec.r#type == "external-push"
    }

    /// Whether KEDA's requests for it could be those for another trigger, which has other keys.
    pub(super) fn has_double(&self) -> bool {
        self.manifest.spec.triggers.iter().any(|other| {
            let is_external = matches!(&*other.r#type, "external" | "external-push");
            is_external
                && other.metadata == self.spec.metadata
                && other.authentication() != self.spec.authentication()
        })
    }

    /// What KEDA sends of it. Values of keys that end in `FromEnv` are the names of variables.
    pub(super) fn reference(&self) -> ScaledObjectRef {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let metadata = self.spec.metadata.iter().map(|(key, value)| (key.clone(), text(value)));
        let Manifest { name, namespace, .. } = self.manifest;
        ScaledObjectRef {
            name: name.clone(),
            namespace: namespace.clone().unwrap_or_else(|| "default".to_owned()),
            scaler_metadata: metadata.collect(),
        }
    }
}

impl Spec {
    /// `scaleDown.stabilizationWindowSeconds` of the HPA.
    pub(super) fn stabilization_window(&self) -> u64 {
        let behavior = &self.advanced.horizontal_pod_autoscaler_config.behavior;
        behavior.scale_down.stabilization_window_seconds
    }

    pub(super) fn has_scaling_modifiers(&self) -> bool {
        !self.advanced.scaling_modifiers.formula.is_empty()
    }

    pub(super) fn min_replica_count(&self) -> u64 {
        self.min_replica_count.unwrap_or(0)
    }

    pub(super) fn max_replica_count(&self) -> u64 {
        self.max_replica_count.unwrap_or(100)
    }

    /// Where KEDA goes when no trigger is active, if that is below what the HPA keeps.
    pub(super) fn idle(&self) -> Option<u64> {
        self.idle_replica_count.or((self.min_replica_count() == 0).then_some(0))
    }

    /// Of a ScaledJob.
    pub(super) fn strategy(&self) -> &str {
        let strategy = &self.scaling_strategy.strategy;
        if strategy.is_empty() { "default" } else { strategy }
    }
}

impl TriggerSpec {
    /// Where its keys are to come from, if it says so.
    pub(super) fn authentication(&self) -> Option<Reference> {
        let reference = self.authentication_ref.as_ref()?;
        Reference::new(&reference.kind, &reference.name)
    }

    /// Whether this program answers it. Others have external scalers too.
    pub(super) fn is_ours(&self) -> bool {
        let has_our_key = || self.metadata.keys().any(|key| is_meant_for_us(key));
        match &*self.r#type {
            "datadog" => true,
            "external" | "external-push" => has_our_key(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keda_has_defaults() {
        let spec = Spec::default();
        let seconds = (spec.polling_interval, spec.cooldown_period, spec.stabilization_window());
        assert_eq!(seconds, (30, 300, 300));
        assert_eq!((spec.min_replica_count(), spec.max_replica_count()), (0, 100));
        assert_eq!((spec.idle(), spec.strategy()), (Some(0), "default"));
    }
}
