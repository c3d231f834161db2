//! What is demanded, what is known of it, and whose turn it is. Pure: it takes `now`, does no I/O
//! and cannot fail.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    Asker, Config, Latest,
    entry::{Entry, FETCHING, Ledger, Namespace, Turn},
    health::Trouble,
    organisations::Organisations,
    queue::{Lane, Place, Waiting, ripe_at},
    travel::Load,
};
use crate::{
    demand::{Account, Demand},
    source::SourceError,
};

/// How long the readings of a demand that fell asleep are kept: KEDA's `pollingInterval` may be
/// longer than `--idle-after`.
const MEMORY: Duration = Duration::from_mins(10);
/// How long a first demand waits for others to travel with.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// Somebody waits for it, or follows it: it goes before what falls due by so much later.
const HEAD_START: Duration = Duration::from_millis(500);
/// Most replaced accounts that are remembered; one RPC may know the last.
const MAX_REPLACED: usize = 4;
/// Most namespaces of a demand among which its cost is shared; more share it unseen.
const MAX_ASKERS: usize = 16;

/// Bits of a place among first readings; above them stand the failures.
pub(super) const TURNS: u32 = 32;

pub(super) struct Book {
    pub(super) config: Config,
    /// For jitter.
    rng: fastrand::Rng,
    pub(super) entries: HashMap<Demand, Entry>,
    pub(super) ledgers: HashMap<Arc<Account>, Ledger>,
    pub(super) organisations: Organisations,
    pub(super) namespaces: HashMap<Arc<str>, Namespace>,
    /// Entries that sleep, by when they are forgotten.
    pub(super) asleep: BTreeMap<(Instant, u64), Demand>,
    began_at: Instant,
    /// Counts entries and places.
    next_number: u64,
    /// The place of the first reading that was taken last.
    pub(super) first_clock: u64,
    /// The last accounts that were replaced: who asks with one was too late.
    replaced: VecDeque<Arc<Account>>,
    /// What those are told for whom there is no room, in all or of their namespace.
    full: watch::Sender<Arc<Latest>>,
    full_of_namespace: watch::Sender<Arc<Latest>>,
    pub(super) planned_at: Option<Instant>,
    /// Whether something is demanded, or no more, since the last plan.
    pub(super) is_changed: bool,
}

impl Book {
    /// `seed` is for jitter.
    pub(super) fn new(config: Config, seed: u64, now: Instant) -> Self {
        let full = |most, of_namespace| {
            let failure = Some(SourceError::Full { most, of_namespace });
            watch::Sender::new(Arc::new(Latest { failure, ..Latest::default() }))
        };
        Self {
            rng: fastrand::Rng::with_seed(seed),
            entries: HashMap::new(),
            ledgers: HashMap::new(),
            organisations: Organisations::new(config.rate_share),
            namespaces: HashMap::new(),
            asleep: BTreeMap::new(),
            began_at: now,
            next_number: 0,
            first_clock: 0,
            replaced: VecDeque::new(),
            full: full(config.max_demands, false),
            full_of_namespace: full(config.max_demands_per_namespace, true),
            planned_at: None,
            is_changed: false,
            config,
        }
    }

    /// Notes the interest. True if there is something to do that there was not before.
    pub(super) fn ask(
        &mut self,
        demand: &Demand,
        asker: Asker<'_>,
        now: Instant,
    ) -> (watch::Receiver<Arc<Latest>>, bool) {
        if self.replaced.contains(&demand.account) {
            let (_closes, receiver) = watch::channel(Arc::default());
            return (receiver, false);
        }
        if !self.entries.contains_key(demand) {
            return self.begin(demand, asker, now);
        }
        self.note_asker(demand, asker, now);
        let entry = self.entries.get_mut(demand).expect("a demand that was noted has an entry");
        let receiver = entry.latest.subscribe();
        match entry.turn {
            Turn::Asleep(slot) => {
                // A failure is remembered until the next turn, and that has passed asleep.
                entry.latest.send_modify(|latest| Arc::make_mut(latest).failure = None);
                entry.trouble = Trouble::default();
                self.asleep.remove(&slot);
                self.is_changed = true;
                self.wait(demand, self.first_at(now), false);
                (receiver, true)
            }
            // Somebody waits for it.
            Turn::Waiting { due_at, class, place }
                if due_at <= now && class.lane == Lane::Refresh =>
            {
                let at = due_at.checked_sub(HEAD_START).unwrap_or(due_at);
                let order = order_of(self.began_at, at);
                if order < place.order {
                    self.leave_queue(demand);
                    self.wait(demand, due_at, true);
                }
                (receiver, false)
            }
            _ => (receiver, false),
        }
    }

    fn begin(
        &mut self,
        demand: &Demand,
        asker: Asker<'_>,
        now: Instant,
    ) -> (watch::Receiver<Arc<Latest>>, bool) {
        let of_namespace = self.namespaces.get(asker.namespace).map_or(0, |n| n.demands);
        if of_namespace >= self.config.max_demands_per_namespace {
            return (self.full_of_namespace.subscribe(), false);
        }
        if self.entries.len() >= self.config.max_demands {
            let Some((_, oldest)) = self.asleep.pop_first() else {
                return (self.full.subscribe(), false);
            };
            self.forget(&oldest);
        }
        let interval = self.config.refresh;
        let (latest, receiver) = watch::channel(Arc::new(Latest { interval, ..Latest::default() }));
        let entry = Entry {
            latest,
            asked_at: now,
            askers: Vec::with_capacity(1),
            needs_step: false,
            // Until it waits.
            turn: FETCHING,
            number: self.number(),
            interval,
            trouble: Trouble::default(),
            load: Load::of(&demand.query),
            company: usize::MAX,
            trips: 0,
            calm: 0,
            failures: 0,
            fault: None,
            is_solo: false,
            is_repeated: false,
            rejections: 0,
            travelled_with: 0,
        };
        self.insert(demand, entry);
        self.note_asker(demand, asker, now);
        self.is_changed = true;
        self.wait(demand, self.first_at(now), false);
        (receiver, true)
    }

    fn note_asker(&mut self, demand: &Demand, asker: Asker<'_>, now: Instant) {
        let Some(entry) = self.entries.get_mut(demand) else { return };
        entry.asked_at = now;
        entry.needs_step |= asker.needs_step;
        let known = entry.askers.iter_mut().find(|(namespace, _)| &**namespace == asker.namespace);
        if let Some((_, asked_at)) = known {
            *asked_at = now;
        } else if entry.askers.len() < MAX_ASKERS {
            let name = match self.namespaces.get_key_value(asker.namespace) {
                Some((name, _)) => name.clone(),
                None => asker.namespace.into(),
            };
            self.namespaces.entry(name.clone()).or_default().demands += 1;
            entry.askers.push((name, now));
            self.is_changed = true;
        }
    }

    /// Nobody waits for company who travels alone.
    fn first_at(&self, now: Instant) -> Instant {
        if self.config.batch_queries > 1 { now + FIRST_WAIT } else { now }
    }

    /// Lets it wait until then. `is_awaited` if somebody wants it: it goes first among equals.
    pub(super) fn wait(&mut self, demand: &Demand, due_at: Instant, is_awaited: bool) {
        let number = self.number();
        let Some(entry) = self.entries.get_mut(demand) else { return };
        let class = entry.class(&demand.query);
        let order = if class.lane == Lane::First {
            // One of each namespace after the other, however many each has.
            let first = entry.askers.first().and_then(|(name, _)| self.namespaces.get_mut(name));
            let clock = self.first_clock;
            first.map_or(clock, |namespace| {
                namespace.next_first = namespace.next_first.max(clock) + 1;
                // What failed had its turn.
                namespace.next_first | u64::from(entry.failures) << TURNS
            })
        } else {
            let is_awaited = is_awaited || entry.latest.receiver_count() > 0;
            let head_start = if is_awaited { HEAD_START } else { Duration::ZERO };
            order_of(self.began_at, due_at.checked_sub(head_start).unwrap_or(due_at))
        };
        let place = Place { order, number };
        let ripe_at = match class.lane {
            Lane::First => due_at.checked_sub(FIRST_WAIT).unwrap_or(due_at),
            Lane::Refresh => ripe_at(due_at, entry.interval),
            Lane::Quarantine => due_at,
        };
        entry.turn = Turn::Waiting { class, place, due_at };
        let waiting = Waiting { query: demand.query.clone(), load: entry.load, due_at, ripe_at };
        if let Some(ledger) = self.ledgers.get_mut(&demand.account) {
            ledger.queue.enter(class, place, waiting);
        }
    }

    /// Out of the queue, if it stands in it; the caller gives it another turn.
    pub(super) fn leave_queue(&mut self, demand: &Demand) {
        let Some(entry) = self.entries.get(demand) else { return };
        if let Turn::Waiting { class, place, .. } = entry.turn
            && let Some(ledger) = self.ledgers.get_mut(&demand.account)
        {
            ledger.queue.leave(&class, &place);
        }
    }

    pub(super) fn put_to_sleep(&mut self, demand: &Demand) {
        self.leave_queue(demand);
        let number = self.number();
        let Some(entry) = self.entries.get_mut(demand) else { return };
        let slot = (entry.asked_at + self.config.idle_after + MEMORY, number);
        entry.turn = Turn::Asleep(slot);
        let askers = std::mem::take(&mut entry.askers);
        self.asleep.insert(slot, demand.clone());
        self.drop_askers(askers.into_iter().map(|(name, _)| name));
        self.is_changed = true;
    }

    pub(super) fn drop_askers(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        for name in names {
            if let Some(namespace) = self.namespaces.get_mut(&name) {
                namespace.demands -= 1;
                if namespace.demands == 0 {
                    self.namespaces.remove(&name);
                }
            }
        }
    }

    pub(super) fn forget_sleepers(&mut self, now: Instant) {
        while let Some(first) = self.asleep.first_entry()
            && first.key().0 <= now
        {
            let demand = first.remove();
            self.forget(&demand);
        }
    }

    /// See `Refresher::hasten`. True if there is something to do that there was not before.
    pub(super) fn hasten(&mut self, demand: &Demand, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(demand) else { return false };
        match &mut entry.turn {
            Turn::Waiting { due_at, .. } if *due_at > now => {
                self.leave_queue(demand);
                self.wait(demand, now, true);
                return true;
            }
            Turn::Fetching { is_outdated } => *is_outdated = true,
            Turn::Waiting { .. } | Turn::Refused | Turn::Asleep(_) => {}
        }
        false
    }

    /// See `Refresher::readmit`.
    pub(super) fn readmit(&mut self, account: &Arc<Account>) {
        self.replaced.retain(|replaced| replaced != account);
    }

    /// See `Refresher::replace`.
    pub(super) fn replace(&mut self, old: &Arc<Account>, new: &Arc<Account>, now: Instant) {
        self.readmit(new);
        self.replaced.push_back(old.clone());
        if self.replaced.len() > MAX_REPLACED {
            self.replaced.pop_front();
        }
        if let Some(ledger) = self.ledgers.get_mut(old) {
            let health = std::mem::take(&mut ledger.health);
            let ledger = self.ledgers.entry(new.clone()).or_insert_with(|| Ledger::new(new));
            ledger.health.inherit(health);
        }
        let moving: Vec<Demand> =
            self.entries.keys().filter(|demand| demand.account == *old).cloned().collect();
        for demand in moving {
            let Some(mut entry) = self.remove(&demand) else { continue };
            let askers = std::mem::take(&mut entry.askers);
            let heir = Demand { account: new.clone(), query: demand.query };
            let is_same_site = old.base_url() == new.base_url();
            if let Some(present) = self.entries.get(&heir).filter(|_| is_same_site) {
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
            }
            if !is_same_site || self.entries.contains_key(&heir) {
                self.drop_askers(askers.into_iter().map(|(name, _)| name));
                continue;
            }
            // No verdict on the new keys yet: the readings stay, held from when they were due.
            entry.askers = askers;
            (entry.company, entry.rejections) = (usize::MAX, 0);
            (entry.fault, entry.failures) = (None, 0);
            entry.latest.send_modify(|latest| Arc::make_mut(latest).failure = None);
            entry.trouble = Trouble::default();
            let is_asleep = matches!(entry.turn, Turn::Asleep(_));
            self.insert(&heir, entry);
            if is_asleep {
                self.put_to_sleep(&heir);
            } else {
                self.wait(&heir, now, false);
            }
        }
        self.is_changed = true;
    }

    fn forget(&mut self, demand: &Demand) {
        if let Some(entry) = self.remove(demand) {
            self.drop_askers(entry.askers.into_iter().map(|(name, _)| name));
        }
    }

    fn insert(&mut self, demand: &Demand, entry: Entry) {
        let ledger = self.ledgers.entry(demand.account.clone());
        ledger.or_insert_with(|| Ledger::new(&demand.account)).demands += 1;
        self.entries.insert(demand.clone(), entry);
    }

    fn remove(&mut self, demand: &Demand) -> Option<Entry> {
        self.leave_queue(demand);
        let entry = self.entries.remove(demand)?;
        if let Some(ledger) = self.ledgers.get_mut(&demand.account) {
            ledger.demands -= 1;
        }
        if let Turn::Asleep(slot) = entry.turn {
            self.asleep.remove(&slot);
        }
        Some(entry)
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// What was put off together is not to come back together.
    pub(super) fn jitter(&mut self) -> f64 {
        0.8 + 0.2 * self.rng.f64()
    }
}

/// In microseconds.
fn order_of(began_at: Instant, at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(began_at).as_micros()).unwrap_or(u64::MAX)
}
