//! Which keys a trigger may use. Today there is one account: the server's own, from the
//! environment or from a directory that is re-read when it changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    demand::{Account, Keys},
    refresh::Refresher,
};

/// How often a directory is looked at. Kubernetes takes a minute to project a changed Secret.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Largest file that is read; keys have some forty characters.
const MAX_FILE: u64 = 4_096;
/// As messages name the keys.
const API_KEY: &str = "API key (`DD_API_KEY`, or the file `api_key`)";
const APP_KEY: &str = "application key (`DD_APP_KEY`, or the file `app_key`)";
const DEFAULT_SITE: &str = "datadoghq.com";
/// <https://docs.datadoghq.com/getting_started/site/>
const SITES: [&str; 9] = [
    DEFAULT_SITE,
    "us3.datadoghq.com",
    "us5.datadoghq.com",
    "datadoghq.eu",
    "ap1.datadoghq.com",
    "ap2.datadoghq.com",
    "uk1.datadoghq.com",
    "ddog-gov.com",
    "us2.ddog-gov.com",
];

#[derive(Clone, Debug)]
pub struct Config {
    pub origin: Origin,
    /// In place of `https://api.<site>`.
    pub base_url: Option<Url>,
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

/// Answers with the account to use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Credentials {
    own: watch::Receiver<Own>,
}

type Own = Result<Arc<Account>, CredentialsError>;

/// Looks after the directory, if there is one.
pub struct Keeper {
    directory: PathBuf,
    base_url: Option<Url>,
    own: watch::Sender<Own>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    #[error("there are no Datadog keys; set `DD_API_KEY` and `DD_APP_KEY`, or `--credentials-dir`")]
    None,
    #[error(
        "the {missing} is missing; both keys are needed, unless the application key is an access \
         token (`ddpat_`, `ddsat_`)"
    )]
    Half { missing: &'static str },
    #[error("the {which} holds a character that no key has; was something else pasted?")]
    NotAKey { which: &'static str },
    #[error(
        "the site is \"{site}\", but must be one such as `datadoghq.com` or `us5.datadoghq.com`"
    )]
    Site { site: String },
    #[error("the credentials in {path} cannot be read: {cause}")]
    File { path: String, cause: String },
}

/// Reads the credentials once. With a directory, they may yet come or change: run the `Keeper`.
pub async fn load(config: Config) -> Result<(Credentials, Option<Keeper>), CredentialsError> {
    match config.origin {
        Origin::Given(given) => {
            let account = account(&given, config.base_url.as_ref())?;
            question_site(&account, config.base_url.as_ref());
            let (_, own) = watch::channel(Ok(account));
            Ok((Credentials { own }, None))
        }
        Origin::Directory(directory) => {
            let account = read(&directory, config.base_url.as_ref()).await;
            if let Ok(account) = &account {
                question_site(account, config.base_url.as_ref());
            }
            let (sender, own) = watch::channel(account);
            let keeper = Keeper { directory, base_url: config.base_url, own: sender };
            Ok((Credentials { own }, Some(keeper)))
        }
    }
}

impl Credentials {
    /// The server's own account.
    pub fn own(&self) -> Result<Arc<Account>, CredentialsError> {
        self.own.borrow().clone()
    }

    /// Ends when the own account changes; never, if it cannot.
    pub async fn changed(&mut self) {
        if self.own.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Keeper {
    /// Re-reads the directory until `shutdown`, and takes over what two looks in a row agree on:
    /// files may be written one after the other. What is known with the old keys is carried over
    /// to the new ones; keys that cannot be read leave the old ones in use.
    pub async fn run(self, refresher: Refresher, shutdown: CancellationToken) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complaint = self.own.borrow().as_ref().err().cloned();
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
        let before = self.own.borrow().clone();
        if before.as_ref().is_ok_and(|old| old == account) {
            return;
        }
        tracing::info!(host = account.host(), "new credentials are in use");
        question_site(account, self.base_url.as_ref());
        drop(self.own.send_replace(Ok(account.clone())));
        if let Ok(old) = before {
            refresher.replace(&old, account);
        }
    }

    fn complain(&self, error: &CredentialsError) {
        let has_last = self.own.borrow().is_ok();
        if has_last {
            tracing::warn!(%error, "the credentials cannot be re-read; the last ones stay in use");
        } else {
            tracing::warn!(%error, "there are no credentials yet; the directory is looked at again");
            drop(self.own.send_replace(Err(error.clone())));
        }
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
    let api = key(API_KEY, given.api_key.as_ref())?;
    let app = key(APP_KEY, given.app_key.as_ref())?;
    let keys = match (api, app) {
        (Some(api), Some(app)) => Keys::Pair { api, app },
        (None, Some(app)) if is_token(&app) => Keys::Bearer(app),
        (None, Some(_)) => return Err(CredentialsError::Half { missing: API_KEY }),
        (Some(_), None) => return Err(CredentialsError::Half { missing: APP_KEY }),
        (None, None) => return Err(CredentialsError::None),
    };
    let base_url = match base_url {
        Some(base_url) => base_url.clone(),
        None => api_of(given.site.as_deref().unwrap_or_default())?,
    };
    Ok(Arc::new(Account::new(base_url, keys)))
}

/// Trimmed, and `None` if nothing is left. Secrets often end in a line break.
fn key(
    which: &'static str,
    secret: Option<&SecretString>,
) -> Result<Option<SecretString>, CredentialsError> {
    let Some(text) = secret.map(|secret| secret.expose_secret().trim()) else { return Ok(None) };
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(CredentialsError::NotAKey { which });
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

fn is_token(app_key: &SecretString) -> bool {
    let key = app_key.expose_secret();
    key.starts_with("ddpat_") || key.starts_with("ddsat_")
}

/// `https://api.<site>`. Understands what people paste: `app.datadoghq.eu`, `https://us5.…/`.
fn api_of(site: &str) -> Result<Url, CredentialsError> {
    let trimmed = site.trim().to_lowercase();
    let host = trimmed.split_once("://").map_or(&*trimmed, |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or_default().trim_end_matches('.');
    let host = host.strip_prefix("app.").or_else(|| host.strip_prefix("api.")).unwrap_or(host);
    let host = if host.is_empty() && trimmed.is_empty() { DEFAULT_SITE } else { host };

    let invalid = || CredentialsError::Site { site: site.trim().to_owned() };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if !host.contains('.') || !host.split('.').all(label) {
        return Err(invalid());
    }
    format!("https://api.{host}").parse().map_err(|_| invalid())
}

fn question_site(account: &Account, base_url: Option<&Url>) {
    let host = account.host();
    let is_known = SITES.iter().any(|site| host.strip_prefix("api.") == Some(site));
    if base_url.is_none() && !is_known {
        tracing::warn!(host, "this is not a site that Datadog documents; it is used as given");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_site(site: &str, expected: Option<&str>) {
        let url = api_of(site).ok().map(|url| url.to_string());
        assert_eq!(url.as_deref(), expected, "{site}");
    }

    #[test]
    fn a_pasted_site_is_understood() {
        check_site("", Some("https://api.datadoghq.com/"));
        check_site(" datadoghq.eu\n", Some("https://api.datadoghq.eu/"));
        check_site("app.datadoghq.eu", Some("https://api.datadoghq.eu/"));
        check_site(
            "https://us5.datadoghq.com/dashboard/lists?x",
            Some("https://api.us5.datadoghq.com/"),
        );
        check_site("https://API.ap2.datadoghq.com", Some("https://api.ap2.datadoghq.com/"));
        check_site("us2.ddog-gov.com", Some("https://api.us2.ddog-gov.com/"));
        for odd in
            ["eu", "https://", "user@evil.com", "a..b", "data dog.com", "evil.com:99", "-a.com"]
        {
            check_site(odd, None);
        }
    }

    fn given(api: &str, app: &str) -> Own {
        let given = Given { api_key: Some(api.into()), app_key: Some(app.into()), site: None };
        account(&given, None)
    }

    #[test]
    fn white_space_around_keys_is_no_part_of_them() {
        assert_eq!(given(" a\n", "b\r\n"), given("a", "b"));
    }

    #[test]
    fn an_access_token_travels_alone() {
        assert!(matches!(given("", "ddpat_x").unwrap().keys(), Keys::Bearer(_)));
        assert!(matches!(given("", "ddsat_x").unwrap().keys(), Keys::Bearer(_)));
        assert!(matches!(given("a", "ddpat_x").unwrap().keys(), Keys::Pair { .. }));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(given("", "b"), Err(CredentialsError::Half { missing: API_KEY }));
        assert_eq!(given("a", " "), Err(CredentialsError::Half { missing: APP_KEY }));
        assert_eq!(given("", ""), Err(CredentialsError::None));
        assert_eq!(given("a b", "c"), Err(CredentialsError::NotAKey { which: API_KEY }));
    }
}
