//! What whoever looks after the scaler sees: the status, and the gauges of the metrics page.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use keda_datadog_scaler::{
    proto::ScaledObjectRef,
    refresh::{DemandState, OrganisationStatus},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    engine::{Engine, outage},
    harness::{
        API_KEY, APP_KEY, Asked, FakeDatadog, Reply, Server, config, http_client, object, soon,
    },
};

const ORDERS: &str = "sum:shop.orders{*}";
const MAILS: &str = "avg:shop.mails{*}";
const LAG: &str = "max:shop.lag{*}";

/// 160,000 requests an hour, 40,000 of which others have spent; each query has a value.
fn with_limit() -> impl Fn(&Asked) -> Reply + Send + Sync + 'static {
    let left = AtomicU64::new(120_000);
    move |asked| {
        let series =
            asked.query.split(',').enumerate().map(
                |(index, _)| json!({"query_index": index, "scope": "*", "pointlist": [[0, 8.0]]}),
            );
        let mut reply =
            Reply::json(200, &json!({"status": "ok", "series": series.collect::<Vec<_>>()}));
        for (name, value) in [
            ("x-ratelimit-limit", "160000".to_owned()),
            ("x-ratelimit-period", "3600".to_owned()),
            ("x-ratelimit-reset", "1800".to_owned()),
            ("x-ratelimit-remaining", (left.fetch_sub(1, Relaxed) - 1).to_string()),
            ("x-ratelimit-name", format!("queries of {API_KEY}")),
        ] {
            reply.headers.push((name.to_owned(), value));
        }
        reply
    }
}

fn of(query: &str, namespace: &str) -> ScaledObjectRef {
    ScaledObjectRef { namespace: namespace.into(), ..object(&[("query", query)]) }
}

async fn status(server: &Server, parameters: &str) -> Value {
    let (code, text) = get(&format!("{}/api/status{parameters}", server.status), None).await;
    assert_eq!(code, 200, "{text}");
    for key in [API_KEY, APP_KEY] {
        assert!(!text.contains(key), "{key} in\n{text}");
    }
    serde_json::from_str(&text).unwrap()
}

async fn get(url: &str, host: Option<&str>) -> (u16, String) {
    let mut request = http_client().get(url);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let response = soon(request.send()).await.unwrap();
    (response.status().as_u16(), soon(response.text()).await.unwrap())
}

/// The status, once it is so.
#[track_caller]
fn once(server: &Server, is_so: impl Fn(&Value) -> bool) -> impl Future<Output = Value> {
    soon(async move {
        loop {
            let told = status(server, "").await;
            if is_so(&told) {
                return told;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
}

fn demand<'a>(told: &'a Value, query: &str) -> &'a Value {
    let mut demands = told["demands"].as_array().unwrap().iter();
    demands
        .find(|demand| demand["query"] == query)
        .unwrap_or_else(|| panic!("no {query} in {told}"))
}

#[tokio::test]
async fn the_status_tells_what_is_fresh_what_is_held_and_why() {
    let is_rejected = Arc::new(AtomicBool::new(false));
    let datadog = FakeDatadog::start({
        let (is_rejected, answers) = (is_rejected.clone(), with_limit());
        move |asked| {
            let reply = answers(asked);
            if is_rejected.load(Relaxed) && asked.query.contains(LAG) {
                let error = format!("Unexpected token for {API_KEY}");
                return Reply {
                    headers: reply.headers,
                    ..Reply::json(400, &json!({"errors": [error]}))
                };
            }
            reply
        }
    })
    .await;
    let mut config = config(&datadog.url);
    config.refresh.refresh = Duration::from_secs(1);
    let server = Server::start_with(config).await;
    let mut keda = server.client().await;
    for (query, namespace) in [(ORDERS, "shop"), (MAILS, "post"), (LAG, "shop"), (LAG, "post")] {
        assert_eq!(keda.value(&of(query, namespace)).await.unwrap(), 8.0);
    }
    let fresh = once(&server, |told| demand(told, LAG)["batch"] == 3).await;
    assert_eq!(demand(&fresh, LAG)["held"], false);
    assert_eq!(demand(&fresh, LAG)["namespaces"], json!(["post", "shop"]));

    is_rejected.store(true, Relaxed);
    let told = once(&server, |told| {
        demand(told, LAG)["state"] == "quarantined" && demand(told, ORDERS)["batch"] == 2
    })
    .await;
    let (orders, lag) = (demand(&told, ORDERS), demand(&told, LAG));
    let host = datadog.url.trim_start_matches("http://");
    assert_eq!((&orders["host"], &orders["organisation"]), (&json!(host), &json!(1)));
    assert_eq!((&orders["age_seconds"], &orders["offset_seconds"]), (&json!(90), &json!(0)));
    assert_eq!((&orders["held"], &orders["error"]), (&json!(false), &Value::Null));
    assert_eq!(
        (&orders["namespaces"], &orders["interval_seconds"]),
        (&json!(["shop"]), &json!(1.0))
    );
    assert_eq!((&lag["held"], &lag["batch"]), (&json!(true), &json!(1)));
    assert_eq!(lag["error"], "Datadog rejects the query: Unexpected token for [redacted]");
    let age = |demand: &Value| demand["reading_age_seconds"].as_f64().unwrap();
    assert!(age(lag) > age(orders), "{told}");
    assert!(lag["next_in_seconds"].is_f64(), "{told}");
}

#[tokio::test]
async fn the_status_tells_the_rate_limit() {
    let datadog = FakeDatadog::start(with_limit()).await;
    let server = Server::start(&datadog).await;
    let untold = json!({"organisations": [], "demands": [], "demands_left_out": 0});
    assert_eq!(status(&server, "").await, untold);
    let mut keda = server.client().await;
    keda.value(&of(ORDERS, "shop")).await.unwrap();
    keda.value(&of(MAILS, "shop")).await.unwrap();

    let is_planned = |told: &Value| told["organisations"][0]["awake"] == 2;
    let mut told = once(&server, is_planned).await["organisations"][0].take();
    let reset = told["reset_seconds"].take().as_f64().unwrap();
    assert!((1_700.0..=1_800.0).contains(&reset), "{reset}");
    assert!(told["pace_per_minute"].take().as_f64().unwrap() > 1.0);
    let expected = json!({
        "organisation": 1,
        "host": datadog.url.trim_start_matches("http://"),
        "accounts": 1,
        "name": "queries of [redacted]",
        "told": true,
        "limit": 160_000,
        "period_seconds": 3_600.0,
        "remaining": 119_998,
        "reset_seconds": null,
        "sent": 2,
        "others": 40_000,
        "allowance": 96_000,
        "pace_per_minute": null,
        "interval_seconds": {"shortest": 15.0, "longest": 15.0},
        "awake": 2,
        "quarantined": 0,
        "refused": 0,
    });
    assert_eq!(told, expected);
}

#[tokio::test]
async fn demands_of_a_namespace_or_a_few_can_be_asked_for() {
    let datadog = FakeDatadog::start(with_limit()).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    for (query, namespace) in [(ORDERS, "shop"), (MAILS, "post"), (LAG, "shop")] {
        keda.value(&of(query, namespace)).await.unwrap();
    }
    for (parameters, queries, left_out) in [
        ("", &[MAILS, LAG, ORDERS][..], 0),
        ("?limit=2", &[MAILS, LAG], 1),
        ("?namespace=shop", &[LAG, ORDERS], 0),
        ("?namespace=shop&limit=1", &[LAG], 1),
        ("?namespace=nobody", &[], 0),
    ] {
        let told = status(&server, parameters).await;
        let demands = told["demands"].as_array().unwrap();
        let told_queries: Vec<&Value> = demands.iter().map(|demand| &demand["query"]).collect();
        assert_eq!(told_queries, queries, "{parameters}");
        assert_eq!(told["demands_left_out"], left_out, "{parameters}");
    }
    let misspelt = format!("{}/api/status?namespaces=shop", server.status);
    let (code, text) = get(&misspelt, None).await;
    assert_eq!(code, 400);
    assert!(text.contains("unknown field `namespaces`"), "{text}");
}

#[tokio::test]
async fn no_website_can_ask_for_the_status() {
    let datadog = FakeDatadog::start(with_limit()).await;
    let server = Server::start(&datadog).await;
    server.client().await.value(&object(&[])).await.unwrap();
    let url = format!("{}/api/status", server.status);
    for host in ["127.0.0.1", "localhost:8081", "[::1]:1", "10.1.2.3:8081"] {
        assert_eq!(get(&url, Some(host)).await.0, 200, "{host}");
    }
    for host in ["website.example.com:8081", "localhost.example.com", "scaler.keda.svc", ""] {
        let (code, text) = get(&url, Some(host)).await;
        assert_eq!(code, 403, "{host}");
        assert!(text.contains("`kubectl port-forward`") && !text.contains("shop"), "{text}");
    }
    let response = soon(http_client().get(&url).send()).await.unwrap();
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    // Neither port answers for the other.
    assert_eq!(get(&format!("{}/metrics", server.status), None).await.0, 404);
    assert_eq!(server.get("/api/status").await.0, 404);
}

#[tokio::test]
async fn the_metrics_page_tells_the_rate_limit_and_names_no_query() {
    let fails = Arc::new(AtomicBool::new(false));
    let datadog = FakeDatadog::start({
        let (fails, answers) = (fails.clone(), with_limit());
        move |asked| if fails.load(Relaxed) { Reply::status(503) } else { answers(asked) }
    })
    .await;
    let mut config = config(&datadog.url);
    config.refresh.refresh = Duration::from_secs(1);
    let server = Server::start_with(config).await;
    let (_, page) = server.get("/metrics").await;
    assert!(page.contains("keda_datadog_scaler_demands{state=\"awake\"} 0\n"), "{page}");
    assert!(!page.contains("keda_datadog_scaler_rate_limit{"), "{page}");

    server.client().await.value(&of(ORDERS, "secret-project")).await.unwrap();
    fails.store(true, Relaxed);
    once(&server, |told| demand(told, ORDERS)["held"] == true).await;
    let (_, page) = server.get("/metrics").await;
    let host = datadog.url.trim_start_matches("http://");
    let labels = format!("host=\"{host}\",organisation=\"1\"");
    let value = |series: &str| -> f64 {
        let start = format!("keda_datadog_scaler_{series} ");
        let mut values = page.lines().filter_map(|line| line.strip_prefix(&start));
        values.next().unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
    };
    assert_eq!(value(&format!("rate_limit{{{labels}}}")), 160_000.0);
    assert!((119_900.0..120_000.0).contains(&value(&format!("rate_limit_remaining{{{labels}}}"))));
    let reset = value(&format!("rate_limit_reset_seconds{{{labels}}}"));
    assert!((1_700.0..=1_800.0).contains(&reset), "{reset}");
    let share = value(&format!("rate_limit_used_share{{{labels}}}"));
    assert!((1.0 / 96_000.0..0.01).contains(&share), "{share}");
    for bound in ["shortest", "longest"] {
        let interval = value(&format!("refresh_interval_seconds{{{labels},bound=\"{bound}\"}}"));
        assert_eq!(interval, 1.0);
    }
    assert_eq!(value("demands_held"), 1.0);
    assert_eq!(value("demands{state=\"awake\"}") + value("demands{state=\"fetching\"}"), 1.0);
    assert_eq!(value("demands{state=\"asleep\"}"), 0.0);
    assert!(value("reading_age_seconds{bound=\"oldest\"}") >= 1.0);
    for secret in [API_KEY, APP_KEY, "shop.orders", "secret-project"] {
        assert!(!page.contains(secret), "{secret} in\n{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn totals_count_each_demand_once() {
    let engine = Engine::start(|_, _| Ok(Some(8.0))).await;
    let object = |query| object(&[("query", query)]);
    engine.pair(&object(ORDERS)).await.unwrap();
    sleep(Duration::from_secs(90)).await;
    engine.pair(&object(MAILS)).await.unwrap();
    let count = |state| engine.refresher.totals().in_state(state);
    assert_eq!(count(DemandState::Awake), 2);
    // Nobody asked for the first in two minutes.
    sleep(Duration::from_mins(1)).await;
    assert_eq!((count(DemandState::Awake), count(DemandState::Asleep)), (1, 1));
    let totals = engine.refresher.totals();
    assert_eq!((totals.held, totals.ages.len()), (0, 1));
    assert!(totals.ages[0] <= Duration::from_secs(16), "{:?}", totals.ages);
    let [OrganisationStatus { number: 1, is_told: true, .. }] = &*totals.organisations else {
        panic!("{totals:?}")
    };
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_held_until_nobody_asks_for_it() {
    let engine = Engine::start(|at, _| if at < 20 { Ok(Some(8.0)) } else { Err(outage()) }).await;
    let ages = async |seconds| {
        sleep(Duration::from_secs(seconds)).await;
        let totals = engine.refresher.totals();
        (totals.held, totals.ages.first().map(Duration::as_secs))
    };
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(ages(18).await, (0, Some(2)));
    assert_eq!(ages(30).await, (1, Some(32)));
    // Its readings are remembered, but it is no more read.
    assert_eq!(ages(120).await, (0, None));
    assert_eq!(engine.refresher.totals().in_state(DemandState::Asleep), 1);
}
