//! What KEDA is told while Datadog fails, second by second. Never 0 or false because of it.

use std::time::Duration;

use keda_datadog_scaler::source::SourceError;
use tokio::time::sleep;
use tonic::Code;

use crate::{
    engine::{Engine, outage},
    harness::object,
};

/// Asks each second for three minutes; says when the answer changed, and to what.
async fn watch(engine: &Engine, extra: &[(&str, &str)]) -> Vec<String> {
    let object = object(extra);
    let mut seen: Vec<String> = Vec::new();
    let mut last = String::new();
    while engine.seconds() < 180 {
        let told = match engine.pair(&object).await {
            Ok((value, active)) => format!("{value} {active}"),
            Err(status) => format!("{:?}", status.code()),
        };
        if told != last {
            seen.push(format!("{} s: {told}", engine.seconds()));
            last = told;
        }
        sleep(Duration::from_secs(1)).await;
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn an_outage_while_the_value_is_high_is_bridged_then_told() {
    let engine = Engine::start(|at, _| if at < 20 { Ok(Some(8.0)) } else { Err(outage()) }).await;
    // Read at 0 and 15.4 s. Due again at 30.4 s, held for a minute from then.
    assert_eq!(watch(&engine, &[]).await, ["0 s: 8 true", "91 s: Unavailable"]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_one_refresh_after_the_value_fell_to_zero_ends_the_scale_down() {
    let engine = Engine::start(|at, _| match at {
        0..10 => Ok(Some(8.0)),
        10..20 => Ok(Some(0.0)),
        _ => Err(outage()),
    })
    .await;
    // 0 was true from 15 s on; what is known of it is good until one refresh is missed.
    let expected = ["0 s: 8 true", "16 s: 0 false", "46 s: Unavailable"];
    assert_eq!(watch(&engine, &[]).await, expected);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_with_the_first_answer() {
    let engine =
        Engine::start(|at, _| if (20..120).contains(&at) { Err(outage()) } else { Ok(Some(8.0)) })
            .await;
    let seen = watch(&engine, &[]).await;
    let [before, during, after] = &*seen else { panic!("{seen:?}") };
    assert_eq!((&**before, &**during), ("0 s: 8 true", "91 s: Unavailable"));
    // An account that fails is tried each half minute.
    let (at, told) = after.split_once(" s: ").unwrap();
    assert!(told == "8 true" && (120..=151).contains(&at.parse::<u64>().unwrap()), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_value_is_not_for_outages() {
    let engine = Engine::start(|at, _| if at < 20 { Ok(Some(8.0)) } else { Err(outage()) }).await;
    let fill = [("metricUnavailableValue", "1")];
    assert_eq!(watch(&engine, &fill).await, ["0 s: 8 true", "91 s: Unavailable"]);
}

#[tokio::test(start_paused = true)]
async fn no_data_is_the_fallback_value_at_once_else_held_then_told() {
    let vanishes = |at, _: &_| Ok((at < 20).then_some(8.0));
    let engine = Engine::start(vanishes).await;
    let fill = [("metricUnavailableValue", "1")];
    assert_eq!(watch(&engine, &fill).await, ["0 s: 8 true", "31 s: 1 true"]);
    let engine = Engine::start(vanishes).await;
    assert_eq!(watch(&engine, &[]).await, ["0 s: 8 true", "91 s: NotFound"]);
}

#[tokio::test(start_paused = true)]
async fn a_422_is_held_then_filled() {
    let unprocessable =
        |at, _: &_| if at < 20 { Ok(Some(8.0)) } else { Err(SourceError::Unprocessable) };
    let engine = Engine::start(unprocessable).await;
    let fill = [("metricUnavailableValue", "1")];
    assert_eq!(watch(&engine, &fill).await, ["0 s: 8 true", "91 s: 1 true"]);
    let engine = Engine::start(unprocessable).await;
    assert_eq!(watch(&engine, &[]).await, ["0 s: 8 true", "91 s: Unavailable"]);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_holds_nothing_fails_at_once() {
    let engine = Engine::start(|at, _| if at < 20 { Ok(Some(8.0)) } else { Err(outage()) }).await;
    let expected = ["0 s: 8 true", "31 s: Unavailable"];
    assert_eq!(watch(&engine, &[("holdLastValue", "0")]).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_start_during_an_outage_is_an_error_not_a_zero() {
    let engine = Engine::start(|_, _| Err(outage())).await;
    let status = engine.pair(&object(&[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    // KEDA repeats at once; Datadog is not asked again.
    engine.pair(&object(&[])).await.unwrap_err();
    assert_eq!(engine.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rare_poll_is_answered_with_a_new_reading() {
    #[expect(clippy::cast_precision_loss, reason = "a test is short")]
    let engine = Engine::start(|at, _| Ok(Some(at as f64))).await;
    engine.pair(&object(&[])).await.unwrap();
    sleep(Duration::from_mins(5)).await;
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (300.0, true));
}
