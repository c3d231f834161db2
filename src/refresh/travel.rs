//! Which demands travel together in one request. Pure.

use std::{collections::HashMap, sync::Arc};

use url::form_urlencoded::byte_serialize;

use crate::{
    demand::{Account, Demand, Query, Window},
    source::{Batch, grammar},
};

/// Most escaped bytes of the queries of a request, commas included: Datadog refuses URLs of some
/// 7,600 (DataDog/datadog-agent#4715), and its Cluster Agent stops at as many as here.
const MAX_BYTES: usize = 7_000;
/// An escaped comma.
const COMMA: usize = 3;

/// What one text weighs in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Top-level queries.
    queries: usize,
    /// Escaped.
    bytes: usize,
    /// Not if nobody can tell where it ends, or if it fills a request.
    may_share: bool,
}

impl Load {
    pub(super) fn of(query: &Query) -> Self {
        let parts = grammar::split(&query.text);
        let bytes = byte_serialize(query.text.as_bytes()).map(str::len).sum();
        let queries = parts.as_ref().map_or(1, Vec::len);
        // Whether Datadog counts a part that is empty, nobody knows; a neighbour would be given
        // the values of another.
        let is_clear = parts.is_some_and(|parts| parts.iter().all(|part| !part.trim().is_empty()));
        Self { queries, bytes, may_share: is_clear && bytes <= MAX_BYTES }
    }
}

/// Requests that are being filled.
pub(super) struct Filling {
    most_queries: usize,
    batches: Vec<Batch>,
    /// Of each kind, which batch is not full yet, and its load.
    open: HashMap<(Arc<Account>, Class), (usize, Load)>,
}

/// What demands must have in common to travel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    pub(super) window: Window,
    /// A stranger's first query is not to delay those that have answers.
    pub(super) is_first: bool,
    /// Most queries of a request that it travels in.
    pub(super) company: usize,
}

impl Filling {
    pub(super) fn new(most_queries: usize) -> Self {
        Self { most_queries, batches: Vec::new(), open: HashMap::new() }
    }

    /// False if there would be more than `room` requests.
    pub(super) fn add(&mut self, demand: &Demand, class: Class, load: Load, room: usize) -> bool {
        let most = self.most_queries.min(class.company);
        let kind = (demand.account.clone(), class);
        if load.may_share
            && let Some((place, open)) = self.open.get_mut(&kind)
            && open.queries + load.queries <= most
            && open.bytes + COMMA + load.bytes <= MAX_BYTES
        {
            open.queries += load.queries;
            open.bytes += COMMA + load.bytes;
            self.batches[*place].queries.push(demand.query.clone());
            return true;
        }
        let has_room = self.batches.len() < room;
        if has_room {
            if load.may_share {
                self.open.insert(kind, (self.batches.len(), load));
            }
            let queries = vec![demand.query.clone()];
            self.batches.push(Batch { account: demand.account.clone(), queries });
        }
        has_room
    }

    pub(super) fn batches(self) -> Vec<Batch> {
        self.batches
    }
}

/// What becomes of a request that was rejected, or too large, as a whole: smaller ones. The one
/// that the reason names travels alone at once.
pub(super) fn divided(queries: Vec<Query>, reason: &str) -> Vec<Vec<Query>> {
    // A short text may be part of any other.
    let named = |query: &Query| query.text.contains('{') && reason.contains(query.text.trim());
    let mut suspects = (0..).zip(&queries).filter(|(_, query)| named(query));
    if let (Some((place, _)), None) = (suspects.next(), suspects.next()) {
        let mut rest = queries;
        let suspect = rest.remove(place);
        return vec![vec![suspect], rest];
    }
    let mut first = queries;
    let second = first.split_off(first.len() / 2);
    vec![first, second]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::Keys;

    fn demand(text: &str) -> Demand {
        let account = Account::new("https://dd".parse().unwrap(), Keys::Bearer("key".into()));
        let window = Window { age: 90, offset: 0 };
        Demand { account: Arc::new(account), query: Query { text: text.into(), window } }
    }

    fn class(age: u64, is_first: bool, company: usize) -> Class {
        Class { window: Window { age, offset: 0 }, is_first, company }
    }

    /// How many queries each request has.
    #[track_caller]
    fn check(texts: &[(&str, Class)], room: usize, expected: &[usize]) {
        let mut filling = Filling::new(35);
        for (text, class) in texts {
            let demand = demand(text);
            filling.add(&demand, *class, Load::of(&demand.query), room);
        }
        let sizes: Vec<usize> = filling.batches().iter().map(|batch| batch.queries.len()).collect();
        assert_eq!(sizes, expected);
    }

    #[test]
    fn what_has_the_same_window_travels_together() {
        let (any, other) = (class(90, false, 99), class(600, false, 99));
        check(&[("a{*}", any), ("b{*}", other), ("c{*}", any)], 9, &[2, 1]);
        check(&[("a{*}", any), ("b{*}", class(90, true, 99))], 9, &[1, 1]);
        check(&[("a{*}", any), ("b{*}", any)], 0, &[]);
    }

    #[test]
    fn a_request_has_an_end() {
        let any = class(90, false, 99);
        check(&[("a{*}", any); 80], 9, &[35, 35, 10]);
        check(&[("a{*}", class(90, false, 3)); 7], 9, &[3, 3, 1]);
        let several = "a{*},b{*},c{*}";
        check(&[(several, any); 13], 9, &[11, 2]);
        let long = format!("a{{{}}}", "x".repeat(3_000));
        check(&[(&*long, any); 3], 9, &[2, 1]);
        check(&[("a{*}", any); 80], 2, &[35, 35]);
    }

    #[test]
    fn what_nobody_can_tell_the_end_of_travels_alone() {
        let any = class(90, false, 99);
        check(&[("a{*", any), ("b{*}", any), ("c{*}", any)], 9, &[1, 2]);
        check(&[("a{*},", any), ("b{*}", any), (", c{*}", any), ("d{*}", any)], 9, &[1, 2, 1]);
        let too_long = format!("a{{{}}}", "x".repeat(8_000));
        check(&[("b{*}", any), (&*too_long, any), ("c{*}", any)], 9, &[2, 1]);
    }

    #[test]
    fn a_rejected_request_is_halved_unless_its_offender_is_named() {
        let texts = |reason: &str| {
            let queries: Vec<Query> =
                ["a{*}", "b{x y}", "c{*}", "d{*}"].iter().map(|t| demand(t).query).collect();
            let parts = divided(queries, reason).into_iter();
            parts
                .map(|part| part.iter().map(|query| &*query.text).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(texts("unable to parse b{x y}: Rule"), ["b{x y}", "a{*} c{*} d{*}"]);
        assert_eq!(texts("no reason"), ["a{*} b{x y}", "c{*} d{*}"]);
        assert_eq!(texts("a{*} or b{x y}"), ["a{*} b{x y}", "c{*} d{*}"]);
    }
}
