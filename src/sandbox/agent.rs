//! The simulated Cluster Agent: the external metrics API of Kubernetes, as an agent serves it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    AGENT_TOKEN,
    broken::Trouble,
    failure,
    fault::Fault,
    metric,
    quantity::quantity,
    state::{Asked, MAX_REMEMBERED, Simulation},
};
use crate::{demand::Service, source::datadog::wall_clock, words::shorten};

const METRIC: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}";
const ANONYMOUS: &str = "system:anonymous";
/// Whose the token is.
const OWNER: &str = "system:serviceaccount:keda:keda-datadog-scaler";

pub(super) fn routes() -> Router<Arc<Simulation>> {
    let not_allowed = async |headers: HeaderMap, uri: Uri| {
        let message = "the server does not allow this method on the requested resource";
        bare(&headers, &uri, StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    };
    Router::new().route(METRIC, get(ask).fallback(not_allowed)).fallback(
        async |headers: HeaderMap, uri: Uri| {
            let message = "the server could not find the requested resource";
            bare(&headers, &uri, StatusCode::NOT_FOUND, "NotFound", message)
        },
    )
}

/// Namespace and metric are those of the path. What is read is told by the metric alone.
async fn ask(
    State(simulation): State<Arc<Simulation>>,
    Path((namespace, metric)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let now = wall_clock().as_second();
    let name = metric.to_lowercase();
    let trouble = simulation.state().faults.trouble(Service::ClusterAgent, &name);
    let (fault, response, note) = match caller(&headers) {
        Caller::Owner => {
            let (response, note) = answer(&namespace, &name, &trouble, now);
            (trouble.fault(), response, note)
        }
        Caller::Anonymous => {
            (None, forbidden(ANONYMOUS, &namespace, &metric), "no token".to_owned())
        }
        Caller::Unknown => (None, unauthorized(), "a wrong token".to_owned()),
    };
    simulation.state().remember(Asked {
        at: now,
        query: shorten(&name, MAX_REMEMBERED),
        window: None,
        // What hangs has an answer too, which is never sent.
        status: (fault != Some(Fault::Hang)).then(|| response.status().as_u16()),
        note,
    });
    failure::wait(fault).await;
    response
}

/// The answer to who may ask, and what is remarkable about it.
fn answer(namespace: &str, name: &str, trouble: &Trouble, now: i64) -> (Response, String) {
    let fault = trouble.fault();
    let refusal = match fault {
        Some(Fault::Unauthorized) => Some(unauthorized()),
        Some(Fault::Forbidden) => Some(forbidden(OWNER, namespace, name)),
        Some(Fault::ThrottledBare) => Some(overloaded()),
        Some(Fault::ServerError) => Some(unable(namespace, name)),
        _ => None,
    };
    if let Some(refusal) = refusal {
        return (refusal, trouble.note());
    }
    let (at, value) = match metric::read(name, trouble, now) {
        Ok(point) => point,
        Err(words) => return (failed(&words), shorten(&words, MAX_REMEMBERED)),
    };
    let values = values(name, at, value);
    let damaged = fault.and_then(|fault| {
        failure::damage(fault, &serde_json::to_string(&values).unwrap_or_default())
    });
    (damaged.unwrap_or_else(|| Json(values).into_response()), trouble.note())
}

enum Caller {
    Owner,
    Anonymous,
    Unknown,
}

fn caller(headers: &HeaderMap) -> Caller {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let scheme_and_token = authorization.and_then(|it| it.trim().split_once(' '));
    match scheme_and_token {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            if token == AGENT_TOKEN {
                Caller::Owner
            } else {
                Caller::Unknown
            }
        }
        // As Kubernetes takes who tells nothing that it knows.
        _ => Caller::Anonymous,
    }
}

/// In the order of an API server.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalMetricValueList {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    items: [ExternalMetricValue; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalMetricValue {
    metric_name: String,
    metric_labels: Option<Value>,
    timestamp: String,
    value: String,
}

/// `at` is in seconds since the epoch.
fn values(name: &str, at: i64, value: f64) -> ExternalMetricValueList {
    ExternalMetricValueList {
        kind: "ExternalMetricValueList",
        api_version: "external.metrics.k8s.io/v1beta1",
        metadata: json!({}),
        items: [ExternalMetricValue {
            metric_name: name.to_owned(),
            metric_labels: None,
            timestamp: Timestamp::from_second(at).unwrap_or_default().to_string(),
            value: quantity(value),
        }],
    }
}

/// The `Status` of Kubernetes for whatever failed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    status: &'static str,
    message: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
    code: u16,
}

fn status(
    code: StatusCode,
    reason: &'static str,
    message: &str,
    details: Option<Value>,
) -> Response {
    let failure = Failure {
        kind: "Status",
        api_version: "v1",
        metadata: json!({}),
        status: "Failure",
        message,
        reason,
        details,
        code: code.as_u16(),
    };
    (code, Json(failure)).into_response()
}

fn unauthorized() -> Response {
    status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", None)
}

fn forbidden(user: &str, namespace: &str, metric: &str) -> Response {
    let message = format!(
        "{metric}.external.metrics.k8s.io is forbidden: User \"{user}\" cannot list resource \
         \"{metric}\" in API group \"external.metrics.k8s.io\" in the namespace \"{namespace}\""
    );
    let details = json!({"group": "external.metrics.k8s.io", "kind": metric});
    status(StatusCode::FORBIDDEN, "Forbidden", &message, Some(details))
}

/// Whatever is wrong with a metric.
fn failed(words: &str) -> Response {
    let message = format!("Internal error occurred: {words}");
    let details = json!({"causes": [{"message": words}]});
    status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &message, Some(details))
}

/// More requests at once than an API server takes.
fn overloaded() -> Response {
    let headers = [(header::RETRY_AFTER, "1")];
    let text = "Too many requests, please try again later.\n";
    (StatusCode::TOO_MANY_REQUESTS, headers, text).into_response()
}

/// The API server of Kubernetes did not tell the agent whether the caller may.
fn unable(namespace: &str, name: &str) -> Response {
    let path = METRIC.replace("{namespace}", namespace).replace("{metric}", name);
    let text = format!("Internal Server Error: \"{path}\": context deadline exceeded\n");
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

/// Of what is not that of a metric.
fn bare(
    headers: &HeaderMap,
    uri: &Uri,
    code: StatusCode,
    reason: &'static str,
    message: &str,
) -> Response {
    match caller(headers) {
        Caller::Owner => status(code, reason, message, Some(json!({}))),
        Caller::Unknown => unauthorized(),
        Caller::Anonymous => {
            let message =
                format!("forbidden: User \"{ANONYMOUS}\" cannot get path \"{}\"", uri.path());
            status(StatusCode::FORBIDDEN, "Forbidden", &message, Some(json!({})))
        }
    }
}
