//! Tenants that harm others, or try to: the book alone, in front of a scripted Datadog.

use super::{
    book::Book,
    scripted::{CONFIG, account, demand_of, limit, outage, seconds},
    *,
};
use crate::{
    demand::{Point, Series},
    source::{Answer, Batch, Reply},
};

type Outcome = Result<Answer, SourceError>;

/// What comes of a request at so many seconds after the start, and after how many milliseconds.
type Script = fn(&Batch, u64) -> (Vec<Outcome>, u64);

/// A step of the simulation, in milliseconds.
const STEP: u64 = 100;

struct Town {
    book: Book,
    script: Script,
    limit: u64,
    start: Instant,
    at_ms: u64,
    sent: u64,
    under_way: Vec<(u64, Batch, Reply, Instant)>,
    /// Demands, who asks for each, and since when, in seconds.
    wanted: Vec<(Demand, &'static str, u64)>,
}

impl Town {
    fn new(limit: u64, script: Script) -> Self {
        let start = Instant::now();
        let book = Book::new(CONFIG, 7, start);
        let (under_way, wanted) = (Vec::new(), Vec::new());
        Self { book, script, limit, start, at_ms: 0, sent: 0, under_way, wanted }
    }

    fn want(
        &mut self,
        namespace: &'static str,
        texts: impl IntoIterator<Item = String>,
        from: u64,
    ) {
        let demand = |text: String| demand_of(&account("dd", "key"), &text);
        self.wanted.extend(texts.into_iter().map(|text| (demand(text), namespace, from)));
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.at_ms)
    }

    fn run_until(&mut self, until: u64) {
        while self.at_ms < until * 1_000 {
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now();
        for (place, (demand, namespace, from)) in (0..).zip(&self.wanted) {
            // KEDA asks each quarter of a minute, each trigger at its own time.
            let since = self.at_ms.checked_sub(from * 1_000);
            let asks = |since| since == 0 || since % 15_000 == place * 37 % 150 * STEP;
            if since.is_some_and(asks) {
                self.book.ask(demand, Asker { namespace, needs_step: false }, now);
            }
        }
        self.book.plan(now);
        for batch in self.book.take_due(now, 64) {
            self.sent += 1;
            let (outcomes, takes) = (self.script)(&batch, self.at_ms / 1_000);
            let said = limit(self.limit, self.limit.saturating_sub(self.sent), 3_600);
            let reply = Reply { outcomes, rate_limit: Some(said) };
            self.under_way.push((self.at_ms + takes, batch, reply, now));
        }
        self.at_ms += STEP;
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.under_way).into_iter().partition(|(at, ..)| *at <= self.at_ms);
        self.under_way = left;
        for (_, batch, reply, started_at) in done {
            self.book.settle(batch, reply, started_at, self.now());
        }
    }

    /// Of the queries whose text begins so: the age of each newest reading, in seconds.
    fn ages(&self, prefix: &str) -> Vec<Option<u64>> {
        let meant = self.wanted.iter().filter(|(demand, ..)| demand.query.text.starts_with(prefix));
        let age = |(demand, ..): &(Demand, _, _)| {
            let latest = self.book.entries.get(demand)?.latest.borrow();
            latest.readings.first().map(|reading| (self.now() - reading.taken_at).as_secs())
        };
        meant.map(age).collect()
    }

    /// Whether all of them have a reading that is no older than that.
    #[track_caller]
    fn check_fresh(&self, prefix: &str, oldest: u64) {
        let ages = self.ages(prefix);
        assert!(ages.iter().all(|age| age.is_some_and(|age| age <= oldest)), "{ages:?}");
    }
}

fn numbered(name: &'static str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{name}:{n}{{*}}"))
}

fn is(query: &crate::demand::Query, name: &str) -> bool {
    query.text.starts_with(name)
}

fn sound(batch: &Batch) -> (Vec<Outcome>, u64) {
    let points = || vec![Point { at_ms: 0, value: 5.0 }].into();
    let series = || Series { scope: "*".into(), step: None, nulls: 0, points: points() };
    let answer = |_| Ok(Answer { series: vec![series()].into(), window_end_ms: 0 });
    (batch.queries.iter().map(answer).collect(), 300)
}

/// Fails as a whole if one of its queries is bad.
fn fails(batch: &Batch, error: &SourceError, takes: u64) -> (Vec<Outcome>, u64) {
    if batch.queries.iter().any(|query| is(query, "bad")) {
        (vec![Err(error.clone()); batch.queries.len()], takes)
    } else {
        sound(batch)
    }
}

fn timed_out() -> SourceError {
    SourceError::TimedOut { host: "dd".into(), after: seconds(10) }
}

#[test]
fn a_flood_of_queries_does_not_evict_who_was_there_first() {
    let mut town = Town::new(1_600, |batch, _| sound(batch));
    town.want("shop", numbered("good", 140), 0);
    town.run_until(300);
    town.want("evil", numbered("flood", 3_000), 300);
    town.run_until(900);
    town.check_fresh("good", 60);
}

#[test]
fn one_query_that_datadog_fails_on_does_not_fail_its_neighbours() {
    let mut town =
        Town::new(
            100_000,
            |batch, at| {
                if at < 100 { sound(batch) } else { fails(batch, &outage(), 500) }
            },
        );
    town.want("shop", numbered("good", 20), 0);
    town.want("evil", numbered("bad", 1), 0);
    let mut oldest = 0;
    for at in 1..900 {
        town.run_until(at);
        oldest = oldest.max(town.ages("good").into_iter().flatten().max().unwrap_or(0));
    }
    // Due after 15 s, and held for a minute.
    assert!(oldest <= 75, "{oldest}");
    town.check_fresh("good", 17);
}

#[test]
fn neighbours_have_first_readings_beside_one_that_datadog_fails_on() {
    let mut town = Town::new(100_000, |batch, _| fails(batch, &outage(), 500));
    town.want("shop", numbered("good", 20), 0);
    town.want("evil", numbered("bad", 1), 0);
    town.run_until(120);
    town.check_fresh("good", 17);
}

#[test]
fn as_many_slow_queries_as_sound_ones_do_not_keep_them_from_being_read() {
    let mut town = Town::new(100_000, |batch, _| fails(batch, &timed_out(), 10_000));
    town.want("shop", numbered("good", 40), 0);
    town.want("evil", numbered("bad", 40), 0);
    town.run_until(900);
    town.check_fresh("good", 75);
}

#[test]
fn queries_that_become_slow_do_not_take_all_places() {
    let mut town =
        Town::new(
            100_000,
            |batch, at| {
                if at < 60 { sound(batch) } else { fails(batch, &timed_out(), 10_000) }
            },
        );
    town.want("shop", numbered("good", 100), 0);
    town.want("evil", numbered("bad", 30), 0);
    town.run_until(1_800);
    town.check_fresh("good", 75);
}

#[test]
fn data_that_ends_for_all_at_once_is_no_data_in_the_end() {
    let mut town = Town::new(100_000, |batch, at| {
        let (outcomes, takes) = sound(batch);
        let empty = || Ok(Answer { series: Box::default(), window_end_ms: 0 });
        (if at < 100 { outcomes } else { batch.queries.iter().map(|_| empty()).collect() }, takes)
    });
    town.want("shop", numbered("good", 4), 0);
    town.run_until(200);
    for (demand, ..) in &town.wanted {
        let latest = town.book.entries[demand].latest.borrow();
        assert!(latest.failure.is_none() && latest.readings[0].depth() == 0, "{latest:?}");
    }
}

#[test]
fn what_fails_only_in_company_does_not_cost_a_division_each_round() {
    let mut town = Town::new(1_600, |batch, _| {
        let bad = batch.queries.iter().filter(|query| is(query, "bad")).count();
        let too_large = SourceError::TooLarge { what: "more than 8 MiB".into() };
        if bad > 1 { fails(batch, &too_large, 900) } else { sound(batch) }
    });
    town.want("shop", numbered("good", 30), 0);
    town.want("evil", numbered("bad", 2), 0);
    town.run_until(2_000);
    let sent = town.sent;
    town.run_until(3_000);
    // 65 rounds, of three requests at most when the two travel apart.
    assert!(town.sent - sent < 210, "{}", town.sent - sent);
    town.check_fresh("good", 17);
}

#[test]
fn a_422_that_passes_leaves_no_trace_beside_many_rejected_queries() {
    let mut town = Town::new(1_600, |batch, at| {
        if (600..640).contains(&at) && batch.queries.iter().any(|query| is(query, "victim")) {
            return (vec![Err(SourceError::Unprocessable); batch.queries.len()], 100);
        }
        fails(batch, &SourceError::Malformed { reason: "no".into() }, 100)
    });
    town.want("shop", numbered("victim", 1), 0);
    town.want("shop", numbered("good", 10), 0);
    town.want("evil", numbered("bad", 500), 60);
    town.run_until(900);
    town.check_fresh("victim", 120);
}

#[test]
fn nobody_is_told_that_anothers_query_is_malformed() {
    let mut town = Town::new(100_000, |batch, _| {
        fails(batch, &SourceError::Malformed { reason: "unable to parse bad:1{*}".into() }, 100)
    });
    town.want("evil", numbered("bad", 200), 0);
    town.want("shop", numbered("good", 1), 0);
    for at in 1..60 {
        town.run_until(at);
        let (demand, ..) = town.wanted.last().unwrap();
        let failure = town.book.entries[demand].latest.borrow().failure.clone();
        assert!(!matches!(failure, Some(SourceError::Malformed { .. })), "at {at} s");
    }
    town.check_fresh("good", 17);
}

#[test]
fn a_trickle_of_new_queries_does_not_take_the_place_of_known_ones() {
    let mut town = Town::new(400, |batch, _| sound(batch));
    town.want("shop", numbered("good", 100), 0);
    town.run_until(300);
    for n in 0..600 {
        town.want("evil", [format!("flood:{n}{{*}}")], 300 + n);
    }
    town.run_until(900);
    let interval = town.book.entries[&town.wanted[0].0].interval.as_secs();
    town.check_fresh("good", 2 * interval + 60);
}

#[test]
fn what_a_429_finds_is_not_held_for_longer() {
    let mut town = Town::new(1_600, |batch, at| {
        let limit = limit(1_600, 0, 3_000);
        let error = SourceError::Throttled { host: "dd".into(), limit: Some(limit) };
        if at < 20 { sound(batch) } else { (vec![Err(error); batch.queries.len()], 100) }
    });
    town.want("shop", numbered("good", 3), 0);
    town.run_until(300);
    let (demand, ..) = &town.wanted[0];
    assert_eq!(town.book.entries[demand].latest.borrow().interval, CONFIG.refresh);
}
