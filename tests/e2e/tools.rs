//! What is built from Go modules, as `tools/*/go.mod` pin them, and kept between runs.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// Its version, as `tools/kubernetes/go.mod` pins it.
pub(crate) const KUBERNETES: &str = "1.35.4";
/// The name of the directory in the cache.
const CACHE: &str = "keda-datadog-scaler-e2e";
/// In each directory: who holds it keeps that directory.
const LOCK: &str = "in-use.lock";

/// A directory with executables, named as their packages are.
pub(crate) struct Tools {
    directory: PathBuf,
    _lock: File,
}

/// There is no Go to build with, and an earlier run has not built it.
#[derive(Debug, thiserror::Error)]
#[error("Go is missing, and {wanted} has not been built before")]
pub(crate) struct NoGo {
    wanted: String,
}

/// What KEDA's version is called here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keda {
    V2_21,
    V2_20,
}

impl Keda {
    /// Newest first.
    pub(crate) const ALL: [Self; 2] = [Self::V2_21, Self::V2_20];

    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V2_21 => "2.21.0",
            Self::V2_20 => "2.20.2",
        }
    }

    /// Whether it asks for StreamMetricSpec.
    pub(crate) fn streams_metric_specs(self) -> bool {
        self == Self::V2_21
    }

    fn module(self) -> &'static str {
        match self {
            Self::V2_21 => "keda-2.21",
            Self::V2_20 => "keda-2.20",
        }
    }
}

impl Tools {
    /// etcd, kube-apiserver and kube-controller-manager.
    pub(crate) fn kubernetes() -> anyhow::Result<Self> {
        // Clients look at the version, which Kubernetes' own build writes in like this.
        let [major, minor] = [0, 1].map(|at| KUBERNETES.split('.').nth(at).unwrap_or_default());
        let tag = format!("v{KUBERNETES}");
        let version = [("gitVersion", &*tag), ("gitMajor", major), ("gitMinor", minor)]
            .map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
        Self::find_or_build("kubernetes", &version.join(" "), |_, _| Ok(()))
    }

    /// KEDA's operator and adapter, and its CRDs in the directory `crd`.
    pub(crate) fn keda(keda: Keda) -> anyhow::Result<Self> {
        Self::find_or_build(keda.module(), "", |module, to| {
            let keda = root_of(module, "github.com/kedacore/keda/v2")?;
            fs::create_dir(to.join("crd"))?;
            for crd in fs::read_dir(keda.join("config/crd/bases"))? {
                let crd = crd?;
                fs::write(to.join("crd").join(crd.file_name()), fs::read(crd.path())?)?;
            }
            Ok(())
        })
    }

    /// Helm, and the CRDs of what the chart makes beside what Kubernetes knows in the directory `crd`.
    pub(crate) fn helm() -> anyhow::Result<Self> {
        Self::find_or_build("helm", "", |module, to| {
            let module = module.with_file_name("crds");
            let directory = to.join("crd");
            fs::create_dir(&directory)?;
            for (of, files, wanted) in [
                (
                    "github.com/cert-manager/cert-manager",
                    "deploy/crds",
                    &["certificates", "issuers"][..],
                ),
                (
                    "github.com/prometheus-operator/prometheus-operator",
                    "example/prometheus-operator-crd",
                    &["servicemonitors"],
                ),
            ] {
                let downloaded = go(&module).args(["mod", "download", of]).status()?;
                ensure!(downloaded.success(), "`go mod download` has failed");
                for crd in fs::read_dir(root_of(&module, of)?.join(files))? {
                    let crd = crd?;
                    let name = crd.file_name();
                    let resource = name.to_str().and_then(|name| Some(name.split_once('_')?.1));
                    if wanted.iter().any(|it| resource == Some(&format!("{it}.yaml"))) {
                        fs::write(directory.join(name), fs::read(crd.path())?)?;
                    }
                }
            }
            Ok(())
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `finish` adds to the directory, given that of the module.
    fn find_or_build(
        name: &str,
        ldflags: &str,
        finish: impl FnOnce(&Path, &Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/tools").join(name);
        let cache = cache()?;
        let directory = cache.join(format!("{name}-{:016x}", fingerprint(&module, ldflags)?));
        if directory.is_dir() {
            let lock = keep(&directory)?;
            return Ok(Self { directory, _lock: lock });
        }
        if Command::new("go").arg("version").stdout(Stdio::null()).status().is_err() {
            return Err(NoGo { wanted: name.to_owned() }.into());
        }
        println!("building {name} into {}, which takes minutes", cache.display());
        let unfinished = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&cache)?;
        let mut lock = keep(unfinished.path())?;
        let built = go(&module)
            .args([
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags",
                &format!("-s -w {ldflags}"),
                "-o",
            ])
            .arg(unfinished.path())
            .arg("tool")
            .status();
        ensure!(built?.success(), "`go build` of {} has failed", module.display());
        finish(&module, unfinished.path())?;
        // So that what is there is whole. Another run may have been quicker.
        if let Err(error) = fs::rename(&unfinished, &directory) {
            ensure!(directory.is_dir(), error);
            lock = keep(&directory)?;
        }
        remove_older(&cache, name)?;
        Ok(Self { directory, _lock: lock })
    }
}

fn go(module: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(module);
    go
}

/// Where a dependency of the module is.
fn root_of(module: &Path, dependency: &str) -> anyhow::Result<PathBuf> {
    let list = ["list", "-m", "-f", "{{.Dir}}", dependency];
    let listed = go(module).args(list).stderr(Stdio::inherit()).output()?;
    ensure!(listed.status.success(), "`go list` has failed");
    Ok(PathBuf::from(String::from_utf8(listed.stdout)?.trim()))
}

fn cache() -> anyhow::Result<PathBuf> {
    let given = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let cache = given.or_else(home).context("there is neither `XDG_CACHE_HOME` nor `HOME`")?;
    let cache = cache.join(CACHE);
    fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// Until the file is closed, nobody removes this directory.
fn keep(directory: &Path) -> io::Result<File> {
    let file = File::create(directory.join(LOCK))?;
    file.lock_shared()?;
    Ok(file)
}

/// What there is of a module that no run has in use: of other fingerprints, and half built.
fn remove_older(cache: &Path, name: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let file = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if !file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')) {
            continue;
        }
        let lock = File::create(path.join(LOCK))?;
        if lock.try_lock().is_ok() {
            println!("removing {}, which is not used any more", path.display());
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Changes with what is built, and not with who builds it.
fn fingerprint(module: &Path, ldflags: &str) -> anyhow::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        fs::read(module.join(file))?.hash(&mut hasher);
    }
    (ldflags, env::consts::OS, env::consts::ARCH).hash(&mut hasher);
    Ok(hasher.finish())
}
