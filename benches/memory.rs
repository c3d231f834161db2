//! `cargo bench --bench memory`: resident memory and CPU of `serve`, alone in its process, that keeps
//! 10,000 triggers warm. It takes some four minutes, for a minute and a half of each row is lived
//! through.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use keda_datadog_scaler::proto::{GetMetricsRequest, ScaledObjectRef};
use tokio::time::{Instant, MissedTickBehavior, interval};

#[path = "support/datadog.rs"]
mod datadog;
#[path = "support/program.rs"]
mod program;

use datadog::Datadog;
use program::Program;

const TRIGGERS: u32 = 10_000;
const NAMESPACES: u32 = 50;
const LASTS: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(100);
/// Triggers that are asked for in a tick, so that each is in 30 s.
const IN_A_TICK: u32 = TRIGGERS / 300;
const IN_FLIGHT: usize = 64;
const MEGABYTE: f64 = 1e6;
/// In megabytes, with a series each.
const GOAL: f64 = 40.0;

#[tokio::main]
async fn main() {
    println!("10,000 triggers of 50 namespaces, 20 points in each series");
    println!(
        "{:>11} {:>9} {:>9} {:>9} {:>9} {:>15} {:>13} {:>7} {:>10} {:>7}  goal",
        "series each",
        "idle",
        "loaded",
        "most",
        "last",
        "bytes/demand",
        "CPU of a core",
        "RPC/s",
        "requests/s",
        "errors",
    );
    for series in [1, 20] {
        measure(series).await;
    }
}

async fn measure(series: usize) {
    let datadog = Datadog::start(series).await;
    let account = [("DD_APP_KEY", "ddpat_of-the-benchmark")];
    let program = Program::scaler(&["--datadog-url", &datadog.url], &account).await;
    let idle = megabytes(program.resident());
    let errors_of_loading = ask(&program, 0..TRIGGERS).await;
    let loaded = megabytes(program.resident());

    let (mut most, mut last) = (loaded, loaded);
    let (mut asked, mut errors) = (0, errors_of_loading);
    let (cpu, requests, started_at) = (program.cpu(), datadog.requests(), Instant::now());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while started_at.elapsed() < LASTS {
        ticks.tick().await;
        errors += ask(&program, asked..asked + IN_A_TICK).await;
        asked += IN_A_TICK;
        last = megabytes(program.resident());
        most = last.max(most);
    }
    let seconds = started_at.elapsed().as_secs_f64();
    let cpu = program.cpu().saturating_sub(cpu).as_secs_f64() / seconds;
    let requests = u32::try_from(datadog.requests() - requests).unwrap();
    let verdict = match series {
        1 if most <= GOAL => format!("<= {GOAL} MB ok"),
        1 => format!("<= {GOAL} MB MISSED"),
        _ => "-".to_owned(),
    };
    println!(
        "{series:>11} {idle:>6.1} MB {loaded:>6.1} MB {most:>6.1} MB {last:>6.1} MB {:>15.0} {:>11.1} % {:>7.0} {:>10.1} {errors:>7}  {verdict}",
        (last - idle) * MEGABYTE / f64::from(TRIGGERS),
        cpu * 100.0,
        f64::from(asked) / seconds,
        f64::from(requests) / seconds,
    );
}

/// GetMetrics for these triggers, as many at once as there may be; how many failed.
async fn ask(program: &Program, numbers: std::ops::Range<u32>) -> u64 {
    stream::iter(numbers)
        .map(|number| {
            let mut client = program.client.clone();
            async move { u64::from(client.get_metrics(request(number % TRIGGERS)).await.is_err()) }
        })
        .buffer_unordered(IN_FLIGHT)
        .fold(0, |errors, error| async move { errors + error })
        .await
}

fn request(number: u32) -> GetMetricsRequest {
    let query = format!(
        "sum:trace.http.request.hits{{env:live,service:checkout-{number}}} by {{queue}}.rollup(avg, 30)"
    );
    let metadata = [
        ("scalerAddress", "keda-datadog-scaler.keda:9090"),
        ("query", &query),
        ("queryValue", "120"),
        ("queryAggregator", "max"),
    ];
    GetMetricsRequest {
        scaled_object_ref: Some(ScaledObjectRef {
            name: format!("checkout-{number}"),
            namespace: format!("team-{}", number % NAMESPACES),
            scaler_metadata: metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }),
        metric_name: "datadog-sum-trace-http-request-hits".into(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "there is not that much memory")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / MEGABYTE
}
