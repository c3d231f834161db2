//! Who of an organisation is read, if the rate limit does not carry all. Pure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::fair::share_out;
use crate::demand::{Demand, Window};

/// The part of what a pace carries that is planned for: some is wanted for first readings and for
/// what is read again.
const SPARE: f64 = 0.95;

/// The demands of an organisation that want to be read.
#[derive(Default)]
pub(super) struct Party {
    pub(super) members: Vec<Member>,
    /// Requests that the queries of one account and window fill, if each is filled.
    pub(super) classes: HashMap<Kind, f64>,
    pub(super) quarantined: usize,
    /// Requests a second that they take.
    pub(super) quarantined_rate: f64,
}

/// An account, by its place among all, and a window.
pub(super) type Kind = (usize, Window);

pub(super) struct Member {
    pub(super) demand: Demand,
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) askers: Vec<Arc<str>>,
    pub(super) weight: f64,
    pub(super) interval: Duration,
    pub(super) is_refused: bool,
    pub(super) is_unread: bool,
}

impl Party {
    /// Requests of a round that each member takes: its part of those that its class fills.
    pub(super) fn costs(&self) -> Vec<f64> {
        let cost = |member: &Member| match self.classes.get(&member.kind) {
            Some(filled) if member.weight < 1.0 => member.weight * filled.ceil() / filled,
            _ => 1.0,
        };
        self.members.iter().map(cost).collect()
    }

    /// Which members are read: each namespace has its part, for whoever came first within it, and
    /// what is left over goes to one of each after the other.
    pub(super) fn admitted(
        &self,
        costs: &[f64],
        pace: f64,
        refresh: Duration,
        max_round: Duration,
        is_known: bool,
    ) -> Vec<bool> {
        let longest = max_round.max(refresh).as_secs_f64();
        let by_namespace = by_namespace(self.members.iter().zip(costs.iter().copied()));
        let needs: Vec<f64> = by_namespace.values().map(|(cost, _)| *cost).collect();
        let parts = share_out(pace, &needs, refresh, max_round);
        if !is_known || parts.iter().all(|part| part.most.is_infinite()) {
            return self.members.iter().map(|member| is_known || !member.is_refused).collect();
        }
        let mut left: HashMap<&Arc<str>, f64> =
            by_namespace.keys().zip(parts.iter().map(|part| part.most * SPARE)).collect();
        let intervals: HashMap<&Arc<str>, f64> =
            by_namespace.keys().zip(parts.iter().map(|part| part.interval.as_secs_f64())).collect();
        // Requests a second. One a round at least: else nobody would learn that there is room again.
        let mut pace_left = (SPARE * pace).max(1.0 / longest);
        let mut is_in = vec![false; self.members.len()];
        let in_turn = self.in_turn();
        for is_first_pass in [true, false] {
            for place in &in_turn {
                let (member, cost, is_in) =
                    (&self.members[*place], &costs[*place], &mut is_in[*place]);
                if *is_in {
                    continue;
                }
                // Who was refused is taken in again only with some room to spare.
                let wanted = if member.is_refused { cost / SPARE } else { *cost };
                #[expect(clippy::cast_precision_loss, reason = "there are few")]
                let part = wanted / member.askers.len().max(1) as f64;
                let names = || member.askers.iter();
                let interval = names().map(|name| intervals[name]).fold(longest, f64::min);
                let rate = if is_first_pass { cost / interval } else { wanted / longest };
                // One that has room for all of it need not share it.
                let payer = names().find(|name| left[*name] >= wanted);
                let has_part = payer.is_some() || names().all(|name| left[name] >= part);
                if (is_first_pass && !has_part) || (!is_first_pass && rate > pace_left) {
                    continue;
                }
                *is_in = true;
                pace_left -= rate;
                match payer {
                    Some(payer) => {
                        left.entry(payer).and_modify(|left| *left -= wanted);
                    }
                    None => {
                        for name in &member.askers {
                            left.entry(name).and_modify(|left| *left -= part);
                        }
                    }
                }
            }
        }
        is_in
    }

    /// The places of the first of each namespace, then of the second of each, and so on.
    fn in_turn(&self) -> Vec<usize> {
        let mut counts: HashMap<&Arc<str>, usize> = HashMap::new();
        let mut ranked: Vec<(usize, usize)> = Vec::with_capacity(self.members.len());
        for (place, member) in self.members.iter().enumerate() {
            let rank = member.askers.first().map_or(0, |name| {
                let count = counts.entry(name).or_default();
                *count += 1;
                *count
            });
            ranked.push((rank, place));
        }
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, place)| place).collect()
    }
}

/// What each namespace's demands cost, and how many there are; one that is shared costs each its
/// part.
pub(super) fn by_namespace<'a>(
    members: impl Iterator<Item = (&'a Member, f64)>,
) -> HashMap<Arc<str>, (f64, usize)> {
    let mut all: HashMap<Arc<str>, (f64, usize)> = HashMap::new();
    for (member, cost) in members {
        for name in &member.askers {
            let (sum, count) = all.entry(name.clone()).or_default();
            #[expect(clippy::cast_precision_loss, reason = "there are few")]
            let part = cost / member.askers.len() as f64;
            *sum += part;
            *count += 1;
        }
    }
    all
}
