//! The ways in which the simulated Datadog and Cluster Agent break.

use std::{fmt, str::FromStr};

use crate::{demand::Service, words::shorten};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Unauthorized,
    Forbidden,
    Unprocessable,
    Throttled,
    ThrottledBare,
    ServerError,
    BadGateway,
    GatewayTimeout,
    Error,
    Rejected,
    Latency,
    Slow,
    Hang,
    Reset,
    Garbage,
    Truncated,
    Huge,
    Empty,
    Null,
    LastNull,
    ClockSkew,
    Neighbour,
    Stale,
    Frozen,
    NotReady,
}

impl Fault {
    pub const ALL: [Self; 25] = [
        Self::Unauthorized,
        Self::Forbidden,
        Self::Unprocessable,
        Self::Throttled,
        Self::ThrottledBare,
        Self::ServerError,
        Self::BadGateway,
        Self::GatewayTimeout,
        Self::Error,
        Self::Rejected,
        Self::Latency,
        Self::Slow,
        Self::Hang,
        Self::Reset,
        Self::Garbage,
        Self::Truncated,
        Self::Huge,
        Self::Empty,
        Self::Null,
        Self::LastNull,
        Self::ClockSkew,
        Self::Neighbour,
        Self::Stale,
        Self::Frozen,
        Self::NotReady,
    ];

    /// Its name and what it does.
    fn entry(self) -> (&'static str, &'static str) {
        match self {
            Self::Unauthorized => ("401", "the keys, or the token, are not known"),
            Self::Forbidden => ("403", "the keys, or the owner of the token, may not read metrics"),
            Self::Unprocessable => ("422", "the query cannot be processed, for a while"),
            Self::Throttled => ("429", "the rate limit is spent, and headers tell until when"),
            Self::ThrottledBare => {
                ("429-bare", "there are too many requests, and nothing tells more")
            }
            Self::ServerError => ("500", "Datadog, or the Cluster Agent, fails by itself"),
            Self::BadGateway => ("502", "a gateway cannot reach Datadog"),
            Self::GatewayTimeout => ("504", "a gateway waited for Datadog in vain"),
            Self::Error => ("error", "Datadog says, in a 200, that the query took it too long"),
            Self::Rejected => ("rejected", "Datadog says, in a 200, that the query is malformed"),
            Self::Latency => ("latency", "answers are 300 ms late"),
            Self::Slow => ("slow", "answers are 5 s late, longer than KEDA is kept waiting"),
            Self::Hang => ("hang", "there is never an answer"),
            Self::Reset => ("reset", "the connection breaks off in the middle of the answer"),
            Self::Garbage => ("garbage", "a 200 that is not JSON"),
            Self::Truncated => ("truncated", "a 200 with half of the JSON"),
            Self::Huge => ("huge", "a 200 with more than 8 MiB of JSON"),
            Self::Empty => ("empty", "there is no series"),
            Self::Null => ("null", "every point is null"),
            Self::LastNull => ("last-null", "the last three points of each series are null"),
            Self::ClockSkew => {
                ("clock-skew", "Datadog's clock is ten minutes behind this machine's")
            }
            Self::Neighbour => (
                "neighbour",
                "Datadog only: somebody else spends a tenth of the rate limit each second",
            ),
            Self::Stale => {
                ("stale", "Cluster Agent only: the value is old, and it says so (7.56 and newer)")
            }
            Self::Frozen => (
                "frozen",
                "Cluster Agent only: the value is half an hour old, and stays (before 7.56)",
            ),
            Self::NotReady => {
                ("not-ready", "Cluster Agent only: there is no value yet, as after a restart")
            }
        }
    }

    pub fn name(self) -> &'static str {
        self.entry().0
    }

    pub fn about(self) -> &'static str {
        self.entry().1
    }

    /// Whether it can be seen there.
    pub fn concerns(self, service: Service) -> bool {
        match self {
            Self::Neighbour => service == Service::DatadogApi,
            Self::Stale | Self::Frozen | Self::NotReady => service == Service::ClusterAgent,
            _ => true,
        }
    }

    /// Whether it changes what a query finds, and leaves the rest of the answer as it is.
    pub(super) fn is_of_data(self) -> bool {
        matches!(self, Self::Empty | Self::Null | Self::LastNull)
    }

    /// Whether a request counts against the rate limit. What is refused, or lost before it reaches
    /// Datadog, does not; what Datadog answers wrongly, late or in part does.
    pub(super) fn counts(self) -> bool {
        !matches!(
            self,
            Self::Unauthorized
                | Self::Forbidden
                | Self::Throttled
                | Self::ThrottledBare
                | Self::ServerError
                | Self::BadGateway
                | Self::GatewayTimeout
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = NoBreakage;

    fn from_str(name: &str) -> Result<Self, NoBreakage> {
        Self::ALL
            .into_iter()
            .find(|fault| fault.name() == name)
            .ok_or_else(|| NoBreakage::UnknownFault { name: name.to_owned() })
    }
}

/// What a DatadogMetric is asked for by, before its namespace.
pub(super) const METRIC_PREFIX: &str = "datadogmetric@";

/// A fault of all queries, or of one. Written `504` or `504=avg:sandbox.sine{*}`. The queries of the
/// Cluster Agent are DatadogMetrics: `504=datadogmetric@demo:sine`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breakage {
    pub(super) fault: Fault,
    /// Trimmed and not empty; `None` is all queries.
    pub(super) query: Option<String>,
}

/// Why nothing can be broken by a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBreakage {
    #[error("`{}` is not a fault; the faults are {}", shorten(.name, MAX_SHOWN), names())]
    UnknownFault { name: String },
    #[error("the query is empty; name one, or leave it out to break all queries")]
    EmptyQuery,
    #[error("`{fault}` is a fault of {of} only, whose queries are named as `{example}`")]
    Elsewhere { fault: Fault, of: &'static str, example: &'static str },
}

/// Most characters that are repeated of what is not a fault.
const MAX_SHOWN: usize = 40;

impl Breakage {
    pub(super) fn new(fault: Fault, query: Option<&str>) -> Result<Self, NoBreakage> {
        let query = query.map(str::trim);
        if query == Some("") {
            return Err(NoBreakage::EmptyQuery);
        }
        if query.is_some_and(|query| !fault.concerns(service(query))) {
            let (of, example) = if fault.concerns(Service::DatadogApi) {
                ("Datadog", "avg:sandbox.steps{*}")
            } else {
                ("the Cluster Agent", "datadogmetric@demo:steps")
            };
            return Err(NoBreakage::Elsewhere { fault, of, example });
        }
        Ok(Self { fault, query: query.map(str::to_owned) })
    }
}

impl FromStr for Breakage {
    type Err = NoBreakage;

    fn from_str(text: &str) -> Result<Self, NoBreakage> {
        match text.split_once('=') {
            Some((fault, query)) => Self::new(fault.parse()?, Some(query)),
            None => Self::new(text.parse()?, None),
        }
    }
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.fault, self.query.as_deref().unwrap_or("all queries"))
    }
}

/// Who is asked for it.
fn service(query: &str) -> Service {
    if query.starts_with(METRIC_PREFIX) { Service::ClusterAgent } else { Service::DatadogApi }
}

fn names() -> String {
    Fault::ALL.map(Fault::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_listed_once_and_read_by_its_name() {
        for (place, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, place, "{fault}");
            assert_eq!(fault.name().parse(), Ok(fault));
        }
    }

    #[track_caller]
    fn check(text: &str, expected: Result<(Fault, Option<&str>), &str>) {
        let got = text.parse::<Breakage>().map_err(|error| error.to_string());
        let got = got.as_ref().map(|b| (b.fault, b.query.as_deref())).map_err(String::as_str);
        assert_eq!(got, expected);
    }

    #[test]
    fn a_breakage_is_a_fault_and_perhaps_a_query() {
        check("504", Ok((Fault::GatewayTimeout, None)));
        check("429-bare= avg:a{*} ", Ok((Fault::ThrottledBare, Some("avg:a{*}"))));
        check("null=avg:a{b:c=d}", Ok((Fault::Null, Some("avg:a{b:c=d}"))));
        let empty = "the query is empty; name one, or leave it out to break all queries";
        check("504= ", Err(empty));
        let names = "401, 403, 422, 429, 429-bare, 500, 502, 504, error, rejected, latency, slow, \
                     hang, reset, garbage, truncated, huge, empty, null, last-null, clock-skew, \
                     neighbour, stale, frozen, not-ready";
        check("505=avg:a{*}", Err(&format!("`505` is not a fault; the faults are {names}")));
        check("stale=datadogmetric@a:b", Ok((Fault::Stale, Some("datadogmetric@a:b"))));
        check(
            "stale=avg:a{*}",
            Err("`stale` is a fault of the Cluster Agent only, whose queries are named as \
                 `datadogmetric@demo:steps`"),
        );
        check(
            "neighbour=datadogmetric@a:b",
            Err("`neighbour` is a fault of Datadog only, whose queries are named as \
                 `avg:sandbox.steps{*}`"),
        );
        check(" 504", Err(&format!("` 504` is not a fault; the faults are {names}")));
    }
}
