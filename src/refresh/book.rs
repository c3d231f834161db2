//! What is demanded, what is known of it, and what is due. Pure: it takes `now`, does no I/O
//! and cannot fail.

use std::{
    collections::{BTreeMap, HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Config, Latest};
use crate::{
    demand::{Account, Demand, Reading},
    source::{Answer, Batch, SourceError},
};

/// How long the readings of a demand that fell asleep are kept: KEDA's `pollingInterval` may be
/// longer than `--idle-after`.
const MEMORY: Duration = Duration::from_mins(10);
/// The longest that a rate limit puts off the next attempt.
const MAX_PAUSE: Duration = Duration::from_mins(4);
/// Most readings that are kept of one demand.
const MAX_READINGS: usize = 3;

pub(super) struct Book {
    config: Config,
    entries: HashMap<Demand, Entry>,
    /// Every entry that is not being fetched, by when it wants attention.
    agenda: BTreeMap<Slot, Demand>,
    next_slot: u64,
    /// Demands of each account that fail for a reason that is the account's.
    failing: HashMap<Arc<Account>, usize>,
}

struct Entry {
    latest: watch::Sender<Latest>,
    asked_at: Instant,
    turn: Turn,
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

/// What an outcome means for whoever reads the log.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    AccountFails(Arc<Account>, SourceError),
    AccountRecovers(Arc<Account>),
    QueryFails(Demand, SourceError),
    QueryRecovers(Demand),
}

impl Book {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            agenda: BTreeMap::new(),
            next_slot: 0,
            failing: HashMap::new(),
        }
    }

    /// Number of demands that are known, awake or asleep.
    pub(super) fn known(&self) -> usize {
        self.entries.len()
    }

    /// Notes the interest. True if there is something due that was not before.
    pub(super) fn ask(&mut self, demand: &Demand, now: Instant) -> (watch::Receiver<Latest>, bool) {
        if let Some(entry) = self.entries.get_mut(demand) {
            entry.asked_at = now;
            let receiver = entry.latest.subscribe();
            let Turn::Asleep(slot) = entry.turn else { return (receiver, false) };
            // A failure is remembered until the next turn, and that has passed asleep.
            let failed =
                entry.latest.borrow().failure.as_ref().is_some_and(SourceError::is_accounts);
            entry.latest.send_modify(|latest| latest.failure = None);
            if failed {
                self.account_is_well(&demand.account);
            }
            self.agenda.remove(&slot);
            let turn = Turn::Due(self.enter(now, demand));
            self.set_turn(demand, turn);
            return (receiver, true);
        }
        let (latest, receiver) = watch::channel(Latest::default());
        let turn = Turn::Due(self.enter(now, demand));
        self.entries.insert(demand.clone(), Entry { latest, asked_at: now, turn });
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
            && let Some(first) = self.agenda.first_entry()
            && first.key().0 <= now
        {
            let demand = first.remove();
            let Some(entry) = self.entries.get_mut(&demand) else { continue };
            let followed = entry.latest.receiver_count() > 0;
            match entry.turn {
                Turn::Asleep(_) => drop(self.forget(&demand)),
                _ if followed || now < entry.asked_at + self.config.idle_after => {
                    entry.turn = Turn::Fetching;
                    batches.push(Batch { account: demand.account, queries: vec![demand.query] });
                }
                _ => {
                    let forget_at = entry.asked_at + self.config.idle_after + MEMORY;
                    let turn = Turn::Asleep(self.enter(forget_at, &demand));
                    self.set_turn(&demand, turn);
                }
            }
        }
        batches
    }

    /// Enters the outcomes of a batch, in the order of its queries; a query without one has
    /// failed by our own fault. Outcomes of demands that are gone are of no interest.
    pub(super) fn settle(
        &mut self,
        batch: Batch,
        outcomes: Vec<Result<Answer, SourceError>>,
        now: Instant,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut outcomes = outcomes.into_iter();
        for query in batch.queries {
            let demand = Demand { account: batch.account.clone(), query };
            let outcome = outcomes.next().unwrap_or_else(|| {
                let what = "the request was lost in the scaler; please report it".to_owned();
                Err(SourceError::NotUnderstood { host: demand.account.host(), what })
            });
            self.settle_one(&demand, outcome, now, &mut changes);
        }
        changes
    }

    fn settle_one(
        &mut self,
        demand: &Demand,
        outcome: Result<Answer, SourceError>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let refresh = self.config.refresh;
        let Some(entry) = self.entries.get(demand) else { return };
        if entry.turn != Turn::Fetching {
            return;
        }
        let before = entry.latest.borrow().failure.clone();
        let after = outcome.as_ref().err().cloned();
        let due_at = now + after.as_ref().map_or(refresh, |failure| pause(failure, refresh));
        entry.latest.send_modify(|latest| match outcome {
            Ok(Answer { series, window_end_ms }) => {
                let reading = Reading { series, window_end_ms, taken_at: now, interval: refresh };
                remember(&mut latest.readings, reading);
                latest.failure = None;
            }
            Err(failure) => latest.failure = Some(failure),
        });
        let turn = Turn::Due(self.enter(due_at, demand));
        self.set_turn(demand, turn);
        self.note(demand, before, after, changes);
    }

    /// A failure that is the account's is told once for all its demands.
    fn note(
        &mut self,
        demand: &Demand,
        before: Option<SourceError>,
        after: Option<SourceError>,
        changes: &mut Vec<Change>,
    ) {
        let split = |failure: Option<SourceError>| match failure {
            Some(failure) if failure.is_accounts() => (Some(failure), None),
            other => (None, other),
        };
        let well = after.is_none();
        let (account_before, query_before) = split(before);
        let (account_after, query_after) = split(after);

        match (account_before, account_after) {
            (None, Some(failure)) => {
                let failing = self.failing.entry(demand.account.clone()).or_insert(0);
                *failing += 1;
                if *failing == 1 {
                    changes.push(Change::AccountFails(demand.account.clone(), failure));
                }
            }
            (Some(_), None) => {
                if self.account_is_well(&demand.account) {
                    changes.push(Change::AccountRecovers(demand.account.clone()));
                }
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        match (query_before, query_after) {
            (None, Some(failure)) => changes.push(Change::QueryFails(demand.clone(), failure)),
            (Some(_), None) if well => changes.push(Change::QueryRecovers(demand.clone())),
            _ => {}
        }
    }

    /// One demand of the account fails no more; true if it was the last.
    fn account_is_well(&mut self, account: &Arc<Account>) -> bool {
        let Some(failing) = self.failing.get_mut(account) else { return false };
        *failing -= 1;
        let well = *failing == 0;
        if well {
            self.failing.remove(account);
        }
        well
    }

    /// See `Refresher::succeed`.
    pub(super) fn succeed(&mut self, old: &Arc<Account>, new: &Arc<Account>, now: Instant) {
        let moving: Vec<Demand> =
            self.entries.keys().filter(|demand| demand.account == *old).cloned().collect();
        for demand in moving {
            let Some(mut entry) = self.forget(&demand) else { continue };
            if old.base_url() != new.base_url() {
                continue;
            }
            let heir = Demand { account: new.clone(), query: demand.query };
            if let hash_map::Entry::Occupied(present) = self.entries.entry(heir.clone()) {
                // Somebody asked with the new keys already; who waits with the old ones is told
                // by the closing channel.
                present.get().latest.send_if_modified(|latest| {
                    let empty = latest.readings.is_empty();
                    if empty {
                        latest.readings.clone_from(&entry.latest.borrow().readings);
                    }
                    empty
                });
                continue;
            }
            // No verdict on the new keys yet: the readings stay, held from when they were due.
            entry.latest.send_modify(|latest| latest.failure = None);
            entry.turn = Turn::Due(self.enter(now, &heir));
            self.entries.insert(heir, entry);
        }
    }

    fn forget(&mut self, demand: &Demand) -> Option<Entry> {
        let entry = self.entries.remove(demand)?;
        if let Turn::Due(slot) | Turn::Asleep(slot) = entry.turn {
            self.agenda.remove(&slot);
        }
        if entry.latest.borrow().failure.as_ref().is_some_and(SourceError::is_accounts) {
            self.account_is_well(&demand.account);
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

/// Newest first, and each older one deeper than all that are newer.
fn remember(readings: &mut Vec<Arc<Reading>>, reading: Reading) {
    let depth = reading.depth();
    readings.retain(|older| older.depth() > depth);
    readings.insert(0, Arc::new(reading));
    readings.truncate(MAX_READINGS);
}

/// A spent rate limit is not asked again before its reset.
fn pause(failure: &SourceError, refresh: Duration) -> Duration {
    match failure {
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
    use crate::demand::{Keys, Query, Series, Window};

    const REFRESH: Duration = Duration::from_secs(15);

    fn book() -> Book {
        Book::new(Config { refresh: REFRESH, idle_after: Duration::from_mins(2) })
    }

    fn demand(text: &str) -> Demand {
        let keys = Keys::Bearer(SecretString::from("key"));
        let account = Arc::new(Account::new("https://dd".parse().unwrap(), keys));
        let query = Query { text: text.into(), window: Window { age: 90, offset: 0 } };
        Demand { account, query }
    }

    fn outage() -> SourceError {
        SourceError::Outage { host: "dd".into(), what: "503".into() }
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
        let _watched = ["a", "b"].map(|text| book.ask(&demand(text), now).0);
        assert_eq!(round(&mut book, now, |_| Err(outage())), ["account fails"]);
        let now = now + REFRESH;
        assert!(round(&mut book, now, |_| Err(outage())).is_empty());
        let now = now + REFRESH;
        let half = |text: &str| if text == "a" { Ok(answer()) } else { Err(outage()) };
        assert!(round(&mut book, now, half).is_empty());
        let now = now + REFRESH;
        assert_eq!(round(&mut book, now, |_| Ok(answer())), ["account recovers"]);
    }

    #[test]
    fn a_bad_query_is_told_by_itself() {
        let (mut book, now) = (book(), Instant::now());
        let _watched = ["a", "b"].map(|text| book.ask(&demand(text), now).0);
        let one_bad = |text: &str| if text == "a" { Err(malformed()) } else { Ok(answer()) };
        assert_eq!(round(&mut book, now, one_bad), ["a fails"]);
        let now = now + REFRESH;
        assert_eq!(round(&mut book, now, |_| Err(outage())), ["account fails"]);
        let now = now + REFRESH;
        let mut told = round(&mut book, now, one_bad);
        told.sort();
        assert_eq!(told, ["a fails", "account recovers"]);
        let now = now + REFRESH;
        assert_eq!(round(&mut book, now, |_| Ok(answer())), ["a recovers"]);
    }

    #[test]
    fn a_demand_that_is_forgotten_fails_no_more() {
        let (mut book, now) = (book(), Instant::now());
        drop(book.ask(&demand("a"), now));
        assert_eq!(round(&mut book, now, |_| Err(outage())), ["account fails"]);
        for hour in 1..3 {
            round(&mut book, now + Duration::from_hours(hour), |_| Ok(answer()));
        }
        assert_eq!((book.known(), book.failing.len(), book.agenda.len()), (0, 0, 0));
    }

    #[test]
    fn a_query_without_an_outcome_has_failed() {
        let (mut book, now) = (book(), Instant::now());
        let (watched, _) = book.ask(&demand("a"), now);
        for batch in book.take_due(now, 1) {
            book.settle(batch, Vec::new(), now);
        }
        let failure = watched.borrow().failure.clone();
        assert!(matches!(failure, Some(SourceError::NotUnderstood { .. })));
        assert_eq!(book.next_due(), Some(now + REFRESH));
    }

    fn depths(readings: &[Arc<Reading>]) -> Vec<usize> {
        readings.iter().map(|reading| reading.depth()).collect()
    }

    #[test]
    fn older_readings_are_kept_only_while_they_are_deeper() {
        let reading = |points: usize| Reading {
            series: vec![Series {
                scope: "*".into(),
                step: None,
                points: vec![crate::demand::Point { at_ms: 0, value: 1.0 }; points].into(),
            }]
            .into(),
            window_end_ms: 0,
            taken_at: Instant::now(),
            interval: REFRESH,
        };
        let mut readings = Vec::new();
        for (points, expected) in [
            (9, &[9][..]),
            (8, &[8, 9]),
            (0, &[0, 8, 9]),
            (0, &[0, 8, 9]),
            (1, &[1, 8, 9]),
            (0, &[0, 1, 8]),
            (8, &[8]),
        ] {
            remember(&mut readings, reading(points));
            assert_eq!(depths(&readings), expected);
        }
    }
}
