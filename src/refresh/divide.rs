//! A request fails for all of its queries at once, though one may be at fault. What of its outcomes
//! can be believed, and what is to be asked again in parts. Pure.

use tokio::time::Instant;

use super::{book::Book, entry::Entry, travel::divided};
use crate::{
    demand::{Demand, Query},
    source::{Answer, Batch, SourceError},
};

/// More queries than this, and than half of a batch, do not lose their data at once by themselves.
const MAX_MISSING: usize = 3;

type Outcome = Result<Answer, SourceError>;

impl Book {
    /// `None` if the batch is to be taken again in parts; `None` for a query that is to be read once
    /// alone.
    pub(super) fn take_apart(
        &mut self,
        batch: &Batch,
        outcomes: Vec<Outcome>,
        started_at: Instant,
    ) -> Option<Vec<Option<Outcome>>> {
        let size = batch.queries.len();
        if size < 2 {
            return Some(outcomes.into_iter().map(Some).collect());
        }
        let of_all = match outcomes.first() {
            Some(Err(error)) if outcomes.iter().all(Result::is_err) => Some(error),
            _ => None,
        };
        if let Some(parts) = of_all.and_then(|error| self.parts(batch, error))
            && let Some(ledger) = self.ledgers.get_mut(&batch.account)
            && ledger.health.may_divide()
        {
            for part in parts {
                self.take_again(&batch.account, part);
            }
            return None;
        }
        match of_all {
            Some(SourceError::TimedOut { .. }) => self.shrink(batch, started_at),
            Some(SourceError::TooLarge { .. }) => {
                self.each_of(batch, |entry| entry.company = (size / 2).max(1));
            }
            _ => {}
        }
        Some(self.without_missing(batch, outcomes))
    }

    /// What is to be asked again at once; `None` if it is not about the queries.
    fn parts(&mut self, batch: &Batch, error: &SourceError) -> Option<Vec<Vec<Query>>> {
        let queries = || batch.queries.clone();
        match error {
            SourceError::Malformed { .. } | SourceError::TooLarge { .. } => {
                Some(divided(queries(), &error.to_string()))
            }
            // Perhaps nobody can tell which series is whose.
            SourceError::NotUnderstood { .. } => {
                Some(queries().into_iter().map(|query| vec![query]).collect())
            }
            // That passes, or is one query's.
            SourceError::Unprocessable => {
                let mut was_repeated = false;
                self.each_of(batch, |entry| {
                    was_repeated |= std::mem::replace(&mut entry.is_repeated, true);
                });
                Some(if was_repeated { divided(queries(), "") } else { vec![queries()] })
            }
            _ => None,
        }
    }

    /// One query may be too slow. Smaller requests from then on, which grow again with each answer;
    /// but if others have no answers either, it is not a query's fault, and they would be many.
    fn shrink(&mut self, batch: &Batch, started_at: Instant) {
        let size = batch.queries.len();
        let Some(ledger) = self.ledgers.get(&batch.account) else { return };
        let others_answer = ledger.health.has_answered_since(started_at);
        let is_all = self.entries.keys().filter(|demand| demand.account == batch.account).count();
        let is_all = is_all <= self.config.batch_queries;
        self.each_of(batch, |entry| {
            let was_whole = entry.company == usize::MAX;
            entry.company = match (was_whole, others_answer) {
                (true, true) => size.isqrt(),
                // There are no others that could tell.
                (true, false) if is_all => size.isqrt(),
                (false, true) => 1,
                (_, false) => usize::MAX,
            };
        });
    }

    fn without_missing(&self, batch: &Batch, outcomes: Vec<Outcome>) -> Vec<Option<Outcome>> {
        let size = batch.queries.len();
        let is_missing: Vec<bool> = batch
            .queries
            .iter()
            .zip(&outcomes)
            .map(|(query, outcome)| {
                let demand = Demand { account: batch.account.clone(), query: query.clone() };
                let is_empty = outcome.as_ref().is_ok_and(|answer| {
                    answer.series.iter().all(|series| series.points.is_empty())
                });
                is_empty && self.entries.get(&demand).is_some_and(Entry::has_data)
            })
            .collect();
        let missing = is_missing.iter().filter(|is_missing| **is_missing).count();
        let is_outage = missing > MAX_MISSING.max(size / 2);
        let outcomes = outcomes.into_iter().zip(is_missing).map(|(outcome, is_missing)| {
            match (is_missing, is_outage) {
                (false, _) => Some(outcome),
                (true, false) => None,
                (true, true) => {
                    let what = format!("{missing} of {size} queries lost their data at once");
                    Some(Err(SourceError::Outage { host: batch.account.host(), what }))
                }
            }
        });
        outcomes.collect()
    }

    fn each_of(&mut self, batch: &Batch, mut what: impl FnMut(&mut Entry)) {
        for query in &batch.queries {
            let demand = Demand { account: batch.account.clone(), query: query.clone() };
            if let Some(entry) = self.entries.get_mut(&demand) {
                what(entry);
            }
        }
    }
}
