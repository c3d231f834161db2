//! What is demanded, what is known of it, and what is due. Pure: it takes `now`, does no I/O
//! and cannot fail.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    Asker, Config, Latest,
    health::{Change, Health, Trouble},
    travel::{Class, Filling, Load, divided},
};
use crate::{
    demand::{Account, Demand, Query, Reading, Window},
    source::{Answer, Batch, SourceError},
};

/// How long the readings of a demand that fell asleep are kept: KEDA's `pollingInterval` may be
/// longer than `--idle-after`.
const MEMORY: Duration = Duration::from_mins(10);
/// How long a first demand waits for others to travel with.
const COMPANY: Duration = Duration::from_millis(5);
/// The longest that a query is put off that Datadog rejects.
const MAX_QUARANTINE: Duration = Duration::from_mins(30);
/// The longest that the next attempt is put off.
const MAX_PAUSE: Duration = Duration::from_mins(4);
/// Most readings that are kept of one demand: as many as `--hold` spans at the defaults, and one.
const MAX_READINGS: usize = 6;
/// More queries than this, and than half of a batch, do not lose their data at once by themselves.
const MAX_MISSING: usize = 3;
/// Most replaced accounts that are remembered; one RPC may know the last.
const MAX_REPLACED: usize = 4;

pub(super) struct Book {
    config: Config,
    entries: HashMap<Demand, Entry>,
    /// To be fetched at once: what is left of batches that failed as a whole.
    again: VecDeque<Batch>,
    /// When the rounds of an account began: what is due together travels together.
    rounds: HashMap<Arc<Account>, Instant>,
    /// Every entry that is not being fetched, by when it wants attention.
    agenda: BTreeMap<Slot, Demand>,
    next_slot: u64,
    health: HashMap<Arc<Account>, Health>,
    /// The last accounts that were replaced: who asks with one was too late.
    replaced: VecDeque<Arc<Account>>,
}

struct Entry {
    latest: watch::Sender<Arc<Latest>>,
    asked_at: Instant,
    turn: Turn,
    trouble: Trouble,
    load: Load,
    /// Most queries of the request that it travels in next.
    company: usize,
    /// Whether the request was repeated whole that could not be processed.
    is_repeated: bool,
    /// How often in a row it was rejected alone.
    rejections: u32,
}

impl Entry {
    fn new(
        query: &Query,
        latest: watch::Sender<Arc<Latest>>,
        asked_at: Instant,
        turn: Turn,
    ) -> Self {
        let (trouble, load) = (Trouble::default(), Load::of(query));
        let (company, is_repeated, rejections) = (usize::MAX, false, 0);
        Self { latest, asked_at, turn, trouble, load, company, is_repeated, rejections }
    }

    fn class(&self, window: Window) -> Class {
        let is_first = self.latest.borrow().readings.is_empty();
        Class { window, is_first, company: self.company }
    }

    fn has_data(&self) -> bool {
        self.latest.borrow().readings.first().is_some_and(|reading| reading.depth() > 0)
    }
}

/// A place on the agenda; the number tells apart what falls due at one instant.
type Slot = (Instant, u64);

#[derive(Clone, Copy, PartialEq)]
enum Turn {
    /// To be read at the slot's instant, if somebody is still interested.
    Due(Slot),
    Fetching,
    /// Nobody is interested; to be forgotten at the slot's instant.
    Asleep(Slot),
}

impl Book {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            again: VecDeque::new(),
            rounds: HashMap::new(),
            agenda: BTreeMap::new(),
            next_slot: 0,
            health: HashMap::new(),
            replaced: VecDeque::new(),
        }
    }

    /// Number of demands that are known, awake or asleep.
    pub(super) fn known(&self) -> usize {
        self.entries.len()
    }

    /// Notes the interest. True if there is something due that was not before.
    pub(super) fn ask(
        &mut self,
        demand: &Demand,
        _asker: Asker<'_>,
        now: Instant,
    ) -> (watch::Receiver<Arc<Latest>>, bool) {
        if self.replaced.contains(&demand.account) {
            let (_closes, receiver) = watch::channel(Arc::default());
            return (receiver, false);
        }
        // Nobody waits for company who travels alone.
        let first_at = if self.config.batch_queries > 1 { now + COMPANY } else { now };
        if let Some(entry) = self.entries.get_mut(demand) {
            entry.asked_at = now;
            let receiver = entry.latest.subscribe();
            let Turn::Asleep(slot) = entry.turn else { return (receiver, false) };
            // A failure is remembered until the next turn, and that has passed asleep.
            entry.latest.send_modify(|latest| Arc::make_mut(latest).failure = None);
            entry.trouble = Trouble::default();
            self.agenda.remove(&slot);
            let turn = Turn::Due(self.enter(first_at, demand));
            self.set_turn(demand, turn);
            return (receiver, true);
        }
        let (latest, receiver) = watch::channel(Arc::default());
        let turn = Turn::Due(self.enter(first_at, demand));
        let entry = Entry::new(&demand.query, latest, now, turn);
        self.entries.insert(demand.clone(), entry);
        (receiver, true)
    }

    /// When to look again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// At most `room` batches that are to be fetched now. On the way, demands that nobody wants
    /// are put to sleep, and those that slept long are forgotten.
    pub(super) fn take_due(&mut self, now: Instant, room: usize) -> Vec<Batch> {
        let mut batches = Vec::new();
        while batches.len() < room
            && let Some(mut batch) = self.again.pop_front()
        {
            // Some may have been withdrawn meanwhile.
            batch.queries.retain(|query| {
                let demand = Demand { account: batch.account.clone(), query: query.clone() };
                self.entries.get(&demand).is_some_and(|entry| entry.turn == Turn::Fetching)
            });
            if !batch.queries.is_empty() {
                batches.push(batch);
            }
        }
        let room = room - batches.len();
        let mut filling = Filling::new(self.config.batch_queries);
        let mut left = Vec::new();
        while room > 0
            && let Some(first) = self.agenda.first_entry()
            && first.key().0 <= now
        {
            let (slot, demand) = first.remove_entry();
            let Some(entry) = self.entries.get_mut(&demand) else { continue };
            if entry.latest.receiver_count() > 0 {
                entry.asked_at = now;
            }
            match entry.turn {
                Turn::Asleep(_) => drop(self.forget(&demand)),
                _ if now < entry.asked_at + self.config.idle_after => {
                    let class = entry.class(demand.query.window);
                    if filling.add(&demand, class, entry.load, room) {
                        entry.turn = Turn::Fetching;
                        self.rounds.entry(demand.account).or_insert(now);
                    } else {
                        left.push((slot, demand));
                    }
                }
                _ => {
                    let forget_at = entry.asked_at + self.config.idle_after + MEMORY;
                    let turn = Turn::Asleep(self.enter(forget_at, &demand));
                    self.set_turn(&demand, turn);
                }
            }
        }
        self.agenda.extend(left);
        batches.extend(filling.batches());
        batches
    }

    /// Enters the outcomes of a batch, in the order of its queries; a query without one has
    /// failed by our own fault. Outcomes of demands that are gone are of no interest. A batch that
    /// failed as a whole for one of its queries is not settled, but taken again in parts.
    pub(super) fn settle(
        &mut self,
        batch: Batch,
        mut outcomes: Vec<Result<Answer, SourceError>>,
        now: Instant,
    ) -> Vec<Change> {
        outcomes.resize_with(batch.queries.len(), || {
            let what = "the request was lost in the scaler; please report it".to_owned();
            Err(SourceError::NotUnderstood { host: batch.account.host(), what })
        });
        let outcomes = if batch.queries.len() > 1 {
            match self.take_apart(&batch, outcomes) {
                Some(outcomes) => outcomes,
                None => return Vec::new(),
            }
        } else {
            outcomes.into_iter().map(Some).collect()
        };
        let mut changes = Vec::new();
        let Batch { account, queries } = batch;
        for (query, outcome) in queries.into_iter().zip(outcomes) {
            let demand = Demand { account: account.clone(), query };
            match outcome {
                Some(outcome) => self.settle_one(&demand, outcome, now, &mut changes),
                None => self.again.push_back(alone(demand)),
            }
        }
        changes
    }

    /// What of a batch's outcomes can be believed. `None` if nothing can, and the batch is to be
    /// taken again; `None` for a query that is to be read once alone.
    fn take_apart(
        &mut self,
        batch: &Batch,
        outcomes: Vec<Result<Answer, SourceError>>,
    ) -> Option<Vec<Option<Result<Answer, SourceError>>>> {
        let size = batch.queries.len();
        let demand =
            |query: &Query| Demand { account: batch.account.clone(), query: query.clone() };
        let of_all = match outcomes.first() {
            Some(Err(error)) if outcomes.iter().all(Result::is_err) => Some(error),
            _ => None,
        };
        let parts = match of_all {
            Some(error @ (SourceError::Malformed { .. } | SourceError::TooLarge { .. })) => {
                Some(divided(batch.queries.clone(), &error.to_string()))
            }
            // Perhaps nobody can tell which series is whose.
            Some(SourceError::NotUnderstood { .. }) => {
                Some(batch.queries.iter().map(|query| vec![query.clone()]).collect())
            }
            // That passes, or is one query's.
            Some(SourceError::Unprocessable) => {
                let mut was_repeated = false;
                for query in &batch.queries {
                    if let Some(entry) = self.entries.get_mut(&demand(query)) {
                        was_repeated |= std::mem::replace(&mut entry.is_repeated, true);
                    }
                }
                Some(if was_repeated {
                    divided(batch.queries.clone(), "")
                } else {
                    vec![batch.queries.clone()]
                })
            }
            _ => None,
        };
        if let Some(parts) = parts
            && self.health.entry(batch.account.clone()).or_default().may_divide()
        {
            let account = &batch.account;
            let of = |queries| Batch { account: account.clone(), queries };
            self.again.extend(parts.into_iter().map(of));
            return None;
        }
        // Smaller requests from then on, which grow again with each answer.
        let company = match of_all {
            Some(SourceError::TimedOut { .. }) => Some(size.isqrt()),
            Some(SourceError::TooLarge { .. }) => Some(size / 2),
            _ => None,
        };
        if let Some(company) = company {
            for query in &batch.queries {
                if let Some(entry) = self.entries.get_mut(&demand(query)) {
                    let was_a_group = entry.company < usize::MAX;
                    entry.company = if was_a_group { 1 } else { company.max(1) };
                }
            }
        }
        let is_missing: Vec<bool> = batch
            .queries
            .iter()
            .zip(&outcomes)
            .map(|(query, outcome)| {
                let is_empty = outcome.as_ref().is_ok_and(|answer| {
                    answer.series.iter().all(|series| series.points.is_empty())
                });
                is_empty && self.entries.get(&demand(query)).is_some_and(Entry::has_data)
            })
            .collect();
        let missing = is_missing.iter().filter(|is_missing| **is_missing).count();
        let is_outage = missing > MAX_MISSING.max(size / 2);
        let host = || batch.account.host();
        let outcomes = outcomes.into_iter().zip(is_missing).map(|(outcome, is_missing)| {
            match (is_missing, is_outage) {
                (false, _) => Some(outcome),
                (true, false) => None,
                (true, true) => {
                    let what = format!("{missing} of {size} queries lost their data at once");
                    Some(Err(SourceError::Outage { host: host(), what }))
                }
            }
        });
        Some(outcomes.collect())
    }

    fn settle_one(
        &mut self,
        demand: &Demand,
        outcome: Result<Answer, SourceError>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let refresh = self.config.refresh;
        let next_round = self.next_round(&demand.account, now);
        let Some(entry) = self.entries.get_mut(demand) else { return };
        if entry.turn != Turn::Fetching {
            return;
        }
        let failure = outcome.as_ref().err().cloned();
        let health = self.health.entry(demand.account.clone()).or_default();
        changes.extend(health.note(demand, &mut entry.trouble, failure.as_ref(), now, refresh));

        entry.is_repeated = false;
        match &failure {
            None => {
                // 1, 2, 4, … as many as there may be.
                let grown = entry.company.saturating_mul(2);
                let was_at_fault = entry.rejections > 0;
                let is_whole = was_at_fault || grown >= self.config.batch_queries;
                entry.company = if is_whole { usize::MAX } else { grown };
                entry.rejections = 0;
            }
            // Alone it is at fault itself, if others have answers.
            Some(SourceError::Malformed { .. } | SourceError::Unprocessable) => {
                entry.company = 1;
                let grows = health.has_answers(now, refresh);
                entry.rejections = if grows { entry.rejections.saturating_add(1) } else { 1 };
            }
            Some(SourceError::NotUnderstood { .. }) => entry.company = 1,
            Some(_) => {}
        }
        entry.latest.send_modify(|latest| {
            let latest = Arc::make_mut(latest);
            latest.failure.clone_from(&failure);
            if let Ok(Answer { series, window_end_ms }) = outcome {
                let reading = Reading { series, window_end_ms, taken_at: now };
                latest.interval = refresh;
                remember(&mut latest.readings, reading);
            }
        });
        let lasts_alone = entry.trouble.lasts_alone(now);
        let rejections = entry.rejections;
        let due_at = match &failure {
            None => next_round,
            Some(failure) => match pause(failure, lasts_alone, rejections, refresh) {
                pause if pause <= refresh => next_round,
                pause => now + pause,
            },
        };
        let turn = Turn::Due(self.enter(due_at, demand));
        self.set_turn(demand, turn);
    }

    /// The first after `now`. An account that has none begins with `now`.
    fn next_round(&mut self, account: &Arc<Account>, now: Instant) -> Instant {
        let refresh = self.config.refresh;
        let began_at = *self.rounds.entry(account.clone()).or_insert(now);
        let since = now.saturating_duration_since(began_at).as_nanos();
        let into_round = since % refresh.as_nanos().max(1);
        let into_round = Duration::from_nanos(u64::try_from(into_round).unwrap_or_default());
        now + refresh.saturating_sub(into_round)
    }

    /// See `Refresher::replace`.
    pub(super) fn replace(&mut self, old: &Arc<Account>, new: &Arc<Account>, now: Instant) {
        self.replaced.retain(|account| account != new);
        self.replaced.push_back(old.clone());
        if self.replaced.len() > MAX_REPLACED {
            self.replaced.pop_front();
        }
        if let Some(health) = self.health.remove(old) {
            self.health.entry(new.clone()).or_default().inherit(health);
        }
        let moving: Vec<Demand> =
            self.entries.keys().filter(|demand| demand.account == *old).cloned().collect();
        for demand in moving {
            let Some(mut entry) = self.forget(&demand) else { continue };
            if old.base_url() != new.base_url() {
                continue;
            }
            let heir = Demand { account: new.clone(), query: demand.query };
            if let Some(present) = self.entries.get(&heir) {
                // Somebody asked with the new keys already; who waits with the old ones is told
                // by the closing channel.
                present.latest.send_if_modified(|latest| {
                    let is_empty = latest.readings.is_empty();
                    if is_empty {
                        let readings = entry.latest.borrow().readings.clone();
                        Arc::make_mut(latest).readings = readings;
                    }
                    is_empty
                });
                continue;
            }
            // No verdict on the new keys yet: the readings stay, held from when they were due.
            entry.company = usize::MAX;
            entry.latest.send_modify(|latest| Arc::make_mut(latest).failure = None);
            entry.trouble = Trouble::default();
            entry.turn = Turn::Due(self.enter(now, &heir));
            self.entries.insert(heir, entry);
        }
    }

    fn forget(&mut self, demand: &Demand) -> Option<Entry> {
        let entry = self.entries.remove(demand)?;
        if let Turn::Due(slot) | Turn::Asleep(slot) = entry.turn {
            self.agenda.remove(&slot);
        }
        Some(entry)
    }

    fn enter(&mut self, at: Instant, demand: &Demand) -> Slot {
        let slot = (at, self.next_slot);
        self.next_slot += 1;
        self.agenda.insert(slot, demand.clone());
        slot
    }

    fn set_turn(&mut self, demand: &Demand, turn: Turn) {
        if let Some(entry) = self.entries.get_mut(demand) {
            entry.turn = turn;
        }
    }
}

fn alone(demand: Demand) -> Batch {
    Batch { account: demand.account, queries: vec![demand.query] }
}

/// Newest first. An older one is kept for the triggers that find more in it than in every newer
/// one: points, or points of buckets that are full.
fn remember(readings: &mut Vec<Arc<Reading>>, reading: Reading) {
    let (points, full) = (reading.depth(), reading.depth_of_full_buckets());
    readings.retain(|older| older.depth() > points || older.depth_of_full_buckets() > full);
    readings.insert(0, Arc::new(reading));
    readings.truncate(MAX_READINGS);
}

/// A spent rate limit is not asked again before its reset. A query that keeps timing out while
/// others have answers is asked less often, for it takes a place that they could use.
fn pause(failure: &SourceError, lasts_alone: bool, rejections: u32, refresh: Duration) -> Duration {
    // The first may be a deployment that is corrected at once.
    let doubled = 1 << rejections.saturating_sub(1).min(20);
    match failure {
        SourceError::Malformed { .. } => {
            refresh.saturating_mul(doubled).min(MAX_QUARANTINE).max(refresh)
        }
        // That comes and goes.
        SourceError::Unprocessable => refresh.saturating_mul(doubled).min(MAX_PAUSE).max(refresh),
        SourceError::TimedOut { .. } if lasts_alone => (refresh * 4).min(MAX_PAUSE).max(refresh),
        SourceError::Throttled { limit: Some(limit), .. } => {
            limit.reset.map_or(refresh, |reset| reset.min(MAX_PAUSE).max(refresh))
        }
        _ => refresh,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::demand::{Keys, Point, Series};

    const ASKER: Asker<'_> = Asker { namespace: "shop", needs_step: false };
    const REFRESH: Duration = Duration::from_secs(15);

    fn book() -> Book {
        Book::new(Config {
            refresh: REFRESH,
            idle_after: Duration::from_mins(2),
            batch_queries: 1,
            rate_share: 0.8,
            max_round: Duration::from_mins(4),
            max_demands: 1000,
            max_demands_per_namespace: 1000,
        })
    }

    fn demand(text: &str) -> Demand {
        demand_with("key", text)
    }

    fn other_demand(text: &str) -> Demand {
        demand_with("other key", text)
    }

    fn demand_with(key: &str, text: &str) -> Demand {
        let keys = Keys::Bearer(SecretString::from(key));
        let account = Arc::new(Account::new("https://dd".parse().unwrap(), keys));
        let query = Query { text: text.into(), window: Window { age: 90, offset: 0 } };
        Demand { account, query }
    }

    fn outage() -> SourceError {
        SourceError::Outage { host: "dd".into(), what: "503".into() }
    }

    fn refused() -> SourceError {
        SourceError::Refused { status: 403, host: "dd".into() }
    }

    fn malformed() -> SourceError {
        SourceError::Malformed { reason: "no".into() }
    }

    fn answer() -> Answer {
        Answer { series: Box::default(), window_end_ms: 0 }
    }

    /// Lets the demands have these outcomes in one round, and says what the log would.
    fn round(
        book: &mut Book,
        now: Instant,
        outcome: impl Fn(&str) -> Result<Answer, SourceError>,
    ) -> Vec<String> {
        let mut told = Vec::new();
        for batch in book.take_due(now, usize::MAX) {
            let outcomes = batch.queries.iter().map(|query| outcome(&query.text)).collect();
            told.extend(book.settle(batch, outcomes, now).into_iter().map(|change| match change {
                Change::AccountFails(..) => "account fails".to_owned(),
                Change::AccountRecovers(_) => "account recovers".to_owned(),
                Change::QueryFails(demand, _) => format!("{} fails", demand.query.text),
                Change::QueryRecovers(demand) => format!("{} recovers", demand.query.text),
            }));
        }
        told
    }

    #[test]
    fn an_outage_is_told_once_for_all_queries_of_an_account() {
        let (mut book, now) = (book(), Instant::now());
        let _watched = ["a", "b"].map(|text| book.ask(&demand(text), ASKER, now).0);
        let mut at = |outcome: &dyn Fn(&str) -> Result<Answer, SourceError>, rounds: u32| {
            round(&mut book, now + REFRESH * rounds, outcome)
        };
        assert_eq!(at(&|_| Err(outage()), 0), ["account fails"]);
        assert!(at(&|_| Err(outage()), 1).is_empty());
        // Another kind of trouble asks for another remedy.
        assert_eq!(at(&|_| Err(refused()), 2), ["account fails"]);
        assert_eq!(at(&|_| Ok(answer()), 3), ["account recovers"]);
        assert!(at(&|_| Ok(answer()), 4).is_empty());
    }

    #[test]
    fn a_query_that_fails_alone_is_told_by_itself() {
        let (mut book, now) = (book(), Instant::now());
        let _watched = ["slow", "sound"].map(|text| book.ask(&demand(text), ASKER, now).0);
        let slow_fails = |text: &str| if text == "slow" { Err(outage()) } else { Ok(answer()) };
        let mut at = |outcome: &dyn Fn(&str) -> Result<Answer, SourceError>, tenths: u32| {
            round(&mut book, now + REFRESH * tenths / 10, outcome)
        };
        assert!(at(&|_| Ok(answer()), 0).is_empty());
        // It may yet be an outage, until a neighbour succeeds after it.
        assert!(at(&slow_fails, 10).is_empty());
        assert!(at(&slow_fails, 20).is_empty());
        assert_eq!(at(&slow_fails, 30), ["slow fails"]);
        assert!(at(&slow_fails, 40).is_empty());
        assert_eq!(at(&|_| Ok(answer()), 50), ["slow recovers"]);
    }

    #[test]
    fn a_query_that_keeps_timing_out_alone_is_asked_less_often() {
        let (mut book, now) = (book(), Instant::now());
        let _watched = ["slow", "sound"].map(|text| book.ask(&demand(text), ASKER, now).0);
        let mut asked = Vec::new();
        for seconds in 0..600 {
            let now = now + Duration::from_secs(seconds);
            for batch in book.take_due(now, usize::MAX) {
                let is_slow = &*batch.queries[0].text == "slow";
                if is_slow {
                    asked.push(seconds);
                }
                let timed_out =
                    SourceError::TimedOut { host: "dd".into(), after: Duration::from_secs(10) };
                let outcome = if is_slow { Err(timed_out) } else { Ok(answer()) };
                book.settle(batch, vec![outcome], now);
            }
        }
        // Each 15 s for two minutes, in which a reading may be held, and each minute from then on.
        assert_eq!(asked, [0, 15, 30, 45, 60, 75, 90, 105, 120, 180, 240, 300, 360, 420, 480, 540]);
    }

    #[test]
    fn a_trouble_that_new_keys_end_is_told_to_end() {
        let (mut book, now) = (book(), Instant::now());
        let (old, new) = (demand("a"), other_demand("a"));
        let _watched = book.ask(&old, ASKER, now).0;
        assert_eq!(round(&mut book, now, |_| Err(refused())), ["account fails"]);
        book.replace(&old.account, &new.account, now);
        assert_eq!(round(&mut book, now, |_| Ok(answer())), ["account recovers"]);
    }

    #[test]
    fn a_rejected_query_is_told_where_its_trigger_is_known() {
        let (mut book, now) = (book(), Instant::now());
        let _watched = book.ask(&demand("a"), ASKER, now).0;
        assert!(round(&mut book, now, |_| Err(malformed())).is_empty());
    }

    #[test]
    fn a_demand_that_comes_back_to_the_same_outage_is_not_told_again() {
        let (mut book, now) = (book(), Instant::now());
        drop(book.ask(&demand("a"), ASKER, now));
        assert_eq!(round(&mut book, now, |_| Err(outage())), ["account fails"]);
        for hour in 1..3 {
            round(&mut book, now + Duration::from_hours(hour), |_| Err(outage()));
        }
        assert_eq!((book.known(), book.agenda.len()), (0, 0));
        let now = now + Duration::from_hours(3);
        drop(book.ask(&demand("a"), ASKER, now));
        assert!(round(&mut book, now, |_| Err(outage())).is_empty());
    }

    #[test]
    fn who_asks_with_replaced_keys_was_too_late() {
        let (mut book, now) = (book(), Instant::now());
        let (old, new) = (demand("a"), other_demand("a"));
        book.replace(&old.account, &new.account, now);
        assert!(book.ask(&old, ASKER, now).0.has_changed().is_err());
        assert_eq!(book.known(), 0);
        // And back again.
        book.replace(&new.account, &old.account, now);
        assert!(book.ask(&old, ASKER, now).0.has_changed().is_ok());
    }

    #[test]
    fn an_outcome_that_comes_after_two_changes_of_keys_is_of_no_interest() {
        let (mut book, now) = (book(), Instant::now());
        let (demand, other) = (demand("a"), other_demand("a"));
        let (watched, _) = book.ask(&demand, ASKER, now);
        let [batch] = &*book.take_due(now, 1) else { panic!("one is due") };
        book.replace(&demand.account, &other.account, now);
        book.replace(&other.account, &demand.account, now);
        book.settle(batch.clone(), vec![Ok(answer())], now);
        assert!(watched.borrow().readings.is_empty());
        assert_eq!((book.known(), book.agenda.len()), (1, 1));
    }

    #[test]
    fn a_query_without_an_outcome_has_failed() {
        let (mut book, now) = (book(), Instant::now());
        let (watched, _) = book.ask(&demand("a"), ASKER, now);
        for batch in book.take_due(now, 1) {
            book.settle(batch, Vec::new(), now);
        }
        let failure = watched.borrow().failure.clone();
        assert!(matches!(failure, Some(SourceError::NotUnderstood { .. })));
        assert_eq!(book.next_due(), Some(now + REFRESH));
    }

    /// So many points, the newest of which is of a bucket that still fills.
    fn reading(points: i64) -> Reading {
        let points = (0..points).map(|n| Point { at_ms: n * 10_000, value: 1.0 });
        let points: Box<[Point]> = points.collect();
        let window_end_ms = points.last().map_or(0, |newest| newest.at_ms);
        let series =
            Series { scope: "*".into(), step: Some(Duration::from_secs(10)), nulls: 0, points };
        let series = vec![series].into();
        Reading { series, window_end_ms, taken_at: Instant::now() }
    }

    fn depths(readings: &[Arc<Reading>]) -> Vec<usize> {
        readings.iter().map(|reading| reading.depth()).collect()
    }

    #[test]
    fn older_readings_are_kept_only_while_there_is_more_in_them() {
        let mut readings = Vec::new();
        for (points, expected) in [
            (9, &[9][..]),
            (8, &[8, 9]),
            (0, &[0, 8, 9]),
            (0, &[0, 8, 9]),
            (1, &[1, 8, 9]),
            (0, &[0, 1, 8, 9]),
            (8, &[8, 9]),
            (9, &[9]),
        ] {
            remember(&mut readings, reading(points));
            assert_eq!(depths(&readings), expected);
        }
    }

    #[test]
    fn an_older_reading_with_more_full_buckets_is_kept() {
        let full = Reading { window_end_ms: 60_000, ..reading(1) };
        let mut readings = vec![Arc::new(full)];
        remember(&mut readings, reading(1));
        assert_eq!(readings.len(), 2);
        remember(&mut readings, reading(2));
        assert_eq!(readings.len(), 1);
    }
}
