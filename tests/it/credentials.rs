//! Keys from a directory that changes while the server runs.

use std::{fs, time::Duration};

use futures_util::StreamExt as _;
use keda_datadog_scaler::{
    credentials::{self, Origin, Rules},
    demand::Query,
    proto::external_scaler_server::ExternalScaler as _,
    source::SourceError,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::{
    engine::{Engine, outage},
    harness::{check_status, object},
};

struct Directory {
    files: TempDir,
    engine: Engine,
    _keeper: JoinSet<()>,
}

impl Directory {
    async fn start(
        files: &[(&str, &str)],
        script: impl Fn(u64, &Query) -> Result<Option<f64>, SourceError> + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write(&directory, files);
        let origin = Origin::Directory(directory.path().to_owned());
        let config = credentials::Config {
            origin,
            base_url: None,
            rules: Rules::default(),
            agent: None,
            agent_ca: None,
            is_optional: false,
        };
        let (credentials, keeper) = credentials::load(config).await.unwrap();
        let engine = Engine::start_with(credentials, None, script);
        let mut tasks = JoinSet::new();
        let keeper = keeper.expect("a directory is looked after");
        tasks.spawn(keeper.run(engine.refresher.clone(), CancellationToken::new()));
        Self { files: directory, engine, _keeper: tasks }
    }

    /// Gives the change the time to be noticed and the queries to be read.
    async fn change(&self, files: &[(&str, &str)]) {
        write(&self.files, files);
        sleep(Duration::from_secs(11)).await;
    }
}

fn write(directory: &TempDir, files: &[(&str, &str)]) {
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn new_keys_are_used_without_a_restart() {
    let keys = [("api_key", "api\n"), ("app_key", " one \n")];
    let started = Directory::start(&keys, |_, _| Ok(Some(8.0))).await;
    let engine = &started.engine;
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(engine.newest_request(), "one at api.datadoghq.com");

    started.change(&[("app_key", "two")]).await;
    // Read anew at once, though nobody asked and it was not due.
    assert_eq!((engine.requests(), &*engine.newest_request()), (2, "two at api.datadoghq.com"));
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
    assert_eq!(engine.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn readings_are_held_while_new_keys_fail_and_no_longer_than_before() {
    let keys = [("api_key", "api"), ("app_key", "one")];
    let script = |at, _: &_| if at < 1 { Ok(Some(8.0)) } else { Err(outage()) };
    let started = Directory::start(&keys, script).await;
    let engine = &started.engine;
    engine.pair(&object(&[])).await.unwrap();
    for (at, app_key) in [(20, "two"), (60, "three")] {
        while engine.seconds() < at {
            assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
            sleep(Duration::from_secs(1)).await;
        }
        started.change(&[("app_key", app_key)]).await;
    }
    while engine.seconds() < 75 {
        assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
        sleep(Duration::from_secs(1)).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(engine.pair(&object(&[])).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(engine.newest_request(), "three at api.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn readings_of_another_site_are_not_carried_over() {
    let keys = [("api_key", "api"), ("app_key", "one"), ("site", "datadoghq.eu")];
    let script = |at, _: &_| if at < 1 { Ok(Some(8.0)) } else { Err(outage()) };
    let started = Directory::start(&keys, script).await;
    let engine = &started.engine;
    engine.pair(&object(&[])).await.unwrap();
    assert_eq!(engine.newest_request(), "one at api.datadoghq.eu");
    started.change(&[("site", "us5.datadoghq.com")]).await;
    assert_eq!(engine.pair(&object(&[])).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(engine.newest_request(), "one at api.us5.datadoghq.com");
}

#[tokio::test(start_paused = true)]
async fn keys_may_come_after_the_start() {
    let started = Directory::start(&[("app_key", "one")], |_, _| Ok(Some(8.0))).await;
    let engine = &started.engine;
    let status = engine.pair(&object(&[])).await;
    let message = "the API key (`DD_API_KEY`, or the file `api_key`) is missing; both keys are \
                   needed, unless the application key is an access token (`ddpat_`, `ddsat_`)";
    check_status(status, Code::FailedPrecondition, message);
    // GetMetricSpec needs none.
    engine.scaler.get_metric_spec(Request::new(object(&[]))).await.unwrap();

    let stream = engine.scaler.stream_is_active(Request::new(object(&[]))).await;
    let mut stream = stream.unwrap().into_inner();
    started.change(&[("api_key", "api")]).await;
    assert!(stream.next().await.unwrap().unwrap().result);
    assert_eq!(engine.pair(&object(&[])).await.unwrap(), (8.0, true));
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_the_directory_is_told_as_it_is_now() {
    let started = Directory::start(&[], |_, _| Ok(Some(8.0))).await;
    let path = started.files.path().display().to_string();
    let code = Code::FailedPrecondition;
    let message = format!(
        "the credentials in {path} cannot be read: the files `api_key` and `app_key` are missing \
         or empty"
    );
    check_status(started.engine.pair(&object(&[])).await, code, &message);
    started.change(&[("api_key", &"x".repeat(5_000))]).await;
    let message =
        format!("the credentials in {path}/api_key cannot be read: it is not a file with a key");
    check_status(started.engine.pair(&object(&[])).await, code, &message);
    started.change(&[("api_key", "api"), ("app_key", "one")]).await;
    assert_eq!(started.engine.pair(&object(&[])).await.unwrap(), (8.0, true));
}

#[tokio::test(start_paused = true)]
async fn keys_that_vanish_stay_in_use() {
    let keys = [("api_key", "api"), ("app_key", "one")];
    let started = Directory::start(&keys, |_, _| Ok(Some(8.0))).await;
    for file in ["api_key", "app_key"] {
        fs::remove_file(started.files.path().join(file)).unwrap();
    }
    sleep(Duration::from_mins(1)).await;
    assert_eq!(started.engine.pair(&object(&[])).await.unwrap(), (8.0, true));
}
