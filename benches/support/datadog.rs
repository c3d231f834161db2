//! A Datadog over HTTP on this machine: every query of a request has the same points, and the rate
//! limit is one that nobody reaches.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::{Query, State},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, task::JoinSet};

const POINTS: u64 = 20;
/// Width of a point's bucket, in seconds.
const STEP: u64 = 10;
const LIMIT: u64 = 1_000_000;

pub(crate) struct Datadog {
    pub(crate) url: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    /// Series of each query.
    series: usize,
    requests: AtomicU64,
}

impl Datadog {
    pub(crate) async fn start(series: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared { series, requests: AtomicU64::new(0) });
        let router =
            Router::new().route("/api/v1/query", get(answer)).with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, _server: server }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Query<HashMap<String, String>>,
) -> impl IntoResponse {
    let requests = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let to: u64 = parameters["to"].parse().unwrap();
    let newest = to - to % STEP;
    let mut points = String::new();
    for n in (0..POINTS).rev() {
        let comma = if points.is_empty() { "" } else { "," };
        write!(points, "{comma}[{}000.0,{}.5]", newest - n * STEP, 50 + n).unwrap();
    }
    let mut series = String::new();
    for index in 0..count(&parameters["query"]) {
        for group in 0..shared.series {
            let comma = if series.is_empty() { "" } else { "," };
            write!(
                series,
                r#"{comma}{{"query_index":{index},"scope":"queue:q{group}","interval":{STEP},"length":{POINTS},"pointlist":[{points}]}}"#
            )
            .unwrap();
        }
    }
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("x-ratelimit-limit", LIMIT.to_string()),
        ("x-ratelimit-period", "3600".to_owned()),
        ("x-ratelimit-remaining", (LIMIT - requests).to_string()),
        ("x-ratelimit-reset", (3_600 - to % 3_600).to_string()),
    ];
    (headers, format!(r#"{{"status":"ok","series":[{series}]}}"#))
}

/// How many queries a comma list has.
fn count(list: &str) -> usize {
    let mut depth = 0;
    let commas = list.chars().filter(|c| {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        *c == ',' && depth == 0
    });
    commas.count() + 1
}
