//! Datadog's reply to `/api/v1/query`, as points. Tolerant: everything but `status` may be
//! missing, and what is odd in one place does not spoil the rest. But what cannot be read is
//! never taken for "no data".

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{grammar, list::List};
use crate::demand::{Account, Point, Series};

/// Most series of one reading. More are refused, for leaving some out would change the value.
const MAX_SERIES: usize = 5_000;
/// Most points of one reading, over all its series; 16 bytes each.
const MAX_POINTS: usize = 100_000;
/// Most series of one reply, which has many readings; a client reads no more than 8 MiB of it.
const MAX_LISTED: usize = 100_000;
/// Most bytes that are kept of a scope.
const MAX_SCOPE: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// `status` is `error`, or there is an error beside an `ok`; Datadog's own words.
    Rejected(String),
    /// The reply is bigger than what is kept.
    TooLarge(String),
    /// It is not what `/api/v1/query` answers.
    NotUnderstood(String),
}

/// What each query of a request has, in their order.
pub(super) type Decoded = Vec<Result<Box<[Series]>, Unreadable>>;

/// `queries` are the texts that were sent, each of one query or of several. A series is matched by
/// its `query_index`, never by its text, which Datadog rewrites.
pub(super) fn decode(
    body: &[u8],
    queries: &[&str],
    account: &Account,
) -> Result<Decoded, Unreadable> {
    let Ok(reply) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(body) else {
        return Err(not_understood("it is not a JSON object"));
    };
    match read::<String>(reply.get("status").copied()).as_deref() {
        Some("ok") => match words(&reply)? {
            words if words.is_empty() => {}
            // Whatever came with it is perhaps not all.
            words => return Err(Unreadable::Rejected(words)),
        },
        Some("error") => return Err(Unreadable::Rejected(words(&reply).unwrap_or_default())),
        Some(_) => return Err(not_understood("its `status` is neither \"ok\" nor \"error\"")),
        None => return Err(not_understood("it has no `status`")),
    }

    let list = match reply.get("series") {
        None => List::default(),
        Some(list) => read::<List<'_, MAX_LISTED>>(Some(list))
            .ok_or_else(|| not_understood("its `series` is not a list"))?,
    };
    if list.length > MAX_LISTED {
        return Err(too_many_series(list.length));
    }

    let parts = Parts::of(queries);
    let mut found: Vec<Found> = queries.iter().map(|_| Found::default()).collect();
    for raw in &list.items {
        let fields: BTreeMap<String, &RawValue> = read(Some(raw)).unwrap_or_default();
        let index = read::<usize>(fields.get("query_index").copied());
        let place = parts.place(index).ok_or_else(|| {
            not_understood("there is a series in it that is of none of the queries")
        })?;
        let found = &mut found[place];
        found.count += 1;
        if found.is_too_large() {
            continue;
        }
        match decode_series(&fields, parts.rollup(index), parts.is_one(), account) {
            Some(decoded) => {
                found.points += decoded.series.points.len();
                found.longest = found.longest.max(decoded.length);
                found.odd += decoded.odd;
                found.series.push(decoded.series);
            }
            None => found.odd += 1,
        }
    }
    Ok(found.into_iter().map(Found::series).collect())
}

/// The single queries of a request, each with the place of the text that it stands in.
struct Parts {
    places: Vec<usize>,
    rollups: Vec<Option<Duration>>,
    texts: usize,
}

impl Parts {
    fn of(texts: &[&str]) -> Self {
        let mut parts = Self { places: Vec::new(), rollups: Vec::new(), texts: texts.len() };
        for (place, text) in texts.iter().enumerate() {
            for part in grammar::split(text).unwrap_or_else(|| vec![text]) {
                parts.places.push(place);
                parts.rollups.push(grammar::rollup(part));
            }
        }
        parts
    }

    /// Of the text that a series belongs to. If there is only one, all do.
    fn place(&self, index: Option<usize>) -> Option<usize> {
        if self.texts == 1 { Some(0) } else { self.places.get(index?).copied() }
    }

    fn rollup(&self, index: Option<usize>) -> Option<Duration> {
        match &*self.rollups {
            [one] => *one,
            several => *several.get(index?)?,
        }
    }

    /// Else the answer is padded with nulls to the finest step among them.
    fn is_one(&self) -> bool {
        self.rollups.len() == 1
    }
}

/// What was found of one text.
#[derive(Default)]
struct Found {
    series: Vec<Series>,
    /// How many there are, readable or not.
    count: usize,
    /// With a value.
    points: usize,
    /// Points of one series, with a value or without.
    longest: usize,
    /// Series and points that cannot be read.
    odd: usize,
}

impl Found {
    fn is_too_large(&self) -> bool {
        self.count > MAX_SERIES || self.points.max(self.longest) > MAX_POINTS
    }

    fn series(self) -> Result<Box<[Series]>, Unreadable> {
        if self.count > MAX_SERIES {
            return Err(too_many_series(self.count));
        }
        if self.points.max(self.longest) > MAX_POINTS {
            let what = format!("more than the {MAX_POINTS} points that are kept");
            return Err(Unreadable::TooLarge(what));
        }
        let is_empty = self.series.iter().all(|series| series.points.is_empty());
        if is_empty && self.odd > 0 {
            return Err(not_understood(
                "there are series in it, but none with a point that can be read",
            ));
        }
        Ok(self.series.into())
    }
}

/// What the reply says is wrong; empty if nothing is. `error` is a text, `errors` a list of texts.
fn words(reply: &BTreeMap<String, &RawValue>) -> Result<String, Unreadable> {
    let mut words = Vec::new();
    for name in ["error", "errors"] {
        match read::<Value>(reply.get(name).copied()).unwrap_or_default() {
            Value::Null => {}
            Value::String(text) => words.push(text),
            Value::Array(texts) if texts.iter().all(Value::is_string) => {
                words.extend(texts.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => return Err(not_understood("there is an error in it that is not a text")),
        }
    }
    Ok(words.join("; ").trim_matches([' ', ';']).to_owned())
}

struct DecodedSeries {
    series: Series,
    /// Points in the list.
    length: usize,
    /// Points that cannot be read.
    odd: usize,
}

/// `None` if it is not a series.
fn decode_series(
    fields: &BTreeMap<String, &RawValue>,
    rollup: Option<Duration>,
    is_alone: bool,
    account: &Account,
) -> Option<DecodedSeries> {
    let field = |name| fields.get(name).copied();
    let list = read::<List<'_, MAX_POINTS>>(field("pointlist"))?;
    let length = list.length;
    let (mut nulls, mut odd) = (0, 0);
    let mut points = Vec::with_capacity(list.items.len());
    for raw in list.items {
        // Milliseconds come as an integer or as a float, the value may be null.
        match read::<(f64, Option<f64>)>(Some(raw)) {
            #[expect(clippy::cast_possible_truncation, reason = "a cast saturates")]
            Some((at_ms, Some(value))) => points.push(Point { at_ms: at_ms as i64, value }),
            Some((_, None)) => nulls += 1,
            None => odd += 1,
        }
    }
    points.sort_by_key(|point| point.at_ms);

    let step = rollup.or_else(|| smallest_gap(&points)).or_else(|| {
        // Seconds, whatever the API's specification says: a recorded answer of a day has 300.
        let interval = read::<u64>(field("interval")).filter(|s| is_alone && *s > 0);
        interval.map(Duration::from_secs)
    });
    let scope = read::<String>(field("scope")).unwrap_or_default();
    let mut scope = account.redact(&scope);
    scope.truncate(scope.floor_char_boundary(MAX_SCOPE));
    let series = Series { scope: scope.into(), step, nulls, points: points.into() };
    Some(DecodedSeries { series, length, odd })
}

/// The width of the buckets as the points show it: a batch and an arithmetic query are padded
/// with nulls to a finer step than `interval` says.
fn smallest_gap(points: &[Point]) -> Option<Duration> {
    points
        .windows(2)
        .filter_map(|pair| u64::try_from(pair[1].at_ms.saturating_sub(pair[0].at_ms)).ok())
        .filter(|gap| *gap > 0)
        .min()
        .map(Duration::from_millis)
}

/// `None` if it is missing or of another type.
fn read<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

fn too_many_series(count: usize) -> Unreadable {
    Unreadable::TooLarge(format!("{count} series, more than the {MAX_SERIES} that are kept"))
}

fn not_understood(what: &str) -> Unreadable {
    Unreadable::NotUnderstood(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::scripted::account;

    fn decode(body: &[u8], query: &str) -> Result<Box<[Series]>, Unreadable> {
        super::decode(body, &[query], &account())?.pop().expect("one query has one outcome")
    }

    /// Scope, step in seconds and values of each series.
    #[track_caller]
    fn check(body: &str, expected: &[(&str, Option<u64>, &[f64])]) {
        let decoded = decode(body.as_bytes(), "avg:a{*}").expect("the reply is sound");
        let shown: Vec<(&str, Option<u64>, Vec<f64>)> = decoded
            .iter()
            .map(|s| {
                let values = s.points.iter().map(|p| p.value).collect();
                (&*s.scope, s.step.map(|step| step.as_secs()), values)
            })
            .collect();
        let expected: Vec<_> =
            expected.iter().map(|(scope, step, values)| (*scope, *step, values.to_vec())).collect();
        assert_eq!(shown, expected);
    }

    #[track_caller]
    fn check_unreadable(body: &str, expected: &Unreadable) {
        assert_eq!(decode(body.as_bytes(), "avg:a{*}").as_ref(), Err(expected));
    }

    #[test]
    fn only_status_is_required() {
        check(r#"{"status":"ok"}"#, &[]);
        check(r#"{"status":"ok","series":null}"#, &[]);
        check(r#"{"status":"ok","series":[]}"#, &[]);
        check(r#"{"status":"ok","series":[{"pointlist":[]}]}"#, &[("", None, &[])]);
        check(r#"{"status":"ok","series":[{"pointlist":null}]}"#, &[("", None, &[])]);
    }

    #[test]
    fn nulls_are_left_out_and_milliseconds_may_be_floats() {
        let body = r#"{"status":"ok","series":[{"scope":"env:x","interval":20,
            "pointlist":[[1000.0,1],[2000,null],[3000.0,2.5],[4000.0,null]]}]}"#;
        check(body, &[("env:x", Some(2), &[1.0, 2.5])]);
    }

    #[test]
    fn series_of_several_queries_are_told_apart_by_their_index() {
        let queries = ["avg:a{*}", "avg:b{*}.rollup(avg, 60),avg:c{*} by {x}", "avg:d{*}", "e{*}"];
        let body = r#"{"status":"ok","series":[
            {"query_index":2,"scope":"x:2","pointlist":[[0,3]]},
            {"query_index":0,"scope":"a","interval":20,"pointlist":[[0,1]]},
            {"query_index":1,"scope":"b","pointlist":[[0,2],[10000,null]]},
            {"query_index":4,"scope":"e","pointlist":[["odd"]]},
            {"query_index":2,"scope":"x:1","pointlist":[[0,4],[5000,null],[20000,5]]}]}"#;
        let decoded = super::decode(body.as_bytes(), &queries, &account()).unwrap();
        let shown = decoded.iter().map(|series| match series {
            Ok(series) => series
                .iter()
                .map(|s| format!("{} {:?}", s.scope, s.step.map(|step| step.as_secs())))
                .collect::<Vec<_>>()
                .join(", "),
            Err(_) => "unreadable".to_owned(),
        });
        let expected = ["a None", "x:2 None, b Some(60), x:1 Some(20)", "", "unreadable"];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
        for stranger in [r#"{"pointlist":[[0,1]]}"#, r#"{"query_index":5,"pointlist":[[0,1]]}"#] {
            let body = format!(r#"{{"status":"ok","series":[{stranger}]}}"#);
            assert!(super::decode(body.as_bytes(), &queries, &account()).is_err());
        }
    }

    #[test]
    fn a_key_that_is_quoted_back_is_no_scope() {
        let body = r#"{"status":"ok","series":[{"scope":"key:the-api-key","pointlist":[]}]}"#;
        check(body, &[("key:[redacted]", None, &[])]);
    }

    #[test]
    fn a_lone_point_takes_its_step_from_the_interval() {
        let body = r#"{"status":"ok","series":[{"scope":"*","interval":300,"pointlist":[[0,7]]}]}"#;
        check(body, &[("*", Some(300), &[7.0])]);
    }

    #[test]
    fn an_odd_series_does_not_lose_the_others() {
        let body = r#"{"status":"ok","from_date":1.5,"series":[
            7, {"pointlist":"no"}, {"pointlist":[["x",1]]},
            {"scope":9,"pointlist":[[0,1],["odd"],[1000,1e999],[2000,3]]}]}"#;
        check(body, &[("", None, &[]), ("", Some(2), &[1.0, 3.0])]);
    }

    #[test]
    fn a_reply_without_a_readable_series_is_not_no_data() {
        let what = "there are series in it, but none with a point that can be read";
        let expected = Unreadable::NotUnderstood(what.into());
        for series in [
            "null",
            "{}",
            r#"{"error":"failed"}"#,
            r#"{"pointlist":[["x",1]]}"#,
            // A null beside it does not make it no data.
            r#"{"pointlist":[[1000,"5"],[2000,null]]}"#,
            r#"{"pointlist":[[1000,1e999],[2000,null]]}"#,
            r#"{"pointlist":[["x",1]]},{"pointlist":[]}"#,
            r#"7,{"pointlist":[[1,null]]}"#,
        ] {
            check_unreadable(&format!(r#"{{"status":"ok","series":[{series}]}}"#), &expected);
        }
    }

    #[test]
    fn an_error_beside_an_ok_is_an_error() {
        for (error, words) in [
            (r#""error":"timed out""#, "timed out"),
            (r#""errors":["a","b"]"#, "a; b"),
            (r#""error":"","errors":["a"]"#, "a"),
        ] {
            for series in ["", r#"{"pointlist":[[0,1]]}"#] {
                let body = format!(r#"{{"status":"ok",{error},"series":[{series}]}}"#);
                check_unreadable(&body, &Unreadable::Rejected(words.into()));
            }
        }
        for error in [r#""error":{"message":"a"}"#, r#""errors":[{"detail":"a"}]"#, r#""error":1"#]
        {
            let what = "there is an error in it that is not a text";
            let body = format!(r#"{{"status":"ok",{error},"series":[]}}"#);
            check_unreadable(&body, &Unreadable::NotUnderstood(what.into()));
        }
        check(r#"{"status":"ok","error":"","errors":[],"series":[]}"#, &[]);
        check(r#"{"status":"ok","error":null,"series":[]}"#, &[]);
    }

    #[test]
    fn a_reply_of_another_shape_is_not_understood() {
        for (body, what) in [
            ("", "it is not a JSON object"),
            ("<html>", "it is not a JSON object"),
            (r#"[{"status":"ok"}]"#, "it is not a JSON object"),
            (r#"{"series":[]}"#, "it has no `status`"),
            (r#"{"status":1}"#, "it has no `status`"),
            (r#"{"status":"warn"}"#, "its `status` is neither \"ok\" nor \"error\""),
            (r#"{"status":"ok","series":{}}"#, "its `series` is not a list"),
        ] {
            check_unreadable(body, &Unreadable::NotUnderstood(what.into()));
        }
    }

    #[test]
    fn datadogs_own_words_are_kept() {
        check_unreadable(
            r#"{"status":"error","error":"Error parsing query"}"#,
            &Unreadable::Rejected("Error parsing query".into()),
        );
        check_unreadable(r#"{"status":"error"}"#, &Unreadable::Rejected(String::new()));
    }

    #[test]
    fn the_rollup_of_a_series_is_that_of_its_own_query() {
        let body = r#"{"status":"ok","series":[
            {"query_index":1,"pointlist":[[0,1],[10000,2]]},
            {"query_index":0,"pointlist":[[0,1],[10000,2]]}]}"#;
        let decoded = decode(body.as_bytes(), "avg:a{*},max:b{*}.rollup(max, 60)").unwrap();
        let steps: Vec<_> = decoded.iter().filter_map(|s| s.step).map(|s| s.as_secs()).collect();
        assert_eq!(steps, [60, 10]);
    }

    #[test]
    fn too_many_series_are_refused_rather_than_cut() {
        let body =
            format!(r#"{{"status":"ok","series":[{}]}}"#, vec!["{}"; MAX_SERIES + 1].join(","));
        let too_large = |body: &str| {
            matches!(decode(body.as_bytes(), "avg:a{*}"), Err(Unreadable::TooLarge(_)))
        };
        assert!(too_large(&body));
        // However little there is in them.
        let points = vec!["1"; MAX_POINTS + 1].join(",");
        assert!(too_large(&format!(r#"{{"status":"ok","series":[{{"pointlist":[{points}]}}]}}"#)));
    }

    /// A query as Datadog knows it: a step in seconds, whether it says so, and the values of each
    /// of its series.
    type Known = (u64, bool, Vec<Vec<Option<f64>>>);

    fn text(n: usize, (step, says_so, _): &Known) -> String {
        let rollup = if *says_so { format!(".rollup(avg, {step})") } else { String::new() };
        format!("avg:a{n}{{*}}{rollup}")
    }

    /// Datadog's reply, in which a point without a value is left out, or null where several
    /// queries are padded to the finest step among them.
    fn reply(queries: &[&Known]) -> String {
        let finest = queries.iter().map(|(step, ..)| *step).min().unwrap_or(1);
        let mut all = Vec::new();
        for (index, (step, _, series)) in queries.iter().enumerate() {
            for (n, values) in series.iter().enumerate() {
                let mut points = Vec::new();
                for (place, value) in (0u64..).zip(values) {
                    let at = place * step * 1_000;
                    if let Some(value) = value {
                        points.push(format!("[{at},{value}]"));
                    }
                    let padding = (1..step / finest).map(|n| at + n * finest * 1_000);
                    points.extend(padding.map(|at| format!("[{at},null]")));
                }
                all.push(format!(
                    r#"{{"query_index":{index},"scope":"n:{n}","pointlist":[{}]}}"#,
                    points.join(",")
                ));
            }
        }
        format!(r#"{{"status":"ok","series":[{}]}}"#, all.join(","))
    }

    fn known() -> impl Strategy<Value = Known> {
        let value = proptest::option::of(-1e6..1e6);
        let series = proptest::collection::vec(proptest::collection::vec(value, 0..12), 0..4);
        (prop::sample::select(vec![1u64, 5, 10, 20, 60]), any::<bool>(), series)
    }

    proptest! {
        #[test]
        fn a_query_reads_the_same_alone_and_in_company(
            queries in proptest::collection::vec(known(), 1..6),
        ) {
            let texts: Vec<String> = queries.iter().enumerate().map(|(n, q)| text(n, q)).collect();
            let sent: Vec<&str> = texts.iter().map(String::as_str).collect();
            let all: Vec<&Known> = queries.iter().collect();
            let together = super::decode(reply(&all).as_bytes(), &sent, &account()).unwrap();
            prop_assert_eq!(together.len(), queries.len());
            for ((text, query), together) in texts.iter().zip(&queries).zip(together) {
                let alone = decode(reply(&[query]).as_bytes(), text).unwrap();
                let shown = |series: &[Series]| -> Vec<_> {
                    series.iter().map(|s| (s.scope.clone(), s.step, s.points.clone())).collect()
                };
                prop_assert_eq!(shown(&together.unwrap()), shown(&alone));
            }
        }
    }

    proptest! {
        #[test]
        fn any_body_is_decoded_or_refused(body in any::<Vec<u8>>(), query in any::<String>()) {
            let _ = decode(&body, &query);
        }

        #[test]
        fn any_sound_reply_is_decoded(
            lists in prop::collection::vec(
                prop::collection::vec((any::<i32>(), prop::option::of(any::<i32>())), 0..9),
                0..4,
            ),
        ) {
            let series: Vec<Value> =
                lists.iter().map(|points| serde_json::json!({"pointlist": points})).collect();
            let body = serde_json::json!({"status": "ok", "series": series}).to_string();
            let decoded = decode(body.as_bytes(), "avg:a{*}").expect("it is sound");
            prop_assert_eq!(decoded.len(), lists.len());
            for (series, points) in decoded.iter().zip(&lists) {
                let values = points.iter().filter(|(_, value)| value.is_some()).count();
                prop_assert_eq!(series.points.len(), values);
                prop_assert!(series.points.is_sorted_by_key(|point| point.at_ms));
            }
        }

        #[test]
        fn any_json_in_a_reply_is_decoded_or_refused(
            points in prop::collection::vec(any_json(), 0..4),
            field in any_json(),
        ) {
            let series = serde_json::json!({
                "pointlist": points, "scope": field, "interval": field, "query_index": field,
            });
            let body = serde_json::json!({"status": "ok", "series": [series, field]}).to_string();
            if let Ok(series) = decode(body.as_bytes(), "avg:a{*},b{*}") {
                for point in series.iter().flat_map(|series| &*series.points) {
                    prop_assert!(point.value.is_finite());
                }
            }
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z0-9]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                inner.prop_map(|value| serde_json::json!({"pointlist": value})),
            ]
        })
    }
}
