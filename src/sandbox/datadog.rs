//! `GET /api/v1/query` of the simulated Datadog: keys, rate limit, faults, answer.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    API_KEY, APP_KEY, failure,
    fault::Fault,
    reply::Request,
    state::{Admission, Asked, MAX_REMEMBERED, Simulation},
};
use crate::{source::datadog::wall_clock, words::shorten};

#[derive(Deserialize)]
pub(super) struct Parameters {
    from: Option<String>,
    to: Option<String>,
    query: Option<String>,
}

pub(super) async fn query(
    State(simulation): State<Arc<Simulation>>,
    headers: HeaderMap,
    Query(parameters): Query<Parameters>,
) -> Response {
    let now = wall_clock().as_second();
    let query = parameters.query.as_deref().unwrap_or_default();
    // The keys are looked at before anything else, as Datadog does.
    let (fault, response, note) = if keys_are_right(&headers) {
        let admission = simulation.state().admit(query, now);
        let (response, note) = answer(&parameters, &admission, now);
        (admission.trouble.fault(), response, note)
    } else {
        (None, failure::forbidden(), "wrong keys".to_owned())
    };
    simulation.state().remember(Asked {
        at: now,
        query: shorten(query, MAX_REMEMBERED),
        window: parameters.request().map(|request| (request.from, request.to)),
        // What hangs has an answer too, which is never sent.
        status: (fault != Some(Fault::Hang)).then(|| response.status().as_u16()),
        note,
    });
    failure::wait(fault).await;
    response
}

/// The answer, and what is remarkable about it.
fn answer(parameters: &Parameters, admission: &Admission, now: i64) -> (Response, String) {
    let Admission { trouble, standing, has_room } = admission;
    let fault = trouble.fault();
    if let Some(refusal) = fault.and_then(|fault| failure::refusal(fault, standing)) {
        return (refusal, trouble.note());
    }
    let (answer, note) = if !has_room {
        (failure::throttled(), "the limit is spent".to_owned())
    } else if let Some(request) = parameters.request() {
        let datadogs_now = failure::datadogs_clock(fault, now);
        let sound = request.answer(&trouble.data, datadogs_now);
        let note = match sound["error"].as_str() {
            Some(error) => shorten(error, MAX_REMEMBERED),
            None => trouble.note(),
        };
        let answer = match fault {
            Some(fault) => failure::spoil(fault, request, &sound, datadogs_now),
            None => Json(sound).into_response(),
        };
        (answer, note)
    } else {
        let needed = "`from`, `to` and `query` are required";
        let body = Json(json!({"errors": [needed]}));
        ((StatusCode::BAD_REQUEST, body).into_response(), needed.to_owned())
    };
    ((standing.headers(), answer).into_response(), note)
}

impl Parameters {
    /// `None` if one is missing, or a time is not a number.
    fn request(&self) -> Option<Request<'_>> {
        let seconds = |text: &Option<String>| text.as_deref()?.parse::<i64>().ok();
        Some(Request {
            from: seconds(&self.from)?,
            to: seconds(&self.to)?,
            query: self.query.as_deref()?,
        })
    }
}

fn keys_are_right(headers: &HeaderMap) -> bool {
    let is = |name: &str, expected: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes() == expected.as_bytes())
    };
    (is("dd-api-key", API_KEY) && is("dd-application-key", APP_KEY))
        || is(header::AUTHORIZATION.as_str(), "Bearer ddpat_sandbox")
}
