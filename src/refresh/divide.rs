//! A request fails for all of its queries at once, though one may be at fault. What of its outcomes
//! can be believed, and what is to be asked again in parts. Pure.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{book::Book, entry::Entry, queue::Lane, travel::divided};
use crate::{
    demand::{Account, Demand, Query},
    source::{Answer, Batch, SourceError},
};

/// More queries than this, and than half of a batch, do not lose their data at once by themselves.
const MAX_MISSING: usize = 3;
/// Answers before a request timed out show that not all do: when there are few requests, there may be
/// none meanwhile.
const LATELY: Duration = Duration::from_mins(1);

type Outcome = Result<Answer, SourceError>;

impl Book {
    /// `None` if the batch is to be taken again in parts; `None` for a query that is to be read once
    /// alone.
    pub(super) fn take_apart(
        &mut self,
        batch: &Batch,
        outcomes: Vec<Outcome>,
        failure_of_all: Option<&SourceError>,
        started_at: Instant,
    ) -> Option<Vec<Option<Outcome>>> {
        let size = batch.queries.len();
        if size < 2 {
            return Some(outcomes.into_iter().map(Some).collect());
        }
        // Without a shared request, each outcome is its query's own.
        let is_shared = batch.account.is_metered();
        let failure_of_all = failure_of_all.filter(|_| is_shared);
        if let Some(error) = failure_of_all
            && let Some(parts) = self.parts(batch, error)
        {
            let may_divide = self
                .ledgers
                .get_mut(&batch.account)
                .is_some_and(|ledger| ledger.health.may_divide());
            if !may_divide {
                return Some(self.given_up(batch));
            }
            // A malformed query stands alone in the end; what else it is may be about the company.
            let is_of_company = !matches!(error, SourceError::Malformed { .. });
            for part in parts {
                if is_of_company && part.len() < size {
                    self.each_of(&batch.account, &part, |entry| {
                        entry.company = part.len();
                        entry.trips = entry.trips.saturating_add(1);
                        entry.calm = 0;
                    });
                }
                self.take_again(&batch.account, part);
            }
            return None;
        }
        match failure_of_all {
            Some(SourceError::TimedOut { .. }) => self.shrink(batch, started_at),
            // Datadog fails for some queries only, if it does so again and again.
            Some(SourceError::Outage { .. }) => {
                let mut failures = 0;
                self.each_of(&batch.account, &batch.queries, |entry| {
                    failures = failures.max(entry.failures);
                });
                if failures > 0 {
                    self.shrink(batch, started_at);
                }
            }
            _ => {}
        }
        Some(self.without_missing(batch, outcomes))
    }

    /// No part of a request has an answer: then nothing is known of any query in it. Each travels
    /// alone from then on.
    fn given_up(&mut self, batch: &Batch) -> Vec<Option<Outcome>> {
        self.each_of(&batch.account, &batch.queries, |entry| entry.company = 1);
        let outage = || SourceError::Outage {
            host: batch.account.host(),
            what: "it rejects whatever travels together".to_owned(),
        };
        batch.queries.iter().map(|_| Some(Err(outage()))).collect()
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
                self.each_of(&batch.account, &batch.queries, |entry| {
                    was_repeated |= std::mem::replace(&mut entry.is_repeated, true);
                });
                Some(if was_repeated { divided(queries(), "") } else { vec![queries()] })
            }
            _ => None,
        }
    }

    /// One query may be too slow, or too much. Smaller requests from then on, which grow again with
    /// each answer. If nobody else has answers either, it is perhaps not a query's fault, and they
    /// would be many: then this is tried with one request at a time.
    fn shrink(&mut self, batch: &Batch, started_at: Instant) {
        let size = batch.queries.len();
        let Some(ledger) = self.ledgers.get(&batch.account) else { return };
        let since = started_at.checked_sub(LATELY).unwrap_or(started_at);
        let others_answer = ledger.health.has_answered_since(since);
        let is_tried = self.entries.iter().any(|(demand, entry)| {
            let is_small = entry.company != usize::MAX && entry.lane() != Lane::Quarantine;
            is_small && demand.account == batch.account && !batch.queries.contains(&demand.query)
        });
        self.each_of(&batch.account, &batch.queries, |entry| {
            let is_whole = entry.company == usize::MAX;
            entry.calm = 0;
            entry.company = match is_whole {
                true if others_answer || !is_tried => size.isqrt(),
                true => usize::MAX,
                false => 1,
            };
        });
    }

    fn without_missing(&mut self, batch: &Batch, outcomes: Vec<Outcome>) -> Vec<Option<Outcome>> {
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
        if is_outage {
            // Alone they will be believed.
            let all = batch.queries.iter().zip(&is_missing);
            let missing = all.filter(|(_, is_missing)| **is_missing).map(|(query, _)| query);
            self.each_of(&batch.account, missing, |entry| entry.company = 1);
        }
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

    fn each_of<'a>(
        &mut self,
        account: &Arc<Account>,
        queries: impl IntoIterator<Item = &'a Query>,
        mut what: impl FnMut(&mut Entry),
    ) {
        for query in queries {
            let demand = Demand { account: account.clone(), query: query.clone() };
            if let Some(entry) = self.entries.get_mut(&demand) {
                what(entry);
            }
        }
    }
}
