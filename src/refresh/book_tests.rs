//! The book, which decides, without a worker.

use super::{
    book::Book,
    health::Change,
    scripted::{
        ASKER, CONFIG, REFRESH, SINGLY, account, ample, demand, demand_of, outage, seconds,
    },
    settle::remember,
    *,
};
use crate::{
    demand::{Point, Series},
    source::{Answer, Batch, Reply},
};

fn book() -> Book {
    Book::new(SINGLY, 0, Instant::now())
}

fn other_demand(text: &str) -> Demand {
    demand_of(&account("dd", "other key"), text)
}

fn reply(outcomes: Vec<Result<Answer, SourceError>>) -> Reply {
    Reply { outcomes, rate_limit: Some(ample()) }
}

fn settle(
    book: &mut Book,
    batch: &Batch,
    outcome: Result<Answer, SourceError>,
    now: Instant,
) -> Vec<Change> {
    book.settle(batch.clone(), reply(vec![outcome]), now, now)
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
        let outcome = outcome(&batch.queries[0].text);
        told.extend(settle(book, &batch, outcome, now).into_iter().map(|change| match change {
            Change::Stretched { .. } | Change::Relaxed { .. } => "of the plan".to_owned(),
            Change::AccountFails(..) => "account fails".to_owned(),
            Change::AccountRecovers(_) => "account recovers".to_owned(),
            Change::QueryFails(demand, _) => format!("{} fails", demand.query.text),
            Change::QueryRecovers(demand) => format!("{} recovers", demand.query.text),
        }));
    }
    told
}

/// How often a worker would look until then, if no request ended and nobody asked.
fn looks(book: &mut Book, mut now: Instant, until: Instant) -> usize {
    let mut looks = 0;
    while let Some(at) = book.next_turn(now).filter(|at| *at < until) {
        now = at;
        book.take_due(now, usize::MAX);
        looks += 1;
    }
    looks
}

#[test]
fn an_outage_is_told_once_for_all_queries_of_an_account() {
    let (mut book, now) = (book(), Instant::now());
    let _watched = ["a", "b"].map(|text| book.ask(&demand(text), ASKER, now).0);
    let mut at = |outcome: &dyn Fn(&str) -> Result<Answer, SourceError>, rounds: u32| {
        // Longer than the account is left alone.
        round(&mut book, now + REFRESH * 3 * rounds, outcome)
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
            settle(&mut book, &batch, outcome, now);
        }
    }
    // Each 15 s for two minutes, in which a reading may be held, and each minute from then on.
    assert_eq!(asked[..9], [0, 15, 30, 45, 60, 75, 90, 105, 120]);
    let pauses: Vec<u64> = asked[8..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| (48..=60).contains(pause)), "{pauses:?}");
}

/// Whether it is taken now.
fn is_due(book: &mut Book, now: Instant) -> bool {
    !book.take_due(now, usize::MAX).is_empty()
}

#[test]
fn news_of_a_demand_are_read_at_once() {
    let (mut book, now) = (book(), Instant::now());
    let demand = demand("a");
    assert!(!book.hasten(&demand, now), "nobody is interested");
    let _watched = book.ask(&demand, ASKER, now).0;
    round(&mut book, now, |_| Ok(answer()));
    let later = now + seconds(1);
    assert!(!is_due(&mut book, later));
    assert!(book.hasten(&demand, later));
    assert!(is_due(&mut book, later));
}

#[test]
fn news_that_come_during_a_fetch_are_read_after_it() {
    let (mut book, now) = (book(), Instant::now());
    let demand = demand("a");
    let _watched = book.ask(&demand, ASKER, now).0;
    let batch = book.take_due(now, usize::MAX).remove(0);
    book.hasten(&demand, now);
    settle(&mut book, &batch, Ok(answer()), now);
    let again = book.take_due(now, usize::MAX).remove(0);
    settle(&mut book, &again, Ok(answer()), now);
    assert!(!is_due(&mut book, now));
}

#[test]
fn what_a_watch_tells_is_read_however_much_of_it_fails() {
    let (mut book, now) = (book(), Instant::now());
    let account = Arc::new(Account::of_watch());
    let demands = ["a", "b", "c"].map(|text| demand_of(&account, text));
    let _watched = demands.each_ref().map(|demand| book.ask(demand, ASKER, now).0);
    let at = |rounds: u32| now + REFRESH * rounds;
    for failing in 0..6 {
        round(&mut book, at(failing), |_| Err(outage()));
    }
    let later = at(5) + seconds(1);
    assert!(!is_due(&mut book, later));
    let _new = book.ask(&demand_of(&account, "sound"), ASKER, later).0;
    assert!(is_due(&mut book, later + seconds(1)));
    assert!(book.hasten(&demands[1], later));
    assert!(is_due(&mut book, later));
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
    assert_eq!(book.entries.len(), 0);
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
    assert_eq!(book.entries.len(), 0);
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
    settle(&mut book, batch, Ok(answer()), now);
    assert!(watched.borrow().readings.is_empty());
    assert_eq!(book.entries.len(), 1);
}

#[test]
fn a_query_without_an_outcome_has_failed() {
    let (mut book, now) = (book(), Instant::now());
    let (watched, _) = book.ask(&demand("a"), ASKER, now);
    for batch in book.take_due(now, 1) {
        book.settle(batch, reply(Vec::new()), now, now);
    }
    let failure = watched.borrow().failure.clone();
    assert!(matches!(failure, Some(SourceError::NotUnderstood { .. })));
    assert_eq!(book.next_turn(now), Some(now + REFRESH));
}

#[test]
fn what_waits_for_a_query_in_quarantine_to_end_is_not_looked_at_meanwhile() {
    let (mut book, now) = (book(), Instant::now());
    let _watched = ["a", "b"].map(|text| book.ask(&demand(text), ASKER, now).0);
    round(&mut book, now, |_| Err(malformed()));
    let now = now + REFRESH * 2;
    let [batch] = &*book.take_due(now, usize::MAX) else { panic!("one goes, and one waits") };
    let ends_at = now + seconds(10);
    assert_eq!(looks(&mut book, now, ends_at), 0);
    // Nor what was taken before.
    book.take_again(&batch.account, batch.queries.clone());
    assert_eq!(looks(&mut book, now, ends_at), 0);
    settle(&mut book, batch, Err(malformed()), ends_at);
    assert_eq!(book.next_turn(ends_at), Some(ends_at + Duration::from_millis(1)));
    assert_eq!(book.take_due(ends_at, usize::MAX).len(), 1);
}

#[test]
fn what_waits_for_company_keeps_nobody_of_a_failing_account_waiting() {
    let start = Instant::now();
    let mut book = Book::new(CONFIG, 0, start);
    let known = demand("known");
    let _watched = book.ask(&known, ASKER, start).0;
    // With little left to be sent at once, first readings wait for company.
    for _ in 0..12 {
        book.organisations.send(&book.ledgers[&known.account].payer, start);
    }
    for (at, outcome) in [(1, Ok(answer())), (16, Err(outage())), (31, Err(outage()))] {
        let now = start + seconds(at);
        let [batch] = &*book.take_due(now, usize::MAX) else { panic!("one is due") };
        book.settle(batch.clone(), Reply { outcomes: vec![outcome], rate_limit: None }, now, now);
    }
    // It falls due when the account may be tried again; somebody new did so just before.
    let due_at = start + seconds(46);
    let asked_at = due_at - Duration::from_millis(50);
    let _new = book.ask(&demand("new"), ASKER, asked_at).0;
    assert_eq!(looks(&mut book, asked_at, due_at + seconds(1)), 1);
}

#[test]
fn accounts_that_nobody_uses_are_forgotten_when_they_are_many() {
    let (mut book, start) = (book(), Instant::now());
    let of = |n: usize| demand_of(&account("dd", &format!("key {n}")), "a");
    let _watched = book.ask(&of(0), ASKER, start).0;
    // One moves over to new keys.
    let moved = other_demand("a");
    book.replace(&of(0).account, &moved.account, start);
    for n in 1..1_100 {
        book.ask(&of(n), ASKER, start);
    }
    book.plan(start);
    assert_eq!(book.ledgers.len(), 1_101);
    let later = start + Duration::from_hours(3);
    // All fall asleep, but for the one that is followed; then they are forgotten.
    for now in [later, later + Duration::from_hours(1)] {
        round(&mut book, now, |_| Ok(answer()));
        book.plan(now);
    }
    assert_eq!(book.entries.len(), 1);
    assert!(book.ledgers.keys().eq([&moved.account]));
    assert_eq!(book.organisations.all().count(), 1);
}

#[test]
fn the_age_of_what_is_at_fault_is_not_counted_even_while_it_is_read() {
    let (mut book, now) = (book(), Instant::now());
    let _watched = book.ask(&demand("slow"), ASKER, now).0;
    round(&mut book, now, |_| Ok(answer()));
    let timed_out = || SourceError::TimedOut { host: "dd".into(), after: seconds(10) };
    assert_eq!(book.totals(now).ages.len(), 1);
    round(&mut book, now + REFRESH, |_| Err(timed_out()));
    let now = now + REFRESH * 2;
    assert_eq!(book.totals(now).ages.len(), 0);
    assert_eq!(book.take_due(now, usize::MAX).len(), 1);
    assert_eq!(book.totals(now).in_state(DemandState::Fetching), 1);
    assert_eq!(book.totals(now).ages.len(), 0);
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
