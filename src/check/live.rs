//! An object that Kubernetes has, in place of one in a file.

use std::sync::Arc;

use tokio::time::Instant;

use super::input::{Found, InputError};
use crate::{
    credentials::Rules,
    kubernetes::{self, Access, Kind, Kubernetes, ReadError, Workload},
};

/// A ScaledObject or ScaledJob in Kubernetes, and how the server would look for its keys.
#[derive(Clone, Debug)]
pub struct Live {
    pub access: Access,
    pub namespace: String,
    /// `None` is a ScaledObject or, if there is none, a ScaledJob.
    pub kind: Option<Kind>,
    pub name: String,
    pub rules: Rules,
    /// Whether `rules.own_namespaces` are known to be the server's.
    pub knows_own: bool,
}

/// Where the object was found.
pub(super) struct Cluster {
    pub(super) kubernetes: Kubernetes,
    /// As messages name the API server.
    pub(super) called: String,
    /// Whether what Kubernetes forbids here, it forbids the server.
    pub(super) is_servers: bool,
    pub(super) rules: Rules,
    pub(super) knows_own: bool,
    pub(super) namespace: Arc<str>,
    /// What the object scales.
    pub(super) workload: Option<Workload>,
    /// Nothing is to be older.
    pub(super) since: Instant,
}

pub(super) async fn find(live: Live) -> Result<(Found, Cluster), InputError> {
    let Live { access, namespace, kind, name, rules, knows_own } = live;
    let is_servers = access == Access::Pod;
    let config =
        kubernetes::Config { access, namespaces: Vec::new(), watches_datadog_metrics: false };
    let (kubernetes, _) = kubernetes::connect(config).await?;
    let server = kubernetes.server().map(|server| format!(" at {server}"));
    let mut cluster = Cluster {
        called: format!("Kubernetes{}", server.unwrap_or_default()),
        kubernetes,
        is_servers,
        rules,
        knows_own,
        namespace: namespace.into(),
        workload: None,
        since: Instant::now(),
    };
    let kinds = kind.map_or(vec![Kind::ScaledObject, Kind::ScaledJob], |kind| vec![kind]);
    for &kind in &kinds {
        let read = cluster.kubernetes.object(kind, &cluster.namespace, &name).await;
        let read = read.map_err(|error| InputError::NotRead {
            object: format!("the {kind} {}/{name}", cluster.namespace),
            cause: cluster.in_words(&error),
        });
        let Some(object) = read? else { continue };
        cluster.workload = Workload::of(kind, &name, &object["spec"]);
        return Ok((Found::of_object(&cluster.called, object), cluster));
    }
    Err(cluster.lacks(&kinds, name).await)
}

impl Cluster {
    /// Why there is no such object, as far as that may be asked.
    async fn lacks(&self, kinds: &[Kind], name: String) -> InputError {
        let (cluster, namespace) = (self.called.clone(), self.namespace.to_string());
        if let Ok(false) = self.kubernetes.has_keda().await {
            return InputError::NoKeda { cluster };
        }
        if let Ok(false) = self.kubernetes.has_namespace(&namespace).await {
            return InputError::NoNamespace { cluster, namespace };
        }
        let kinds: Vec<String> = kinds.iter().map(Kind::to_string).collect();
        InputError::NoObject { cluster, namespace, kinds: kinds.join(" or "), name }
    }

    /// For who asks here; an error's own words are about the server's rights.
    pub(super) fn in_words(&self, error: &ReadError) -> String {
        match error {
            ReadError::Forbidden { what } if !self.is_servers => {
                format!("Kubernetes forbids you to {what}")
            }
            ReadError::Unreachable { cause } => {
                format!("{} cannot be asked: {cause}", self.called)
            }
            other => other.to_string(),
        }
    }
}
