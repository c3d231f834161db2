//! Requests that are what they claim, whatever Kubernetes does meanwhile.

use std::time::Duration;

use futures_util::StreamExt as _;
use keda_datadog_scaler::{
    credentials::Rules,
    kubernetes::{self, Access, WatchState},
    proto::{ScaledObjectRef, external_scaler_server::ExternalScaler as _},
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::{
    engine::{Engine, outage},
    fake_kubernetes::{FakeKubernetes, Gone},
    harness::{check_status, object},
};

const NO_TRIGGER: &str = "no trigger of a ScaledObject or ScaledJob of this name has this metadata";

/// A trigger of type `external` with this metadata.
pub(crate) fn trigger(request: &ScaledObjectRef, authentication: Value) -> Value {
    let mut trigger = json!({"type": "external", "metadata": request.scaler_metadata});
    if !authentication.is_null() {
        trigger["authenticationRef"] = authentication;
    }
    trigger
}

/// The ScaledObject of that name, with these triggers.
pub(crate) fn scaled_object(request: &ScaledObjectRef, triggers: &[Value]) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"namespace": request.namespace, "name": request.name},
        "spec": {"scaleTargetRef": {"name": "shop"}, "triggers": triggers},
    })
}

pub(crate) fn scaled_job(request: &ScaledObjectRef, triggers: &[Value]) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledJob",
        "metadata": {"namespace": request.namespace, "name": request.name},
        "spec": {"jobTargetRef": {"template": {}}, "triggers": triggers},
    })
}

/// One with a single trigger and no `authenticationRef`.
fn plain(request: &ScaledObjectRef) -> Value {
    scaled_object(request, &[trigger(request, Value::Null)])
}

fn everybody(rules: &mut Rules) {
    rules.own_namespaces = vec!["*".parse().unwrap()];
}

async fn start(kubernetes: &FakeKubernetes) -> Engine {
    Engine::start_in(kubernetes, everybody, |_, _| Ok(Some(8.0))).await
}

fn named(namespace: &str, name: &str) -> ScaledObjectRef {
    ScaledObjectRef { namespace: namespace.into(), name: name.into(), ..object(&[]) }
}

#[track_caller]
fn check_denied<T: std::fmt::Debug>(result: Result<T, tonic::Status>) {
    check_status(result, Code::PermissionDenied, NO_TRIGGER);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_exists_is_answered_and_nothing_is_read_for_it() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(plain(&object(&[])));
    let engine = start(&kubernetes).await;
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    assert_eq!(kubernetes.times_asked("get", "*"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_nobodys_is_denied_and_told_no_more() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(plain(&object(&[("age", "60")])));
    let mut built_in = trigger(&object(&[("age", "61")]), Value::Null);
    built_in["type"] = "datadog".into();
    kubernetes.apply(scaled_object(&named("demo", "built-in"), &[built_in]));
    let engine = start(&kubernetes).await;

    let mut without = object(&[("age", "60")]);
    without.scaler_metadata.remove("scalerAddress");
    let forged = [
        object(&[("age", "60"), ("query", "sum:secret{*}")]),
        object(&[("age", "60"), ("datadogSite", "evil.example.com")]),
        object(&[("age", "60"), ("account", "of-another-team")]),
        object(&[("age", "60"), ("colourFromEnv", "red")]),
        object(&[("age", "61")]),
        object(&[]),
        without,
        ScaledObjectRef { namespace: "other".into(), ..object(&[("age", "60")]) },
        ScaledObjectRef { name: "other".into(), ..object(&[("age", "60")]) },
        ScaledObjectRef { name: "built-in".into(), ..object(&[("age", "61")]) },
    ];
    for request in forged {
        check_denied(engine.pair(&request).await);
        let stream = engine.scaler.stream_is_active(Request::new(request)).await;
        check_denied(stream.map(|_| ()));
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn names_that_cannot_be_do_not_reach_kubernetes() {
    let kubernetes = FakeKubernetes::new();
    let engine = start(&kubernetes).await;
    let before = kubernetes.asked().len();
    for (namespace, name) in [
        ("demo", "a/../../../../api/v1/namespaces/keda/secrets/keys"),
        ("demo/scaledobjects/shop?", "shop"),
        ("demo", "Shop"),
        ("demo", ""),
        ("", "shop"),
        ("demo", ".."),
    ] {
        check_denied(engine.pair(&named(namespace, name)).await);
    }
    assert_eq!(kubernetes.asked().len(), before);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_created_or_changed_just_now_is_looked_for() {
    let kubernetes = FakeKubernetes::new();
    let engine = start(&kubernetes).await;
    kubernetes.apply(plain(&object(&[])));
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    assert_eq!(kubernetes.times_asked("get", "scaledobjects"), 1);

    let job = named("demo", "job");
    kubernetes.apply(scaled_job(&job, &[trigger(&job, Value::Null)]));
    assert_eq!(engine.pair(&job).await.unwrap(), (8.0, true));

    sleep(Duration::from_secs(5)).await;
    kubernetes.apply(plain(&object(&[("age", "30")])));
    assert_eq!(engine.pair(&object(&[("age", "30")])).await.unwrap(), (8.0, true));
}

#[tokio::test(start_paused = true)]
async fn what_a_trigger_was_before_is_accepted_for_a_minute() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(plain(&object(&[])));
    let engine = start(&kubernetes).await;
    let changed = object(&[("age", "30")]);
    kubernetes.apply(plain(&changed));
    sleep(Duration::from_secs(1)).await;
    engine.pair(&object(&[])).await.unwrap();
    engine.pair(&changed).await.unwrap();
    sleep(Duration::from_mins(1)).await;
    check_denied(engine.pair(&object(&[])).await);
    engine.pair(&changed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn values_that_keda_resolves_may_be_any_or_missing() {
    let kubernetes = FakeKubernetes::new();
    let stored = object(&[("colourFromEnv", "COLOUR"), ("sizeFromEnv", "SIZE")]);
    kubernetes.apply(plain(&stored));
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[("colourFromEnv", "red")])).await.unwrap();
    engine.pair(&object(&[])).await.unwrap();
    check_denied(engine.pair(&object(&[("shapeFromEnv", "round")])).await);
}

#[tokio::test(start_paused = true)]
async fn equal_triggers_with_different_credentials_are_to_be_told_apart() {
    let kubernetes = FakeKubernetes::new();
    let (left, right) = (object(&[("triggerName", "l")]), object(&[("triggerName", "r")]));
    let reference = |name: &str| json!({"name": name});
    let triggers = [
        trigger(&object(&[]), reference("a")),
        trigger(&object(&[]), reference("b")),
        trigger(&left, Value::Null),
        trigger(&right, Value::Null),
        trigger(&right, Value::Null),
    ];
    kubernetes.apply(scaled_object(&object(&[]), &triggers));
    let engine = start(&kubernetes).await;
    let message = "several triggers have this metadata, but different `authenticationRef`s; tell \
                   them apart with a `triggerName` each";
    check_status(engine.pair(&object(&[])).await, Code::InvalidArgument, message);
    engine.pair(&left).await.unwrap();
    engine.pair(&right).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_scaled_job_holds_nothing_unless_it_says_so() {
    let kubernetes = FakeKubernetes::new();
    let (job, holding) = (named("demo", "job"), object(&[("holdLastValue", "60")]));
    let holding = ScaledObjectRef { name: "holding".into(), ..holding };
    for job in [&job, &holding] {
        kubernetes.apply(scaled_job(job, &[trigger(job, Value::Null)]));
    }
    kubernetes.apply(plain(&object(&[])));
    let script = |at, _: &_| if at < 10 { Ok(Some(8.0)) } else { Err(outage()) };
    let engine = Engine::start_in(&kubernetes, everybody, script).await;
    for request in [&job, &holding, &object(&[])] {
        engine.pair(request).await.unwrap();
    }
    sleep(Duration::from_secs(20)).await;
    assert_eq!(engine.pair(&job).await.unwrap_err().code(), Code::Unavailable);
    engine.pair(&holding).await.unwrap();
    engine.pair(&object(&[])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn specs_ask_nobody() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.hang();
    let (engine, _) = Engine::begin_in(&kubernetes, &[], everybody, |_, _| Ok(None)).await;
    let started_at = Instant::now();
    let spec = engine.scaler.get_metric_spec(Request::new(object(&[]))).await.unwrap();
    assert_eq!(spec.into_inner().metric_specs[0].target_size, 5);
    let stream = engine.scaler.stream_metric_spec(Request::new(object(&[]))).await;
    let first = stream.unwrap().into_inner().next().await.unwrap().unwrap();
    assert_eq!(first.metric_specs[0].target_size, 5);
    assert_eq!(started_at.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn readings_go_on_while_kubernetes_is_away() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(plain(&object(&[])));
    kubernetes.apply(plain(&named("demo", "goes")));
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    kubernetes.fail(503);
    for _ in 0..60 {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    }
    let new = named("demo", "new");
    let message = "the trigger cannot be verified: Kubernetes does not answer (503 \
                   ServiceUnavailable); it is asked again";
    check_status(engine.pair(&new).await, Code::Unavailable, message);
    // Ten minutes of four watches that try: no storm.
    assert!(kubernetes.times_asked("*", "*") < 250, "{}", kubernetes.times_asked("*", "*"));

    kubernetes.apply(plain(&new));
    kubernetes.delete("scaledobjects", "demo", "goes");
    kubernetes.expire(Gone::Status);
    kubernetes.recover();
    sleep(Duration::from_mins(1)).await;
    let looks = kubernetes.times_asked("get", "scaledobjects");
    engine.pair(&new).await.unwrap();
    assert_eq!(kubernetes.times_asked("get", "scaledobjects"), looks);
    check_denied(engine.pair(&named("demo", "goes")).await);
}

#[tokio::test(start_paused = true)]
async fn a_watch_works_again_though_nothing_happens() {
    let fake = FakeKubernetes::new();
    let access = Access::Kubeconfig { context: None };
    let config =
        kubernetes::Config { access, namespaces: Vec::new(), watches_datadog_metrics: false };
    let (kubernetes, watches) = kubernetes::new(config, fake.client());
    let mut tasks = JoinSet::new();
    tasks.spawn(watches.run(CancellationToken::new()));
    kubernetes.settled().await;
    let working = || kubernetes.watches().into_iter().find(|(it, _)| *it == WatchState::Working);
    assert_eq!(working(), Some((WatchState::Working, 4)));
    // That it is told to list again is no failure.
    fake.expire(Gone::Event);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(working(), Some((WatchState::Working, 4)));
    fake.fail(503);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(working(), Some((WatchState::Working, 0)));
    fake.recover();
    // The longest pause, and the time that it is quiet.
    sleep(Duration::from_secs(41)).await;
    assert_eq!(working(), Some((WatchState::Working, 4)));

    fake.forbid("*", "triggerauthentications");
    fake.cut_watches();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(working(), Some((WatchState::Working, 3)));
    fake.allow("*", "triggerauthentications");
    sleep(Duration::from_secs(71)).await;
    assert_eq!(working(), Some((WatchState::Working, 4)));
}

#[tokio::test(start_paused = true)]
async fn a_kubernetes_that_hangs_keeps_nobody_waiting() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.hang();
    let (engine, _) = Engine::begin_in(&kubernetes, &[], everybody, |_, _| Ok(Some(8.0))).await;
    let started_at = Instant::now();
    let status = engine.pair(&object(&[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    // The patience of the tests.
    assert!(started_at.elapsed() <= Duration::from_secs(20));
    kubernetes.apply(plain(&object(&[])));
    kubernetes.recover();
    sleep(Duration::from_secs(30)).await;
    engine.pair(&object(&[])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_watch_each_is_read_by_itself_and_again() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.forbid("watch", "scaledobjects");
    kubernetes.forbid("list", "scaledobjects");
    kubernetes.apply(plain(&object(&[])));
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(kubernetes.times_asked("get", "scaledobjects"), 1);
    kubernetes.apply(plain(&object(&[("age", "30")])));
    sleep(Duration::from_secs(61)).await;
    // It is looked at again, and what it was is accepted for another minute.
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(kubernetes.times_asked("get", "scaledobjects"), 2);
    sleep(Duration::from_secs(61)).await;
    check_denied(engine.pair(&object(&[])).await);
    // Kubernetes away is no reason to deny what was known.
    kubernetes.fail(500);
    sleep(Duration::from_secs(61)).await;
    engine.pair(&object(&[("age", "30")])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_rbac_forbids_never_turns_verification_off() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.forbid("*", "scaledobjects");
    kubernetes.apply(plain(&object(&[])));
    let engine = start(&kubernetes).await;
    let message = "the trigger cannot be verified: Kubernetes forbids the scaler to get \
                   scaledobjects/shop in the namespace demo; grant it (see Rights in the README)";
    check_status(engine.pair(&object(&[])).await, Code::FailedPrecondition, message);
    assert_eq!(engine.requests(), 0);
    kubernetes.allow("*", "scaledobjects");
    sleep(Duration::from_secs(6)).await;
    engine.pair(&object(&[])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_the_namespaces_that_are_served_are_watched_and_answered() {
    let kubernetes = FakeKubernetes::new();
    let (here, there) = (named("here", "shop"), named("there", "shop"));
    kubernetes.apply(plain(&here));
    kubernetes.apply(plain(&there));
    let begun = Engine::begin_in(&kubernetes, &["here"], everybody, |_, _| Ok(Some(8.0))).await;
    begun.1.settled().await;
    begun.0.pair(&here).await.unwrap();
    check_denied(begun.0.pair(&there).await);
    let mut namespaced = kubernetes.asked();
    namespaced.retain(|asked| asked.resource != "clustertriggerauthentications");
    assert!(namespaced.len() > 5 && namespaced.iter().all(|asked| asked.namespace == "here"));
}

#[tokio::test(start_paused = true)]
async fn guessing_costs_kubernetes_little_and_others_nothing() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(plain(&object(&[])));
    let engine = start(&kubernetes).await;
    engine.pair(&object(&[])).await.unwrap();
    let started_at = Instant::now();
    // Key by key at one object: it is looked at once in a while, and the answer is the same.
    for age in 0..1_000 {
        check_denied(engine.pair(&object(&[("age", &age.to_string())])).await);
        sleep(Duration::from_millis(10)).await;
    }
    let looks = kubernetes.times_asked("get", "scaledobjects");
    assert!(looks <= 3, "{looks}");
    // Any names.
    let mut codes = std::collections::BTreeMap::new();
    for n in 0..1_000 {
        let status = engine.pair(&named("demo", &format!("guess-{n}"))).await.unwrap_err();
        *codes.entry(format!("{:?}", status.code())).or_insert(0) += 1;
    }
    let seconds = started_at.elapsed().as_secs() + 1;
    let looks = kubernetes.times_asked("get", "*") as u64;
    assert!(looks <= 20 * (seconds + 1) + 2, "{looks} in {seconds} s, {codes:?}");
    let asked_at = Instant::now();
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(asked_at.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_once_its_trigger_is_gone() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(plain(&object(&[])));
    let engine = start(&kubernetes).await;
    let stream = engine.scaler.stream_is_active(Request::new(object(&[]))).await;
    let mut stream = stream.unwrap().into_inner();
    assert!(stream.next().await.unwrap().unwrap().result);
    // Not for want of an answer.
    kubernetes.fail(500);
    assert!(stream.next().await.unwrap().unwrap().result);
    kubernetes.delete("scaledobjects", "demo", "shop");
    kubernetes.recover();
    let deleted_at = Instant::now();
    while let Some(message) = stream.next().await {
        assert!(message.unwrap().result);
    }
    assert!(deleted_at.elapsed() < Duration::from_mins(3), "{:?}", deleted_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_kubernetes_knows_is_read_before_keda_asks() {
    let kubernetes = FakeKubernetes::new();
    for n in 0..100 {
        let object = named("demo", &format!("shop-{n}"));
        let query = format!("sum:shop.orders{{n:{n}}}");
        let metadata = self::object(&[("query", &query)]);
        let object = ScaledObjectRef { scaler_metadata: metadata.scaler_metadata, ..object };
        kubernetes.apply(plain(&object));
    }
    // Of another external scaler.
    let mut other = object(&[]);
    other.scaler_metadata = [("stream".to_owned(), "orders".to_owned())].into();
    kubernetes.apply(plain(&ScaledObjectRef { name: "other".into(), ..other }));
    let begun = Engine::begin_in(&kubernetes, &[], everybody, |_, _| Ok(Some(8.0))).await;
    begun.0.scaler.warm(&begun.1).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(begun.0.requests(), 100);
}
