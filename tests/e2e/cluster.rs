//! Kubernetes without nodes, and KEDA in it: processes on loopback. Pods stay pending, so what is
//! looked at is how many are wanted.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    api::{Api, path},
    certificates::{Authority, Pair, signing_key},
    processes::{Process, Program, free_ports},
    proxy::Proxy,
    stage::repository,
    tools::{Keda, Tools},
    wait::{seconds, until},
};

mod control_plane;

use control_plane::{start_apiserver, start_etcd};

/// How long anything here may take to be ready.
const START: Duration = Duration::from_mins(2);
/// How often an HPA looks, so that a scenario takes seconds where it would take minutes.
pub(crate) const QUICK_SYNC: Duration = seconds(3);
/// What Kubernetes does by default.
pub(crate) const USUAL_SYNC: Duration = seconds(15);
/// A bound for what needs a round of KEDA and one of the HPA, also where an account that failed is
/// tried each half minute, and a machine is busy.
pub(crate) const ROUNDS: Duration = seconds(60);
/// What a scaler runs by.
pub(crate) const INSTALLED: &str = "deploy/install.yaml";
/// The file with which one is an administrator.
const ADMIN: &str = "admin.kubeconfig";

pub(crate) struct Cluster {
    pub(crate) keda: Keda,
    pub(crate) api: Api,
    pub(crate) api_url: String,
    /// Of everything in this run.
    pub(crate) authority: Authority,
    pub(crate) ca_file: PathBuf,
    /// For KEDA and for the scaler.
    pub(crate) proxy: Proxy,
    /// With the logs.
    pub(crate) directory: PathBuf,
    tools: Tools,
    certificates: Certificates,
    ports: Ports,
    apiserver: Mutex<Option<Process>>,
    controllers: Mutex<Option<Process>>,
    others: Mutex<Vec<Process>>,
}

struct Ports {
    etcd: u16,
    api: u16,
}

/// Where they are; a pair is a directory with `tls.crt` and `tls.key`.
struct Certificates {
    directory: PathBuf,
}

impl Cluster {
    pub(crate) async fn start(
        keda: Keda,
        kubernetes: Tools,
        keda_tools: &Tools,
        directory: PathBuf,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)?;
        let authority = Authority::new("e2e")?;
        let certificates = Certificates::write(&authority, directory.join("certificates"))?;
        let [etcd, etcd_peers, api] = free_ports()?;
        let mut others = vec![start_etcd(&kubernetes, &directory, etcd, etcd_peers)?];
        let ports = Ports { etcd, api };
        let apiserver = start_apiserver(&kubernetes, &certificates, &ports, &directory)?;

        let api_url = format!("https://127.0.0.1:{api}");
        let admin = directory.join(ADMIN);
        let user = json!({
            "client-certificate": certificates.path("admin/tls.crt"),
            "client-key": certificates.path("admin/tls.key"),
        });
        let ca_file = certificates.path("ca.crt");
        write_kubeconfig(&admin, &api_url, &ca_file, &user)?;
        let api = Api::connect(&admin).await?;
        let proxy = Proxy::start().await?;
        let apiserver = Mutex::new(Some(apiserver));
        let cluster = Self {
            keda,
            api,
            api_url,
            authority,
            ca_file,
            proxy,
            directory,
            tools: kubernetes,
            certificates,
            ports,
            apiserver,
            controllers: Mutex::default(),
            others: Mutex::default(),
        };
        cluster.await_api().await?;
        cluster.look_each(QUICK_SYNC).await?;
        cluster.prepare(keda_tools).await?;
        others.extend(cluster.start_keda(keda_tools).await?);
        *cluster.others.lock().await = others;
        cluster.await_keda().await?;
        Ok(cluster)
    }

    pub(crate) async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let metadata = json!({"name": name});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        self.api.apply(&object).await
    }

    /// Takes out what KEDA looks at.
    pub(crate) async fn clear(&self, namespace: &str) -> anyhow::Result<()> {
        for kind in ["ScaledObject", "ScaledJob", "Deployment"] {
            self.api.delete(&path(kind, Some(namespace), "")?).await?;
        }
        Ok(())
    }

    /// The file with which one is an administrator.
    pub(crate) fn admin(&self) -> PathBuf {
        self.directory.join(ADMIN)
    }

    /// For a client with the token of this account.
    pub(crate) async fn kubeconfig(
        &self,
        to: &Path,
        namespace: &str,
        account: &str,
    ) -> anyhow::Result<()> {
        let token = self.api.token(namespace, account).await?;
        write_kubeconfig(to, &self.api_url, &self.ca_file, &json!({"token": token}))
    }

    /// Kills the API server; etcd, and with it everything that was said, stays.
    pub(crate) async fn take_api_away(&self) -> anyhow::Result<()> {
        let apiserver = self.apiserver.lock().await.take().context("it is away")?;
        apiserver.kill().await
    }

    pub(crate) async fn bring_api_back(&self) -> anyhow::Result<()> {
        let started =
            start_apiserver(&self.tools, &self.certificates, &self.ports, &self.directory)?;
        *self.apiserver.lock().await = Some(started);
        self.await_api().await
    }

    /// From now on, the HPA asks for each metric as often.
    pub(crate) async fn look_each(&self, sync: Duration) -> anyhow::Result<()> {
        let mut controllers = self.controllers.lock().await;
        if let Some(before) = controllers.take() {
            before.kill().await?;
        }
        *controllers = Some(self.start_controllers(sync)?);
        Ok(())
    }

    /// An error if any process has ended that should not have.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        for process in [&self.apiserver, &self.controllers] {
            if let Some(process) = &mut *process.lock().await {
                process.check()?;
            }
        }
        self.others.lock().await.iter_mut().try_for_each(Process::check)
    }

    async fn await_api(&self) -> anyhow::Result<()> {
        let ready = async || {
            self.check().await?;
            Ok(self.api.is_fine("/readyz").await)
        };
        until("ready: the API server", START, ready, |ready| *ready).await.map(drop)
    }

    async fn await_keda(&self) -> anyhow::Result<()> {
        let service = path("APIService", None, "v1beta1.external.metrics.k8s.io")?;
        let available = async || {
            self.check().await?;
            let service = self.api.get(&service).await?;
            Ok(condition(&service, "Available").0)
        };
        until("available: KEDA's metrics", START, available, |status| status == "True").await?;
        Ok(())
    }

    /// CRDs, KEDA's namespace, and in it what a user applies; its Pod stays pending, as all do.
    async fn prepare(&self, keda: &Tools) -> anyhow::Result<()> {
        self.define(&keda.path("crd")).await?;
        self.namespace("keda").await?;
        self.api.apply_file(&repository(INSTALLED)).await
    }

    /// Has Kubernetes know what is defined in the files of this directory.
    pub(crate) async fn define(&self, directory: &Path) -> anyhow::Result<()> {
        for crd in fs::read_dir(directory)? {
            let crd = crd?.path();
            let file = crd.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let (group, resource) = file.split_once('_').context("a CRD has an odd name")?;
            let path = format!(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource}.{group}"
            );
            self.api.apply_text(&path, fs::read_to_string(&crd)?).await?;
        }
        Ok(())
    }

    fn start_controllers(&self, sync: Duration) -> anyhow::Result<Process> {
        let [port] = free_ports()?;
        let controllers = [
            "horizontal-pod-autoscaler-controller",
            "deployment-controller",
            "replicaset-controller",
            "job-controller",
            "namespace-controller",
            "garbage-collector-controller",
        ];
        let admin = self.directory.join(ADMIN);
        let admin = admin.display();
        let arguments = vec![
            format!("--kubeconfig={admin}"),
            format!("--authentication-kubeconfig={admin}"),
            format!("--authorization-kubeconfig={admin}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".into(),
            format!("--cert-dir={}", self.directory.display()),
            "--leader-elect=false".into(),
            format!("--controllers={}", controllers.join(",")),
            format!("--horizontal-pod-autoscaler-sync-period={}s", sync.as_secs()),
            "--horizontal-pod-autoscaler-downscale-stabilization=5s".into(),
            // Hundreds of HPAs are looked at on time.
            "--kube-api-qps=500".into(),
            "--kube-api-burst=1000".into(),
        ];
        let path = self.tools.path("kube-controller-manager");
        let environment = Vec::new();
        let program = Program { name: "controllers", path: &path, arguments, environment };
        program.start(&self.directory)
    }

    /// The operator and the adapter, which is where the API server finds external metrics.
    async fn start_keda(&self, tools: &Tools) -> anyhow::Result<[Process; 2]> {
        let admin = &self.directory.join(ADMIN);
        let [metrics, health, service, adapter, adapter_metrics] = free_ports()?;
        let certificates = self.certificates.path("keda");
        let operator = Program {
            name: "operator",
            path: &tools.path("operator"),
            arguments: vec![
                format!("--cert-dir={}", certificates.display()),
                format!("--metrics-bind-address=127.0.0.1:{metrics}"),
                format!("--health-probe-bind-address=127.0.0.1:{health}"),
                format!("--metrics-service-bind-address=127.0.0.1:{service}"),
                "--kube-api-qps=500".into(),
                "--kube-api-burst=1000".into(),
                "--zap-log-level=info".into(),
                "--zap-encoder=console".into(),
                "--zap-time-encoding=rfc3339nano".into(),
            ],
            environment: vec![
                ("KUBECONFIG", admin.display().to_string()),
                ("WATCH_NAMESPACE", String::new()),
                ("KEDA_CLUSTER_OBJECT_NAMESPACE", "keda".into()),
                ("POD_NAMESPACE", "keda".into()),
                ("POD_NAME", "keda-operator".into()),
                // The built-in scaler calls `https://api.<site>` and nothing else.
                ("HTTPS_PROXY", self.proxy.url()),
                ("SSL_CERT_FILE", self.ca_file.display().to_string()),
                ("SSL_CERT_DIR", self.directory.join("none").display().to_string()),
            ],
        };
        let operator = operator.start(&self.directory)?;
        let pair = |name: &str| certificates.join(name).display().to_string();
        let admin = admin.display();
        let adapter_program = Program {
            name: "adapter",
            path: &tools.path("adapter"),
            arguments: vec![
                format!("--secure-port={adapter}"),
                "--bind-address=127.0.0.1".into(),
                format!("--cert-dir={}", certificates.display()),
                format!("--tls-cert-file={}", pair("tls.crt")),
                format!("--tls-private-key-file={}", pair("tls.key")),
                format!("--client-ca-file={}", self.ca_file.display()),
                format!("--lister-kubeconfig={admin}"),
                format!("--authentication-kubeconfig={admin}"),
                format!("--authorization-kubeconfig={admin}"),
                format!("--metrics-service-address=localhost:{service}"),
                format!("--port={adapter_metrics}"),
            ],
            environment: vec![
                ("KUBECONFIG", admin.to_string()),
                ("WATCH_NAMESPACE", String::new()),
                ("POD_NAMESPACE", "keda".into()),
            ],
        };
        let processes = [operator, adapter_program.start(&self.directory)?];
        let metadata = json!({"name": "keda-metrics-apiserver", "namespace": "keda"});
        let spec = json!({"type": "ExternalName", "externalName": "localhost",
            "ports": [{"port": adapter}]});
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        self.api.apply(&service).await?;
        let ca = ByteString(self.authority.pem().into_bytes());
        let api_service = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {
                "group": "external.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": ca,
                "service": {
                    "name": "keda-metrics-apiserver", "namespace": "keda", "port": adapter,
                },
            },
        });
        self.api.apply(&api_service).await?;
        Ok(processes)
    }
}

impl Certificates {
    fn write(authority: &Authority, directory: PathBuf) -> anyhow::Result<Self> {
        let api = ["127.0.0.1", "localhost", "10.0.0.1", "kubernetes.default.svc"];
        let keda = [
            "localhost",
            "keda-operator.keda.svc.cluster.local",
            "keda-metrics-apiserver.keda.svc",
        ];
        let pairs = [
            ("apiserver", authority.server(&api)?),
            ("admin", authority.client("admin", Some("system:masters"))?),
            ("front", authority.client("front-proxy-client", None)?),
            ("keda", authority.server(&keda)?),
        ];
        for (name, pair) in &pairs {
            Pair::write(pair, &directory.join(name))?;
        }
        // KEDA looks for it beside its own.
        for ca in ["ca.crt", "keda/ca.crt"] {
            fs::write(directory.join(ca), authority.pem())?;
        }
        let (key, public_key) = signing_key()?;
        fs::write(directory.join("accounts.key"), key)?;
        fs::write(directory.join("accounts.pub"), public_key)?;
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn write_kubeconfig(to: &Path, url: &str, ca: &Path, user: &Value) -> anyhow::Result<()> {
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {"server": url, "certificate-authority": ca}}],
        "users": [{"name": "e2e", "user": user}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        "current-context": "e2e",
    });
    Ok(fs::write(to, kubeconfig.to_string())?)
}

/// Status, reason and message; empty if it is not there.
pub(crate) fn condition(object: &Value, kind: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let mut of_kind = conditions.filter(|condition| condition["type"] == kind);
    let found = of_kind.next().cloned().unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}
