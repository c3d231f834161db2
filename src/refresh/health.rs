//! What failures mean for whoever reads the log. An outage of an account is told from a query that
//! fails alone, and each once. Pure, as the book is.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    demand::{Account, Demand},
    source::SourceError,
};

/// How an account fares.
#[derive(Default)]
pub(super) struct Health {
    succeeded_at: Option<Instant>,
    /// The failure that was last told, until a success.
    told: Option<SourceError>,
    /// When a query last had an answer.
    answered_at: Option<Instant>,
    /// How often a request was divided since then.
    divisions: u32,
    /// Requests that timed out, and that failed otherwise, since a request last succeeded.
    timed_out: u32,
    failed: u32,
    /// While requests fail and none has an answer.
    outage: Option<Backoff>,
}

struct Backoff {
    failure: SourceError,
    /// How often it was tried in vain.
    tries: u32,
    retry_at: Instant,
}

/// The longest that an account is left alone which fails: no longer than readings can be held.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Requests that time out one after the other before it is more than slow queries.
const MAX_TIMED_OUT: u32 = 8;
/// The same of those that fail otherwise.
const MAX_FAILED: u32 = 2;

/// Most divisions without an answer: one offender among 35 takes six. If none of the parts has an
/// answer, it is not a query that is at fault.
const MAX_DIVISIONS: u32 = 12;

/// How a demand fares, beside its account.
#[derive(Default)]
pub(super) struct Trouble {
    /// Since when each attempt failed for a reason that may be the account's.
    since: Option<Instant>,
    /// Whether it was said that this query fails while others do not.
    is_told: bool,
}

/// Something to be told. What is wrong with a query itself is told where the trigger is known.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    AccountFails(Arc<Account>, SourceError),
    AccountRecovers(Arc<Account>),
    /// The limit does not carry a reading each refresh; the longest interval, and what does not
    /// fit even so.
    Stretched {
        host: String,
        interval: Duration,
        refused: usize,
    },
    /// It does again.
    Relaxed {
        host: String,
    },
    /// Others of the account have answers meanwhile.
    QueryFails(Demand, SourceError),
    QueryRecovers(Demand),
}

/// After this, a query that fails alone is not about to recover; nothing can be held by then.
const LONG_ALONE: Duration = Duration::from_mins(2);

impl Health {
    /// A failure is the account's if nothing of it succeeded for a whole refresh, and the query's
    /// if something did since it began to fail.
    pub(super) fn note(
        &mut self,
        demand: &Demand,
        trouble: &mut Trouble,
        failure: Option<&SourceError>,
        now: Instant,
        refresh: Duration,
    ) -> Vec<Change> {
        if failure.is_none() {
            (self.answered_at, self.divisions) = (Some(now), 0);
        }
        let Some(failure) = failure.filter(|failure| failure.concerns_account()) else {
            return self.note_answer(demand, std::mem::take(trouble).is_told, now);
        };
        let since = *trouble.since.get_or_insert(now);
        let is_alone = self.succeeded_at.is_some_and(|at| at > since);
        let is_all = self.succeeded_at.is_none_or(|at| at + refresh < now);
        let is_news = self.told.as_ref().is_none_or(|told| !told.is_like(failure));
        if trouble.is_told {
            Vec::new()
        } else if is_alone {
            trouble.is_told = true;
            vec![Change::QueryFails(demand.clone(), failure.clone())]
        } else if is_all && is_news {
            self.told = Some(failure.clone());
            vec![Change::AccountFails(demand.account.clone(), failure.clone())]
        } else {
            Vec::new()
        }
    }

    /// Even a rejected query shows that Datadog answers.
    fn note_answer(&mut self, demand: &Demand, was_told: bool, now: Instant) -> Vec<Change> {
        self.succeeded_at = Some(now);
        let account = self.told.take().map(|_| Change::AccountRecovers(demand.account.clone()));
        let query = was_told.then(|| Change::QueryRecovers(demand.clone()));
        account.into_iter().chain(query).collect()
    }

    /// A request that was sent at `started_at` has ended, with a failure of all its queries or
    /// otherwise. If it fails for a reason that is the account's, and nothing succeeded meanwhile,
    /// the account is left alone for a while, and then tried with one request.
    pub(super) fn note_request(
        &mut self,
        failure: Option<&SourceError>,
        started_at: Instant,
        refresh: Duration,
        jitter: f64,
        now: Instant,
    ) {
        let Some(failure) = failure.filter(|failure| failure.concerns_account()) else {
            (self.outage, self.succeeded_at) = (None, Some(now));
            (self.timed_out, self.failed) = (0, 0);
            return;
        };
        if matches!(failure, SourceError::TimedOut { .. }) {
            self.timed_out = self.timed_out.saturating_add(1);
            if self.timed_out < MAX_TIMED_OUT {
                return;
            }
        } else {
            // One may be its queries' fault.
            self.failed = self.failed.saturating_add(1);
            if self.failed < MAX_FAILED {
                return;
            }
        }
        // Then it is the organisation that waits.
        let is_throttled = matches!(failure, SourceError::Throttled { .. });
        // What was under way together has failed together.
        let is_of_last = self.outage.as_ref().is_some_and(|outage| started_at < outage.retry_at);
        if is_throttled || is_of_last || self.has_answered_since(started_at) {
            return;
        }
        let tries = self.outage.as_ref().map_or(0, |outage| outage.tries);
        let backoff = refresh.saturating_mul(1 << tries.min(10)).min(MAX_BACKOFF.max(refresh));
        let retry_at = now + backoff.mul_f64(jitter);
        let tries = tries.saturating_add(1);
        self.outage = Some(Backoff { failure: failure.clone(), tries, retry_at });
    }

    /// While the account fails: when it is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.outage.as_ref().map(|outage| outage.retry_at)
    }

    /// Until when nobody tries, and why.
    pub(super) fn postponed(&self, now: Instant) -> Option<(Instant, SourceError)> {
        let outage = self.outage.as_ref()?;
        // A try may be under way, and it may be the last.
        (now < outage.retry_at).then(|| (outage.retry_at, outage.failure.clone()))
    }

    pub(super) fn has_answered_since(&self, at: Instant) -> bool {
        self.succeeded_at.is_some_and(|succeeded_at| succeeded_at > at)
    }

    /// Whether queries have answers, within these two rounds.
    pub(super) fn has_answers(&self, now: Instant, refresh: Duration) -> bool {
        self.answered_at.is_some_and(|at| now <= at + refresh * 2)
    }

    /// Whether a request that failed as a whole is to be divided.
    pub(super) fn may_divide(&mut self) -> bool {
        self.divisions = self.divisions.saturating_add(1);
        self.divisions <= MAX_DIVISIONS
    }

    /// Takes the place of an account with other keys: a success with the new ones ends what was
    /// told of the old.
    pub(super) fn inherit(&mut self, predecessor: Health) {
        self.told = self.told.take().or(predecessor.told);
    }
}

impl Trouble {
    pub(super) fn lasts_alone(&self, now: Instant) -> bool {
        self.is_told && self.since.is_some_and(|since| now >= since + LONG_ALONE)
    }
}
