//! How few requests it takes.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    engine::Engine,
    harness::{FakeDatadog, Reply, Server, config, object, soon},
};

#[tokio::test]
async fn two_hundred_first_rpcs_for_one_query_are_one_request() {
    let datadog =
        FakeDatadog::start(|_| Reply::points(&[3.0]).after(Duration::from_millis(300))).await;
    let server = Server::start(&datadog).await;
    let keda = server.client().await;
    let asks = (0..200u32).map(|n| {
        let (mut keda, mut object) = (keda.clone(), object(&[]));
        object.name = format!("shop-{n}");
        async move { keda.value(&object).await }
    });
    assert!(join_all(asks).await.into_iter().all(|value| value.unwrap() == 3.0));
    assert_eq!(datadog.asked().len(), 1);
}

/// KEDA 2.20 at its defaults asks each trigger for a pair every 30 s (poll) and every 15 s (HPA).
#[tokio::test(start_paused = true)]
async fn at_kedas_pace_there_is_one_request_for_a_query_and_refresh() {
    const TRIGGERS: usize = 50;
    const QUERIES: usize = 40;
    const MINUTES: usize = 10;
    let engine = Engine::start(|_, _| Ok(Some(3.0))).await;
    let objects: Vec<_> = (0..TRIGGERS)
        .map(|n| object(&[("query", &format!("sum:shop.orders{{shop:{}}}", n % QUERIES))]))
        .collect();
    let every = async |object: &_, period: u64, phase: u64| {
        sleep(Duration::from_secs(phase)).await;
        for _ in 0..MINUTES as u64 * 60 / period {
            engine.pair(object).await.unwrap();
            sleep(Duration::from_secs(period)).await;
        }
    };
    let all = (0..).zip(&objects).map(|(n, object)| async move {
        tokio::join!(every(object, 30, n % 30), every(object, 15, n % 15));
    });
    join_all(all).await;
    let refreshes = (MINUTES * 60 + 30) / 15 + 1;
    assert!(engine.requests() <= QUERIES * refreshes, "{} requests", engine.requests());
}

#[tokio::test]
async fn triggers_that_read_one_query_differently_share_its_reading() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0, 2.0, 6.0])).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    for (extra, value) in [
        (&[][..], 6.0),
        (&[("lastAvailablePointOffset", "1")], 2.0),
        (&[("timeAggregator", "average"), ("queryValue", "9")], 3.0),
        (&[("timeAggregator", "sum"), ("metricUnavailableValue", "0")], 9.0),
    ] {
        assert_eq!(keda.value(&object(extra)).await.unwrap(), value);
    }
    assert_eq!(datadog.asked().len(), 1);
    // Another window is another question.
    keda.value(&object(&[("age", "600")])).await.unwrap();
    assert_eq!(datadog.asked().len(), 2);
}

/// A Datadog that answers each query of a list, as its `query_index` says: 1 for the first letter
/// of the alphabet, and so on.
fn letters(asked: &crate::harness::Asked) -> Reply {
    let values = asked.query.split(',').enumerate().map(|(index, query)| {
        let letter = query.as_bytes()[4];
        json!({"query_index": index, "scope": "*", "pointlist": [[0, letter - b'a' + 1]]})
    });
    Reply::json(200, &json!({"status": "ok", "series": values.collect::<Vec<_>>()}))
}

#[tokio::test]
async fn several_queries_travel_in_one_request_and_each_has_its_own_value() {
    let datadog = FakeDatadog::start(letters).await;
    let mut config = config(&datadog.url);
    config.refresh.refresh = Duration::from_secs(1);
    let server = Server::start_with(config).await;
    let mut keda = server.client().await;
    let queries = [("avg:a{*}", 1.0), ("avg:c{*},avg:d{*}", 7.0), ("avg:b{*}", 2.0)];
    let of = |query| object(&[("query", query), ("queryAggregator", "sum")]);
    for (query, value) in queries {
        assert_eq!(keda.value(&of(query)).await.unwrap(), value);
    }
    let all_together = async {
        while !datadog.asked().iter().any(|asked| asked.query.split(',').count() == 4) {
            datadog.was_asked(datadog.asked().len() + 1).await;
        }
    };
    soon(all_together).await;
    datadog.was_asked(datadog.asked().len() + 1).await;
    for (query, value) in queries {
        assert_eq!(keda.value(&of(query)).await.unwrap(), value);
    }
}
