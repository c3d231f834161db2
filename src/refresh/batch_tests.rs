//! Many demands from few requests, on a paused clock, in front of a scripted source.

use std::collections::HashMap;

use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    scripted::{ASKER, CONFIG, REFRESH, account, ample, demand_of, outage, seconds},
    *,
};
use crate::{
    demand::{Point, Series},
    source::{Answer, Batch, Reply},
};

/// What Datadog makes of a request at so many seconds after the start: one outcome for each query,
/// and how long it takes.
type Script = fn(u64, &[&str]) -> (Duration, Vec<Result<Option<f64>, SourceError>>);

/// When, in seconds after the start, and which queries.
type Asked = (u64, Vec<String>);

struct Scripted {
    script: Script,
    started_at: Instant,
    requests: Arc<Mutex<Vec<Asked>>>,
}

impl Source for Scripted {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let at = self.started_at.elapsed().as_secs();
        let texts: Vec<&str> = batch.queries.iter().map(|query| &*query.text).collect();
        let asked = texts.iter().map(|text| (*text).to_owned()).collect();
        self.requests.lock().unwrap().push((at, asked));
        let (takes, outcomes) = (self.script)(at, &texts);
        sleep(takes).await;
        let answer = |value: Option<f64>| {
            let points = value.map(|value| Point { at_ms: 0, value }).into_iter().collect();
            let series = vec![Series { scope: "*".into(), step: None, nulls: 0, points }];
            Answer { series: series.into(), window_end_ms: 0 }
        };
        let outcomes = outcomes.into_iter().map(|outcome| outcome.map(answer)).collect();
        Reply { outcomes, rate_limit: Some(ample()) }
    }
}

struct Engine {
    requests: Arc<Mutex<Vec<Asked>>>,
    watched: HashMap<String, watch::Receiver<Arc<Latest>>>,
    refresher: Refresher,
    account: Arc<Account>,
    _tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl Engine {
    /// Follows these queries from the start.
    fn start(script: Script, queries: impl IntoIterator<Item = String>) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let source = Scripted { script, started_at: Instant::now(), requests: requests.clone() };
        let (refresher, worker) = seeded(CONFIG, source, 7);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(shutdown.clone()));
        let mut engine = Self {
            requests,
            watched: HashMap::new(),
            refresher,
            account: account("dd", "key"),
            _tasks: tasks,
            _stop: shutdown.drop_guard(),
        };
        queries.into_iter().for_each(|query| engine.follow(query));
        engine
    }

    fn follow(&mut self, query: String) {
        let demand = demand_of(&self.account, &query);
        self.watched.insert(query, self.refresher.watch(&demand, ASKER));
    }

    /// Sizes of the requests since the last look.
    fn sizes(&self) -> Vec<usize> {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        requests.iter().map(|(_, queries)| queries.len()).collect()
    }

    /// Age of each query's newest reading in seconds, the oldest of them.
    fn oldest(&self, is_meant: impl Fn(&str) -> bool) -> Option<u64> {
        let meant = self.watched.iter().filter(|(query, _)| is_meant(query));
        let ages = meant.map(|(_, latest)| {
            Some(latest.borrow().readings.first()?.taken_at.elapsed().as_secs())
        });
        ages.collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    fn failure(&self, query: &str) -> Option<SourceError> {
        self.watched[query].borrow().failure.clone()
    }
}

fn queries(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("avg:a{{n:{n}}}"))
}

const QUICK: Duration = Duration::from_millis(100);

fn is_sound(query: &str) -> bool {
    !query.contains("bad")
}

fn sound(_: u64, queries: &[&str]) -> (Duration, Vec<Result<Option<f64>, SourceError>>) {
    (QUICK, vec![Ok(Some(1.0)); queries.len()])
}

/// One bad query rejects all of a request, and nothing says which.
fn rejects(at: u64, queries: &[&str]) -> (Duration, Vec<Result<Option<f64>, SourceError>>) {
    if queries.iter().all(|query| is_sound(query)) {
        return sound(at, queries);
    }
    let malformed = SourceError::Malformed { reason: "no".into() };
    (QUICK, vec![Err(malformed); queries.len()])
}

#[tokio::test(start_paused = true)]
async fn what_is_due_together_travels_together() {
    let engine = Engine::start(sound, queries(64));
    sleep(seconds(1)).await;
    assert_eq!(engine.sizes(), [35, 29]);
    sleep(REFRESH * 4).await;
    assert_eq!(engine.sizes(), [35, 29, 35, 29, 35, 29, 35, 29]);
    assert!(engine.oldest(|_| true) < Some(16));
}

#[tokio::test(start_paused = true)]
async fn who_comes_later_joins_the_next_round() {
    let mut engine = Engine::start(sound, queries(3));
    sleep(seconds(7)).await;
    assert_eq!(engine.sizes(), [3]);
    engine.follow("avg:late{*}".to_owned());
    sleep(seconds(1)).await;
    assert_eq!(engine.sizes(), [1]);
    sleep(REFRESH * 2).await;
    assert_eq!(engine.sizes(), [4, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_first_query_does_not_share_a_request_with_those_that_have_answers() {
    let mut engine = Engine::start(sound, queries(3));
    sleep(Duration::from_millis(14_997)).await;
    engine.sizes();
    // Due at the very same time.
    engine.follow("avg:late{*}".to_owned());
    sleep(seconds(1)).await;
    let mut sizes = engine.sizes();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 3]);
}

/// 2·log2(n) + 2 for each offender.
#[track_caller]
fn check_extra(sizes: &[usize], batches: usize, offenders: usize) {
    let extra = sizes.len() - batches;
    assert!(extra <= offenders * 13, "{extra} extra requests: {sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn one_bad_query_harms_only_itself_in_the_same_round() {
    let all = queries(34).chain(["avg:bad{a b}".to_owned()]);
    let engine = Engine::start(rejects, all);
    sleep(seconds(3)).await;
    check_extra(&engine.sizes(), 1, 1);
    assert!(engine.oldest(is_sound) <= Some(3));
    let malformed = SourceError::Malformed { reason: "no".into() };
    assert_eq!(engine.failure("avg:bad{a b}"), Some(malformed));
}

#[tokio::test(start_paused = true)]
async fn five_bad_queries_among_many_harm_only_themselves() {
    let all = (0..350).map(|n| match n % 70 {
        33 => format!("avg:bad{{n:{n}}}"),
        _ => format!("avg:a{{n:{n}}}"),
    });
    let engine = Engine::start(rejects, all);
    sleep(seconds(3)).await;
    check_extra(&engine.sizes(), 10, 5);
    assert!(engine.oldest(is_sound) <= Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_bad_query_that_is_named_is_found_at_once() {
    let script: Script = |at, queries| match queries.iter().find(|query| !is_sound(query)) {
        Some(bad) => {
            let reason = format!("unable to parse {bad}: Rule 'scope_expr' did not match");
            (QUICK, vec![Err(SourceError::Malformed { reason }); queries.len()])
        }
        None => sound(at, queries),
    };
    let engine = Engine::start(script, queries(34).chain(["avg:bad{a b}".to_owned()]));
    sleep(seconds(1)).await;
    assert_eq!(engine.sizes(), [35, 1, 34]);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_query_travels_alone_and_ever_less_often() {
    let engine = Engine::start(rejects, queries(3).chain(["avg:bad{a b}".to_owned()]));
    sleep(Duration::from_hours(2)).await;
    let requests = std::mem::take(&mut *engine.requests.lock().unwrap());
    let of_bad = requests.iter().filter(|(_, queries)| queries.iter().any(|q| !is_sound(q)));
    let of_bad: Vec<(u64, usize)> =
        of_bad.map(|(at, queries)| (*at, queries.len())).skip_while(|(at, _)| *at == 0).collect();
    assert!(of_bad.iter().all(|(_, size)| *size == 1), "{of_bad:?}");
    let pauses: Vec<u64> = of_bad.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    // Doubled each time, up to half an hour, and up to a fifth shorter.
    for (pause, longest) in pauses.iter().zip([30, 60, 120, 240, 480, 960, 1_800, 1_800]) {
        assert!((longest * 4 / 5 - 1..=longest + 1).contains(pause), "{pauses:?}");
    }
    assert!(pauses.len() >= 8, "{pauses:?}");
    // The neighbours are read each round, in one request.
    let others = requests.iter().filter(|(_, queries)| queries.len() == 3).count();
    assert!(others >= 470, "{others}");
}

#[tokio::test(start_paused = true)]
async fn a_corrected_query_travels_with_the_others_again() {
    let script: Script =
        |at, queries| if at < 20 { rejects(at, queries) } else { sound(at, queries) };
    let engine = Engine::start(script, queries(3).chain(["avg:bad{a b}".to_owned()]));
    sleep(seconds(70)).await;
    engine.sizes();
    sleep(REFRESH).await;
    assert_eq!(engine.sizes(), [4]);
}

fn outages(_: u64, queries: &[&str]) -> (Duration, Vec<Result<Option<f64>, SourceError>>) {
    (QUICK, vec![Err(outage()); queries.len()])
}

fn throttles(_: u64, queries: &[&str]) -> (Duration, Vec<Result<Option<f64>, SourceError>>) {
    let error = SourceError::Throttled { host: "dd".into(), limit: None };
    (QUICK, vec![Err(error); queries.len()])
}

#[tokio::test(start_paused = true)]
async fn a_spent_limit_is_not_divided() {
    let engine = Engine::start(throttles, queries(20));
    sleep(REFRESH * 10).await;
    let sizes = engine.sizes();
    assert_eq!(sizes, vec![20; sizes.len()]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_tried_with_less_only_if_it_lasts() {
    let engine = Engine::start(outages, queries(70));
    sleep(REFRESH + seconds(1)).await;
    assert_eq!(engine.sizes(), [35; 3]);
    // One request at a time, and never twice at once.
    sleep(Duration::from_mins(10)).await;
    let sizes = engine.sizes();
    assert!(sizes.len() < 30, "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_after_a_429_is_not_tried_with_less() {
    let script: Script = |at, queries| match at {
        // Half a minute's pause follows.
        0..20 => throttles(at, queries),
        20..35 => outages(at, queries),
        _ => sound(at, queries),
    };
    let engine = Engine::start(script, queries(20));
    sleep(seconds(60)).await;
    assert_eq!(engine.sizes(), [20; 4]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_processed_is_tried_whole_once_more_and_then_divided() {
    let script: Script = |at, queries| {
        if queries.iter().all(|query| is_sound(query)) {
            return sound(at, queries);
        }
        (QUICK, vec![Err(SourceError::Unprocessable); queries.len()])
    };
    let engine = Engine::start(script, queries(3).chain(["avg:bad{*}".to_owned()]));
    sleep(seconds(2)).await;
    assert_eq!(engine.sizes(), [4, 4, 2, 2, 1, 1]);
    assert!(engine.oldest(is_sound) <= Some(2));
    assert_eq!(engine.failure("avg:bad{*}"), Some(SourceError::Unprocessable));
}

#[tokio::test(start_paused = true)]
async fn a_slow_query_does_not_outlast_its_neighbours_hold() {
    let script: Script = |at, queries| {
        if at < 10 || queries.iter().all(|query| is_sound(query)) {
            return sound(at, queries);
        }
        let error = SourceError::TimedOut { host: "dd".into(), after: seconds(10) };
        (seconds(10), vec![Err(error); queries.len()])
    };
    let engine = Engine::start(script, queries(34).chain(["avg:bad{*}".to_owned()]));
    let mut oldest = 0;
    for _ in 0..600 {
        sleep(seconds(1)).await;
        oldest = oldest.max(engine.oldest(is_sound).unwrap());
    }
    // Due after 15 s, and held for a minute.
    assert!(oldest < 75, "{oldest} s");
    assert!(engine.oldest(is_sound) < Some(16));
}

#[tokio::test(start_paused = true)]
async fn a_query_that_is_missing_in_an_answer_is_read_once_alone() {
    let script: Script = |at, queries| {
        let is_batch = queries.len() > 1;
        let outcome = |query: &&str| {
            // Lost in a batch from then on, and for good after a minute.
            let is_lost = !is_sound(query) && ((at > 10 && is_batch) || at > 60);
            Ok((!is_lost).then_some(1.0))
        };
        (QUICK, queries.iter().map(outcome).collect())
    };
    let engine = Engine::start(script, queries(5).chain(["avg:bad{*}".to_owned()]));
    sleep(seconds(1)).await;
    engine.sizes();
    sleep(REFRESH * 2).await;
    assert_eq!(engine.sizes(), [6, 1, 6, 1]);
    assert_eq!(engine.watched["avg:bad{*}"].borrow().readings[0].depth(), 1);
    sleep(REFRESH * 4).await;
    assert_eq!(engine.watched["avg:bad{*}"].borrow().readings[0].depth(), 0);
    engine.sizes();
    // What has no data is not missed.
    sleep(REFRESH * 2).await;
    assert_eq!(engine.sizes(), [6, 6]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_understands_is_asked_for_one_by_one() {
    let script: Script = |at, queries| {
        if queries.len() == 1 {
            return sound(at, queries);
        }
        let what = "there is a series in it that is of none of the queries".to_owned();
        let error = SourceError::NotUnderstood { host: "dd".into(), what };
        (QUICK, vec![Err(error); queries.len()])
    };
    let engine = Engine::start(script, queries(4));
    sleep(seconds(2)).await;
    assert_eq!(engine.sizes(), [4, 1, 1, 1, 1]);
    assert!(engine.oldest(|_| true) <= Some(2));
}

#[tokio::test(start_paused = true)]
async fn what_fails_in_every_part_is_not_divided_without_end() {
    let script: Script = |_, queries| {
        let malformed = SourceError::Malformed { reason: "an unheard of outage".into() };
        (QUICK, vec![Err(malformed); queries.len()])
    };
    let engine = Engine::start(script, queries(350));
    sleep(seconds(10)).await;
    let requests = engine.sizes().len();
    assert!(requests <= 10 + 2 * 12, "{requests} requests");
}

#[tokio::test(start_paused = true)]
async fn when_many_are_missing_at_once_it_is_an_outage() {
    let script: Script = |at, queries| {
        let outcome = |n: usize| Ok((at < 10 || n >= 7).then_some(1.0));
        (QUICK, (0..queries.len()).map(outcome).collect())
    };
    let engine = Engine::start(script, queries(10));
    sleep(REFRESH + seconds(1)).await;
    assert_eq!(engine.sizes(), [10, 10]);
    let failures = queries(10).filter(|query| engine.failure(query).is_some()).count();
    assert_eq!(failures, 7);
    let what = "7 of 10 queries lost their data at once".to_owned();
    let outage = SourceError::Outage { host: "dd".into(), what };
    assert_eq!(queries(10).find_map(|query| engine.failure(&query)), Some(outage));
}
