//! What a scenario has to itself: a namespace, a Datadog, and our scaler in front of it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::{process::Command, sync::Mutex};

use crate::{
    api::{documents, path},
    cluster::{Cluster, ROUNDS, condition},
    datadog::Datadog,
    processes::{Process, Program, free_ports},
    wait::{seconds, until},
};

/// What the scaler's own account has for keys.
pub(crate) const API_KEY: &str = "own-api-key";
const APP_KEY: &str = "own-app-key";
/// What a trigger asks for, unless it says otherwise.
pub(crate) const DIAL: &str = "avg:sandbox.dial{*}";
/// One that is 12, always.
pub(crate) const FLAT: &str = "avg:sandbox.flat{*}";
/// A `cooldownPeriod` for what is to stay as it is while something fails, or while it is changed
/// itself. After it, KEDA may take that to 0: an error that the HPA gets, of any trigger of the
/// object, closes the scalers that a poll is asking, and so does the loop that polled before a
/// change. They then count as inactive, without an error (`getScalerState` and `startScaleLoop` in
/// `pkg/scaling/scale_handler.go`, 2.20.2 and 2.21.0). An answer of 0 would still be seen, for the
/// HPA would go to 1.
pub(crate) const LATE_SECONDS: u64 = 900;
/// One for what is to go to 0 in a test.
const SOON_SECONDS: u64 = 2;
/// The HPA's name for the first trigger with it.
pub(crate) const DIAL_METRIC: &str = "s0-datadog-avg-sandbox-dial";

pub(crate) struct Stage {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) namespace: String,
    pub(crate) datadog: Datadog,
    pub(crate) logs: PathBuf,
    /// Or of this one only.
    pub(crate) is_of_all_namespaces: bool,
    binary: PathBuf,
    ports: Ports,
    /// Whose triggers it serves, and with what rights.
    tenancy: Vec<String>,
    /// Beside those that all scenarios have.
    flags: Vec<String>,
    scaler: Mutex<Option<Process>>,
    client: reqwest::Client,
}

#[derive(Clone, Copy)]
struct Ports {
    grpc: u16,
    admin: u16,
    status: u16,
}

impl Stage {
    /// Everything but the scaler.
    pub(crate) async fn set(
        cluster: &Arc<Cluster>,
        binary: &Path,
        name: &str,
        site: &str,
    ) -> anyhow::Result<Self> {
        let logs = cluster.directory.join(name);
        fs::create_dir_all(&logs)?;
        cluster.namespace(name).await?;
        let (authority, proxy) = (&cluster.authority, &cluster.proxy);
        let datadog = Datadog::start(site, binary, authority, proxy, &logs).await?;
        datadog.allow(&[API_KEY]);
        let [grpc, admin, status] = free_ports()?;
        let kubeconfig = logs.join("scaler.kubeconfig");
        cluster.kubeconfig(&kubeconfig, "keda", "keda-datadog-scaler").await?;
        Ok(Self {
            cluster: cluster.clone(),
            namespace: name.to_owned(),
            datadog,
            logs,
            is_of_all_namespaces: false,
            binary: binary.to_owned(),
            ports: Ports { grpc, admin, status },
            tenancy: Vec::new(),
            flags: Vec::new(),
            scaler: Mutex::default(),
            client: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    pub(crate) async fn start_scaler(&mut self, flags: &[&str]) -> anyhow::Result<()> {
        self.tenancy = vec![
            "--kubernetes=on".to_owned(),
            format!("--own-account-namespaces={}", self.namespace),
        ];
        if !self.is_of_all_namespaces {
            self.tenancy.push(format!("--namespaces={}", self.namespace));
        }
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self.restart_scaler().await
    }

    /// As this Deployment of the scaler would, under the token of its account.
    pub(crate) async fn start_installed(
        &mut self,
        deployment: &Value,
        flags: &[&str],
    ) -> anyhow::Result<()> {
        let pod = &deployment["spec"]["template"]["spec"];
        let account = pod["serviceAccountName"].as_str().context("there is no account")?;
        let kubeconfig = self.logs.join("scaler.kubeconfig");
        self.cluster.kubeconfig(&kubeconfig, &self.namespace, account).await?;
        let arguments =
            pod["containers"][0]["args"].as_array().context("there are no arguments")?;
        let arguments = arguments.iter().filter_map(Value::as_str);
        // The Secret is in the environment instead: there is no kubelet to mount it.
        let known = arguments.filter(|it| *it != "serve" && !it.starts_with("--credentials-dir"));
        self.tenancy = known.map(ToOwned::to_owned).collect();
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self.restart_scaler().await
    }

    /// What `check --through` tells of an object, as JSON.
    pub(crate) async fn check(&self, object: &str) -> anyhow::Result<Value> {
        let checked = Command::new(&self.binary)
            .args(["check", "--namespace", &self.namespace, object, "--output", "json"])
            .args(["--through", &self.scaler_address()])
            .env_clear()
            .env("KUBECONFIG", self.cluster.admin())
            .kill_on_drop(true)
            .output()
            .await?;
        let told = serde_json::from_slice(&checked.stdout);
        told.with_context(|| String::from_utf8_lossy(&checked.stderr).into_owned())
    }

    /// Starts one where none is running.
    pub(crate) async fn restart_scaler(&self) -> anyhow::Result<()> {
        let Ports { grpc, admin, status } = self.ports;
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--listen=127.0.0.1:{grpc}"),
            format!("--admin-listen=127.0.0.1:{admin}"),
            format!("--status-listen=127.0.0.1:{status}"),
            format!("--ca-file={}", self.cluster.ca_file.display()),
            "--log-format=text".into(),
            "--drain-delay=1s".into(),
        ];
        arguments.extend(self.tenancy.iter().chain(&self.flags).cloned());
        let program = Program {
            name: "scaler",
            path: &self.binary,
            arguments,
            environment: vec![
                ("KUBECONFIG", self.logs.join("scaler.kubeconfig").display().to_string()),
                ("DD_API_KEY", API_KEY.into()),
                ("DD_APP_KEY", APP_KEY.into()),
                ("DD_SITE", self.datadog.site.clone()),
                ("HTTPS_PROXY", self.cluster.proxy.url()),
                ("NO_PROXY", "127.0.0.1".into()),
            ],
        };
        let mut scaler = self.scaler.lock().await;
        ensure!(scaler.is_none(), "a scaler is running");
        *scaler = Some(program.start(&self.logs)?);
        drop(scaler);
        let ready = async || {
            if let Some(scaler) = &mut *self.scaler.lock().await {
                scaler.check()?;
            }
            let ready = self.client.get(format!("http://127.0.0.1:{admin}/readyz")).send().await;
            Ok(ready.is_ok_and(|ready| ready.status().is_success()))
        };
        until("ready: the scaler", seconds(20), ready, |ready| *ready).await.map(drop)
    }

    /// As Kubernetes ends it; an error unless it ends well.
    pub(crate) async fn end_scaler(&self) -> anyhow::Result<()> {
        let scaler = self.scaler.lock().await.take().context("no scaler is running")?;
        let code = scaler.end().await?;
        ensure!(code == Some(0), "the scaler ended with {code:?}");
        Ok(())
    }

    pub(crate) async fn kill_scaler(&self) -> anyhow::Result<()> {
        self.scaler.lock().await.take().context("no scaler is running")?.kill().await
    }

    pub(crate) fn scaler_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.grpc)
    }

    /// The sum of a family of the scaler's metrics over the members that have these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.ports.admin);
        let page = self.client.get(url).send().await?.text().await?;
        let of_family = page.lines().filter_map(|line| {
            let rest = line.strip_prefix("keda_datadog_scaler_")?.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then_some(rest)
        });
        let with_labels = of_family.filter(|line| labels.iter().all(|&label| line.contains(label)));
        Ok(with_labels.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// How often GetMetrics was answered.
    pub(crate) async fn answers(&self) -> anyhow::Result<f64> {
        self.metric("rpcs_total", &["\"GetMetrics\"", "\"OK\""]).await
    }

    /// How often it failed.
    pub(crate) async fn failures(&self) -> anyhow::Result<f64> {
        Ok(self.metric("rpcs_total", &["\"GetMetrics\""]).await? - self.answers().await?)
    }

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

/// A file of it.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
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
