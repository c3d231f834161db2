//! What came of a request, entered into the book. Pure.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    book::Book,
    entry::{Entry, Fault, Turn},
    health::Change,
    queue::Lane,
};
use crate::{
    demand::{Account, Demand, Query, Reading},
    source::{Answer, Batch, Reply, SourceError},
};

/// The longest that a query is put off that Datadog rejects.
const MAX_QUARANTINE: Duration = Duration::from_mins(30);
/// The longest that the next attempt of another query that fails alone is put off.
const MAX_RETRY_PAUSE: Duration = Duration::from_mins(4);
/// Most readings that are kept of one demand: as many as `--hold` spans at the defaults, and one.
const MAX_READINGS: usize = 6;

impl Book {
    /// Enters what came of a batch that was sent at `started_at`. A query without an outcome has
    /// failed by our own fault. Outcomes of demands that are gone are of no interest. A batch that
    /// failed as a whole for one of its queries is not settled, but taken again in parts.
    pub(super) fn settle(
        &mut self,
        batch: Batch,
        reply: Reply,
        started_at: Instant,
        now: Instant,
    ) -> Vec<Change> {
        let Reply { mut outcomes, rate_limit } = reply;
        outcomes.resize_with(batch.queries.len(), || {
            let what = "the request was lost in the scaler; please report it".to_owned();
            Err(SourceError::NotUnderstood { host: batch.account.host(), what })
        });
        let failure_of_all = match outcomes.first() {
            Some(Err(error)) if outcomes.iter().all(Result::is_err) => Some(error.clone()),
            _ => None,
        };
        let jitter = self.jitter();
        let refresh = self.config.refresh;
        if let Some(ledger) = self.ledgers.get_mut(&batch.account) {
            ledger.in_flight = ledger.in_flight.saturating_sub(1);
            if ledger.quarantined.as_ref() == batch.queries.first() {
                ledger.quarantined = None;
            }
            let is_throttled = matches!(failure_of_all, Some(SourceError::Throttled { .. }));
            self.is_changed |=
                self.organisations.end(&ledger.payer, rate_limit.as_ref(), is_throttled, now);
            if let Some(SourceError::Throttled { limit, .. }) = &failure_of_all {
                let id = self.organisations.of(&ledger.payer, now);
                if let Some(budget) = self.organisations.budget(id) {
                    budget.pause(limit.as_ref(), jitter, now);
                }
            }
            // Nobody is asked there who could be left alone.
            if !batch.account.is_watched() {
                let failure = failure_of_all.as_ref();
                ledger.health.note_request(failure, started_at, refresh, jitter, now);
            }
        }
        let outcomes = self.take_apart(&batch, outcomes, failure_of_all.as_ref(), started_at);
        let Some(outcomes) = outcomes else { return Vec::new() };
        let mut changes = Vec::new();
        let Batch { account, queries } = batch;
        let travelled_with = queries.len();
        for (query, outcome) in queries.into_iter().zip(outcomes) {
            let demand = Demand { account: account.clone(), query };
            match outcome {
                Some(outcome) => {
                    self.settle_one(&demand, outcome, travelled_with, now, &mut changes);
                }
                None => self.take_again(&account, vec![demand.query]),
            }
        }
        changes
    }

    /// These are fetched again at once, together.
    pub(super) fn take_again(&mut self, account: &Arc<Account>, queries: Vec<Query>) {
        let lane = queries.first().map_or(Lane::Refresh, |query| {
            let demand = Demand { account: account.clone(), query: query.clone() };
            self.entries.get(&demand).map_or(Lane::Refresh, Entry::lane)
        });
        if let Some(ledger) = self.ledgers.get_mut(account) {
            ledger.queue.again(lane, Batch { account: account.clone(), queries });
        }
    }

    fn settle_one(
        &mut self,
        demand: &Demand,
        outcome: Result<Answer, SourceError>,
        travelled_with: usize,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let refresh = self.config.refresh;
        let jitter = self.jitter();
        let Some(entry) = self.entries.get_mut(demand) else { return };
        let Turn::Fetching { is_outdated } = entry.turn else { return };
        let Some(ledger) = self.ledgers.get_mut(&demand.account) else { return };
        if let Ok(answer) = &outcome
            && entry.needs_step
        {
            let is_lone = answer.series.iter().any(|series| series.points.len() == 1);
            let is_untold = answer.series.iter().any(|s| s.points.len() == 1 && s.step.is_none());
            entry.is_solo = is_lone && (entry.is_solo || is_untold);
            if is_untold && travelled_with > 1 {
                return self.take_again(&demand.account, vec![demand.query.clone()]);
            }
        }
        let failure = outcome.as_ref().err().cloned();
        let health = &mut ledger.health;
        changes.extend(health.note(demand, &mut entry.trouble, failure.as_ref(), now, refresh));

        entry.is_repeated = false;
        entry.travelled_with = travelled_with;
        let is_alone = travelled_with == 1;
        entry.failures = match &failure {
            None => 0,
            // That says nothing of the query.
            Some(SourceError::Throttled { .. }) => entry.failures,
            Some(_) => entry.failures.saturating_add(1),
        };
        match &failure {
            None => {
                let was_at_fault = entry.rejections > 0;
                entry.rejections = 0;
                entry.fault = None;
                if was_at_fault {
                    entry.company = usize::MAX;
                } else {
                    entry.grow(self.config.batch_queries);
                }
            }
            // Alone it is at fault itself, if others have answers.
            Some(error @ (SourceError::Malformed { .. } | SourceError::Unprocessable)) => {
                entry.company = 1;
                let is_malformed = matches!(error, SourceError::Malformed { .. });
                entry.fault = is_malformed.then_some(Fault::Malformed);
                let grows = health.has_answers(now, refresh);
                entry.rejections = if grows { entry.rejections.saturating_add(1) } else { 1 };
            }
            Some(SourceError::NotUnderstood { .. } | SourceError::TooLarge { .. }) => {
                entry.company = 1;
            }
            Some(SourceError::TimedOut { .. }) if is_alone => entry.fault = Some(Fault::Slow),
            Some(_) => {}
        }
        let interval = entry.interval;
        let is_unread = entry.latest.borrow().readings.is_empty();
        entry.latest.send_modify(|latest| {
            let latest = Arc::make_mut(latest);
            latest.failure.clone_from(&failure);
            latest.interval = interval;
            if let Ok(answer) = outcome {
                remember(&mut latest.readings, answer.taken_at(now));
            }
        });
        let due_at = match &failure {
            _ if is_outdated => now,
            None => now + interval,
            // The organisation waits as a whole.
            Some(SourceError::Throttled { .. }) => now,
            // It travels in smaller company, and nobody has a value meanwhile.
            Some(SourceError::TimedOut { .. })
                if travelled_with > 1 && entry.company < travelled_with && is_unread =>
            {
                now
            }
            Some(failure) => {
                let lasts_alone = entry.trouble.lasts_alone(now);
                // It costs nothing where no requests are counted, and a failure that follows on a
                // 422 is not to be found out late.
                let pause = if demand.account.is_metered() {
                    pause(failure, lasts_alone, entry.rejections, refresh)
                } else {
                    refresh
                };
                let is_put_off = pause > refresh;
                now + if is_put_off { pause.mul_f64(jitter) } else { pause }
            }
        };
        self.wait(demand, due_at, false);
    }
}

/// Newest first. An older one is kept for the triggers that find more in it than in every newer
/// one: points, or points of buckets that are full.
pub(super) fn remember(readings: &mut Vec<Arc<Reading>>, reading: Reading) {
    let (points, full) = (reading.depth(), reading.depth_of_full_buckets());
    readings.retain(|older| older.depth() > points || older.depth_of_full_buckets() > full);
    readings.insert(0, Arc::new(reading));
    readings.truncate(MAX_READINGS);
}

/// Until the next attempt of a query that failed. One that keeps timing out while others have
/// answers is asked less often, for it takes a place that they could use.
fn pause(failure: &SourceError, lasts_alone: bool, rejections: u32, refresh: Duration) -> Duration {
    // The first may be a deployment that is corrected at once.
    let doubled = 1 << rejections.saturating_sub(1).min(20);
    match failure {
        SourceError::Malformed { .. } => {
            refresh.saturating_mul(doubled).min(MAX_QUARANTINE).max(refresh)
        }
        // That comes and goes.
        SourceError::Unprocessable => {
            refresh.saturating_mul(doubled).min(MAX_RETRY_PAUSE).max(refresh)
        }
        SourceError::TimedOut { .. } if lasts_alone => {
            (refresh * 4).min(MAX_RETRY_PAUSE).max(refresh)
        }
        _ => refresh,
    }
}
