//! Which demands travel together in one request. Pure.

use url::form_urlencoded::byte_serialize;

use crate::{
    demand::{Query, Window},
    source::grammar,
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
        let has_parts = |parts: &Vec<&str>| parts.iter().all(|part| !part.trim().is_empty());
        // Nor whether it reads quotes as we do: then it must make no difference.
        let without_quotes = query.text.replace(['"', '\'', '\\'], "");
        let is_plain = grammar::split(&without_quotes).map(|parts| parts.len()) == Some(queries);
        let is_clear = parts.as_ref().is_some_and(has_parts) && is_plain;
        Self { queries, bytes, may_share: is_clear && bytes <= MAX_BYTES }
    }

    pub(super) fn may_share(self) -> bool {
        self.may_share
    }

    /// The part of a request that it takes, if that has so many queries at most.
    #[expect(clippy::cast_precision_loss, reason = "a request is no such number of bytes")]
    pub(super) fn weight(self, most_queries: usize) -> f64 {
        if !self.may_share {
            return 1.0;
        }
        let of_queries = self.queries as f64 / most_queries as f64;
        let of_bytes = (self.bytes + COMMA) as f64 / MAX_BYTES as f64;
        of_queries.max(of_bytes).min(1.0)
    }
}

/// A request that is being filled.
pub(super) struct Filling {
    most_queries: usize,
    load: Load,
}

impl Filling {
    pub(super) fn new(most_queries: usize) -> Self {
        Self { most_queries, load: Load { queries: 0, bytes: 0, may_share: true } }
    }

    /// Whether there is room for it; nobody joins one that does not share.
    pub(super) fn add(&mut self, load: Load) -> bool {
        let is_first = self.load.queries == 0;
        let bytes = self.load.bytes + if is_first { 0 } else { COMMA } + load.bytes;
        let queries = self.load.queries + load.queries;
        let is_in = is_first
            || (self.load.may_share
                && load.may_share
                && queries <= self.most_queries
                && bytes <= MAX_BYTES);
        if is_in {
            let may_share = self.load.may_share && load.may_share;
            self.load = Load { queries, bytes, may_share };
        }
        is_in
    }

    pub(super) fn is_full(&self) -> bool {
        !self.load.may_share
            || self.load.queries >= self.most_queries
            || self.load.bytes >= MAX_BYTES
    }
}

/// Which of these, of one account, travel together when all of them had answers and fall due at once.
pub(crate) fn together(queries: &[Query], most_queries: usize) -> Vec<Vec<Query>> {
    let mut batches: Vec<(Window, Filling, Vec<Query>)> = Vec::new();
    for query in queries {
        let load = Load::of(query);
        let mut open = batches.iter_mut().filter(|(window, ..)| *window == query.window);
        let joined = open.find_map(|(_, filling, batch)| filling.add(load).then_some(batch));
        if let Some(batch) = joined {
            batch.push(query.clone());
        } else {
            let mut filling = Filling::new(most_queries);
            filling.add(load);
            batches.push((query.window, filling, vec![query.clone()]));
        }
    }
    batches.into_iter().map(|(_, _, batch)| batch).collect()
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

    fn query(text: &str) -> Query {
        Query { text: text.into(), window: Window { age: 90, offset: 0 } }
    }

    /// How many of these fit into the first request.
    #[track_caller]
    fn check(texts: &[&str], most_queries: usize, expected: usize) {
        let mut filling = Filling::new(most_queries);
        let fits = |text: &&&str| filling.add(Load::of(&query(text)));
        assert_eq!(texts.iter().filter(fits).count(), expected);
    }

    #[test]
    fn a_request_has_an_end() {
        check(&["a{*}"; 80], 35, 35);
        check(&["a{*}"; 7], 3, 3);
        check(&["a{*},b{*},c{*}"; 13], 35, 11);
        // What comes after one that has no room may have.
        check(&["a{*}", "b{*},c{*}", "d{*}"], 2, 2);
        let long = format!("a{{{}}}", "x".repeat(3_000));
        check(&[&*long; 3], 35, 2);
    }

    #[test]
    fn what_nobody_can_tell_the_end_of_travels_alone() {
        check(&["a{*", "b{*}"], 35, 1);
        check(&["b{*}", "a{*", "c{*}"], 35, 2);
        check(&["a{*},", "b{*}"], 35, 1);
        check(&[", a{*}", "b{*}"], 35, 1);
        // Read without quotes, it would be two.
        check(&["a{x:it's},b{x:it's}", "c{*}"], 35, 1);
        check(&["top(a{*}, 5, 'mean', 'desc')", "c{*}"], 35, 2);
        let too_long = format!("a{{{}}}", "x".repeat(8_000));
        check(&[&*too_long, "b{*}"], 35, 1);
        check(&["b{*}", &*too_long, "c{*}"], 35, 2);
    }

    #[test]
    fn a_query_weighs_what_it_takes_of_a_request() {
        let weight = |text: &str| Load::of(&query(text)).weight(35);
        assert!((weight("a{*}") - 1.0 / 35.0).abs() < 1e-9);
        assert!((weight("a{*},b{*}") - 2.0 / 35.0).abs() < 1e-9);
        let long = format!("a{}", "x".repeat(3_496));
        assert!((weight(&long) - 0.5).abs() < 1e-9);
        assert!((weight("a{*") - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_rejected_request_is_halved_unless_its_offender_is_named() {
        let texts = |reason: &str| {
            let queries: Vec<Query> =
                ["a{*}", "b{x y}", "c{*}", "d{*}"].iter().map(|text| query(text)).collect();
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
