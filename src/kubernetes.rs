//! Everything we ask of Kubernetes: which triggers there are, the objects that credentials come
//! from, and what a Cluster Agent writes into `DatadogMetric`s. Nothing else names the `kube` crate.
//!
//! KEDA's objects and `DatadogMetric`s are watched, and what the watches tell stands in the `index`.
//! What is read by name, Secrets and ConfigMaps above all, is remembered shortly in `reads`. While
//! Kubernetes is away, what is known stays in use.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::Client;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use crate::words::{is_label, is_name, shorten};

mod access;
mod content;
mod watches;
mod index;
mod datadog_metrics;
mod objects;
mod reads;

pub use access::{Access, AccessError, is_in_pod};
pub use content::{Container, Data, DataKind};
pub use datadog_metrics::{DatadogMetric, MetricName, NoWatch};
pub use index::Claim;
pub use objects::{
    AuthenticationKind, AuthenticationSpec, Entry, Kind, Reference, Scalable, Stored, Variable,
    Workload,
};
pub use watches::{WatchState, Watches};

use content::Reader;
use index::{Found, Index, Item, Scope, Watched};
use objects::AuthenticationName;
use reads::{Pace, Reads, Weigh};

#[derive(Clone, Debug)]
pub struct Config {
    pub access: Access,
    /// Where KEDA's objects are watched and read; everywhere if it is empty.
    pub namespaces: Vec<Arc<str>>,
    /// Whether `DatadogMetric`s are watched as well.
    pub watches_datadog_metrics: bool,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// Where the API server is, if that is known.
    server: Option<Box<str>>,
    reader: Reader,
    index: Mutex<Index>,
    /// ScaledObjects and ScaledJobs that were asked for, and not known.
    looks: Reads<(Kind, Box<str>, Box<str>), Seen>,
    look_pace: Pace,
    /// Counts changes of TriggerAuthentications.
    changes: watch::Sender<u64>,
    /// A `DatadogMetric` may have changed.
    news: Notify,
    watches: Mutex<HashMap<Scope, WatchState>>,
    /// Whether each watch has been complete, or failed, once.
    settled: watch::Sender<bool>,
}

/// Why something cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("Kubernetes forbids the scaler to {what}; grant it (see Rights in the README)")]
    Forbidden { what: String },
    #[error("Kubernetes does not answer ({cause}); it is asked again")]
    Unreachable { cause: String },
    #[error("too much is being read from Kubernetes at the moment; it is asked again")]
    Busy,
    #[error("what Kubernetes answers is not understood (to {what})")]
    NotUnderstood { what: String },
    #[error("Kubernetes does not know the kind")]
    Absent,
}

/// Why a request is not honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The message says no more: it would tell another's metadata, key by key.
    #[error("no trigger of a ScaledObject or ScaledJob of this name has this metadata")]
    NoTrigger {
        /// For our log: the keys that differ, or `None` if nothing has this name.
        differences: Option<Vec<String>>,
    },
    #[error(
        "several triggers have this metadata, but different `authenticationRef`s; tell them apart \
         with a `triggerName` each"
    )]
    Several,
    #[error("the trigger cannot be verified: {0}")]
    Unverified(ReadError),
}

/// At most so many ScaledObjects and ScaledJobs are read by themselves in a second.
const LOOKS_A_SECOND: u32 = 20;
/// How long an RPC waits for its turn among them.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// How long it is remembered that there is no such object.
const MISS: Duration = Duration::from_secs(5);
/// How long an object that no watch tells of counts as known.
const UNWATCHED: Duration = Duration::from_mins(1);
const MAX_LOOKS: usize = 10_000;
/// How long the first listing may take before the server is ready without it.
const FIRST_LISTING: Duration = Duration::from_secs(10);
/// Most characters of a cause.
const MAX_CAUSE: usize = 300;

/// An object was there when it was looked at; what it is stands in the index.
#[derive(Clone, Copy)]
struct Seen;

impl Weigh for Seen {
    fn weight(&self) -> usize {
        0
    }
}

/// Asks nobody yet; the watches do nothing until they are run.
pub async fn connect(config: Config) -> Result<(Kubernetes, Watches), AccessError> {
    let (client, server) = config.access.client().await?;
    Ok(assemble(config, client, Some(server.into())))
}

/// The same, with a client that is there.
pub fn new(config: Config, client: Client) -> (Kubernetes, Watches) {
    assemble(config, client, None)
}

fn assemble(config: Config, client: Client, server: Option<Box<str>>) -> (Kubernetes, Watches) {
    let shared = Arc::new(Shared {
        config,
        server,
        reader: Reader::new(client.clone()),
        index: Mutex::default(),
        looks: Reads::new(MAX_LOOKS),
        look_pace: Pace::new(LOOKS_A_SECOND),
        changes: watch::Sender::new(0),
        news: Notify::new(),
        watches: Mutex::default(),
        settled: watch::Sender::new(false),
    });
    (Kubernetes { shared: shared.clone() }, Watches::new(shared, client))
}

impl Kubernetes {
    /// Waits for the first listing, but not long.
    pub async fn settled(&self) {
        let mut settled = self.shared.settled.subscribe();
        let first = settled.wait_for(|settled| *settled);
        // Closed only when everything ends.
        let _ = tokio::time::timeout(FIRST_LISTING, first).await;
    }

    /// The trigger that a request is that of. One that is not known is looked for in Kubernetes,
    /// until `deadline`.
    pub async fn honour(
        &self,
        claim: &Claim<'_>,
        deadline: Instant,
    ) -> Result<Arc<Stored>, ClaimError> {
        let unwatched = match self.find(claim)? {
            Some((trigger, false)) => return Ok(trigger),
            Some((trigger, true)) => Some(trigger),
            None => None,
        };
        if !self.covers(claim.namespace) || !is_label(claim.namespace) || !is_name(claim.name) {
            return Err(ClaimError::NoTrigger { differences: None });
        }
        if unwatched.is_none() && !*self.shared.settled.borrow() {
            let mut settled = self.shared.settled.subscribe();
            let _ = timeout_at(deadline, settled.wait_for(|settled| *settled)).await;
            if let Some((trigger, _)) = self.find(claim)? {
                return Ok(trigger);
            }
        }
        for kind in [Kind::ScaledObject, Kind::ScaledJob] {
            match self.look(kind, claim.namespace, claim.name, deadline).await {
                Ok(()) => {}
                Err(error) => match unwatched {
                    Some(trigger) => return Ok(trigger),
                    None => return Err(ClaimError::Unverified(error)),
                },
            }
            if let Some((trigger, _)) = self.find(claim)? {
                return Ok(trigger);
            }
        }
        let differences = self.shared.index().differences(claim);
        Err(ClaimError::NoTrigger { differences })
    }

    /// With the trigger, whether it should be looked at again.
    fn find(&self, claim: &Claim<'_>) -> Result<Option<(Arc<Stored>, bool)>, ClaimError> {
        let now = Instant::now();
        match self.shared.index().find(claim, now) {
            Found::One { trigger, read_at } => {
                let is_old = read_at.is_some_and(|at| now >= at + UNWATCHED);
                Ok(Some((trigger, is_old)))
            }
            Found::Several => Err(ClaimError::Several),
            Found::None => Ok(None),
        }
    }

    fn covers(&self, namespace: &str) -> bool {
        let namespaces = &self.shared.config.namespaces;
        namespaces.is_empty() || namespaces.iter().any(|covered| **covered == *namespace)
    }

    /// Reads an object into the index, unless that was done just now.
    async fn look(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<(), ReadError> {
        let now = Instant::now();
        let since = now.checked_sub(MISS).unwrap_or(now);
        let key = (kind, namespace.into(), name.into());
        let read = async {
            let wait = self.shared.look_pace.reserve(Instant::now(), LOOK_PATIENCE);
            tokio::time::sleep(wait.ok_or(ReadError::Busy)?).await;
            let began_at = Instant::now();
            let scaled = self.shared.reader.scaled(kind, namespace, name).await?;
            let mut index = self.shared.index();
            Ok(if let Some(scaled) = scaled {
                index.put(Item::Scaled(scaled), Some(began_at), Instant::now());
                Some(Seen)
            } else {
                index.remove_scaled(kind, namespace, name, Some(began_at));
                None
            })
        };
        match timeout_at(deadline, self.shared.looks.get(key, since, read)).await {
            Ok(outcome) => outcome.map(|_| ()),
            Err(_elapsed) => Err(ReadError::Unreachable { cause: "no answer in time".to_owned() }),
        }
    }

    /// All triggers that the watches have told of.
    pub fn triggers(&self) -> Vec<Arc<Stored>> {
        self.shared.index().triggers()
    }

    /// What a trigger of `namespace` refers to, if the watches have told of it.
    pub fn known_authentication(
        &self,
        namespace: &Arc<str>,
        reference: &Reference,
    ) -> Option<Arc<AuthenticationSpec>> {
        let name = authentication_name(namespace, reference)?;
        self.shared.index().authentication(&name).map(|(spec, _)| spec)
    }

    /// What a trigger of `namespace` refers to; read, unless a watch has told of it. `None` if it
    /// does not exist.
    pub async fn authentication(
        &self,
        namespace: &Arc<str>,
        reference: &Reference,
    ) -> Result<Option<Arc<AuthenticationSpec>>, ReadError> {
        let Some(name) = authentication_name(namespace, reference) else { return Ok(None) };
        let known = self.shared.index().authentication(&name);
        if let Some((spec, None)) = known {
            return Ok(Some(spec));
        }
        let began_at = Instant::now();
        let read = self.shared.reader.authentication(&reference.kind, &name).await?;
        let mut index = self.shared.index();
        let Some(spec) = read else {
            index.remove_authentication(&name, Some(began_at));
            return Ok(None);
        };
        index.put(Item::Authentication(name.clone(), spec), Some(began_at), Instant::now());
        Ok(index.authentication(&name).map(|(spec, _)| spec))
    }

    /// A Secret or ConfigMap as it was at `since` or later; `None` if it does not exist.
    pub async fn data(
        &self,
        kind: DataKind,
        namespace: &str,
        name: &str,
        since: Instant,
    ) -> Result<Option<Arc<Data>>, ReadError> {
        self.shared.reader.data(kind, namespace, name, since).await
    }

    /// The containers of what is scaled, with their environment and nothing else; `None` if it
    /// does not exist.
    pub async fn containers(
        &self,
        namespace: &str,
        workload: &Workload,
        since: Instant,
    ) -> Result<Option<Arc<[Container]>>, ReadError> {
        self.shared.reader.containers(namespace, workload, since).await
    }

    /// How many watches there are in each state.
    pub fn watches(&self) -> Vec<(WatchState, usize)> {
        let watches = self.shared.watches();
        let count = |state| watches.values().filter(|it| **it == state).count();
        WatchState::ALL.map(|state| (state, count(state))).into()
    }

    /// A ScaledObject or ScaledJob as it is now, all of it; `None` if it does not exist.
    pub async fn object(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ReadError> {
        self.shared.reader.object(kind, namespace, name).await
    }

    pub async fn has_namespace(&self, name: &str) -> Result<bool, ReadError> {
        self.shared.reader.has_namespace(name).await
    }

    /// Whether KEDA's kinds are known there.
    pub async fn has_keda(&self) -> Result<bool, ReadError> {
        self.shared.reader.has_kinds(objects::KEDA).await
    }

    /// Host, port and path of the API server, if that is known.
    pub fn server(&self) -> Option<&str> {
        self.shared.server.as_deref()
    }

    /// A `DatadogMetric` as the watch last told it; `None` if there is none.
    pub fn datadog_metric(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<DatadogMetric>>, NoWatch> {
        self.tells_datadog_metrics(namespace)?;
        Ok(self.shared.index().datadog_metrics.get(namespace, name))
    }

    /// A `DatadogMetric` as it is now, for who does not watch; `None` if there is none.
    pub async fn read_datadog_metric(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<DatadogMetric>, ReadError> {
        self.shared.reader.datadog_metric(namespace, name).await
    }

    /// Whether a watch tells of the `DatadogMetric`s of this namespace, or did and will again.
    pub fn tells_datadog_metrics(&self, namespace: &str) -> Result<(), NoWatch> {
        if self.shared.index().datadog_metrics.is_listed(namespace) {
            return Ok(());
        }
        Err(match self.datadog_metrics_watch(namespace) {
            None => NoWatch::Uncovered,
            Some(WatchState::Forbidden) => NoWatch::Forbidden,
            Some(WatchState::Absent) => NoWatch::Absent,
            Some(WatchState::Beginning | WatchState::Working | WatchState::Failing) => {
                NoWatch::Unlisted
            }
        })
    }

    /// How it stands with the watch that tells of the `DatadogMetric`s of this namespace.
    pub fn datadog_metrics_watch(&self, namespace: &str) -> Option<WatchState> {
        let covers = |scope: &Scope| {
            scope.what == Watched::DatadogMetric
                && scope.namespace.as_deref().is_none_or(|it| it == namespace)
        };
        let watches = self.shared.watches();
        watches.iter().find(|(scope, _)| covers(scope)).map(|(_, state)| *state)
    }

    /// Waits until `DatadogMetric`s change; says which have, since it last did.
    pub async fn changed_datadog_metrics(&self) -> HashSet<MetricName> {
        loop {
            let changed = self.shared.index().datadog_metrics.take_changed();
            if !changed.is_empty() {
                return changed;
            }
            self.shared.news.notified().await;
        }
    }

    /// Changes when a TriggerAuthentication does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}

/// `None` for a kind that does not exist.
fn authentication_name(namespace: &Arc<str>, reference: &Reference) -> Option<AuthenticationName> {
    let namespace = match reference.kind {
        AuthenticationKind::TriggerAuthentication => Some(namespace.clone()),
        AuthenticationKind::ClusterTriggerAuthentication => None,
        AuthenticationKind::Other(_) => return None,
    };
    Some(AuthenticationName { namespace, name: reference.name.clone() })
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        // It cannot fail half-way.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<Scope, WatchState>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadError {
    /// `what` was tried: `get secrets/keys in the namespace shop`.
    fn new(error: kube::Error, what: String) -> Self {
        let cause = match error {
            kube::Error::Api(status) if status.code == 403 => return Self::Forbidden { what },
            kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
            kube::Error::SerdeError(_) => return Self::NotUnderstood { what },
            error => access::cause(&error),
        };
        Self::Unreachable { cause: shorten(cause.trim(), MAX_CAUSE) }
    }
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
