//! Processes of this machine: each with a log of its own, none left behind. What a harness leaves that
//! is itself killed, the next one ends: beside each log it is said which process writes it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    iter,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// How long a process has to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of a log is told when its process has ended.
const TAIL_LINES: usize = 12;

/// The extension of a file that says which process writes a log.
const PID: &str = "pid";

/// Killed when it is dropped, as it is on a panic and on Ctrl-C.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// A process does not run any more; to wait for it is in vain.
#[derive(Debug, thiserror::Error)]
#[error("{name} has ended with {status}:\n{tail}")]
pub(crate) struct Ended {
    name: String,
    status: ExitStatus,
    /// Of its log.
    tail: String,
}

/// What to run, without anything of this machine's environment that it might take for its own.
pub(crate) struct Program<'a> {
    /// Of its log.
    pub(crate) name: &'a str,
    pub(crate) path: &'a Path,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(&'a str, String)>,
}

impl Program<'_> {
    /// Appends to the log, for what is started anew.
    pub(crate) fn start(self, logs: &Path) -> anyhow::Result<Process> {
        let log = logs.join(self.name).with_extension("log");
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(self.path)
            .args(&self.arguments)
            .env_clear()
            // Go programs look for a home.
            .envs([("HOME", logs.as_os_str()), ("PATH", OsStr::new("/usr/bin:/bin"))])
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C is for the harness, which then takes them down.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.path.display()))?;
        if let Some(id) = child.id() {
            let words = iter::once(self.path.display().to_string()).chain(self.arguments);
            let line = words.collect::<Vec<_>>().join(" ");
            fs::write(log.with_extension(PID), format!("{id} {line}"))?;
        }
        Ok(Process { name: self.name.to_owned(), child, log })
    }
}

/// Ends what still runs of a run with these logs. A process with the id of one of its processes is
/// somebody else's unless its command line is the same, with its ports and paths.
pub(crate) fn end_leftovers(logs: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(logs)? {
        let path = entry?.path();
        if path.is_dir() {
            end_leftovers(&path)?;
        }
        if path.extension() != Some(OsStr::new(PID)) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let Some((id, line)) = text.split_once(' ') else { continue };
        if command_line(id).as_deref() == Some(line) {
            let name = path.file_stem().unwrap_or_default().display();
            println!("ending {name} (process {id}), which an earlier run has left behind");
            std::process::Command::new("kill").args(["-KILL", id]).status()?;
            // It may be writing into what is about to be removed.
            let mut looks = 0;
            while looks < 100 && command_line(id).as_deref() == Some(line) {
                looks += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    Ok(())
}

/// Of a process, if there is one with this id.
fn command_line(id: &str) -> Option<String> {
    let ps = std::process::Command::new("ps").args(["-ww", "-o", "args=", "-p", id]).output();
    let line = String::from_utf8(ps.ok()?.stdout).ok()?;
    let line = line.trim_end();
    (!line.is_empty()).then(|| line.to_owned())
}

impl Process {
    /// An error with the end of its log if it does not run.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        Err(Ended { name: self.name.clone(), status, tail }.into())
    }

    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// SIGTERM, and waits until it has ended; says with what exit code.
    pub(crate) async fn end(mut self) -> anyhow::Result<Option<i32>> {
        if let Some(id) = self.child.id() {
            Command::new("kill").arg(id.to_string()).status().await?;
        }
        let ended = timeout(PATIENCE, self.child.wait()).await;
        Ok(ended.with_context(|| format!("{} does not end on SIGTERM", self.name))??.code())
    }
}

/// Ports that were free an instant ago, below those that the kernel gives to connections, and each
/// once.
pub(crate) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| fastrand::u16(10_000..30_000).into());
    let mut ports = [0; N];
    for port in &mut ports {
        let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let mut tried = iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(1_000);
        *port = tried.find(is_free).context("no port is free")?;
    }
    Ok(ports)
}
