//! What a query that is malformed, or is never answered, does to its neighbours.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    datadog::{Asked, ENDLESS, MALFORMED},
    keda::{History, Role},
    table::{Goal, Row, verdict},
    world::{Want, World, on_virtual_time, organisation},
};

pub(crate) const HEAD: [&str; 8] = [
    "case",
    "neighbours' first value",
    "oldest age",
    "errors",
    "extra requests, 1 min",
    "20 min",
    "corrected after",
    "goal",
];

const REFRESH: Duration = Duration::from_secs(15);
const HOLD: Duration = Duration::from_mins(1);
const MINUTE: Duration = Duration::from_mins(1);
/// Some time for all to be well in.
const CALM: Duration = Duration::from_mins(5);
const TROUBLE: Duration = Duration::from_mins(20);
/// Enough that each round is a refresh, so that what is asked in excess is the offender's doing.
const LIMIT: u64 = 20_000;
/// The time that it takes to find out who of 35 it is, one half after the other, and to answer.
const SEARCH: Duration = Duration::from_secs(3);
/// `--patience`.
const PATIENCE: Duration = Duration::from_millis(2_500);

pub(crate) struct Isolation {
    pub(crate) name: &'static str,
    triggers: usize,
    offenders: usize,
    fault: &'static str,
    /// Whether the offenders were sound at first.
    turns: bool,
}

/// What the neighbours had from the moment on that there was an offender.
struct Lived {
    first_value: Option<Duration>,
    oldest: Duration,
    errors: u64,
    requests_of_a_minute: usize,
    requests: usize,
    corrected_after: Option<Duration>,
}

pub(crate) fn isolations() -> Vec<Isolation> {
    let malformed = |name, triggers, offenders, turns| Isolation {
        name,
        triggers,
        offenders,
        fault: MALFORMED,
        turns,
    };
    let endless =
        |name, triggers, turns| Isolation { name, triggers, offenders: 1, fault: ENDLESS, turns };
    vec![
        malformed("1 malformed among 35, from the start", 35, 1, false),
        malformed("1 malformed among 350, from the start", 350, 1, false),
        malformed("5 malformed among 350, from the start", 350, 5, false),
        malformed("1 among 35 becomes malformed", 35, 1, true),
        malformed("1 among 350 becomes malformed", 350, 1, true),
        malformed("5 among 350 become malformed", 350, 5, true),
        endless("1 never answered among 35, from the start", 35, false),
        endless("1 never answered among 350, from the start", 350, false),
        endless("1 among 35 is no longer answered", 35, true),
        endless("1 among 350 is no longer answered", 350, true),
    ]
}

impl Isolation {
    pub(crate) fn run(&self) -> Row {
        let lived = on_virtual_time(self.live(self.offenders));
        let without = on_virtual_time(self.live(0));
        let is_malformed = self.fault == MALFORMED;
        let oldest = if is_malformed { REFRESH + SEARCH } else { REFRESH + HOLD };
        let mut goals =
            vec![Goal::new(format!("ages <= {} s", oldest.as_secs()), lived.oldest <= oldest)];
        if self.turns {
            goals.push(Goal::new("errors = 0", lived.errors == 0));
        } else if is_malformed {
            let same_round = lived.first_value.is_some_and(|after| after < REFRESH);
            goals.push(Goal::new("values in the same round", same_round));
        }
        let corrected = lived.corrected_after.is_some_and(|after| after <= PATIENCE);
        goals.push(Goal::new("corrected at once", corrected));

        let seconds = |time: Option<Duration>| match time {
            Some(time) => format!("{:.1} s", time.as_secs_f64()),
            None => "never".to_owned(),
        };
        let extra = |with: usize, without: usize| {
            format!("{:+}", i64::try_from(with).unwrap() - i64::try_from(without).unwrap())
        };
        let cells = vec![
            self.name.to_owned(),
            if self.turns { "-".to_owned() } else { seconds(lived.first_value) },
            seconds(Some(lived.oldest)),
            lived.errors.to_string(),
            extra(lived.requests_of_a_minute, without.requests_of_a_minute),
            extra(lived.requests, without.requests),
            seconds(lived.corrected_after),
            verdict(&goals),
        ];
        Row { cells, notes: Vec::new() }
    }

    /// The same life with as many offenders.
    async fn live(&self, offenders: usize) -> Lived {
        let offends_after = if self.turns { CALM } else { Duration::ZERO };
        let started_at = Instant::now();
        let mut world = World::new(vec![organisation(LIMIT)], offends_after, 1, REFRESH);
        // In the midst of the others, and of different requests.
        let among = (0..offenders).map(|n| (2 * n + 1) * self.triggers / (2 * offenders));
        let among: Vec<usize> = among.collect();
        for number in 0..self.triggers {
            let want = Want::new(number);
            world.add(&if among.contains(&number) {
                Want { fault: Some(self.fault), role: Role::Offender, ..want }
            } else {
                want
            });
        }
        world.keda.ask_all().await;
        world.keda.run(offends_after).await;
        if self.turns {
            world.keda.take_tally();
        }
        world.keda.run(offends_after + TROUBLE).await;
        let tally = world.keda.take_tally();
        let neighbours = world.keda.objects().iter().filter(|o| o.role == Role::Subject);
        let first_value = last(
            neighbours.map(|neighbour| Some(neighbour.history.first_value.get()? - started_at)),
        );
        let asked = world.datadog.asked();
        let requests = |asked: &[Asked], lasts: Duration| {
            let time = offends_after..offends_after + lasts;
            asked.iter().filter(|asked| time.contains(&asked.at)).count()
        };
        let (requests_of_a_minute, requests) =
            (requests(&asked, MINUTE), requests(&asked, TROUBLE));

        // Their authors correct them.
        for place in &among {
            let object = world.object(&Want { role: Role::Offender, ..Want::new(*place) });
            world.keda.replace(*place, object);
        }
        world.keda.run(offends_after + TROUBLE + 2 * MINUTE).await;
        let waited =
            |history: &History| Some(history.first_value.get()? - history.first_asked.get()?);
        let corrected = among.iter().map(|place| waited(&world.keda.objects()[*place].history));
        Lived {
            first_value,
            oldest: tally.subjects.ages.oldest,
            errors: tally.subjects.failed(),
            requests_of_a_minute,
            requests,
            corrected_after: last(corrected),
        }
    }
}

/// The longest of them; `None` if one has no end.
fn last(times: impl Iterator<Item = Option<Duration>>) -> Option<Duration> {
    times.collect::<Option<Vec<Duration>>>()?.into_iter().max()
}
