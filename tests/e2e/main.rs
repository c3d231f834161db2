//! End to end: a real KEDA on a real Kubernetes without nodes, our scaler, and the sandbox's
//! Datadog, as processes of this machine. See "End to end" in the README.

#![expect(clippy::print_stdout, reason = "it is a program that reports")]

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    task::{JoinSet, LocalSet},
    time::{Instant, timeout},
};

mod wait;
mod processes;
mod tools;
mod certificates;
mod proxy;
mod api;
mod cluster;
mod datadog;
mod stage;
mod cluster_agent;
mod helm;
mod scenarios;

use cluster::Cluster;
use processes::end_leftovers;
use scenarios::{Scenario, Scene};
use tools::{Keda, NoGo, Tools};

#[derive(Parser)]
#[command(name = "e2e", about = "Tries the scaler with a real KEDA")]
struct Arguments {
    /// Only scenarios whose name has one of these in it
    names: Vec<String>,

    /// Every scenario, with every version of KEDA
    #[arg(long)]
    all: bool,

    /// Only this version of KEDA, such as 2.20.2
    #[arg(long, value_name = "VERSION")]
    keda: Option<String>,

    /// Say which scenarios there are
    #[arg(long)]
    list: bool,

    /// How many scenarios run at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    jobs: usize,

    /// The program to try; without it, a release build is made
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let interrupted = async {
        let mut terminate = signal(SignalKind::terminate())?;
        select! {
            pressed = tokio::signal::ctrl_c() => pressed,
            _ = terminate.recv() => Ok(()),
        }
    };
    // What runs is dropped in either case, and its processes with it.
    let local = LocalSet::new();
    let outcome = select! {
        outcome = local.run_until(run(arguments)) => outcome,
        _ = interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let chosen = chosen(&arguments)?;
    if arguments.list {
        for scenario in &chosen {
            println!("{}", scenario.name);
        }
        return Ok(true);
    }
    let versions: Vec<Keda> = match &arguments.keda {
        Some(version) => {
            let known = Keda::ALL.into_iter().find(|keda| keda.version() == version);
            vec![known.with_context(|| format!("KEDA {version} is not built here"))?]
        }
        None if arguments.all => Keda::ALL.into(),
        None => vec![Keda::ALL[0]],
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e");
    let locks = versions.iter().map(|keda| lock(&directory, *keda));
    let _locks: Vec<File> = locks.collect::<Result<_, _>>()?;
    tokio_rustls::rustls::crypto::ring::default_provider().install_default().ok();
    let binary = match arguments.binary {
        Some(binary) => fs::canonicalize(&binary).with_context(|| binary.display().to_string())?,
        None => release_build()?,
    };
    let mut is_fine = true;
    for keda in versions {
        // Helm too: a scenario that builds it would keep all others waiting, some in vain.
        let found = || anyhow::Ok((Tools::kubernetes()?, Tools::keda(keda)?, Tools::helm()?));
        let (kubernetes, keda_tools, _helm) = match found() {
            Err(error) if error.is::<NoGo>() => {
                let names: Vec<&str> = chosen.iter().map(|scenario| scenario.name).collect();
                println!("skipped with KEDA {}: {}; {error}", keda.version(), names.join(", "));
                continue;
            }
            found => found?,
        };
        let since = Instant::now();
        let logs = directory.join(keda.version());
        if logs.exists() {
            end_leftovers(&logs)?;
            fs::remove_dir_all(&logs)?;
        }
        let cluster = Cluster::start(keda, kubernetes, &keda_tools, logs.clone()).await;
        let cluster = cluster.inspect_err(|_| println!("logs are in {}", logs.display()))?;
        println!("KEDA {}: ready after {:.1} s", keda.version(), since.elapsed().as_secs_f64());
        let ran = run_all(&chosen, &Arc::new(cluster), &binary, arguments.jobs).await;
        is_fine &= ran.inspect_err(|_| println!("logs are in {}", logs.display()))?;
        println!("KEDA {}: {:.0} s in all", keda.version(), since.elapsed().as_secs_f64());
    }
    if !is_fine {
        println!("logs are in {}", directory.display());
    }
    Ok(is_fine)
}

/// Nobody else has the logs of this version while the file is open, however this run ends.
fn lock(directory: &Path, keda: Keda) -> anyhow::Result<File> {
    fs::create_dir_all(directory)?;
    let version = keda.version();
    let file = File::create(directory.join(format!("{version}.lock")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another run with KEDA {version} writes into {}; wait until it has ended, or give this \
             one another `CARGO_TARGET_DIR`",
            directory.display(),
        ),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Those that can, at the same time; then the others.
async fn run_all(
    chosen: &[Scenario],
    cluster: &Arc<Cluster>,
    binary: &Path,
    jobs: usize,
) -> anyhow::Result<bool> {
    let (alone, together): (Vec<_>, Vec<_>) = chosen.iter().partition(|it| it.is_alone);
    let mut is_fine = true;
    for (scenarios, jobs) in [(together, jobs.max(1)), (alone, 1)] {
        let mut waiting = scenarios.into_iter().cloned();
        let mut running = JoinSet::new();
        loop {
            while running.len() < jobs
                && let Some(scenario) = waiting.next()
            {
                let scene = Scene {
                    cluster: cluster.clone(),
                    binary: binary.to_owned(),
                    name: scenario.name,
                    is_alone: scenario.is_alone,
                };
                running.spawn_local(run_one(scenario, scene));
            }
            let Some(ended) = running.join_next().await else { break };
            is_fine &= ended?;
            cluster.check().await?;
        }
    }
    Ok(is_fine)
}

/// Says what became of it.
async fn run_one(scenario: Scenario, scene: Scene) -> bool {
    let since = Instant::now();
    let (cluster, name) = (scene.cluster.clone(), scene.name);
    // A panic is the scenario's own.
    let mut running = JoinSet::new();
    running.spawn_local((scenario.run)(scene));
    let outcome = match timeout(scenario.bound, running.join_next()).await {
        Ok(Some(Ok(outcome))) => outcome,
        Ok(Some(Err(panic))) => Err(panic.into()),
        Ok(None) => Ok(String::new()),
        Err(_) => Err(anyhow::anyhow!("not done within {:?}", scenario.bound)),
    };
    // Else it would go on making what is cleared.
    running.shutdown().await;
    // So that KEDA does not go on asking a scaler that is gone.
    let cleared = cluster.clear(name).await;
    let outcome = outcome.and_then(|seen| cleared.map(|()| seen));
    let (word, told) = match &outcome {
        Ok(seen) => ("ok", seen.clone()),
        Err(error) => ("FAILED", format!("{error:#}")),
    };
    println!("{:>6} {} ({:.0} s): {told}", word, scenario.name, since.elapsed().as_secs_f64());
    outcome.is_ok()
}

fn chosen(arguments: &Arguments) -> anyhow::Result<Vec<Scenario>> {
    let mut chosen = scenarios::all();
    if !arguments.names.is_empty() {
        chosen.retain(|it| arguments.names.iter().any(|name| it.name.contains(name.as_str())));
    } else if !arguments.all && !arguments.list {
        chosen.retain(|it| it.is_core);
    }
    ensure!(!chosen.is_empty(), "there is no such scenario; see `--list`");
    Ok(chosen)
}

fn release_build() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").context("this is to be run by cargo")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cargo = Command::new(cargo);
    // What cargo says to a test would make it build everything anew.
    for (name, _) in env::vars_os() {
        let of_this_test =
            ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "OUT_DIR"];
        if name.to_str().is_some_and(|name| of_this_test.iter().any(|it| name.starts_with(it))) {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .args(["build", "--release", "--locked", "--message-format=json"])
        .current_dir(root)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "the release build has failed");
    let messages = String::from_utf8(built.stdout)?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    let Some(executable) = executable else { bail!("cargo does not say what it has built") };
    Ok(executable)
}
