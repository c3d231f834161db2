//! The Kubernetes API with the rights of an administrator: JSON in, JSON out.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use axum::http::{Method, Request, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
/// Of a request, which is short here.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
}

impl Api {
    pub(crate) async fn connect(kubeconfig: &Path) -> anyhow::Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.proxy_url = None;
        // Also outside of scenarios, which have bounds, no wait is without an end.
        config.read_timeout = Some(PATIENCE);
        config.reset_reader_on_write = true;
        Ok(Self { client: Client::try_from(config)? })
    }

    /// `None` if there is no such thing.
    pub(crate) async fn find(&self, path: &str) -> anyhow::Result<Option<Value>> {
        match self.send::<Value>(Method::GET, path, "", Vec::new()).await {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(told(error)).with_context(|| format!("GET {path}")),
        }
    }

    /// Null if there is no such thing.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.find(path).await?.unwrap_or_default())
    }

    /// Whether this is answered with success, whatever the text.
    pub(crate) async fn is_fine(&self, path: &str) -> bool {
        let request = Request::get(path).body(Vec::new()).expect("the path is a path");
        self.client.request_text(request).await.is_ok()
    }

    /// Makes it so, or makes it anew.
    pub(crate) async fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let path = path_of(object)?;
        self.apply_text(&path, object.to_string()).await
    }

    /// The same, as it is written in YAML.
    pub(crate) async fn apply_text(&self, path: &str, object: String) -> anyhow::Result<()> {
        self.send_apply(path, "", object).await
    }

    /// Whether it could be made so. An error also for a field that Kubernetes does not know.
    pub(crate) async fn dry_run(&self, object: &Value) -> anyhow::Result<()> {
        let options = "&dryRun=All&fieldValidation=Strict";
        self.send_apply(&path_of(object)?, options, object.to_string()).await
    }

    async fn send_apply(&self, path: &str, options: &str, object: String) -> anyhow::Result<()> {
        let path = format!("{path}?fieldManager=e2e&force=true{options}");
        let sent = self.send::<Value>(Method::PATCH, &path, APPLY, object.into_bytes()).await;
        sent.map_err(told).with_context(|| format!("apply {path}")).map(drop)
    }

    /// All documents of a file.
    pub(crate) async fn apply_file(&self, path: &Path) -> anyhow::Result<()> {
        for object in documents(path)? {
            self.apply(&object).await?;
        }
        Ok(())
    }

    pub(crate) async fn merge(&self, path: &str, change: &Value) -> anyhow::Result<()> {
        let body = change.to_string().into_bytes();
        let sent = self.send::<Value>(Method::PATCH, path, MERGE, body).await;
        sent.map_err(told).with_context(|| format!("PATCH {path}")).map(drop)
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        match self.send::<Value>(Method::DELETE, path, "", Vec::new()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(told(error)).with_context(|| format!("DELETE {path}")),
        }
    }

    /// A token of an account in Kubernetes, as the kubelet would ask for it.
    pub(crate) async fn token(&self, namespace: &str, account: &str) -> anyhow::Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 7_200},
        });
        let body = request.to_string().into_bytes();
        let made: Value = self.send(Method::POST, &path, "application/json", body).await?;
        Ok(made["status"]["token"].as_str().context("there is no token")?.to_owned())
    }

    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> kube::Result<T> {
        let mut request = Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        self.client.request(request.body(body).expect("the path is a path")).await
    }
}

/// What the API server says is enough; the error itself says it three times.
fn told(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// What a file in YAML has.
pub(crate) fn documents(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

/// Of an object that is to be applied.
fn path_of(object: &Value) -> anyhow::Result<String> {
    let word = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let kind = word(&object["kind"]).context("an object has no kind")?;
    let name = word(&object["metadata"]["name"]).context("an object has no name")?;
    path(&kind, word(&object["metadata"]["namespace"]).as_deref(), &name)
}

/// Of an object, or of all of them in this namespace if the name is empty.
pub(crate) fn path(kind: &str, namespace: Option<&str>, name: &str) -> anyhow::Result<String> {
    let (group, resources) = match kind {
        "Namespace" => ("api/v1", "namespaces"),
        "Secret" => ("api/v1", "secrets"),
        "ConfigMap" => ("api/v1", "configmaps"),
        "Service" => ("api/v1", "services"),
        "ServiceAccount" => ("api/v1", "serviceaccounts"),
        "Pod" => ("api/v1", "pods"),
        "Event" => ("api/v1", "events"),
        "Deployment" => ("apis/apps/v1", "deployments"),
        "Job" => ("apis/batch/v1", "jobs"),
        "HorizontalPodAutoscaler" => ("apis/autoscaling/v2", "horizontalpodautoscalers"),
        "Role" => ("apis/rbac.authorization.k8s.io/v1", "roles"),
        "RoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
        "ClusterRole" => ("apis/rbac.authorization.k8s.io/v1", "clusterroles"),
        "ClusterRoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
        "NetworkPolicy" => ("apis/networking.k8s.io/v1", "networkpolicies"),
        "PodDisruptionBudget" => ("apis/policy/v1", "poddisruptionbudgets"),
        "Certificate" => ("apis/cert-manager.io/v1", "certificates"),
        "Issuer" => ("apis/cert-manager.io/v1", "issuers"),
        "ServiceMonitor" => ("apis/monitoring.coreos.com/v1", "servicemonitors"),
        "APIService" => ("apis/apiregistration.k8s.io/v1", "apiservices"),
        "CustomResourceDefinition" => ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
        "DatadogMetric" => ("apis/datadoghq.com/v1alpha1", "datadogmetrics"),
        "ScaledObject" => ("apis/keda.sh/v1alpha1", "scaledobjects"),
        "ScaledJob" => ("apis/keda.sh/v1alpha1", "scaledjobs"),
        "TriggerAuthentication" => ("apis/keda.sh/v1alpha1", "triggerauthentications"),
        "ClusterTriggerAuthentication" => {
            ("apis/keda.sh/v1alpha1", "clustertriggerauthentications")
        }
        _ => bail!("the harness does not know where a {kind} is"),
    };
    let within = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
    let name = if name.is_empty() { String::new() } else { format!("/{name}") };
    Ok(format!("/{group}{within}/{resources}{name}"))
}
