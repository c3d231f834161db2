//! What a rate limit carries, on a paused clock, in front of a source that counts.

use std::collections::HashMap;

use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    scripted::{ASKER, CONFIG, REFRESH, account, demand_of, limit, query, seconds},
    *,
};
use crate::{
    demand::{Point, Series},
    source::{Answer, Batch, RateLimit, Reply},
};

/// When each request came, in seconds, and its size.
type Asked = Vec<(u64, usize)>;

/// Answers everything with one point, and counts down an hour's limit for each host.
#[derive(Clone)]
struct Counting {
    limit: u64,
    started_at: Instant,
    /// By host.
    requests: Arc<Mutex<HashMap<String, Asked>>>,
    /// Until then, in seconds, hosts with this name answer 429.
    throttles: Option<(&'static str, u64)>,
}

impl Source for Counting {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let host = batch.account.host();
        let at = self.started_at.elapsed().as_secs();
        let spent = {
            let mut requests = self.requests.lock().unwrap();
            let all = requests.entry(host.clone()).or_default();
            all.push((at, batch.queries.len()));
            all.iter().filter(|(asked_at, _)| asked_at / 3_600 == at / 3_600).count() as u64
        };
        sleep(Duration::from_millis(200)).await;
        let said = limit(self.limit, self.limit.saturating_sub(spent), 3_600 - at % 3_600);
        let until = self.throttles.filter(|(name, _)| *name == host).map_or(0, |(_, until)| until);
        let outcome = |_| {
            if at < until {
                let limit = RateLimit { reset: Some(seconds(until - at)), ..RateLimit::default() };
                return Err(SourceError::Throttled { host: host.clone(), limit: Some(limit) });
            }
            // Of a lone point, only a request of its own tells the bucket's width.
            let step = (batch.queries.len() == 1).then_some(seconds(10));
            let points = vec![Point { at_ms: 0, value: 1.0 }].into();
            let series = vec![Series { scope: "*".into(), step, nulls: 0, points }].into();
            Ok(Answer { series, window_end_ms: 60_000 })
        };
        Reply { outcomes: batch.queries.iter().map(outcome).collect(), rate_limit: Some(said) }
    }
}

struct Engine {
    refresher: Refresher,
    source: Counting,
    _tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl Engine {
    fn start(config: Config, limit: u64, throttles: Option<(&'static str, u64)>) -> Self {
        let (started_at, requests) = (Instant::now(), Arc::default());
        let source = Counting { limit, started_at, requests, throttles };
        let (refresher, worker) = seeded(config, source.clone(), 7);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(shutdown.clone()));
        Self { refresher, source, _tasks: tasks, _stop: shutdown.drop_guard() }
    }

    /// Follows so many queries of a namespace.
    fn follow(&self, namespace: &str, count: usize) -> Vec<watch::Receiver<Arc<Latest>>> {
        let one = |n| self.follow_one(namespace, &format!("avg:{namespace}{{n:{n}}}"));
        (0..count).map(one).collect()
    }

    fn follow_one(&self, namespace: &str, text: &str) -> watch::Receiver<Arc<Latest>> {
        let demand = demand_of(&account("dd", "key"), text);
        self.refresher.watch(&demand, Asker { namespace, ..ASKER })
    }

    /// Since the last look.
    fn sizes(&self, host: &str) -> Vec<usize> {
        let requests = self.source.requests.lock().unwrap().remove(host).unwrap_or_default();
        requests.iter().map(|(_, size)| *size).collect()
    }

    /// What an RPC is told that waits for two seconds at most, and after which time.
    async fn ask(&self, demand: &Demand, asker: Asker<'_>) -> (Result<(), String>, Duration) {
        let judge = |latest: &Latest, _| match (latest.readings.first(), &latest.failure) {
            (Some(_), _) => Verdict::Known(()),
            (None, Some(failure)) => Verdict::Failed(failure.to_string()),
            (None, None) => Verdict::Awaited { otherwise: None },
        };
        let asked_at = Instant::now();
        let answer = self.refresher.read(demand, asker, asked_at + seconds(2), judge).await;
        let answer = answer.map_err(|error| match error {
            Unread::Failed(message) => message,
            other => format!("{other:?}"),
        });
        (answer, asked_at.elapsed())
    }
}

fn intervals(followed: &[watch::Receiver<Arc<Latest>>]) -> Vec<u64> {
    let mut all: Vec<u64> =
        followed.iter().map(|latest| latest.borrow().interval.as_secs()).collect();
    all.dedup();
    all
}

/// The oldest reading, and how many demands have none or a failure.
fn state(followed: &[watch::Receiver<Arc<Latest>>]) -> (u64, usize) {
    let age = |latest: &watch::Receiver<Arc<Latest>>| {
        latest.borrow().readings.first().map(|reading| reading.taken_at.elapsed().as_secs())
    };
    let failing = followed.iter().filter(|latest| latest.borrow().failure.is_some()).count();
    (followed.iter().filter_map(age).max().unwrap_or(0), failing)
}

#[tokio::test(start_paused = true)]
async fn the_interval_stretches_to_what_the_limit_carries() {
    let engine = Engine::start(CONFIG, 600, None);
    let followed = engine.follow("shop", 350);
    sleep(Duration::from_mins(90)).await;
    // Ten requests a round; 480 of an hour's 600 are ours.
    let [interval] = *intervals(&followed) else { panic!("{:?}", intervals(&followed)) };
    assert!((73..=78).contains(&interval), "{interval}");
    let (oldest, failing) = state(&followed);
    assert!(oldest <= interval + 3 && failing == 0, "{oldest}");
    let requests = engine.sizes("dd").len();
    assert!((700..=740).contains(&requests), "{requests}");
}

#[tokio::test(start_paused = true)]
async fn a_small_namespace_is_read_each_refresh_beside_a_large_one() {
    let engine = Engine::start(CONFIG, 600, None);
    let large = engine.follow("large", 1_500);
    sleep(Duration::from_mins(5)).await;
    let small = engine.follow("small", 30);
    sleep(Duration::from_mins(30)).await;
    assert_eq!(intervals(&small), [15]);
    let (oldest, failing) = state(&small);
    assert!(oldest <= 16 && failing == 0, "{oldest}, {failing}");
    // The large one loses its newest.
    let refused = large.iter().position(|latest| latest.borrow().failure.is_some()).unwrap();
    assert!((100..1_400).contains(&refused), "{refused}");
    let crowded = large.last().unwrap().borrow().failure.clone();
    assert!(matches!(crowded, Some(SourceError::Crowded { .. })), "{crowded:?}");
    let snapshot = engine.refresher.snapshot();
    assert!(snapshot.organisations[0].refused > 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_read_when_there_is_room_again() {
    let engine = Engine::start(CONFIG, 60, None);
    let first = engine.follow("shop", 200);
    sleep(Duration::from_mins(1)).await;
    let mut late = engine.follow("late", 60);
    let demand = demand_of(&account("dd", "key"), "avg:late{n:59}");
    sleep(Duration::from_mins(1)).await;
    let is_crowded = |latest: &Latest| matches!(latest.failure, Some(SourceError::Crowded { .. }));
    let refused = |all: &[watch::Receiver<Arc<Latest>>]| {
        all.iter().filter(|latest| is_crowded(&latest.borrow())).count()
    };
    assert!(refused(&first) + refused(&late) > 50);
    drop(first);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(refused(&late), 0);
    let latest = late.pop().unwrap();
    assert!(!latest.borrow().readings.is_empty());
    assert_eq!(engine.ask(&demand, ASKER).await.0, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_served_in_time_is_told_at_once() {
    let engine = Engine::start(CONFIG, 20, None);
    let _followed = engine.follow("shop", 35 * 20);
    sleep(seconds(30)).await;
    let late = demand_of(&account("dd", "key"), "avg:late{*}");
    let (answer, after) = engine.ask(&late, Asker { namespace: "late", ..ASKER }).await;
    let message = answer.unwrap_err();
    assert!(message.contains("is spent for now; the next turn"), "{message}");
    assert_eq!(after, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_429_pauses_its_organisation_and_nobody_else() {
    let engine = Engine::start(CONFIG, 1_600, Some(("spent", 100)));
    let of = |host: &str| demand_of(&account(host, "key"), "avg:a{*}");
    let asker = Asker { namespace: "shop", needs_step: false };
    let followed = ["spent", "sound"].map(|host| engine.refresher.watch(&of(host), asker));
    sleep(seconds(95)).await;
    assert_eq!(engine.sizes("spent").len(), 1);
    assert_eq!(engine.sizes("sound").len(), 7);
    let (answer, after) = engine.ask(&demand_of(&account("spent", "key"), "b{*}"), asker).await;
    assert!(answer.is_err() && after == Duration::ZERO);
    sleep(seconds(10)).await;
    assert!(followed[0].borrow().failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_demands_and_no_more() {
    let config = Config { max_demands: 7, max_demands_per_namespace: 5, ..CONFIG };
    let engine = Engine::start(config, 1_600, None);
    let full = |latest: &watch::Receiver<Arc<Latest>>| match &latest.borrow().failure {
        Some(SourceError::Full { of_namespace: true, .. }) => "of the namespace",
        Some(SourceError::Full { .. }) => "of all",
        _ => "",
    };
    let mut one = engine.follow("one", 6);
    assert_eq!(full(&one[4]), "");
    assert_eq!(full(&one[5]), "of the namespace");
    let two = engine.follow("two", 3);
    assert_eq!((full(&two[1]), full(&two[2])), ("", "of all"));
    // What is shared with others counts for each.
    let shared = engine.follow_one("two", "avg:one{n:0}");
    assert_eq!(full(&shared), "");
    // What sleeps makes room.
    one.clear();
    sleep(Duration::from_mins(5)).await;
    let three = engine.follow("three", 4);
    assert!(three.iter().all(|latest| full(latest).is_empty()));
}

#[tokio::test(start_paused = true)]
async fn first_readings_take_half_of_the_turns_while_others_wait() {
    let engine = Engine::start(CONFIG, 120, None);
    let known = engine.follow("shop", 35 * 3);
    sleep(Duration::from_mins(20)).await;
    // One new query after the other: more requests than there may be.
    let mut new = Vec::new();
    for n in 0..60 {
        new.push(engine.follow_one("shop", &format!("avg:new{{n:{n}}}")));
        sleep(seconds(20)).await;
    }
    let (oldest, _) = state(&known);
    let interval = known[0].borrow().interval.as_secs();
    assert!(oldest <= 2 * interval + 60, "{oldest} at an interval of {interval}");
}

#[tokio::test(start_paused = true)]
async fn a_lone_point_whose_bucket_must_be_known_travels_alone() {
    let engine = Engine::start(CONFIG, 1_000_000, None);
    let _others = engine.follow("shop", 5);
    let demand = Demand { query: query("avg:lone{*}"), account: account("dd", "key") };
    let needs_step = Asker { needs_step: true, ..ASKER };
    let lone = engine.refresher.watch(&demand, needs_step);
    sleep(seconds(2)).await;
    assert_eq!(engine.sizes("dd"), [6, 1]);
    assert_eq!(lone.borrow().readings[0].series[0].step, Some(seconds(10)));
    sleep(REFRESH).await;
    let mut sizes = engine.sizes("dd");
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 5]);
}
