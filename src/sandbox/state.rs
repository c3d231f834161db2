//! What the simulated Datadog knows: what is broken, and what is spent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    broken::{Faults, Trouble},
    fault::Fault,
    limit::{Limit, Standing},
};

pub(super) struct Simulation {
    state: Mutex<State>,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) faults: Faults,
    pub(super) limit: Limit,
}

/// What is known of a request before its answer is made.
pub(super) struct Admission {
    pub(super) trouble: Trouble,
    /// Of the limit, with this request.
    pub(super) standing: Standing,
    pub(super) has_room: bool,
}

impl Simulation {
    pub(super) fn new(rate_limit: u32, faults: Faults) -> Self {
        Self { state: Mutex::new(State { faults, limit: Limit::new(rate_limit) }) }
    }

    /// Not to be held while anything is awaited.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn admit(&mut self, query: &str, now: i64) -> Admission {
        let trouble = self.faults.trouble(query);
        let neighbour_since = trouble.neighbour_since();
        let counts = trouble.fault().is_none_or(Fault::counts);
        let has_room = !counts || self.limit.spend(now, neighbour_since);
        Admission { standing: self.limit.standing(now, neighbour_since), trouble, has_room }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(breakages: &[&str]) -> State {
        let breakages = breakages.iter().map(|text| text.parse().unwrap()).collect();
        let faults = Faults::new(breakages, 7_200).unwrap();
        Simulation::new(100, faults).state().clone()
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
    }
}
