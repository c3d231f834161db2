//! Pure: what the watches have told of `DatadogMetric`s, into which a Cluster Agent writes what it
//! reads. (`datadoghq.com/v1alpha1`, `api/datadoghq/v1alpha1/datadogmetric_types.go` of
//! DataDog/datadog-operator.)

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use serde::Deserialize;
use serde_json::Value;

use crate::words::{go, shorten};

/// One of them, as its status has it. By the clocks of the Cluster Agent and of Datadog.
#[derive(Debug, Default, PartialEq)]
pub struct DatadogMetric {
    /// Whether the Cluster Agent reads it; `None` if it has yet to say.
    pub is_active: Option<bool>,
    /// Whether what it read last is a value.
    pub is_valid: bool,
    /// Why that is none, in the Cluster Agent's words.
    pub error: Option<Box<str>>,
    /// As it stands there, also where it is not valid.
    pub value: Option<f64>,
    /// The time of Datadog's point.
    pub taken_at: Option<Timestamp>,
    /// When the Cluster Agent last wrote into it.
    pub refreshed_at: Option<Timestamp>,
    /// `spec.maxAge`; the Cluster Agent's own counts if it is 0, as Go's clients write it that set none.
    pub max_age: Option<Duration>,
}

/// Why nothing is known of the `DatadogMetric`s of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWatch {
    #[error(
        "the scaler does not watch the DatadogMetrics of that namespace; add it to `--namespaces`"
    )]
    Uncovered,
    #[error("Kubernetes has not told of DatadogMetrics yet; it is asked again")]
    Unlisted,
    #[error(
        "Kubernetes forbids the scaler to watch `datadogmetrics`; grant it (see Rights in the README)"
    )]
    Forbidden,
    #[error(
        "Kubernetes knows no DatadogMetrics; have the Cluster Agent's chart or operator install \
         their definition"
    )]
    Absent,
}

/// Namespace and name.
pub type MetricName = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct DatadogMetrics {
    known: HashMap<Arc<str>, HashMap<Arc<str>, Kept>>,
    /// Where a listing has been complete; `None` is everywhere.
    listed: HashSet<Option<Arc<str>>>,
    /// Since they were last taken.
    changed: HashSet<MetricName>,
}

#[derive(Debug)]
struct Kept {
    metric: Arc<DatadogMetric>,
    /// Of the listing that saw it last.
    epoch: u64,
}

/// Most characters of an error; it quotes the query.
const MAX_ERROR: usize = 1_000;

pub(super) fn resource() -> ApiResource {
    ApiResource {
        group: "datadoghq.com".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "datadoghq.com/v1alpha1".to_owned(),
        kind: "DatadogMetric".to_owned(),
        plural: "datadogmetrics".to_owned(),
    }
}

impl DatadogMetrics {
    /// `None` if there is none of this name where a listing was complete.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<DatadogMetric>> {
        Some(self.known.get(namespace)?.get(name)?.metric.clone())
    }

    pub(super) fn is_listed(&self, namespace: &str) -> bool {
        self.listed.iter().any(|of| of.as_deref().is_none_or(|of| of == namespace))
    }

    /// Everything there is known, since a listing was complete and has not been forgotten.
    pub(super) fn has_listed(&self, scope: Option<&Arc<str>>) -> bool {
        self.listed.contains(&scope.cloned())
    }

    pub(super) fn put(&mut self, (namespace, name): MetricName, metric: DatadogMetric, epoch: u64) {
        let of_namespace = self.known.entry(namespace.clone()).or_default();
        match of_namespace.get_mut(&name) {
            Some(kept) if *kept.metric == metric => kept.epoch = epoch,
            _ => {
                of_namespace.insert(name.clone(), Kept { metric: Arc::new(metric), epoch });
                self.changed.insert((namespace, name));
            }
        }
    }

    pub(super) fn remove(&mut self, (namespace, name): &MetricName) {
        let Some(of_namespace) = self.known.get_mut(namespace) else { return };
        if of_namespace.remove(name).is_some() {
            self.changed.insert((namespace.clone(), name.clone()));
        }
        if of_namespace.is_empty() {
            self.known.remove(namespace);
        }
    }

    /// A listing that began as `epoch` is complete: what it did not see is gone.
    pub(super) fn end(&mut self, scope: Option<&Arc<str>>, epoch: u64) {
        let is_first = self.listed.insert(scope.cloned());
        for (namespace, of_namespace) in &mut self.known {
            if scope.is_none_or(|scope| scope == namespace) {
                let gone = of_namespace.extract_if(|_, kept| kept.epoch < epoch);
                self.changed.extend(gone.map(|(name, _)| (namespace.clone(), name)));
                if is_first {
                    let names = of_namespace.keys().cloned();
                    self.changed.extend(names.map(|name| (namespace.clone(), name)));
                }
            }
        }
        self.known.retain(|_, of_namespace| !of_namespace.is_empty());
    }

    /// There is no watch there any more: nothing is known.
    pub(super) fn forget(&mut self, scope: Option<&Arc<str>>) {
        if self.listed.remove(&scope.cloned()) {
            self.known.retain(|namespace, _| scope.is_some_and(|scope| scope != namespace));
        }
    }

    pub(super) fn take_changed(&mut self) -> HashSet<MetricName> {
        std::mem::take(&mut self.changed)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    current_value: Option<String>,
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    last_update_time: Option<String>,
    message: Option<String>,
}

impl DatadogMetric {
    /// What is not as its CRD has it counts as not there.
    pub(super) fn read(object: &DynamicObject) -> Self {
        let spec = &object.data["spec"];
        let status = Status::deserialize(&object.data["status"]).unwrap_or_default();
        let condition = |name: &str| status.conditions.iter().find(|it| it.r#type == name);
        let is = |condition: &Condition| condition.status == "True";
        let at = |name: &str| condition(name)?.last_update_time.as_deref()?.parse().ok();
        let error = condition("Error").filter(|error| is(error));
        let error = error.and_then(|error| error.message.as_deref());
        Self {
            is_active: condition("Active").map(is),
            is_valid: condition("Valid").is_some_and(is),
            error: error
                .filter(|text| !text.is_empty())
                .map(|text| shorten(text, MAX_ERROR).into()),
            value: status.current_value.and_then(|value| value.parse().ok()),
            taken_at: at("Updated"),
            refreshed_at: ["Active", "Valid", "Error"].into_iter().filter_map(at).max(),
            max_age: spec
                .get("maxAge")
                .and_then(Value::as_str)
                .and_then(go::duration)
                .filter(|max_age| !max_age.is_zero()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(object: Value) -> DatadogMetric {
        DatadogMetric::read(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_a_cluster_agent_writes_is_read() {
        let condition = |name: &str, status: &str, at: Value| {
            json!({
                "type": name, "status": status, "lastUpdateTime": at,
                "lastTransitionTime": "2026-11-22T05:00:00Z",
            })
        };
        let mut error = condition("Error", "True", json!("2026-11-22T05:36:20Z"));
        error["message"] = "no serie was found".into();
        let mut object = json!({
            "metadata": {"namespace": "shop", "name": "orders"},
            "spec": {"query": "avg:a{*}", "maxAge": "5m"},
            "status": {
                "currentValue": "1977.2",
                "autoscalerReferences": "",
                "conditions": [
                    condition("Active", "True", json!("2026-11-22T05:36:00Z")),
                    condition("Valid", "False", json!("2026-11-22T05:36:10Z")),
                    condition("Updated", "True", json!("2026-11-22T05:35:50Z")),
                    error,
                ],
            },
        });
        let expected = DatadogMetric {
            is_active: Some(true),
            is_valid: false,
            error: Some("no serie was found".into()),
            value: Some(1_977.2),
            taken_at: Some("2026-11-22T05:35:50Z".parse().unwrap()),
            refreshed_at: Some("2026-11-22T05:36:20Z".parse().unwrap()),
            max_age: Some(Duration::from_mins(5)),
        };
        assert_eq!(read(object.clone()), expected);
        // An error that has passed, and no point yet.
        object["status"]["conditions"][3]["status"] = "False".into();
        object["status"]["conditions"][2]["lastUpdateTime"] = Value::Null;
        let expected = DatadogMetric { error: None, taken_at: None, ..expected };
        assert_eq!(read(object), expected);
    }

    #[test]
    fn what_is_odd_counts_as_not_there() {
        let metadata = json!({"namespace": "shop", "name": "orders"});
        let nothing = DatadogMetric::default();
        for odd in [
            json!({"metadata": metadata}),
            json!({"metadata": metadata, "spec": null, "status": null}),
            json!({"metadata": metadata, "spec": {"maxAge": 5}, "status": {"conditions": 7}}),
            json!({"metadata": metadata, "spec": {"maxAge": "300"}, "status": {"currentValue": "x"}}),
            json!({"metadata": metadata, "spec": {"maxAge": "0s", "timeWindow": "0s"}}),
        ] {
            assert_eq!(read(odd.clone()), nothing, "{odd}");
        }
    }

    fn of(value: f64) -> DatadogMetric {
        DatadogMetric { value: Some(value), ..DatadogMetric::default() }
    }

    fn name(namespace: &str, name: &str) -> MetricName {
        (namespace.into(), name.into())
    }

    #[test]
    fn a_listing_tells_what_is_gone_and_what_has_changed() {
        let mut metrics = DatadogMetrics::default();
        for (namespace, it) in [("shop", "a"), ("shop", "b"), ("bank", "c")] {
            metrics.put(name(namespace, it), of(1.0), 1);
        }
        assert!(!metrics.is_listed("shop"));
        metrics.end(None, 1);
        assert!(metrics.is_listed("shop"));
        assert_eq!(metrics.take_changed().len(), 3);
        metrics.put(name("shop", "a"), of(1.0), 2);
        metrics.put(name("bank", "c"), of(2.0), 2);
        metrics.end(None, 2);
        assert_eq!(metrics.get("shop", "b"), None);
        assert_eq!(metrics.take_changed(), [name("shop", "b"), name("bank", "c")].into());
        metrics.remove(&name("shop", "a"));
        metrics.remove(&name("shop", "never"));
        assert_eq!(metrics.take_changed(), [name("shop", "a")].into());
    }

    #[test]
    fn without_a_watch_nothing_is_known() {
        let mut metrics = DatadogMetrics::default();
        let (shop, bank) = (Arc::from("shop"), Arc::from("bank"));
        for namespace in [&shop, &bank] {
            metrics.put((Arc::clone(namespace), "a".into()), of(1.0), 1);
            metrics.end(Some(namespace), 1);
        }
        metrics.forget(Some(&shop));
        assert!(!metrics.is_listed("shop") && metrics.get("shop", "a").is_none());
        assert!(metrics.is_listed("bank") && metrics.get("bank", "a").is_some());
    }
}
