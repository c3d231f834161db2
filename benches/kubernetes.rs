//! `cargo bench --bench kubernetes`: what Kubernetes costs `serve`, alone in its process: the time
//! until it is ready, resident memory, CPU, and what the API server is asked, with no ScaledObjects
//! and with 10,000 that have 200 TriggerAuthentications. It takes some six minutes.
//!
//! Nothing leaves this machine: Datadog is to be reached through a proxy that is not there, so that
//! every query fails. That is part of the memory and of the CPU.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use keda_datadog_scaler::proto::ScaledObjectRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};
use tonic::Code;

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/program.rs"]
mod program;

use kubernetes::{Kubernetes, Population, metadata, team};
use program::{Program, free_address};

const NAMESPACES: usize = 200;
/// By then all credentials have been resolved once.
const START: Duration = Duration::from_secs(30);
const LASTS: Duration = Duration::from_mins(2);
const TICK: Duration = Duration::from_millis(200);
const MEGABYTE: f64 = 1e6;

type Requests = BTreeMap<(&'static str, String), u64>;

#[tokio::main]
async fn main() {
    println!(
        "ScaledObjects of {NAMESPACES} namespaces, each with a TriggerAuthentication and a Secret"
    );
    println!(
        "{:>13} {:>10} {:>9} {:>9} {:>9} {:>9} {:>13} {:>13}",
        "ScaledObjects",
        "bytes each",
        "ready",
        "at ready",
        "after 30s",
        "most",
        "CPU of start",
        "CPU of a core",
    );
    let mut told = Vec::new();
    for scaled_objects in [0, 10_000] {
        told.push((scaled_objects, measure(scaled_objects).await));
    }
    for (scaled_objects, (first, later)) in told {
        println!("\nrequests to the API server, with {scaled_objects} ScaledObjects");
        println!("{:>6} {:<30} {:>9} {:>9}", "verb", "resource", "first 30s", "a minute");
        for ((verb, resource), all) in &later {
            let at_first = first.get(&(*verb, resource.clone())).copied().unwrap_or(0);
            let a_minute =
                f64::from(u32::try_from(all - at_first).unwrap()) * 60.0 / LASTS.as_secs_f64();
            println!("{verb:>6} {resource:<30} {at_first:>9} {a_minute:>9.1}");
        }
    }
}

/// Prints a row; what was asked in the time of the start, and until the end.
async fn measure(scaled_objects: usize) -> (Requests, Requests) {
    let population = Population { scaled_objects, namespaces: NAMESPACES, reads_metrics: false };
    let kubernetes = Kubernetes::start(&population).await;
    let admin = free_address();
    let proxy = format!("http://{}", free_address());
    let environment = [
        ("KUBECONFIG", kubernetes.kubeconfig.to_str().unwrap()),
        ("SCALER_ADMIN_LISTEN", &admin.to_string()),
        ("HTTPS_PROXY", &proxy),
    ];
    let started_at = Instant::now();
    let mut program = Program::scaler(&["--kubernetes=on"], &environment).await;
    while !is_ready(admin).await {
        sleep(Duration::from_millis(10)).await;
    }
    let ready = started_at.elapsed();
    let at_ready = megabytes(program.resident());
    sleep_until(started_at + START).await;
    let (settled, cpu_of_start) = (megabytes(program.resident()), program.cpu());
    let first = kubernetes.requests();

    let mut most = settled;
    while started_at.elapsed() < START + LASTS {
        sleep(TICK).await;
        most = most.max(megabytes(program.resident()));
    }
    let cpu = program.cpu().saturating_sub(cpu_of_start).as_secs_f64() / LASTS.as_secs_f64();
    let later = kubernetes.requests();
    println!(
        "{scaled_objects:>13} {:>10} {:>6} ms {at_ready:>6.1} MB {settled:>6.1} MB {most:>6.1} MB {:>11.1} s {:>11.1} %",
        kubernetes.size(),
        ready.as_millis(),
        cpu_of_start.as_secs_f64(),
        cpu * 100.0,
    );
    let last = scaled_objects.saturating_sub(1);
    let request = ScaledObjectRef {
        name: format!("checkout-{last}"),
        namespace: team(last % NAMESPACES),
        scaler_metadata: metadata(last),
    };
    let code = program.client.is_active(request).await.unwrap_err().code();
    let expected = if scaled_objects == 0 { Code::PermissionDenied } else { Code::Unavailable };
    assert_eq!(code, expected, "the measured server knows its triggers");
    (first, later)
}

async fn is_ready(admin: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(admin).await else { return false };
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.starts_with("HTTP/1.1 200 ")
}

#[expect(clippy::cast_precision_loss, reason = "there is not that much memory")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / MEGABYTE
}
