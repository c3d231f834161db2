//! Hours of everything that can go wrong, in front of a Datadog that counts: seeded schedules of
//! faults, of limits that others use too, and of queries that come and go. The book alone, without a
//! runtime, so that there can be many: `CHAOS_SCHEDULES=10000 cargo test chaos`.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{
    book::Book,
    entry::Turn,
    scripted::{CONFIG, account, demand_of, seconds},
    *,
};
use crate::{
    demand::{Point, Series},
    source::{Answer, Batch, RateLimit, Reply},
};

const HOLD: Duration = Duration::from_mins(1);
/// For so long there are faults; then all is well, for as long as everybody needs to recover.
const TROUBLE: u64 = 900;
const CALM: u64 = 1_500;
/// Requests that may be under way of an account while nobody knows its limit yet, or that are
/// counted in the period after the one they were sent in.
const SLACK: u64 = 4;

/// A simulated organisation; the first one has no faults.
#[derive(Debug)]
struct Organisation {
    host: String,
    keys: usize,
    limit: u64,
    period: u64,
    /// How far into its period it is at the start.
    phase: u64,
    /// Requests of others, each period.
    others: u64,
    has_headers: bool,
    faults: Vec<(std::ops::Range<u64>, Fault)>,
    /// Of each period.
    ours: BTreeMap<u64, u64>,
    /// Accounts of which no reply has told the limit: each has 300 an hour of its own.
    untold: Vec<Arc<Account>>,
    told: Vec<Arc<Account>>,
    /// When there last was one, in seconds.
    untold_at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Throttled {
        tells: bool,
    },
    Outage,
    Hang,
    Garbage,
    Partial,
    Unprocessable,
    Refused,
    /// `Reset` says anything.
    Jumps,
}

impl Organisation {
    fn draw(number: usize, random: &mut fastrand::Rng) -> Self {
        let terms = [(270, 600), (60, 600), (60, 60), (3_300, 600), (30, 120)];
        let (limit, period) = terms[random.usize(..terms.len())];
        let is_sound = number == 0;
        let has_headers = is_sound || limit < 3_000 || random.bool();
        let faults = (0..random.usize(..6)).map(|_| {
            let from = random.u64(..TROUBLE);
            let fault = match random.u8(..8) {
                0 => Fault::Throttled { tells: random.bool() },
                1 => Fault::Outage,
                2 => Fault::Hang,
                3 => Fault::Garbage,
                4 => Fault::Partial,
                5 => Fault::Unprocessable,
                6 => Fault::Refused,
                _ => Fault::Jumps,
            };
            (from..(from + random.u64(1..400)).min(TROUBLE), fault)
        });
        let faults: Vec<_> = faults.collect();
        Self {
            host: format!("dd-{number}"),
            limit: if is_sound { 1_000_000 } else { limit },
            period: if is_sound { 3_600 } else { period },
            phase: random.u64(..period),
            others: if is_sound || random.bool() { 0 } else { random.u64(..limit / 2) },
            has_headers,
            // Without headers, accounts cannot be told to be one organisation's.
            keys: if has_headers { random.usize(1..4) } else { 1 },
            faults: if is_sound { Vec::new() } else { faults },
            ours: BTreeMap::new(),
            untold: Vec::new(),
            told: Vec::new(),
            untold_at: None,
        }
    }

    fn note(&mut self, account: &Arc<Account>, is_told: bool, at: u64) {
        let is_known = !self.has_headers || self.told.contains(account);
        if !is_known && is_told {
            self.untold.retain(|untold| untold != account);
            self.told.push(account.clone());
        } else if !is_known && !self.untold.contains(account) {
            self.untold.push(account.clone());
        }
        if !self.untold.is_empty() {
            self.untold_at = Some(at);
        }
    }

    fn fault(&self, at: u64) -> Option<Fault> {
        self.faults.iter().find(|(when, _)| when.contains(&at)).map(|(_, fault)| *fault)
    }

    /// Counts a request; the rate limit as it is after that, and whether it is overdrawn.
    fn count(&mut self, at: u64, random: &mut fastrand::Rng) -> (Option<RateLimit>, bool) {
        let since = at + self.phase;
        let (period, into) = (since / self.period, since % self.period);
        let ours = self.ours.entry(period).or_default();
        *ours += 1;
        let gone = *ours + self.others * into / self.period;
        let mut reset = self.period - into;
        if self.fault(at) == Some(Fault::Jumps) {
            reset = random.u64(..2 * self.period);
        }
        let said = RateLimit {
            limit: Some(self.limit),
            period: Some(seconds(self.period)),
            remaining: Some(self.limit.saturating_sub(gone)),
            reset: Some(seconds(reset)),
            name: None,
        };
        (self.has_headers.then_some(said), gone > self.limit)
    }
}

/// When a demand is wanted, in seconds, and what follows it.
struct Wanted {
    from: u64,
    until: u64,
    followed: Option<watch::Receiver<Arc<Latest>>>,
}

/// One schedule under way.
struct Chaos {
    random: fastrand::Rng,
    book: Book,
    start: Instant,
    at_ms: u64,
    organisations: Vec<Organisation>,
    wanted: Vec<(Demand, Wanted)>,
    under_way: Vec<(u64, Batch, Reply, Instant)>,
    /// In a row, each a millisecond after the other.
    looks_in_vain: u32,
    log: Vec<String>,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let organisations =
            (0..random.usize(2..5)).map(|number| Organisation::draw(number, &mut random));
        let organisations: Vec<_> = organisations.collect();
        Self {
            book: Book::new(CONFIG, random.u64(..), start),
            start,
            at_ms: 0,
            organisations,
            wanted: Vec::new(),
            under_way: Vec::new(),
            looks_in_vain: 0,
            log: Vec::new(),
            random,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.at_ms)
    }

    fn at(&self) -> u64 {
        self.at_ms / 1_000
    }

    fn organisation(&self, account: &Account) -> usize {
        let host = account.host();
        self.organisations.iter().position(|one| one.host == host).unwrap()
    }

    fn run(&mut self) {
        self.arrivals();
        while self.at() < TROUBLE + CALM {
            self.step();
        }
        self.check_recovered();
        // Everybody leaves.
        self.wanted.clear();
        while self.at() < TROUBLE + CALM + 1_000 {
            self.step();
        }
        assert_eq!((self.book.entries.len(), self.under_way.len()), (0, 0));
        assert!(self.book.namespaces.is_empty());
        assert!(self.book.ledgers.values().all(|ledger| ledger.demands == 0));
        assert_eq!(self.book.next_turn(self.now()), None);
    }

    fn arrivals(&mut self) {
        for number in 0..self.random.usize(1..90) {
            let one = self.random.usize(..self.organisations.len());
            let organisation = &self.organisations[one];
            let key = format!("key-{one}-{}", self.random.usize(..organisation.keys));
            let text = match self.random.u8(..20) {
                0 => format!("bad:{number}{{*}}"),
                1 => format!("slow:{number}{{*}}"),
                2 => format!("avg:a{{n:{number}}},avg:b{{n:{number}}}"),
                3 => format!("avg:open{{n:{number}"),
                _ => format!("avg:a{{n:{number}}}"),
            };
            // What makes trouble is not to do so where there is none.
            let text = if one == 0 { format!("avg:a{{n:{number}}}") } else { text };
            let demand = demand_of(&account(&organisation.host, &key), &text);
            let from = self.random.u64(..TROUBLE);
            let until =
                if self.random.bool() { u64::MAX } else { from + self.random.u64(60..TROUBLE) };
            if !self.wanted.iter().any(|(other, _)| *other == demand) {
                self.wanted.push((demand, Wanted { from, until, followed: None }));
            }
        }
        self.log.push(format!("{} demands", self.wanted.len()));
    }

    /// To the next instant at which anything happens.
    fn step(&mut self) {
        let now = self.now();
        self.book.plan(now);
        let due = self.book.take_due(now, 64);
        let is_in_vain = due.is_empty();
        for batch in due {
            self.send(batch);
        }
        let next_turn = self.book.next_turn(now);
        let is_soon = next_turn.is_some_and(|at| at <= now + Duration::from_millis(1));
        self.looks_in_vain = if is_in_vain && is_soon { self.looks_in_vain + 1 } else { 0 };
        assert!(self.looks_in_vain < 10, "the book lets the worker look all the time");
        let turn = next_turn.map_or(u64::MAX, |at| {
            u64::try_from(at.saturating_duration_since(self.start).as_micros().div_ceil(1_000))
                .unwrap()
        });
        let ended = self.under_way.iter().map(|(at, ..)| *at).min().unwrap_or(u64::MAX);
        // KEDA asks each quarter of a minute.
        let keda = (self.at_ms / 15_000 + 1) * 15_000;
        let next = turn.min(ended).min(keda).max(self.at_ms + 1);
        self.at_ms = next;
        let now = self.now();
        let (done, left) = std::mem::take(&mut self.under_way)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, ..)| *at <= next);
        self.under_way = left;
        for (_, batch, reply, started_at) in done {
            self.book.settle(batch, reply, started_at, now);
        }
        if next == keda {
            self.ask();
        }
    }

    fn ask(&mut self) {
        let (now, at) = (self.now(), self.at());
        let mut wanted = std::mem::take(&mut self.wanted);
        for (number, (demand, wanted)) in wanted.iter_mut().enumerate() {
            if !(wanted.from..wanted.until).contains(&at) {
                wanted.followed = None;
                continue;
            }
            let namespace = if number % 3 == 0 { "small" } else { "large" };
            let (latest, _) = self.book.ask(demand, Asker { namespace, needs_step: false }, now);
            self.check_served(demand, &latest.borrow(), wanted.from);
            if number % 5 == 0 {
                wanted.followed = Some(latest);
            }
        }
        self.wanted = wanted;
    }

    /// No reading is served that is older than it may be, and where there are no faults there is a
    /// new one.
    fn check_served(&self, demand: &Demand, latest: &Latest, from: u64) {
        let is_sound = self.organisation(&demand.account) == 0;
        let age = latest.readings.first().map(|reading| self.now() - reading.taken_at);
        let text = &demand.query.text;
        // As a trigger judges it.
        if let Some(age) = age.filter(|age| *age <= latest.interval + HOLD) {
            assert!(age <= CONFIG.max_round + HOLD, "{text:?} is {age:?} old");
            let is_fresh = age <= CONFIG.refresh + seconds(3);
            assert!(!is_sound || is_fresh, "{text:?} is {age:?} old");
        } else {
            let was_asked = self.at() >= from.next_multiple_of(15).max(15) + 15;
            assert!(!is_sound || !was_asked, "{text:?} has no value: {:?}", latest.failure);
        }
    }

    fn send(&mut self, batch: Batch) {
        let (at, now) = (self.at(), self.now());
        let one = self.organisation(&batch.account);
        let fault = self.organisations[one].fault(at);
        let (said, is_overdrawn) = self.organisations[one].count(at, &mut self.random);
        self.check_budget(one, at, is_overdrawn);
        let host = batch.account.host();
        let has = |what: &str| batch.queries.iter().any(|query| query.text.starts_with(what));
        let throttled = |said: &Option<RateLimit>| SourceError::Throttled {
            host: host.clone(),
            limit: said.clone().map(|said| RateLimit { remaining: Some(0), ..said }),
        };
        let timed_out = || SourceError::TimedOut { host: host.clone(), after: seconds(10) };
        let what = || "chaos".to_owned();
        let failure = match fault {
            _ if is_overdrawn => Some(throttled(&said)),
            Some(Fault::Throttled { tells: true }) => Some(throttled(&said)),
            Some(Fault::Throttled { tells: false }) => Some(throttled(&None)),
            Some(Fault::Outage) => Some(SourceError::Outage { host: host.clone(), what: what() }),
            Some(Fault::Hang) => Some(timed_out()),
            Some(Fault::Garbage) => {
                Some(SourceError::NotUnderstood { host: host.clone(), what: what() })
            }
            Some(Fault::Unprocessable) => Some(SourceError::Unprocessable),
            Some(Fault::Refused) => Some(SourceError::Refused { status: 403, host: host.clone() }),
            _ if has("slow") => Some(timed_out()),
            _ if has("bad") => Some(SourceError::Malformed { reason: "no".to_owned() }),
            Some(Fault::Partial | Fault::Jumps) | None => None,
        };
        let is_slow = matches!(failure, Some(SourceError::TimedOut { .. }));
        let takes = if is_slow { 10_000 } else { self.random.u64(50..900) };
        let is_lost = |random: &mut fastrand::Rng| fault == Some(Fault::Partial) && random.bool();
        let outcomes = batch.queries.iter().map(|_| {
            if let Some(failure) = &failure {
                Err(failure.clone())
            } else {
                let point = Point { at_ms: 0, value: 5.0 };
                let points =
                    if is_lost(&mut self.random) { Vec::new() } else { vec![point] }.into();
                let series = Series { scope: "*".into(), step: None, nulls: 0, points };
                Ok(Answer { series: vec![series].into(), window_end_ms: 0 })
            }
        });
        let outcomes: Vec<_> = outcomes.collect();
        let said = if is_slow { None } else { said };
        self.organisations[one].note(&batch.account, said.is_some(), at);
        if self.log.len() < 2_000 {
            let failed = failure.as_ref().map(SourceError::outcome);
            self.log.push(format!("{at} s: {} of {host}, {failed:?}", batch.queries.len()));
        }
        let reply = Reply { outcomes, rate_limit: said };
        self.under_way.push((self.at_ms + takes, batch, reply, now));
    }

    fn check_budget(&self, one: usize, at: u64, is_overdrawn: bool) {
        let organisation = &self.organisations[one];
        let since = at + organisation.phase;
        let (period, into) = (since / organisation.period, since % organisation.period);
        let ours = organisation.ours[&period];
        let of_others = organisation.others * into / organisation.period;
        let may_be = 4 * (organisation.limit - of_others) / 5;
        // 300 an hour, and a burst.
        let may_be = if organisation.has_headers { may_be } else { 40 + 15 };
        // What others send is known from headers only, and a request that times out has none.
        let is_blind = organisation
            .faults
            .iter()
            .any(|(when, fault)| when.start <= at && matches!(fault, Fault::Hang | Fault::Jumps));
        let is_untold = organisation.untold_at.is_some_and(|last| at < last + organisation.period);
        let is_blind = is_blind || is_untold;
        let of_untold = if is_untold { organisation.keys as u64 * 55 } else { 0 };
        let part = if is_blind { 10 } else { 20 };
        let unseen = (organisation.limit / part).max(4) + of_untold;
        let may_be = may_be + unseen + SLACK * organisation.keys as u64;
        let (limit, period) = (organisation.limit, organisation.period);
        assert!(!is_overdrawn || is_blind, "a 429: {ours} of {limit}, {of_others} of others");
        assert!(ours <= may_be, "{ours} of {limit} each {period} s, {may_be} may be");
    }

    fn check_recovered(&mut self) {
        let now = self.now();
        for (demand, Wanted { until, .. }) in &self.wanted {
            let is_sound = demand.query.text.starts_with("avg:a");
            if *until < u64::MAX || !is_sound {
                continue;
            }
            let entry = &self.book.entries[demand];
            let latest = entry.latest.borrow();
            if entry.turn == Turn::Refused {
                assert!(matches!(latest.failure, Some(SourceError::Crowded { .. })));
                continue;
            }
            let age = latest.readings.first().map(|reading| now - reading.taken_at);
            let longest = latest.interval + 2 * CONFIG.max_round;
            let (turn, fault, failures) = (entry.turn, entry.fault, entry.failures);
            let state = format!("{turn:?}, {fault:?}, {failures} failures, {:?}", entry.company);
            assert!(age.is_some_and(|age| age <= longest), "{demand:?} starves: {age:?}; {state}");
        }
    }
}

#[test]
fn whatever_happens_the_promises_hold() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("CHAOS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CHAOS_SCHEDULES").unwrap_or(40),
    };
    for seed in seeds {
        let mut chaos = Chaos::new(seed);
        let run = catch_unwind(AssertUnwindSafe(|| chaos.run()));
        let newest = &chaos.log[chaos.log.len().saturating_sub(60)..];
        assert!(
            run.is_ok(),
            "CHAOS_SEED={seed} fails at {} s\n{:#?}\n{}",
            chaos.at(),
            chaos.organisations,
            newest.join("\n")
        );
    }
}
