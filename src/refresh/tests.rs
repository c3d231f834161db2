//! The engine on a paused clock, in front of a scripted source.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    scripted::{
        ASKER, IDLE_AFTER, REFRESH, SINGLY, account, ample, demand, demand_of, outage, seconds,
    },
    *,
};
use crate::{
    demand::{Point, Query, Series},
    source::{Answer, Batch, RateLimit, Reply},
};

/// Answers the nth request for a query, counted from 0, after a while.
type Script = fn(usize, &Query) -> (Duration, Result<f64, SourceError>);

struct Scripted {
    script: Script,
    log: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
    most_running: Arc<AtomicUsize>,
}

impl Source for Scripted {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let query = &batch.queries[0];
        let line = format!("{} {}", batch.account.host(), query.text);
        let nth = {
            let mut log = self.log.lock().unwrap();
            log.push(line.clone());
            log.iter().filter(|earlier| **earlier == line).count() - 1
        };
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        let (delay, outcome) = (self.script)(nth, query);
        sleep(delay).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        let outcome = outcome.map(|value| {
            let points = vec![Point { at_ms: 0, value }].into();
            let series = vec![Series { scope: "*".into(), step: None, nulls: 0, points }].into();
            Answer { series, window_end_ms: 0 }
        });
        Reply { outcomes: vec![outcome], rate_limit: Some(ample()) }
    }
}

struct Engine {
    refresher: Refresher,
    log: Arc<Mutex<Vec<String>>>,
    most_running: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
    _stop: DropGuard,
}

impl Engine {
    fn start(script: Script) -> Self {
        let log = Arc::new(Mutex::new(Vec::new()));
        let most_running = Arc::new(AtomicUsize::new(0));
        let source = Scripted {
            script,
            log: log.clone(),
            running: Arc::default(),
            most_running: most_running.clone(),
        };
        let (refresher, worker) = seeded(SINGLY, source, 7);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(shutdown.clone()));
        let stop = shutdown.clone().drop_guard();
        Self { refresher, log, most_running, tasks, shutdown, _stop: stop }
    }

    fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    fn known(&self) -> usize {
        self.refresher.shared.book().entries.len()
    }

    /// The newest value, or the failure if there is none.
    async fn read(&self, demand: &Demand, patience: Duration) -> Result<f64, Unread<SourceError>> {
        let judge = |latest: &Latest, _| match (latest.readings.first(), &latest.failure) {
            (_, Some(failure)) => Verdict::Failed(failure.clone()),
            (Some(reading), None) => Verdict::Known(reading.series[0].points[0].value),
            (None, None) => Verdict::Awaited { otherwise: None },
        };
        self.refresher.read(demand, ASKER, Instant::now() + patience, judge).await
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are few requests")]
fn answers(nth: usize, _: &Query) -> (Duration, Result<f64, SourceError>) {
    (Duration::from_millis(100), Ok(nth as f64))
}

fn fails(_: usize, _: &Query) -> (Duration, Result<f64, SourceError>) {
    (Duration::from_millis(100), Err(outage()))
}

#[tokio::test(start_paused = true)]
async fn concurrent_first_reads_share_one_request() {
    let engine = Engine::start(answers);
    let demand = demand("q");
    let reads = (0..200).map(|_| engine.read(&demand, seconds(2)));
    let values = join_all(reads).await;
    assert!(values.iter().all(|value| *value == Ok(0.0)));
    assert_eq!(engine.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_demanded_query_is_read_again_each_refresh_and_answers_at_once() {
    let engine = Engine::start(answers);
    let demand = demand("q");
    for _ in 0..60 {
        engine.read(&demand, seconds(2)).await.unwrap();
        sleep(seconds(1)).await;
    }
    // At 0, and 15 s after each answer.
    assert_eq!(engine.requests(), 4);
    let asked_at = Instant::now();
    assert_eq!(engine.read(&demand, seconds(2)).await, Ok(3.0));
    assert_eq!(Instant::now(), asked_at);
}

#[tokio::test(start_paused = true)]
async fn a_demand_nobody_asks_for_falls_asleep_and_is_forgotten() {
    let engine = Engine::start(answers);
    engine.read(&demand("q"), seconds(2)).await.unwrap();
    sleep(IDLE_AFTER + REFRESH).await;
    let requests = engine.requests();
    assert_eq!(requests, 8);
    sleep(Duration::from_mins(5)).await;
    assert_eq!((engine.requests(), engine.known()), (requests, 1));
    sleep(Duration::from_mins(6)).await;
    assert_eq!((engine.requests(), engine.known()), (requests, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_demand_is_read_at_once_when_it_is_asked_for() {
    let engine = Engine::start(answers);
    let demand = demand("q");
    engine.read(&demand, seconds(2)).await.unwrap();
    sleep(Duration::from_mins(5)).await;
    let requests = engine.requests();
    engine.read(&demand, seconds(2)).await.unwrap();
    sleep(seconds(1)).await;
    assert_eq!(engine.requests(), requests + 1);
}

#[tokio::test(start_paused = true)]
async fn a_watched_demand_is_never_forgotten() {
    let engine = Engine::start(answers);
    let watched = engine.refresher.watch(&demand("q"), ASKER);
    sleep(Duration::from_hours(2)).await;
    // One 15 s after each answer.
    assert_eq!(engine.requests(), 477);
    drop(watched);
    sleep(Duration::from_mins(5)).await;
    assert_eq!(engine.known(), 1);
    sleep(Duration::from_mins(15)).await;
    assert_eq!(engine.known(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_until_the_next_turn() {
    let engine = Engine::start(fails);
    let demand = demand("q");
    for _ in 0..10 {
        assert_eq!(engine.read(&demand, seconds(2)).await, Err(Unread::Failed(outage())));
    }
    assert_eq!(engine.requests(), 1);
    sleep(REFRESH + seconds(1)).await;
    assert_eq!(engine.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_remembered_through_a_sleep() {
    let engine = Engine::start(fails);
    let demand = demand("q");
    assert!(engine.read(&demand, seconds(2)).await.is_err());
    sleep(Duration::from_mins(5)).await;
    let requests = engine.requests();
    assert!(engine.read(&demand, seconds(2)).await.is_err());
    assert_eq!(engine.requests(), requests + 1);
}

#[tokio::test(start_paused = true)]
async fn giving_up_does_not_cancel_the_fetch() {
    let engine = Engine::start(|_, _| (seconds(4), Ok(1.0)));
    let demand = demand("q");
    assert_eq!(engine.read(&demand, seconds(2)).await, Err(Unread::TimedOut));
    assert_eq!(engine.read(&demand, seconds(3)).await, Ok(1.0));
    assert_eq!(engine.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_is_a_failure_and_is_tried_again() {
    let engine = Engine::start(|nth, query| {
        assert!(nth > 0, "the first fetch panics");
        answers(nth, query)
    });
    let demand = demand("q");
    let failed = engine.read(&demand, seconds(2)).await;
    assert!(matches!(failed, Err(Unread::Failed(SourceError::NotUnderstood { .. }))));
    sleep(REFRESH + seconds(1)).await;
    assert_eq!(engine.read(&demand, seconds(2)).await, Ok(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_spent_rate_limit_is_not_asked_again_before_its_reset() {
    let engine = Engine::start(|_, _| {
        let limit = RateLimit { reset: Some(seconds(100)), ..RateLimit::default() };
        (seconds(0), Err(SourceError::Throttled { host: "dd".into(), limit: Some(limit) }))
    });
    let _watched = engine.refresher.watch(&demand("q"), ASKER);
    sleep(seconds(99)).await;
    assert_eq!(engine.requests(), 1);
    sleep(seconds(2)).await;
    assert_eq!(engine.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_query_does_not_delay_another() {
    let engine = Engine::start(|nth, query| {
        if &*query.text == "slow" { (seconds(10), Err(outage())) } else { answers(nth, query) }
    });
    let (slow, quick) = (demand("slow"), demand("quick"));
    let _watched = engine.refresher.watch(&slow, ASKER);
    assert_eq!(engine.read(&quick, seconds(1)).await, Ok(0.0));
}

#[tokio::test(start_paused = true)]
async fn requests_under_way_are_bounded() {
    let engine = Engine::start(answers);
    let demands: Vec<Demand> = (0..200).map(|n| demand(&n.to_string())).collect();
    let reads = demands.iter().map(|demand| engine.read(demand, seconds(6)));
    let values = join_all(reads).await;
    assert!(values.iter().all(Result::is_ok), "{values:?}");
    assert_eq!(engine.most_running.load(Ordering::SeqCst), 4);
    assert_eq!(engine.requests(), 200);
}

#[tokio::test(start_paused = true)]
async fn readings_move_over_to_new_keys_of_the_same_site() {
    let engine =
        Engine::start(|nth, query| if nth == 0 { answers(nth, query) } else { fails(nth, query) });
    let (old, new) = (account("dd", "old"), account("dd", "new"));
    engine.read(&demand_of(&old, "q"), seconds(2)).await.unwrap();
    let mut watched = engine.refresher.watch(&demand_of(&old, "q"), ASKER);
    let taken_at = watched.borrow_and_update().readings[0].taken_at;

    engine.refresher.replace(&old, &new);
    sleep(seconds(1)).await;
    assert_eq!(engine.requests(), 2);
    // Who follows sees the refusal of the new keys, and the old reading, due when it was.
    let latest = watched.borrow_and_update();
    assert_eq!(latest.failure, Some(outage()));
    assert_eq!(latest.readings[0].taken_at, taken_at);
    assert_eq!(engine.known(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_was_quicker_with_the_new_keys_gets_the_old_readings() {
    let engine = Engine::start(answers);
    let (old, new) = (account("dd", "old"), account("dd", "new"));
    engine.read(&demand_of(&old, "q"), seconds(2)).await.unwrap();
    let mut waiting = engine.refresher.watch(&demand_of(&old, "q"), ASKER);
    let quicker = engine.refresher.watch(&demand_of(&new, "q"), ASKER);
    engine.refresher.replace(&old, &new);
    assert_eq!(quicker.borrow().readings.len(), 1);
    waiting.borrow_and_update();
    assert!(waiting.changed().await.is_err());
    assert_eq!(engine.known(), 1);
}

#[tokio::test(start_paused = true)]
async fn readings_do_not_move_to_another_site() {
    let engine = Engine::start(|_, _| (seconds(60), Ok(1.0)));
    let (old, new) = (account("dd", "key"), account("dd.eu", "key"));
    let demand = demand_of(&old, "q");
    let moved = async {
        sleep(seconds(1)).await;
        engine.refresher.replace(&old, &new);
    };
    let (read, ()) = tokio::join!(engine.read(&demand, seconds(100)), moved);
    assert_eq!(read, Err(Unread::Withdrawn));
    assert_eq!(engine.known(), 0);
    // The outcome of the fetch that was under way finds nobody.
    sleep(seconds(120)).await;
    assert_eq!((engine.known(), engine.requests()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_worker_ends_on_shutdown_with_a_fetch_under_way() {
    let mut engine = Engine::start(|_, _| (seconds(1_000), Ok(1.0)));
    let _watched = engine.refresher.watch(&demand("q"), ASKER);
    sleep(seconds(1)).await;
    engine.shutdown.cancel();
    let asked_at = Instant::now();
    engine.tasks.join_next().await.unwrap().unwrap();
    assert_eq!(Instant::now(), asked_at);
}
