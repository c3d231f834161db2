//! The ways in which the simulated Datadog breaks.

use std::{fmt, str::FromStr};

use crate::words::shorten;

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
}

impl Fault {
    pub const ALL: [Self; 22] = [
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
    ];

    /// Its name and what it does.
    fn entry(self) -> (&'static str, &'static str) {
        match self {
            Self::Unauthorized => ("401", "the keys are not known"),
            Self::Forbidden => ("403", "the keys may not read metrics"),
            Self::Unprocessable => ("422", "the query cannot be processed, for a while"),
            Self::Throttled => ("429", "the rate limit is spent, and headers tell until when"),
            Self::ThrottledBare => ("429-bare", "the rate limit is spent, and nothing tells more"),
            Self::ServerError => ("500", "Datadog fails, without a word"),
            Self::BadGateway => ("502", "a gateway cannot reach Datadog"),
            Self::GatewayTimeout => ("504", "a gateway waited for Datadog in vain"),
            Self::Error => ("error", "a 200 that says that the query took Datadog too long"),
            Self::Rejected => ("rejected", "a 200 that says that the query is malformed"),
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
            Self::Neighbour => {
                ("neighbour", "somebody else spends a tenth of the rate limit each second")
            }
        }
    }

    pub fn name(self) -> &'static str {
        self.entry().0
    }

    pub fn about(self) -> &'static str {
        self.entry().1
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

/// A fault of all queries, or of one. Written `504` or `504=avg:sandbox.sine{*}`.
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
}

/// Most characters that are repeated of what is not a fault.
const MAX_SHOWN: usize = 40;

impl Breakage {
    pub(super) fn new(fault: Fault, query: Option<&str>) -> Result<Self, NoBreakage> {
        let query = query.map(str::trim);
        if query == Some("") {
            return Err(NoBreakage::EmptyQuery);
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
        let query = self.query.as_deref().unwrap_or("all queries");
        write!(f, "{} for {query}", self.fault)
    }
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
                     neighbour";
        check("505=avg:a{*}", Err(&format!("`505` is not a fault; the faults are {names}")));
        check(" 504", Err(&format!("` 504` is not a fault; the faults are {names}")));
    }
}
