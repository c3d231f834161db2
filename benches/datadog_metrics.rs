//! `cargo bench --bench datadog_metrics`: what 1,000 triggers that read a `DatadogMetric` each cost,
//! beside 1,000 that read the Datadog API: RPCs, requests, memory and CPU of `serve`, alone in its
//! process; then, how many changes a second of the watch it keeps up with. It takes some five
//! minutes.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{collections::HashMap, time::Duration};

use axum::body::Bytes;
use futures_util::{StreamExt as _, stream};
use keda_datadog_scaler::proto::{GetMetricsRequest, ScaledObjectRef};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

#[path = "support/agent.rs"]
mod agent;
#[path = "support/datadog.rs"]
mod datadog;
#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/program.rs"]
mod program;

use agent::Agent;
use datadog::Datadog;
use kubernetes::{Kubernetes, Population, datadog_metric, metadata, metadata_of_metric, team};
use program::Program;

const TRIGGERS: usize = 1_000;
const NAMESPACES: usize = 20;
const LASTS: Duration = Duration::from_mins(1);
const TICK: Duration = Duration::from_millis(100);
/// Triggers that are asked for in a tick, so that each is in 10 s.
const IN_A_TICK: usize = TRIGGERS / 100;
const IN_FLIGHT: usize = 64;
/// How often a Cluster Agent writes into each `DatadogMetric`.
const WRITTEN_EVERY: Duration = Duration::from_secs(30);
/// Changes of each `DatadogMetric` that are told as fast as they are taken.
const CHANGES: u64 = 200;
const MEGABYTE: f64 = 1e6;

#[tokio::main]
async fn main() {
    println!("1,000 triggers of 20 namespaces, each of which is asked for every 10 s");
    println!(
        "{:>7} {:>9} {:>9} {:>9} {:>13} {:>11} {:>11} {:>7}",
        "source", "median", "99 %", "requests", "connections", "memory", "CPU", "errors"
    );
    of_the_api().await;
    over_https().await;
    by_the_watch().await;
}

async fn of_the_api() {
    let datadog = Datadog::start(1).await;
    let account = [("DD_APP_KEY", "ddpat_of-the-benchmark")];
    let program = Program::scaler(&["--datadog-url", &datadog.url], &account).await;
    let row = live(&program, metadata_of).await;
    row.print("API", datadog.requests(), None);
}

async fn over_https() {
    let agent = Agent::start().await;
    let file = agent.token_file.to_str().unwrap();
    let flags = [
        "--cluster-agent-url",
        &agent.url,
        "--cluster-agent-token-file",
        file,
        "--cluster-agent-unsafe-ssl",
    ];
    let program = Program::scaler(&flags, &[]).await;
    let row = live(&program, metadata_of_metric).await;
    row.print("HTTPS", agent.requests(), Some(agent.connections()));
}

async fn by_the_watch() {
    let population =
        Population { scaled_objects: TRIGGERS, namespaces: NAMESPACES, reads_metrics: true };
    let kubernetes = Kubernetes::start(&population).await;
    let environment = [("KUBECONFIG", kubernetes.kubeconfig.to_str().unwrap())];
    let program = Program::scaler(&["--kubernetes=on"], &environment).await;
    let row = tokio::select! {
        row = live(&program, metadata_of_metric) => row,
        () = write(&kubernetes) => unreachable!("a Cluster Agent goes on"),
    };
    let requests = kubernetes.requests().values().sum();
    row.print("watch", requests, None);

    println!("\nScaledObjects have {} bytes each", kubernetes.size());
    let before = program.resident();
    let started_at = Instant::now();
    for change in 1..=CHANGES {
        for number in 0..TRIGGERS {
            tell(&kubernetes, &datadog_metric(number, number % NAMESPACES, 1_000 + change)).await;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a value is a float")]
    let last = (1_000 + CHANGES) as f64;
    while value(&program, TRIGGERS - 1).await != Some(last) {
        sleep(Duration::from_millis(5)).await;
    }
    let seconds = started_at.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "there are not that many")]
    let changes = (CHANGES * TRIGGERS as u64) as f64;
    println!(
        "{changes} changes of {TRIGGERS} DatadogMetrics are told and answered in {seconds:.1} s: \
         {:.0} a second; memory {:.1} MB before, {:.1} MB after",
        changes / seconds,
        megabytes(before),
        megabytes(program.resident()),
    );
}

/// As a Cluster Agent does, one after the other.
async fn write(kubernetes: &Kubernetes) {
    let mut ticks = interval(WRITTEN_EVERY / u32::try_from(TRIGGERS).unwrap());
    let mut written = 0;
    loop {
        ticks.tick().await;
        let number = written % TRIGGERS;
        let value = 100 + u64::try_from(written / TRIGGERS).unwrap();
        tell(kubernetes, &datadog_metric(number, number % NAMESPACES, value)).await;
        written += 1;
    }
}

/// Once a watch is open and has room.
async fn tell(kubernetes: &Kubernetes, metric: &Value) {
    let mut events = kubernetes.events.subscribe();
    let sender = events.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let event = json!({"type": "MODIFIED", "object": metric});
    sender.send(Bytes::from(format!("{event}\n"))).await.unwrap();
}

fn metadata_of(number: usize, _namespace: usize) -> HashMap<String, String> {
    metadata(number)
}

/// What was measured.
struct Row {
    /// Sorted.
    latencies: Vec<Duration>,
    memory: u64,
    cpu: f64,
    errors: u64,
}

impl Row {
    fn print(&self, source: &str, requests: u64, connections: Option<u64>) {
        let at = |share: usize| self.latencies[self.latencies.len() * share / 1_000].as_micros();
        // The first were in the time of warming.
        println!(
            "{source:>7} {:>6} µs {:>6} µs {requests:>9} {:>13} {:>8.1} MB {:>9.1} % {:>7}",
            at(500),
            at(990),
            connections.map_or("-".to_owned(), |count| count.to_string()),
            megabytes(self.memory),
            self.cpu * 100.0,
            self.errors,
        );
    }
}

/// Asks for each trigger once, and then for a minute.
async fn live(
    program: &Program,
    metadata: impl Fn(usize, usize) -> HashMap<String, String>,
) -> Row {
    let requests: Vec<GetMetricsRequest> = (0..TRIGGERS)
        .map(|number| request(number, metadata(number, number % NAMESPACES)))
        .collect();
    let first: Vec<_> = stream::iter(&requests)
        .map(|request| {
            let mut client = program.client.clone();
            async move { client.get_metrics(request.clone()).await.is_err() }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    let mut errors = first.into_iter().map(u64::from).sum();
    let (mut latencies, mut asked) = (Vec::new(), 0);
    let (cpu, started_at) = (program.cpu(), Instant::now());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while started_at.elapsed() < LASTS {
        ticks.tick().await;
        let mut under_way = JoinSet::new();
        for number in asked..asked + IN_A_TICK {
            let (mut client, request) =
                (program.client.clone(), requests[number % TRIGGERS].clone());
            under_way.spawn(async move {
                let asked_at = Instant::now();
                let is_answered = client.get_metrics(request).await.is_ok();
                (asked_at.elapsed(), is_answered)
            });
        }
        asked += IN_A_TICK;
        for (latency, is_answered) in under_way.join_all().await {
            latencies.push(latency);
            errors += u64::from(!is_answered);
        }
    }
    latencies.sort_unstable();
    let seconds = started_at.elapsed().as_secs_f64();
    let cpu = program.cpu().saturating_sub(cpu).as_secs_f64() / seconds;
    Row { latencies, memory: program.resident(), cpu, errors }
}

async fn value(program: &Program, number: usize) -> Option<f64> {
    let request = request(number, metadata_of_metric(number, number % NAMESPACES));
    let values = program.client.clone().get_metrics(request).await.ok()?.into_inner();
    Some(values.metric_values[0].metric_value_float)
}

fn request(number: usize, metadata: HashMap<String, String>) -> GetMetricsRequest {
    GetMetricsRequest {
        scaled_object_ref: Some(ScaledObjectRef {
            name: format!("checkout-{number}"),
            namespace: team(number % NAMESPACES),
            scaler_metadata: metadata,
        }),
        metric_name: "s0-checkout".into(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "there is not that much memory")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / MEGABYTE
}
