//! A report as a person reads it: plain lines that wrap, useful without colour.

use anstyle::{AnsiColor, Color, Style};
use textwrap::core::display_width;

use super::{
    manifest::OF_METADATA,
    report::{
        Answer, Call, Credentials, Event, Evidence, Examined, Failed, Happening, Hold, Level,
        Outcome, ParameterSeen, Report, Scaling, Setting, Step,
    },
};
use crate::{demand::Service, kubernetes::Kind, words::shorten};

pub(super) mod comparison;
pub(super) mod presence;
mod series;
mod chart;
mod agent;
mod scaling;
mod page;

use page::Page;

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
const MAX_TEXT: usize = 1_000;

const DAY_MS: i64 = 86_400_000;

const fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(Color::Ansi(colour)))
}

/// Lines of at most `width` columns, with colour.
pub(super) fn trigger(examined: &Examined, width: usize) -> String {
    let mut page = Page { text: String::new(), width: width.clamp(NARROWEST, WIDEST) };
    page.title(examined);
    page.findings(examined, Step::Trigger);

    page.heading("Metadata");
    for setting in &examined.settings {
        page.setting(setting);
    }
    page.findings(examined, Step::Metadata);

    match &examined.credentials {
        Some(credentials) => {
            page.heading("Credentials");
            page.credentials(credentials);
            page.findings(examined, Step::Credentials);
        }
        None => page.section("Credentials", examined, Step::Credentials),
    }

    match &examined.evidence {
        Evidence::Nobody {} => {
            let asked = match examined.service {
                Service::DatadogApi => "Datadog",
                Service::ClusterAgent => "Cluster Agent",
            };
            page.section(asked, examined, Step::Request);
            page.section("What KEDA asks, and gets", examined, Step::Calls);
        }
        Evidence::Datadog { request, seen } => {
            page.heading("Datadog");
            page.paragraph(&format!("{}, with the keys of {}", request.host, request.keys));
            page.paragraph(&series::when(request, seen.as_ref()));
            page.findings(examined, Step::Request);
            if let Some(seen) = seen {
                page.heading("Series");
                series::show(&mut page, seen, series::target(examined));
                page.findings(examined, Step::Series);
            }
        }
        Evidence::ClusterAgent { request, metric, .. } => {
            page.heading("Cluster Agent");
            agent::show(&mut page, request, metric);
            page.findings(examined, Step::Request);
        }
        Evidence::Scaler { calls } => {
            page.heading("What KEDA asks, and gets");
            for call in calls {
                page.call(call);
            }
            page.warnings(examined, Step::Calls);
        }
    }
    if let Some(outcome) = &examined.outcome {
        page.heading("Value");
        page.outcome(outcome, examined);
    }
    match &examined.scaling {
        Some(Scaling::Replicas(replicas)) => {
            page.heading("Replicas");
            page.replicas(replicas, examined);
            page.findings(examined, Step::Scaling);
        }
        Some(Scaling::Jobs(jobs)) => {
            page.heading("Jobs");
            page.jobs(jobs, examined);
            page.findings(examined, Step::Scaling);
        }
        None => page.section("Replicas", examined, Step::Scaling),
    }
    if let Some(hold) = &examined.hold {
        page.heading(match examined.service {
            Service::DatadogApi => "While Datadog fails",
            Service::ClusterAgent => "While the Cluster Agent fails",
        });
        page.hold(hold, examined.kind);
        page.findings(examined, Step::Hold);
    }
    page.text
}

/// What cannot be told of one trigger alone, and, if there are several, one line on each.
pub(super) fn summary(report: &Report) -> String {
    let mut page = Page { text: String::new(), width: WIDEST };
    if report.triggers.len() > 1 || !report.unreadable.is_empty() {
        if !report.triggers.is_empty() {
            page.line(format_args!("\n"));
        }
        for examined in &report.triggers {
            page.verdict(examined);
        }
    }
    for unreadable in &report.unreadable {
        page.line(format_args!("{RED}{:>7}{RED:#}  {}", "error", shorten(unreadable, MAX_TEXT)));
    }
    let others = match report.others {
        0 => return page.text,
        1 => "1 trigger is".to_owned(),
        others => format!("{others} triggers are"),
    };
    page.line(format_args!("\n{others} not this scaler's, and left out"));
    page.text
}

/// One line of `--watch`.
pub(super) fn event(event: &Event) -> String {
    let at = instant(event.at_ms, "%H:%M:%S");
    let trigger = shorten(&event.trigger, MAX_TEXT);
    let happening = match &event.happening {
        Happening::Poll { outcome: Outcome::Answered { value, active, .. }, took_ms } => {
            format!("poll  {}, {} ({})", number(*value), word_of(*active), took(*took_ms))
        }
        Happening::Poll { outcome: Outcome::Failed(failed), took_ms } => {
            let Failed { rpc, code, message } = failed;
            format!("poll  {rpc} {RED}{code}{RED:#}: {message} ({})", took(*took_ms))
        }
        Happening::Push { active } => format!("push  {}", word_of(*active)),
        Happening::Ended { code, message } if message.is_empty() => {
            format!("push  the stream ended ({code})")
        }
        Happening::Ended { code, message } => format!("push  {RED}{code}{RED:#}: {message}"),
    };
    format!("{DIM}{at}{DIM:#}  {trigger}  {happening}")
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

/// With three decimals, as KEDA sends it, or what there is of a number that would be 0 then.
fn number(value: f64) -> String {
    // No sign at a zero.
    let value = value + 0.0;
    match value.abs() {
        size if size >= 1e15 || (size > 0.0 && size < 1e-6) => format!("{value:e}"),
        size if size > 0.0 && size < 1e-3 => value.to_string(),
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// In UTC.
fn instant(ms: i64, format: &str) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |instant| instant.strftime(format).to_string())
}

impl Page {
    fn title(&mut self, examined: &Examined) {
        let Examined { kind, index, r#type, file, .. } = examined;
        let namespace = examined.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
        let name = examined.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        if file == OF_METADATA {
            self.line(format_args!("{BOLD}A trigger from `{OF_METADATA}`{BOLD:#}"));
            return;
        }
        let title =
            format!("{kind} {namespace}{}, trigger {index}{name}, {}", examined.object, r#type);
        self.line(format_args!("{BOLD}{}{BOLD:#}", shorten(&title, MAX_TEXT)));
        self.line(format_args!("{DIM}{}{DIM:#}", shorten(file, MAX_TEXT)));
    }

    fn setting(&mut self, setting: &Setting) {
        let unit = match setting.key {
            "age" | "timeWindowOffset" | "maxAge" | "holdLastValue" => " s",
            _ => "",
        };
        let without = match setting.key {
            "queryValue" | "targetValue" => "that of `scalingModifiers`",
            "holdLastValue" | "timeout" | "maxAge" => "as the scaler runs",
            _ => "none",
        };
        let value = match &setting.value {
            Some(value) => format!("{}{unit}", shorten(value, MAX_TEXT)),
            None => without.to_owned(),
        };
        let default = if setting.given { "" } else { " (default)" };
        self.row(setting.key, &format!("{value}{default}"));
    }

    fn credentials(&mut self, credentials: &Credentials) {
        self.row("authenticationRef", &shorten(&credentials.authentication, MAX_TEXT));
        for ParameterSeen { name, from, present, .. } in &credentials.parameters {
            // Where it is not given, the default stands there.
            let has_default = [
                "datadogSite",
                "datadogMetricsServicePort",
                "unsafeSsl",
                "datadogCaCert",
                "datadogServerName",
            ];
            if from.is_none() && has_default.contains(name) {
                continue;
            }
            let how = match present {
                Some(true) => "",
                Some(false) => " (missing)",
                None => " (not readable)",
            };
            let from = from.as_ref().map_or("not given".to_owned(), |from| format!("{from}{how}"));
            self.row(name, &shorten(&from, MAX_TEXT));
        }
        if let Some(site) = &credentials.site {
            let is_given = credentials
                .parameters
                .iter()
                .any(|it| it.name == "datadogSite" && it.from.is_some());
            self.row("site", &format!("{site}{}", if is_given { "" } else { " (default)" }));
        }
        if let Some(agent) = &credentials.agent {
            self.row("Cluster Agent", agent);
        }
    }

    fn verdict(&mut self, examined: &Examined) {
        let (style, word) = match examined.level() {
            Level::Error => (RED, "error"),
            Level::Warning => (YELLOW, "warning"),
            Level::Note => (GREEN, "fine"),
        };
        let outcome = match &examined.outcome {
            Some(Outcome::Answered { value, active, .. }) => {
                format!(": {}, {}", number(*value), word_of(*active))
            }
            Some(Outcome::Failed(Failed { code, .. })) => format!(": {code}"),
            None => String::new(),
        };
        let label = shorten(&examined.label(), MAX_TEXT);
        self.line(format_args!("{style}{word:>7}{style:#}  {label}{outcome}"));
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
            Outcome::Answered { value, active, .. } => {
                let how = match &examined.evidence {
                    Evidence::Datadog { seen: Some(seen), .. } => seen.reckoning.as_ref(),
                    Evidence::ClusterAgent { reckoning, .. } => reckoning.as_ref(),
                    _ => None,
                };
                let how = how.map(|how| format!(" ({how})")).unwrap_or_default();
                self.paragraph(&format!("{}, {}{how}", number(*value), word_of(*active)));
            }
            Outcome::Failed(failed) => {
                let (rpc, gets) = (failed.rpc, failed.gets());
                let then = match (examined.kind, rpc) {
                    (Kind::ScaledJob, _) => "starts no Jobs for it",
                    (_, "GetMetricSpec") => "can make no HPA of it; a `fallback` does not help",
                    _ => "leaves the replicas as they are, unless there is a `fallback`",
                };
                self.paragraph(&format!("none: KEDA gets {gets} from {rpc}, and {then}"));
            }
        }
    }

    fn hold(&mut self, hold: &Hold, kind: Kind) {
        let Hold { active_seconds, inactive_seconds, refresh_seconds, .. } = hold;
        self.row(
            "an active value",
            &format!(
                "for {active_seconds} s after it was read; it is due after {refresh_seconds} s"
            ),
        );
        self.row("an inactive one", &format!("for {inactive_seconds} s"));
        let then = match kind {
            Kind::ScaledObject => "an error: KEDA leaves the replicas alone",
            Kind::ScaledJob => "an error: KEDA starts no Jobs",
        };
        self.row("then", then);
        if let Some(cooldown) = hold.cooldown_seconds {
            self.row("cooldownPeriod", &format!("{cooldown} s"));
        }
        if let Some(window) = hold.stabilization_seconds {
            self.row("stabilization", &format!("{window} s (`scaleDown` of the HPA)"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_a_line_each() {
        let failed = Outcome::Failed(Failed {
            rpc: "GetMetrics",
            code: "UNAVAILABLE",
            message: "Datadog fails".to_owned(),
        });
        let answered = Outcome::Answered { value: 8.25, active: true, target: 5.0 };
        let ended = |code, message: &str| Happening::Ended { code, message: message.to_owned() };
        let lines = [
            Happening::Poll { outcome: answered, took_ms: 3.4 },
            Happening::Poll { outcome: failed, took_ms: 12.0 },
            Happening::Push { active: true },
            Happening::Push { active: false },
            ended("OK", ""),
            ended("UNAVAILABLE", "Connection refused"),
        ]
        .map(|happening| {
            let trigger = "shop/checkout[0]".to_owned();
            let line = event(&Event { at_ms: 43_200_000, trigger, happening });
            anstream::adapter::strip_str(&line).to_string()
        });
        insta::assert_snapshot!(lines.join("\n"), @r"
        12:00:00  shop/checkout[0]  poll  8.25, active (3.4 ms)
        12:00:00  shop/checkout[0]  poll  GetMetrics UNAVAILABLE: Datadog fails (12 ms)
        12:00:00  shop/checkout[0]  push  active
        12:00:00  shop/checkout[0]  push  not active
        12:00:00  shop/checkout[0]  push  the stream ended (OK)
        12:00:00  shop/checkout[0]  push  UNAVAILABLE: Connection refused
        ");
    }

    #[test]
    fn numbers_are_short_and_true() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (12.0, "12"),
            (-3.25, "-3.25"),
            (12_345_678.9, "12345678.9"),
            (2.0 / 3.0, "0.667"),
            (0.0004, "0.0004"),
            (1e300, "1e300"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            [took(0.04), took(9.97), took(9_949.0), took(20_000.0)],
            ["0.0 ms", "10 ms", "9949 ms", "20 s"]
        );
    }
}
