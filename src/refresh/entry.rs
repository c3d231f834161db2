//! What is kept of a demand, of an account and of a namespace.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    Latest,
    health::{Health, Trouble},
    meter::Payer,
    queue::{Class, Lane, Place, Queue},
    travel::Load,
};
use crate::demand::{Account, Query};

/// Most requests of one account that are under way; one that is in trouble has one.
const MAX_IN_FLIGHT: usize = 4;
/// How often a query that cannot be processed alone is as good as any.
const SOME: u32 = 4;

pub(super) struct Entry {
    pub(super) latest: watch::Sender<Arc<Latest>>,
    pub(super) asked_at: Instant,
    /// The namespaces that ask, and when each last did.
    pub(super) askers: Vec<(Arc<str>, Instant)>,
    pub(super) needs_step: bool,
    pub(super) turn: Turn,
    /// Who came first has the smaller one.
    pub(super) number: u64,
    /// How long after a success it falls due.
    pub(super) interval: Duration,
    pub(super) trouble: Trouble,
    pub(super) load: Load,
    /// Most queries of the request that it travels in next.
    pub(super) company: usize,
    /// How often its company was at fault in something that it was not alone.
    pub(super) trips: u32,
    /// Answers since its company last changed.
    pub(super) calm: u32,
    /// How often in a row it had no answer, but for those times when the rate limit was spent.
    pub(super) failures: u32,
    /// What it is at fault in alone.
    pub(super) fault: Option<Fault>,
    /// Whether it travels alone because the width of its buckets can be told only then.
    pub(super) is_solo: bool,
    /// Whether the request was repeated whole that could not be processed.
    pub(super) is_repeated: bool,
    /// How often in a row it was rejected alone, or could not be processed (422).
    pub(super) rejections: u32,
    /// Queries of the request that it last travelled in.
    pub(super) travelled_with: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It times out.
    Slow,
    /// Datadog calls it so.
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Turn {
    Waiting {
        class: Class,
        place: Place,
        due_at: Instant,
    },
    /// Under way, or about to be taken again.
    Fetching {
        /// Whether there has been news since.
        is_outdated: bool,
    },
    /// More than the rate limit carries.
    Refused,
    /// Nobody is interested; forgotten at that instant.
    Asleep((Instant, u64)),
}

/// From now on.
pub(super) const FETCHING: Turn = Turn::Fetching { is_outdated: false };

/// What is kept of an account.
pub(super) struct Ledger {
    pub(super) payer: Payer,
    /// Demands of it that are known.
    pub(super) demands: usize,
    pub(super) queue: Queue,
    pub(super) in_flight: usize,
    /// What of the quarantine lane is under way; one at most, for it may be slow.
    pub(super) quarantined: Option<Query>,
    pub(super) health: Health,
}

#[derive(Default)]
pub(super) struct Namespace {
    /// Demands that it asks for.
    pub(super) demands: usize,
    /// Its place among first readings.
    pub(super) next_first: u64,
}

impl Entry {
    pub(super) fn is_fetching(&self) -> bool {
        matches!(self.turn, Turn::Fetching { .. })
    }

    pub(super) fn lane(&self) -> Lane {
        // 422 comes and goes for sound queries.
        if self.fault.is_some() || self.rejections >= SOME {
            Lane::Quarantine
        } else if self.latest.borrow().readings.is_empty() {
            Lane::First
        } else {
            Lane::Refresh
        }
    }

    pub(super) fn class(&self, query: &Query) -> Class {
        let travels_alone = !self.load.may_share() || self.is_solo || self.rejections > 0;
        let company = if travels_alone { 1 } else { self.company };
        Class { window: query.window, lane: self.lane(), company }
    }

    /// The part of a request that it takes.
    pub(super) fn weight(&self, most_queries: usize) -> f64 {
        if self.is_solo { 1.0 } else { self.load.weight(most_queries.min(self.company)) }
    }

    /// Its company grows again, the more slowly the more often it was at fault.
    pub(super) fn grow(&mut self, batch_queries: usize) {
        self.calm = self.calm.saturating_add(1);
        let wanted = 1 << self.trips.min(10);
        if self.company == usize::MAX {
            if self.calm > 4 * wanted {
                self.trips = 0;
            }
        } else if self.calm >= wanted {
            let grown = self.company.saturating_mul(2);
            self.company = if grown >= batch_queries { usize::MAX } else { grown };
            self.calm = 0;
        }
    }

    pub(super) fn has_data(&self) -> bool {
        self.latest.borrow().readings.first().is_some_and(|reading| reading.depth() > 0)
    }

    pub(super) fn is_idle(&self, idle_after: Duration, now: Instant) -> bool {
        now >= self.asked_at + idle_after
    }

    /// Who follows is interested all the time.
    pub(super) fn note_followers(&mut self, now: Instant) {
        if self.latest.receiver_count() > 0 {
            self.asked_at = now;
            self.askers.iter_mut().for_each(|(_, asked_at)| *asked_at = now);
        }
    }
}

impl Ledger {
    pub(super) fn new(account: &Arc<Account>) -> Self {
        Self {
            payer: Payer::of(account),
            demands: 0,
            queue: Queue::default(),
            in_flight: 0,
            quarantined: None,
            health: Health::default(),
        }
    }

    pub(super) fn most_in_flight(&self) -> usize {
        if self.health.retry_at().is_some() { 1 } else { MAX_IN_FLIGHT }
    }

    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.in_flight < self.most_in_flight()
            && self.health.retry_at().is_none_or(|retry_at| retry_at <= now)
    }

    /// Whether requests of this lane may be sent beside what is under way.
    pub(super) fn is_open(&self, lane: Lane) -> bool {
        lane != Lane::Quarantine || self.quarantined.is_none()
    }
}
