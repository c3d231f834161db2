//! A report as a person reads it: plain lines that wrap, useful without colour.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Color, Style};
use textwrap::{Options, core::display_width, fill};

use super::{
    report::{Answer, Call, Examined, Finding, Hold, Level, Outcome, Replicas, Report, Step},
    watch::{Event, Happening},
};
use crate::words::shorten;

mod chart;
mod series;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GREEN: Style = coloured(AnsiColor::Green);
const RED: Style = coloured(AnsiColor::Red).bold();
const YELLOW: Style = coloured(AnsiColor::Yellow).bold();
const CYAN: Style = coloured(AnsiColor::Cyan).bold();

/// Text is hard to read in longer lines.
const WIDEST: usize = 100;
const NARROWEST: usize = 40;
/// Most characters of a text that somebody else wrote.
const MAX_SHOWN: usize = 1_000;

const fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(Color::Ansi(colour)))
}

/// Lines of at most `width` columns, with colour.
pub(super) fn trigger(examined: &Examined, width: usize) -> String {
    let mut page = Page { text: String::new(), width: width.max(NARROWEST) };
    page.title(examined);
    page.findings(examined, Step::Trigger);

    page.heading("Metadata");
    for setting in &examined.settings {
        let value = shorten(&setting.value, MAX_SHOWN);
        let value = if setting.given { value } else { format!("{value} (default)") };
        page.row(setting.key, &value);
    }
    page.findings(examined, Step::Metadata);

    if let Some(request) = &examined.request {
        page.heading("Datadog");
        page.paragraph(&format!("{}, with the keys of {}", request.host, request.keys));
        page.paragraph(&series::when(request));
    } else if examined.findings.iter().any(|finding| finding.step == Step::Request) {
        page.heading("Datadog");
    }
    page.findings(examined, Step::Request);
    if examined.request.as_ref().is_some_and(|request| request.window.is_some()) {
        page.heading("Series");
        series::show(&mut page, examined);
        page.findings(examined, Step::Series);
    }

    if !examined.calls.is_empty() || examined.findings.iter().any(|f| f.step == Step::Calls) {
        page.heading("What KEDA asks, and gets");
        examined.calls.iter().for_each(|call| page.call(call));
        if examined.calls.is_empty() {
            page.findings(examined, Step::Calls);
        }
    }
    if let Some(outcome) = &examined.outcome {
        page.heading("Value");
        page.outcome(outcome, examined);
    }
    if let Some(replicas) = &examined.replicas {
        page.heading(if examined.kind == "ScaledJob" { "Jobs" } else { "Replicas" });
        page.replicas(replicas, examined);
    }
    if let Some(hold) = &examined.hold {
        let Hold { refresh_seconds, hold_seconds, .. } = hold;
        page.heading(&format!(
            "While Datadog fails (read each {refresh_seconds} s, held {hold_seconds} s longer)"
        ));
        page.hold(hold);
        page.findings(examined, Step::Hold);
    }
    page.text
}

/// One line on each trigger.
pub(super) fn summary(report: &Report) -> String {
    let mut page = Page { text: "\n".to_owned(), width: WIDEST };
    for examined in &report.triggers {
        let (style, word) = match examined.level() {
            Level::Error => (RED, "error"),
            Level::Warning => (YELLOW, "warning"),
            Level::Note => (GREEN, "fine"),
        };
        let outcome = match &examined.outcome {
            Some(Outcome::Value { value, active, .. }) => {
                format!(": {}, {}", number(*value), word_of(*active))
            }
            Some(Outcome::Failed { code, .. }) => format!(": {code}"),
            None => String::new(),
        };
        page.line(format_args!("{style}{word:>7}{style:#}  {}{outcome}", label(examined)));
    }
    page.text
}

/// One line of `--watch`.
pub(super) fn event(event: &Event) -> String {
    let at = event.at.strftime("%H:%M:%S");
    let trigger = &event.trigger;
    let seen = match &event.seen {
        Happening::Poll { outcome: Outcome::Value { value, active, .. }, took_ms } => {
            format!("poll  {}, {} ({})", number(*value), word_of(*active), took(*took_ms))
        }
        Happening::Poll { outcome: Outcome::Failed { code, message }, took_ms } => {
            format!("poll  {RED}{code}{RED:#}: {message} ({})", took(*took_ms))
        }
        Happening::Push { active } => format!("push  {}", word_of(*active)),
        Happening::Ended { code, message } if message.is_empty() => {
            format!("push  the stream ended ({code})")
        }
        Happening::Ended { code, message } => {
            format!("push  {RED}{code}{RED:#}: {message}")
        }
    };
    format!("{DIM}{at}{DIM:#}  {trigger}  {seen}")
}

/// `demo/shop[0]`, as one line names a trigger.
pub(super) fn label(examined: &Examined) -> String {
    let namespace = examined.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
    let trigger = examined.name.as_ref().map_or_else(|| examined.index.to_string(), Clone::clone);
    shorten(&format!("{namespace}{}[{trigger}]", examined.object), MAX_SHOWN)
}

fn word_of(active: bool) -> &'static str {
    if active { "active" } else { "not active" }
}

fn took(ms: f64) -> String {
    if ms < 9.95 {
        format!("{ms:.1} ms")
    } else if ms < 9_950.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.0} s", ms / 1_000.0)
    }
}

/// What has been written, and how wide it may be.
struct Page {
    text: String,
    width: usize,
}

impl Page {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a text can be written to");
    }

    fn title(&mut self, examined: &Examined) {
        let Examined { kind, index, r#type, file, .. } = examined;
        let namespace = examined.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
        let name = examined.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let title =
            format!("{kind} {namespace}{}, trigger {index}{name}, {}", examined.object, r#type);
        self.line(format_args!("{BOLD}{}{BOLD:#}", shorten(&title, MAX_SHOWN)));
        self.line(format_args!("{DIM}{}{DIM:#}", shorten(file, MAX_SHOWN)));
    }

    fn heading(&mut self, heading: &str) {
        self.line(format_args!("\n{BOLD}{heading}{BOLD:#}"));
    }

    fn wrapped(&mut self, text: &str, first: &str, rest: &str) {
        let options = Options::new(self.width.min(WIDEST))
            .initial_indent(first)
            .subsequent_indent(rest)
            .break_words(true);
        let text = fill(text, options);
        self.line(format_args!("{text}"));
    }

    fn paragraph(&mut self, text: &str) {
        self.wrapped(text, "  ", "  ");
    }

    /// A name and its value, which wraps in a column of its own.
    fn row(&mut self, name: &str, value: &str) {
        let first = format!("  {name:<24}  ");
        self.wrapped(value, &first, &" ".repeat(display_width(&first)));
    }

    fn findings(&mut self, examined: &Examined, step: Step) {
        for finding in examined.findings.iter().filter(|finding| finding.step == step) {
            self.finding(finding);
        }
    }

    fn finding(&mut self, finding: &Finding) {
        let style = match finding.level {
            Level::Error => RED,
            Level::Warning => YELLOW,
            Level::Note => CYAN,
        };
        let label = format!("  {}: ", finding.level);
        // Wrapped without colour, whose codes have no width.
        let before = self.text.len();
        self.wrapped(&shorten(&finding.message, MAX_SHOWN), &label, "    ");
        let word = label.trim();
        let coloured = format!("  {style}{word}{style:#} ");
        self.text.replace_range(before..before + label.len(), &coloured);
    }

    fn call(&mut self, call: &Call) {
        let first = format!("  {:<14}{:>8}  ", call.rpc, took(call.took_ms));
        let answer = match &call.answer {
            Answer::Spec { metric, target } => format!("{metric}, target {}", number(*target)),
            Answer::Value { value } => number(*value),
            Answer::Active { active } => word_of(*active).to_owned(),
            Answer::Failed { message } => format!("{}: {message}", call.code),
        };
        self.wrapped(&answer, &first, &" ".repeat(display_width(&first)));
    }

    fn outcome(&mut self, outcome: &Outcome, examined: &Examined) {
        match outcome {
            Outcome::Value { value, active, .. } => {
                let reckoning = examined.reckoning.as_ref();
                let reckoning = reckoning.map(|how| format!(" ({how})")).unwrap_or_default();
                let value = number(*value);
                self.paragraph(&format!("{value}, {}{reckoning}", word_of(*active)));
            }
            Outcome::Failed { code, .. } if examined.settings.is_empty() => {
                self.paragraph(&format!(
                    "none: KEDA gets {code}, for the metric's name and target too, and can make \
                     no HPA"
                ));
            }
            Outcome::Failed { code, .. } => self.paragraph(&format!(
                "none: KEDA gets {code}, and leaves the replicas as they are unless it has a \
                 `fallback`"
            )),
        }
    }

    fn replicas(&mut self, replicas: &Replicas, examined: &Examined) {
        let Some(Outcome::Value { value, active, target }) = &examined.outcome else { return };
        let (value, target) = (number(*value), number(*target));
        let Replicas { at, least, most, asked, .. } = replicas;
        if examined.kind == "ScaledJob" {
            self.row("wanted", &format!("{asked}: {value} / {target}, rounded up, at most {most}"));
            self.row("started", "as many, less those that run");
            return;
        }
        let reckoned = [
            ("AverageValue", replicas.average_value, format!("{value} / {target}")),
            ("Value", replicas.value, format!("{at} × {value} / {target}")),
        ];
        for (metric_type, count, how) in reckoned {
            let how = if count.within_tolerance {
                format!("{how} is off by a tenth or less, which the HPA tolerates")
            } else {
                format!("{how}, rounded up")
            };
            let mark = if metric_type == replicas.metric_type { " (this trigger)" } else { "" };
            self.row(metric_type, &format!("{}{mark}: {how}", count.replicas));
        }
        self.row("asked for", &format!("{asked}, from {at}, and between {least} and {most}"));
        match (active, replicas.idle) {
            (false, Some(idle)) => self.row(
                "not active",
                &format!("KEDA goes to {idle} after `cooldownPeriod`, if no trigger is active"),
            ),
            (false, None) => self.row("not active", "but `minReplicaCount` keeps replicas"),
            (true, _) => {}
        }
    }

    fn hold(&mut self, hold: &Hold) {
        let Hold { active_seconds, inactive_seconds, .. } = hold;
        self.row("an active value", &format!("for {active_seconds} s after it was read"));
        self.row("an inactive one", &format!("for {inactive_seconds} s"));
        self.row("then", "an error: KEDA leaves the replicas alone");
        if let Some(cooldown) = hold.cooldown_seconds {
            self.row("cooldownPeriod", &format!("{cooldown} s"));
        }
        if let Some(window) = hold.stabilization_seconds {
            self.row("stabilization", &format!("{window} s (`scaleDown` of the HPA)"));
        }
    }
}

/// Short enough for a table: three decimals, as KEDA sends it.
fn number(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e7).contains(&value.abs()) {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
