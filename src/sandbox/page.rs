//! The page of the simulation: its metrics, the rate limit, what is broken, what was asked.

use std::sync::Arc;

use axum::{
    extract::State as Extract,
    http::header,
    response::{Html, IntoResponse},
};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    broken::Faults,
    catalogue::{INTERVAL, METRICS, Metric, Sample},
    fault::Fault,
    limit::Standing,
    metric,
    sparkline::sparkline,
    state::{Addresses, Asked, Simulation, State},
};
use crate::{source::datadog::wall_clock, words::shorten};

/// How much of a metric is drawn, in seconds.
const DRAWN: i64 = 300;
/// Most characters that are shown of a query.
const MAX_SHOWN: usize = 200;
const STYLE: &str = include_str!("page.css");
/// Nothing is loaded, and nothing runs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) async fn show(Extract(simulation): Extract<Arc<Simulation>>) -> impl IntoResponse {
    let state = simulation.state().clone();
    let page = render(&state, simulation.addresses, wall_clock().as_second());
    let headers = [(header::CONTENT_SECURITY_POLICY, POLICY), (header::CACHE_CONTROL, "no-store")];
    (headers, Html(page.into_string()))
}

fn render(state: &State, addresses: Addresses, now: i64) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content="5";
                title { "A simulated Datadog and Cluster Agent" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "A simulated Datadog and Cluster Agent" }
                p.quiet {
                    "At " code { "http://" (addresses.datadog) } " and "
                    code { "https://" (addresses.agent) } " as of " (time_of_day(now))
                    " UTC. This page reloads itself every five seconds."
                }
                (banner(&state.faults))
                h2 { "Rate limit of Datadog" }
                (limit(&state.standing(now)))
                h2 { "What they were asked" }
                (asked(state.asked()))
                h2 { "Metrics" }
                (metrics(now))
                h2 { "Faults" }
                (faults(addresses))
            }
        }
    }
}

fn banner(faults: &Faults) -> Markup {
    if faults.iter().next().is_none() {
        return html! { p.banner.sound { "Nothing is broken." } };
    }
    html! {
        div.banner.broken {
            strong { "Broken" }
            ul {
                @for on in faults.iter() {
                    li {
                        strong { (on.breakage.fault) }
                        @match &on.breakage.query {
                            Some(query) => { " for " code { (shorten(query, MAX_SHOWN)) } }
                            None => " for all queries",
                        }
                        ", since " (time_of_day(on.since)) ": " (on.breakage.fault.about())
                    }
                }
            }
        }
    }
}

fn limit(standing: &Standing) -> Markup {
    let (minutes, seconds) = (standing.resets_in / 60, standing.resets_in % 60);
    let is_spent = standing.left() == 0;
    html! {
        dl {
            div { dt { "Requests an hour" } dd { (standing.requests) } }
            div { dt { "Spent by us" } dd { (standing.spent) } }
            div { dt { "Spent by a neighbour" } dd { (standing.by_neighbour) } }
            div { dt { "Left" } dd class=[is_spent.then_some("bad")] { (standing.left()) } }
            div { dt { "Resets in" } dd { (minutes) " min " (seconds) " s" } }
        }
    }
}

fn asked<'a>(all: impl Iterator<Item = &'a Asked>) -> Markup {
    let mut all = all.peekable();
    if all.peek().is_none() {
        return html! { p.quiet { "Nothing yet." } };
    }
    html! {
        // It scrolls by itself, so that what follows stays where it is.
        div.asked tabindex="0" {
            table {
                thead { tr { th.time { "UTC" } th { "Query or DatadogMetric" } th.answer { "Answer" } } }
                tbody { @for asked in all { (one_asked(asked)) } }
            }
        }
    }
}

fn one_asked(asked: &Asked) -> Markup {
    let is_bad = asked.status != Some(200) || !asked.note.is_empty();
    html! {
        tr {
            td.time { (time_of_day(asked.at)) }
            td {
                code { (asked.query) }
                @if let Some((from, to)) = asked.window {
                    small { (to.saturating_sub(from)) " s until " (time_of_day(to)) }
                }
            }
            td.answer.bad[is_bad] {
                @match asked.status {
                    Some(status) => (status),
                    None => "none",
                }
                @if !asked.note.is_empty() { small { (asked.note) } }
            }
        }
    }
}

fn metrics(now: i64) -> Markup {
    html! {
        table {
            thead { tr { th { "Query" } th { "DatadogMetric" } th.number { "Now" } th.picture { "Last five minutes" } } }
            tbody {
                @for metric in &METRICS {
                    @for queue in 0..metric.queues.len().max(1) { (one_metric(metric, queue, now)) }
                }
            }
        }
    }
}

fn one_metric(metric: &Metric, queue: usize, now: i64) -> Markup {
    let newest = now - now.rem_euclid(INTERVAL);
    let samples: Vec<Sample> = (0..=DRAWN / INTERVAL)
        .map(|back| metric.sample(queue, newest - DRAWN + back * INTERVAL, now))
        .collect();
    let value = match samples.last() {
        Some(Sample::Value(value)) => format!("{value:.1}"),
        Some(Sample::Null) => "null".to_owned(),
        Some(Sample::Missing) | None => "missing".to_owned(),
    };
    let called = metric::of(metric).into_iter().map(|metric| metric.name);
    // The first is that of all queues.
    let called: Vec<String> = if metric.queues.is_empty() {
        called.collect()
    } else {
        called.skip(queue + 1).take(1).collect()
    };
    let filter = metric.queues.get(queue).map_or("*".to_owned(), |queue| format!("queue:{queue}"));
    html! {
        tr {
            td { code { "avg:" (metric.name) "{" (filter) "}" } small { (metric.about) } }
            td { code { (called.concat()) } }
            td.number { (value) }
            td.picture { (sparkline(&samples)) }
        }
    }
}

fn faults(addresses: Addresses) -> Markup {
    let address = addresses.datadog;
    html! {
        p { "For all queries, for one, for one DatadogMetric, and mended:" }
        pre {
            code {
                "curl -X PUT http://" (address) "/faults/504\n"
                "curl -X PUT -G --data-urlencode 'query=avg:sandbox.steps{*}' http://" (address)
                "/faults/empty\n"
                "curl -X PUT -G --data-urlencode 'query=datadogmetric@demo:steps' http://" (address)
                "/faults/stale\n"
                "curl -X DELETE http://" (address) "/faults"
            }
        }
        p.quiet { "What is broken, as JSON: " a href="/faults" { "/faults" } }
        table {
            thead { tr { th { "Name" } th { "What is seen" } } }
            tbody {
                @for fault in Fault::ALL {
                    tr {
                        td { strong { (fault) } }
                        td {
                            (fault.about())
                            small { code { "curl -X PUT http://" (address) "/faults/" (fault) } }
                        }
                    }
                }
            }
        }
    }
}

/// An instant in seconds since the epoch; it may be anybody's number.
fn time_of_day(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .map_or_else(|_| "no time".to_owned(), |at| at.strftime("%H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(breakages: &[&str], asked: &[(&str, Option<u16>, &str)]) -> String {
        let breakages = breakages.iter().map(|text| text.parse().unwrap()).collect();
        let at = |port| ([127, 0, 0, 1], port).into();
        let addresses = Addresses { datadog: at(8_282), agent: at(8_283) };
        let simulation = Simulation::new(addresses, 1_600, Faults::new(breakages, 43_200).unwrap());
        let mut state = simulation.state();
        for (query, status, note) in asked {
            let (query, note) = ((*query).to_owned(), (*note).to_owned());
            let window = Some((43_110, 43_200));
            state.remember(Asked { at: 43_201, query, window, status: *status, note });
        }
        render(&state, addresses, 43_205).into_string()
    }

    #[track_caller]
    fn check(page: &str, expected: &[&str]) {
        for text in expected {
            assert!(page.contains(text), "no {text} in\n{page}");
        }
    }

    #[test]
    fn what_came_from_outside_is_text() {
        let script = "<script>alert(1)</script>";
        let page =
            page(&[&format!("504={script}\u{1b}")], &[(script, Some(200), "unable to parse <b>")]);
        assert!(!page.contains("<script"), "{page}");
        let shown = "<code>&lt;script&gt;alert(1)&lt;/script&gt;";
        check(&page, &[&format!("{shown} </code>"), &format!("{shown}</code>"), "parse &lt;b&gt;"]);
    }

    #[test]
    fn a_long_query_is_shortened() {
        let page = page(&[&format!("504={}", "x".repeat(999))], &[]);
        check(&page, &[&format!(">{}…<", "x".repeat(MAX_SHOWN))]);
    }

    #[test]
    fn what_is_broken_is_told_first_and_what_can_be_at_the_end() {
        check(&page(&[], &[]), &["Nothing is broken.", "Nothing yet."]);
        let page = page(&["neighbour", "null=avg:sandbox.sine{*}"], &[]);
        check(
            &page,
            &[
                "<strong>neighbour</strong> for all queries, since 12:00:00: Datadog only: somebody else",
                "<strong>null</strong> for <code>avg:sandbox.sine{*}</code>, since 12:00:00",
                "Spent by a neighbour</dt><dd>800</dd>",
                "Left</dt><dd>800</dd>",
                "Resets in</dt><dd>59 min 55 s</dd>",
            ],
        );
        for fault in Fault::ALL {
            let line = format!("<code>curl -X PUT http://127.0.0.1:8282/faults/{fault}</code>");
            check(&page, &[fault.about(), &line]);
        }
    }

    #[test]
    fn a_request_is_told_with_its_window_and_answer() {
        let page = page(&[], &[("avg:a{*}", Some(200), ""), ("avg:b{*}", None, "fault hang")]);
        let query =
            |name| format!("<code>avg:{name}{{*}}</code><small>90 s until 12:00:00</small>");
        check(
            &page,
            &[
                &format!(r#"{}</td><td class="answer">200</td>"#, query("a")),
                &format!(
                    r#"{}</td><td class="answer bad">none<small>fault hang</small></td>"#,
                    query("b")
                ),
                r#"<td class="time">12:00:01</td>"#,
            ],
        );
        assert!(page.find("avg:b{*}") < page.find("avg:a{*}"), "the latest is not the first");
    }

    #[test]
    fn each_metric_is_shown_with_its_value() {
        check(
            &page(&[], &[]),
            &[
                r#"<code>avg:sandbox.flat{*}</code><small>12, always</small></td><td><code>flat</code></td><td class="number">12.0</td>"#,
                "<code>avg:sandbox.queue.length{queue:images}</code>",
                "<code>queue-length-images</code>",
                r#"seconds</small></td><td><code>late</code></td><td class="number">null</td>"#,
                r#"third point is missing</small></td><td><code>gaps</code></td><td class="number">missing</td>"#,
                r#"aria-label="between 0.0 and 20.0""#,
            ],
        );
    }
}
