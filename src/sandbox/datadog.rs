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
    reply::Request,
    state::{Admission, Simulation},
};
use crate::source::datadog::wall_clock;

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
    if !keys_are_right(&headers) {
        return failure::forbidden();
    }
    let admission = simulation.state().admit(query, now);
    let response = answer(&parameters, &admission, now);
    failure::wait(admission.trouble.fault()).await;
    response
}

fn answer(parameters: &Parameters, admission: &Admission, now: i64) -> Response {
    let Admission { trouble, standing, has_room } = admission;
    let fault = trouble.fault();
    if let Some(refusal) = fault.and_then(|fault| failure::refusal(fault, standing)) {
        return refusal;
    }
    let answer = if !has_room {
        failure::throttled()
    } else if let Some(request) = parameters.request() {
        let datadogs_now = failure::datadogs_clock(fault, now);
        let sound = request.answer(&trouble.data, datadogs_now);
        match fault {
            Some(fault) => failure::spoil(fault, request, &sound, datadogs_now),
            None => Json(sound).into_response(),
        }
    } else {
        let body = Json(json!({"errors": ["`from`, `to` and `query` are required"]}));
        (StatusCode::BAD_REQUEST, body).into_response()
    };
    (standing.headers(), answer).into_response()
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
