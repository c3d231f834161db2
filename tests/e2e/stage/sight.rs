//! What can be seen of it in Kubernetes.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Stage;
use crate::{
    api::path,
    cluster::{ROUNDS, condition},
    wait::until,
};

impl Stage {
    /// As the Deployment wants them.
    pub(crate) async fn replicas(&self, name: &str) -> anyhow::Result<u64> {
        let deployment = self.get("Deployment", name).await?;
        deployment["spec"]["replicas"].as_u64().context("there are no replicas")
    }

    pub(crate) async fn has_replicas(&self, name: &str, expected: u64) -> anyhow::Result<String> {
        let look = async || self.replicas(name).await;
        let what = format!("{expected} replicas of {name}");
        let took = until(&what, ROUNDS, look, |seen| *seen == expected).await?;
        Ok(format!("{expected} after {:.1} s", took.as_secs_f64()))
    }

    /// Makes it so that so many Pods of a Deployment are ready, as kubelets would say.
    pub(crate) async fn has_ready(&self, name: &str, count: usize) -> anyhow::Result<()> {
        let pods = async || {
            let pods = self.get("Pod", "").await?;
            let pods = pods["items"].as_array().into_iter().flatten();
            let of_name = pods.filter(|pod| pod["metadata"]["labels"]["app"] == name);
            Ok(of_name.cloned().collect::<Vec<_>>())
        };
        until(&format!("{count} pods"), ROUNDS, pods, |pods| pods.len() >= count).await?;
        let (ready, others): (Vec<_>, Vec<_>) =
            pods().await?.into_iter().partition(|pod| pod["status"]["phase"] == "Running");
        for pod in others.iter().take(count.saturating_sub(ready.len())) {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
            let path = path("Pod", Some(&self.namespace), pod)? + "/status";
            let conditions = json!([{"type": "Ready", "status": "True"}]);
            let status = json!({"phase": "Running", "conditions": conditions});
            self.cluster.api.merge(&path, &json!({"status": status})).await?;
        }
        Ok(())
    }

    /// What the HPA saw last and what it wants of this metric, as quantities.
    pub(crate) async fn hpa_metric(
        &self,
        object: &str,
        metric: &str,
    ) -> anyhow::Result<(String, String)> {
        let hpa = self.hpa(object).await?;
        let of = |list: &Value, field: &str| {
            let list = list.as_array().into_iter().flatten();
            let mut of_name = list.filter(|it| it["external"]["metric"]["name"] == metric);
            let found = of_name.next().cloned().unwrap_or_default();
            let external = &found["external"][field];
            let value = external.get("averageValue").or(external.get("value"));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Ok((of(&hpa["status"]["currentMetrics"], "current"), of(&hpa["spec"]["metrics"], "target")))
    }

    pub(crate) async fn hpa(&self, object: &str) -> anyhow::Result<Value> {
        self.get("HorizontalPodAutoscaler", &format!("keda-hpa-{object}")).await
    }

    /// The value of a metric as the HPA would get it now, as a quantity.
    pub(crate) async fn value(&self, object: &str, metric: &str) -> anyhow::Result<String> {
        let namespace = &self.namespace;
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}\
             ?labelSelector=scaledobject.keda.sh%2Fname%3D{object}"
        );
        let list = self.cluster.api.get(&path).await?;
        Ok(list["items"][0]["value"].as_str().context("there is no value")?.to_owned())
    }

    /// Status, reason and message.
    pub(crate) async fn condition(
        &self,
        object: &str,
        kind: &str,
    ) -> anyhow::Result<(String, String, String)> {
        Ok(condition(&self.get("ScaledObject", object).await?, kind))
    }

    pub(crate) async fn has_condition(
        &self,
        object: &str,
        kind: &str,
        status: &str,
    ) -> anyhow::Result<()> {
        let look = async || self.condition(object, kind).await;
        let what = format!("{kind} is {status}");
        until(&what, ROUNDS, look, |seen| seen.0 == status).await.map(drop)
    }

    /// What is said about this object.
    pub(crate) async fn events(&self, object: &str) -> anyhow::Result<Vec<String>> {
        let events = self.get("Event", "").await?;
        let items = events["items"].as_array().into_iter().flatten();
        let about = items.filter(|event| event["involvedObject"]["name"] == object);
        Ok(about.map(|event| event["message"].to_string()).collect())
    }

    /// An event about this object says so.
    pub(crate) async fn has_event(&self, object: &str, words: &str) -> anyhow::Result<()> {
        let look = async || self.events(object).await;
        let what = format!("an event of {object} with \"{words}\"");
        let told = |seen: &Vec<String>| seen.iter().any(|message| message.contains(words));
        until(&what, ROUNDS, look, told).await.map(drop)
    }
}
