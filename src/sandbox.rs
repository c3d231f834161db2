//! A complete trial on this machine: a Datadog and a Cluster Agent made of waves, which break on
//! command, and the real server in front of them, through the real HTTP client. No account, no
//! Kubernetes; loopback only.

use std::{io::Write, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, middleware::from_fn, routing::get};
use tokio::task::JoinSet;
use url::Url;

use crate::{
    credentials::{self, AgentConfig, AgentText, Given, Origin, Pattern},
    http, refresh, scaler,
    serve::{self, Listeners, Shutdown},
    source::datadog::wall_clock,
};

mod printed;
mod datadog;
mod agent;
mod https;
mod switch;
mod page;
mod sparkline;
mod metric;
mod quantity;
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
use https::Https;
use printed::Simulated;
use state::{Addresses, Simulation};

/// What the simulated Datadog takes for keys.
const API_KEY: &str = "sandbox-api-key";
const APP_KEY: &str = "sandbox-app-key";
/// What the simulated Cluster Agent takes for a token.
const AGENT_TOKEN: &str = "sandbox-token";

#[derive(Clone, Debug)]
pub struct Config {
    /// How this program was called.
    pub program: String,
    pub addresses: serve::Addresses,
    pub datadog_listen: SocketAddr,
    pub agent_listen: SocketAddr,
    /// Only the simulated Datadog and Cluster Agent, no server.
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
    let agent = serve::bind(config.agent_listen, "--agent-listen").await?;
    let addresses = Addresses { datadog: datadog.local_addr()?, agent: agent.local_addr()? };
    let (agent, agent_ca) = Https::new(agent).context("no certificate can be made")?;
    let faults = Faults::new(config.faults.clone(), wall_clock().as_second());
    let faults = faults.context("there are too many `--fault`")?;
    let told = Simulated { addresses, rate_limit: config.rate_limit, faults: &faults };
    let simulation = Arc::new(Simulation::new(addresses, config.rate_limit, faults.clone()));
    let (of_datadog, of_agent) = (router(simulation.clone()), agent::routes());
    let of_agent = of_agent.with_state(simulation);
    let mut simulated = JoinSet::new();
    simulated.spawn(async move { axum::serve(datadog, of_datadog).await });
    simulated.spawn(async move { axum::serve(agent, of_agent).await });

    if config.datadog_only {
        printed::tell_datadog_only(out, &told, &config.program)?;
        tokio::select! {
            () = shutdown.leave.cancelled() => {}
            _ = simulated.join_next() => anyhow::bail!("the simulation ended"),
        }
        return Ok(());
    }

    let listeners = Listeners::bind(config.addresses).await?;
    printed::tell(out, &told, &config.program, listeners.addresses()?)?;
    serve::run(serve_config(&config, addresses, agent_ca)?, listeners, shutdown).await
}

fn router(simulation: Arc<Simulation>) -> Router {
    Router::new()
        .route("/", get(page::show))
        .route("/api/v1/query", get(datadog::query))
        .merge(switch::routes())
        .layer(from_fn(switch::on_this_machine))
        .with_state(simulation)
}

/// The server trusts the simulated agent by its CA alone, and all may read its metrics.
fn serve_config(
    config: &Config,
    addresses: Addresses,
    agent_ca: String,
) -> anyhow::Result<serve::Config> {
    let given = Given { api_key: Some(API_KEY.into()), app_key: Some(APP_KEY.into()), site: None };
    let base_url: Url = format!("http://{}", addresses.datadog).parse()?;
    let agent = AgentConfig {
        url: format!("https://{}", addresses.agent).parse()?,
        token: AgentText::Given(AGENT_TOKEN.into()),
        ca: Some(AgentText::Given(agent_ca.into())),
        server_name: None,
        is_unsafe: false,
        // There is nothing to look at.
        look_every: Duration::from_mins(1),
    };
    let agent_namespaces = vec![Pattern::any()];
    Ok(serve::Config {
        tls: None,
        limits: serve::Limits::default(),
        credentials: credentials::Config {
            origin: Origin::Given(given),
            base_url: Some(base_url),
            rules: credentials::Rules { agent_namespaces, ..credentials::Rules::default() },
            agent: Some(agent),
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
