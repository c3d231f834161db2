//! As much of Datadog's query language as is needed: where one top-level query ends and the
//! next begins, and which rollup it asks for.

use std::time::Duration;

/// The queries of a comma list, in order, untrimmed: commas inside parentheses, braces,
/// brackets and quotes do not separate. `None` if a delimiter or quote is left open, for then
/// nobody can tell where a query ends. (Datadog's Cluster Agent reads it likewise:
/// `validateDatadogExternalQuery`, pkg/util/kubernetes/autoscalers/datadogexternal.go.)
pub fn split(text: &str) -> Option<Vec<&str>> {
    let mut queries = Vec::new();
    let mut start = 0;
    let mut closers = Vec::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '(') => closers.push(')'),
            (None, '{') => closers.push('}'),
            (None, '[') => closers.push(']'),
            (None, ')' | '}' | ']') => {
                let is_its_own = closers.pop() == Some(c);
                if !is_its_own {
                    return None;
                }
            }
            (None, ',') if closers.is_empty() => {
                queries.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quote.is_some() || !closers.is_empty() {
        return None;
    }
    queries.push(&text[start..]);
    Some(queries)
}

/// The longest interval that an explicit `.rollup(…)` of this one query names, as in
/// `.rollup(60)` or `.rollup(avg, 60)`.
pub fn rollup(query: &str) -> Option<Duration> {
    query
        .split(".rollup(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|arguments| arguments.split(',').next_back())
        .filter_map(|seconds| seconds.trim().parse().ok())
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&[&str]>) {
        assert_eq!(split(text).as_deref(), expected);
    }

    #[test]
    fn only_commas_at_top_level_separate() {
        check("avg:a{*}", Some(&["avg:a{*}"]));
        check("avg:a{x:1,y:2},sum:b{*} by {c,d}", Some(&["avg:a{x:1,y:2}", "sum:b{*} by {c,d}"]));
        check("top(a{*}, 5, 'mean', 'desc'),b{*}", Some(&["top(a{*}, 5, 'mean', 'desc')", "b{*}"]));
        check("a{*}.rollup(max, 300),b{t:[1,2]}", Some(&["a{*}.rollup(max, 300)", "b{t:[1,2]}"]));
        check(r#"a{t:"x,y}"},b{*}"#, Some(&[r#"a{t:"x,y}"}"#, "b{*}"]));
        check(r"f(a{*}, 'it\'s, so'),b{*}", Some(&[r"f(a{*}, 'it\'s, so')", "b{*}"]));
    }

    #[test]
    fn a_query_left_open_cannot_be_split() {
        for open in ["a{*", "a{*})", "f(a{*}", "a{x:\"y}", "a(}{)", "a]"] {
            check(open, None);
        }
    }

    #[test]
    fn a_rollup_is_read_with_and_without_its_method() {
        assert_eq!(rollup("avg:a{*}"), None);
        assert_eq!(rollup("avg:a{*}.rollup(avg)"), None);
        assert_eq!(rollup("avg:a{*}.rollup(60)"), Some(Duration::from_mins(1)));
        assert_eq!(rollup("avg:a{*}.rollup(max, 20).as_rate()"), Some(Duration::from_secs(20)));
        let ratio = "sum:a{*}.rollup(sum, 10) / sum:b{*}.rollup(sum, 30)";
        assert_eq!(rollup(ratio), Some(Duration::from_secs(30)));
    }
}
