//! The Cluster Agent of one scenario, as Kubernetes knows one: what it has read it writes into
//! DatadogMetrics, over and over, if they have the annotation.

use std::{collections::HashMap, fs::File, io::Write as _, path::Path, sync::Arc, time::Duration};

use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};
use tokio::{sync::Mutex, task::JoinSet, time::sleep};

use crate::{
    api::{Api, documents, path},
    stage::{DIAL, repository},
    wait::{seconds, until},
};

/// Without it, an agent does not read a DatadogMetric that no HPA names.
pub(crate) const ANNOTATION: &str = "external-metrics.datadoghq.com/always-active";
/// A real one writes each 30 seconds.
const ROUND: Duration = seconds(2);
/// Of Datadog's points when they are read.
const AGE_SECONDS: i64 = 20;

pub(crate) struct ClusterAgent {
    shared: Arc<Shared>,
    _rounds: JoinSet<()>,
}

struct Shared {
    api: Api,
    namespace: String,
    /// By the names of the DatadogMetrics.
    readings: Mutex<HashMap<String, Reading>>,
}

/// What Datadog has said last.
struct Reading {
    /// Stays where it stands while there is an error.
    value: f64,
    taken_at: Timestamp,
    error: Option<String>,
}

impl ClusterAgent {
    pub(crate) fn start(api: &Api, namespace: &str, logs: &Path) -> anyhow::Result<Self> {
        let (api, namespace) = (api.clone(), namespace.to_owned());
        let shared = Arc::new(Shared { api, namespace, readings: Mutex::default() });
        let mut log = File::create(logs.join("cluster-agent.log"))?;
        let mut rounds = JoinSet::new();
        let of_rounds = shared.clone();
        rounds.spawn(async move {
            loop {
                for (name, reading) in &mut *of_rounds.readings.lock().await {
                    // The definition may be on its way out.
                    if let Err(error) = of_rounds.write(name, reading).await {
                        let _ = writeln!(log, "{} {name}: {error:#}", now());
                    }
                }
                sleep(ROUND).await;
            }
        });
        Ok(Self { shared, _rounds: rounds })
    }

    /// Has Kubernetes know DatadogMetrics.
    pub(crate) async fn define(&self) -> anyhow::Result<()> {
        let api = &self.shared.api;
        for definition in definitions()? {
            api.apply(&definition).await?;
        }
        let all = path("DatadogMetric", None, "")?;
        let known = async || Ok(api.is_fine(&all).await);
        until("known: DatadogMetrics", seconds(60), known, |known| *known).await.map(drop)
    }

    /// The opposite; with it goes each DatadogMetric.
    pub(crate) async fn undefine(&self) -> anyhow::Result<()> {
        let api = &self.shared.api;
        for definition in definitions()? {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            let path = path("CustomResourceDefinition", None, name)?;
            api.delete(&path).await?;
            let gone = async || Ok(api.find(&path).await?.is_none());
            until("gone: the definition", seconds(60), gone, |gone| *gone).await?;
        }
        Ok(())
    }

    pub(crate) async fn create(&self, name: &str, is_annotated: bool) -> anyhow::Result<()> {
        let annotations = if is_annotated { json!({ANNOTATION: "true"}) } else { json!({}) };
        let namespace = &self.shared.namespace;
        let object = json!({
            "apiVersion": "datadoghq.com/v1alpha1",
            "kind": "DatadogMetric",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": {"query": DIAL},
        });
        self.shared.api.apply(&object).await
    }

    /// From now on, Datadog says this.
    pub(crate) async fn set(&self, name: &str, value: f64) -> anyhow::Result<()> {
        let mut readings = self.shared.readings.lock().await;
        let mut reading = Reading { value, taken_at: now(), error: None };
        self.shared.write(name, &mut reading).await?;
        readings.insert(name.to_owned(), reading);
        Ok(())
    }

    /// From now on, there is no value, for this reason.
    pub(crate) async fn fail(&self, name: &str, error: &str) -> anyhow::Result<()> {
        let mut readings = self.shared.readings.lock().await;
        let reading = readings.get_mut(name).expect("it had a value");
        reading.error = Some(error.to_owned());
        self.shared.write(name, reading).await
    }
}

impl Shared {
    /// Reads it and writes its status, if there is such a DatadogMetric.
    async fn write(&self, name: &str, reading: &mut Reading) -> anyhow::Result<()> {
        let path = path("DatadogMetric", Some(&self.namespace), name)?;
        let Some(metric) = self.api.find(&path).await? else { return Ok(()) };
        let now = now();
        let is_active = metric["metadata"]["annotations"][ANNOTATION] == "true";
        if is_active && reading.error.is_none() {
            reading.taken_at = now - AGE_SECONDS.seconds();
        }
        let condition = |kind: &str, is: bool, at: Timestamp| {
            let status = if is { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastUpdateTime": at.to_string()})
        };
        let mut error = condition("Error", reading.error.is_some(), now);
        if let Some(message) = &reading.error {
            error["reason"] = "Unable to fetch data from Datadog".into();
            error["message"] = message.as_str().into();
        }
        let conditions = [
            condition("Active", is_active, now),
            condition("Valid", is_active && reading.error.is_none(), now),
            condition("Updated", true, reading.taken_at),
            error,
        ];
        let status = json!({"currentValue": reading.value.to_string(), "conditions": conditions});
        self.api.merge(&format!("{path}/status"), &json!({"status": status})).await
    }
}

fn definitions() -> anyhow::Result<Vec<Value>> {
    documents(&repository("tests/e2e/datadogmetrics.yaml"))
}

/// In whole seconds, as Kubernetes has them.
fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "others read it by their clocks")]
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).expect("now is within what there is")
}
