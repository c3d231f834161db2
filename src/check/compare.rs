//! Reads queries together, as the server does, and each alone, of the very same time, and tells what
//! differs. Which queries travel together is `refresh::travel`'s to say.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Config, Output, Server,
    comparison::{Compared, Comparison, LeftOut, Together, Verdict},
    examine,
    input::Found,
    json,
    manifest::Selected,
    reading::{Asking, is_of_all, read, span},
    text,
};
use crate::{
    demand::{Account, Query, Reading},
    refresh::travel,
    source::{Batch, Source, SourceError, datadog::wall_clock},
    trigger::{Subject, Trigger},
};

mod difference;

/// Most queries that are compared: each costs a request of the rate limit.
pub(super) const MAX_COMPARED: usize = 200;
/// How far in the past the compared windows end. Newer points still change from one request to the
/// next.
const SETTLED: SignedDuration = SignedDuration::from_mins(1);

/// From when the compared windows are reckoned.
pub(super) fn settled_at() -> Timestamp {
    wall_clock() - SETTLED
}

/// True if nothing differs and nothing failed. `asking` is to read all at one instant.
pub(super) async fn run<S: Source>(
    config: &Config,
    found: &Found,
    asking: &Asking<S>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let (selected, others) = found.select(config.only.as_deref())?;
    let wanted = Wanted::by(&selected, &config.server);
    let account = match &asking.own.account {
        Ok(account) => Some(account),
        // Nobody needs keys to compare nothing.
        Err(_) if wanted.queries.is_empty() => None,
        Err(error) => return Err(error.clone().into()),
    };
    let comparison = Comparison {
        fine: found.odd.is_empty(),
        unreadable: found.odd.clone(),
        left_out: LeftOut { others, ..wanted.left_out },
        host: account.map(|account| account.host()),
        keys: account.map(|_| asking.own.from.clone()),
        settled_seconds: SETTLED.as_secs(),
        batches: Vec::new(),
        requests: 0,
        stopped: None,
    };
    let source = &asking.source;
    let mut comparing = Comparing { source, comparison, output: config.output, out };
    comparing.tell(text::comparison::opening)?;
    let batches = account.map(|account| wanted.batches(account, config.server.batch_queries));
    for batch in batches.unwrap_or_default() {
        let together = comparing.compare(&batch, &wanted.owners).await?;
        comparing.comparison.batches.push(together);
    }
    comparing.end()
}

/// The distinct queries of a file.
#[derive(Default)]
struct Wanted {
    /// In the order of the file.
    queries: Vec<Query>,
    owners: HashMap<Query, Vec<Owner>>,
    left_out: LeftOut,
}

/// A trigger with a query, and how lines name it.
struct Owner {
    label: String,
    trigger: Trigger,
}

impl Wanted {
    fn by(selected: &[Selected<'_>], server: &Server) -> Self {
        let mut wanted = Self::default();
        for selected in selected {
            let (examined, trigger) = examine::examine(selected, Some(server));
            let Some(trigger) = trigger else {
                wanted.left_out.unusable += 1;
                continue;
            };
            let Subject::Query(query) = trigger.subject.clone() else {
                wanted.left_out.cluster_agent += 1;
                continue;
            };
            let owner = Owner { label: examined.label(), trigger };
            if let Some(owners) = wanted.owners.get_mut(&query) {
                owners.push(owner);
                continue;
            }
            if wanted.queries.len() < MAX_COMPARED {
                wanted.queries.push(query.clone());
            } else {
                wanted.left_out.excess += 1;
            }
            wanted.owners.insert(query, vec![owner]);
        }
        wanted
    }

    /// As the server sends queries that have had answers.
    fn batches(&self, account: &Arc<Account>, batch_queries: usize) -> Vec<Batch> {
        let of = |queries| Batch { account: account.clone(), queries };
        travel::together(&self.queries, batch_queries).into_iter().map(of).collect()
    }
}

/// Whom to ask, and what has been found so far.
struct Comparing<'a, S, W> {
    source: &'a S,
    comparison: Comparison,
    output: Output,
    out: &'a mut W,
}

impl<S: Source, W: Write> Comparing<'_, S, W> {
    /// One request for all, and one for each.
    async fn compare(
        &mut self,
        batch: &Batch,
        owners: &HashMap<Query, Vec<Owner>>,
    ) -> io::Result<Together> {
        let owners = |query: &Query| owners.get(query).map(Vec::as_slice).unwrap_or_default();
        let unread = |verdict| {
            let compared = |query| Compared::of(query, owners(query), verdict);
            Together {
                queries: batch.queries.iter().map(compared).collect(),
                ..Together::of(batch)
            }
        };
        if batch.queries.len() == 1 {
            return Ok(unread(Verdict::Alone));
        }
        let Some(readings) = self.read(batch).await else { return Ok(unread(Verdict::Unasked)) };
        let mut seen = Together::of(batch);
        seen.note(batch, &readings);
        self.tell(|_, width| text::comparison::together(&seen, batch.queries.len(), width))?;
        for (query, together) in batch.queries.iter().zip(readings) {
            let one = Batch { account: batch.account.clone(), queries: vec![query.clone()] };
            let alone = self.read(&one).await.and_then(|mut readings| readings.pop());
            let compared = judge(query, owners(query), together, alone);
            self.tell(|_, width| text::comparison::query(&compared, &seen, width))?;
            seen.queries.push(compared);
        }
        Ok(seen)
    }

    /// `None` once an answer said that no other would be of use.
    async fn read(&mut self, batch: &Batch) -> Option<Vec<Result<Reading, SourceError>>> {
        if self.comparison.stopped.is_some() {
            return None;
        }
        self.comparison.requests += 1;
        let readings = read(self.source, batch).await;
        let mut errors = readings.iter().filter_map(|reading| reading.as_ref().err());
        self.comparison.stopped = errors.find(|error| is_of_all(error)).map(ToString::to_string);
        Some(readings)
    }

    /// JSON waits for the end.
    fn tell(&mut self, text: impl FnOnce(&Comparison, usize) -> String) -> io::Result<()> {
        let Output::Text { width } = self.output else { return Ok(()) };
        write!(self.out, "{}", text(&self.comparison, width))?;
        self.out.flush()
    }

    fn end(mut self) -> anyhow::Result<bool> {
        let is_sound =
            |compared: &Compared| matches!(compared.verdict, Verdict::Equal | Verdict::Alone);
        let all_sound = self.comparison.queries().all(is_sound);
        self.comparison.fine &= all_sound;
        self.tell(text::comparison::summary)?;
        if self.output == Output::Json {
            self.out.write_all(&json::document(&self.comparison)?)?;
            self.out.flush()?;
        }
        Ok(self.comparison.fine)
    }
}

/// What one query had together with others, and alone; `alone` is `None` if that was not asked for.
fn judge(
    query: &Query,
    owners: &[Owner],
    together: Result<Reading, SourceError>,
    alone: Option<Result<Reading, SourceError>>,
) -> Compared {
    let mut compared = Compared::of(query, owners, Verdict::Unasked);
    compared.together_error = together.as_ref().err().map(ToString::to_string);
    let Some(alone) = alone else { return compared };
    compared.alone_error = alone.as_ref().err().map(ToString::to_string);
    let points = |reading: &Reading| reading.series.iter().map(|series| series.points.len()).sum();
    compared.points = alone.as_ref().ok().map(points);
    compared.verdict = match (together, alone) {
        (Ok(together), Ok(alone)) => {
            compared.differences = difference::between(together, alone, owners);
            if compared.differences.is_empty() { Verdict::Equal } else { Verdict::Differs }
        }
        _ => Verdict::Failed,
    };
    compared
}

impl Together {
    fn of(batch: &Batch) -> Self {
        let window = batch.queries.first().map(|query| query.window);
        Self {
            age_seconds: window.map_or(0, |window| window.age),
            offset_seconds: window.map_or(0, |window| window.offset),
            window: None,
            error: None,
            then: None,
            queries: Vec::new(),
        }
    }

    /// What came, as a whole.
    fn note(&mut self, batch: &Batch, readings: &[Result<Reading, SourceError>]) {
        let mut answers = batch.queries.iter().zip(readings);
        self.window =
            answers.find_map(|(query, reading)| Some(span(query, reading.as_ref().ok()?)));
        if let (None, Some(Err(error))) = (self.window, readings.first()) {
            self.error = Some(error.to_string());
            self.then = Some(consequence(error));
        }
    }
}

/// What the server makes of a batch that failed as a whole.
fn consequence(error: &SourceError) -> &'static str {
    match error {
        SourceError::TimedOut { .. } => "the server would send smaller requests from then on",
        error if error.concerns_account() => "the server would hold what it has, and ask again",
        _ => "the server would divide the request until what fails stands alone",
    }
}

impl Compared {
    fn of(query: &Query, owners: &[Owner], verdict: Verdict) -> Self {
        Self {
            query: query.text.to_string(),
            triggers: owners.iter().map(|owner| owner.label.clone()).collect(),
            verdict,
            points: None,
            differences: Vec::new(),
            together_error: None,
            alone_error: None,
        }
    }
}
