//! A simulated Datadog on tokio's clock, which may be paused: organisations with a rate limit each,
//! others that use it too, headers that are right, late or missing, queries that are rejected or
//! never answered. It knows nothing of whoever asks it, and remembers what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use keda_datadog_scaler::{
    demand::{Account, Keys, Point, Query, Series},
    source::{Answer, Batch, RateLimit, Reply, Source, SourceError},
};
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, sleep};
use url::form_urlencoded::byte_serialize;

/// A query with this in it is rejected, together with all that it travels with.
pub(crate) const MALFORMED: &str = "fault:malformed";
/// A query with this in it is never answered, nor is what it travels with.
pub(crate) const ENDLESS: &str = "fault:endless";

/// How long into their periods the organisations are at the start: an engine is started at any
/// time of the hour.
pub(crate) const PHASE: Duration = Duration::from_secs(1_234);

/// What the engine may send at most; more is a bug of ours.
const MAX_QUERIES: usize = 35;
const MAX_BYTES: usize = 7_000;
/// As a client gives up that waits for `--request-timeout`.
const PATIENCE: Duration = Duration::from_secs(10);
/// In milliseconds.
const LATENCY: std::ops::Range<u64> = 150..400;
/// 2026-11-22T00:00:00Z.
const EPOCH_MS: i64 = 1_795_305_600_000;
const POINTS: u32 = 20;
const STEP_MS: i64 = 10_000;
/// Series of a query that is grouped.
const GROUPS: usize = 3;

/// A Datadog. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Datadog {
    state: Arc<Mutex<State>>,
}

/// Whose rate limit it is.
#[derive(Clone)]
pub(crate) struct Organisation {
    pub(crate) api_keys: Vec<String>,
    /// Requests each period; the periods are those of the calendar.
    pub(crate) limit: u64,
    pub(crate) period: Duration,
    pub(crate) others: Others,
    pub(crate) headers: Headers,
}

/// How many requests others send each period.
#[derive(Clone, Copy)]
pub(crate) enum Others {
    None,
    Evenly(u32),
    /// A quarter of them at once, four times.
    Bursts(u32),
}

/// What replies say of the limit.
#[derive(Clone, Copy)]
pub(crate) enum Headers {
    Exact,
    Missing,
    /// `Remaining` is as it was so long ago.
    Late(Duration),
}

/// A request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Since the start.
    pub(crate) at: Duration,
    /// The period of the calendar that it counts for.
    pub(crate) window: u64,
    pub(crate) organisation: usize,
    pub(crate) queries: Vec<Arc<str>>,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    /// 429.
    Throttled,
    Rejected,
    Unanswered,
}

struct State {
    started_at: Instant,
    random: fastrand::Rng,
    /// Until then, since the start, the marked queries are as good as any.
    offends_after: Duration,
    organisations: Vec<Meter>,
    /// API key → place among the organisations.
    owners: HashMap<String, usize>,
    asked: Vec<Asked>,
}

/// How far an organisation's limit is spent.
struct Meter {
    organisation: Organisation,
    window: u64,
    /// Of this period.
    spent: u64,
    wanted_by_others: u64,
    /// In all.
    others_throttled: u64,
    /// What was spent of this period, by when.
    history: VecDeque<(Duration, u64)>,
}

impl Datadog {
    pub(crate) fn new(organisations: Vec<Organisation>, offends_after: Duration) -> Self {
        let owners = (0..).zip(&organisations).flat_map(|(place, organisation)| {
            organisation.api_keys.iter().map(move |key| (key.clone(), place))
        });
        let state = State {
            started_at: Instant::now(),
            random: fastrand::Rng::with_seed(5),
            offends_after,
            owners: owners.collect(),
            organisations: organisations.into_iter().map(Meter::new).collect(),
            asked: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// 429s that others got.
    pub(crate) fn others_throttled(&self) -> u64 {
        let mut state = self.state();
        let now = state.started_at.elapsed();
        state.organisations.iter_mut().for_each(|meter| meter.turn_to(now));
        state.organisations.iter().map(|meter| meter.others_throttled).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("every request is one that Datadog can be sent")
    }
}

impl Source for Datadog {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let (reply, takes) = self.state().answer(batch);
        sleep(takes).await;
        reply
    }
}

impl State {
    /// The reply, and how long it takes.
    fn answer(&mut self, batch: &Batch) -> (Reply, Duration) {
        check(&batch.queries);
        let at = self.started_at.elapsed();
        let host = batch.account.host();
        let place = self.owners[api_key(&batch.account)];
        let meter = &mut self.organisations[place];
        meter.turn_to(at);
        let may_offend = at >= self.offends_after;
        let has =
            |fault| may_offend && batch.queries.iter().any(|query| query.text.contains(fault));
        let outcome = match () {
            () if !meter.spend(at) => Outcome::Throttled,
            () if has(ENDLESS) => Outcome::Unanswered,
            () if has(MALFORMED) => Outcome::Rejected,
            () => Outcome::Answered,
        };
        let told = meter.told(at);
        self.asked.push(Asked {
            at,
            window: meter.window,
            organisation: place,
            queries: batch.queries.iter().map(|query| query.text.clone()).collect(),
            outcome,
        });
        let latency = Duration::from_millis(self.random.u64(LATENCY));
        let failed = |error: SourceError, rate_limit| Reply {
            outcomes: vec![Err(error); batch.queries.len()],
            rate_limit,
        };
        match outcome {
            Outcome::Answered => {
                let outcomes = batch.queries.iter().map(|query| Ok(answer(query, at + latency)));
                (Reply { outcomes: outcomes.collect(), rate_limit: told }, latency)
            }
            Outcome::Throttled => {
                let error = SourceError::Throttled { host, limit: told.clone() };
                (failed(error, told), latency)
            }
            Outcome::Rejected => {
                // It does not say which of them.
                let reason = "Error parsing query: Rule 'scope_expr' didn't match".to_owned();
                (failed(SourceError::Malformed { reason }, told), latency)
            }
            Outcome::Unanswered => {
                (failed(SourceError::TimedOut { host, after: PATIENCE }, None), PATIENCE)
            }
        }
    }
}

impl Meter {
    fn new(organisation: Organisation) -> Self {
        Self {
            organisation,
            window: 0,
            spent: 0,
            wanted_by_others: 0,
            others_throttled: 0,
            history: VecDeque::new(),
        }
    }

    /// Lets others have had their share by then.
    fn turn_to(&mut self, at: Duration) {
        let calendar = PHASE + at;
        let period = self.organisation.period;
        while calendar >= self.window_begins_at() + period {
            self.let_others(period);
            self.window += 1;
            self.spent = 0;
            self.wanted_by_others = 0;
            self.history.clear();
        }
        self.let_others(calendar.saturating_sub(self.window_begins_at()));
        self.history.push_back((at, self.spent));
    }

    fn window_begins_at(&self) -> Duration {
        self.organisation.period * u32::try_from(self.window).unwrap()
    }

    /// `into` the period.
    fn let_others(&mut self, into: Duration) {
        let wanted = self.organisation.others.wanted(into, self.organisation.period);
        let more = wanted - self.wanted_by_others;
        let had = more.min(self.organisation.limit - self.spent);
        self.wanted_by_others = wanted;
        self.spent += had;
        self.others_throttled += more - had;
    }

    fn spend(&mut self, at: Duration) -> bool {
        let is_left = self.spent < self.organisation.limit;
        if is_left {
            self.spent += 1;
            self.history.push_back((at, self.spent));
        }
        is_left
    }

    fn told(&mut self, at: Duration) -> Option<RateLimit> {
        let Organisation { limit, period, headers, .. } = self.organisation;
        let spent = match headers {
            Headers::Missing => return None,
            Headers::Exact => self.spent,
            Headers::Late(lag) => {
                let mut spent = 0;
                while let Some((by, then)) = self.history.front().copied()
                    && by + lag <= at
                {
                    spent = then;
                    // The last of them is still wanted by the next who asks.
                    match self.history.get(1) {
                        Some((next, _)) if *next + lag <= at => drop(self.history.pop_front()),
                        _ => break,
                    }
                }
                spent
            }
        };
        let reset = (self.window_begins_at() + period).saturating_sub(PHASE + at);
        Some(RateLimit {
            limit: Some(limit),
            period: Some(period),
            remaining: Some(limit - spent),
            // In whole seconds, as the header has it.
            reset: Some(Duration::from_secs(reset.as_secs())),
            name: None,
        })
    }
}

impl Others {
    /// How many requests they have wanted so far, `into` a period.
    fn wanted(self, into: Duration, period: Duration) -> u64 {
        match self {
            Self::None => 0,
            Self::Evenly(requests) => {
                let wanted = u128::from(requests) * into.as_millis() / period.as_millis();
                u64::try_from(wanted).unwrap()
            }
            Self::Bursts(requests) => {
                let begun = (1..8).step_by(2).filter(|eighth| into >= period * *eighth / 8);
                u64::from(requests / 4) * begun.count() as u64
            }
        }
    }
}

fn api_key(account: &Account) -> &str {
    match account.keys() {
        Keys::Pair { api: key, .. } | Keys::Bearer(key) => key.expose_secret(),
        Keys::None => "",
    }
}

/// What no request may be. Reckoned anew here, since the engine may be wrong.
fn check(queries: &[Query]) {
    let escaped = |query: &Query| byte_serialize(query.text.as_bytes()).map(str::len).sum();
    let bytes: Vec<usize> = queries.iter().map(escaped).collect();
    let bytes = bytes.iter().sum::<usize>() + 3 * (queries.len() - 1);
    let count: usize = queries.iter().map(|query| parts(&query.text).count()).sum();
    assert!(count <= MAX_QUERIES, "a request with {count} queries");
    assert!(bytes <= MAX_BYTES, "a request with {bytes} bytes of queries");
    let is_alike = |query: &Query| query.window == queries[0].window;
    assert!(queries.iter().all(is_alike), "a request with several windows");
}

/// The queries of a comma list. There are no quotes in the corpus.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn answer(query: &Query, at: Duration) -> Answer {
    let now_ms = EPOCH_MS + i64::try_from((PHASE + at).as_millis()).unwrap();
    let newest_ms = now_ms - now_ms % STEP_MS;
    let points: Box<[Point]> = (0..POINTS)
        .map(|n| Point {
            at_ms: newest_ms - STEP_MS * i64::from(POINTS - 1 - n),
            value: 50.0 + f64::from(n),
        })
        .collect();
    let series = |scope: String| Series {
        scope: scope.into(),
        step: Some(Duration::from_millis(STEP_MS.unsigned_abs())),
        nulls: 0,
        points: points.clone(),
    };
    let of_part = |part: &str| {
        let groups = if part.contains(" by {") { GROUPS } else { 1 };
        (0..groups).map(|group| series(format!("group:{group}"))).collect::<Vec<_>>()
    };
    Answer { series: parts(&query.text).flat_map(of_part).collect(), window_end_ms: now_ms }
}
