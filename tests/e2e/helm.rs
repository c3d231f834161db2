//! Helm, and our chart.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use serde_json::Value;
use tokio::process::Command;

use crate::{
    api::documents,
    stage::repository,
    tools::{KUBERNETES, Tools},
};

pub(crate) const CHART: &str = "deploy/chart/keda-datadog-scaler";

pub(crate) struct Helm {
    tools: Tools,
    /// Where its home is, and its renderings.
    directory: PathBuf,
}

impl Helm {
    pub(crate) fn new(directory: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { tools: Tools::helm()?, directory })
    }

    /// Where the definitions are of what the chart makes.
    pub(crate) fn definitions(&self) -> PathBuf {
        self.tools.path("crd")
    }

    /// What `helm lint` has to say is an error.
    pub(crate) async fn lint(&self) -> anyhow::Result<()> {
        let arguments = ["lint", "--strict", "--kube-version", KUBERNETES];
        self.run(&[&arguments[..], &[&chart()]].concat()).await.map(drop)
    }

    /// What a release of this name in `keda` consists of, with these flags.
    pub(crate) async fn template(
        &self,
        release: &str,
        flags: &[&str],
    ) -> anyhow::Result<Vec<Value>> {
        let of_keda = ["--namespace", "keda", "--kube-version", KUBERNETES];
        let rendered =
            self.run(&[&["template", release, &chart()], &of_keda[..], flags].concat()).await?;
        let file = self.directory.join(release).with_extension("yaml");
        fs::write(&file, rendered)?;
        documents(&file)
    }

    /// Installs it with these values, or makes it so; says what Helm tells a user.
    pub(crate) async fn install(
        &self,
        kubeconfig: &Path,
        namespace: &str,
        values: &Value,
    ) -> anyhow::Result<String> {
        let file = self.directory.join("values.json");
        fs::write(&file, values.to_string())?;
        let (kubeconfig, file) = (kubeconfig.display().to_string(), file.display().to_string());
        let to = ["--namespace", namespace, "--kubeconfig", &kubeconfig, "--values", &file];
        self.run(&[&["upgrade", "--install", namespace, &chart()], &to[..]].concat()).await
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let ran = Command::new(self.tools.path("helm"))
            .args(arguments)
            .env_clear()
            .env("HOME", &self.directory)
            .kill_on_drop(true)
            .output()
            .await?;
        let told = String::from_utf8(if ran.status.success() { ran.stdout } else { ran.stderr })?;
        ensure!(ran.status.success(), "helm {}: {}", arguments.join(" "), told.trim());
        Ok(told)
    }
}

fn chart() -> String {
    repository(CHART).display().to_string()
}
