//! The server's own account, from the environment or from a directory that is re-read when it
//! changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    Credentials, CredentialsError, Own, Rules,
    agent_ca::CaKeeper,
    keys::{self, Fault},
    own_agent::{AgentConfig, AgentKeeper, AgentText},
    resolver::Ring,
};
use crate::{demand::Account, refresh::Refresher};

/// How often a directory is looked at. Kubernetes takes a minute to project a changed Secret.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Largest file that is read; keys have some forty characters.
const MAX_FILE: u64 = 4_096;
/// As messages name the keys.
const API_KEY: &str = "API key (`DD_API_KEY`, or the file `api_key`)";
const APP_KEY: &str = "application key (`DD_APP_KEY`, or the file `app_key`)";

#[derive(Clone, Debug)]
pub struct Config {
    pub origin: Origin,
    /// In place of `https://api.<site>`.
    pub base_url: Option<Url>,
    pub rules: Rules,
    /// The server's own Cluster Agent.
    pub agent: Option<AgentConfig>,
    /// CAs (PEM) that vouch for Cluster Agents, unless a TriggerAuthentication says so.
    pub agent_ca: Option<AgentText>,
    /// Whether there may be no own account: triggers can bring theirs.
    pub is_optional: bool,
}

/// Where the server's own keys come from.
#[derive(Clone, Debug)]
pub enum Origin {
    Given(Given),
    /// Files `api_key`, `app_key` and, if there is one, `site`.
    Directory(PathBuf),
}

/// As a person gave it: untrimmed, perhaps empty.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub api_key: Option<SecretString>,
    pub app_key: Option<SecretString>,
    pub site: Option<String>,
}

/// Looks after what changes: the directory and the Cluster Agent's files, if there are such.
pub struct Keeper {
    directory: Option<DirectoryKeeper>,
    agent: Option<AgentKeeper>,
    ca: Option<CaKeeper>,
}

struct DirectoryKeeper {
    directory: PathBuf,
    base_url: Option<Url>,
    own: watch::Sender<Option<Own>>,
    ring: Arc<Ring>,
}

/// Reads the credentials once. With a directory, they may yet come or change: run the `Keeper`.
pub async fn load(config: Config) -> Result<(Credentials, Option<Keeper>), CredentialsError> {
    let Config { origin, base_url, mut rules, agent, agent_ca, is_optional } = config;
    let is_optional = is_optional || agent.is_some();
    let (own, directory) = match origin {
        Origin::Given(given) => (account(&given, base_url.as_ref()), None),
        Origin::Directory(directory) => {
            (read(&directory, base_url.as_ref()).await, Some(directory))
        }
    };
    match &own {
        Ok(account) => question_site(account, base_url.as_ref()),
        Err(CredentialsError::None) if is_optional => {}
        Err(error) if directory.is_none() => return Err(error.clone()),
        Err(_) => {}
    }
    let ca = match agent_ca {
        Some(ca) => {
            let (known, keeper) = CaKeeper::start(ca).await?;
            rules.agent_ca = known;
            Some(keeper)
        }
        None => None,
    };
    let agent_account = match &agent {
        Some(config) => config.account().await,
        None => Err(CredentialsError::NoAgent),
    };
    let (own, own_receiver) = watch::channel(Some(own));
    let (own_agent, agent_receiver) = watch::channel(Some(agent_account));
    let ring = Arc::new(Ring::new(own_receiver, agent_receiver));
    let rules = Arc::new(rules);
    let (_, watched) = watch::channel(Some(Ok(Arc::new(Account::of_watch()))));
    let credentials = Credentials { rules, ring: ring.clone(), watched, kubernetes: None };
    let agent = agent.map(|config| AgentKeeper::new(config, own_agent, ring.clone()));
    let directory = directory.map(|directory| DirectoryKeeper { directory, base_url, own, ring });
    let is_needed = directory.is_some() || agent.is_some() || ca.is_some();
    let keeper = is_needed.then_some(Keeper { directory, agent, ca });
    Ok((credentials, keeper))
}

impl Keeper {
    /// Until `shutdown`.
    pub async fn run(self, refresher: Refresher, shutdown: CancellationToken) {
        let directory = async {
            if let Some(keeper) = self.directory {
                keeper.run(refresher.clone(), shutdown.clone()).await;
            }
        };
        let agent = async {
            if let Some(keeper) = self.agent {
                keeper.run(refresher.clone(), shutdown.clone()).await;
            }
        };
        let ca = async {
            if let Some(keeper) = self.ca {
                keeper.run(shutdown.clone()).await;
            }
        };
        tokio::join!(directory, agent, ca);
    }
}

impl DirectoryKeeper {
    /// Re-reads the directory until `shutdown`, and takes over what two looks in a row agree on:
    /// files may be written one after the other. What is known with the old keys is carried over
    /// to the new ones; keys that cannot be read leave the old ones in use.
    async fn run(self, refresher: Refresher, shutdown: CancellationToken) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complaint = self.now().err();
        if let Some(error) = &complaint {
            tracing::warn!(%error, "there are no credentials yet; the directory is looked at again");
        }
        let mut candidate = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
            }
            match read(&self.directory, self.base_url.as_ref()).await {
                Ok(account) => {
                    if complaint.take().is_some() {
                        tracing::info!(host = account.host(), "the credentials can be read again");
                    }
                    if candidate.as_ref() == Some(&account) {
                        self.adopt(&account, &refresher);
                    }
                    candidate = Some(account);
                }
                Err(error) => {
                    candidate = None;
                    if complaint.as_ref() != Some(&error) {
                        self.complain(&error);
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
        tracing::info!(host = account.host(), "new credentials are in use");
        question_site(account, self.base_url.as_ref());
        drop(self.own.send_replace(Some(Ok(account.clone()))));
        refresher.readmit(account);
        if let Ok(old) = before {
            self.ring.succeed(refresher, &old, account);
        }
    }

    fn complain(&self, error: &CredentialsError) {
        if self.now().is_ok() {
            tracing::warn!(%error, "the credentials cannot be re-read; the last ones stay in use");
        } else {
            tracing::warn!(%error, "there are no credentials yet; the directory is looked at again");
            drop(self.own.send_replace(Some(Err(error.clone()))));
        }
    }

    fn now(&self) -> Own {
        self.own.borrow().clone().unwrap_or(Err(CredentialsError::None))
    }
}

async fn read(directory: &Path, base_url: Option<&Url>) -> Own {
    let file = async |name: &str| {
        let path = directory.join(name);
        read_file(&path).await.map_err(|cause| CredentialsError::File {
            path: path.display().to_string(),
            cause: cause.to_string(),
        })
    };
    let given = Given {
        api_key: file("api_key").await?.map(Into::into),
        app_key: file("app_key").await?.map(Into::into),
        site: file("site").await?,
    };
    match account(&given, base_url) {
        Err(CredentialsError::None) => Err(CredentialsError::File {
            path: directory.display().to_string(),
            cause: if directory.is_dir() {
                "the files `api_key` and `app_key` are missing or empty".to_owned()
            } else {
                "there is no such directory".to_owned()
            },
        }),
        other => other,
    }
}

/// `None` if there is none. Never waits: a pipe in its place is refused.
async fn read_file(path: &Path) -> io::Result<Option<String>> {
    let metadata = match tokio::fs::metadata(path).await {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is not a file with a key"));
    }
    tokio::fs::read_to_string(path).await.map(Some)
}

fn account(given: &Given, base_url: Option<&Url>) -> Own {
    let keys = keys::keys(given.api_key.as_ref(), given.app_key.as_ref());
    let keys = keys.map_err(|fault| match fault {
        Fault::Neither => CredentialsError::None,
        Fault::NoApi => CredentialsError::Half { missing: API_KEY },
        Fault::NoApp => CredentialsError::Half { missing: APP_KEY },
        Fault::OddApi => CredentialsError::NotAKey { which: API_KEY },
        Fault::OddApp => CredentialsError::NotAKey { which: APP_KEY },
    })?;
    let pasted = given.site.as_deref().unwrap_or_default();
    let odd = || CredentialsError::Site { site: pasted.trim().to_owned() };
    let base_url = match base_url {
        Some(base_url) => base_url.clone(),
        None => keys::site(pasted).and_then(|site| keys::api_of(&site)).ok_or_else(odd)?,
    };
    Ok(Arc::new(Account::new(base_url, keys)))
}

fn question_site(account: &Account, base_url: Option<&Url>) {
    let host = account.host();
    let is_known = host.strip_prefix("api.").is_some_and(keys::is_known);
    if base_url.is_none() && !is_known {
        tracing::warn!(host, "this is not a site that Datadog documents; it is used as given");
    }
}
