//! What a sound Datadog answers: the JSON of `/api/v1/query`, in its shapes.

use serde_json::{Value, json};

use super::{
    fault::Fault,
    query::{SimulatedQuery, SimulatedSeries},
};
use crate::source::grammar;

/// Seconds; there is nothing older.
const RETENTION: i64 = 30 * 86_400;
/// An instant in seconds is below this until the year 5138; more is milliseconds.
const LATEST: i64 = 100_000_000_000;

/// Most queries of a request. How many Datadog takes, it does not say.
const MAX_QUERIES: usize = 100;
/// Most points of a series with those that are padding.
const MAX_POINTS: usize = 1_500;

/// A request that has all its parameters.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// Seconds since the epoch, as `to`.
    pub(super) from: i64,
    pub(super) to: i64,
    /// One query or several.
    pub(super) query: &'a str,
}

impl Request<'_> {
    /// `faults` are those of what each of the queries finds.
    pub(super) fn answer(self, faults: &[Option<Fault>], now: i64) -> Value {
        if self.from > LATEST || self.to > LATEST {
            return self.error("Internal error");
        }
        let within = Self { from: self.from.max(now - RETENTION), to: self.to.min(now), ..self };
        let Some(texts) = grammar::split(self.query) else {
            return within.malformed(self.query, self.query.len());
        };
        if texts.len() > MAX_QUERIES {
            return within.error("Invalid query input:\ntoo many queries");
        }
        let mut queries = Vec::with_capacity(texts.len());
        for text in texts {
            match SimulatedQuery::parse(text) {
                Ok(mut query) => {
                    query.fit(within.from, within.to);
                    queries.push(query);
                }
                // One bad query rejects the whole call.
                Err(at) => return within.malformed(text, at),
            }
        }
        // Several queries are padded with nulls to the finest step among them.
        let finest = queries.iter().map(|query| query.step).min().unwrap_or(1);
        let mut series = Vec::new();
        for (index, query) in queries.iter().enumerate() {
            let mut found = query.answer(within.from, within.to, now);
            // Datadog does not show a series that has no point in the window.
            found.retain(|series| !series.points.is_empty());
            if let Some(fault) = faults.get(index).copied().flatten() {
                spoil(&mut found, fault);
            }
            series.extend(found.iter().map(|series| show(index, query, series, finest)));
        }
        within.reply("ok", "", &series)
    }

    /// An HTTP 200 that says what is wrong.
    pub(super) fn error(self, text: &str) -> Value {
        self.reply("error", text, &[])
    }

    /// `query` is one of those that were sent; it makes no sense from the byte `at` on.
    pub(super) fn malformed(self, query: &str, at: usize) -> Value {
        let rest = query.get(at..).unwrap_or_default();
        let error = format!(
            "Error parsing query: \nunable to parse {query}: Rule 'query' didn't match at \
             '{rest}' (line 1, column {}).",
            at + 1
        );
        Request { query, ..self }.error(&error)
    }

    fn reply(self, status: &str, error: &str, series: &[Value]) -> Value {
        let mut reply = json!({
            "status": status,
            "res_type": "time_series",
            "resp_version": 1,
            "query": self.query,
            "from_date": self.from.saturating_mul(1_000),
            "to_date": self.to.saturating_mul(1_000),
            "series": series,
            "values": [],
            "times": [],
            "message": "",
            "group_by": [],
        });
        if !error.is_empty() {
            reply["error"] = error.into();
        }
        reply
    }
}

/// What a fault of the data leaves of it.
pub(super) fn spoil(found: &mut Vec<SimulatedSeries>, fault: Fault) {
    let nulls = match fault {
        Fault::Empty => return found.clear(),
        Fault::Null => usize::MAX,
        Fault::LastNull => 3,
        _ => 0,
    };
    for series in found {
        for (_, value) in series.points.iter_mut().rev().take(nulls) {
            *value = None;
        }
    }
}

fn show(index: usize, query: &SimulatedQuery, series: &SimulatedSeries, finest: i64) -> Value {
    let mut points: Vec<Value> = Vec::new();
    for (start, value) in &series.points {
        points.push(json!([start * 1_000, value]));
        let padding = (1..query.step / finest).map(|n| json!([(start + n * finest) * 1_000, null]));
        points.extend(padding.take(MAX_POINTS.saturating_sub(points.len())));
    }
    let start = series.points.first().map_or(0, |(start, _)| start * 1_000);
    let end = series.points.last().map_or(0, |(start, _)| (start + query.step) * 1_000 - 1);
    json!({
        "metric": query.metric(),
        "display_name": query.metric(),
        "expression": format!("{}:{}{{{}}}", query.aggregator(), query.metric(), series.scope),
        "scope": series.scope,
        "tag_set": series.tags,
        "query_index": index,
        "aggr": query.aggregator(),
        "interval": query.step,
        "length": points.len(),
        "start": start,
        "end": end,
        "attributes": {},
        "unit": null,
        "pointlist": points,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(query: &str) -> Value {
        Request { from: 900, to: 1_000, query }.answer(&[], 1_000)
    }

    #[test]
    fn several_queries_are_told_apart_by_their_index_and_padded() {
        let reply =
            ask("avg:sandbox.zero{*}, avg:sandbox.unheard{*}, max:sandbox.flat{*}.rollup(max, 20)");
        let series = reply["series"].as_array().unwrap();
        assert_eq!(series.len(), 2);
        assert_eq!((&series[0]["query_index"], &series[1]["query_index"]), (&json!(0), &json!(2)));
        assert_eq!(series[1]["pointlist"][0], json!([900_000, 12.0]));
        assert_eq!(series[1]["pointlist"][1], json!([910_000, null]));
    }

    #[test]
    fn a_long_window_has_wide_buckets() {
        let request = Request { from: 0, to: 1_790_000_000, query: "avg:sandbox.flat{*}" };
        let reply = request.answer(&[], 1_790_000_000);
        assert_eq!(reply["series"][0]["interval"], 1_730);
        let points = reply["series"][0]["pointlist"].as_array().unwrap().len();
        assert!((1_400..=1_500).contains(&points), "{points} points");
    }

    #[test]
    fn milliseconds_are_no_seconds() {
        let query = "avg:sandbox.flat{*}";
        for (from, to) in [(1_790_000_000_000, 1_000), (900, 1_790_000_000_000)] {
            assert_eq!(Request { from, to, query }.answer(&[], 1_000)["error"], "Internal error");
        }
        assert_eq!(ask(query)["from_date"], 900_000);
    }

    #[test]
    fn an_answer_has_an_end() {
        let wide = vec!["avg:sandbox.flat{*}.rollup(avg, 2592000)"; 20].join(",");
        let reply = ask(&format!("avg:sandbox.flat{{*}},{wide}"));
        let length = |series: &Value| series["pointlist"].as_array().unwrap().len();
        let longest = reply["series"].as_array().unwrap().iter().map(length).max();
        assert!(longest <= Some(MAX_POINTS), "{longest:?} points");
        for (queries, status) in [(100, "ok"), (101, "error")] {
            let reply = ask(&vec!["avg:sandbox.flat{*}"; queries].join(","));
            assert_eq!(reply["status"], status, "{queries}");
        }
    }

    #[test]
    fn a_window_in_the_future_has_no_series() {
        let request = Request { from: 900, to: 1_000, query: "avg:sandbox.flat{*}" };
        assert_eq!(request.answer(&[], 899)["series"], json!([]));
        assert_eq!(request.answer(&[], 899)["status"], "ok");
    }

    #[test]
    fn one_malformed_query_rejects_the_call() {
        let reply = ask("avg:sandbox.zero{*},avg:sandbox.zero{a b}");
        assert_eq!(reply["status"], "error");
        assert!(
            reply["error"]
                .as_str()
                .unwrap()
                .starts_with("Error parsing query: \nunable to parse avg:sandbox.zero{a b}")
        );
        assert_eq!(ask("avg:sandbox.zero{")["status"], "error");
    }

    /// The values of each series, by the index of its query, under these faults of the data.
    #[track_caller]
    fn check(faults: &[Option<Fault>], expected: &[(u64, &[Option<f64>])]) {
        let query = "avg:sandbox.flat{*},avg:sandbox.zero{*}";
        let reply = Request { from: 960, to: 1_000, query }.answer(faults, 1_000);
        let values = |series: &Value| {
            let points = series["pointlist"].as_array().unwrap().iter();
            (series["query_index"].as_u64().unwrap(), points.map(|p| p[1].as_f64()).collect())
        };
        let got: Vec<(u64, Vec<_>)> =
            reply["series"].as_array().unwrap().iter().map(values).collect();
        let expected: Vec<_> = expected.iter().map(|(i, values)| (*i, values.to_vec())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn a_fault_of_the_data_is_one_of_its_query() {
        let (flat, zero): ([_; 5], [_; 5]) = ([Some(12.0); 5], [Some(0.0); 5]);
        check(&[None, None], &[(0, &flat), (1, &zero)]);
        check(&[Some(Fault::Empty), None], &[(1, &zero)]);
        check(&[None, Some(Fault::Null)], &[(0, &flat), (1, &[None; 5])]);
        let late = [Some(12.0), Some(12.0), None, None, None];
        check(&[Some(Fault::LastNull), None], &[(0, &late), (1, &zero)]);
    }
}
