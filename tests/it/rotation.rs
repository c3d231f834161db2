//! Credentials that change, vanish or cannot be read, while they are in use; and many at once.

use std::time::Duration;

use futures_util::StreamExt as _;
use keda_datadog_scaler::proto::{ScaledObjectRef, external_scaler_server::ExternalScaler as _};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request};

use crate::{
    authentication::{authentication, cluster, data, entry, from_secret, keys, start, told},
    engine::{Engine, outage},
    fake_kubernetes::{FakeKubernetes, Trouble},
    harness::{check_status, object},
    kubernetes::{scaled_object, trigger},
};

#[tokio::test(start_paused = true)]
async fn new_keys_are_found_when_datadog_refuses_the_old_ones() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    kubernetes.apply(keys("two"));
    engine.refuse("one");
    let before = engine.requests_with("one");
    for _ in 0..120 {
        sleep(Duration::from_millis(250)).await;
        assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    }
    assert!(engine.requests_with("one") <= before + 1, "{before}");
    assert!(engine.requests_with("two") >= 1);
}

#[tokio::test(start_paused = true)]
async fn keys_may_be_revoked_before_the_new_ones_are_there() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    engine.refuse("one");
    for second in 0..90 {
        if second == 20 {
            kubernetes.apply(keys("two"));
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true), "{second}");
    }
    assert!(engine.requests_with("two") >= 3, "{}", engine.requests_with("two"));
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_refused_for_good_are_read_again_ever_less_often() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    let before = kubernetes.times_asked("get", "secrets");
    engine.refuse("one");
    for _ in 0..600 {
        sleep(Duration::from_secs(1)).await;
        let _ = engine.pair(&object(&[])).await;
    }
    let status = engine.pair(&object(&[])).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("Datadog refuses the keys (403)"), "{status}");
    let reads = kubernetes.times_asked("get", "secrets") - before;
    assert!((12..=15).contains(&reads), "{reads}");
}

#[tokio::test(start_paused = true)]
async fn new_keys_are_found_in_a_minute_though_the_old_ones_work() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    kubernetes.apply(keys("two"));
    for _ in 0..70 {
        sleep(Duration::from_secs(1)).await;
        let asked_at = Instant::now();
        engine.pair(&object(&[])).await.unwrap();
        assert_eq!(asked_at.elapsed(), Duration::ZERO);
    }
    assert_eq!(engine.newest_request(), "two at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn keys_may_be_rotated_back() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    for app_key in ["one", "two", "one", "two"] {
        kubernetes.apply(keys(app_key));
        for _ in 0..70 {
            assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true), "{app_key}");
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(engine.newest_request(), format!("{app_key} at api.datadoghq.com"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_trigger_authentication_counts_at_once() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    let stream = engine.scaler.stream_is_active(Request::new(object(&[]))).await;
    let mut stream = stream.unwrap().into_inner();
    assert!(stream.next().await.unwrap().unwrap().result);
    let values = [("api", "marker-api-key"), ("app", "three")];
    kubernetes.apply(data("Secret", "demo", "others", &values));
    kubernetes.apply(authentication(
        Some("demo"),
        "datadog",
        json!({
            "secretTargetRef": [entry("apiKey", "others", "api"), entry("appKey", "others", "app")],
        }),
    ));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(engine.newest_request(), "three at api.datadoghq.com");
    // The stream follows, and asks by itself.
    sleep(Duration::from_mins(1)).await;
    assert!(engine.requests_with("three") >= 4, "{}", engine.requests_with("three"));
}

#[tokio::test(start_paused = true)]
async fn keys_whose_secret_is_gone_are_held_and_then_named() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    kubernetes.delete("secrets", "demo", "keys");
    let deleted_at = Instant::now();
    let status = loop {
        sleep(Duration::from_secs(1)).await;
        match engine.pair(&object(&[])).await {
            Ok(pair) => assert_eq!(pair, (8.0, true)),
            Err(status) => break status,
        }
    };
    // It is noticed within a minute, and held for another.
    let after = deleted_at.elapsed();
    assert!((115..=125).contains(&after.as_secs()), "{after:?}");
    let message = "the TriggerAuthentication demo/datadog gives no `apiKey`: the Secret demo/keys \
                   does not exist";
    check_status::<()>(Err(status), Code::FailedPrecondition, message);
    kubernetes.apply(keys("two"));
    sleep(Duration::from_secs(6)).await;
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(engine.newest_request(), "two at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn keys_stay_in_use_while_kubernetes_is_away() {
    let kubernetes = cluster(from_secret());
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    kubernetes.fail(500);
    for _ in 0..60 {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    }
    kubernetes.apply(keys("two"));
    kubernetes.recover();
    sleep(Duration::from_secs(65)).await;
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(engine.newest_request(), "two at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_cannot_be_read_yet_are_no_verdict() {
    let kubernetes = cluster(from_secret());
    kubernetes.trouble("secrets", Trouble::Fails(500));
    let message = "Unavailable: Kubernetes does not answer (500 InternalError); it is asked again";
    assert_eq!(told(&kubernetes).await, message);
    let engine = start(&kubernetes).await;
    assert_eq!(engine.pair(&object(&[])).await.unwrap_err().code(), Code::Unavailable);
    kubernetes.recover();
    sleep(Duration::from_secs(6)).await;
    engine.pair(&object(&[])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_credentials_are_read_at_a_pace_and_in_turns() {
    let kubernetes = FakeKubernetes::new();
    let add = |namespace: &str, n: usize| {
        let name = format!("dd-{n}");
        let request = object(&[("triggerName", &name)]);
        let request =
            ScaledObjectRef { namespace: namespace.into(), name: name.clone(), ..request };
        kubernetes.apply(scaled_object(&request, &[trigger(&request, json!({"name": name}))]));
        kubernetes.apply(authentication(
            Some(namespace),
            &name,
            json!({"secretTargetRef": [
                entry("apiKey", &name, "api"), entry("appKey", &name, "app"),
            ]}),
        ));
        let values = [("api", "marker-api-key"), ("app", &*name)];
        kubernetes.apply(data("Secret", namespace, &name, &values));
        request
    };
    let large: Vec<_> = (0..400).map(|n| add("large", n)).collect();
    let small = add("small", 0);
    let script = |at, _: &_| if at < 1_000 { Ok(Some(8.0)) } else { Err(outage()) };
    let begun = Engine::begin_in(&kubernetes, &[], |_| {}, script).await;
    let (engine, kubernetes_room) = begun;
    kubernetes_room.settled().await;
    let started_at = Instant::now();
    let warming = engine.scaler.warm(&kubernetes_room);
    let asking = async {
        sleep(Duration::from_secs(1)).await;
        let asked_at = Instant::now();
        engine.pair(&small).await.unwrap();
        // Not after all of the others.
        assert!(asked_at.elapsed() < Duration::from_secs(3), "{:?}", asked_at.elapsed());
    };
    tokio::join!(warming, asking);
    let seconds = started_at.elapsed().as_secs();
    assert!((18..30).contains(&seconds), "{seconds}");
    engine.pair(&large[399]).await.unwrap();
    // The round is a minute, and the pace the same.
    let before = kubernetes.times_asked("get", "secrets");
    sleep(Duration::from_mins(2)).await;
    let reads = kubernetes.times_asked("get", "secrets") - before;
    assert!((600..=900).contains(&reads), "{reads}");
}
