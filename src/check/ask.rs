//! Whom `check` asks: what was said of that, and what comes of it.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::{
    Follow, Tls,
    agent::Agents,
    keys::Asked,
    reading::{Asking, Own},
    through::Pool,
    watch::Watched,
};
use crate::{
    credentials::{self, CredentialsError, Origin},
    http,
    metrics::Metrics,
    source::{self, Sources, cluster_agent::ClusterAgent, datadog::Datadog},
};

/// Whom to ask for a reading.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Only what can be told without.
    Nobody,
    /// Or a Cluster Agent, as each trigger says.
    Datadog {
        credentials: Box<credentials::Config>,
        http: http::Config,
        /// Cluster Agents that are reached by another way.
        forwards: Vec<http::Forward>,
        /// Whether this is a pod of the Kubernetes that the triggers are of.
        is_in_pod: bool,
        /// Whether queries are read together and alone, in place of explaining each trigger.
        compares: bool,
    },
    /// A running scaler.
    Scaler {
        /// Host and port.
        address: String,
        tls: Tls,
        follow: Option<Follow>,
    },
}

impl Ask {
    pub(super) fn compares(&self) -> bool {
        matches!(self, Self::Datadog { compares: true, .. })
    }

    /// Who vouches for Cluster Agents, unless a TriggerAuthentication says so.
    pub(super) async fn agent_ca(&self) -> Result<Option<Arc<str>>, CredentialsError> {
        let Self::Datadog { credentials, .. } = self else { return Ok(None) };
        match &credentials.agent_ca {
            Some(ca) => ca.authorities().await.map(Some),
            None => Ok(None),
        }
    }
}

/// Who answers.
pub(super) enum Respondent<S> {
    Nobody,
    Datadog(Asking<S>),
    Scaler { pool: Pool, follow: Option<Follow>, watched: Vec<Watched> },
}

impl Respondent<Sources> {
    pub(super) async fn new(ask: &Ask) -> anyhow::Result<Self> {
        ask.agent_ca().await?;
        Ok(match ask.clone() {
            Ask::Nobody => Self::Nobody,
            Ask::Datadog { mut credentials, http, forwards, is_in_pod, compares: _ } => {
                let metrics = Arc::new(Metrics::new());
                let agent = ClusterAgent::new(http.request_timeout, metrics.clone());
                let source = Sources {
                    datadog: Datadog::new(http::Client::new(&http)?, metrics),
                    cluster_agent: agent.forwarded(forwards.clone()),
                    // It is read by itself.
                    watched: source::watched::Watched::new(None),
                };
                let own = Own::agent(&mut credentials).await;
                let source_of_agents = credentials.rules.agent_source;
                let agents = Agents { own, forwards, is_in_pod, source: source_of_agents };
                let from = match &credentials.origin {
                    Origin::Given(_) => "the environment".to_owned(),
                    Origin::Directory(directory) => directory.display().to_string(),
                };
                let account = match credentials::load(*credentials).await {
                    Ok((credentials, _)) => credentials.own(),
                    Err(error) => Err(error),
                };
                Self::Datadog(Asking::new(source, Own { account, from }, agents))
            }
            Ask::Scaler { address, tls, follow } => {
                let pool = spawn_blocking(move || Pool::new(address, &tls))
                    .await
                    .context("reading the certificates panicked")??;
                Self::Scaler { pool, follow, watched: Vec::new() }
            }
        })
    }
}

impl<S> Respondent<S> {
    pub(super) fn is_followed(&self) -> bool {
        matches!(self, Self::Scaler { follow: Some(_), .. })
    }

    pub(super) fn asked(&self) -> Asked {
        match self {
            Self::Nobody => Asked::Nobody,
            Self::Datadog(_) => Asked::Datadog,
            Self::Scaler { .. } => Asked::Scaler,
        }
    }
}
