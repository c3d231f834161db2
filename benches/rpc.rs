//! `cargo bench --bench rpc`: warm GetMetrics of the real server against a bare tonic service that
//! decodes the same request and returns a constant. Client and servers share the machine, so
//! only the ratio of interleaved rounds means something.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{net::SocketAddr, time::Duration};

use clap::Parser as _;
use futures_util::{future::join_all, stream};
use keda_datadog_scaler::{
    cli::{Cli, Command, Environment},
    proto::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse,
        MetricValue, ScaledObjectRef,
        external_scaler_client::ExternalScalerClient,
        external_scaler_server::{ExternalScaler, ExternalScalerServer},
    },
    serve::{self, Listeners, Shutdown},
};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server, server::TcpIncoming},
};

const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_secs(1);
const IN_FLIGHT: usize = 64;

#[tokio::main]
async fn main() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let mut servers = JoinSet::new();
    let bare = client(start_bare(&mut servers).await).await;
    let real = client(start_real(&mut servers).await).await;
    for client in [&bare, &real] {
        throughput(client).await;
    }

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((throughput(&bare).await, throughput(&real).await));
    }
    println!("{:>12} {:>12} {:>8}", "bare RPC/s", "real RPC/s", "ratio");
    for (bare, real) in &rounds {
        println!("{bare:>12.0} {real:>12.0} {:>8.3}", real / bare);
    }
    let mut ratios: Vec<f64> = rounds.iter().map(|(bare, real)| real / bare).collect();
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.3} of {ROUNDS} interleaved rounds", ratios[ROUNDS / 2]);
}

/// RPCs per second over one connection, as KEDA has it.
async fn throughput(client: &ExternalScalerClient<Channel>) -> f64 {
    let started_at = Instant::now();
    let callers = (0..IN_FLIGHT).map(|_| {
        let mut client = client.clone();
        async move {
            let mut calls = 0.0;
            while started_at.elapsed() < ROUND {
                let response = client.get_metrics(request()).await.unwrap();
                assert_eq!(response.into_inner().metric_values.len(), 1);
                calls += 1.0;
            }
            calls
        }
    });
    let calls: f64 = join_all(callers).await.iter().sum();
    calls / started_at.elapsed().as_secs_f64()
}

fn request() -> GetMetricsRequest {
    let metadata = [
        ("scalerAddress", "keda-datadog-scaler.keda:9090"),
        (
            "query",
            "sum:trace.http.request.hits{env:live,service:checkout}.as_rate().rollup(avg, 30)",
        ),
        ("queryValue", "120"),
        ("activationQueryValue", "5"),
        ("age", "120"),
        ("metricUnavailableValue", "0"),
    ];
    GetMetricsRequest {
        scaled_object_ref: Some(ScaledObjectRef {
            name: "checkout".into(),
            namespace: "shop".into(),
            scaler_metadata: metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }),
        metric_name: "datadog-sum-trace-http-request-hits".into(),
    }
}

async fn client(address: SocketAddr) -> ExternalScalerClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    ExternalScalerClient::new(endpoint.connect().await.unwrap())
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn start_bare(servers: &mut JoinSet<()>) -> SocketAddr {
    let (listener, address) = listen().await;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(ExternalScalerServer::new(Bare));
    servers.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    address
}

async fn start_real(servers: &mut JoinSet<()>) -> SocketAddr {
    let (datadog, datadog_at) = listen().await;
    let reply = r#"{"status":"ok","series":[{"pointlist":[[0,1.0],[10000,97.5]]}]}"#;
    let router = axum::Router::new().route("/api/v1/query", axum::routing::get(reply));
    servers.spawn(async move { axum::serve(datadog, router).await.unwrap() });

    let (grpc, address) = listen().await;
    let (admin, _) = listen().await;
    let (status, _) = listen().await;
    let url = format!("http://{datadog_at}");
    let arguments = ["keda-datadog-scaler", "serve", "--datadog-url", &url];
    let Command::Serve(serve) = Cli::parse_from(arguments).command else { panic!("it is `serve`") };
    let environment =
        Environment::read(|name| (name == "DD_APP_KEY").then(|| "ddpat_of-the-benchmark".into()));
    let config = serve.config(environment).unwrap();
    servers.spawn(async move {
        serve::run(config, Listeners { grpc, admin, status }, Shutdown::default()).await.unwrap();
    });
    address
}

struct Bare;

#[tonic::async_trait]
impl ExternalScaler for Bare {
    type StreamIsActiveStream = stream::Empty<Result<IsActiveResponse, Status>>;
    type StreamMetricSpecStream = stream::Empty<Result<GetMetricSpecResponse, Status>>;

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let metric_name = request.into_inner().metric_name;
        let value = MetricValue { metric_name, metric_value: 98, metric_value_float: 97.5 };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn is_active(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_metric_spec(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stream_is_active(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stream_metric_spec(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
