//! The series that came back: a table, and the curve.

use textwrap::core::display_width;

use super::{DAY_MS, Page, chart::Chart, instant, number, took};
use crate::{
    check::report::{Examined, Request, Seen, SeriesSeen, Span},
    words::shorten,
};

/// Most series that are listed; JSON has all.
const MAX_LISTED: usize = 12;
/// Columns of the scope, at most, in 80.
const WIDEST_SCOPE: usize = 44;

/// The window that was asked for, and how long the answer took.
pub(super) fn when(request: &Request, seen: Option<&Seen>) -> String {
    let took = took(request.took_ms);
    let Some(Seen { window, .. }) = seen else { return format!("no reading, after {took}") };
    format!("{}, answered after {took}", period(*window))
}

pub(super) fn period(window: Span) -> String {
    let from = instant(window.from_ms, "%Y-%m-%d %H:%M:%S");
    let is_one_day = window.from_ms / DAY_MS == window.to_ms / DAY_MS;
    let to = instant(window.to_ms, if is_one_day { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" });
    let seconds = (window.to_ms - window.from_ms) / 1_000;
    format!("{from} to {to} UTC ({seconds} s)")
}

/// As its metadata says.
pub(super) fn target(examined: &Examined) -> Option<f64> {
    let is_target = |key| matches!(key, "queryValue" | "targetValue");
    let setting = examined.settings.iter().find(|setting| is_target(setting.key))?;
    setting.value.as_ref()?.parse().ok()
}

pub(super) fn show(page: &mut Page, seen: &Seen, target: Option<f64>) {
    let series = &seen.series;
    if series.is_empty() {
        page.paragraph("none");
        return;
    }
    let widest_scope = WIDEST_SCOPE + page.width.saturating_sub(80);
    let scope = |series: &SeriesSeen| {
        cut(if series.scope.is_empty() { "*" } else { &series.scope }, widest_scope)
    };
    let scopes: Vec<String> = series.iter().take(MAX_LISTED).map(scope).collect();
    let widest = scopes.iter().map(|scope| display_width(scope)).max().unwrap_or(0).max(5);
    page.line(format_args!("  {:<widest$}  points  nulls  interval  value", "scope"));
    for (scope, series) in scopes.iter().zip(series) {
        let gap = widest - display_width(scope);
        let interval = series.interval_seconds.map_or("?".to_owned(), |s| format!("{s} s"));
        let value = series.value.map_or("none".to_owned(), number);
        page.line(format_args!(
            "  {scope}{:gap$}  {:>6}  {:>5}  {interval:>8}  {value}",
            "",
            series.points.len(),
            series.nulls,
        ));
    }
    if series.len() > MAX_LISTED {
        page.paragraph(&format!("and {} more", series.len() - MAX_LISTED));
    }
    if let Some(chart) = Chart::of(seen, target) {
        let lines = chart.draw(page.width);
        page.line(format_args!("\n{lines}"));
    }
}

/// To so many columns; some characters take two.
fn cut(text: &str, columns: usize) -> String {
    let mut most = columns;
    loop {
        let shown = shorten(text, most);
        // With the mark that it was cut.
        if display_width(&shown) <= columns + 1 {
            return shown;
        }
        most -= 1;
    }
}
