//! Whose turn it is, and when the next one is. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    book::{Book, TURNS},
    entry::{Entry, FETCHING, Turn},
    meter::OrganisationId,
    queue::{Lane, Taken},
};
use crate::{
    demand::{Account, Demand, Query},
    source::{Batch, SourceError},
};

/// Who is first in each lane: the order, and the account.
type Heads = [Option<(u64, Arc<Account>)>; 3];

/// Whose turn it is among lanes.
#[derive(Default)]
pub(super) struct Turns {
    /// What each has had.
    had: [u64; 3],
}

impl Turns {
    /// Of the lanes in which somebody waits, the one that had least; the others do not save up.
    pub(super) fn next(&mut self, waits: impl Fn(usize) -> bool, is_short: bool) -> Option<usize> {
        let next = (0..Lane::ALL.len()).filter(|at| waits(*at)).min_by_key(|at| self.had[*at])?;
        let had = self.had[next];
        for (at, other) in self.had.iter_mut().enumerate() {
            if !waits(at) {
                *other = had.max(*other);
            }
        }
        self.had[next] += Lane::ALL[next].price(is_short);
        Some(next)
    }
}

impl Book {
    /// At most `room` requests that are to be sent now.
    pub(super) fn take_due(&mut self, now: Instant, room: usize) -> Vec<Batch> {
        self.forget_sleepers(now);
        let mut batches = Vec::new();
        let mut is_done = false;
        while !is_done {
            is_done = true;
            for (id, heads) in self.heads(now) {
                if batches.len() < room
                    && let Some(batch) = self.take_of(id, &heads, now)
                {
                    is_done = false;
                    batches.extend((!batch.queries.is_empty()).then_some(batch));
                }
            }
        }
        batches
    }

    /// Of each organisation that may send, who is first in each lane.
    fn heads(&mut self, now: Instant) -> BTreeMap<OrganisationId, Heads> {
        let mut all: BTreeMap<OrganisationId, Heads> = BTreeMap::new();
        for (account, ledger) in &self.ledgers {
            if !ledger.has_room(now) {
                continue;
            }
            let id = self.organisations.of(&ledger.payer, now);
            let filled = self.organisations.filled(id, self.config.batch_queries, now);
            // An account that fails is tried with what has waited longest.
            let is_failing = ledger.health.retry_at().is_some();
            let only = if is_failing { ledger.queue.longest_waiting(now, &filled) } else { None };
            for (at, lane) in Lane::ALL.into_iter().enumerate() {
                if !ledger.is_open(lane) || only.is_some_and(|only| only != lane) {
                    continue;
                }
                let Some(order) = ledger.queue.head(lane, now, &filled) else { continue };
                let head = &mut all.entry(id).or_default()[at];
                if head.as_ref().is_none_or(|(first, _)| order < *first) {
                    *head = Some((order, account.clone()));
                }
            }
        }
        all.retain(|id, _| {
            self.organisations.budget(*id).is_some_and(|budget| budget.has_one(now))
        });
        all
    }

    fn take_of(&mut self, id: OrganisationId, heads: &Heads, now: Instant) -> Option<Batch> {
        let (lane, order, account) = {
            let has_head = |lane: usize| heads[lane].is_some();
            let refresh = self.config.refresh;
            let organisation = self.organisations.get_mut(id)?;
            let is_short = organisation.round.is_short(refresh);
            let at = organisation.turns.next(has_head, is_short)?;
            let (order, account) = heads[at].clone()?;
            (Lane::ALL[at], order, account)
        };
        let filled = self.organisations.filled(id, self.config.batch_queries, now);
        let ledger = self.ledgers.get_mut(&account)?;
        let queries = match ledger.queue.take(lane, now, &filled)? {
            // Some may have been withdrawn meanwhile.
            Taken::Again(mut batch) => {
                batch.queries.retain(|query| {
                    let demand = Demand { account: account.clone(), query: query.clone() };
                    self.entries.get(&demand).is_some_and(Entry::is_fetching)
                });
                batch.queries
            }
            Taken::New(queries) => {
                if lane == Lane::First {
                    self.first_clock = self.first_clock.max(order & ((1 << TURNS) - 1));
                }
                self.wanted(&account, queries, now)
            }
        };
        if !queries.is_empty() {
            let ledger = self.ledgers.get_mut(&account)?;
            ledger.in_flight += 1;
            if lane == Lane::Quarantine {
                ledger.quarantined = queries.first().cloned();
            }
            self.organisations.send(&ledger.payer, now);
        }
        Some(Batch { account, queries })
    }

    /// Those in which somebody is still interested; the others fall asleep.
    fn wanted(&mut self, account: &Arc<Account>, queries: Vec<Query>, now: Instant) -> Vec<Query> {
        let mut wanted = Vec::with_capacity(queries.len());
        for query in queries {
            let demand = Demand { account: account.clone(), query };
            let Some(entry) = self.entries.get_mut(&demand) else { continue };
            entry.turn = FETCHING;
            entry.note_followers(now);
            if entry.is_idle(self.config.idle_after, now) {
                self.put_to_sleep(&demand);
            } else {
                wanted.push(demand.query);
            }
        }
        wanted
    }

    /// When to look again, unless a request ends before.
    pub(super) fn next_turn(&mut self, now: Instant) -> Option<Instant> {
        let mut next = self.asleep.first_key_value().map(|((at, _), _)| *at);
        let planned = self.next_plan();
        let mut earlier = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        planned.into_iter().for_each(&mut earlier);
        for ledger in self.ledgers.values() {
            if ledger.in_flight >= ledger.most_in_flight() {
                continue;
            }
            let id = self.organisations.of(&ledger.payer, now);
            let filled = self.organisations.filled(id, self.config.batch_queries, now);
            let open = Lane::ALL.into_iter().filter(|lane| ledger.is_open(*lane));
            let next_due = open.filter_map(|lane| ledger.queue.next_due(lane, now, &filled)).min();
            let Some(due_at) = next_due else { continue };
            let may_at = ledger.health.retry_at().map_or(due_at, |retry_at| due_at.max(retry_at));
            let Some(budget) = self.organisations.budget(id) else { continue };
            if may_at > now {
                earlier(budget.paused_until(now).map_or(may_at, |until| until.max(may_at)));
            } else {
                // Not at this very instant, however little is wanting.
                let next_at = if budget.has_one(now) { now } else { budget.next_at(0, now) };
                earlier(next_at.max(now + Duration::from_millis(1)));
            }
        }
        next
    }

    /// If its turn does not come soon, until when it does not, and why.
    pub(super) fn postponed(
        &mut self,
        demand: &Demand,
        now: Instant,
    ) -> Option<(Instant, SourceError)> {
        let ledger = self.ledgers.get(&demand.account)?;
        let most_queries = self.config.batch_queries;
        // Requests of its account that go before it, as far as is known.
        let ahead = match self.entries.get(demand)?.turn {
            Turn::Waiting { class, place, .. } => {
                let before = ledger.queue.before(&class, &place, 10 * most_queries);
                before / class.company.min(most_queries)
            }
            Turn::Fetching { .. } => ledger.queue.before_again(&demand.query)?,
            Turn::Refused | Turn::Asleep(_) => return None,
        };
        if let Some((retry_at, failure)) = ledger.health.postponed(now) {
            return Some((retry_at, failure));
        }
        let id = self.organisations.of(&ledger.payer, now);
        self.organisations.postponed(id, &demand.account, ahead, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_shared_out_and_nobody_saves_up() {
        let mut turns = Turns::default();
        let mut had = |waits: [bool; 3], is_short: bool, turns_there_are: usize| {
            let mut had = [0; 3];
            for _ in 0..turns_there_are {
                had[turns.next(|at| waits[at], is_short).unwrap()] += 1;
            }
            had
        };
        assert_eq!(had([true, false, false], false, 100), [100, 0, 0]);
        assert_eq!(had([true, true, false], false, 100), [50, 50, 0]);
        assert_eq!(had([true, true, true], false, 90), [40, 40, 10]);
        assert_eq!(had([true, true, false], true, 100), [80, 20, 0]);
        assert!(Turns::default().next(|_| false, false).is_none());
    }
}
