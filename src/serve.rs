//! Puts the rooms together, runs them in one `JoinSet`, and takes them down in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    admin, credentials, http, kubernetes,
    metrics::Metrics,
    proto::{self, external_scaler_server::ExternalScalerServer},
    refresh,
    scaler::{self, Scaler},
    source::{Sources, cluster_agent::ClusterAgent, datadog::Datadog, watched::Watched},
    tls::{self, Certificates},
};

mod cluster;
mod connections;
mod requests;
mod places;

use cluster::Cluster;
use connections::connections;
pub use places::Limits;
use places::Places;
use requests::Requests;

/// Largest request. A trigger has a query and some numbers; Datadog takes about 7 KB of a query.
const MAX_REQUEST: usize = 64 << 10;
/// How much longer than the patience of an RPC a request may take to come in.
const SLACK: Duration = Duration::from_secs(5);
/// The least time that what is under way has to end, once draining began.
const MIN_GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    /// `None` is plaintext.
    pub tls: Option<tls::Config>,
    pub limits: Limits,
    pub credentials: credentials::Config,
    /// `None` answers every request with the own account, unverified.
    pub kubernetes: Option<kubernetes::Config>,
    pub http: http::Config,
    pub refresh: refresh::Config,
    pub scaler: scaler::Config,
    /// How long everything is served on, not ready, before the drain: endpoints and DNS lag.
    pub drain_delay: Duration,
    /// After this a client is asked to connect anew, so that it finds new pods.
    pub connection_age: Duration,
}

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub status: SocketAddr,
}

/// Bound by the caller, who thereby knows the ports.
pub struct Listeners {
    pub grpc: TcpListener,
    pub admin: TcpListener,
    pub status: TcpListener,
}

impl Listeners {
    pub async fn bind(addresses: Addresses) -> anyhow::Result<Self> {
        Ok(Self {
            grpc: bind(addresses.grpc, "--listen").await?,
            admin: bind(addresses.admin, "--admin-listen").await?,
            status: bind(addresses.status, "--status-listen").await?,
        })
    }

    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            grpc: self.grpc.local_addr()?,
            admin: self.admin.local_addr()?,
            status: self.status.local_addr()?,
        })
    }
}

/// `flag` is what the address can be changed with.
pub async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another `{flag}`"))
}

/// How the caller ends it.
#[derive(Clone, Default)]
pub struct Shutdown {
    /// Drain, then return.
    pub leave: CancellationToken,
    /// Return at once.
    pub abort: CancellationToken,
}

/// Serves until `shutdown`. An error is one of starting, or a server that ended unasked.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new());
    let client = http::Client::new(&config.http)?;
    let security = security(config.tls.as_ref());
    let tls = match config.tls {
        Some(tls) => Some(tls::load(tls).await?),
        None => None,
    };
    let (certificates, tls_keeper) = tls.unzip();
    let (credentials, keeper) = credentials::load(config.credentials).await?;
    let (credentials, cluster) = Cluster::connect(credentials, config.kubernetes).await?;
    let tenants = admin::Tenants {
        credentials: credentials.clone(),
        kubernetes: cluster.as_ref().map(Cluster::kubernetes),
    };
    let source = Sources {
        datadog: Datadog::new(client, metrics.clone()),
        cluster_agent: ClusterAgent::new(config.http.request_timeout, metrics.clone()),
        watched: Watched::new(cluster.as_ref().map(Cluster::kubernetes)),
    };
    let (refresher, worker) = refresh::new(config.refresh, source);

    // Each part ends on its own token: first the streams and the gRPC server, then the rest.
    let draining = CancellationToken::new();
    let stop = CancellationToken::new();
    let _stop_on_return = stop.clone().drop_guard();

    let scaler = Scaler::new(
        config.scaler,
        credentials,
        refresher.clone(),
        metrics.clone(),
        draining.clone(),
    );
    let (health, routes) = routes(scaler.clone()).await?;
    let Addresses { grpc: grpc_at, admin: admin_at, status: status_at } = listeners.addresses()?;

    let started = CancellationToken::new();
    let mut rest = Parts::new();
    look_after(&mut rest, {
        let (health, started) = (health.clone(), started.clone());
        cluster::run(cluster, scaler, refresher.clone(), stop.clone(), async move {
            health.set_service_status("", ServingStatus::Serving).await;
            health.set_serving::<ExternalScalerServer<Scaler>>().await;
            started.cancel();
        })
    });
    look_after(&mut rest, worker.run(stop.clone()));
    rest.spawn({
        let phases = admin::Phases { started: started.clone(), leaving: shutdown.leave.clone() };
        let stop = stop.clone();
        let admin = listeners.admin;
        let served = admin::serve(admin, metrics, refresher.clone(), tenants, phases, stop);
        async move { served.await.context("the admin server ended") }
    });
    rest.spawn({
        let served = admin::status::serve(listeners.status, refresher.clone(), stop.clone());
        async move { served.await.context("the status server ended") }
    });
    if let Some(keeper) = keeper {
        look_after(&mut rest, keeper.run(refresher, stop.clone()));
    }
    if let Some(keeper) = tls_keeper {
        look_after(&mut rest, keeper.run(stop.clone()));
    }

    let mut grpc = Parts::new();
    grpc.spawn({
        let patience = config.scaler.patience;
        let clients = Clients { patience, age: config.connection_age, limits: config.limits };
        let served = clients.serve(listeners.grpc, certificates, routes, draining.clone());
        async move { served.await.context("the gRPC server ended") }
    });
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(
        version,
        grpc = %grpc_at,
        security,
        admin = %admin_at,
        status = %status_at,
        "KEDA is answered from now on"
    );

    let ended = tokio::select! {
        () = shutdown.leave.cancelled() => None,
        () = shutdown.abort.cancelled() => return Ok(()),
        ended = grpc.join_next() => Some(ended),
        ended = rest.join_next() => Some(ended),
    };
    if let Some(Some(ended)) = ended {
        ended.context("a part of the server panicked")??;
        anyhow::bail!("a part of the server ended unasked");
    }

    let departure = Departure {
        delay: config.drain_delay,
        grace: MIN_GRACE.max(config.scaler.patience + Duration::from_secs(1)),
        health,
        draining,
        stop,
    };
    tokio::select! {
        () = departure.take(grpc, rest) => tracing::info!("the server has gone"),
        () = shutdown.abort.cancelled() => tracing::warn!("the server has gone at once; RPCs may have been cut"),
    }
    Ok(())
}

fn security(tls: Option<&tls::Config>) -> &'static str {
    match tls {
        None => "plaintext",
        Some(tls) if tls.client_ca.is_none() => "TLS",
        Some(_) => "mTLS",
    }
}

type Parts = JoinSet<anyhow::Result<()>>;

/// How the server goes.
struct Departure {
    delay: Duration,
    grace: Duration,
    health: HealthReporter,
    draining: CancellationToken,
    stop: CancellationToken,
}

impl Departure {
    async fn take(self, mut grpc: Parts, mut rest: Parts) {
        let Self { delay, grace, health, draining, stop } = self;
        let delay_seconds = delay.as_secs_f64();
        tracing::info!(delay_seconds, "the server goes, and answers on meanwhile");
        health.set_service_status("", ServingStatus::NotServing).await;
        health.set_not_serving::<ExternalScalerServer<Scaler>>().await;
        sleep(delay).await;
        draining.cancel();
        if timeout(grace, grpc.join_next()).await.is_err() {
            let grace_seconds = grace.as_secs_f64();
            tracing::warn!(
                grace_seconds,
                "connections were still open after the grace period; they are cut"
            );
        }
        stop.cancel();
        // The HTTP servers wait for their clients; nobody waits for them.
        let all_ended = async { while rest.join_next().await.is_some() {} };
        let _ = timeout(Duration::from_secs(1), all_ended).await;
    }
}

/// Runs beside what is served, and cannot fail.
fn look_after(rest: &mut Parts, room: impl Future<Output = ()> + Send + 'static) {
    rest.spawn(async move {
        room.await;
        Ok(())
    });
}

/// What clients of the gRPC port may do.
struct Clients {
    patience: Duration,
    age: Duration,
    limits: Limits,
}

impl Clients {
    /// Answers until `draining`, and then what is under way.
    fn serve(
        self,
        listener: TcpListener,
        certificates: Option<Certificates>,
        routes: Routes,
        draining: CancellationToken,
    ) -> impl Future<Output = Result<(), tonic::transport::Error>> {
        let limits = self.limits;
        // Who behaves takes two ages: streams end a little beyond one, and may have begun just
        // before their connection is asked to end.
        let connections = connections(listener, certificates, limits, 3 * self.age);
        let places = Places::new(limits.requests, limits.requests_of_an_address);
        Server::builder()
            // A request that is sent half does not stay for ever. Streams are not concerned: their
            // time is that to the first answer.
            .timeout(self.patience + SLACK)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            // More than are answered: a client would wait with those beyond it, as long as it takes.
            .max_concurrent_streams(u32::try_from(2 * limits.requests_of_an_address).ok())
            // Without a grace after it: tonic would cut the connection instead of asking.
            .max_connection_age(self.age)
            .serve_with_incoming_shutdown(
                Requests::new(routes, places),
                connections,
                draining.cancelled_owned(),
            )
    }
}

async fn routes(scaler: Scaler) -> anyhow::Result<(HealthReporter, Routes)> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::NotServing).await;
    health.set_not_serving::<ExternalScalerServer<Scaler>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(ExternalScalerServer::new(scaler).max_decoding_message_size(MAX_REQUEST))
        .add_service(health_service.max_decoding_message_size(MAX_REQUEST))
        .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_REQUEST))
        // Older grpcurl and ghz know only this one.
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST));
    Ok((health, routes.routes()))
}
