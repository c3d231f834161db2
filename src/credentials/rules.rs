//! Whose keys may be used for what: what an administrator decides.

use std::{sync::Arc, time::Duration};

use super::{AgentCa, CredentialsError, Pattern};
use crate::words::shorten;

/// What an administrator decides over credentials.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The namespaces whose triggers may use the server's own account.
    pub own_namespaces: Vec<Pattern>,
    /// Sites beside Datadog's own that a TriggerAuthentication may name.
    pub sites: Vec<Pattern>,
    /// Where the Secrets of a ClusterTriggerAuthentication live (KEDA's
    /// `KEDA_CLUSTER_OBJECT_NAMESPACE`).
    pub keda_namespace: Arc<str>,
    /// Whether Secrets are read there only (KEDA's `KEDA_RESTRICT_SECRET_ACCESS`).
    pub restricts_secrets: bool,
    /// How long keys that have vanished are used on.
    pub hold: Duration,
    /// The namespaces whose `DatadogMetric`s all may read by the watch, or with the server's own
    /// token; others are for the triggers of their namespace.
    pub agent_namespaces: Vec<Pattern>,
    /// Who vouches for Cluster Agents, unless a TriggerAuthentication says so.
    pub agent_ca: AgentCa,
    pub agent_source: AgentSource,
}

/// How `DatadogMetric`s are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentSource {
    /// By the watch where that tells of them, and else from a Cluster Agent.
    #[default]
    Auto,
    /// By the watch of Kubernetes alone.
    Crd,
    /// From a Cluster Agent alone.
    Http,
}

/// Most characters of a name that a message repeats.
const MAX_SHOWN: usize = 253;

impl Default for Rules {
    /// Everybody may use the server's own account; the rest is as in KEDA.
    fn default() -> Self {
        Self {
            own_namespaces: vec![Pattern::any()],
            sites: Vec::new(),
            keda_namespace: "keda".into(),
            restricts_secrets: false,
            hold: Duration::from_mins(1),
            agent_namespaces: Vec::new(),
            agent_ca: AgentCa::from(None),
            agent_source: AgentSource::default(),
        }
    }
}

impl Rules {
    /// Whether triggers of this namespace may use the server's own account.
    pub fn allow_own(&self, namespace: &str) -> Result<(), CredentialsError> {
        if self.own_namespaces.iter().any(|pattern| pattern.matches(namespace)) {
            return Ok(());
        }
        Err(CredentialsError::NotOwn { namespace: namespace.into() })
    }

    /// Whether triggers of `namespace` may read the `DatadogMetric`s of another by the watch, or with
    /// the server's own token: both may read them all.
    pub fn allow_metric(&self, namespace: &str, of: &str) -> Result<(), CredentialsError> {
        let of = of.to_lowercase();
        let is_allowed =
            namespace == of || self.agent_namespaces.iter().any(|pattern| pattern.matches(&of));
        if is_allowed {
            return Ok(());
        }
        Err(CredentialsError::NotOwnMetric {
            namespace: namespace.into(),
            of: shorten(&of, MAX_SHOWN).into(),
        })
    }

    /// Whether a trigger of `namespace` reads the `DatadogMetric`s of another, or its own, by the
    /// watch, if that tells of them. An error if there is no other way.
    pub fn may_watch(
        &self,
        namespace: &str,
        of: &str,
        has_token: bool,
    ) -> Result<bool, CredentialsError> {
        let may = self.allow_metric(namespace, of);
        match self.agent_source {
            AgentSource::Http => Ok(false),
            AgentSource::Crd => may.map(|()| true),
            // What a token may read of other namespaces, the Cluster Agent says.
            AgentSource::Auto if has_token && namespace != of.to_lowercase() => Ok(false),
            AgentSource::Auto => Ok(may.is_ok()),
        }
    }
}
