//! What the Cluster Agent has of a `DatadogMetric`.

use super::{Page, instant, number, took};
use crate::check::report::{MetricSeen, Request};

pub(super) fn show(page: &mut Page, request: &Request, metric: &MetricSeen) {
    if request.trust.is_none() {
        page.paragraph("as the status of the DatadogMetric tells it, in Kubernetes");
    } else {
        show_request(page, request, metric);
    }
    show_value(page, metric);
}

fn show_request(page: &mut Page, request: &Request, metric: &MetricSeen) {
    let through = request.through.as_ref().map(|at| format!(", through {at}")).unwrap_or_default();
    let Request { host, keys, took_ms, .. } = request;
    page.paragraph(&format!("{host}{through}, with the token of {keys}"));
    let answered = if metric.value.is_some() { "answered" } else { "no value," };
    page.paragraph(&format!("{}, {answered} after {}", metric.name, took(*took_ms)));
    let trusted = match request.trust {
        Some("anybody") => "whoever answers there: nothing is verified",
        Some("authorities") => "whom the CA that is given vouches for",
        _ => "whom the CAs of the system vouch for",
    };
    page.row("trusted", trusted);
}

fn show_value(page: &mut Page, metric: &MetricSeen) {
    if let (Some(value), Some(at_ms), Some(age)) = (metric.value, metric.at_ms, metric.age_seconds)
    {
        page.row("value", &number(value));
        let at = instant(at_ms, "%Y-%m-%d %H:%M:%S");
        let age = match age {
            0.. => format!("{age} s old"),
            _ => format!("{} s ahead of this machine's clock", -age),
        };
        let most = metric.max_age_seconds.map(|most| format!("; {most} s are allowed"));
        page.row("point", &format!("{at} UTC, {age}{}", most.unwrap_or_default()));
    }
}
