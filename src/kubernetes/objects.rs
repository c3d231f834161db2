//! KEDA's objects, as far as they matter here: how they are read, and what is kept of them.
//! (`apis/keda/v1alpha1` of KEDA; the CRDs' group is `keda.sh`, their version `v1alpha1`.)

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use kube::api::{ApiResource, DynamicObject};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Which of KEDA's two kinds that scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Kind {
    ScaledObject,
    ScaledJob,
}

/// One trigger of type `external` or `external-push`, as it stands in Kubernetes.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    pub object: Arc<Scalable>,
    /// Sorted by key.
    pub metadata: Box<[(Box<str>, Box<str>)]>,
    pub pushes: bool,
    /// `metricType`.
    pub metric_type: Option<Box<str>>,
    pub authentication: Option<Reference>,
}

/// What the triggers of a ScaledObject or ScaledJob have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct Scalable {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub workload: Workload,
    /// `cooldownPeriod` of a ScaledObject that can go to zero.
    pub cooldown: Option<Duration>,
    /// The HPA's `stabilizationWindowSeconds` for scaling down, of a ScaledObject.
    pub stabilization: Option<Duration>,
}

/// Where the pod template is that a TriggerAuthentication's `env` looks into.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Such as `apps/v1`.
    pub api_version: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
}

/// An `authenticationRef`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    pub kind: AuthenticationKind,
    pub name: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AuthenticationKind {
    TriggerAuthentication,
    ClusterTriggerAuthentication,
    /// Neither; KEDA would find nothing.
    Other(Box<str>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScaledObjectSpec {
    scale_target_ref: ScaleTarget,
    triggers: Option<Vec<TriggerSpec>>,
    cooldown_period: Option<i64>,
    min_replica_count: Option<i64>,
    idle_replica_count: Option<i64>,
    advanced: Option<Advanced>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScaleTarget {
    api_version: Option<Box<str>>,
    kind: Option<Box<str>>,
    name: Box<str>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Advanced {
    horizontal_pod_autoscaler_config: Option<HpaConfig>,
}

#[derive(Clone, Debug, Deserialize)]
struct HpaConfig {
    behavior: Option<Behavior>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Behavior {
    scale_down: Option<ScaleDown>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScaleDown {
    stabilization_window_seconds: Option<i64>,
}

/// Its pod template, which may be large, is read when it is needed.
#[derive(Clone, Debug, Deserialize)]
struct ScaledJobSpec {
    triggers: Option<Vec<TriggerSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TriggerSpec {
    r#type: Box<str>,
    metadata: Option<BTreeMap<Box<str>, Box<str>>>,
    metric_type: Option<Box<str>>,
    authentication_ref: Option<ReferenceSpec>,
}

#[derive(Clone, Debug, Deserialize)]
struct ReferenceSpec {
    name: Option<Box<str>>,
    kind: Option<Box<str>>,
}

/// `TriggerAuthenticationSpec`, which both kinds share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationSpec {
    pub env: Option<Vec<Variable>>,
    pub config_map_target_ref: Option<Vec<Entry>>,
    pub secret_target_ref: Option<Vec<Entry>>,
    /// Everything else, by its name.
    #[serde(flatten)]
    others: BTreeMap<Box<str>, Given>,
}

/// Whether something is there; what it is may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Value")]
struct Given(bool);

/// A parameter from an environment variable of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    pub parameter: Box<str>,
    pub name: Box<str>,
    /// The first one, if it is left out or empty.
    pub container_name: Option<Box<str>>,
}

/// A parameter from a key of a Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub parameter: Box<str>,
    pub name: Box<str>,
    pub key: Box<str>,
}

/// KEDA's defaults (`apis/keda/v1alpha1/scaledobject_types.go`, `pkg/scaling/executor`).
const COOLDOWN_SECONDS: i64 = 300;
/// Kubernetes' default of `behavior.scaleDown.stabilizationWindowSeconds`.
const STABILIZATION_SECONDS: i64 = 300;

/// Most triggers of one object that are kept, and most keys and bytes in the metadata of each: no
/// request has more, and what one object holds is gone through with each of its requests.
const MAX_TRIGGERS: usize = 500;
const MAX_KEYS: usize = 100;
const MAX_METADATA: usize = 64 << 10;

/// Group and version of KEDA's kinds.
pub(super) const KEDA: &str = "keda.sh/v1alpha1";

/// Those of `TriggerAuthenticationSpec` that are not resolved, in KEDA's order.
const UNRESOLVED: [&str; 8] = [
    "filePath",
    "hashiCorpVault",
    "azureKeyVault",
    "gcpSecretManager",
    "awsSecretManager",
    "boundServiceAccountToken",
    "azureServicePrincipal",
    "oauth2",
];

impl Kind {
    pub(super) fn resource(self) -> ApiResource {
        match self {
            Self::ScaledObject => resource("ScaledObject", "scaledobjects"),
            Self::ScaledJob => resource("ScaledJob", "scaledjobs"),
        }
    }
}

impl Workload {
    /// What the `spec` of an object of this name scales; `None` if it is not as its CRD has it.
    pub fn of(kind: Kind, name: &str, spec: &Value) -> Option<Self> {
        match kind {
            Kind::ScaledJob => Some(Self::of_job(name)),
            Kind::ScaledObject => {
                ScaleTarget::deserialize(spec.get("scaleTargetRef")?).ok().map(Into::into)
            }
        }
    }

    fn of_job(name: &str) -> Self {
        Self { api_version: KEDA.into(), kind: "ScaledJob".into(), name: name.into() }
    }
}

impl From<ScaleTarget> for Workload {
    fn from(target: ScaleTarget) -> Self {
        let or = |given: Option<Box<str>>, default: &str| {
            given.filter(|given| !given.is_empty()).unwrap_or_else(|| default.into())
        };
        Self {
            api_version: or(target.api_version, "apps/v1"),
            kind: or(target.kind, "Deployment"),
            name: target.name,
        }
    }
}

impl Reference {
    /// As a trigger writes it; either may be empty. `None` without a name.
    pub fn new(kind: &str, name: &str) -> Option<Self> {
        let kind = AuthenticationKind::of(kind);
        (!name.is_empty()).then(|| Self { kind, name: name.into() })
    }
}

impl AuthenticationKind {
    /// `None` for what is neither.
    pub(super) fn resource(&self) -> Option<ApiResource> {
        match self {
            Self::TriggerAuthentication => Some(trigger_authentications()),
            Self::ClusterTriggerAuthentication => Some(cluster_trigger_authentications()),
            Self::Other(_) => None,
        }
    }

    fn of(kind: &str) -> Self {
        match kind {
            "" | "TriggerAuthentication" => Self::TriggerAuthentication,
            "ClusterTriggerAuthentication" => Self::ClusterTriggerAuthentication,
            other => Self::Other(other.into()),
        }
    }
}

pub(super) fn trigger_authentications() -> ApiResource {
    resource("TriggerAuthentication", "triggerauthentications")
}

pub(super) fn cluster_trigger_authentications() -> ApiResource {
    resource("ClusterTriggerAuthentication", "clustertriggerauthentications")
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "keda.sh".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: KEDA.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// An object of which triggers are kept.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) kind: Kind,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    /// Those of type `external` and `external-push`.
    pub(super) triggers: Arc<[Arc<Stored>]>,
}

impl Scaled {
    /// What is not as its CRD has it has no triggers: it must not hide the others.
    pub(super) fn read(kind: Kind, object: DynamicObject) -> Self {
        let (namespace, name) = full_name(&object);
        match kind {
            Kind::ScaledObject => match spec::<ScaledObjectSpec>(object) {
                Some(spec) => Self::of_object(namespace, name, spec),
                None => Self { kind, namespace, name, triggers: Arc::default() },
            },
            Kind::ScaledJob => {
                let workload = Workload::of_job(&name);
                let triggers = spec::<ScaledJobSpec>(object).and_then(|spec| spec.triggers);
                let (cooldown, stabilization) = (None, None);
                let scalable =
                    Scalable { kind, namespace, name, workload, cooldown, stabilization };
                Self::new(scalable, triggers)
            }
        }
    }

    fn of_object(namespace: Arc<str>, name: Arc<str>, spec: ScaledObjectSpec) -> Self {
        let behavior = spec
            .advanced
            .and_then(|advanced| advanced.horizontal_pod_autoscaler_config?.behavior?.scale_down);
        let stabilization = behavior.and_then(|down| down.stabilization_window_seconds);
        let seconds = |value: i64| Duration::from_secs(value.try_into().unwrap_or(0));
        let can_idle =
            spec.min_replica_count.unwrap_or(0) == 0 || spec.idle_replica_count.is_some();
        let scalable = Scalable {
            kind: Kind::ScaledObject,
            namespace,
            name,
            workload: spec.scale_target_ref.into(),
            cooldown: can_idle.then(|| seconds(spec.cooldown_period.unwrap_or(COOLDOWN_SECONDS))),
            stabilization: Some(seconds(stabilization.unwrap_or(STABILIZATION_SECONDS))),
        };
        Self::new(scalable, spec.triggers)
    }

    fn new(scalable: Scalable, triggers: Option<Vec<TriggerSpec>>) -> Self {
        let object = Arc::new(scalable);
        let stored = triggers.unwrap_or_default().into_iter().filter_map(|trigger| {
            let pushes = match &*trigger.r#type {
                "external" => false,
                "external-push" => true,
                _ => return None,
            };
            let metadata: Box<[_]> = trigger.metadata.unwrap_or_default().into_iter().collect();
            let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
            if metadata.len() > MAX_KEYS || bytes > MAX_METADATA {
                return None;
            }
            let authentication = trigger.authentication_ref.and_then(|reference| {
                let kind = reference.kind.as_deref().unwrap_or_default();
                Reference::new(kind, &reference.name?)
            });
            Some(Arc::new(Stored {
                object: object.clone(),
                metadata,
                pushes,
                metric_type: trigger.metric_type,
                authentication,
            }))
        });
        let triggers = stored.take(MAX_TRIGGERS).collect();
        let Scalable { kind, ref namespace, ref name, .. } = *object;
        Self { kind, namespace: namespace.clone(), name: name.clone(), triggers }
    }
}

/// A TriggerAuthentication by its namespace and name; a ClusterTriggerAuthentication has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct AuthenticationName {
    pub(super) namespace: Option<Arc<str>>,
    pub(super) name: Box<str>,
}

pub(super) fn authentication(
    object: DynamicObject,
) -> (AuthenticationName, Arc<AuthenticationSpec>) {
    let namespace = object.metadata.namespace.as_deref().map(Into::into);
    let name = (&*name(&object)).into();
    (AuthenticationName { namespace, name }, Arc::new(spec(object).unwrap_or_default()))
}

impl AuthenticationSpec {
    /// The first source that is not resolved here.
    pub fn unresolved(&self) -> Option<&'static str> {
        UNRESOLVED.into_iter().find(|source| self.others.get(*source) == Some(&Given(true)))
    }

    /// Whether it gives one of these parameters, as far as can be told.
    pub fn concerns(&self, parameters: &[&str]) -> bool {
        let entries = [&self.config_map_target_ref, &self.secret_target_ref];
        let entries = entries.into_iter().flatten().flatten().map(|entry| &*entry.parameter);
        let variables = self.env.iter().flatten().map(|variable| &*variable.parameter);
        self.unresolved().is_some() || entries.chain(variables).any(|it| parameters.contains(&it))
    }

    pub fn needs_workload(&self) -> bool {
        self.env.as_ref().is_some_and(|env| !env.is_empty())
    }
}

impl From<Value> for Given {
    fn from(value: Value) -> Self {
        Self(match value {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        })
    }
}

/// Namespace and name.
pub(super) fn full_name(object: &DynamicObject) -> (Arc<str>, Arc<str>) {
    (namespace(object), name(object))
}

fn namespace(object: &DynamicObject) -> Arc<str> {
    object.metadata.namespace.as_deref().unwrap_or_default().into()
}

fn name(object: &DynamicObject) -> Arc<str> {
    object.metadata.name.as_deref().unwrap_or_default().into()
}

fn spec<T: DeserializeOwned>(mut object: DynamicObject) -> Option<T> {
    serde_json::from_value(object.data.get_mut("spec")?.take()).ok()
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScaledObject => "ScaledObject",
            Self::ScaledJob => "ScaledJob",
        })
    }
}

impl fmt::Display for AuthenticationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TriggerAuthentication => "TriggerAuthentication",
            Self::ClusterTriggerAuthentication => "ClusterTriggerAuthentication",
            Self::Other(kind) => kind,
        })
    }
}
