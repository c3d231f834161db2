//! What is broken now, and what that means for a request.

use std::fmt;

use super::fault::{Breakage, Fault};
use crate::{demand::Service, source::grammar, words::shorten};

/// Most queries that have a fault of their own.
const MAX_QUERIES: usize = 100;
/// Most characters of the line that tells what is broken.
const MAX_LINE: usize = 300;

/// The faults that are switched on.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// One at most for each query, and one for all. A later one beats an earlier one: first that
    /// for all queries, then those for one, in the order in which they were switched on.
    switched_on: Vec<SwitchedOn>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SwitchedOn {
    pub(super) breakage: Breakage,
    /// Seconds since the epoch.
    pub(super) since: i64,
}

/// What is wrong with one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trouble {
    /// With the request as a whole.
    pub(super) whole: Option<SwitchedOn>,
    /// With what each of its queries finds, in their order.
    pub(super) data: Vec<Option<Fault>>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_QUERIES} queries have a fault of their own, and no more can; mend one of them first")]
pub(super) struct Full;

impl Faults {
    pub(super) fn new(breakages: Vec<Breakage>, now: i64) -> Result<Self, Full> {
        let mut faults = Self::default();
        for breakage in breakages {
            faults.switch_on(breakage, now)?;
        }
        Ok(faults)
    }

    /// In place of the fault that the query, or all queries, had before.
    pub(super) fn switch_on(&mut self, breakage: Breakage, since: i64) -> Result<(), Full> {
        let query = &breakage.query;
        let others = self.iter().filter(|on| on.breakage.query.is_some());
        let others = others.filter(|on| on.breakage.query != *query).count();
        if query.is_some() && others >= MAX_QUERIES {
            return Err(Full);
        }
        self.switched_on.retain(|on| on.breakage.query != *query);
        let place = if query.is_some() { self.switched_on.len() } else { 0 };
        self.switched_on.insert(place, SwitchedOn { breakage, since });
        Ok(())
    }

    pub(super) fn mend_all(&mut self) {
        self.switched_on.clear();
    }

    /// A fault for all queries stays.
    pub(super) fn mend(&mut self, query: &str) {
        self.switched_on.retain(|on| on.breakage.query.as_deref() != Some(query.trim()));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SwitchedOn> {
        self.switched_on.iter()
    }

    /// `text` may hold several queries. A fault of one of them is a fault of the request, but for
    /// those that change only what that one finds.
    pub(super) fn trouble(&self, service: Service, text: &str) -> Trouble {
        let queries = grammar::split(text).unwrap_or_else(|| vec![text]);
        let places: Vec<Option<usize>> = queries
            .iter()
            .map(|query| {
                self.switched_on.iter().rposition(|on| match &on.breakage.query {
                    Some(broken) => broken == query.trim() || broken == text.trim(),
                    None => on.breakage.fault.concerns(service),
                })
            })
            .collect();
        let fault = |place: usize| self.switched_on[place].breakage.fault;
        let whole = places.iter().flatten().filter(|place| !fault(**place).is_of_data()).max();
        let data = places.iter().map(|place| place.map(fault).filter(|fault| fault.is_of_data()));
        Trouble { whole: whole.map(|place| self.switched_on[*place].clone()), data: data.collect() }
    }
}

impl Trouble {
    /// Since when somebody else spends the limit that this request counts against.
    pub(super) fn neighbour_since(&self) -> Option<i64> {
        let on = self.whole.as_ref().filter(|on| on.breakage.fault == Fault::Neighbour);
        on.map(|on| on.since)
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.whole.as_ref().map(|on| on.breakage.fault)
    }

    /// In few words; none if nothing is wrong.
    pub(super) fn note(&self) -> String {
        let faults = self.fault().into_iter().chain(self.data.iter().flatten().copied());
        let mut names: Vec<&str> = faults.map(Fault::name).collect();
        names.dedup();
        if names.is_empty() { String::new() } else { format!("fault {}", names.join(", ")) }
    }
}

/// One line.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken: Vec<String> = self.iter().map(|on| on.breakage.to_string()).collect();
        if broken.is_empty() {
            return f.write_str("nothing is broken");
        }
        f.write_str(&shorten(&format!("broken: {}", broken.join("; ")), MAX_LINE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each switched on a second after the one before.
    fn faults(breakages: &[&str]) -> Faults {
        let mut faults = Faults::default();
        for (since, text) in (0..).zip(breakages) {
            faults.switch_on(text.parse().unwrap(), since).unwrap();
        }
        faults
    }

    /// The fault of the request, and those of what its queries find.
    #[track_caller]
    fn check(breakages: &[&str], text: &str, whole: Option<Fault>, data: &[Option<Fault>]) {
        let trouble = faults(breakages).trouble(DatadogApi, text);
        assert_eq!((trouble.fault(), &*trouble.data), (whole, data), "{breakages:?} in {text}");
    }

    use Fault::{BadGateway, Empty, GatewayTimeout, Null};
    use Service::{ClusterAgent, DatadogApi};

    #[test]
    fn a_fault_is_for_all_queries_or_for_one() {
        check(&[], "a{*}", None, &[None]);
        check(&["504"], "a{*}", Some(GatewayTimeout), &[None]);
        check(&["504"], "a{*", Some(GatewayTimeout), &[None]);
        check(&["504=a{*}"], "a{*}", Some(GatewayTimeout), &[None]);
        check(&["504=a{*}"], " a{*} ", Some(GatewayTimeout), &[None]);
        check(&["504=a{*}"], "b{*}", None, &[None]);
        check(&["504=a{*}"], "sum:a{*}", None, &[None]);
    }

    #[test]
    fn the_fault_of_one_query_in_a_list_breaks_the_request() {
        check(&["504=b{*}"], "a{*}, b{*}", Some(GatewayTimeout), &[None, None]);
        check(&["504=a{*}, b{*}"], "a{*}, b{*}", Some(GatewayTimeout), &[None, None]);
        check(&["504=a{*}, b{*}"], "a{*}", None, &[None]);
    }

    #[test]
    fn a_fault_of_the_data_concerns_that_query_only() {
        check(&["empty=b{*}"], "a{*}, b{*}", None, &[None, Some(Empty)]);
        check(&["empty=a{*},b{*}"], "a{*},b{*}", None, &[Some(Empty), Some(Empty)]);
        check(&["null", "empty=b{*}"], "a{*},b{*}", None, &[Some(Null), Some(Empty)]);
        check(&["502", "empty=b{*}"], "a{*},b{*}", Some(BadGateway), &[None, Some(Empty)]);
    }

    #[test]
    fn one_querys_fault_beats_that_for_all_and_the_latest_wins() {
        check(&["504=a{*}", "502"], "a{*}", Some(GatewayTimeout), &[None]);
        check(&["empty=a{*}", "502"], "a{*}", None, &[Some(Empty)]);
        check(&["504", "502"], "a{*}", Some(BadGateway), &[None]);
        check(&["504=a{*}", "502=a{*}"], "a{*}", Some(BadGateway), &[None]);
        check(&["504=a{*}", "502=b{*}"], "a{*},b{*}", Some(BadGateway), &[None, None]);
        check(&["504=b{*}", "502"], "a{*},b{*}", Some(GatewayTimeout), &[None, None]);
    }

    #[test]
    fn a_fault_of_one_service_is_none_of_the_other() {
        for (fault, of_datadog, of_agent) in
            [("504", true, true), ("neighbour", true, false), ("stale", false, true)]
        {
            let faults = faults(&[fault]);
            let is_broken = |service| faults.trouble(service, "x").fault().is_some();
            assert_eq!((is_broken(DatadogApi), is_broken(ClusterAgent)), (of_datadog, of_agent));
        }
        let faults = faults(&["504=datadogmetric@demo:a"]);
        let fault = |name| faults.trouble(ClusterAgent, name).fault();
        assert_eq!(fault("datadogmetric@demo:a"), Some(GatewayTimeout));
        assert_eq!(fault("datadogmetric@demo:b"), None);
    }

    #[test]
    fn what_is_mended_is_gone_and_the_rest_stays() {
        let mut faults = faults(&["502", "504=a{*}", "504=b{*}"]);
        faults.mend(" a{*} ");
        assert_eq!(faults.to_string(), "broken: 502 for all queries; 504 for b{*}");
        faults.mend_all();
        assert_eq!(faults.to_string(), "nothing is broken");
    }

    #[test]
    fn there_is_an_end_to_what_can_be_broken() {
        let mut faults = Faults::default();
        let breakage = |n| format!("504=a{{n:{n}}}").parse().unwrap();
        for n in 0..MAX_QUERIES {
            faults.switch_on(breakage(n), 0).unwrap();
        }
        assert_eq!(faults.switch_on(breakage(MAX_QUERIES), 0), Err(Full));
        assert_eq!(faults.switch_on(breakage(7), 0), Ok(()));
        assert_eq!(faults.switch_on("502".parse().unwrap(), 0), Ok(()));
        assert_eq!(faults.iter().count(), MAX_QUERIES + 1);
    }

    #[test]
    fn a_neighbour_is_known_since_when() {
        let faults = faults(&["502=a{*}", "neighbour=a{*}"]);
        assert_eq!(faults.trouble(DatadogApi, "a{*}").neighbour_since(), Some(1));
        assert_eq!(faults.trouble(DatadogApi, "b{*}").neighbour_since(), None);
    }
}
