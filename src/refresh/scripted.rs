//! What the tests of the engine have in common.

use super::{Asker, Config};
use crate::{
    demand::{Account, Demand, Keys, Query, Window},
    source::{RateLimit, SourceError},
};
use std::{sync::Arc, time::Duration};

pub(super) const ASKER: Asker<'_> = Asker { namespace: "shop", needs_step: false };
pub(super) const REFRESH: Duration = Duration::from_secs(15);
pub(super) const IDLE_AFTER: Duration = Duration::from_mins(2);

/// As `serve` has it by default.
pub(super) const CONFIG: Config = Config {
    refresh: REFRESH,
    idle_after: IDLE_AFTER,
    batch_queries: 35,
    rate_share: 0.8,
    max_round: Duration::from_mins(4),
    max_demands: 20_000,
    max_demands_per_namespace: 5_000,
};

/// Each query by itself.
pub(super) const SINGLY: Config = Config { batch_queries: 1, ..CONFIG };

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn account(host: &str, key: &str) -> Arc<Account> {
    let url = format!("https://{host}").parse().unwrap();
    Arc::new(Account::new(url, Keys::Bearer(key.into())))
}

pub(super) fn query(text: &str) -> Query {
    Query { text: text.into(), window: Window { age: 90, offset: 0 } }
}

pub(super) fn demand_of(account: &Arc<Account>, text: &str) -> Demand {
    Demand { account: account.clone(), query: query(text) }
}

pub(super) fn demand(text: &str) -> Demand {
    demand_of(&account("dd", "key"), text)
}

pub(super) fn outage() -> SourceError {
    SourceError::Outage { host: "dd".into(), what: "503".into() }
}

/// A limit of which so many are left, for so many seconds of an hour.
pub(super) fn limit(limit: u64, remaining: u64, reset: u64) -> RateLimit {
    RateLimit {
        limit: Some(limit),
        period: Some(Duration::from_hours(1)),
        remaining: Some(remaining),
        reset: Some(seconds(reset)),
        name: None,
    }
}

/// A rate limit that nobody reaches.
pub(super) fn ample() -> RateLimit {
    limit(1_000_000, 1_000_000, 3_600)
}
