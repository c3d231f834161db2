//! The flags of `sandbox`.

use std::net::SocketAddr;

use clap::Args;

use super::{Engine, Log, LogFormat, connection_age, values::loopback};
use crate::{
    sandbox::{self, Breakage, Fault},
    serve,
};

#[derive(Debug, Args)]
pub struct Sandbox {
    /// Address for KEDA or grpcurl (gRPC), on this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090", value_parser = loopback)]
    listen: SocketAddr,

    /// Address for health and metrics (HTTP)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = loopback)]
    admin_listen: SocketAddr,

    /// Address for the status (HTTP)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081", value_parser = loopback)]
    status_listen: SocketAddr,

    /// Address of the simulated Datadog (HTTP), on this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8282", value_parser = loopback)]
    datadog_listen: SocketAddr,

    /// Address of the simulated Cluster Agent (HTTPS), on this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8283", value_parser = loopback)]
    agent_listen: SocketAddr,

    /// Run the simulated Datadog and Cluster Agent only, for a `serve` of your own
    #[arg(long)]
    datadog_only: bool,

    /// Requests that the simulated Datadog answers in an hour; then it answers 429
    #[arg(long, value_name = "REQUESTS", default_value_t = 1_600)]
    rate_limit: u32,

    /// Break the simulated Datadog and Cluster Agent from the start, for all queries or for one; can
    /// be given several times
    #[arg(long = "fault", value_name = "NAME[=QUERY]")]
    faults: Vec<Breakage>,

    #[command(flatten)]
    engine: Engine,

    #[command(flatten)]
    log: Log,
}

impl Sandbox {
    /// `program` is how this program was called, for what it tells people to type.
    pub fn config(&self, program: String) -> sandbox::Config {
        sandbox::Config {
            program,
            addresses: serve::Addresses {
                grpc: self.listen,
                admin: self.admin_listen,
                status: self.status_listen,
            },
            datadog_listen: self.datadog_listen,
            agent_listen: self.agent_listen,
            datadog_only: self.datadog_only,
            rate_limit: self.rate_limit,
            faults: self.faults.clone(),
            refresh: self.engine.refresh_config(),
            scaler: self.engine.scaler_config(),
            connection_age: connection_age(),
        }
    }

    pub fn log_format(&self) -> LogFormat {
        self.log.format()
    }
}

pub(super) fn help() -> String {
    let faults = Fault::ALL.map(|fault| format!("\n  {fault:<10}  {}", fault.about()));
    format!("Faults:{}", faults.concat())
}
