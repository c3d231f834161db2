//! The sandbox over HTTP, while it runs: faults are switched on, mended and listed, and the dial is
//! turned.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRequestParts, Path, Query, Request, State},
    http::{StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
    routing::{get, put},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    catalogue::set_dial,
    fault::{Breakage, Fault, NoBreakage},
    state::Simulation,
};
use crate::{admin::host, source::datadog::wall_clock};

/// A line of text, the same for all answers.
type Answer = (StatusCode, String);

pub(super) fn routes() -> Router<Arc<Simulation>> {
    Router::new()
        .route("/faults", get(list).delete(mend))
        .route("/faults/{name}", put(switch_on))
        .route("/dial", put(turn))
        .method_not_allowed_fallback(async || {
            let known = "PUT /faults/NAME, DELETE /faults and GET /faults are known, and PUT /dial";
            (StatusCode::METHOD_NOT_ALLOWED, format!("{known}\n"))
        })
}

/// Of a misspelt parameter it is not to be thought that all queries are meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    /// All queries, if there is none.
    query: Option<String>,
}

async fn switch_on(
    _: NoWebsite,
    State(simulation): State<Arc<Simulation>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Answer {
    let breakage =
        name.parse().and_then(|fault: Fault| Breakage::new(fault, which.query.as_deref()));
    let breakage = match breakage {
        Ok(breakage) => breakage,
        Err(error @ NoBreakage::UnknownFault { .. }) => {
            return (StatusCode::NOT_FOUND, format!("{error}\n"));
        }
        Err(error @ (NoBreakage::EmptyQuery | NoBreakage::Elsewhere { .. })) => {
            return (StatusCode::BAD_REQUEST, format!("{error}\n"));
        }
    };
    let now = wall_clock().as_second();
    let faults = &mut simulation.state().faults;
    match faults.switch_on(breakage, now) {
        Ok(()) => (StatusCode::OK, format!("{faults}\n")),
        Err(full) => (StatusCode::CONFLICT, format!("{full}\n")),
    }
}

async fn mend(
    _: NoWebsite,
    State(simulation): State<Arc<Simulation>>,
    Query(which): Query<Which>,
) -> Answer {
    let faults = &mut simulation.state().faults;
    match which.query {
        Some(query) => faults.mend(&query),
        None => faults.mend_all(),
    }
    (StatusCode::OK, format!("{faults}\n"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dial {
    value: f64,
}

async fn turn(_: NoWebsite, Query(Dial { value }): Query<Dial>) -> Answer {
    if !value.is_finite() {
        return (StatusCode::BAD_REQUEST, "`value` must be a number\n".to_owned());
    }
    set_dial(value);
    (StatusCode::OK, format!("sandbox.dial is {value}\n"))
}

async fn list(State(simulation): State<Arc<Simulation>>) -> Json<Value> {
    let state = simulation.state();
    let faults = state.faults.iter().map(|on| {
        json!({
            "fault": on.breakage.fault.name(),
            "about": on.breakage.fault.about(),
            "query": on.breakage.query,
            "since": Timestamp::from_second(on.since).ok().map(|since| since.to_string()),
        })
    });
    Json(faults.collect())
}

/// Refuses what a website asks that is open in a browser on this machine.
pub(super) async fn on_this_machine(request: Request, next: Next) -> Response {
    if host::address(request.headers()).is_some_and(|address| address.is_loopback()) {
        return next.run(request).await;
    }
    refused().into_response()
}

fn refused() -> Answer {
    let refusal = "only this machine is answered, by a loopback address and not from a website";
    (StatusCode::FORBIDDEN, format!("{refusal}\n"))
}

/// The request was not made by any website: a browser names it in `Origin`.
struct NoWebsite;

impl<S: Sync> FromRequestParts<S> for NoWebsite {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Answer> {
        if parts.headers.contains_key(header::ORIGIN) { Err(refused()) } else { Ok(Self) }
    }
}
