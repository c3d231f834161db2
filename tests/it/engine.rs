//! The real scaler and engine on a paused clock, in front of a scripted source: no sockets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use keda_datadog_scaler::{
    credentials::{self, AgentSource, Credentials, Rules},
    demand::{Account, Keys, Point, Query, Series},
    kubernetes::{self, Access, Kubernetes},
    metrics::Metrics,
    proto::{GetMetricsRequest, ScaledObjectRef, external_scaler_server::ExternalScaler as _},
    refresh::{self, Refresher},
    scaler::Scaler,
    source::{Answer, Batch, RateLimit, Reply, Source, SourceError, watched::Watched},
};
use secrecy::ExposeSecret as _;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status};

use crate::{fake_kubernetes::FakeKubernetes, harness::config};

/// The newest value of a query at so many seconds after the start; `None` is no data.
pub(crate) type Script = dyn Fn(u64, &Query) -> Result<Option<f64>, SourceError> + Send + Sync;

struct Scripted {
    started_at: Instant,
    script: Box<Script>,
    requests: Arc<Mutex<Vec<String>>>,
    refused: Arc<Mutex<Vec<String>>>,
    watched: Watched,
}

/// The part of the keys that tells accounts apart.
fn app_key(account: &Account) -> &str {
    match account.keys() {
        Keys::Pair { app: key, .. } | Keys::Bearer(key) => key.expose_secret(),
        Keys::None => "",
    }
}

impl Source for Scripted {
    async fn fetch(&self, batch: &Batch) -> Reply {
        if batch.account.is_watched() {
            return self.watched.fetch(batch).await;
        }
        // What a quick request takes.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let seconds = self.started_at.elapsed().as_secs();
        let key = app_key(&batch.account);
        let is_refused = self.refused.lock().unwrap().iter().any(|refused| refused == key);
        let outcomes = batch.queries.iter().map(|query| {
            let asked = format!("{key} at {}", batch.account.host());
            self.requests.lock().unwrap().push(asked);
            if is_refused {
                return Err(SourceError::Refused { status: 403, host: batch.account.host() });
            }
            let value = (self.script)(seconds, query)?;
            let points = value.map(|value| Point { at_ms: 0, value }).into_iter().collect();
            let series = vec![Series { scope: "*".into(), step: None, nulls: 0, points }];
            Ok(Answer { series: series.into(), window_end_ms: 0 })
        });
        Reply { outcomes: outcomes.collect(), rate_limit: Some(ample()) }
    }
}

pub(crate) struct Engine {
    pub(crate) scaler: Scaler,
    pub(crate) refresher: Refresher,
    pub(crate) draining: CancellationToken,
    requests: Arc<Mutex<Vec<String>>>,
    refused: Arc<Mutex<Vec<String>>>,
    started_at: Instant,
    tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl Engine {
    pub(crate) async fn start(
        script: impl Fn(u64, &Query) -> Result<Option<f64>, SourceError> + Send + Sync + 'static,
    ) -> Self {
        let (credentials, _) = credentials::load(config("http://dd").credentials).await.unwrap();
        Self::start_with(credentials, None, script)
    }

    /// With requests that are verified, and credentials from `kubernetes`. `change` is what an
    /// administrator decides.
    pub(crate) async fn start_in(
        kubernetes: &FakeKubernetes,
        change: impl FnOnce(&mut Rules),
        script: impl Fn(u64, &Query) -> Result<Option<f64>, SourceError> + Send + Sync + 'static,
    ) -> Self {
        let (engine, kubernetes) = Self::begin_in(kubernetes, &[], change, script).await;
        kubernetes.settled().await;
        engine
    }

    /// The same, before Kubernetes has told anything, and in these namespaces only.
    pub(crate) async fn begin_in(
        kubernetes: &FakeKubernetes,
        namespaces: &[&str],
        change: impl FnOnce(&mut Rules),
        script: impl Fn(u64, &Query) -> Result<Option<f64>, SourceError> + Send + Sync + 'static,
    ) -> (Self, Kubernetes) {
        let namespaces = namespaces.iter().map(|&namespace| namespace.into()).collect();
        let mut own = crate::harness::config("http://dd").credentials;
        own.rules.own_namespaces.clear();
        change(&mut own.rules);
        let watches_datadog_metrics = own.rules.agent_source != AgentSource::Http;
        let config =
            kubernetes::Config { access: Access::Pod, namespaces, watches_datadog_metrics };
        let (kubernetes, watches) = kubernetes::new(config, kubernetes.client());
        let (credentials, _) = credentials::load(own).await.unwrap();
        let (credentials, resolver) = credentials.with_kubernetes(kubernetes.clone());
        let mut engine = Self::start_with(credentials, Some(kubernetes.clone()), script);
        let stop = CancellationToken::new();
        engine.tasks.spawn(watches.run(stop.clone()));
        engine.tasks.spawn(resolver.run(engine.refresher.clone(), stop));
        let (scaler, of_news) = (engine.scaler.clone(), kubernetes.clone());
        engine.tasks.spawn(async move { scaler.pass_on(&of_news).await });
        (engine, kubernetes)
    }

    pub(crate) fn start_with(
        credentials: Credentials,
        kubernetes: Option<Kubernetes>,
        script: impl Fn(u64, &Query) -> Result<Option<f64>, SourceError> + Send + Sync + 'static,
    ) -> Self {
        let started_at = Instant::now();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let refused = Arc::<Mutex<Vec<String>>>::default();
        let source = Scripted {
            started_at,
            script: Box::new(script),
            requests: requests.clone(),
            refused: refused.clone(),
            watched: Watched::new(kubernetes),
        };
        let metrics = Arc::new(Metrics::new());
        let config = config("http://dd");
        let (refresher, worker) = refresh::new(config.refresh, source);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(stop.clone()));
        let draining = CancellationToken::new();
        let scaler =
            Scaler::new(config.scaler, credentials, refresher.clone(), metrics, draining.clone());
        let stop = stop.drop_guard();
        Self { scaler, refresher, draining, requests, refused, started_at, tasks, _stop: stop }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// From now on Datadog refuses this application key.
    pub(crate) fn refuse(&self, app_key: &str) {
        self.refused.lock().unwrap().push(app_key.to_owned());
    }

    /// Queries that were asked with this application key.
    pub(crate) fn requests_with(&self, app_key: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|it| it.split(' ').next() == Some(app_key)).count()
    }

    /// With which application key and where the newest request was made.
    pub(crate) fn newest_request(&self) -> String {
        self.requests.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// Since the start.
    pub(crate) fn seconds(&self) -> u64 {
        self.started_at.elapsed().as_secs()
    }

    /// GetMetrics and IsActive, as KEDA always asks them.
    pub(crate) async fn pair(&self, object: &ScaledObjectRef) -> Result<(f64, bool), Status> {
        let request =
            GetMetricsRequest { scaled_object_ref: Some(object.clone()), metric_name: "m".into() };
        let values = self.scaler.get_metrics(Request::new(request)).await?.into_inner();
        let active = self.scaler.is_active(Request::new(object.clone())).await?.into_inner();
        Ok((values.metric_values[0].metric_value_float, active.result))
    }
}

pub(crate) fn outage() -> SourceError {
    SourceError::Outage { host: "dd".into(), what: "503".into() }
}

/// A rate limit that nobody reaches.
fn ample() -> RateLimit {
    RateLimit {
        limit: Some(1_000_000),
        period: Some(Duration::from_hours(1)),
        remaining: Some(1_000_000),
        reset: Some(Duration::from_hours(1)),
        name: None,
    }
}
