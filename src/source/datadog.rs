//! `GET /api/v1/query` of the Datadog API: whom to ask, as whom, and about which time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{task::spawn_blocking, time::Instant};
use url::Url;

use super::{
    Answer, Batch, RateLimit, Reply, Source, SourceError,
    outcome::{Outcomes, interpret, not_fetched, rate_limit},
};
use crate::{
    demand::{Account, Keys, Window},
    http::{self, HeaderMap, HeaderName, HeaderValue, Response},
    metrics::Metrics,
};

/// A body beyond it would keep a thread that answers RPCs busy for milliseconds.
const MAX_INLINE: usize = 64 << 10;
/// Clocks that differ by more than this make a window look at another time than meant.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(30);

pub struct Datadog {
    client: http::Client,
    /// From when windows are reckoned; `None`: from when each is asked for.
    now: Option<Timestamp>,
    metrics: Arc<Metrics>,
    /// Whether it was said that this machine's clock is wrong, and not yet that it is right.
    skewed: AtomicBool,
}

impl Datadog {
    pub fn new(client: http::Client, metrics: Arc<Metrics>) -> Self {
        Self { client, now: None, metrics, skewed: AtomicBool::new(false) }
    }

    /// As if it were always `now`, so that several requests look at the very same time.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        Self { now: Some(now), ..self }
    }

    /// One request.
    async fn ask(
        &self,
        account: &Account,
        texts: &[Arc<str>],
        (from, to): (i64, i64),
    ) -> Result<Response, SourceError> {
        let Some(headers) = headers(account.keys()) else {
            return Err(SourceError::Refused { status: 401, host: account.host() });
        };
        let url = url(account.base_url(), from, to, &texts.join(","));
        self.client.get(url, headers).await.map_err(|error| not_fetched(error, account))
    }

    async fn read(
        &self,
        account: &Arc<Account>,
        texts: Vec<Arc<str>>,
        response: Response,
    ) -> Result<Outcomes, SourceError> {
        let host = || account.host();
        let skew = skew(&response, wall_clock());
        self.compare_clocks(skew, account);
        let read = {
            let account = account.clone();
            move |response: &Response| {
                let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
                interpret(response, &account, &texts)
            }
        };
        let outcomes = if response.body.len() > MAX_INLINE {
            let read = move || read(&response);
            spawn_blocking(read).await.unwrap_or_else(|_| {
                let what = "reading it failed; please report it".to_owned();
                Err(SourceError::NotUnderstood { host: host(), what })
            })?
        } else {
            read(&response)?
        };
        match skew.filter(|skew| *skew > MAX_SKEW) {
            // The window that was looked at is not the one that was meant.
            Some(skew) if outcomes.iter().flatten().flatten().all(|s| s.points.is_empty()) => {
                Err(SourceError::ClockSkew { host: host(), skew: skew.unsigned_abs() })
            }
            _ => Ok(outcomes),
        }
    }

    fn compare_clocks(&self, skew: Option<SignedDuration>, account: &Account) {
        let Some(skew) = skew else { return };
        let skewed = skew > MAX_SKEW;
        if self.skewed.swap(skewed, Ordering::Relaxed) == skewed {
            return;
        }
        let host = account.host();
        if skewed {
            let skew = skew.as_secs();
            tracing::warn!(
                host,
                skew_seconds = skew,
                "this machine's clock and Datadog's differ; queries look at the wrong time until it is set right"
            );
        } else {
            tracing::info!(host, "this machine's clock and Datadog's agree again");
        }
    }
}

impl Source for Datadog {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let nothing = Reply { outcomes: Vec::new(), rate_limit: None };
        let Some(first) = batch.queries.first() else { return nothing };
        let (from, to) = span(first.window, self.now.unwrap_or_else(wall_clock));
        let texts: Vec<Arc<str>> = batch.queries.iter().map(|query| query.text.clone()).collect();
        let started_at = Instant::now();
        let mut said: Option<RateLimit> = None;
        let result = match self.ask(&batch.account, &texts, (from, to)).await {
            Ok(response) => {
                said = rate_limit(&response.headers);
                self.read(&batch.account, texts, response).await
            }
            Err(error) => Err(error),
        };
        let error = match &result {
            Ok(outcomes) => outcomes.iter().find_map(|outcome| outcome.as_ref().err()),
            Err(error) => Some(error),
        };
        let outcome = error.map_or("ok", SourceError::outcome);
        self.metrics.requested(outcome, started_at.elapsed());
        let window_end_ms = to.saturating_mul(1_000);
        let outcomes = match result {
            Ok(outcomes) => outcomes
                .into_iter()
                .map(|series| series.map(|series| Answer { series, window_end_ms }))
                .collect(),
            Err(error) => vec![Err(error); batch.queries.len()],
        };
        Reply { outcomes, rate_limit: said }
    }
}

/// The one place where the program reads the wall clock. Read for each request: a start time
/// plus what has elapsed since would drift over suspends and clock steps.
#[expect(clippy::disallowed_methods, reason = "Datadog's windows are given in calendar time")]
pub(crate) fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// How far apart our clock and Datadog's are. An error may be somebody else's, with a clock of its
/// own.
fn skew(response: &Response, now: Timestamp) -> Option<SignedDuration> {
    if !response.status.is_success() {
        return None;
    }
    let date = response.headers.get(http::header::DATE)?.to_str().ok()?;
    let theirs = rfc2822::parse(date).ok()?.timestamp();
    let ours = now.checked_sub(response.answered_at.elapsed()).ok()?;
    Some(theirs.duration_since(ours).abs())
}

/// `from` and `to` in seconds since the epoch, as KEDA's built-in scaler reckons them
/// (`getQueryResult`, `pkg/scalers/datadog_scaler.go`).
fn span(window: Window, now: Timestamp) -> (i64, i64) {
    let seconds = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
    let to = now.as_second().saturating_sub(seconds(window.offset)).max(0);
    let from = to.saturating_sub(seconds(window.age)).max(0);
    (from, to)
}

fn url(base: &Url, from: i64, to: i64, query: &str) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["api", "v1", "query"]);
    }
    url.query_pairs_mut()
        .append_pair("from", &from.to_string())
        .append_pair("to", &to.to_string())
        .append_pair("query", query);
    url
}

/// `None` if a key holds bytes that a header cannot.
pub(super) fn headers(keys: &Keys) -> Option<HeaderMap> {
    fn sensitive(value: &str) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
    let key = |secret: &SecretString| sensitive(secret.expose_secret());
    let mut headers = HeaderMap::new();
    match keys {
        Keys::Pair { api, app } => {
            headers.insert(HeaderName::from_static("dd-api-key"), key(api)?);
            headers.insert(HeaderName::from_static("dd-application-key"), key(app)?);
        }
        Keys::Bearer(token) => {
            let value = sensitive(&format!("Bearer {}", token.expose_secret()))?;
            headers.insert(http::header::AUTHORIZATION, value);
        }
        Keys::None => return None,
    }
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("application/json"));
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::scripted::{account, response};

    #[test]
    fn a_window_is_reckoned_as_keda_does() {
        let now = Timestamp::from_second(1_000).unwrap();
        assert_eq!(span(Window { age: 90, offset: 30 }, now), (880, 970));
        assert_eq!(span(Window { age: u64::MAX, offset: 0 }, now), (0, 1_000));
        assert_eq!(span(Window { age: 90, offset: u64::MAX }, now), (0, 0));
    }

    #[test]
    fn clocks_are_compared_by_the_date_of_the_reply() {
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let skew = |date| {
            skew(&response(200, &[("date", date)], b""), now).map(|skew| skew.as_secs_f64().round())
        };
        assert_eq!(skew("Sun, 22 Nov 2026 12:00:05 GMT"), Some(5.0));
        assert_eq!(skew("Sun, 22 Nov 2026 11:58:00 GMT"), Some(120.0));
        assert_eq!(skew("yesterday"), None);
    }

    #[test]
    fn the_query_is_sent_as_written() {
        let base = "https://api.datadoghq.eu/behind/a/proxy/".parse().unwrap();
        let url = url(&base, 1, 2, "sum:a{b:c d, e:f&g} by {h}");
        assert_eq!(url.path(), "/behind/a/proxy/api/v1/query");
        let sent: Vec<_> = url.query_pairs().into_owned().collect();
        assert_eq!(sent[2], ("query".into(), "sum:a{b:c d, e:f&g} by {h}".into()));
    }

    #[test]
    fn keys_are_marked_for_whoever_logs_headers() {
        for keys in [account().keys().clone(), Keys::Bearer("ddpat_x".into())] {
            let shown = format!("{:?}", headers(&keys).unwrap());
            assert!(!shown.contains("the-") && !shown.contains("ddpat_x"), "{shown}");
        }
    }

    #[test]
    fn a_key_that_no_header_can_carry_is_refused_keys() {
        let keys = Keys::Pair { api: "a\nb".into(), app: "c".into() };
        assert!(headers(&keys).is_none());
    }
}
