//! A comparison as a person reads it: one line for each query, and below it what differs.

use super::{
    BOLD, DIM, GREEN, MAX_TEXT, NARROWEST, Page, RED, WIDEST, YELLOW, instant, number,
    series::period,
};
use crate::{
    check::{
        compare::MAX_COMPARED,
        comparison::{
            Change, Compared, Comparison, Difference, LeftOut, Made, Points, Together, Verdict,
        },
    },
    words::shorten,
};

/// Most scopes that are listed; JSON has all.
const MAX_SCOPES: usize = 5;
/// Most characters of one.
const MAX_SCOPE: usize = 100;

/// Before anything is asked.
pub(in crate::check) fn opening(comparison: &Comparison, width: usize) -> String {
    let mut page = Page::new(width);
    let Comparison { host, keys, settled_seconds, .. } = comparison;
    page.line(format_args!("{BOLD}Queries together and alone{BOLD:#}"));
    if let (Some(host), Some(keys)) = (host, keys) {
        page.paragraph(&format!("{host}, with the keys of {keys}"));
    }
    page.paragraph(&format!(
        "windows end {settled_seconds} s earlier than they would, since newer points still change"
    ));
    page.text
}

/// What is said of a request for several.
pub(in crate::check) fn together(together: &Together, queries: usize, width: usize) -> String {
    let mut page = Page::new(width);
    let of_when = match together.window {
        Some(window) => format!(", {}", period(window)),
        None => format!(" of {} s", together.age_seconds),
    };
    page.heading(&format!("{queries} queries in one request{of_when}"));
    if let Some(error) = &together.error {
        let then = together.then.map(|then| format!("; {then}")).unwrap_or_default();
        let error = shorten(error, MAX_TEXT);
        page.paragraph(&format!("it failed as a whole: {error}{then}"));
    }
    page.text
}

/// What is said of one of its queries.
pub(in crate::check) fn query(compared: &Compared, together: &Together, width: usize) -> String {
    let mut page = Page::new(width);
    // How many there are is said in the end.
    if compared.verdict == Verdict::Unasked {
        return page.text;
    }
    page.compared(compared);
    for difference in &compared.differences {
        page.detail(&in_words(difference));
    }
    // What failed as a whole has been said.
    let together_error = compared.together_error.as_ref().filter(|_| together.error.is_none());
    if let Some(error) = together_error {
        page.detail(&format!("together: {error}"));
    }
    match &compared.alone_error {
        Some(error) => page.detail(&format!("alone: {error}")),
        None if compared.together_error.is_some() => page.detail("alone it is answered"),
        None => {}
    }
    page.text
}

/// What is left to say in the end.
pub(in crate::check) fn summary(comparison: &Comparison, width: usize) -> String {
    let mut page = Page::new(width);
    let of_verdict = |verdict| comparison.queries().filter(move |c| c.verdict == verdict);
    if of_verdict(Verdict::Alone).next().is_some() {
        page.heading("Sent alone by the server too, and not asked for");
        for compared in of_verdict(Verdict::Alone) {
            page.compared(compared);
        }
    }
    if comparison.stopped.is_some() {
        // The reason stands where it was met.
        page.line(format_args!("\n{RED}stopped{RED:#}, since no other request would be answered"));
    }
    page.line(format_args!("\n{BOLD}{}{BOLD:#}", verdict(comparison)));
    page.left_out(comparison.left_out);
    for unreadable in &comparison.unreadable {
        page.line(format_args!("{RED}{:>7}{RED:#}  {}", "error", shorten(unreadable, MAX_TEXT)));
    }
    page.text
}

/// The last line.
fn verdict(comparison: &Comparison) -> String {
    let shared: Vec<&Together> =
        comparison.batches.iter().filter(|batch| batch.queries.len() > 1).collect();
    let queries: usize = shared.iter().map(|batch| batch.queries.len()).sum();
    if queries == 0 {
        return "nothing to compare: no two queries share a request".to_owned();
    }
    let of_verdict = |verdict| comparison.queries().filter(|c| c.verdict == verdict).count();
    let (equal, differ) = (of_verdict(Verdict::Equal), of_verdict(Verdict::Differs));
    let counts = [
        (differ, if differ == 1 { "differs" } else { "differ" }),
        (of_verdict(Verdict::Failed), "failed"),
        (of_verdict(Verdict::Unasked), "not compared"),
        (comparison.queries().filter(|compared| compared.is_empty()).count(), "without data"),
    ];
    let mut found = match equal {
        0 => Vec::new(),
        equal if equal == queries => vec!["all equal".to_owned()],
        equal => vec![format!("{equal} equal")],
    };
    let others = counts.iter().filter(|(count, _)| *count > 0);
    found.extend(others.map(|(count, word)| format!("{count} {word}")));
    let found = found.join(", ");
    let requests = counted(shared.len(), "request", "requests");
    let in_all = counted(comparison.requests, "request was", "requests were");
    format!("{queries} queries in {requests} and alone: {found}; {in_all} made")
}

fn in_words(difference: &Difference) -> String {
    match difference {
        Difference::Series { together, alone, only_together, only_alone } => {
            let counts =
                format!("{} together, {alone} alone", counted(*together, "series", "series"));
            let lists = [("together", only_together), ("alone", only_alone)];
            let lists = lists
                .iter()
                .filter(|(_, scopes)| !scopes.is_empty())
                .map(|(when, scopes)| format!("; only {when}: {}", listed(scopes)));
            counts + &lists.collect::<String>()
        }
        Difference::Points(points) => points_in_words(points),
        Difference::Interval { series, scope, together_seconds, alone_seconds } => {
            let width = |seconds: &Option<u64>| match seconds {
                Some(seconds) => format!("{seconds} s"),
                None => "not known".to_owned(),
            };
            let more = match series - 1 {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!(
                "width of a bucket, for `lastAvailablePointOffset: auto`: {} together, {} alone \
                 ({}{more})",
                width(together_seconds),
                width(alone_seconds),
                shown(scope)
            )
        }
        Difference::Value { trigger, together, alone } => {
            let value = |made: &Made| match made {
                Made::Value { value } => exact(*value),
                Made::Nothing { message } => format!("none ({message})"),
            };
            let apart = match (together, alone) {
                (Made::Value { value: together }, Made::Value { value: alone }) => {
                    format!(", {} apart", number((together - alone).abs()))
                }
                _ => String::new(),
            };
            let trigger = shorten(trigger, MAX_TEXT);
            format!(
                "value of {trigger}: {} together, {} alone{apart}",
                value(together),
                value(alone)
            )
        }
    }
}

fn points_in_words(points: &Points) -> String {
    let mut parts = Vec::new();
    if let Some(change) = &points.furthest {
        let Change { scope, at_ms, together, alone } = change;
        parts.push(format!(
            "another value at {}, at most {} apart: {} together, {} alone ({} at {})",
            counted(points.changed, "point", "points"),
            number(change.apart()),
            exact(*together),
            exact(*alone),
            shown(scope),
            instant(*at_ms, "%H:%M:%S"),
        ));
    }
    for (count, when) in [(points.only_together, "together"), (points.only_alone, "alone")] {
        if count > 0 {
            parts.push(format!("{} only {when}", counted(count, "point", "points")));
        }
    }
    parts.join("; ")
}

fn listed(scopes: &[String]) -> String {
    let mut list: Vec<String> = scopes.iter().take(MAX_SCOPES).map(|scope| shown(scope)).collect();
    if scopes.len() > MAX_SCOPES {
        list.push(format!("and {} more", scopes.len() - MAX_SCOPES));
    }
    list.join(", ")
}

fn shown(scope: &str) -> String {
    shorten(if scope.is_empty() { "*" } else { scope }, MAX_SCOPE)
}

/// Every digit: two that differ are to look different.
fn exact(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

impl Page {
    fn new(width: usize) -> Self {
        Self { text: String::new(), width: width.clamp(NARROWEST, WIDEST) }
    }

    fn compared(&mut self, compared: &Compared) {
        let (style, word) = match compared.verdict {
            Verdict::Equal => (GREEN, "equal"),
            Verdict::Differs => (RED, "differs"),
            Verdict::Failed => (RED, "failed"),
            Verdict::Alone => (DIM, "alone"),
            Verdict::Unasked => (YELLOW, "unasked"),
        };
        let query = shorten(&compared.query, MAX_TEXT);
        let empty = if compared.is_empty() { " (no data)" } else { "" };
        self.line(format_args!("{style}{word:>9}{style:#}  {query}{empty}"));
    }

    fn detail(&mut self, detail: &str) {
        let indent = " ".repeat(13);
        self.wrapped(&shorten(detail, MAX_TEXT), &indent, &indent);
    }

    fn left_out(&mut self, left_out: LeftOut) {
        let LeftOut { others, cluster_agent, unusable, excess } = left_out;
        let triggers = |count| counted(count, "trigger", "triggers");
        let reasons = [
            (
                cluster_agent,
                format!(
                    "{} of the Cluster Agent, which is asked for each metric by itself",
                    triggers(cluster_agent)
                ),
            ),
            (
                unusable,
                format!(
                    "{} whose metadata cannot be used (`check` alone tells why)",
                    triggers(unusable)
                ),
            ),
            (others, format!("{} of other scalers", triggers(others))),
            (excess, format!("{}, beyond {MAX_COMPARED}", counted(excess, "query", "queries"))),
        ];
        for (_, reason) in reasons.iter().filter(|(count, _)| *count > 0) {
            self.paragraph(&format!("left out: {reason}"));
        }
    }
}
