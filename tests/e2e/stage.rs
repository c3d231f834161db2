//! What a scenario has to itself: a namespace, a Datadog, and our scaler in front of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::{process::Command, sync::Mutex};

use crate::{
    cluster::Cluster,
    datadog::Datadog,
    processes::{Process, Program, free_ports},
    wait::{seconds, until},
};

mod objects;
mod sight;

pub(crate) use objects::{authentication, hastened, secret};

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
    /// Whose triggers it serves, and with what rights: its environment.
    tenancy: Vec<(String, String)>,
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
        let namespace = self.namespace.clone();
        self.tenancy = vec![
            ("SCALER_KUBERNETES".to_owned(), "on".to_owned()),
            ("SCALER_OWN_ACCOUNT_NAMESPACES".to_owned(), namespace.clone()),
        ];
        if !self.is_of_all_namespaces {
            self.tenancy.push(("SCALER_NAMESPACES".to_owned(), namespace));
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
        let variables = pod["containers"][0]["env"].as_array().context("there are no settings")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let settings = variables.iter().map(|it| (text(&it["name"]), text(&it["value"])));
        // There is no kubelet to mount the Secret, so the keys are in the environment as well.
        let known = settings.filter(|(name, _)| name != "SCALER_CREDENTIALS_DIR");
        self.tenancy = known.collect();
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self.restart_scaler().await
    }

    /// What `check --through` tells of an object, as JSON.
    pub(crate) async fn check(&self, object: &str) -> anyhow::Result<Value> {
        let through = format!("--through={}", self.scaler_address());
        let of_object = ["check", "--namespace", &self.namespace, object, "--output=json"];
        let checked = self.run(&[&of_object[..], &[&through]].concat()).await?;
        let told = serde_json::from_slice(&checked.stdout);
        told.with_context(|| String::from_utf8_lossy(&checked.stderr).into_owned())
    }

    /// Our program with these arguments, for which Kubernetes has an administrator's rights.
    pub(crate) async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let run = Command::new(&self.binary)
            .args(arguments)
            .env_clear()
            .env("KUBECONFIG", self.cluster.admin())
            .kill_on_drop(true)
            .output();
        Ok(run.await?)
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
        arguments.extend(self.flags.iter().cloned());
        let kubeconfig = self.logs.join("scaler.kubeconfig").display().to_string();
        let mut environment = vec![
            ("KUBECONFIG", kubeconfig),
            ("DD_API_KEY", API_KEY.into()),
            ("DD_APP_KEY", APP_KEY.into()),
            ("DD_SITE", self.datadog.site.clone()),
            ("HTTPS_PROXY", self.cluster.proxy.url()),
            ("NO_PROXY", "127.0.0.1".into()),
        ];
        environment.extend(self.tenancy.iter().map(|(name, value)| (&**name, value.clone())));
        let program = Program { name: "scaler", path: &self.binary, arguments, environment };
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
}

/// A file of it.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
