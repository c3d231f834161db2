//! How Kubernetes is reached.

use std::{error::Error, io, net::IpAddr, time::Duration};

use hyper_util::client::proxy::matcher::Matcher;
use kube::{
    Client, Config,
    client::AuthError,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

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
    #[error("the kubeconfig cannot be used: {cause}")]
    Kubeconfig { cause: String },
    #[error("no client for Kubernetes can be made: {cause}")]
    Client { cause: String },
}

/// Whether this process runs in a pod that has a service account.
pub fn is_in_pod() -> bool {
    Config::incluster_env().is_ok()
}

impl Access {
    /// Asks nobody yet. With the client, where the API server is.
    pub(super) async fn client(&self) -> Result<(Client, String), AccessError> {
        let mut config = match self {
            Self::Pod => Config::incluster().map_err(AccessError::Pod)?,
            Self::Kubeconfig { context } => {
                let config = of_kubeconfig(context.clone()).await;
                config.map_err(|error| AccessError::Kubeconfig { cause: in_words(error) })?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        // Each wait has an end of its own here.
        config.default_retry = false;
        let url = &config.cluster_url;
        let host = url.host().unwrap_or_default();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let server = format!("{host}{port}{}", url.path().trim_end_matches('/'));
        let client = Client::try_from(config);
        let client = client.map_err(|error| AccessError::Client { cause: cause(&error) })?;
        Ok((client, server))
    }
}

async fn of_kubeconfig(context: Option<String>) -> Result<Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read()?;
    let names_proxy = names_proxy(&kubeconfig, context.as_ref()) == Some(true);
    let options = KubeConfigOptions { context, ..Default::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // kube takes that of the environment for every server. kubectl does not.
    let url = &config.cluster_url;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if !names_proxy && (is_here || Matcher::from_env().intercept(url).is_none()) {
        config.proxy_url = None;
    }
    Ok(config)
}

/// Whether the kubeconfig itself has a proxy for the cluster; `None` if it has no such cluster.
fn names_proxy(kubeconfig: &Kubeconfig, context: Option<&String>) -> Option<bool> {
    let context = context.or(kubeconfig.current_context.as_ref())?;
    let context = kubeconfig.contexts.iter().find(|it| it.name == *context)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|it| it.name == context.cluster)?;
    let proxy = cluster.cluster.as_ref()?.proxy_url.as_ref();
    Some(proxy.is_some_and(|proxy| !proxy.is_empty()))
}

/// Without what stands in the file, which may be a key.
fn in_words(error: KubeconfigError) -> String {
    match error {
        KubeconfigError::FindPath => "there is none; set `KUBECONFIG`".to_owned(),
        KubeconfigError::ReadConfig(error, path) if error.kind() == io::ErrorKind::NotFound => {
            format!("there is no {}; set `KUBECONFIG`", path.display())
        }
        KubeconfigError::ReadConfig(error, path) => format!("{}: {error}", path.display()),
        KubeconfigError::Parse(_) => "it is not the YAML of a kubeconfig".to_owned(),
        KubeconfigError::CurrentContextNotSet => {
            "it has no current context; choose one with `kubectl config use-context`".to_owned()
        }
        KubeconfigError::LoadContext(name) => format!("it has no context \"{name}\""),
        KubeconfigError::LoadClusterOfContext(name) => format!("it has no cluster \"{name}\""),
        other => other.to_string(),
    }
}

/// The innermost cause is the one that helps ("Connection refused"); without what a command has
/// printed, which may be a key, and without a proxy's URL, which may have a password.
pub(super) fn cause(error: &kube::Error) -> String {
    if let kube::Error::ProxyProtocolUnsupported { .. }
    | kube::Error::ProxyProtocolDisabled { .. } = error
    {
        return "the proxy must be given as `http://…` or `https://…`".to_owned();
    }
    let mut innermost: &dyn Error = error;
    loop {
        match innermost.downcast_ref() {
            Some(AuthError::AuthExecStart(error)) => {
                return format!("the kubeconfig's command for credentials cannot be run: {error}");
            }
            Some(AuthError::AuthExecRun { out, .. }) => {
                let status = out.status;
                return format!("the kubeconfig's command for credentials failed ({status})");
            }
            Some(AuthError::AuthExecParse(_)) => {
                return "the kubeconfig's command for credentials printed something else"
                    .to_owned();
            }
            _ => {}
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => return innermost.to_string(),
        }
    }
}
