//! A server in a process of its own, and what that process takes.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use keda_datadog_scaler::proto::external_scaler_client::ExternalScalerClient;
use tokio::time::sleep;
use tonic::transport::Channel;

/// `USER_HZ` on Linux, whatever the kernel's own clock (proc(5)).
const TICKS_A_SECOND: f64 = 100.0;

pub(crate) struct Program {
    process: Process,
    pub(crate) client: ExternalScalerClient<Channel>,
}

/// Killed when dropped.
struct Process(Child);

impl Program {
    /// The scaler as it is released, and silent unless something is wrong.
    pub(crate) async fn scaler(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let grpc = free_address();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keda-datadog-scaler"));
        command
            .arg("serve")
            .args(arguments)
            .env_clear()
            .envs([("SCALER_LISTEN", grpc.to_string())])
            .envs([("SCALER_ADMIN_LISTEN", "127.0.0.1:0"), ("SCALER_STATUS_LISTEN", "127.0.0.1:0")])
            .envs([("RUST_LOG", "error")])
            .envs(environment.iter().copied());
        Self::start(command, grpc).await
    }

    /// Whatever listens for KEDA at that address.
    pub(crate) async fn start(mut command: Command, grpc: SocketAddr) -> Self {
        let process = Process(command.stdin(Stdio::null()).spawn().unwrap());
        let endpoint = Channel::from_shared(format!("http://{grpc}")).unwrap();
        for _ in 0..500 {
            if let Ok(channel) = endpoint.connect().await {
                return Self { process, client: ExternalScalerClient::new(channel) };
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing listens on {grpc}");
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kilobytes << 10
    }

    /// Time on a core so far, its own and the kernel's for it.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.0.id())).unwrap();
        // The name before it may hold anything; `utime` and `stime` are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).map(|t| t.parse::<f64>().unwrap()).sum();
        Duration::from_secs_f64(ticks / TICKS_A_SECOND)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nobody else is likely to take it at once.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
