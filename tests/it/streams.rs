//! The two streams of an `external-push` trigger, on a paused clock.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use keda_datadog_scaler::proto::{IsActiveResponse, external_scaler_server::ExternalScaler as _};
use tokio::time::sleep;
use tonic::Request;

use crate::{
    engine::{Engine, outage},
    harness::object,
};

/// Follows a stream to its end, or until so many seconds after the start; says what came when.
async fn follow(engine: &Engine, until: u64) -> Vec<(u64, Option<bool>)> {
    let mut stream =
        engine.scaler.stream_is_active(Request::new(object(&[]))).await.unwrap().into_inner();
    let mut seen = Vec::new();
    let end = sleep(Duration::from_secs(until));
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return seen,
            message = stream.next() => {
                let active = message.map(|m| m.expect("a stream ends with OK").result);
                seen.push((engine.seconds(), active));
                if active.is_none() {
                    return seen;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_state_is_sent_at_once_and_on_change() {
    let engine =
        Engine::start(|at, _| Ok(Some(if (20..40).contains(&at) { 9.0 } else { 0.0 }))).await;
    let seen = follow(&engine, 60).await;
    assert_eq!(seen, [(0, Some(false)), (30, Some(true)), (45, Some(false))]);
}

#[tokio::test(start_paused = true)]
async fn active_is_repeated_each_minute_or_so() {
    let engine = Engine::start(|_, _| Ok(Some(9.0))).await;
    let seen = follow(&engine, 300).await;
    assert!(seen.iter().all(|(_, active)| *active == Some(true)));
    let gaps: Vec<u64> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!((3..=6).contains(&gaps.len()), "{seen:?}");
    assert!(gaps.iter().all(|gap| (47..=73).contains(gap)), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_stream_is_silent_and_stays_open() {
    // A long failure, which begins with the stream, and another after it.
    let engine = Engine::start(|at, _| match at {
        0..100 | 200..400 => Err(outage()),
        100..200 => Ok(Some(9.0)),
        _ => Ok(Some(0.0)),
    })
    .await;
    let seen = follow(&engine, 450).await;
    // It is held, and thus repeated, for a minute past its due refresh; never false meanwhile.
    let silent = |range: std::ops::Range<u64>| !seen.iter().any(|(at, _)| range.contains(at));
    assert!(silent(0..100) && silent(275..400), "{seen:?}");
    assert_eq!(seen.iter().filter(|(_, active)| *active == Some(false)).count(), 1, "{seen:?}");
    assert_eq!(seen.last().map(|(_, active)| *active), Some(Some(false)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_ok_at_an_age_of_its_own() {
    let engine = Engine::start(|_, _| Ok(Some(0.0))).await;
    let mut ages = Vec::new();
    for _ in 0..5 {
        let opened_at = engine.seconds();
        let seen = follow(&engine, 3_600).await;
        let (ended_at, None) = seen.last().unwrap() else { panic!("{seen:?}") };
        ages.push(ended_at - opened_at);
    }
    assert!(ages.iter().all(|age| (480..=720).contains(age)), "{ages:?}");
    ages.dedup();
    assert!(ages.len() > 1, "they have no jitter: {ages:?}");
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_ok_when_the_server_drains() {
    let engine = Engine::start(|_, _| Ok(Some(0.0))).await;
    let mut active =
        engine.scaler.stream_is_active(Request::new(object(&[]))).await.unwrap().into_inner();
    let mut spec =
        engine.scaler.stream_metric_spec(Request::new(object(&[]))).await.unwrap().into_inner();
    let first = active.next().await.unwrap().unwrap();
    assert_eq!(first, IsActiveResponse { result: false });
    let first = spec.next().await.unwrap().unwrap();
    let unary = engine.scaler.get_metric_spec(Request::new(object(&[]))).await.unwrap();
    assert_eq!(first, unary.into_inner());

    assert!(active.next().now_or_never().is_none() && spec.next().now_or_never().is_none());
    engine.draining.cancel();
    assert!(active.next().await.is_none());
    assert!(spec.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_keeps_its_query_fresh() {
    let engine = Engine::start(|_, _| Ok(Some(0.0))).await;
    follow(&engine, 400).await;
    // One each 15.2 s.
    assert_eq!(engine.requests(), 27);
}
