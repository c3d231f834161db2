//! Follows what happens to KEDA's objects and to `DatadogMetric`s: one task for each kind and
//! namespace. What a watch tells goes into the index; while Kubernetes is away, the last known state
//! stays.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event, watcher},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config, ReadError, Shared,
    access::WATCH_SECONDS,
    datadog_metrics::{self, DatadogMetric},
    index::{Item, Scope, Watched},
    objects::{
        Kind, Scaled, authentication, cluster_trigger_authentications, full_name,
        trigger_authentications,
    },
};

/// Objects in one page of a listing: the largest has 1.5 MB, and a page is read as a whole.
const PAGE: u32 = 100;
/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch that failed and is quiet for so long is taken to work again; a listing proves it.
const QUIET: Duration = Duration::from_secs(10);
/// Pauses after failures: from the first, doubled with each, up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The same, of a watch that is forbidden, or of what does not exist, until somebody mends it.
const LONG_PAUSE: Duration = Duration::from_mins(1);

/// Follows KEDA's objects, once it is run.
pub struct Watches {
    shared: Arc<Shared>,
    client: Client,
}

/// How it stands with a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// The first listing is under way.
    Beginning,
    Working,
    /// It is tried again; what is known stays in use.
    Failing,
    /// By RBAC.
    Forbidden,
    /// Kubernetes does not know the kind.
    Absent,
}

/// One kind, in one namespace or all.
struct Follower {
    shared: Arc<Shared>,
    scope: Scope,
    /// Of the listing that is under way.
    epoch: Option<u64>,
    /// Since it last told something.
    failures: u32,
    failing: Option<ReadError>,
}

impl WatchState {
    pub const ALL: [Self; 5] =
        [Self::Beginning, Self::Working, Self::Failing, Self::Forbidden, Self::Absent];

    /// As metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Beginning => "beginning",
            Self::Working => "working",
            Self::Failing => "failing",
            Self::Forbidden => "forbidden",
            Self::Absent => "absent",
        }
    }
}

impl Watches {
    pub(super) fn new(shared: Arc<Shared>, client: Client) -> Self {
        Self { shared, client }
    }

    /// Until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let scopes = scopes(&self.shared.config);
        let beginning = scopes.iter().map(|scope| (scope.clone(), WatchState::Beginning));
        self.shared.watches().extend(beginning);
        let mut tasks = JoinSet::new();
        for scope in scopes {
            let (shared, client) = (self.shared.clone(), self.client.clone());
            let follower = Follower { shared, scope, epoch: None, failures: 0, failing: None };
            tasks.spawn(follower.run(client));
        }
        let ended = async {
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a watch panicked");
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            // None ends by itself.
            () = ended => stop.cancelled().await,
        }
    }
}

fn scopes(config: &Config) -> Vec<Scope> {
    let namespaces: Vec<_> = match &*config.namespaces {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let everywhere = Scope { what: Watched::ClusterTriggerAuthentication, namespace: None };
    let mut scopes = vec![everywhere];
    let of_keda = [
        Watched::Scaled(Kind::ScaledObject),
        Watched::Scaled(Kind::ScaledJob),
        Watched::TriggerAuthentication,
    ];
    let of_datadog = config.watches_datadog_metrics.then_some(Watched::DatadogMetric);
    for what in of_keda.into_iter().chain(of_datadog) {
        scopes.extend(namespaces.iter().map(|it| Scope { what, namespace: it.clone() }));
    }
    scopes
}

impl Follower {
    async fn run(mut self, client: Client) {
        let resource = self.scope.what.resource();
        let api: Api<DynamicObject> = match &self.scope.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
        'anew: loop {
            let mut events = pin!(watcher(api.clone(), config.clone()));
            let mut is_listing = true;
            // A watcher may insist on what cannot be had any more: then another one lists anew.
            let mut insists = false;
            while !insists {
                // While it watches, silence is no failure, and a lost connection is noticed
                // elsewhere (`read_timeout`).
                let limit = match &self.failing {
                    _ if is_listing => PAGE_TIMEOUT,
                    Some(_) => QUIET,
                    None => Duration::MAX,
                };
                match timeout(limit, events.next()).await {
                    // Only a listing tells of what has not changed.
                    Ok(Some(Ok(Event::Apply(_) | Event::Delete(_)))) if self.has_forgotten() => {
                        continue 'anew;
                    }
                    Ok(Some(Ok(event))) => {
                        is_listing = matches!(event, Event::Init | Event::InitApply(_));
                        self.hear(event);
                    }
                    // No failure. The watcher lists anew, though not again and again.
                    Ok(Some(Err(error))) if is_expired(&error) => sleep(PAUSES.0).await,
                    // Neither, unless the listing fails too.
                    Ok(Some(Err(error))) if is_gone(&error) => insists = true,
                    Ok(Some(Err(error))) => {
                        self.fails(failure(error, &self.scope));
                        sleep(self.pause()).await;
                    }
                    Ok(None) => break,
                    Err(_elapsed) if !is_listing => continue 'anew,
                    Err(_elapsed) => {
                        let cause = format!("no answer within {limit:?}");
                        self.fails(ReadError::Unreachable { cause });
                        break;
                    }
                }
            }
            sleep(self.pause()).await;
        }
    }

    fn pause(&self) -> Duration {
        if matches!(self.failing, Some(ReadError::Forbidden { .. } | ReadError::Absent)) {
            return LONG_PAUSE;
        }
        let (shortest, longest) = PAUSES;
        let pause = shortest * 2_u32.pow(self.failures.saturating_sub(1).min(16));
        pause.min(longest).mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// A watch that is forbidden goes on, once it is allowed, from the version it knows.
    fn has_forgotten(&self) -> bool {
        self.scope.what == Watched::DatadogMetric
            && !self.shared.index().datadog_metrics.has_listed(self.scope.namespace.as_ref())
    }

    fn hear(&mut self, event: Event<DynamicObject>) {
        let now = Instant::now();
        match event {
            Event::Init => {
                self.epoch = Some(self.shared.index().begin());
                return;
            }
            Event::InitApply(object) => {
                let item = self.scope.what.item(object);
                self.shared.index().put(item, None, now);
                return;
            }
            Event::InitDone => {
                let epoch = self.epoch.take().unwrap_or_default();
                self.shared.index().end(&self.scope, epoch);
            }
            Event::Apply(object) => {
                let item = self.scope.what.item(object);
                self.shared.index().put(item, None, now);
            }
            Event::Delete(object) => {
                let item = self.scope.what.item(object);
                self.shared.index().remove(&item);
            }
        }
        self.failures = 0;
        self.failing = None;
        let was = self.enter(WatchState::Working);
        if was == Some(WatchState::Failing) && !self.shared.fails_somewhere() {
            tracing::info!("Kubernetes tells of changes again");
        }
        if was == Some(WatchState::Forbidden) {
            tracing::info!(what = %self.scope, "a watch is not forbidden any more");
        }
        let is_back = matches!(was, Some(WatchState::Working | WatchState::Failing));
        if !is_back && self.scope.what == Watched::DatadogMetric {
            tracing::info!(what = %self.scope, "DatadogMetrics are read as a watch tells them");
        }
        match self.scope.what {
            Watched::Scaled(_) => {}
            Watched::DatadogMetric => self.shared.news.notify_one(),
            Watched::TriggerAuthentication | Watched::ClusterTriggerAuthentication => {
                self.shared.changes.send_modify(|changes| *changes += 1);
            }
        }
    }

    /// Said once: what RBAC forbids stays so until somebody mends it, and the API server is away
    /// for all watches at once.
    fn fails(&mut self, error: ReadError) {
        self.failures = self.failures.saturating_add(1);
        let is_first = !self.shared.fails_somewhere();
        let is_news = self.failing.as_ref() != Some(&error);
        let instead = self.scope.what.instead();
        match error {
            ReadError::Forbidden { .. } => {
                self.enter(WatchState::Forbidden);
                if is_news {
                    tracing::warn!(%error, instead, "a watch is forbidden");
                }
            }
            ReadError::Absent => {
                self.enter(WatchState::Absent);
                if is_news {
                    tracing::info!(what = %self.scope, instead, "Kubernetes does not know a kind");
                }
            }
            _ => {
                self.enter(WatchState::Failing);
                if is_first {
                    let text = "Kubernetes does not tell of changes; what is known stays in use";
                    tracing::warn!(%error, "{text}");
                }
            }
        }
        self.failing = Some(error);
    }

    /// Says what it was before.
    fn enter(&self, state: WatchState) -> Option<WatchState> {
        // The first time, it may be an API server that has just begun.
        let is_over =
            matches!(state, WatchState::Forbidden | WatchState::Absent) && self.failures > 1;
        if is_over && self.scope.what == Watched::DatadogMetric {
            self.shared.index().datadog_metrics.forget(self.scope.namespace.as_ref());
        }
        let mut watches = self.shared.watches();
        let was = watches.insert(self.scope.clone(), state);
        if !watches.values().any(|state| *state == WatchState::Beginning) {
            self.shared.settled.send_if_modified(|settled| !std::mem::replace(settled, true));
        }
        was
    }
}

impl Shared {
    fn fails_somewhere(&self) -> bool {
        self.watches().values().any(|state| *state == WatchState::Failing)
    }
}

impl Watched {
    fn resource(self) -> ApiResource {
        match self {
            Self::Scaled(kind) => kind.resource(),
            Self::TriggerAuthentication => trigger_authentications(),
            Self::ClusterTriggerAuthentication => cluster_trigger_authentications(),
            Self::DatadogMetric => datadog_metrics::resource(),
        }
    }

    fn item(self, object: DynamicObject) -> Item {
        match self {
            Self::Scaled(kind) => Item::Scaled(Scaled::read(kind, object)),
            Self::TriggerAuthentication | Self::ClusterTriggerAuthentication => {
                let (name, spec) = authentication(object);
                Item::Authentication(name, spec)
            }
            Self::DatadogMetric => {
                Item::DatadogMetric(full_name(&object), DatadogMetric::read(&object))
            }
        }
    }

    /// What is done without the watch.
    fn instead(self) -> &'static str {
        match self {
            Self::Scaled(_) => "each is read by itself when it is asked for, and again each minute",
            Self::TriggerAuthentication | Self::ClusterTriggerAuthentication => {
                "each is read by itself, if that is allowed; else triggers that refer to one fail"
            }
            Self::DatadogMetric => {
                "a Cluster Agent is asked for each, if one is known and `--cluster-agent-source` \
                 does not say otherwise"
            }
        }
    }
}

/// What has happened since the version that it knows is forgotten: so it is after a restart of the
/// API server, or when nothing has happened for long.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// kube's watcher starts anew from the version it knows, though that is gone, unless it is told so
/// by an event.
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 404 | 410)
        }
        _ => false,
    }
}

fn failure(error: watcher::Error, scope: &Scope) -> ReadError {
    let what = format!("list and watch {scope}");
    match error {
        // Without KEDA's kinds there is nothing to do; without this one, there is.
        watcher::Error::InitialListFailed(kube::Error::Api(status))
            if status.code == 404 && scope.what == Watched::DatadogMetric =>
        {
            ReadError::Absent
        }
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ReadError::new(error, what),
        watcher::Error::WatchError(status) => ReadError::new(kube::Error::Api(status), what),
        watcher::Error::NoResourceVersion => ReadError::NotUnderstood { what },
    }
}
