//! What the simulation knows: what is broken, what is spent, what it was asked.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    broken::{Faults, Trouble},
    fault::Fault,
    limit::{Limit, Standing},
};
use crate::demand::Service;

/// Most requests that are remembered.
const MAX_ASKED: usize = 50;
/// Most characters that are remembered of a query, or of what is wrong with it.
pub(super) const MAX_REMEMBERED: usize = 200;

pub(super) struct Simulation {
    pub(super) addresses: Addresses,
    state: Mutex<State>,
}

/// Where the simulated ones listen.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) datadog: SocketAddr,
    pub(super) agent: SocketAddr,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) faults: Faults,
    pub(super) limit: Limit,
    asked: VecDeque<Asked>,
}

/// A request and what came of it, without the keys that were sent.
#[derive(Clone)]
pub(super) struct Asked {
    /// Seconds since the epoch.
    pub(super) at: i64,
    /// Or the DatadogMetric. Shortened.
    pub(super) query: String,
    /// `from` and `to` in seconds since the epoch, if Datadog was asked and the request made sense.
    pub(super) window: Option<(i64, i64)>,
    /// `None` if there is no answer.
    pub(super) status: Option<u16>,
    /// What is remarkable about the answer; empty if nothing is.
    pub(super) note: String,
}

/// What is known of a request before its answer is made.
pub(super) struct Admission {
    pub(super) trouble: Trouble,
    /// Of the limit, with this request.
    pub(super) standing: Standing,
    pub(super) has_room: bool,
}

impl Simulation {
    pub(super) fn new(addresses: Addresses, rate_limit: u32, faults: Faults) -> Self {
        let state = State {
            faults,
            limit: Limit::new(rate_limit),
            asked: VecDeque::with_capacity(MAX_ASKED),
        };
        Self { addresses, state: Mutex::new(state) }
    }

    /// Not to be held while anything is awaited.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A request to Datadog.
    pub(super) fn admit(&mut self, query: &str, now: i64) -> Admission {
        let trouble = self.faults.trouble(Service::DatadogApi, query);
        let neighbour_since = trouble.neighbour_since();
        let counts = trouble.fault().is_none_or(Fault::counts);
        let has_room = !counts || self.limit.spend(now, neighbour_since);
        Admission { standing: self.limit.standing(now, neighbour_since), trouble, has_room }
    }

    pub(super) fn remember(&mut self, asked: Asked) {
        self.asked.truncate(MAX_ASKED - 1);
        self.asked.push_front(asked);
    }

    /// The latest first.
    pub(super) fn asked(&self) -> impl Iterator<Item = &Asked> {
        self.asked.iter()
    }

    /// How the limit stands for the requests that a neighbour concerns, if there is one.
    pub(super) fn standing(&self, now: i64) -> Standing {
        let neighbours = self.faults.iter().filter(|on| on.breakage.fault == Fault::Neighbour);
        self.limit.standing(now, neighbours.map(|on| on.since).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(breakages: &[&str]) -> State {
        let breakages = breakages.iter().map(|text| text.parse().unwrap()).collect();
        let faults = Faults::new(breakages, 7_200).unwrap();
        let nowhere = ([127, 0, 0, 1], 0).into();
        let addresses = Addresses { datadog: nowhere, agent: nowhere };
        Simulation::new(addresses, 100, faults).state().clone()
    }

    #[test]
    fn what_datadog_never_saw_does_not_count() {
        for (fault, left) in [("504", 100), ("401", 100), ("reset", 99), ("empty", 99)] {
            let admission = state(&[fault]).admit("a{*}", 7_300);
            assert_eq!((admission.has_room, admission.standing.left()), (true, left), "{fault}");
        }
        assert_eq!(state(&[]).admit("a{*}", 7_300).standing.left(), 99);
    }

    #[test]
    fn a_neighbour_of_one_query_takes_nothing_from_the_others() {
        let mut state = state(&["neighbour=a{*}"]);
        assert!(!state.admit("a{*}", 7_300).has_room);
        assert!(state.admit("b{*}", 7_300).has_room);
        assert_eq!(state.standing(7_300).by_neighbour, 99);
    }

    #[test]
    fn only_the_latest_requests_are_remembered() {
        let mut state = state(&[]);
        for at in 0..100 {
            let query = "a{*}".to_owned();
            state.remember(Asked {
                at,
                query,
                window: None,
                status: Some(200),
                note: String::new(),
            });
        }
        let at: Vec<i64> = state.asked().map(|asked| asked.at).collect();
        assert_eq!(at, (50..100).rev().collect::<Vec<_>>());
    }
}
