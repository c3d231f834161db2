//! The server's own Cluster Agent: its address is a flag, its token and CA are usually files that are
//! re-read, since Kubernetes replaces a pod's token each hour.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{CredentialsError, Own, agent::token, resolver::Ring};
use crate::{
    demand::{Account, Trust},
    http,
    refresh::Refresher,
};

/// Largest file that is read: a token has some 1,200 characters, a bundle of CAs some 200,000.
const MAX_FILE: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// What comes before `/apis`.
    pub url: Url,
    pub token: AgentText,
    /// The certificates (PEM) that alone vouch for it.
    pub ca: Option<AgentText>,
    /// What is on its certificate in place of the URL's host; only with a CA.
    pub server_name: Option<Arc<str>>,
    /// Whether anybody's certificate will do.
    pub is_unsafe: bool,
    /// How often the files are looked at.
    pub look_every: Duration,
}

#[derive(Clone, Debug)]
pub enum AgentText {
    Given(SecretString),
    File(PathBuf),
}

/// Looks after the files.
pub(super) struct AgentKeeper {
    config: AgentConfig,
    own: watch::Sender<Option<Own>>,
    ring: Arc<Ring>,
}

impl AgentKeeper {
    pub(super) fn new(
        config: AgentConfig,
        own: watch::Sender<Option<Own>>,
        ring: Arc<Ring>,
    ) -> Self {
        if config.is_unsafe {
            let host = config.url.host_str().unwrap_or_default();
            tracing::warn!(
                host,
                "the Cluster Agent's certificate is not verified (`--cluster-agent-unsafe-ssl`)"
            );
        }
        let keeper = Self { config, own, ring };
        if let Err(error) = keeper.now() {
            tracing::warn!(%error, "there is no Cluster Agent yet; its files are looked at again");
        }
        keeper
    }

    /// Until `shutdown`. Files that cannot be read leave the last token in use.
    pub(super) async fn run(self, refresher: Refresher, shutdown: CancellationToken) {
        let mut look = interval(self.config.look_every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complaint = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
            }
            match self.config.account().await {
                Ok(account) => {
                    complaint = None;
                    self.adopt(&account, &refresher);
                }
                Err(error) => {
                    let is_news = complaint.as_ref() != Some(&error);
                    if is_news && self.now().is_ok() {
                        tracing::warn!(%error, "the Cluster Agent's last token stays in use");
                    } else if is_news {
                        drop(self.own.send_replace(Some(Err(error.clone()))));
                    }
                    complaint = Some(error);
                }
            }
        }
    }

    fn adopt(&self, account: &Arc<Account>, refresher: &Refresher) {
        let before = self.now();
        if before.as_ref().is_ok_and(|old| old == account) {
            return;
        }
        tracing::info!(host = account.host(), "the Cluster Agent's new token is in use");
        refresher.readmit(account);
        drop(self.own.send_replace(Some(Ok(account.clone()))));
        if let Ok(old) = before {
            self.ring.succeed(refresher, &old, account);
        }
    }

    fn now(&self) -> Own {
        self.own.borrow().clone().unwrap_or(Err(CredentialsError::NoAgent))
    }
}

impl AgentConfig {
    /// By what is given, and what is in the files now.
    pub(crate) async fn account(&self) -> Own {
        let text = self.token.read().await?;
        let cause = "it is empty, or holds a character that no token has";
        let token = token(text.expose_secret()).ok_or_else(|| self.token.fails(cause))?;
        let trust = match (&self.ca, self.server_name.clone()) {
            _ if self.is_unsafe => Trust::Anybody,
            (Some(ca), Some(name)) => Trust::AuthoritiesFor { name, pem: ca.authorities().await? },
            (Some(ca), None) => Trust::Authorities(ca.authorities().await?),
            (None, _) => Trust::System,
        };
        Ok(Arc::new(Account::of_agent(self.url.clone(), token, trust)))
    }
}

impl AgentText {
    async fn read(&self) -> Result<SecretString, CredentialsError> {
        match self {
            Self::Given(text) => Ok(text.clone()),
            Self::File(path) => Ok(file(path).await?.into()),
        }
    }

    /// Certificates in PEM.
    pub(crate) async fn authorities(&self) -> Result<Arc<str>, CredentialsError> {
        let pem = self.read().await?;
        if !http::has_certificates(pem.expose_secret()) {
            return Err(self.fails("it holds no certificates (PEM)"));
        }
        Ok(pem.expose_secret().into())
    }

    fn fails(&self, cause: &str) -> CredentialsError {
        CredentialsError::AgentFile { path: self.to_string(), cause: cause.to_owned() }
    }
}

impl fmt::Display for AgentText {
    /// Where it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("that was given"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Never waits: a pipe in its place is refused.
async fn file(path: &PathBuf) -> Result<String, CredentialsError> {
    let fails =
        |cause: String| CredentialsError::AgentFile { path: path.display().to_string(), cause };
    let metadata = tokio::fs::metadata(path).await.map_err(|error| fails(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(fails("it is no file of that kind".to_owned()));
    }
    tokio::fs::read_to_string(path).await.map_err(|error| fails(error.to_string()))
}
