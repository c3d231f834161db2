//! A complete trial on this machine: a Datadog made of waves, and the real server in front of
//! it, through the real HTTP client. No account, no Kubernetes; loopback only.

use std::{io::Write, net::SocketAddr, time::Duration};

use tokio::task::JoinSet;
use url::Url;

use crate::{
    credentials::{self, Given, Origin},
    http, refresh, scaler,
    serve::{self, Listeners, Shutdown},
};

mod datadog;
mod query;
mod catalogue;

use catalogue::METRICS;

/// What the simulated Datadog takes for keys.
const API_KEY: &str = "sandbox-api-key";
const APP_KEY: &str = "sandbox-app-key";

#[derive(Clone, Debug)]
pub struct Config {
    /// How this program was called.
    pub program: String,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub datadog_listen: SocketAddr,
    /// Only the simulated Datadog, no server.
    pub datadog_only: bool,
    /// Requests an hour.
    pub rate_limit: u32,
    pub refresh: refresh::Config,
    pub scaler: scaler::Config,
    pub connection_age: Duration,
}

/// Says on `out` what is running and how to use it, then runs until `shutdown`.
pub async fn run(config: Config, out: &mut impl Write, shutdown: Shutdown) -> anyhow::Result<()> {
    let datadog = serve::bind(config.datadog_listen, "--datadog-listen").await?;
    let datadog_at = datadog.local_addr()?;
    let router = datadog::router(config.rate_limit);
    let mut simulation = JoinSet::new();
    simulation.spawn(async move { axum::serve(datadog, router).await });

    if config.datadog_only {
        tell_datadog_only(out, &config.program, datadog_at, config.rate_limit)?;
        tokio::select! {
            () = shutdown.leave.cancelled() => {}
            _ = simulation.join_next() => anyhow::bail!("the simulated Datadog ended"),
        }
        return Ok(());
    }

    let listeners = Listeners::bind(config.listen, config.admin_listen).await?;
    let addresses = (listeners.grpc.local_addr()?, listeners.admin.local_addr()?);
    tell(out, datadog_at, addresses, config.rate_limit)?;
    serve::run(serve_config(&config, datadog_at)?, listeners, shutdown).await
}

fn serve_config(config: &Config, datadog: SocketAddr) -> anyhow::Result<serve::Config> {
    let given = Given { api_key: Some(API_KEY.into()), app_key: Some(APP_KEY.into()), site: None };
    let base_url: Url = format!("http://{datadog}").parse()?;
    Ok(serve::Config {
        credentials: credentials::Config { origin: Origin::Given(given), base_url: Some(base_url) },
        http: http::Config {
            request_timeout: Duration::from_secs(10),
            ca_file: None,
            proxy_from_environment: false,
        },
        refresh: config.refresh,
        scaler: config.scaler,
        drain_delay: Duration::ZERO,
        connection_age: config.connection_age,
    })
}

fn tell(
    out: &mut impl Write,
    datadog: SocketAddr,
    (grpc, admin): (SocketAddr, SocketAddr),
    rate_limit: u32,
) -> std::io::Result<()> {
    writeln!(out, "A simulated Datadog  http://{datadog}  ({rate_limit} requests an hour)")?;
    writeln!(out, "The real scaler      {grpc} (gRPC), http://{admin}/metrics")?;
    tell_metrics(out)?;
    writeln!(out, "\nAsk as KEDA does, with grpcurl (https://github.com/fullstorydev/grpcurl):\n")?;
    let object = concat!(
        "{\"name\": \"shop\", \"namespace\": \"demo\", \"scalerMetadata\":\n",
        "    {\"query\": \"avg:sandbox.steps{*}\", \"queryValue\": \"5\"}}",
    );
    let metric = format!(
        "{{\"metricName\": \"datadog-avg-sandbox-steps\", \"scaledObjectRef\":\n    {object}}}"
    );
    for (what, method, message) in [
        ("Should it run at all?", "IsActive", object),
        ("What is its metric called, and what is the target?", "GetMetricSpec", object),
        ("What is the value now?", "GetMetrics", &metric),
        (
            "Tell me when that changes, and each minute that it is active (Ctrl-C ends it):",
            "StreamIsActive",
            object,
        ),
    ] {
        writeln!(out, "  # {what}")?;
        writeln!(out, "  grpcurl -plaintext -emit-defaults -d '{message}' \\")?;
        writeln!(out, "    {grpc} externalscaler.ExternalScaler/{method}\n")?;
    }
    writeln!(out, "Ctrl-C stops the sandbox.")?;
    out.flush()
}

fn tell_datadog_only(
    out: &mut impl Write,
    program: &str,
    datadog: SocketAddr,
    rate_limit: u32,
) -> std::io::Result<()> {
    writeln!(out, "A simulated Datadog  http://{datadog}  ({rate_limit} requests an hour)")?;
    tell_metrics(out)?;
    writeln!(out, "\nA server of your own in front of it:\n")?;
    writeln!(out, "  DD_API_KEY={API_KEY} DD_APP_KEY={APP_KEY} DATADOG_HOST=http://{datadog} \\")?;
    writeln!(out, "    {program} serve\n")?;
    writeln!(out, "Ctrl-C stops the sandbox.")?;
    out.flush()
}

fn tell_metrics(out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "\nIts metrics:\n")?;
    for metric in &METRICS {
        writeln!(out, "  {:<22} {}", metric.name, metric.about)?;
    }
    Ok(())
}
