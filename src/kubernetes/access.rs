//! How Kubernetes is reached.

use std::time::Duration;

use kube::{Client, Config, config::KubeConfigOptions};

/// A network that swallows packets must not take an RPC's patience twice.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one watch lasts, in seconds, before the next takes over from where it ended.
pub(super) const WATCH_SECONDS: u32 = 120;
/// A quiet watch is no failure; a connection that is lost without a word is.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);

/// Whose rights are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The pod's service account.
    Pod,
    /// `KUBECONFIG`, or `~/.kube/config`.
    Kubeconfig {
        /// The current one, if it is left out.
        context: Option<String>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the pod's service account cannot be used; set `automountServiceAccountToken`")]
    Pod(#[source] kube::config::InClusterError),
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    #[error("no client for Kubernetes can be made")]
    Client(#[source] kube::Error),
}

/// Whether this process runs in a pod that has a service account.
pub fn is_in_pod() -> bool {
    Config::incluster_env().is_ok()
}

impl Access {
    /// Asks nobody yet.
    pub(super) async fn client(&self) -> Result<Client, AccessError> {
        let mut config = match self {
            Self::Pod => Config::incluster().map_err(AccessError::Pod)?,
            Self::Kubeconfig { context } => {
                let options = KubeConfigOptions { context: context.clone(), ..Default::default() };
                Config::from_kubeconfig(&options).await.map_err(AccessError::Kubeconfig)?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        // Each wait has an end of its own here.
        config.default_retry = false;
        Client::try_from(config).map_err(AccessError::Client)
    }
}
