//! How soon all have a reading after a restart.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    datadog::Outcome,
    table::{Goal, Row, verdict},
    world::{Want, World, on_virtual_time, organisation},
};

pub(crate) const HEAD: [&str; 7] =
    ["case", "all have one after", "longest wait", "requests", "429s", "errors", "goal"];

const TRIGGERS: usize = 1_000;
const SOON: Duration = Duration::from_secs(15);

pub(crate) struct Start {
    pub(crate) name: &'static str,
    /// Or each at its own time, as KEDA goes on.
    all_at_once: bool,
}

pub(crate) fn starts() -> Vec<Start> {
    vec![
        Start { name: "1,000 triggers, all at once", all_at_once: true },
        Start { name: "1,000 triggers, at KEDA's pace", all_at_once: false },
    ]
}

impl Start {
    pub(crate) fn run(&self) -> Row {
        on_virtual_time(self.measure())
    }

    async fn measure(&self) -> Row {
        let started_at = Instant::now();
        let refresh = Duration::from_secs(15);
        let mut world = World::new(vec![organisation(1_600)], Duration::ZERO, 1, refresh);
        (0..TRIGGERS).for_each(|number| world.add(&Want::new(number)));
        if self.all_at_once {
            world.keda.ask_all().await;
        }
        world.keda.run(Duration::from_mins(5)).await;

        let histories = || world.keda.objects().iter().map(|object| &object.history);
        let all_after =
            histories().map(|h| Some(h.first_value.get()? - started_at)).collect::<Option<_>>();
        let all_after = all_after.map(|after: Vec<Duration>| after.into_iter().max());
        let waits = histories()
            .map(|h| Some(h.first_value.get()? - h.first_asked.get()?))
            .collect::<Option<Vec<Duration>>>();
        let longest = waits.map(|waits| waits.into_iter().max());
        let shown = |time: Option<Option<Duration>>| match time.flatten() {
            Some(time) => format!("{:.1} s", time.as_secs_f64()),
            None => "never".to_owned(),
        };
        let asked = world.datadog.asked();
        let throttled = asked.iter().filter(|asked| asked.outcome == Outcome::Throttled).count();
        let is_soon = longest.flatten().is_some_and(|longest| longest <= SOON);
        let goals = [Goal::new("wait <= 15 s", is_soon), Goal::new("429s = 0", throttled == 0)];
        let cells = vec![
            self.name.to_owned(),
            shown(all_after),
            shown(longest),
            asked.len().to_string(),
            throttled.to_string(),
            world.keda.take_tally().subjects.failed().to_string(),
            verdict(&goals),
        ];
        Row { cells, notes: Vec::new() }
    }
}
