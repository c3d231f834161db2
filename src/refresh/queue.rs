//! Who of an account waits for a request, and in which order. Pure.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::travel::{Filling, Load};
use crate::{
    demand::{Query, Window},
    source::Batch,
};

/// Requests are shared out among these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Had a reading, and falls due.
    Refresh,
    /// Has never been read.
    First,
    /// At fault by itself: Datadog rejects it, keeps failing to process it (422), or takes too long.
    /// Seldom anything comes of it.
    Quarantine,
}

impl Lane {
    pub(super) const ALL: [Self; 3] = [Self::Refresh, Self::First, Self::Quarantine];

    /// What a turn of it counts: first readings take at most half of the turns, and when there are
    /// not enough for all, a fifth, as those in quarantine do.
    pub(super) fn price(self, is_short: bool) -> u64 {
        match self {
            Self::Refresh => 1,
            Self::First if !is_short => 1,
            Self::First | Self::Quarantine => 4,
        }
    }
}

/// What demands must have in common to travel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    pub(super) window: Window,
    /// A stranger's first query is not to delay those that have answers.
    pub(super) lane: Lane,
    /// Most queries of a request that it travels in.
    pub(super) company: usize,
}

/// A place in a line; the number tells apart what has one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) order: u64,
    pub(super) number: u64,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) query: Query,
    pub(super) load: Load,
    pub(super) due_at: Instant,
    /// From when on it may travel along with others that are due.
    pub(super) ripe_at: Instant,
}

#[derive(Default)]
pub(super) struct Queue {
    lines: HashMap<Class, BTreeMap<Place, Waiting>>,
    /// What is left of batches that were divided, and what is to be read once alone.
    again: VecDeque<(Lane, Batch)>,
}

/// How far beyond the head of a line somebody may be due earlier.
const LOOK_AHEAD: usize = 50;
/// How many are looked at, for each that fits into a request.
const MOST_TRIED: usize = 4;

impl Queue {
    pub(super) fn enter(&mut self, class: Class, place: Place, waiting: Waiting) {
        self.lines.entry(class).or_default().insert(place, waiting);
    }

    pub(super) fn leave(&mut self, class: &Class, place: &Place) -> Option<Waiting> {
        let line = self.lines.get_mut(class)?;
        let waiting = line.remove(place);
        if line.is_empty() {
            self.lines.remove(class);
        }
        waiting
    }

    pub(super) fn again(&mut self, lane: Lane, batch: Batch) {
        self.again.push_back((lane, batch));
    }

    /// Whether anything of this lane could be sent now, and in which order: what is left of a
    /// divided batch first of all.
    pub(super) fn head(&self, lane: Lane, now: Instant, filled: &Filled) -> Option<u64> {
        if self.has_again(lane) {
            return Some(0);
        }
        self.first_due(lane, now, filled).map(|(place, _)| place.order)
    }

    /// The lane of whoever could have been sent for the longest time.
    pub(super) fn longest_waiting(&self, now: Instant, filled: &Filled) -> Option<Lane> {
        if let Some((lane, _)) = self.again.front() {
            return Some(*lane);
        }
        let heads = self
            .lines
            .iter()
            .filter_map(|(class, line)| Some((filled.due_at(class, line)?, class.lane)));
        let (due_at, lane) = heads.min_by_key(|(due_at, _)| *due_at)?;
        (due_at <= now).then_some(lane)
    }

    /// The next request of this lane. Its queries have left the queue.
    pub(super) fn take(&mut self, lane: Lane, now: Instant, filled: &Filled) -> Option<Taken> {
        let most_queries = filled.most_queries;
        if let Some(at) = self.again.iter().position(|(of, _)| *of == lane) {
            return self.again.remove(at).map(|(_, batch)| Taken::Again(batch));
        }
        let (_, class) = self.first_due(lane, now, filled)?;
        let waiting = self.lines.get(&class)?;
        let mut filling = Filling::new(most_queries.min(class.company));
        let mut taken = Vec::new();
        // First what is due, then what may come along.
        for is_due in [true, false] {
            let tried = waiting.iter().take(most_queries.saturating_mul(MOST_TRIED));
            for (place, waiting) in tried {
                let is_meant = if is_due {
                    waiting.due_at <= now
                } else {
                    waiting.due_at > now && waiting.ripe_at <= now
                };
                if filling.is_full() {
                    break;
                }
                if is_meant && filling.add(waiting.load) {
                    taken.push(*place);
                }
            }
        }
        let queries = taken.iter().filter_map(|place| self.leave(&class, place));
        Some(Taken::New(queries.map(|waiting| waiting.query).collect()))
    }

    /// From when on anything of this lane can be sent.
    pub(super) fn next_due(&self, lane: Lane, now: Instant, filled: &Filled) -> Option<Instant> {
        if self.has_again(lane) {
            return Some(now);
        }
        let lines = self.lines.iter().filter(|(class, _)| class.lane == lane);
        lines.filter_map(|(class, line)| filled.due_at(class, line)).min()
    }

    fn has_again(&self, lane: Lane) -> bool {
        self.again.iter().any(|(of, _)| *of == lane)
    }

    /// How many of its class stand before this place; not beyond `most`.
    pub(super) fn before(&self, class: &Class, place: &Place, most: usize) -> usize {
        self.lines.get(class).map_or(0, |line| line.range(..place).take(most).count())
    }

    /// How many requests go before the one that this is in, of those to be taken again.
    pub(super) fn before_again(&self, query: &Query) -> Option<usize> {
        self.again.iter().position(|(_, batch)| batch.queries.contains(query))
    }

    fn first_due(&self, lane: Lane, now: Instant, filled: &Filled) -> Option<(Place, Class)> {
        let lines = self.lines.iter().filter(|(class, _)| class.lane == lane);
        let heads = lines.filter_map(|(class, line)| {
            let wait = filled.wait_of(class, line.len());
            let mut near = line.iter().take(LOOK_AHEAD);
            let first = near.find(|(_, waiting)| waiting.due_at + wait <= now)?;
            Some((*first.0, *class))
        });
        heads.min_by_key(|(place, _)| *place)
    }
}

/// How requests are filled.
pub(super) struct Filled {
    pub(super) most_queries: usize,
    /// How long first readings wait for others, unless they fill a request.
    pub(super) first_wait: Duration,
}

impl Filled {
    /// From when on the first of a line can be sent.
    fn due_at(&self, class: &Class, line: &BTreeMap<Place, Waiting>) -> Option<Instant> {
        let first = line.values().take(LOOK_AHEAD).map(|waiting| waiting.due_at).min()?;
        Some(first + self.wait_of(class, line.len()))
    }

    fn wait_of(&self, class: &Class, waiting: usize) -> Duration {
        let is_full = waiting >= self.most_queries.min(class.company);
        if class.lane == Lane::First && !is_full { self.first_wait } else { Duration::ZERO }
    }
}

pub(super) enum Taken {
    New(Vec<Query>),
    /// These were taken before.
    Again(Batch),
}

/// From when on a demand may travel along: reading one anew that was just read is of no use.
pub(super) fn ripe_at(due_at: Instant, interval: Duration) -> Instant {
    due_at.checked_sub(interval / 2).unwrap_or(due_at)
}
