//! As much of Datadog's query language as the simulation answers:
//! `sum:sandbox.queue.length{queue:orders} by {queue}.rollup(max, 60).as_rate()`.

use super::catalogue::{INTERVAL, Metric, Sample, find};

/// <https://docs.datadoghq.com/dashboards/functions/rollup/>
const MAX_POINTS: i64 = 1_500;
/// Width of a bucket, in seconds; what is older than that is not kept anyway.
const WIDEST: i64 = 30 * 86_400;

/// One top-level query.
#[derive(Debug, PartialEq)]
pub(super) struct SimulatedQuery {
    space: Method,
    name: String,
    /// `*` is empty.
    filter: Vec<(String, String)>,
    by_queue: bool,
    time: Method,
    /// Width of a bucket, in seconds.
    pub(super) step: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    Average,
    Max,
    Min,
    Sum,
}

/// A series that `SimulatedQuery::answer` found.
#[derive(Debug, PartialEq)]
pub(super) struct SimulatedSeries {
    pub(super) scope: String,
    /// The group's own tags, `queue:orders`.
    pub(super) tags: Vec<String>,
    /// Bucket start in seconds since the epoch, and its value or null; only buckets that exist.
    pub(super) points: Vec<(i64, Option<f64>)>,
}

impl SimulatedQuery {
    /// Where it stops making sense, as an offset in bytes.
    pub(super) fn parse(text: &str) -> Result<Self, usize> {
        let trimmed = text.trim();
        let indent = text.len() - text.trim_start().len();
        let mut rest = Rest { text: trimmed, at: 0 };
        Self::parse_rest(&mut rest).ok_or(indent + rest.at)
    }

    fn parse_rest(rest: &mut Rest<'_>) -> Option<Self> {
        let mut space = Method::Average;
        let mut name = rest.take_while(is_name);
        if rest.eat(":") {
            space = method(name)?;
            name = rest.take_while(is_name);
        }
        if name.is_empty() {
            return None;
        }
        let filter = rest.braces()?;
        let filter = if filter.trim() == "*" {
            Vec::new()
        } else {
            let pairs = filter.split(',').map(|tag| {
                let (key, value) = tag.trim().split_once(':')?;
                (!tag.trim().contains(' ')).then(|| (key.to_owned(), value.to_owned()))
            });
            pairs.collect::<Option<_>>()?
        };
        rest.take_while(|c| c == ' ');
        let mut by_queue = false;
        if rest.eat("by") {
            rest.take_while(|c| c == ' ');
            by_queue = rest.braces()?.split(',').any(|tag| tag.trim() == "queue");
        }
        let (mut time, mut step) = (Method::Average, INTERVAL);
        while rest.eat(".") {
            match rest.take_while(is_name) {
                "as_rate" | "as_count" if rest.eat("()") => {}
                "rollup" => {
                    let arguments = rest.parentheses()?;
                    for argument in arguments.split(',').map(str::trim) {
                        match argument.parse::<i64>() {
                            Ok(seconds) if seconds > 0 => step = seconds.clamp(INTERVAL, WIDEST),
                            _ => time = method(argument)?,
                        }
                    }
                }
                _ => return None,
            }
        }
        rest.text.is_empty().then(|| Self {
            space,
            name: name.to_owned(),
            filter,
            by_queue,
            time,
            step,
        })
    }

    pub(super) fn metric(&self) -> &str {
        &self.name
    }

    pub(super) fn aggregator(&self) -> &'static str {
        match self.space {
            Method::Average => "avg",
            Method::Max => "max",
            Method::Min => "min",
            Method::Sum => "sum",
        }
    }

    /// Widens the buckets until there are no more than Datadog gives.
    pub(super) fn fit(&mut self, from: i64, to: i64) {
        let narrowest = to.saturating_sub(from).max(0) / MAX_POINTS;
        self.step = self.step.max((narrowest / INTERVAL + 1) * INTERVAL);
    }

    /// No series if the metric is unknown or the filter matches nothing, as with Datadog.
    pub(super) fn answer(&self, from: i64, to: i64, now: i64) -> Vec<SimulatedSeries> {
        let Some(metric) = find(&self.name) else { return Vec::new() };
        let members: Vec<usize> = (0..metric.queues.len().max(1))
            .filter(|member| {
                self.filter.iter().all(|(key, value)| {
                    key == "queue" && metric.queues.get(*member) == Some(&value.as_str())
                })
            })
            .collect();
        if members.is_empty() {
            return Vec::new();
        }
        let groups: Vec<Vec<usize>> = if self.by_queue && !metric.queues.is_empty() {
            members.into_iter().map(|member| vec![member]).collect()
        } else {
            vec![members]
        };
        groups.iter().map(|group| self.series(metric, group, (from, to), now)).collect()
    }

    fn series(
        &self,
        metric: &Metric,
        group: &[usize],
        (from, to): (i64, i64),
        now: i64,
    ) -> SimulatedSeries {
        let tags: Vec<String> = match (self.by_queue, group) {
            (true, [member]) => {
                metric.queues.get(*member).map(|q| format!("queue:{q}")).into_iter().collect()
            }
            _ => self.filter.iter().map(|(key, value)| format!("{key}:{value}")).collect(),
        };
        let scope = if tags.is_empty() { "*".to_owned() } else { tags.join(",") };
        let step = self.step;
        let first = (from + step - 1).div_euclid(step) * step;
        let buckets = (0..).map(|n| first + n * step).take_while(|start| *start <= to);
        let points = buckets.filter_map(|start| match self.bucket(metric, group, start, now) {
            Sample::Value(value) => Some((start, Some(value))),
            Sample::Null => Some((start, None)),
            Sample::Missing => None,
        });
        let tags = if self.by_queue { tags } else { Vec::new() };
        SimulatedSeries { scope, tags, points: points.collect() }
    }

    /// First over time, then over the group.
    fn bucket(&self, metric: &Metric, group: &[usize], start: i64, now: i64) -> Sample {
        let mut has_null = false;
        let mut of_members = Vec::new();
        for member in group {
            let first = (start + INTERVAL - 1).div_euclid(INTERVAL) * INTERVAL;
            let samples = (0..).map(|n| first + n * INTERVAL);
            let mut values = Vec::new();
            for at in samples.take_while(|at| *at < start + self.step && *at <= now) {
                match metric.sample(*member, at, now) {
                    Sample::Value(value) => values.push(value),
                    Sample::Null => has_null = true,
                    Sample::Missing => {}
                }
            }
            of_members.extend(self.time.fold(&values));
        }
        match self.space.fold(&of_members) {
            Some(value) => Sample::Value(value),
            None if has_null => Sample::Null,
            None => Sample::Missing,
        }
    }
}

impl Method {
    fn fold(self, values: &[f64]) -> Option<f64> {
        let folded = values.iter().copied().reduce(|a, b| match self {
            Self::Average | Self::Sum => a + b,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
        })?;
        #[expect(clippy::cast_precision_loss, reason = "there are few values")]
        let count = values.len() as f64;
        Some(if self == Self::Average { folded / count } else { folded })
    }
}

fn method(name: &str) -> Option<Method> {
    Some(match name {
        "avg" => Method::Average,
        "max" => Method::Max,
        "min" => Method::Min,
        "sum" | "count" => Method::Sum,
        _ => return None,
    })
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// What is yet to be read, and how much has been.
struct Rest<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.text.split_at(length);
        self.text = rest;
        self.at += length;
        taken
    }

    fn take_while(&mut self, matches: impl Fn(char) -> bool) -> &'a str {
        let length = self.text.find(|c| !matches(c)).unwrap_or(self.text.len());
        self.take(length)
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.text.starts_with(token);
        if found {
            self.take(token.len());
        }
        found
    }

    fn braces(&mut self) -> Option<&'a str> {
        self.between("{", '}')
    }

    fn parentheses(&mut self) -> Option<&'a str> {
        self.between("(", ')')
    }

    fn between(&mut self, open: &str, close: char) -> Option<&'a str> {
        if !self.text.starts_with(open) {
            return None;
        }
        let end = self.text.find(close)?;
        self.take(open.len());
        let inside = self.take(end - open.len());
        self.take(close.len_utf8());
        Some(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scope and newest value of each series, seen at second 1000.
    #[track_caller]
    fn check(query: &str, expected: &[(&str, Option<f64>)]) {
        let series = SimulatedQuery::parse(query).expect("it parses").answer(900, 1_000, 1_000);
        let newest: Vec<(&str, Option<f64>)> = series
            .iter()
            .map(|s| (&*s.scope, s.points.last().and_then(|(_, value)| *value)))
            .collect();
        assert_eq!(newest, expected);
    }

    #[test]
    fn queries_are_answered_from_the_catalogue() {
        check("avg:sandbox.flat{*}", &[("*", Some(12.0))]);
        check("sandbox.flat{*}.as_count().rollup(sum, 20)", &[("*", Some(12.0))]);
        check("avg:sandbox.flat{*}.rollup(sum, 30)", &[("*", Some(24.0))]);
        check("avg:sandbox.flat{*}.rollup(sum, 9223372036854775807)", &[("*", None)]);
        check("avg:sandbox.late{*}", &[("*", None)]);
        check("avg:sandbox.flat{env:prod}", &[]);
        check("avg:sandbox.unheard{*}", &[]);
    }

    #[test]
    fn groups_are_series_of_their_own() {
        let scopes = |query| {
            let series = SimulatedQuery::parse(query).expect("it parses").answer(900, 1_000, 1_000);
            series.into_iter().map(|series| series.scope).collect::<Vec<_>>()
        };
        let all = ["queue:orders", "queue:mails", "queue:images"];
        assert_eq!(scopes("max:sandbox.queue.length{*} by {queue}"), all);
        assert_eq!(scopes("max:sandbox.queue.length{*}by{queue}.as_rate()"), all);
        assert_eq!(scopes("max:sandbox.queue.length{queue:mails} by {queue}"), all[1..2]);
        assert_eq!(scopes("max:sandbox.queue.length{*}"), ["*"]);
    }

    #[test]
    fn a_malformed_query_says_where() {
        for (query, at) in [
            ("avg:a{x y}", 10),
            ("{*}", 0),
            ("nope:a{*}", 5),
            ("avg:a", 5),
            ("avg:a{*}.later()", 14),
            ("avg:a{*} / 2", 9),
        ] {
            assert_eq!(SimulatedQuery::parse(query), Err(at), "{query}");
        }
    }
}
