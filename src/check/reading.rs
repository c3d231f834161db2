//! Asks once, and tells what the trigger makes of the answer; of Datadog's, point by point.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Server,
    agent::Agents,
    keys::Keys,
    report::{
        Evidence, Examined, Failed, Level, Outcome, PointSeen, Request, Seen, SeriesSeen, Span,
        Step,
    },
};
use crate::{
    credentials::{self, CredentialsError},
    demand::{Account, Demand, Query, Reading, Series},
    refresh::{Latest, Verdict},
    scaler::Failure,
    source::{Answer, Batch, Source, SourceError, Sources},
    trigger::{Measure, PointOffset, Reckoning, Subject, TimeAggregator, Trigger, Unanswered},
};

/// Who is asked for readings, and as whom.
pub(super) struct Asking<S> {
    pub(super) source: S,
    /// Of the Datadog API.
    pub(super) own: Own,
    pub(super) agents: Agents,
    pub(super) fetches: Fetches,
}

/// The account of the shell, in place of the scaler's own.
pub(super) struct Own {
    pub(super) account: Result<Arc<Account>, CredentialsError>,
    /// Where its keys come from, or its token.
    pub(super) from: String,
}

/// What has been fetched: equal demands are one request, here as in the server.
#[derive(Default)]
pub(super) struct Fetches {
    known: HashMap<Demand, Fetched>,
    /// Answers that any other query of the account would have too.
    of_all: HashMap<Arc<Account>, Fetched>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) result: Result<Arc<Reading>, SourceError>,
    ended_at: Instant,
    pub(super) took: Duration,
}

impl Fetched {
    pub(super) fn at_once(result: Result<Answer, SourceError>) -> Self {
        let ended_at = Instant::now();
        let result = result.map(|answer| Arc::new(answer.taken_at(ended_at)));
        Self { result, ended_at, took: Duration::ZERO }
    }
}

impl Own {
    /// The Cluster Agent of the shell, which is taken out of the rest.
    pub(super) async fn agent(credentials: &mut credentials::Config) -> Self {
        credentials.agent_ca = None;
        match credentials.agent.take() {
            Some(agent) => {
                let from = agent.token.to_string();
                Self { account: agent.account().await, from }
            }
            None => Self { account: Err(CredentialsError::NoAgent), from: String::new() },
        }
    }
}

impl Asking<Sources> {
    /// As if it were always `now`, for Datadog.
    pub(super) fn at(self, now: Timestamp) -> Self {
        let source = Sources { datadog: self.source.datadog.at(now), ..self.source };
        Self { source, ..self }
    }
}

impl<S: Source> Asking<S> {
    pub(super) fn new(source: S, own: Own, agents: Agents) -> Self {
        Self { source, own, agents, fetches: Fetches::default() }
    }

    /// Fills in what was asked, what came, and what KEDA would get of it at that instant.
    pub(super) async fn explain(
        &mut self,
        trigger: &Trigger,
        keys: Keys,
        server: &Server,
        examined: &mut Examined,
    ) {
        let Subject::Query(query) = &trigger.subject else {
            return Box::pin(self.explain_metric(trigger, keys, server, examined)).await;
        };
        let (account, keys) = match (keys, &self.own.account) {
            // What KEDA would get is known without.
            (Keys::None, _) if examined.outcome.is_some() => return,
            (Keys::None, _) => {
                let message = "Datadog is not asked, since there are no keys for it here";
                return examined.find(Level::Note, Step::Request, message);
            }
            (Keys::Unneeded(_), _) => return,
            (Keys::Resolved { account, of }, _) => (account, of),
            (Keys::OfShell, Ok(account)) => (account.clone(), self.own.from.clone()),
            (Keys::OfShell, Err(error)) => {
                return fail(examined, Step::Request, &Failure::Credentials(error.clone()));
            }
        };
        let host = account.host();
        let demand = Demand { account, query: query.clone() };
        let fetched = self.fetches.get(&self.source, demand).await;
        let took_ms = fetched.took.as_secs_f64() * 1_000.0;
        let request = Request { host, keys, through: None, trust: None, took_ms };
        let reckoning = judge(trigger, &fetched, server, examined);
        let seen = fetched.result.as_ref().ok().map(|reading| Seen {
            window: span(query, reading),
            series: reading.series.iter().map(|s| series(&trigger.reckoning, s, reading)).collect(),
            reckoning,
        });
        examined.evidence = Evidence::Datadog { request, seen };
    }
}

/// Most readings that are remembered; each may be large.
const MAX_KNOWN: usize = 100;

impl Fetches {
    pub(super) async fn get(&mut self, source: &impl Source, demand: Demand) -> Fetched {
        let known = self.known.get(&demand).or_else(|| self.of_all.get(&demand.account));
        if let Some(fetched) = known {
            return fetched.clone();
        }
        let fetched = fetch(source, &demand).await;
        if fetched.result.as_ref().is_err_and(is_of_all) {
            self.of_all.insert(demand.account.clone(), fetched.clone());
        }
        if self.known.len() < MAX_KNOWN {
            self.known.insert(demand, fetched.clone());
        }
        fetched
    }
}

/// Whether it would be of no use to ask for another query.
pub(super) fn is_of_all(error: &SourceError) -> bool {
    matches!(
        error,
        SourceError::Refused { .. }
            | SourceError::Throttled { .. }
            | SourceError::Misdirected { .. }
            | SourceError::NoAgent { .. }
            | SourceError::TokenRefused { .. }
    )
}

/// Once, without the engine.
async fn fetch(source: &impl Source, demand: &Demand) -> Fetched {
    let batch = Batch { account: demand.account.clone(), queries: vec![demand.query.clone()] };
    let started_at = Instant::now();
    let result = read(source, &batch).await.pop().expect("one query has one reading");
    let ended_at = Instant::now();
    Fetched { result: result.map(Arc::new), ended_at, took: ended_at - started_at }
}

/// What each query of a request has, in their order.
pub(super) async fn read(source: &impl Source, batch: &Batch) -> Vec<Result<Reading, SourceError>> {
    let mut outcomes = source.fetch(batch).await.outcomes;
    let taken_at = Instant::now();
    outcomes.resize_with(batch.queries.len(), || {
        let what = "nothing came of the request; please report it".to_owned();
        Err(SourceError::NotUnderstood { host: batch.account.host(), what })
    });
    let reading = |answer: Answer| answer.taken_at(taken_at);
    outcomes.into_iter().map(|outcome| outcome.map(reading)).collect()
}

/// What KEDA would get. How the value was made, if there is more to it than its reading.
pub(super) fn judge(
    trigger: &Trigger,
    fetched: &Fetched,
    server: &Server,
    examined: &mut Examined,
) -> Option<String> {
    let patience = trigger.patience(server.patience);
    let is_query = matches!(trigger.subject, Subject::Query(_));
    if fetched.result.is_ok() && fetched.took > patience {
        let remedy = if is_query {
            "make the query quicker"
        } else {
            "see what keeps the Cluster Agent, or raise `--patience`"
        };
        examined.find(
            Level::Warning,
            Step::Request,
            format!(
                "the answer took {:.1} s, and KEDA is kept waiting for {patience:?} at most; the \
                 first time it gets DEADLINE_EXCEEDED; {remedy}",
                fetched.took.as_secs_f64()
            ),
        );
    }
    let latest = Latest {
        readings: fetched.result.iter().cloned().collect(),
        failure: fetched.result.as_ref().err().cloned(),
        interval: server.refresh,
    };
    match trigger.judge(&latest, fetched.ended_at, server.hold) {
        Verdict::Known(Measure { value, active })
        | Verdict::Awaited { otherwise: Some(Measure { value, active }) } => {
            examined.outcome = Some(Outcome::Answered { value, active, target: trigger.target });
            let how = match &fetched.result {
                Ok(reading) => match trigger.reckon(reading) {
                    Ok(_) if is_query => return Some(in_words(&trigger.reckoning, reading)),
                    Ok(_) => return None,
                    Err(Unanswered::Stale { .. }) if trigger.fill.is_none() => {
                        "held, though it is too old"
                    }
                    Err(Unanswered::Stale { .. }) => {
                        "`metricUnavailableValue`, since the agent's is too old"
                    }
                    Err(_) => "`metricUnavailableValue`, since there is no data",
                },
                Err(_) => "`metricUnavailableValue`, since Datadog cannot process it",
            };
            Some(how.to_owned())
        }
        Verdict::Failed(why) => {
            // Where it stands: the request failed, or something is wrong with what came.
            let is_of_request = matches!(why, Unanswered::Source(_)) || !is_query;
            let step = if is_of_request { Step::Request } else { Step::Series };
            fail(examined, step, &Failure::Unanswered(why));
            None
        }
        Verdict::Awaited { otherwise: None } => {
            unreachable!("what was read at this instant is not overdue")
        }
    }
}

/// What KEDA would get is an error, unless there was one before.
pub(super) fn fail(examined: &mut Examined, step: Step, failure: &Failure) {
    let message = failure.to_string();
    examined.find(Level::Error, step, message.clone());
    if examined.outcome.is_some() {
        return;
    }
    let (rpc, code) = ("GetMetrics", failure.code_name());
    examined.outcome = Some(Outcome::Failed(Failed { rpc, code, message }));
}

pub(super) fn span(query: &Query, reading: &Reading) -> Span {
    let age = i64::try_from(query.window.age).unwrap_or(i64::MAX).saturating_mul(1_000);
    let to_ms = reading.window_end_ms;
    Span { from_ms: to_ms.saturating_sub(age).max(0), to_ms }
}

fn series(reckoning: &Reckoning, series: &Series, reading: &Reading) -> SeriesSeen {
    let counted = reckoning.counted(series, reading.window_end_ms);
    let points = series.points.iter().enumerate().map(|(index, point)| PointSeen {
        at_ms: point.at_ms,
        value: point.value,
        counts: counted.contains(&index),
    });
    SeriesSeen {
        scope: series.scope.to_string(),
        points: points.collect(),
        nulls: series.nulls,
        interval_seconds: series.step.map(|step| step.as_secs()),
        value: reckoning.over_time(series, reading.window_end_ms),
    }
}

/// How the value was made.
fn in_words(reckoning: &Reckoning, reading: &Reading) -> String {
    let over_time = match reckoning.over_time {
        TimeAggregator::Last => "the newest point".to_owned(),
        TimeAggregator::Over(aggregator) => format!("the {aggregator} of the points"),
    };
    let left_out = match reckoning.offset {
        PointOffset::Points(0) => String::new(),
        PointOffset::Points(1) => " but for the newest one".to_owned(),
        PointOffset::Points(points) => format!(" but for the {points} newest ones"),
        PointOffset::Auto if reading.depth_of_full_buckets() < reading.depth() => {
            " but for the bucket that is still filling".to_owned()
        }
        PointOffset::Auto => String::new(),
    };
    let has_data = |series: &&Series| reckoning.over_time(series, reading.window_end_ms).is_some();
    let with_data = reading.series.iter().filter(has_data).count();
    let over_series = match reckoning.over_series {
        Some(aggregator) if with_data > 1 => format!("; of {with_data} series, the {aggregator}"),
        _ => String::new(),
    };
    format!("{over_time}{left_out}{over_series}")
}
