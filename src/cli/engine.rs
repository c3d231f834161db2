//! The flags of the engine: how often, how long, how many.

use std::time::Duration;

use clap::{Args, builder::BoolishValueParser};

use super::values::{a_second_or_more, at_least_one, duration, positive, share};
use crate::{refresh, scaler};

/// What `serve` and `sandbox` have in common.
#[derive(Debug, Args)]
pub struct Engine {
    #[command(flatten)]
    pub(super) rules: Rules,

    /// A query that nobody asked for in this time is no longer read
    #[arg(long, env = "SCALER_IDLE_AFTER", value_name = "DURATION", default_value = "2m", value_parser = positive)]
    idle_after: Duration,

    /// What may be used of that part of Datadog's rate limit which others leave
    #[arg(long, env = "SCALER_RATE_SHARE", value_name = "SHARE", default_value = "0.8", value_parser = share)]
    rate_share: f64,

    /// The longest that a reading may be put off when the rate limit is short; queries that do not
    /// fit even so are refused
    #[arg(long, env = "SCALER_MAX_ROUND", value_name = "DURATION", default_value = "4m", value_parser = a_second_or_more)]
    max_round: Duration,

    /// Most queries that are known, in all
    #[arg(long, env = "SCALER_MAX_DEMANDS", value_name = "QUERIES", default_value = "20000", value_parser = at_least_one)]
    max_demands: usize,

    /// Most queries of one namespace that are known
    #[arg(long, env = "SCALER_MAX_DEMANDS_PER_NAMESPACE", value_name = "QUERIES", default_value = "5000", value_parser = at_least_one)]
    max_demands_per_namespace: usize,
}

/// What decides over a request and an answer, in `check` too.
#[derive(Debug, Args)]
pub struct Rules {
    /// How often a query is read while somebody asks for it
    #[arg(long, env = "SCALER_REFRESH", value_name = "DURATION", default_value = "15s", value_parser = a_second_or_more)]
    pub(super) refresh: Duration,

    /// How long a last good reading is held while Datadog fails, past its due refresh (an
    /// inactive one: for one refresh at most); per trigger: `holdLastValue`
    #[arg(long, env = "SCALER_HOLD", value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub(super) hold: Duration,

    /// How long KEDA may be kept waiting for an answer; per trigger: `timeout`
    #[arg(long, env = "SCALER_PATIENCE", value_name = "DURATION", default_value = "2.5s", value_parser = positive)]
    pub(super) patience: Duration,

    /// Most queries in one request to Datadog; 1 reads each by itself
    #[arg(long, env = "SCALER_BATCH_QUERIES", value_name = "QUERIES", default_value = "35", value_parser = at_least_one)]
    pub(super) batch_queries: usize,

    /// Refuse triggers with metadata keys that are not known
    #[arg(long, env = "SCALER_STRICT_METADATA", value_parser = BoolishValueParser::new())]
    pub(super) strict_metadata: bool,
}

impl Engine {
    pub(super) fn refresh_config(&self) -> refresh::Config {
        refresh::Config {
            refresh: self.rules.refresh,
            idle_after: self.idle_after,
            batch_queries: self.rules.batch_queries,
            rate_share: self.rate_share,
            max_round: self.max_round,
            max_demands: self.max_demands,
            max_demands_per_namespace: self.max_demands_per_namespace,
        }
    }

    pub(super) fn scaler_config(&self) -> scaler::Config {
        let Rules { hold, patience, strict_metadata, .. } = self.rules;
        scaler::Config { patience, hold, max_age: scaler::MAX_AGE, strict_metadata }
    }
}
