//! A Kubernetes API server over HTTP on this machine: it lists in pages, its watches stay open and
//! tell of nothing but `DatadogMetric`s, and it counts what it is asked. Each ScaledObject refers to
//! the TriggerAuthentication of its namespace, and that to a Secret; or it reads a `DatadogMetric`.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fs,
    future::ready,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};

/// What nothing that happened is newer than.
const VERSION: &str = "4711";

pub(crate) struct Kubernetes {
    pub(crate) kubeconfig: PathBuf,
    /// What the watch of `DatadogMetric`s is to tell.
    #[allow(dead_code, reason = "not every benchmark tells of some")]
    pub(crate) events: Events,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
    _directory: TempDir,
}

/// Of the watch that is open, if there is one.
pub(crate) type Events = watch::Sender<Option<mpsc::Sender<Bytes>>>;

struct Shared {
    /// As JSON.
    scaled_objects: Vec<String>,
    authentications: Vec<String>,
    datadog_metrics: Vec<String>,
    events: Events,
    /// By verb and resource.
    requests: Mutex<BTreeMap<(&'static str, String), u64>>,
}

/// What the objects are made of.
pub(crate) struct Population {
    pub(crate) scaled_objects: usize,
    pub(crate) namespaces: usize,
    /// Whether each reads a `DatadogMetric`.
    pub(crate) reads_metrics: bool,
}

impl Kubernetes {
    pub(crate) async fn start(population: &Population) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let text = format!(
            "\
apiVersion: v1
kind: Config
clusters: [{{ name: fake, cluster: {{ server: {url:?} }} }}]
users: [{{ name: scaler, user: {{ token: of-the-benchmark }} }}]
contexts: [{{ name: fake, context: {{ cluster: fake, user: scaler }} }}]
current-context: fake
"
        );
        fs::write(&kubeconfig, text).unwrap();

        let Population { scaled_objects, namespaces, reads_metrics } = *population;
        let used = namespaces.min(scaled_objects);
        let events = Events::new(None);
        let shared = Arc::new(Shared {
            scaled_objects: (0..scaled_objects)
                .map(|number| scaled_object(number, number % namespaces, reads_metrics).to_string())
                .collect(),
            authentications: (0..used).map(|number| authentication(number).to_string()).collect(),
            datadog_metrics: (0..scaled_objects)
                .filter(|_| reads_metrics)
                .map(|number| datadog_metric(number, number % namespaces, 0).to_string())
                .collect(),
            events: events.clone(),
            requests: Mutex::default(),
        });
        let router = Router::new()
            .route("/apis/keda.sh/v1alpha1/{resource}", get(list))
            .route("/apis/datadoghq.com/v1alpha1/{resource}", get(list))
            .route("/apis/keda.sh/v1alpha1/namespaces/{namespace}/{resource}/{name}", get(none))
            .route("/api/v1/namespaces/{namespace}/secrets/{name}", get(secret))
            .with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { kubeconfig, events, shared, _server: server, _directory: directory }
    }

    /// What it was asked so far, by verb and resource.
    pub(crate) fn requests(&self) -> BTreeMap<(&'static str, String), u64> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Mean size of a ScaledObject, in bytes.
    pub(crate) fn size(&self) -> usize {
        let objects = &self.shared.scaled_objects;
        objects.iter().map(String::len).sum::<usize>() / objects.len().max(1)
    }
}

impl Shared {
    fn count(&self, verb: &'static str, resource: &str) {
        *self.requests.lock().unwrap().entry((verb, resource.to_owned())).or_default() += 1;
    }
}

async fn list(
    State(shared): State<Arc<Shared>>,
    Path(resource): Path<String>,
    Query(parameters): Query<HashMap<String, String>>,
) -> Response {
    let number = |name: &str| parameters.get(name).and_then(|text| text.parse().ok());
    if parameters.get("watch").is_some_and(|watch| watch == "true") {
        shared.count("watch", &resource);
        if resource == "datadogmetrics" {
            let (sender, receiver) = mpsc::channel::<Bytes>(1_000);
            shared.events.send_replace(Some(sender));
            let events = stream::unfold(receiver, |mut receiver| async {
                Some((Ok::<_, Infallible>(receiver.recv().await?), receiver))
            });
            return json_of(Body::from_stream(events));
        }
        let limit = Duration::from_secs(number("timeoutSeconds").unwrap_or(300));
        let nothing =
            stream::once(sleep(limit)).filter_map(|()| ready(None::<Result<Bytes, Infallible>>));
        return json_of(Body::from_stream(nothing));
    }
    shared.count("list", &resource);
    let objects: &[String] = match &*resource {
        "scaledobjects" => &shared.scaled_objects,
        "triggerauthentications" => &shared.authentications,
        "datadogmetrics" => &shared.datadog_metrics,
        _ => &[],
    };
    let offset = usize::try_from(number("continue").unwrap_or(0)).unwrap();
    let most = usize::try_from(number("limit").unwrap_or(u64::MAX)).unwrap();
    let rest = &objects[offset..];
    let page = &rest[..rest.len().min(most)];
    let next = offset + page.len();
    let mut metadata = json!({"resourceVersion": VERSION});
    if next < objects.len() {
        metadata["continue"] = next.to_string().into();
        metadata["remainingItemCount"] = (objects.len() - next).into();
    }
    let items = page.join(",");
    json_of(Body::from(format!(
        r#"{{"apiVersion":"keda.sh/v1alpha1","kind":"List","metadata":{metadata},"items":[{items}]}}"#
    )))
}

async fn none(
    State(shared): State<Arc<Shared>>,
    Path((_, resource, name)): Path<(String, String, String)>,
) -> impl IntoResponse {
    shared.count("get", &resource);
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": format!("{resource}.keda.sh \"{name}\" not found"),
        "reason": "NotFound",
        "code": 404,
    });
    (StatusCode::NOT_FOUND, json_of(Body::from(status.to_string())))
}

async fn secret(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    shared.count("get", "secrets");
    let value = |text: String| ByteString(text.into_bytes());
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": namespace, "name": name, "resourceVersion": "7"},
        "type": "Opaque",
        "data": {
            "apiKey": value(format!("api-key-of-{namespace}")),
            "appKey": value(format!("app-key-of-{namespace}")),
        },
    });
    json_of(Body::from(secret.to_string()))
}

fn json_of(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// As KEDA leaves one that was made with `kubectl apply`.
fn scaled_object(number: usize, namespace: usize, reads_metrics: bool) -> Value {
    let name = format!("checkout-{number}");
    let metric = "s0-datadog-sum-trace-http-request-hits";
    let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message});
    let trigger = if reads_metrics {
        json!({"type": "external", "metadata": metadata_of_metric(number, namespace)})
    } else {
        json!({
            "type": "external",
            "metadata": metadata(number),
            "authenticationRef": {"name": "datadog"},
        })
    };
    let spec = json!({
        "scaleTargetRef": {"name": name},
        "pollingInterval": 30,
        "cooldownPeriod": 300,
        "minReplicaCount": 1,
        "maxReplicaCount": 20,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
        }}}},
        "fallback": {"failureThreshold": 4, "replicas": 6},
        "triggers": [trigger],
    });
    let applied = json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"annotations": {}, "name": name, "namespace": team(namespace)},
        "spec": spec,
    });
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": applied.to_string(),
            },
            "creationTimestamp": "2026-09-23T08:15:30Z",
            "finalizers": ["finalizer.keda.sh"],
            "generation": 2,
            "labels": {
                "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/name": name,
                "scaledobject.keda.sh/name": name,
            },
            "managedFields": [
                managed("kubectl-client-side-apply", "", &json!({
                    "f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}}},
                    "f:spec": {
                        ".": {}, "f:advanced": {".": {}, "f:horizontalPodAutoscalerConfig": {".": {}, "f:behavior": {".": {}, "f:scaleDown": {".": {}, "f:policies": {}, "f:stabilizationWindowSeconds": {}}}}},
                        "f:cooldownPeriod": {}, "f:fallback": {".": {}, "f:failureThreshold": {}, "f:replicas": {}},
                        "f:maxReplicaCount": {}, "f:minReplicaCount": {}, "f:pollingInterval": {},
                        "f:scaleTargetRef": {".": {}, "f:name": {}}, "f:triggers": {},
                    },
                })),
                managed("keda", "", &json!({
                    "f:metadata": {"f:finalizers": {".": {}, "v:\"finalizer.keda.sh\"": {}}, "f:labels": {".": {}, "f:scaledobject.keda.sh/name": {}}},
                })),
                managed("keda", "status", &json!({
                    "f:status": {".": {}, "f:conditions": {}, "f:externalMetricNames": {}, "f:health": {".": {}, format!("f:{metric}"): {".": {}, "f:numberOfFailures": {}, "f:status": {}}}, "f:hpaName": {}, "f:lastActiveTime": {}, "f:originalReplicaCount": {}, "f:scaleTargetGVKR": {".": {}, "f:group": {}, "f:kind": {}, "f:resource": {}, "f:version": {}}, "f:scaleTargetKind": {}},
                })),
            ],
            "name": name,
            "namespace": team(namespace),
            "resourceVersion": (1_000 + number).to_string(),
            "uid": format!("3f0c8b1e-5a44-4c83-9d0b-{number:012}"),
        },
        "spec": spec,
        "status": {
            "conditions": [
                condition("Ready", "True", "ScaledObjectReady", "ScaledObject is defined correctly and is ready for scaling"),
                condition("Active", "True", "ScalerActive", "Scaling is performed because triggers are active"),
                condition("Fallback", "False", "NoFallbackFound", "No fallbacks are active on this scaled object"),
                condition("Paused", "Unknown", "", ""),
            ],
            "externalMetricNames": [metric],
            "health": {metric: {"numberOfFailures": 0, "status": "Happy"}},
            "hpaName": format!("keda-hpa-{name}"),
            "lastActiveTime": "2026-09-23T10:15:30Z",
            "originalReplicaCount": 3,
            "scaleTargetGVKR": {"group": "apps", "kind": "Deployment", "resource": "deployments", "version": "v1"},
            "scaleTargetKind": "apps/v1.Deployment",
            "triggersTypes": "external",
            "authenticationsTypes": "datadog",
        },
    })
}

fn managed(manager: &str, subresource: &str, fields: &Value) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
        "manager": manager,
        "operation": "Update",
        "subresource": subresource,
        "time": "2026-09-23T08:15:30Z",
    })
}

fn authentication(namespace: usize) -> Value {
    let entry =
        |parameter| json!({"parameter": parameter, "name": "datadog-keys", "key": parameter});
    let entries = ["apiKey", "appKey"].map(entry);
    json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": {"namespace": team(namespace), "name": "datadog", "resourceVersion": "900"},
        "spec": {"secretTargetRef": entries},
    })
}

pub(crate) fn team(number: usize) -> String {
    format!("team-{number}")
}

/// Of the trigger of the ScaledObject `checkout-{number}`.
pub(crate) fn metadata(number: usize) -> HashMap<String, String> {
    let query = format!(
        "sum:trace.http.request.hits{{env:live,service:checkout-{number}}}.as_rate().rollup(avg, 30)"
    );
    let metadata = [
        ("scalerAddress", "keda-datadog-scaler.keda:9090"),
        ("query", &query),
        ("queryValue", "120"),
        ("activationQueryValue", "5"),
        ("lastAvailablePointOffset", "auto"),
    ];
    metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The same, where it reads the `DatadogMetric` `checkout-{number}` of its namespace.
pub(crate) fn metadata_of_metric(number: usize, namespace: usize) -> HashMap<String, String> {
    let metadata = [
        ("scalerAddress", "keda-datadog-scaler.keda:9090".to_owned()),
        ("useClusterAgentProxy", "true".to_owned()),
        ("datadogMetricNamespace", team(namespace)),
        ("datadogMetricName", format!("checkout-{number}")),
        ("targetValue", "120".to_owned()),
    ];
    metadata.map(|(key, value)| (key.to_owned(), value)).into()
}

/// As a Cluster Agent leaves one that it reads, at this instant.
pub(crate) fn datadog_metric(number: usize, namespace: usize, value: u64) -> Value {
    let name = format!("checkout-{number}");
    #[expect(clippy::disallowed_methods, reason = "the scaler compares it with its own clock")]
    let at = jiff::Timestamp::now().to_string();
    let conditions = ["Active", "Valid", "Updated", "Error"].map(|condition| {
        json!({
            "type": condition,
            "status": if condition == "Error" { "False" } else { "True" },
            "lastTransitionTime": "2026-09-23T08:15:30Z",
            "lastUpdateTime": at,
        })
    });
    json!({
        "apiVersion": "datadoghq.com/v1alpha1",
        "kind": "DatadogMetric",
        "metadata": {
            "annotations": {"external-metrics.datadoghq.com/always-active": "true"},
            "creationTimestamp": "2026-09-23T08:15:30Z",
            "generation": 1,
            "name": name,
            "namespace": team(namespace),
            "resourceVersion": (5_000 + value).to_string(),
            "uid": format!("7a1d0c2e-5a44-4c83-9d0b-{number:012}"),
        },
        "spec": {"query": format!("sum:trace.http.request.hits{{env:live,service:{name}}}.rollup(avg, 30)")},
        "status": {
            "autoscalerReferences": "",
            "currentValue": value.to_string(),
            "conditions": conditions,
        },
    })
}
