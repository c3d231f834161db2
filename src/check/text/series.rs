//! The series that came back: a table, and the curve.

use textwrap::core::display_width;

use super::{Page, chart::Chart, number, took};
use crate::{
    check::report::{Examined, Request, SeriesSeen},
    words::shorten,
};

/// Most series that are listed; JSON has all.
const MAX_LISTED: usize = 12;
/// Columns of the scope, at most.
const WIDEST_SCOPE: usize = 44;

/// The window that was asked for, and how long the answer took.
pub(super) fn when(request: &Request) -> String {
    let took = took(request.took_ms);
    let Some(window) = request.window else { return format!("no reading, after {took}") };
    let from = instant(window.from_ms, "%Y-%m-%d %H:%M:%S");
    let is_one_day = window.from_ms / 86_400_000 == window.to_ms / 86_400_000;
    let to = instant(window.to_ms, if is_one_day { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" });
    let seconds = (window.to_ms - window.from_ms) / 1_000;
    format!("{from} to {to} UTC ({seconds} s), answered after {took}")
}

pub(super) fn show(page: &mut Page, examined: &Examined) {
    let series = &examined.series;
    if series.is_empty() {
        page.paragraph("none");
        return;
    }
    let scopes: Vec<String> = series.iter().take(MAX_LISTED).map(scope).collect();
    let widest = scopes.iter().map(|scope| display_width(scope)).max().unwrap_or(0).max(5);
    let header = format!("  {:<widest$}  points  nulls  interval  value", "scope");
    page.line(format_args!("{header}"));
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
    if let Some(chart) = Chart::of(examined) {
        let lines = chart.draw(page.width.min(super::WIDEST));
        page.line(format_args!("\n{lines}"));
    }
}

fn scope(series: &SeriesSeen) -> String {
    shorten(if series.scope.is_empty() { "*" } else { &series.scope }, WIDEST_SCOPE)
}

/// In UTC.
pub(super) fn instant(ms: i64, format: &str) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |instant| instant.strftime(format).to_string())
}
