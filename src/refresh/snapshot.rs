//! What the engine knows at an instant, for whoever looks after it: the status page, the metrics.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    book::{Book, Entry, Turn},
    organisations::OrganisationId,
    queue::Lane,
};
use crate::{
    demand::{Account, Demand, Query},
    source::SourceError,
};

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub organisations: Vec<OrganisationStatus>,
    pub demands: Vec<DemandStatus>,
}

/// What shares one rate limit, as far as is known.
#[derive(Clone, Debug)]
pub struct OrganisationStatus {
    /// Accounts that share it.
    pub accounts: Vec<Arc<Account>>,
    /// What the limit is called, if that was said.
    pub name: Option<Box<str>>,
    /// Whether Datadog said what the limit is; else it is a guess.
    pub is_told: bool,
    /// Requests each `period`.
    pub limit: u64,
    pub period: Duration,
    /// Until the next period begins.
    pub reset: Duration,
    /// Requests that are left of the period, by what was last said and has been sent since.
    pub remaining: u64,
    /// Requests of this period: our own, and what others are known to have sent.
    pub sent: u64,
    pub others: u64,
    /// Requests that we may send in this period.
    pub allowance: u64,
    /// Requests a second, until the period ends.
    pub pace: f64,
    /// The shortest and the longest time between two readings of a query.
    pub intervals: (Duration, Duration),
    /// Nothing is sent for so long, since Datadog said that the limit is spent.
    pub paused: Option<Duration>,
    /// Demands that are read, that are put off because Datadog rejects them, and that do not fit.
    pub awake: usize,
    pub quarantined: usize,
    pub refused: usize,
}

/// One demand.
#[derive(Clone, Debug)]
pub struct DemandStatus {
    pub account: Arc<Account>,
    pub query: Query,
    /// Who asks for it.
    pub namespaces: Vec<Arc<str>>,
    pub state: DemandState,
    /// Of the newest reading.
    pub age: Option<Duration>,
    /// Whether the newest attempt failed, so that the reading is held as long as it may be.
    pub is_held: bool,
    pub failure: Option<SourceError>,
    pub interval: Duration,
    /// Until the next attempt is due; zero while it waits for its turn.
    pub next_in: Option<Duration>,
    /// Queries of the request that it last travelled in.
    pub batch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemandState {
    /// Read when it falls due.
    Awake,
    /// Being read.
    Fetching,
    /// Rejected by Datadog, and read alone, ever less often.
    Quarantined,
    /// More than the rate limit carries.
    Refused,
    /// Nobody asks for it.
    Asleep,
}

impl Book {
    pub(super) fn snapshot(&mut self, now: Instant) -> Snapshot {
        let mut accounts: BTreeMap<OrganisationId, Vec<Arc<Account>>> = BTreeMap::new();
        for (account, ledger) in &self.ledgers {
            let id = self.organisations.of(&ledger.payer, now);
            accounts.entry(id).or_default().push(account.clone());
        }
        let organisations = self.organisations.all().map(|(id, organisation)| {
            let (budget, round) = (&organisation.budget, &organisation.round);
            let terms = budget.terms();
            OrganisationStatus {
                accounts: accounts.remove(&id).unwrap_or_default(),
                name: terms.name.clone(),
                is_told: budget.is_told,
                limit: whole(terms.limit),
                period: terms.period,
                reset: terms.ends_at.saturating_duration_since(now),
                remaining: whole(budget.remaining()),
                sent: whole(budget.sent()),
                others: whole(budget.others()),
                allowance: whole(budget.allowance()),
                pace: budget.pace(now),
                intervals: round.intervals,
                paused: budget.paused_until(now).map(|until| until - now),
                awake: round.awake,
                quarantined: round.quarantined,
                refused: round.refused,
            }
        });
        let organisations = organisations.collect();
        let demands = self.entries.iter().map(|(demand, entry)| entry.status(demand, now));
        Snapshot { organisations, demands: demands.collect() }
    }
}

impl Entry {
    fn status(&self, demand: &Demand, now: Instant) -> DemandStatus {
        let latest = self.latest.borrow();
        let (state, next_in) = match self.turn {
            Turn::Waiting { class, due_at, .. } => {
                let is_quarantined = class.lane == Lane::Quarantine;
                let state =
                    if is_quarantined { DemandState::Quarantined } else { DemandState::Awake };
                (state, Some(due_at.saturating_duration_since(now)))
            }
            Turn::Fetching => (DemandState::Fetching, None),
            Turn::Refused => (DemandState::Refused, None),
            Turn::Asleep(_) => (DemandState::Asleep, None),
        };
        DemandStatus {
            account: demand.account.clone(),
            query: demand.query.clone(),
            namespaces: self.askers.iter().map(|(name, _)| name.clone()).collect(),
            state,
            age: latest.readings.first().map(|reading| now - reading.taken_at),
            is_held: latest.failure.is_some() && !latest.readings.is_empty(),
            failure: latest.failure.clone(),
            interval: self.interval,
            next_in,
            batch: self.travelled_with,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it counts requests, and a cast saturates"
)]
fn whole(requests: f64) -> u64 {
    requests as u64
}
