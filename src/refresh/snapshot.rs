//! What the engine knows at an instant, for whoever looks after it: the status page, the metrics.

use std::{sync::Arc, time::Duration};

use crate::{
    demand::{Account, Query},
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
