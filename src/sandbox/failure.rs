//! How each fault looks over HTTP when it is Datadog that is asked.

use std::{convert::Infallible, iter, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use futures_util::stream;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use serde_json::{Value, json};
use tokio::{task::yield_now, time::sleep};

use super::{fault::Fault, limit::Standing, reply::Request};

/// How far `Fault::ClockSkew` puts Datadog's clock back, in seconds.
const SKEW: i64 = 600;

/// The answer to a request that Datadog does not look into. `None` if it does.
pub(super) fn refusal(fault: Fault, standing: &Standing) -> Option<Response> {
    let errors = |text: &str| Json(json!({"errors": [text]}));
    let page = |title: &str| {
        Html(format!("<html><head><title>{title}</title></head><body>{title}</body></html>\n"))
    };
    Some(match fault {
        Fault::Unauthorized => (StatusCode::UNAUTHORIZED, errors("Unauthorized")).into_response(),
        Fault::Forbidden => forbidden(),
        Fault::Throttled => (standing.headers_of_none_left(), throttled()).into_response(),
        Fault::ThrottledBare => {
            (StatusCode::TOO_MANY_REQUESTS, page("429 Slow down")).into_response()
        }
        Fault::ServerError => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Fault::BadGateway => (StatusCode::BAD_GATEWAY, Json("Bad Gateway")).into_response(),
        Fault::GatewayTimeout => {
            (StatusCode::GATEWAY_TIMEOUT, page("504 Gateway Timeout")).into_response()
        }
        _ => return None,
    })
}

pub(super) fn forbidden() -> Response {
    let body = json!({"status": "error", "code": 403, "errors": ["Forbidden"]});
    (StatusCode::FORBIDDEN, Json(body)).into_response()
}

pub(super) fn throttled() -> Response {
    (StatusCode::TOO_MANY_REQUESTS, Json(json!({"errors": ["Too many requests"]}))).into_response()
}

/// What Datadog takes for now.
pub(super) fn datadogs_clock(fault: Option<Fault>, now: i64) -> i64 {
    if fault == Some(Fault::ClockSkew) { now - SKEW } else { now }
}

/// What comes in place of the `sound` answer that Datadog made at `now`.
pub(super) fn spoil(fault: Fault, request: Request<'_>, sound: &Value, now: i64) -> Response {
    match fault {
        Fault::Unprocessable => {
            let body = json!({"errors": ["Unprocessable Content"]});
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
        Fault::Error => Json(request.error("Query timed out")).into_response(),
        Fault::Rejected => Json(request.malformed(request.query, 0)).into_response(),
        Fault::ClockSkew => (date(now), Json(sound)).into_response(),
        _ => damage(fault, &sound.to_string()).unwrap_or_else(|| Json(sound).into_response()),
    }
}

/// What comes in place of a `sound` answer on a bad way, whoever made it. `None` if it comes as it is.
pub(super) fn damage(fault: Fault, sound: &str) -> Option<Response> {
    Some(match fault {
        Fault::Reset => broken_off(sound),
        // Who waits that long is not given a value after all.
        Fault::Hang => StatusCode::GATEWAY_TIMEOUT.into_response(),
        Fault::Garbage => {
            (json_type(), "<!doctype html><title>Welcome to the guest network</title>\n")
                .into_response()
        }
        Fault::Truncated => (json_type(), first_half(sound)).into_response(),
        Fault::Huge => (json_type(), huge()).into_response(),
        _ => return None,
    })
}

/// Nobody waits for longer; a client that went may not be noticed before.
const HANG: Duration = Duration::from_mins(10);

/// The part of a fault that takes time. A request that is given up is no longer waited with.
pub(super) async fn wait(fault: Option<Fault>) {
    match fault {
        Some(Fault::Latency) => sleep(Duration::from_millis(300)).await,
        Some(Fault::Slow) => sleep(Duration::from_secs(5)).await,
        Some(Fault::Hang) => sleep(HANG).await,
        _ => {}
    }
}

fn json_type() -> [(header::HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]
}

fn first_half(text: &str) -> String {
    text[..text.floor_char_boundary(text.len() / 2)].to_owned()
}

/// Promises the whole text and sends half of it.
fn broken_off(text: &str) -> Response {
    let length =
        [(header::CONTENT_LENGTH, text.len())].map(|(name, value)| (name, value.to_string()));
    let half = stream::unfold(Some(first_half(text)), |half| async {
        if let Some(half) = half {
            return Some((Ok(half), None));
        }
        // So that the server sends the half before it learns that no more will come.
        yield_now().await;
        Some((Err("the sandbox breaks off the connection"), None))
    });
    (json_type(), length, Body::from_stream(half)).into_response()
}

/// Sent piece by piece, for it is larger than a program should keep for each of its requests.
fn huge() -> Body {
    const POINTS: &str = "[1000,1],";
    let points = Bytes::from(POINTS.repeat(8_000));
    let pieces = iter::once(Bytes::from_static(b"{\"status\":\"ok\",\"series\":[{\"pointlist\":["))
        .chain(iter::repeat_n(points, 120))
        .chain(iter::once(Bytes::from_static(b"[1000,1]]}]}")));
    Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)))
}

fn date(now: i64) -> Option<[(header::HeaderName, String); 1]> {
    let now = Timestamp::from_second(now).ok()?;
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok()?;
    Some([(header::DATE, date)])
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::sandbox::limit::Limit;

    #[test]
    fn what_is_refused_does_not_count_and_all_else_does() {
        let standing = Limit::new(1_600).standing(0, None);
        for fault in Fault::ALL {
            assert_eq!(refusal(fault, &standing).is_none(), fault.counts(), "{fault}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_is_as_late_as_is_said() {
        let started_at = Instant::now();
        wait(None).await;
        wait(Some(Fault::GatewayTimeout)).await;
        assert_eq!(started_at.elapsed(), Duration::ZERO);
        wait(Some(Fault::Latency)).await;
        assert_eq!(started_at.elapsed(), Duration::from_millis(300));
        wait(Some(Fault::Slow)).await;
        assert_eq!(started_at.elapsed(), Duration::from_millis(5_300));
        assert!(timeout(Duration::from_mins(9), wait(Some(Fault::Hang))).await.is_err());
    }
}
