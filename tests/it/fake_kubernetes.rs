//! A Kubernetes API server that answers and remembers, for real `kube` clients: in process, where
//! the clock can be paused, or on loopback.

mod store;
mod api;
mod watching;
mod tests;

use std::{collections::BTreeMap, net::SocketAddr};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::Instant};

use self::store::{Rule, Store};
use crate::harness::{install_tls, soon};

/// In the kubeconfig; no log may hold it.
pub(crate) const TOKEN: &str = "marker-of-the-kubernetes-token";

/// Knows the kinds that the scaler reads, and any that is applied. Allows everything at first.
#[derive(Clone)]
pub(crate) struct FakeKubernetes {
    store: watch::Sender<Store>,
}

/// A request that it got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// `get`, `list` or `watch`; what writes has the names that RBAC has for it.
    pub(crate) verb: &'static str,
    /// Empty for the core group.
    pub(crate) group: String,
    /// Plural; empty for discovery and `/version`.
    pub(crate) resource: String,
    /// Empty for all namespaces, and for what has none.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) bearer: Option<String>,
    pub(crate) at: Instant,
}

/// What becomes of requests until it recovers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    /// This status, as an API server or what stands before it words it. Open watches end.
    Fails(u16),
    /// No answer and no event. Both come when it recovers.
    Hangs,
    /// 200 and this text. Open watches end.
    Garbage(&'static str),
}

/// How a watch from a forgotten version is told to list again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Gone {
    /// 200 and an ERROR event, as API servers do for a watch.
    #[default]
    Event,
    /// HTTP 410, as they do for a list. `kube`'s watcher asks for the same version ever after.
    Status,
}

impl FakeKubernetes {
    pub(crate) fn new() -> Self {
        Self { store: watch::Sender::new(Store::new()) }
    }

    /// In process: no socket, and none of the layers that `kube` builds around a connection
    /// (retries of 429, 503 and 504 above all).
    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.router(), "default")
    }

    /// On a free port.
    pub(crate) async fn listen(&self) -> Listening {
        self.listen_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn listen_at(&self, address: SocketAddr) -> Listening {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(accept(listener, self.router()));
        Listening { address, url: format!("http://{address}"), _server: server }
    }

    fn router(&self) -> Router {
        Router::new().fallback(api::answer).with_state(self.clone())
    }

    /// Creates or replaces. `metadata` needs a name only. `stringData` becomes `data`. As ever,
    /// what changes nothing is no event.
    #[track_caller]
    pub(crate) fn apply(&self, object: Value) {
        self.store.send_modify(|store| store.apply(object));
    }

    /// `namespace` is empty for what has none.
    #[track_caller]
    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.store.send_modify(|store| store.delete(plural, namespace, name));
    }

    /// A kind whose plural cannot be guessed, or one of a group that was uninstalled.
    pub(crate) fn install(&self, api_version: &str, kind: &str, plural: &str, namespaced: bool) {
        self.store.send_modify(|store| store.install(api_version, kind, plural, namespaced));
    }

    /// The group is not known here (404, in plain text), as before its definitions are installed.
    pub(crate) fn uninstall(&self, group: &str) {
        self.store.send_modify(|store| store.uninstall(group));
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.store.borrow().asked.clone()
    }

    pub(crate) fn times_asked(&self, verb: &str, resource: &str) -> usize {
        self.store.borrow().times_asked(verb, resource)
    }

    pub(crate) async fn was_asked(&self, verb: &str, resource: &str, times: usize) {
        let mut store = self.store.subscribe();
        soon(store.wait_for(|store| store.times_asked(verb, resource) >= times)).await.unwrap();
    }

    pub(crate) fn open_watches(&self) -> usize {
        self.store.borrow().open_watches
    }

    /// 403 in all namespaces. The newest rule that fits a request counts. `*` is any verb or
    /// resource. A watch that is open stays so.
    pub(crate) fn forbid(&self, verb: &str, resource: &str) {
        self.rule(false, verb, resource, None);
    }

    pub(crate) fn forbid_in(&self, namespace: &str, verb: &str, resource: &str) {
        self.rule(false, verb, resource, Some(namespace));
    }

    pub(crate) fn allow(&self, verb: &str, resource: &str) {
        self.rule(true, verb, resource, None);
    }

    /// After `forbid`, what a Role in this namespace is: it does not fit a request for all.
    pub(crate) fn allow_in(&self, namespace: &str, verb: &str, resource: &str) {
        self.rule(true, verb, resource, Some(namespace));
    }

    fn rule(&self, allowed: bool, verb: &str, resource: &str, namespace: Option<&str>) {
        let (verb, resource) = (verb.to_owned(), resource.to_owned());
        let rule = Rule { allowed, verb, resource, namespace: namespace.map(str::to_owned) };
        self.store.send_modify(|store| store.rules.push(rule));
    }

    /// `*` is every resource, and discovery. The newest that fits a request counts.
    pub(crate) fn trouble(&self, resource: &str, trouble: Trouble) {
        self.store.send_modify(|store| store.troubles.push((resource.to_owned(), trouble)));
    }

    pub(crate) fn fail(&self, status: u16) {
        self.trouble("*", Trouble::Fails(status));
    }

    pub(crate) fn hang(&self) {
        self.trouble("*", Trouble::Hangs);
    }

    pub(crate) fn garbage(&self, body: &'static str) {
        self.trouble("*", Trouble::Garbage(body));
    }

    /// From all troubles.
    pub(crate) fn recover(&self) {
        self.store.send_modify(|store| store.troubles.clear());
    }

    /// Open watches end, as they do every few minutes.
    pub(crate) fn cut_watches(&self) {
        self.store.send_modify(|store| store.cuts += 1);
    }

    /// Forgets how it came to be what it is: open watches end, and neither they nor lists can be
    /// continued.
    pub(crate) fn expire(&self, gone: Gone) {
        self.store.send_modify(|store| store.expire(gone));
    }

    /// A newer version, for the watches that want bookmarks.
    pub(crate) fn bookmark(&self) {
        self.store.send_modify(Store::bookmark);
    }
}

/// An API server on loopback. Dropped, it refuses connections and its own are closed.
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    _server: JoinSet<()>,
}

impl Listening {
    pub(crate) fn kubeconfig(&self) -> String {
        format!(
            "\
apiVersion: v1
kind: Config
clusters: [{{ name: fake, cluster: {{ server: {:?} }} }}]
users: [{{ name: scaler, user: {{ token: {TOKEN} }} }}]
contexts: [{{ name: fake, context: {{ cluster: fake, user: scaler, namespace: keda }} }}]
current-context: fake
",
            self.url
        )
    }

    /// As the kubeconfig makes it, with `kube`'s own retries.
    pub(crate) async fn client(&self) -> kube::Client {
        install_tls();
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            // A client may hang up.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
