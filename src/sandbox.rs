//! A complete trial on this machine: a Datadog made of waves, which breaks on command, and the real
//! server in front of it, through the real HTTP client. No account, no Kubernetes; loopback only.

use std::{io::Write, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, middleware::from_fn, routing::get};
use tokio::task::JoinSet;
use url::Url;

use crate::{
    credentials::{self, Given, Origin},
    http, refresh, scaler,
    serve::{self, Listeners, Shutdown},
    source::datadog::wall_clock,
};

mod printed;
mod datadog;
mod switch;
mod page;
mod sparkline;
mod failure;
mod reply;
mod query;
mod state;
mod broken;
mod fault;
mod limit;
mod catalogue;

use broken::Faults;
pub use fault::{Breakage, Fault, NoBreakage};
use printed::Simulated;
use state::Simulation;

/// What the simulated Datadog takes for keys.
const API_KEY: &str = "sandbox-api-key";
const APP_KEY: &str = "sandbox-app-key";

#[derive(Clone, Debug)]
pub struct Config {
    /// How this program was called.
    pub program: String,
    pub addresses: serve::Addresses,
    pub datadog_listen: SocketAddr,
    /// Only the simulated Datadog, no server.
    pub datadog_only: bool,
    /// Requests an hour.
    pub rate_limit: u32,
    /// Switched on from the start, in this order.
    pub faults: Vec<Breakage>,
    pub refresh: refresh::Config,
    pub scaler: scaler::Config,
    pub connection_age: Duration,
}

/// Says on `out` what is running and how to use it, then runs until `shutdown`.
pub async fn run(config: Config, out: &mut impl Write, shutdown: Shutdown) -> anyhow::Result<()> {
    let datadog = serve::bind(config.datadog_listen, "--datadog-listen").await?;
    let datadog_at = datadog.local_addr()?;
    let faults = Faults::new(config.faults.clone(), wall_clock().as_second());
    let faults = faults.context("there are too many `--fault`")?;
    let told = Simulated { address: datadog_at, rate_limit: config.rate_limit, faults: &faults };
    let router = router(Simulation::new(datadog_at, config.rate_limit, faults.clone()));
    let mut simulation = JoinSet::new();
    simulation.spawn(async move { axum::serve(datadog, router).await });

    if config.datadog_only {
        printed::tell_datadog_only(out, &told, &config.program)?;
        tokio::select! {
            () = shutdown.leave.cancelled() => {}
            _ = simulation.join_next() => anyhow::bail!("the simulated Datadog ended"),
        }
        return Ok(());
    }

    let listeners = Listeners::bind(config.addresses).await?;
    printed::tell(out, &told, &config.program, listeners.addresses()?)?;
    serve::run(serve_config(&config, datadog_at)?, listeners, shutdown).await
}

fn router(simulation: Simulation) -> Router {
    Router::new()
        .route("/", get(page::show))
        .route("/api/v1/query", get(datadog::query))
        .merge(switch::routes())
        .layer(from_fn(switch::on_this_machine))
        .with_state(Arc::new(simulation))
}

fn serve_config(config: &Config, datadog: SocketAddr) -> anyhow::Result<serve::Config> {
    let given = Given { api_key: Some(API_KEY.into()), app_key: Some(APP_KEY.into()), site: None };
    let base_url: Url = format!("http://{datadog}").parse()?;
    Ok(serve::Config {
        tls: None,
        limits: serve::Limits::default(),
        credentials: credentials::Config {
            origin: Origin::Given(given),
            base_url: Some(base_url),
            rules: credentials::Rules::default(),
            agent: None,
            agent_ca: None,
            is_optional: false,
        },
        kubernetes: None,
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
