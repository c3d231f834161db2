//! What is put on the stage: triggers, what they scale, and their keys.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{DIAL, LATE_SECONDS, SOON_SECONDS, Stage, repository};
use crate::{
    api::{documents, path},
    cluster::Cluster,
};

impl Stage {
    /// A trigger of ours with the metadata that all have, and these.
    pub(crate) fn trigger(&self, more: &Value) -> Value {
        let metadata = json!({
            "scalerAddress": self.scaler_address(), "query": DIAL, "queryValue": "5",
        });
        json!({"type": "external", "metadata": merged(metadata, more)})
    }

    /// The same, of this DatadogMetric.
    pub(crate) fn agent_trigger(&self, metric: &str, more: &Value) -> Value {
        let metadata = json!({
            "scalerAddress": self.scaler_address(),
            "useClusterAgentProxy": "true",
            "datadogMetricName": metric,
            "datadogMetricNamespace": self.namespace,
            "targetValue": "5",
        });
        json!({"type": "external", "metadata": merged(metadata, more)})
    }

    pub(crate) async fn deployment(&self, name: &str, replicas: u32) -> anyhow::Result<()> {
        let labels = json!({"app": name});
        let containers = json!([{"name": "app", "image": "none"}]);
        self.cluster
            .api
            .apply(&json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
                },
            }))
            .await
    }

    /// Of a Deployment of the same name: 0 to 10 replicas, asked for each second, and quick to
    /// come down; `more` goes over that.
    pub(crate) async fn scaled_object(
        &self,
        name: &str,
        triggers: &[Value],
        more: &Value,
    ) -> anyhow::Result<()> {
        let mut object = hastened(json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "scaleTargetRef": {"name": name},
                "minReplicaCount": 0,
                "maxReplicaCount": 10,
                "triggers": triggers,
            },
        }));
        object["spec"] = merged(object["spec"].take(), more);
        self.cluster.api.apply(&object).await
    }

    /// What is scaled by a file of `deploy/examples`, as it is but for the namespace, the scaler
    /// and the queries, one for each trigger. Its Deployment is there, if it has one.
    pub(crate) async fn example(&self, file: &str, queries: &[&str]) -> anyhow::Result<Value> {
        let objects = documents(&repository("deploy/examples").join(file))?;
        let mut scaled = objects.into_iter().filter(|object| object["spec"]["triggers"].is_array());
        let mut object = scaled.next().with_context(|| format!("{file} scales nothing"))?;
        object["metadata"]["namespace"] = self.namespace.as_str().into();
        let triggers = object["spec"]["triggers"].as_array_mut().context("no triggers")?;
        ensure!(triggers.len() == queries.len(), "{file} has {} triggers", triggers.len());
        for (trigger, query) in triggers.iter_mut().zip(queries) {
            trigger["metadata"]["scalerAddress"] = self.scaler_address().into();
            trigger["metadata"]["query"] = (*query).into();
        }
        if let Some(target) = object["spec"]["scaleTargetRef"]["name"].as_str() {
            self.deployment(target, 0).await?;
        }
        Ok(object)
    }

    /// Before something fails; see [`LATE_SECONDS`].
    pub(crate) async fn sleeps_late(&self, object: &str) -> anyhow::Result<()> {
        self.cools_down(object, LATE_SECONDS).await
    }

    /// When all is well again, and it is to go to 0.
    pub(crate) async fn sleeps_soon(&self, object: &str) -> anyhow::Result<()> {
        self.cools_down(object, SOON_SECONDS).await
    }

    async fn cools_down(&self, object: &str, seconds: u64) -> anyhow::Result<()> {
        self.patch("ScaledObject", object, &json!({"spec": {"cooldownPeriod": seconds}})).await
    }

    pub(crate) async fn secret(&self, name: &str, data: &Value) -> anyhow::Result<()> {
        secret(&self.cluster, &self.namespace, name, data).await
    }

    /// What `deploy/examples/triggerauthentication.yaml` grants, for this Secret.
    pub(crate) async fn may_read_secret(&self, secret: &str) -> anyhow::Result<()> {
        let example = repository("deploy/examples/triggerauthentication.yaml");
        for mut object in documents(&example)? {
            match object["kind"].as_str() {
                Some("Role") => object["rules"][0]["resourceNames"] = json!([secret]),
                Some("RoleBinding") => {}
                _ => continue,
            }
            object["metadata"]["namespace"] = self.namespace.as_str().into();
            self.cluster.api.apply(&object).await?;
        }
        Ok(())
    }

    /// A TriggerAuthentication that takes the keys from the Secret `datadog-keys`.
    pub(crate) async fn authentication(&self, name: &str) -> anyhow::Result<()> {
        let object = authentication("TriggerAuthentication", Some(&self.namespace), name);
        self.cluster.api.apply(&object).await
    }

    pub(crate) async fn delete(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        self.cluster.api.delete(&path(kind, Some(&self.namespace), name)?).await
    }

    /// Of this kind in the scenario's namespace; null if there is none.
    pub(crate) async fn get(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        self.cluster.api.get(&path(kind, Some(&self.namespace), name)?).await
    }

    pub(crate) async fn patch(&self, kind: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
        self.cluster.api.merge(&path(kind, Some(&self.namespace), name)?, patch).await
    }
}

pub(crate) async fn secret(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    data: &Value,
) -> anyhow::Result<()> {
    let metadata = json!({"name": name, "namespace": namespace});
    cluster
        .api
        .apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data,
        }))
        .await
}

/// One that takes the keys from the Secret `datadog-keys`.
pub(crate) fn authentication(kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let parameters = ["apiKey", "appKey", "datadogSite"]
        .map(|key| json!({"parameter": key, "name": "datadog-keys", "key": key}));
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"secretTargetRef": parameters},
    })
}

/// A ScaledObject or a ScaledJob that is asked for each second, and quick to come down.
pub(crate) fn hastened(mut object: Value) -> Value {
    let is_job = object["kind"] == "ScaledJob";
    let spec = &mut object["spec"];
    spec["pollingInterval"] = 1.into();
    if !is_job {
        let quick = json!({"stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 100, "periodSeconds": 1}]});
        spec["cooldownPeriod"] = SOON_SECONDS.into();
        spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] =
            json!({"scaleDown": quick, "scaleUp": quick});
    }
    object
}

/// The fields of `more` in place of those of `base`.
fn merged(mut base: Value, more: &Value) -> Value {
    let (Some(fields), Some(more)) = (base.as_object_mut(), more.as_object()) else { return base };
    for (key, value) in more {
        fields.insert(key.clone(), value.clone());
    }
    base
}
