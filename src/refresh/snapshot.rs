//! What the engine knows at an instant, for whoever looks after it: the status page, the metrics.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Latest,
    book::Book,
    entry::{Entry, Turn},
    meter::OrganisationId,
    queue::Lane,
};
use crate::{
    demand::{Account, Demand, Query},
    source::SourceError,
};

/// What waits for less is not worth a word.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub organisations: Vec<OrganisationStatus>,
    pub demands: Vec<DemandStatus>,
}

/// The same in numbers.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub organisations: Vec<OrganisationStatus>,
    states: [usize; DemandState::ALL.len()],
    /// Demands whose readings are held.
    pub held: usize,
    /// Of the newest readings of all demands that are read when they fall due.
    pub ages: Vec<Duration>,
}

/// What shares one rate limit, as far as is known.
#[derive(Clone, Debug)]
pub struct OrganisationStatus {
    /// Counts from 1, in the order in which they were met.
    pub number: usize,
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
    /// Demands that are read, that are at fault by themselves, and that do not fit.
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
    /// Whether the newest attempt failed, so that who asks is told the reading as long as it may be
    /// held.
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
    /// At fault by itself: Datadog rejects it, keeps failing to process it (422), or takes too long.
    /// Read less often, and in one request at a time for all such of an account.
    Quarantined,
    /// More than the rate limit carries.
    Refused,
    /// Nobody asks for it.
    Asleep,
}

impl DemandState {
    pub const ALL: [Self; 5] =
        [Self::Awake, Self::Fetching, Self::Quarantined, Self::Refused, Self::Asleep];

    pub fn name(self) -> &'static str {
        match self {
            Self::Awake => "awake",
            Self::Fetching => "fetching",
            Self::Quarantined => "quarantined",
            Self::Refused => "refused",
            Self::Asleep => "asleep",
        }
    }
}

impl Totals {
    pub fn in_state(&self, state: DemandState) -> usize {
        self.states[state as usize]
    }
}

impl Book {
    pub(super) fn snapshot(&mut self, now: Instant) -> Snapshot {
        let organisations = self.organisation_statuses(now);
        let postponed = self.postponed_accounts(now);
        let demands = self.entries.iter().map(|(demand, entry)| {
            let status = entry.status(demand, now);
            let is_overdue = status.next_in == Some(Duration::ZERO) && status.failure.is_none();
            match postponed.get(&demand.account).filter(|_| is_overdue) {
                Some((until, why)) => DemandStatus {
                    is_held: status.age.is_some(),
                    failure: Some(why.clone()),
                    next_in: Some(*until - now),
                    ..status
                },
                None => status,
            }
        });
        Snapshot { organisations, demands: demands.collect() }
    }

    pub(super) fn totals(&mut self, now: Instant) -> Totals {
        let organisations = self.organisation_statuses(now);
        let ages = Vec::with_capacity(self.entries.len());
        let mut totals = Totals { organisations, ages, ..Totals::default() };
        for entry in self.entries.values() {
            let state = entry.state();
            let latest = entry.latest.borrow();
            totals.states[state as usize] += 1;
            totals.held += usize::from(latest.is_held(state));
            if entry.is_read_when_due() {
                totals.ages.extend(latest.age(now));
            }
        }
        totals
    }

    /// Of which accounts nothing is sent just now, until when, and why.
    fn postponed_accounts(
        &mut self,
        now: Instant,
    ) -> HashMap<Arc<Account>, (Instant, SourceError)> {
        let mut all = HashMap::new();
        for (account, ledger) in &self.ledgers {
            let id = self.organisations.of(&ledger.payer, now);
            let of_account = ledger.health.postponed(now);
            let postponed =
                of_account.or_else(|| self.organisations.postponed(id, account, 0, now));
            if let Some((until, why)) = postponed.filter(|(until, _)| *until > now + MOMENT) {
                all.insert(account.clone(), (until, why));
            }
        }
        all
    }

    fn organisation_statuses(&mut self, now: Instant) -> Vec<OrganisationStatus> {
        let mut accounts: BTreeMap<OrganisationId, Vec<Arc<Account>>> = BTreeMap::new();
        for (account, ledger) in &self.ledgers {
            let id = self.organisations.of(&ledger.payer, now);
            accounts.entry(id).or_default().push(account.clone());
        }
        // Nothing may have been sent since a period ended.
        let ids: Vec<OrganisationId> = self.organisations.all().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(budget) = self.organisations.budget(id) {
                budget.roll(now);
            }
        }
        let statuses =
            (1..).zip(self.organisations.limited()).map(|(number, (id, organisation))| {
                let (budget, round) = (&organisation.budget, &organisation.round);
                let terms = budget.terms();
                OrganisationStatus {
                    number,
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
        statuses.collect()
    }
}

impl Entry {
    fn status(&self, demand: &Demand, now: Instant) -> DemandStatus {
        let state = self.state();
        let latest = self.latest.borrow();
        DemandStatus {
            account: demand.account.clone(),
            query: demand.query.clone(),
            namespaces: self.askers.iter().map(|(name, _)| name.clone()).collect(),
            state,
            age: latest.age(now),
            is_held: latest.is_held(state),
            failure: latest.failure.clone(),
            interval: self.interval,
            next_in: match self.turn {
                Turn::Waiting { due_at, .. } => Some(due_at.saturating_duration_since(now)),
                Turn::Fetching { .. } | Turn::Refused | Turn::Asleep(_) => None,
            },
            batch: self.travelled_with,
        }
    }

    fn state(&self) -> DemandState {
        match self.turn {
            Turn::Waiting { class, .. } if class.lane == Lane::Quarantine => {
                DemandState::Quarantined
            }
            Turn::Waiting { .. } => DemandState::Awake,
            Turn::Fetching { .. } => DemandState::Fetching,
            Turn::Refused => DemandState::Refused,
            Turn::Asleep(_) => DemandState::Asleep,
        }
    }

    fn is_read_when_due(&self) -> bool {
        let is_awake = matches!(self.state(), DemandState::Awake | DemandState::Fetching);
        is_awake && self.fault.is_none() && self.rejections == 0
    }
}

impl Latest {
    fn age(&self, now: Instant) -> Option<Duration> {
        self.readings.first().map(|reading| now.saturating_duration_since(reading.taken_at))
    }

    /// Nobody is told the reading of a demand that is asleep.
    fn is_held(&self, state: DemandState) -> bool {
        self.failure.is_some() && !self.readings.is_empty() && state != DemandState::Asleep
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
