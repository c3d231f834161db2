//! What it answers.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    Asked, FakeKubernetes, Trouble,
    store::{Kind, Remainder, Selection, Store},
    watching::Watching,
};

const USER: &str = "system:serviceaccount:keda:keda-datadog-scaler";

pub(super) async fn answer(
    State(kubernetes): State<FakeKubernetes>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let (asked, version) = understand(&method, uri.path(), query, bearer);
    kubernetes.store.send_modify(|store| store.asked.push(asked.clone()));
    let mut store = kubernetes.store.subscribe();
    let hangs = |store: &Store| store.trouble(&asked.resource) == Some(Trouble::Hangs);
    let _ = store.wait_for(|store| !hangs(store)).await;
    let mut response = None;
    kubernetes.store.send_if_modified(|store| {
        response = Some(decide(store, &asked, &version, &kubernetes.store));
        false
    });
    response.expect("it is decided")
}

/// The request, and the version of its group.
fn understand(
    method: &Method,
    path: &str,
    query: BTreeMap<String, String>,
    bearer: Option<String>,
) -> (Asked, String) {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let (group, version, rest) = match &*segments {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => ("", "", &[][..]),
    };
    let (namespace, resource, name) = match *rest {
        [resource] => ("", resource, ""),
        [resource, name] => ("", resource, name),
        ["namespaces", namespace, resource] => (namespace, resource, ""),
        ["namespaces", namespace, resource, name] => (namespace, resource, name),
        // Discovery, or nothing that is here.
        _ => ("", "", ""),
    };
    let watches = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let verb = match *method {
        Method::GET if !name.is_empty() || resource.is_empty() => "get",
        Method::GET if watches => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        _ => "delete",
    };
    let asked = Asked {
        verb,
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        path: path.to_owned(),
        query,
        bearer,
        at: Instant::now(),
    };
    (asked, version.to_owned())
}

fn decide(
    store: &mut Store,
    asked: &Asked,
    version: &str,
    handle: &watch::Sender<Store>,
) -> Response {
    match store.trouble(&asked.resource) {
        Some(Trouble::Fails(code)) => return failure(code),
        Some(Trouble::Garbage(body)) => return body.into_response(),
        Some(Trouble::Hangs) | None => {}
    }
    if asked.resource.is_empty() {
        return discover(store, asked);
    }
    if !store.allows(asked) {
        return forbidden(asked);
    }
    let kind = store.kinds.iter().find(|kind| {
        kind.names.group == asked.group
            && kind.names.version == version
            && kind.names.plural == asked.resource
    });
    let Some(kind) = kind.cloned() else { return nowhere() };
    let misplaced = kind.namespaced && asked.namespace.is_empty() && !asked.name.is_empty();
    if misplaced || (!kind.namespaced && !asked.namespace.is_empty()) {
        return nowhere();
    }
    let selection = match select(asked) {
        Ok(selection) => selection,
        Err(response) => return *response,
    };
    match asked.verb {
        "get" => get(store, asked, &kind, &selection),
        "list" => list(store, asked, &kind, &selection),
        "watch" => match Watching::start(store, asked, kind, selection) {
            Ok(watching) => {
                store.open_watches += 1;
                watching.into_response(handle)
            }
            Err(status) => status_response(status),
        },
        _ => status_response(status(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

fn select(asked: &Asked) -> Result<Selection, Box<Response>> {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut selection = Selection { namespace: given(&asked.namespace), name: given(&asked.name) };
    let refuse = |what: &str| Err(Box::new(status_response(status(400, "BadRequest", what))));
    if asked.query.contains_key("labelSelector") {
        return refuse("this API server knows no labels");
    }
    let fields = asked.query.get("fieldSelector").map_or("", String::as_str);
    for field in fields.split(',').filter(|field| !field.is_empty()) {
        match field.split_once('=').map(|(key, value)| (key, value.trim_start_matches('='))) {
            Some(("metadata.name", name)) => selection.name = given(name),
            Some(("metadata.namespace", namespace)) => selection.namespace = given(namespace),
            _ => return refuse(&format!("field label not supported: {field}")),
        }
    }
    Ok(selection)
}

fn get(store: &Store, asked: &Asked, kind: &Kind, selection: &Selection) -> Response {
    let Some(object) = store.objects(kind, selection).next() else {
        let message = format!("{} \"{}\" not found", qualified(asked), asked.name);
        return status_response(detailed(status(404, "NotFound", &message), asked));
    };
    Json(object).into_response()
}

fn list(store: &mut Store, asked: &Asked, kind: &Kind, selection: &Selection) -> Response {
    let list = match asked.query.get("continue") {
        Some(token) => store.remainders.get(token).cloned(),
        None => Some(Remainder {
            version: store.version,
            items: store.objects(kind, selection).cloned().collect(),
        }),
    };
    let Some(mut list) = list else {
        let message = "The provided continue parameter is too old to display a consistent list \
                       result. You can start a new list without the continue parameter.";
        return status_response(status(410, "Expired", message));
    };
    let mut metadata = json!({"resourceVersion": list.version.to_string()});
    let limit = asked.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
    // A list of whatever version is not cut into pages.
    let whole = asked.query.get("resourceVersion").is_some_and(|version| version == "0");
    if limit > 0 && !whole && list.items.len() > limit {
        let items = list.items.split_off(limit);
        let token = format!("{}-{}", list.version, store.remainders.len());
        metadata["continue"] = token.clone().into();
        metadata["remainingItemCount"] = items.len().into();
        store.remainders.insert(token, Remainder { version: list.version, items });
    }
    if kind.is_built_in() {
        for item in list.items.iter_mut().filter_map(Value::as_object_mut) {
            item.retain(|key, _| key != "apiVersion" && key != "kind");
        }
    }
    let list = json!({
        "apiVersion": kind.names.api_version,
        "kind": format!("{}List", kind.names.kind),
        "metadata": metadata,
        "items": list.items,
    });
    Json(list).into_response()
}

fn discover(store: &Store, asked: &Asked) -> Response {
    if asked.path == "/version" {
        return Json(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "", "gitTreeState":
            "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.24", "compiler": "gc",
            "platform": "linux/amd64",
        }))
        .into_response();
    }
    let path = asked.path.trim_matches('/');
    let path = path.strip_prefix("apis/").or(path.strip_prefix("api/")).unwrap_or_default();
    let kinds = store.kinds.iter().filter(|kind| kind.names.api_version == path);
    let resources: Vec<Value> = kinds
        .map(|kind| {
            json!({
                "name": kind.names.plural, "singularName": kind.names.kind.to_lowercase(),
                "namespaced": kind.namespaced, "kind": kind.names.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    if resources.is_empty() {
        return nowhere();
    }
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": path,
        "resources": resources,
    }))
    .into_response()
}

/// What no handler is for is answered in plain text.
fn nowhere() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}

fn forbidden(asked: &Asked) -> Response {
    let Asked { verb, group, resource, namespace, name, .. } = asked;
    let place = match &**namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let object = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let message = format!(
        "{}{object} is forbidden: User \"{USER}\" cannot {verb} resource \"{resource}\" in API \
         group \"{group}\" {place}",
        qualified(asked)
    );
    status_response(detailed(status(403, "Forbidden", &message), asked))
}

fn failure(code: u16) -> Response {
    let (reason, message) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        // In plain text: it comes before what handles requests.
        429 => {
            let message = "Too many requests, please try again later.\n";
            let again = [(header::RETRY_AFTER, "1")];
            return (StatusCode::TOO_MANY_REQUESTS, again, message).into_response();
        }
        500 => ("InternalError", "Internal error occurred: etcdserver: leader changed"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "the request timed out"),
        _ => ("", "scripted"),
    };
    status_response(status(code, reason, message))
}

/// As errors name a kind: `scaledobjects.keda.sh`.
fn qualified(asked: &Asked) -> String {
    match &*asked.group {
        "" => asked.resource.clone(),
        group => format!("{}.{group}", asked.resource),
    }
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn detailed(mut status: Value, asked: &Asked) -> Value {
    let details =
        [("name", &asked.name), ("group", &asked.group), ("kind", &asked.resource)].into_iter();
    for (key, value) in details.filter(|(_, value)| !value.is_empty()) {
        status["details"][key] = value.clone().into();
    }
    status
}

fn status_response(status: Value) -> Response {
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.and_then(|code| StatusCode::from_u16(code).ok()).expect("a status has a code");
    (code, Json(status)).into_response()
}
