//! The simulated Datadog API: `/api/v1/query` with Datadog's shapes, keys and rate limit.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    API_KEY, APP_KEY,
    query::{SimulatedQuery, SimulatedSeries},
};
use crate::source::{datadog::wall_clock, grammar};

/// Seconds; aligned to the calendar, as Datadog's are.
const PERIOD: i64 = 3_600;
/// Seconds; there is nothing older.
const RETENTION: i64 = 30 * 86_400;
/// An instant in seconds is below this until the year 5138; more is milliseconds.
const LATEST: i64 = 100_000_000_000;

pub(super) fn router(rate_limit: u32) -> Router {
    let limit = Arc::new(Mutex::new(Limit { requests: rate_limit, period: 0, spent: 0 }));
    Router::new().route("/api/v1/query", get(query)).with_state(limit)
}

struct Limit {
    requests: u32,
    /// Number of the period that `spent` belongs to.
    period: i64,
    spent: u32,
}

#[derive(Deserialize)]
struct Parameters {
    from: Option<String>,
    to: Option<String>,
    query: Option<String>,
}

async fn query(
    State(limit): State<Arc<Mutex<Limit>>>,
    headers: HeaderMap,
    Query(parameters): Query<Parameters>,
) -> Response {
    if !keys_are_right(&headers) {
        let body = json!({"status": "error", "code": 403, "errors": ["Forbidden"]});
        return (StatusCode::FORBIDDEN, Json(body)).into_response();
    }
    let now = wall_clock().as_second();
    let (has_room, rate_headers) = limit.lock().unwrap_or_else(PoisonError::into_inner).spend(now);
    let answer = if has_room {
        answer(&parameters, now)
    } else {
        (StatusCode::TOO_MANY_REQUESTS, Json(json!({"errors": ["Too many requests"]})))
    };
    (rate_headers, answer).into_response()
}

impl Limit {
    /// Counts one request. False if there was none left.
    fn spend(&mut self, now: i64) -> (bool, [(&'static str, String); 4]) {
        let period = now.div_euclid(PERIOD);
        if period != self.period {
            (self.period, self.spent) = (period, 0);
        }
        let has_room = self.spent < self.requests;
        if has_room {
            self.spent += 1;
        }
        let reset = PERIOD - now.rem_euclid(PERIOD);
        let headers = [
            ("x-ratelimit-limit", self.requests.to_string()),
            ("x-ratelimit-period", PERIOD.to_string()),
            ("x-ratelimit-remaining", (self.requests - self.spent).to_string()),
            ("x-ratelimit-reset", reset.to_string()),
        ];
        (has_room, headers)
    }
}

fn keys_are_right(headers: &HeaderMap) -> bool {
    let is = |name: &str, expected: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes() == expected.as_bytes())
    };
    (is("dd-api-key", API_KEY) && is("dd-application-key", APP_KEY))
        || is(header::AUTHORIZATION.as_str(), "Bearer ddpat_sandbox")
}

fn answer(parameters: &Parameters, now: i64) -> (StatusCode, Json<Value>) {
    let seconds = |text: &Option<String>| text.as_deref()?.parse::<i64>().ok();
    let (Some(from), Some(to), Some(text)) =
        (seconds(&parameters.from), seconds(&parameters.to), &parameters.query)
    else {
        let errors = json!({"errors": ["`from`, `to` and `query` are required"]});
        return (StatusCode::BAD_REQUEST, Json(errors));
    };
    if from > LATEST || to > LATEST {
        return (StatusCode::OK, Json(reply(text, from, to, "error", "Internal error", &[])));
    }
    let (from, to) = (from.max(now - RETENTION), to.min(now));
    let Some(parts) = grammar::split(text) else {
        return (StatusCode::OK, Json(malformed(text, from, to, text.len())));
    };
    let mut queries = Vec::with_capacity(parts.len());
    for part in parts {
        match SimulatedQuery::parse(part) {
            Ok(mut query) => {
                query.fit(from, to);
                queries.push(query);
            }
            // One bad query rejects the whole call.
            Err(at) => return (StatusCode::OK, Json(malformed(part, from, to, at))),
        }
    }
    // Several queries are padded with nulls to the finest step among them.
    let finest = queries.iter().map(|query| query.step).min().unwrap_or(1);
    let series: Vec<Value> = queries
        .iter()
        .enumerate()
        .flat_map(|(index, query)| {
            let found = query.answer(from, to, now);
            found.into_iter().map(move |series| show(index, query, &series, finest))
        })
        .collect();
    (StatusCode::OK, Json(reply(text, from, to, "ok", "", &series)))
}

fn malformed(query: &str, from: i64, to: i64, at: usize) -> Value {
    let rest = query.get(at..).unwrap_or_default();
    let error = format!(
        "Error parsing query: \nunable to parse {query}: Rule 'query' didn't match at '{rest}' \
         (line 1, column {}).",
        at + 1
    );
    reply(query, from, to, "error", &error, &[])
}

fn reply(query: &str, from: i64, to: i64, status: &str, error: &str, series: &[Value]) -> Value {
    let mut reply = json!({
        "status": status,
        "res_type": "time_series",
        "resp_version": 1,
        "query": query,
        "from_date": from.saturating_mul(1_000),
        "to_date": to.saturating_mul(1_000),
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

fn show(index: usize, query: &SimulatedQuery, series: &SimulatedSeries, finest: i64) -> Value {
    let mut points: Vec<Value> = Vec::new();
    for (start, value) in &series.points {
        points.push(json!([start * 1_000, value]));
        let padding = (1..query.step / finest).map(|n| json!([(start + n * finest) * 1_000, null]));
        points.extend(padding);
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
        let parameters = Parameters {
            from: Some("900".into()),
            to: Some("1000".into()),
            query: Some(query.into()),
        };
        answer(&parameters, 1_000).1.0
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
        let parameters = Parameters {
            from: Some("0".into()),
            to: Some("1790000000".into()),
            query: Some("avg:sandbox.flat{*}".into()),
        };
        let reply = answer(&parameters, 1_790_000_000).1.0;
        assert_eq!(reply["series"][0]["interval"], 1_730);
        let points = reply["series"][0]["pointlist"].as_array().unwrap().len();
        assert!((1_400..=1_500).contains(&points), "{points} points");
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

    #[test]
    fn the_limit_is_true_and_ends_with_the_calendars_hour() {
        let mut limit = Limit { requests: 2, period: 0, spent: 0 };
        let mut spend = |now| {
            let (has_room, headers) = limit.spend(now);
            (has_room, headers[2].1.clone(), headers[3].1.clone())
        };
        assert_eq!(spend(7_000), (true, "1".into(), "200".into()));
        assert_eq!(spend(7_100), (true, "0".into(), "100".into()));
        assert_eq!(spend(7_199), (false, "0".into(), "1".into()));
        assert_eq!(spend(7_200), (true, "1".into(), "3600".into()));
    }
}
