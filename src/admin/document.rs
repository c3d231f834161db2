//! The shape of the status, as the README has it. What is not known is left out.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::intervals;
use crate::{
    demand::Account,
    refresh::{DemandState, DemandStatus, OrganisationStatus, Snapshot},
};

/// How many demands are told, unless it is said.
const DEFAULT_LIMIT: usize = 1_000;
/// How many at most; the queries may be long.
const MAX_LIMIT: usize = 5_000;
/// Most bytes of a query: Datadog takes about 7,000.
const MAX_QUERY: usize = 8_000;

/// Of a misspelt parameter it is not to be thought that all are meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Of the demands that it asks for; if it is not said, of all.
    namespace: Option<String>,
    /// Most demands.
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    organisations: Vec<Organisation>,
    demands: Vec<Demand<'a>>,
    demands_left_out: usize,
}

#[derive(Debug, Serialize)]
struct Organisation {
    #[serde(rename = "organisation")]
    number: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    accounts: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    told: bool,
    limit: u64,
    period_seconds: f64,
    remaining: u64,
    reset_seconds: f64,
    sent: u64,
    others: u64,
    allowance: u64,
    pace_per_minute: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<Range>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_seconds: Option<f64>,
    awake: usize,
    quarantined: usize,
    refused: usize,
}

#[derive(Debug, Serialize)]
struct Range {
    shortest: f64,
    longest: f64,
}

#[derive(Debug, Serialize)]
struct Demand<'a> {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    organisation: Option<usize>,
    query: &'a str,
    age_seconds: u64,
    offset_seconds: u64,
    namespaces: Vec<&'a str>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reading_age_seconds: Option<f64>,
    held: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_in_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
}

impl<'a> Document<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, which: &Which) -> Self {
        let payers: HashMap<&Account, usize> = snapshot
            .organisations
            .iter()
            .flat_map(|status| status.accounts.iter().map(|account| (&**account, status.number)))
            .collect();
        let wanted = snapshot.demands.iter().filter(|status| which.includes(status));
        let mut demands: Vec<Demand<'_>> = wanted
            .map(|status| Demand::of(status, payers.get(&*status.account).copied()))
            .collect();
        demands.sort_unstable_by(|one, other| one.place().cmp(&other.place()));
        let told = demands.len().min(which.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT));
        let demands_left_out = demands.drain(told..).count();
        let organisations = snapshot.organisations.iter().map(Organisation::of).collect();
        Self { organisations, demands, demands_left_out }
    }
}

impl Which {
    fn includes(&self, status: &DemandStatus) -> bool {
        let Some(wanted) = &self.namespace else { return true };
        status.namespaces.iter().any(|namespace| **namespace == **wanted)
    }
}

impl Organisation {
    fn of(status: &OrganisationStatus) -> Self {
        // Datadog names the limit, and may quote a key back.
        let redacted = |name: &str| {
            status.accounts.iter().fold(name.to_owned(), |name, account| account.redact(&name))
        };
        Self {
            number: status.number,
            host: status.accounts.first().map(|account| account.host()),
            accounts: status.accounts.len(),
            name: status.name.as_deref().map(redacted),
            told: status.is_told,
            limit: status.limit,
            period_seconds: seconds(status.period),
            remaining: status.remaining,
            reset_seconds: seconds(status.reset),
            sent: status.sent,
            others: status.others,
            allowance: status.allowance,
            pace_per_minute: (status.pace * 60.0 * 100.0).round() / 100.0,
            interval_seconds: intervals(status).map(|(shortest, longest)| Range {
                shortest: seconds(shortest),
                longest: seconds(longest),
            }),
            paused_seconds: status.paused.map(seconds),
            awake: status.awake,
            quarantined: status.quarantined,
            refused: status.refused,
        }
    }
}

impl<'a> Demand<'a> {
    fn of(status: &'a DemandStatus, organisation: Option<usize>) -> Self {
        let text = &*status.query.text;
        let mut namespaces: Vec<&str> = status.namespaces.iter().map(|name| &**name).collect();
        namespaces.sort_unstable();
        // The others are not read at an interval.
        let is_awake = matches!(status.state, DemandState::Awake | DemandState::Fetching);
        Self {
            host: status.account.host(),
            organisation,
            query: &text[..text.floor_char_boundary(MAX_QUERY)],
            age_seconds: status.query.window.age,
            offset_seconds: status.query.window.offset,
            namespaces,
            state: status.state.name(),
            reading_age_seconds: status.age.map(seconds),
            held: status.is_held,
            error: status.failure.as_ref().map(ToString::to_string),
            interval_seconds: is_awake.then(|| seconds(status.interval)),
            next_in_seconds: status.next_in.map(seconds),
            batch: Some(status.batch).filter(|queries| *queries > 0),
        }
    }

    fn place(&self) -> impl Ord {
        (&self.host, self.query, self.age_seconds, self.offset_seconds, self.organisation)
    }
}

/// To the tenth: nobody reads more of it.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        demand::{Keys, Query, Window},
        source::SourceError,
    };

    fn account(key: &str) -> Arc<Account> {
        let keys = Keys::Pair { api: key.into(), app: key.into() };
        Arc::new(Account::new("https://api.datadoghq.eu".parse().unwrap(), keys))
    }

    fn organisation(number: usize, key: &str) -> OrganisationStatus {
        OrganisationStatus {
            number,
            accounts: vec![account(key)],
            name: None,
            is_told: false,
            limit: 300,
            period: Duration::from_hours(1),
            reset: Duration::from_hours(1),
            remaining: 300,
            sent: 0,
            others: 0,
            allowance: 240,
            pace: 240.0 / 3_600.0,
            intervals: (Duration::ZERO, Duration::ZERO),
            paused: None,
            awake: 0,
            quarantined: 0,
            refused: 0,
        }
    }

    fn demand(query: &str, namespaces: &[&str]) -> DemandStatus {
        DemandStatus {
            account: account("the-api-key"),
            query: Query { text: query.into(), window: Window { age: 90, offset: 0 } },
            namespaces: namespaces.iter().map(|name| Arc::from(*name)).collect(),
            state: DemandState::Fetching,
            age: None,
            is_held: false,
            failure: None,
            interval: Duration::from_secs(15),
            next_in: None,
            batch: 0,
        }
    }

    fn which(namespace: Option<&str>, limit: Option<usize>) -> Which {
        Which { namespace: namespace.map(Into::into), limit }
    }

    fn json(snapshot: &Snapshot) -> String {
        let document = Document::of(snapshot, &which(None, None));
        serde_json::to_string_pretty(&document).unwrap()
    }

    #[test]
    fn all_that_is_known_is_told_and_no_key() {
        let organisation = OrganisationStatus {
            name: Some("query for the-api-key".into()),
            is_told: true,
            limit: 1_600,
            reset: Duration::from_millis(1_234_567),
            remaining: 700,
            sent: 300,
            others: 600,
            allowance: 800,
            pace: 0.405,
            intervals: (Duration::from_secs(15), Duration::from_millis(22_460)),
            paused: Some(Duration::from_secs(30)),
            awake: 40,
            quarantined: 2,
            refused: 1,
            ..organisation(1, "the-api-key")
        };
        let demand = DemandStatus {
            state: DemandState::Awake,
            age: Some(Duration::from_millis(16_250)),
            is_held: true,
            failure: Some(SourceError::Outage {
                host: "api.datadoghq.eu".into(),
                what: "502".into(),
            }),
            next_in: Some(Duration::from_millis(3_960)),
            batch: 35,
            ..demand("sum:shop.orders{*}", &["shop", "billing"])
        };
        let snapshot = Snapshot { organisations: vec![organisation], demands: vec![demand] };
        insta::assert_snapshot!(json(&snapshot), @r#"
        {
          "organisations": [
            {
              "organisation": 1,
              "host": "api.datadoghq.eu",
              "accounts": 1,
              "name": "query for [redacted]",
              "told": true,
              "limit": 1600,
              "period_seconds": 3600.0,
              "remaining": 700,
              "reset_seconds": 1234.6,
              "sent": 300,
              "others": 600,
              "allowance": 800,
              "pace_per_minute": 24.3,
              "interval_seconds": {
                "shortest": 15.0,
                "longest": 22.5
              },
              "paused_seconds": 30.0,
              "awake": 40,
              "quarantined": 2,
              "refused": 1
            }
          ],
          "demands": [
            {
              "host": "api.datadoghq.eu",
              "organisation": 1,
              "query": "sum:shop.orders{*}",
              "age_seconds": 90,
              "offset_seconds": 0,
              "namespaces": [
                "billing",
                "shop"
              ],
              "state": "awake",
              "reading_age_seconds": 16.3,
              "held": true,
              "error": "Datadog fails at api.datadoghq.eu (502); nothing is wrong with the query",
              "interval_seconds": 15.0,
              "next_in_seconds": 4.0,
              "batch": 35
            }
          ],
          "demands_left_out": 0
        }
        "#);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let demands = vec![demand("sum:shop.orders{*}", &[])];
        let snapshot = Snapshot { organisations: vec![organisation(1, "other")], demands };
        insta::assert_snapshot!(json(&snapshot), @r#"
        {
          "organisations": [
            {
              "organisation": 1,
              "host": "api.datadoghq.eu",
              "accounts": 1,
              "told": false,
              "limit": 300,
              "period_seconds": 3600.0,
              "remaining": 300,
              "reset_seconds": 3600.0,
              "sent": 0,
              "others": 0,
              "allowance": 240,
              "pace_per_minute": 4.0,
              "awake": 0,
              "quarantined": 0,
              "refused": 0
            }
          ],
          "demands": [
            {
              "host": "api.datadoghq.eu",
              "query": "sum:shop.orders{*}",
              "age_seconds": 90,
              "offset_seconds": 0,
              "namespaces": [],
              "state": "fetching",
              "held": false,
              "interval_seconds": 15.0
            }
          ],
          "demands_left_out": 0
        }
        "#);
    }

    #[track_caller]
    fn check_demands(
        snapshot: &Snapshot,
        which: &Which,
        expected: &[(&str, u64)],
        left_out: usize,
    ) {
        let document = Document::of(snapshot, which);
        let told = document.demands.iter().map(|demand| (demand.query, demand.offset_seconds));
        assert_eq!(told.collect::<Vec<_>>(), expected);
        assert_eq!(document.demands_left_out, left_out);
        assert!(document.demands.iter().all(|demand| demand.organisation == Some(7)));
    }

    #[test]
    fn demands_stand_in_one_order_and_can_be_picked() {
        let later = Window { age: 90, offset: 60 };
        let mut twice = demand("avg:b{*}", &["shop"]);
        twice.query.window = later;
        let demands = vec![
            demand("avg:c{*}", &[]),
            twice,
            demand("avg:b{*}", &["billing", "shop"]),
            demand("avg:a{*}", &["billing"]),
        ];
        let snapshot = Snapshot { organisations: vec![organisation(7, "the-api-key")], demands };
        let all = [("avg:a{*}", 0), ("avg:b{*}", 0), ("avg:b{*}", 60), ("avg:c{*}", 0)];
        check_demands(&snapshot, &which(None, None), &all, 0);
        check_demands(&snapshot, &which(None, Some(3)), &all[..3], 1);
        check_demands(&snapshot, &which(None, Some(0)), &[], 4);
        check_demands(&snapshot, &which(Some("shop"), None), &all[1..3], 0);
        check_demands(&snapshot, &which(Some("shop"), Some(1)), &all[1..2], 1);
        check_demands(&snapshot, &which(Some("sho"), None), &[], 0);
    }

    #[test]
    fn a_query_without_end_is_cut() {
        let demands = vec![demand(&"ä".repeat(60_000), &[])];
        let snapshot = Snapshot { organisations: Vec::new(), demands };
        assert_eq!(Document::of(&snapshot, &which(None, None)).demands[0].query.len(), MAX_QUERY);
    }
}
