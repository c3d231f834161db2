//! `cargo bench --bench rpc`: warm GetMetrics and IsActive of 1,000 triggers against a bare tonic
//! service of the same contract, which decodes the same metadata and returns a constant. Both are
//! processes of their own. They share the machine with the client, so that only the ratio of
//! interleaved rounds means something; the CPU time of an RPC is the server's alone.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{env, net::SocketAddr, process::Command, time::Duration};

use futures_util::{future::join_all, stream};
use keda_datadog_scaler::proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricValue,
    ScaledObjectRef,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use tokio::{net::TcpListener, time::Instant};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

#[path = "support/datadog.rs"]
mod datadog;
#[path = "support/program.rs"]
mod program;

use datadog::Datadog;
use program::{Program, free_address};

const TRIGGERS: usize = 1_000;
/// Many and short, since others may use the machine too.
const ROUNDS: usize = 60;
const ROUND: Duration = Duration::from_millis(400);
const IN_FLIGHT: usize = 64;
/// How this program is told to be the bare service.
const BARE: &str = "--be-the-bare-service-at";
const GOAL_OF_RATIO: f64 = 0.7;
const GOAL_OF_CPU: f64 = 25.0;

/// What a server did in a round.
struct Round {
    rpcs_a_second: f64,
    /// In microseconds.
    cpu_an_rpc: f64,
}

#[derive(Clone, Copy)]
struct Quartiles {
    lower: f64,
    median: f64,
    upper: f64,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, flag, address] = &arguments[..]
        && flag == BARE
    {
        return serve_bare(address.parse().unwrap()).await;
    }
    let address = free_address();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([BARE, &address.to_string()]);
    let bare = Program::start(command, address).await;
    let datadog = Datadog::start(1).await;
    let account = [("DD_APP_KEY", "ddpat_of-the-benchmark")];
    let real = Program::scaler(&["--datadog-url", &datadog.url], &account).await;
    let requests: Vec<GetMetricsRequest> = (0..TRIGGERS).map(request).collect();
    for program in [&bare, &real] {
        round(program, &requests).await;
    }

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((round(&bare, &requests).await, round(&real, &requests).await));
    }
    let ratios = rounds.iter().map(|(bare, real)| real.rpcs_a_second / bare.rpcs_a_second);
    let ratio = Quartiles::of(ratios);
    let cpu = Quartiles::of(rounds.iter().map(|(_, real)| real.cpu_an_rpc));
    println!("{:<24} {:>10} {:>10} {:>10}", "quartiles", "lower", "median", "upper");
    for (name, quartiles, decimals) in [
        ("bare RPC/s", Quartiles::of(rounds.iter().map(|(bare, _)| bare.rpcs_a_second)), 0),
        ("real RPC/s", Quartiles::of(rounds.iter().map(|(_, real)| real.rpcs_a_second)), 0),
        ("ratio", ratio, 3),
        ("bare us CPU an RPC", Quartiles::of(rounds.iter().map(|(bare, _)| bare.cpu_an_rpc)), 1),
        ("real us CPU an RPC", cpu, 1),
    ] {
        let Quartiles { lower, median, upper } = quartiles;
        println!("{name:<24} {lower:>10.decimals$} {median:>10.decimals$} {upper:>10.decimals$}");
    }
    let (ratio, cpu) = (ratio.median, cpu.median);
    let verdict = |is_met| if is_met { "ok" } else { "MISSED" };
    println!(
        "median ratio {ratio:.3} of {ROUNDS} interleaved rounds, goal >= {GOAL_OF_RATIO} {}",
        verdict(ratio >= GOAL_OF_RATIO)
    );
    let [of_bare, of_real] = [&bare, &real].map(|program| program.resident() >> 20);
    println!(
        "resident {of_bare} MiB and {of_real} MiB; {} requests to Datadog all the while",
        datadog.requests()
    );
    println!(
        "median server CPU of an RPC {cpu:.1} us, goal <= {GOAL_OF_CPU} us {}",
        verdict(cpu <= GOAL_OF_CPU)
    );
}

impl Quartiles {
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let [lower, median, upper] = [1, 2, 3].map(|quarter| figures[figures.len() * quarter / 4]);
        Self { lower, median, upper }
    }
}

/// GetMetrics and IsActive in turn, over one connection, as KEDA has it.
async fn round(program: &Program, requests: &[GetMetricsRequest]) -> Round {
    let (cpu, started_at) = (program.cpu(), Instant::now());
    let callers = (0..IN_FLIGHT).map(|caller| {
        let mut client = program.client.clone();
        async move {
            let mut calls = 0.0;
            let own = requests.iter().skip(caller).step_by(IN_FLIGHT).cycle();
            for request in own {
                if started_at.elapsed() >= ROUND {
                    break;
                }
                let object = request.scaled_object_ref.clone().unwrap();
                let response = client.get_metrics(request.clone()).await.unwrap();
                assert_eq!(response.into_inner().metric_values.len(), 1);
                assert!(!client.is_active(object).await.unwrap().into_inner().result);
                calls += 2.0;
            }
            calls
        }
    });
    let calls: f64 = join_all(callers).await.iter().sum();
    let took = started_at.elapsed();
    let cpu = program.cpu().saturating_sub(cpu);
    Round { rpcs_a_second: calls / took.as_secs_f64(), cpu_an_rpc: cpu.as_secs_f64() * 1e6 / calls }
}

fn request(number: usize) -> GetMetricsRequest {
    let query = format!(
        "sum:trace.http.request.hits{{env:live,service:checkout-{number}}}.as_rate().rollup(avg, 30)"
    );
    let metadata = [
        ("scalerAddress", "keda-datadog-scaler.keda:9090"),
        ("query", &query),
        ("queryValue", "120"),
        ("activationQueryValue", "500"),
        ("age", "120"),
        ("metricUnavailableValue", "0"),
    ];
    GetMetricsRequest {
        scaled_object_ref: Some(ScaledObjectRef {
            name: format!("checkout-{number}"),
            namespace: format!("team-{}", number % 50),
            scaler_metadata: metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }),
        metric_name: "datadog-sum-trace-http-request-hits".into(),
    }
}

/// Until it is killed.
async fn serve_bare(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(ExternalScalerServer::new(Bare));
    server.serve_with_incoming(incoming).await.unwrap();
}

struct Bare;

/// The least that any scaler would look at.
fn read(object: Option<&ScaledObjectRef>) -> Option<f64> {
    let metadata = &object?.scaler_metadata;
    let query = metadata.get("query").filter(|query| query.contains('{'));
    query.and(metadata.get("queryValue")?.parse().ok())
}

#[tonic::async_trait]
impl ExternalScaler for Bare {
    type StreamIsActiveStream = stream::Empty<Result<IsActiveResponse, Status>>;
    type StreamMetricSpecStream = stream::Empty<Result<GetMetricSpecResponse, Status>>;

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        let Some(_target) = read(scaled_object_ref.as_ref()) else {
            return Err(Status::invalid_argument("the metadata cannot work"));
        };
        let value = MetricValue { metric_name, metric_value: 98, metric_value_float: 97.5 };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let Some(target) = read(Some(&request.into_inner())) else {
            return Err(Status::invalid_argument("the metadata cannot work"));
        };
        Ok(Response::new(IsActiveResponse { result: target < 0.0 }))
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
