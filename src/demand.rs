//! The vocabulary: what is asked of Datadog or a Cluster Agent, with whose keys, and what came back.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use url::Url;

/// What a Cluster Agent's names of `DatadogMetric`s begin with.
const METRIC: &str = "datadogmetric@";

/// A query and the account it is read with: the unit that is fetched, kept and refreshed.
/// Triggers with equal demands share one reading.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    pub account: Arc<Account>,
    pub query: Query,
}

/// One value of a trigger's `query` key, and the time it looks at; or the name that a Cluster Agent
/// has for a `DatadogMetric`, which knows its time by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// As written, but for white space around it: never prefixed or normalised.
    pub text: Arc<str>,
    pub window: Window,
}

/// The span `[now − offset − age, now − offset]`, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub age: u64,
    pub offset: u64,
}

/// Where to ask and as whom. Two accounts with the same address and keys are the same,
/// whatever named them.
pub struct Account {
    base_url: Url,
    keys: Keys,
    way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Way {
    Api,
    Agent(Trust),
    /// Nobody is asked: a watch has told it.
    Watch,
}

/// Whose answers an account gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    DatadogApi,
    ClusterAgent,
}

/// Who has to vouch for a Cluster Agent's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// The authorities that the system trusts.
    System,
    /// These alone: certificates in PEM.
    Authorities(Arc<str>),
    /// The same, for this name in place of the agent's host.
    AuthoritiesFor { name: Arc<str>, pem: Arc<str> },
    /// Nobody (`unsafeSsl`): whoever answers there gets the token.
    Anybody,
}

/// What authenticates a request. `Debug` shows which kind it is and nothing else.
#[derive(Clone)]
pub enum Keys {
    /// `DD-API-KEY` and `DD-APPLICATION-KEY`.
    Pair { api: SecretString, app: SecretString },
    /// A personal (`ddpat_`) or service (`ddsat_`) access token, which needs no API key:
    /// <https://docs.datadoghq.com/account_management/personal-access-tokens/>.
    Bearer(SecretString),
    /// Where nobody is asked.
    None,
}

/// What Datadog answered to one demand. An answer without a single point is a reading
/// too: it says that there is no data.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub series: Box<[Series]>,
    /// End of the window that was asked for, in milliseconds since the Unix epoch.
    pub window_end_ms: i64,
    /// When the answer had come in.
    pub taken_at: Instant,
}

/// One line of a graph: a query, or one group of a `by {tag}` query.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Datadog's own spelling of the tags, `*` or `env:prod,host:a`.
    pub scope: Box<str>,
    /// Width of a point's bucket, where it can be told.
    pub step: Option<Duration>,
    /// Points without a value, which are left out of `points`.
    pub nulls: usize,
    /// Oldest first; only points that have a value, and that value is finite.
    pub points: Box<[Point]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Start of the bucket, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub value: f64,
}

impl Query {
    /// A `DatadogMetric`, by the name that its Cluster Agent has for it.
    pub fn of_metric(namespace: &str, name: &str) -> Self {
        let text = format!("{METRIC}{namespace}:{name}").to_lowercase().into();
        Self { text, window: Window { age: 0, offset: 0 } }
    }

    /// Namespace and name, if it is a `DatadogMetric`.
    pub fn metric(&self) -> Option<(&str, &str)> {
        self.text.strip_prefix(METRIC)?.split_once(':')
    }
}

impl Account {
    /// `base_url` is what comes before `/api/v1`, such as `https://api.datadoghq.eu`.
    pub fn new(base_url: Url, keys: Keys) -> Self {
        Self { base_url, keys, way: Way::Api }
    }

    /// Of a Cluster Agent. `base_url` is what comes before `/apis`.
    pub fn of_agent(base_url: Url, token: SecretString, trust: Trust) -> Self {
        Self { base_url, keys: Keys::Bearer(token), way: Way::Agent(trust) }
    }

    /// Of all that a watch of `DatadogMetric`s tells: what the Cluster Agent wrote into them.
    pub fn of_watch() -> Self {
        let base_url = Url::parse("watch://kubernetes").expect("it is a URL");
        Self { base_url, keys: Keys::None, way: Way::Watch }
    }

    pub fn service(&self) -> Service {
        match self.way {
            Way::Api => Service::DatadogApi,
            Way::Agent(_) | Way::Watch => Service::ClusterAgent,
        }
    }

    /// Whether nobody is asked, since a watch has told it.
    pub fn is_watched(&self) -> bool {
        self.way == Way::Watch
    }

    /// Of a Cluster Agent that is asked.
    pub fn trust(&self) -> Option<&Trust> {
        match &self.way {
            Way::Agent(trust) => Some(trust),
            Way::Api | Way::Watch => None,
        }
    }

    /// Whether its queries travel together, and requests are counted against a limit. A Cluster
    /// Agent has neither: it answers each by itself, from its memory.
    pub fn is_metered(&self) -> bool {
        self.service() == Service::DatadogApi
    }

    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Host and, unless it is the scheme's own, port: what messages name the account by.
    pub fn host(&self) -> String {
        let host = self.base_url.host_str().unwrap_or_default();
        match self.base_url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Datadog may quote a key back in an error; the text is not passed on with it. What is
    /// too short to be a key (Datadog's have 32 characters and more) may be any word.
    pub fn redact(&self, text: &str) -> String {
        const SHORTEST: usize = 8;
        self.keys
            .secrets()
            .into_iter()
            .filter(|secret| secret.len() >= SHORTEST)
            .fold(text.to_owned(), |text, secret| text.replace(secret, "[redacted]"))
    }
}

impl Keys {
    fn secrets(&self) -> [&str; 2] {
        match self {
            Keys::Pair { api, app } => [api.expose_secret(), app.expose_secret()],
            Keys::Bearer(token) => [token.expose_secret(), ""],
            Keys::None => ["", ""],
        }
    }
}

impl Reading {
    /// Points of the longest series: a trigger that looks further back finds nothing.
    pub fn depth(&self) -> usize {
        self.series.iter().map(|series| series.points.len()).max().unwrap_or(0)
    }

    /// The same, without the bucket that is still filling.
    pub fn depth_of_full_buckets(&self) -> usize {
        let full = self.series.iter().map(|series| series.full_buckets(self.window_end_ms).len());
        full.max().unwrap_or(0)
    }
}

impl Series {
    /// The points whose bucket had ended by `window_end_ms`. All of them if nobody can tell the
    /// buckets' width.
    pub fn full_buckets(&self, window_end_ms: i64) -> &[Point] {
        let Some(step) = self.step else { return &self.points };
        let step_ms = i64::try_from(step.as_millis()).unwrap_or(i64::MAX);
        let full = |point: &Point| point.at_ms.saturating_add(step_ms) <= window_end_ms;
        &self.points[..self.points.partition_point(full)]
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.base_url == other.base_url
            && self.keys.secrets() == other.keys.secrets()
            && self.way == other.way
    }
}

impl Eq for Account {}

impl Hash for Account {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.base_url.hash(state);
        self.keys.secrets().hash(state);
        self.way.hash(state);
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("host", &self.host())
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keys::Pair { .. } => "Pair([redacted])",
            Keys::Bearer(_) => "Bearer([redacted])",
            Keys::None => "None",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(url: &str, api: &str) -> Account {
        let keys = Keys::Pair { api: api.into(), app: "the-app-key".into() };
        Account::new(url.parse().unwrap(), keys)
    }

    #[test]
    fn accounts_are_equal_by_address_and_keys() {
        assert_eq!(
            account("https://api.datadoghq.eu", "a"),
            account("https://api.datadoghq.eu/", "a")
        );
        assert_ne!(
            account("https://api.datadoghq.eu", "a"),
            account("https://api.datadoghq.com", "a")
        );
        assert_ne!(
            account("https://api.datadoghq.eu", "a"),
            account("https://api.datadoghq.eu", "b")
        );
    }

    #[test]
    fn an_agent_is_another_account_for_each_way_of_trusting_it() {
        let agent =
            |trust| Account::of_agent("https://a.dd.svc:8443".parse().unwrap(), "t".into(), trust);
        assert_eq!(agent(Trust::System), agent(Trust::System));
        assert_ne!(agent(Trust::System), agent(Trust::Anybody));
        assert_ne!(agent(Trust::Authorities("a".into())), agent(Trust::Authorities("b".into())));
        let api = Account::new("https://a.dd.svc:8443".parse().unwrap(), Keys::Bearer("t".into()));
        assert_ne!(agent(Trust::System), api);
    }

    #[test]
    fn a_metric_has_one_name_however_it_is_written() {
        let query = Query::of_metric("Shop", "Orders");
        assert_eq!(&*query.text, "datadogmetric@shop:orders");
        assert_eq!(query.metric(), Some(("shop", "orders")));
        let text = "avg:a{*}".into();
        assert_eq!(Query { text, window: query.window }.metric(), None);
    }

    #[test]
    fn debug_output_has_no_key() {
        let shown = format!("{:?}", account("https://api.datadoghq.eu", "the-api-key"));
        assert!(shown.contains("api.datadoghq.eu"));
        assert!(!shown.contains("the-"), "{shown}");
    }

    #[test]
    fn a_key_that_is_quoted_back_is_redacted() {
        let account = account("https://api.datadoghq.eu", "the-api-key");
        assert_eq!(
            account.redact("key the-api-key or the-app-key"),
            "key [redacted] or [redacted]"
        );
        let short = self::account("https://api.datadoghq.eu", "a");
        assert_eq!(short.redact("a bad query"), "a bad query");
    }
}
