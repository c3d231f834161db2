//! What it takes to keep so many triggers fresh: the sizes, and the hard cases.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    datadog::{Asked, Headers, MALFORMED, Organisation, Others, Outcome},
    keda::{Role, Tally},
    table::{Goal, Row, verdict},
    world::{Want, World, on_virtual_time, organisation},
};

pub(crate) const HEAD: [&str; 16] = [
    "case",
    "limit/h",
    "calls/min",
    "worst min",
    "calls/h",
    "a round",
    "429s",
    "others' 429s",
    "median age",
    "oldest age",
    "served",
    "flapping",
    "RPCs answered",
    "errors at first",
    "errors later",
    "goal",
];

const HOUR: Duration = Duration::from_hours(1);
const DATADOGS_LIMIT: u64 = 1_600;
const REFRESH: Duration = Duration::from_secs(15);
/// When those come that come later.
const LATER: Duration = Duration::from_mins(10);
/// Errors after this are not those of a start.
const START: Duration = Duration::from_mins(2);
/// `--max-round` and `--hold`.
const OLDEST: Duration = Duration::from_mins(5);

pub(crate) struct Load {
    pub(crate) name: &'static str,
    organisations: Vec<Organisation>,
    scalers: usize,
    refresh: Duration,
    triggers: usize,
    want: fn(usize) -> Want,
    comes_later: fn(&Want) -> bool,
    goals: fn(&Figures) -> Vec<Goal>,
}

struct Figures {
    calls_a_minute: f64,
    worst_minute: usize,
    /// Of one organisation in one hour of the calendar.
    calls_an_hour: usize,
    /// In which every query is read once.
    requests_a_round: f64,
    throttled: usize,
    others_throttled: u64,
    median: Duration,
    oldest: Duration,
    triggers: usize,
    /// Triggers whose newest answer is a value.
    served: usize,
    /// Triggers that had both values and errors in the second half.
    flapping: usize,
    values: u64,
    errors_first: u64,
    later: Tally,
}

pub(crate) fn sizes() -> Vec<Load> {
    vec![
        Load {
            goals: |f| vec![f.none_throttled(), f.calm(4), f.fresh(16)],
            ..load("1 trigger", 1)
        },
        Load {
            goals: |f| vec![f.none_throttled(), f.calm(8), f.fresh(16)],
            ..load("64 triggers", 64)
        },
        Load {
            refresh: 2 * REFRESH,
            goals: |f| vec![f.none_throttled(), f.calm(4)],
            ..load("64 triggers, --refresh 30s", 64)
        },
        Load {
            goals: |f| vec![f.none_throttled(), f.frugal(1_280), f.fresh(90), f.all_served()],
            ..load("1,000 triggers", 1_000)
        },
        Load {
            goals: |f| vec![f.none_throttled(), f.frugal(1_280), f.fresh_enough(), f.steady()],
            ..load("10,000 triggers", 10_000)
        },
        Load {
            organisations: vec![organisation(20_000)],
            goals: |f| vec![f.none_throttled(), f.frugal(16_000), f.all_served()],
            ..load("10,000 triggers, 20,000 an hour", 10_000)
        },
    ]
}

pub(crate) fn hard_cases() -> Vec<Load> {
    let with_headers = |headers| vec![Organisation { headers, ..organisation(DATADOGS_LIMIT) }];
    let with_others = |others| vec![Organisation { others, ..organisation(DATADOGS_LIMIT) }];
    let keys = |count| (0..count).map(|n| format!("api-{n}")).collect();
    let of_keys = |api_keys| Organisation { api_keys, ..organisation(DATADOGS_LIMIT) };
    let half = 800;
    vec![
        Load {
            organisations: with_headers(Headers::Missing),
            // 300 an hour do not carry them.
            goals: |f| vec![f.none_throttled(), f.fresh_enough(), f.steady()],
            ..load("no headers", 1_000)
        },
        Load {
            organisations: with_headers(Headers::Late(Duration::from_mins(1))),
            ..load("`Remaining` is 60 s late", 1_000)
        },
        Load {
            organisations: with_others(Others::Evenly(half)),
            ..load("another takes half, evenly", 1_000)
        },
        Load {
            organisations: with_others(Others::Bursts(half)),
            ..load("another takes half, in bursts", 1_000)
        },
        Load {
            scalers: 2,
            want: |number| Want { scaler: number % 2, ..Want::new(number) },
            ..load("two scalers, one organisation", 1_000)
        },
        Load {
            want: |number| Want { app_key: format!("app-{}", number % 20), ..Want::new(number) },
            ..load("20 accounts, one API key", 1_000)
        },
        Load {
            organisations: vec![of_keys(keys(20))],
            want: |number| of_account(number, number % 20, number % 20),
            ..load("20 accounts, 20 API keys", 1_000)
        },
        Load {
            organisations: vec![of_keys(keys(4))],
            want: |number| of_account(number, number % 20 / 5, number % 20),
            ..load("20 accounts, 4 API keys", 1_000)
        },
        Load {
            organisations: (0..2).map(|n| of_keys(vec![format!("api-{n}")])).collect(),
            want: |number| of_account(number, number % 2, number % 2),
            ..load("two organisations, equal limits", 1_000)
        },
        Load {
            want: |number| {
                let age = [60, 90, 120, 300, 600][number % 5];
                let offset = [0, 30, 60][number / 5 % 3];
                Want { window: (age, offset), ..Want::new(number) }
            },
            ..load("5 ages x 3 offsets", 1_000)
        },
        Load {
            want: |number| {
                let want = Want::new(number);
                match number % 20 {
                    11 => Want { fault: Some(MALFORMED), role: Role::Offender, ..want },
                    _ => want,
                }
            },
            ..load("5 % of the queries bad", 1_000)
        },
        Load {
            want: of_two_kinds,
            comes_later: |want| want.role == Role::Subject,
            goals: fair,
            ..load("5,000 of one namespace, then 50 x 5", 5_250)
        },
        Load {
            want: of_two_kinds,
            comes_later: |want| want.role == Role::Offender,
            goals: fair,
            ..load("50 x 5, then 5,000 of one namespace", 5_250)
        },
    ]
}

fn load(name: &'static str, triggers: usize) -> Load {
    Load {
        name,
        organisations: vec![organisation(DATADOGS_LIMIT)],
        scalers: 1,
        refresh: REFRESH,
        triggers,
        want: Want::new,
        comes_later: |_| false,
        goals: |figures| {
            vec![figures.none_throttled(), figures.fresh_enough(), figures.all_served()]
        },
    }
}

fn of_account(number: usize, api: usize, app: usize) -> Want {
    Want { api_key: format!("api-{api}"), app_key: format!("app-{app}"), ..Want::new(number) }
}

/// The first 250 are of fifty small namespaces, the others of a big one.
fn of_two_kinds(number: usize) -> Want {
    let want = Want::new(number);
    match number {
        0..250 => want,
        _ => Want { namespace: "big".to_owned(), role: Role::Offender, ..want },
    }
}

fn fair(figures: &Figures) -> Vec<Goal> {
    let errors = figures.later.subjects.failed();
    let goal = Goal::new("errors of the small = 0", errors == 0);
    vec![figures.none_throttled(), figures.fresh_enough(), goal, figures.steady()]
}

impl Load {
    pub(crate) fn run(&self) -> Row {
        let figures = on_virtual_time(self.measure());
        let limit = self.organisations[0].limit;
        figures.row(self.name, limit, &(self.goals)(&figures))
    }

    async fn measure(&self) -> Figures {
        let started_at = Instant::now();
        let organisations = self.organisations.clone();
        let mut world = World::new(organisations, Duration::ZERO, self.scalers, self.refresh);
        let wanted: Vec<Want> = (0..self.triggers).map(self.want).collect();
        let (later, early): (Vec<Want>, Vec<Want>) =
            wanted.into_iter().partition(|want| (self.comes_later)(want));
        for want in &early {
            world.add(want);
        }
        let mut all_came = Duration::ZERO;
        if !later.is_empty() {
            world.keda.run(LATER).await;
            for want in &later {
                world.add(want);
            }
            all_came = LATER;
        }
        world.keda.run(all_came + START).await;
        let first = world.keda.take_tally();
        world.keda.run(2 * HOUR).await;
        let later = world.keda.take_tally();

        let asked = world.datadog.asked();
        let settled = 3 * self.refresh;
        let half = started_at + HOUR;
        let subjects = || world.keda.objects().iter().filter(|o| o.role == Role::Subject);
        let histories = || subjects().map(|object| &object.history);
        Figures {
            calls_a_minute: count(asked.iter().filter(|asked| asked.at >= settled).count())
                / ((2 * HOUR).saturating_sub(settled).as_secs_f64() / 60.0),
            worst_minute: worst_minute(&asked, settled + self.refresh / 2),
            calls_an_hour: worst_hour(&asked),
            requests_a_round: requests_a_round(&asked),
            throttled: asked.iter().filter(|asked| asked.outcome == Outcome::Throttled).count(),
            others_throttled: world.datadog.others_throttled(),
            median: later.subjects.ages.median(),
            oldest: first.subjects.ages.oldest.max(later.subjects.ages.oldest),
            triggers: histories().count(),
            served: histories()
                .filter(|history| history.newest_value.get() > history.newest_error.get())
                .count(),
            flapping: histories()
                .filter(|history| {
                    let newest = [&history.newest_value, &history.newest_error];
                    newest.iter().all(|at| at.get() > Some(half))
                })
                .count(),
            values: first.subjects.values + later.subjects.values,
            errors_first: first.subjects.failed(),
            later,
        }
    }
}

/// The most requests of a minute; the minutes begin at `from`.
fn worst_minute(asked: &[Asked], from: Duration) -> usize {
    let mut minutes: HashMap<u64, usize> = HashMap::new();
    for asked in asked.iter().filter(|asked| asked.at >= from) {
        *minutes.entry(asked.at.saturating_sub(from).as_secs() / 60).or_default() += 1;
    }
    minutes.into_values().max().unwrap_or(0)
}

fn worst_hour(asked: &[Asked]) -> usize {
    let mut hours: HashMap<(usize, u64), usize> = HashMap::new();
    for asked in asked.iter().filter(|asked| asked.outcome != Outcome::Throttled) {
        *hours.entry((asked.organisation, asked.window)).or_default() += 1;
    }
    hours.into_values().max().unwrap_or(0)
}

/// In the second hour.
fn requests_a_round(asked: &[Asked]) -> f64 {
    let answered: Vec<&Asked> = asked
        .iter()
        .filter(|asked| asked.at >= HOUR && asked.outcome == Outcome::Answered)
        .collect();
    let read = || answered.iter().flat_map(|asked| &asked.queries);
    let distinct: HashSet<&str> = read().map(|query| &**query).collect();
    count(answered.len()) * count(distinct.len()) / count(read().count().max(1))
}

#[expect(clippy::cast_precision_loss, reason = "there are not that many")]
fn count(number: usize) -> f64 {
    number as f64
}

impl Figures {
    fn none_throttled(&self) -> Goal {
        let throttled = self.throttled == 0 && self.others_throttled == 0;
        Goal::new("429s = 0", throttled)
    }

    fn calm(&self, most: usize) -> Goal {
        Goal::new(format!("calls/min <= {most}"), self.worst_minute <= most)
    }

    fn frugal(&self, most: usize) -> Goal {
        Goal::new(format!("calls/h <= {most}"), self.calls_an_hour <= most)
    }

    fn fresh(&self, seconds: u64) -> Goal {
        let text = format!("ages <= {seconds} s");
        Goal::new(text, self.oldest <= Duration::from_secs(seconds))
    }

    /// No older than a reading ever may be.
    fn fresh_enough(&self) -> Goal {
        Goal::new(format!("ages <= {} s", OLDEST.as_secs()), self.oldest <= OLDEST)
    }

    fn all_served(&self) -> Goal {
        let is_met = self.served == self.triggers && self.later.subjects.failed() == 0;
        Goal::new("all served", is_met)
    }

    /// Who is served stays so, but for those on the edge when the period ends.
    fn steady(&self) -> Goal {
        let is_met = self.served > 0 && self.flapping * 100 <= self.served;
        Goal::new("some served, 1 % of them flapping at most", is_met)
    }

    fn row(&self, name: &str, limit: u64, goals: &[Goal]) -> Row {
        let seconds = |age: Duration| format!("{:.1} s", age.as_secs_f64());
        let later = &self.later.subjects;
        let notes = [("", later), (" (offenders)", &self.later.offenders)];
        let notes = notes.into_iter().flat_map(|(whose, told)| {
            told.errors.iter().map(move |(kind, errors)| {
                format!("{name}{whose}: {} x {kind}: {}", errors.count, errors.first)
            })
        });
        let cells = vec![
            name.to_owned(),
            limit.to_string(),
            format!("{:.1}", self.calls_a_minute),
            self.worst_minute.to_string(),
            self.calls_an_hour.to_string(),
            format!("{:.1}", self.requests_a_round),
            self.throttled.to_string(),
            self.others_throttled.to_string(),
            seconds(self.median),
            seconds(self.oldest),
            format!("{} of {}", self.served, self.triggers),
            self.flapping.to_string(),
            self.values.to_string(),
            self.errors_first.to_string(),
            later.failed().to_string(),
            verdict(goals),
        ];
        Row { cells, notes: notes.collect() }
    }
}
