//! What came of a request to Datadog: series, or which `SourceError`. Pure.

use std::time::Duration;

use serde::Deserialize;

use super::{
    RateLimit, SourceError,
    series::{self, Unreadable},
};
use crate::{
    demand::{Account, Series},
    http::{HeaderMap, HttpError, Response},
    words::shorten,
};

/// Most characters of Datadog's own words that are passed on.
const MAX_WORDS: usize = 300;
/// Most bytes that are kept of the name of a rate limit.
const MAX_NAME: usize = 64;

pub(super) fn not_fetched(error: HttpError, account: &Account) -> SourceError {
    let host = account.host();
    match error {
        HttpError::TimedOut { after } => SourceError::TimedOut { host, after },
        HttpError::Failed { cause } => SourceError::Unreachable { host, cause },
        HttpError::Unsendable => SourceError::Malformed { reason: "it is too long".to_owned() },
        HttpError::Untrusted { cause } => {
            let cause = format!("{cause}; give its CA with `--ca-file`");
            SourceError::Unreachable { host, cause }
        }
        HttpError::TooLarge { limit } => {
            SourceError::TooLarge { what: format!("more than {} MiB", limit >> 20) }
        }
    }
}

/// What each query of a request has, in their order.
pub(super) type Outcomes = Vec<Result<Box<[Series]>, SourceError>>;

/// By the status first, and by the text only where the status does not tell.
pub(super) fn interpret(
    response: &Response,
    account: &Account,
    queries: &[&str],
) -> Result<Outcomes, SourceError> {
    let host = account.host();
    let outage = |what: &str| SourceError::Outage { host: account.host(), what: what.to_owned() };
    let reason = |fallback: &str| {
        words(&response.body)
            .map(|words| quote(&words, account))
            .filter(|words| !words.is_empty())
            .unwrap_or_else(|| fallback.to_owned())
    };
    Err(match response.status.as_u16() {
        200 => {
            let unreadable = |why| match why {
                Unreadable::TooLarge(what) => SourceError::TooLarge { what },
                Unreadable::NotUnderstood(what) => {
                    SourceError::NotUnderstood { host: account.host(), what }
                }
                Unreadable::Rejected(words) => rejected(&words, account, &response.headers),
            };
            let decoded = series::decode(&response.body, queries, account).map_err(unreadable)?;
            return Ok(decoded.into_iter().map(|series| series.map_err(unreadable)).collect());
        }
        400 => SourceError::Malformed { reason: reason("it gives no reason") },
        401 | 403 => SourceError::Refused { status: response.status.as_u16(), host },
        407 => {
            let cause = "the proxy asks for a user name and password".to_owned();
            SourceError::Unreachable { host, cause }
        }
        413 | 414 => SourceError::Malformed { reason: "it is too long".to_owned() },
        422 => SourceError::Unprocessable,
        429 => SourceError::Throttled { host, limit: rate_limit(&response.headers) },
        status @ (408 | 500..=599) => outage(&status.to_string()),
        status @ (300..=399 | 404 | 405) => SourceError::Misdirected { status, host },
        status => SourceError::NotUnderstood { host, what: format!("HTTP status {status}") },
    })
}

/// A `status: error` in a 200. Most blame the query; some are outages, told by their text
/// (DataDog/datadog-agent#10781, and windows in milliseconds for "Internal error").
fn rejected(text: &str, account: &Account, headers: &HeaderMap) -> SourceError {
    let host = account.host();
    let lower = text.to_lowercase();
    let any = |needles: &[&str]| needles.iter().any(|needle| lower.contains(needle));
    if any(&["error parsing query", "invalid query"]) {
        return SourceError::Malformed { reason: quote(text, account) };
    }
    if any(&["rate limit", "too many requests"]) {
        // The headers are those of a sound reply, unless nothing is left.
        let limit = rate_limit(headers).filter(|limit| limit.remaining == Some(0));
        return SourceError::Throttled { host, limit };
    }
    if text.trim().is_empty() {
        return SourceError::Outage { host, what: "an error without a text".to_owned() };
    }
    let what = quote(text, account);
    if any(&["timed out", "timeout", "internal error", "unavailable", "try again", "overload"]) {
        SourceError::Outage { host, what }
    } else {
        SourceError::Malformed { reason: what }
    }
}

/// Datadog's own words in an error body: `{"errors": ["…"]}` or `{"error": "…"}`.
fn words(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Words {
        #[serde(default)]
        errors: Vec<String>,
        error: Option<String>,
    }
    let words: Words = serde_json::from_slice(body).ok()?;
    Some(words.error.unwrap_or_else(|| words.errors.join("; ")))
}

/// One line, bounded, without the account's keys.
pub(super) fn quote(text: &str, account: &Account) -> String {
    // The keys before any cut, which could leave half of one.
    let text = shorten(&account.redact(text), 10 * MAX_WORDS);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shorten(line.trim_end_matches([':', '.']), MAX_WORDS)
}

/// Tolerant: other services that speak this dialect send "1.1" and "-5".
pub(super) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let number = |name: &str| {
        let value: f64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
        value.is_finite().then_some(value.max(0.0))
    };
    let seconds = |value: f64| Duration::try_from_secs_f64(value.ceil()).ok();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and a cast saturates"
    )]
    let limit = RateLimit {
        limit: number("x-ratelimit-limit").map(|limit| limit as u64),
        remaining: number("x-ratelimit-remaining").map(|remaining| remaining as u64),
        period: number("x-ratelimit-period").and_then(seconds),
        // Seconds from now, not an instant: https://docs.datadoghq.com/api/latest/rate-limits/
        reset: number("x-ratelimit-reset").or_else(|| number("retry-after")).and_then(seconds),
        name: headers.get("x-ratelimit-name").and_then(|name| name.to_str().ok()).map(|name| {
            let cut = name.floor_char_boundary(MAX_NAME);
            name[..cut].into()
        }),
    };
    (limit != RateLimit::default()).then_some(limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::scripted::{account, response};

    #[track_caller]
    fn check(status: u16, body: &str, message: &str) {
        let error = interpret(&response(status, &[], body.as_bytes()), &account(), &["avg:a{*}"])
            .expect_err("it is an error");
        assert_eq!(error.to_string(), message);
    }

    fn host() -> String {
        "api.datadoghq.eu".to_owned()
    }

    #[test]
    fn every_status_is_told_apart() {
        let refused = |status| SourceError::Refused { status, host: host() };
        let outage = |what: &str| SourceError::Outage { host: host(), what: what.into() };
        for (status, body, expected) in [
            (401, "", refused(401)),
            (403, r#"{"errors":["Forbidden"]}"#, refused(403)),
            (408, "", outage("408")),
            (422, r#"{"errors":["Unprocessable Content"]}"#, SourceError::Unprocessable),
            (429, "<html>", SourceError::Throttled { host: host(), limit: None }),
            (500, "", outage("500")),
            (502, "\"Bad Gateway\"", outage("502")),
            (504, "<title>504</title>", outage("504")),
        ] {
            let got = interpret(&response(status, &[], body.as_bytes()), &account(), &["avg:a{*}"]);
            assert_eq!(got, Err(expected));
        }
    }

    #[test]
    fn messages_say_what_to_do() {
        check(400, r#"{"errors":["bad", "worse"]}"#, "Datadog rejects the query: bad; worse");
        check(400, "", "Datadog rejects the query: it gives no reason");
        check(414, "", "Datadog rejects the query: it is too long");
        check(
            403,
            "",
            "Datadog refuses the keys (403) at api.datadoghq.eu; check that they belong to this \
             site and may read metrics (`timeseries_query`)",
        );
        check(
            302,
            "",
            "api.datadoghq.eu is not the Datadog API (302); check `DD_SITE`, `--datadog-url` and \
             the proxy",
        );
        check(
            200,
            "",
            "the answer from api.datadoghq.eu is not understood: it is not a JSON object",
        );
    }

    #[test]
    fn an_error_in_a_200_is_the_querys_fault_or_an_outage_by_its_text() {
        let body = |text: &str| serde_json::json!({"status": "error", "error": text}).to_string();
        check(
            200,
            &body("Error parsing query: \nunable to parse a{: Rule 'x' didn't match"),
            "Datadog rejects the query: Error parsing query: unable to parse a{: Rule 'x' didn't \
             match",
        );
        check(
            200,
            &body("Invalid query input: the query timed out of its retention"),
            "Datadog rejects the query: Invalid query input: the query timed out of its retention",
        );
        for text in ["Query timed out", "Internal error"] {
            let message = format!(
                "Datadog fails at api.datadoghq.eu ({text}); nothing is wrong with the query"
            );
            check(200, &body(text), &message);
        }
        check(
            200,
            &body("Rate limit reached"),
            "Datadog's rate limit is spent at api.datadoghq.eu; ask for fewer queries \
             or windows (`age`), or ask Datadog for a higher limit",
        );
    }

    #[test]
    fn a_key_in_datadogs_words_is_not_passed_on() {
        check(
            400,
            r#"{"errors":["the-app-key may not"]}"#,
            "Datadog rejects the query: [redacted] may not",
        );
    }

    #[test]
    fn a_429_says_how_long_it_lasts() {
        let headers = [
            ("x-ratelimit-limit", "1600"),
            ("x-ratelimit-period", "3600"),
            ("x-ratelimit-reset", "84.2"),
        ];
        let error = interpret(&response(429, &headers, b""), &account(), &["q"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Datadog's rate limit is spent at api.datadoghq.eu: 1600 requests each 3600 s; \
             it resets in 85 s; ask for fewer queries or windows (`age`), or ask Datadog for a higher limit"
        );
    }

    #[test]
    fn odd_rate_limit_headers_are_understood_as_far_as_they_go() {
        let parsed = rate_limit(&response(429, &[("x-ratelimit-reset", "-5")], b"").headers);
        let reset = Some(Duration::ZERO);
        assert_eq!(parsed, Some(RateLimit { reset, ..RateLimit::default() }));
        let parsed = rate_limit(&response(429, &[("x-ratelimit-limit", "many")], b"").headers);
        assert_eq!(parsed, None);
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(quote(&"é ".repeat(1_000), &account()).chars().count(), MAX_WORDS + 1);
        assert_eq!(quote(" a\n\u{1b}[31mb\t", &account()), "a [31mb");
        let at_the_cut = format!("{} the-app-key", "x".repeat(MAX_WORDS - 5));
        assert!(!quote(&at_the_cut, &account()).contains("the"));
    }

    proptest! {
        #[test]
        fn any_answer_is_a_reading_or_an_error(
            status in 100u16..1000,
            body in prop_oneof![any::<Vec<u8>>(), "[{}\\[\\]\":,a-z0-9]{0,60}".prop_map(String::into_bytes)],
            limit in "[ -~]{0,12}",
        ) {
            let headers = [("x-ratelimit-limit", &*limit), ("x-ratelimit-reset", &*limit)];
            let _ = interpret(&response(status, &headers, &body), &account(), &["avg:a{*}"]);
        }
    }
}
