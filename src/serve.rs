//! Puts the rooms together, runs them in one `JoinSet`, and takes them down in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::{Stream, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{service::RoutesBuilder, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    admin,
    credentials::{self, Resolver},
    http,
    kubernetes::{self, Kubernetes, Watches},
    metrics::Metrics,
    proto::{self, external_scaler_server::ExternalScalerServer},
    refresh::{self, Refresher},
    scaler::{self, Scaler},
    source::datadog::Datadog,
};

/// Largest request. A trigger has a query and some numbers; Datadog takes about 7 KB of a query.
const MAX_REQUEST: usize = 64 << 10;
/// How much longer than the patience of an RPC a request may take to come in.
const SLACK: Duration = Duration::from_secs(5);
/// The least time that what is under way has to end, once draining began.
const MIN_GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
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
    let (mut credentials, keeper) = credentials::load(config.credentials).await?;
    let mut cluster = None;
    if let Some(config) = config.kubernetes {
        let (kubernetes, watches) = kubernetes::connect(config).await?;
        let (with_kubernetes, resolver) = credentials.with_kubernetes(kubernetes.clone());
        credentials = with_kubernetes;
        cluster = Some(Cluster { kubernetes, watches, resolver });
    }
    let tenants = admin::Tenants {
        credentials: credentials.clone(),
        kubernetes: cluster.as_ref().map(|cluster| cluster.kubernetes.clone()),
    };
    let source = Datadog::new(client, metrics.clone());
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
    let mut rest = JoinSet::new();
    match cluster {
        Some(cluster) => cluster.spawn(&mut rest, &refresher, scaler, &health, &started, &stop),
        None => is_ready(&health, &started).await,
    }
    rest.spawn({
        let stop = stop.clone();
        async move {
            worker.run(stop).await;
            anyhow::Ok(())
        }
    });
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
        let stop = stop.clone();
        rest.spawn(async move {
            keeper.run(refresher, stop).await;
            Ok(())
        });
    }

    let mut grpc = JoinSet::new();
    grpc.spawn({
        let incoming = connections(listeners.grpc);
        let ended = draining.clone().cancelled_owned();
        let served = Server::builder()
            // A request that is sent half does not stay for ever. Streams are not concerned: their
            // time is that to the first answer.
            .timeout(config.scaler.patience + SLACK)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            // Without a grace after it: tonic would cut the connection instead of asking.
            .max_connection_age(config.connection_age)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, ended);
        async move { served.await.context("the gRPC server ended") }
    });
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(
        version,
        grpc = %grpc_at,
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

    let drained = async {
        tracing::info!(
            delay_seconds = config.drain_delay.as_secs_f64(),
            "the server goes, and answers on meanwhile"
        );
        health.set_service_status("", ServingStatus::NotServing).await;
        health.set_not_serving::<ExternalScalerServer<Scaler>>().await;
        sleep(config.drain_delay).await;
        draining.cancel();
        let grace = MIN_GRACE.max(config.scaler.patience + Duration::from_secs(1));
        if timeout(grace, grpc.join_next()).await.is_err() {
            tracing::warn!(
                grace_seconds = grace.as_secs_f64(),
                "connections were still open after the grace period; they are cut"
            );
        }
        stop.cancel();
        // The HTTP servers wait for their clients; nobody waits for them.
        let all_ended = async { while rest.join_next().await.is_some() {} };
        let _ = timeout(Duration::from_secs(1), all_ended).await;
    };
    tokio::select! {
        () = drained => tracing::info!("the server has gone"),
        () = shutdown.abort.cancelled() => tracing::warn!("the server has gone at once; RPCs may have been cut"),
    }
    Ok(())
}

/// What runs with Kubernetes only.
struct Cluster {
    kubernetes: Kubernetes,
    watches: Watches,
    resolver: Resolver,
}

impl Cluster {
    fn spawn(
        self,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        refresher: &Refresher,
        scaler: Scaler,
        health: &HealthReporter,
        started: &CancellationToken,
        stop: &CancellationToken,
    ) {
        let Self { kubernetes, watches, resolver } = self;
        let watched = watches.run(stop.clone());
        let resolved = resolver.run(refresher.clone(), stop.clone());
        let (health, started, stop) = (health.clone(), started.clone(), stop.clone());
        tasks.spawn(async {
            watched.await;
            Ok(())
        });
        tasks.spawn(async {
            resolved.await;
            Ok(())
        });
        let starting = async move {
            kubernetes.settled().await;
            is_ready(&health, &started).await;
            scaler.warm(&kubernetes).await;
        };
        tasks.spawn(async move {
            stop.run_until_cancelled(starting).await;
            stop.cancelled().await;
            Ok(())
        });
    }
}

async fn is_ready(health: &HealthReporter, started: &CancellationToken) {
    health.set_service_status("", ServingStatus::Serving).await;
    health.set_serving::<ExternalScalerServer<Scaler>>().await;
    started.cancel();
}

async fn routes(scaler: Scaler) -> anyhow::Result<(HealthReporter, tonic::service::Routes)> {
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

/// What connects to the port. tonic would try again at once when accepting fails for want of file
/// descriptors, and keep a core busy with it.
fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold((listener, false), |(listener, mut is_told)| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    // Without it an answer may wait for the next one; no reason to refuse it.
                    let _ = connection.set_nodelay(true);
                    return Some((Ok(connection), (listener, false)));
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    if !is_told {
                        tracing::error!(%error, "connections cannot be accepted");
                    }
                    is_told = true;
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    })
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
