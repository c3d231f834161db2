//! One object at a time, by its name.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

pub use k8s_openapi::api::core::v1::Container;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Client, Resource as _,
    api::{ApiResource, DynamicObject, GetParams, GroupVersionKind},
    discovery,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    ReadError,
    datadog_metrics::{self, DatadogMetric},
    objects::{
        AuthenticationKind, AuthenticationName, AuthenticationSpec, KEDA, Kind, Scaled, Workload,
        authentication,
    },
    reads::{Pace, Reads, Weigh},
};
use crate::words::{is_label, is_name};

/// How long one read may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most reads of Secrets, ConfigMaps and workloads in a second.
const READS_A_SECOND: u32 = 20;
/// How long a read waits for its turn among them.
const TURN: Duration = Duration::from_mins(1);
/// Most objects of each sort that are remembered, and that shortly.
const MAX_REMEMBERED: usize = 5_000;
/// Largest value that is kept. Keys have some forty characters, a CA some thousands.
const MAX_VALUE: usize = 64 << 10;

/// The values of a Secret or ConfigMap.
#[derive(Debug)]
pub struct Data {
    values: BTreeMap<String, SecretString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataKind {
    Secret,
    ConfigMap,
}

pub(super) struct Reader {
    client: Client,
    data: Reads<(DataKind, Box<str>, Box<str>), Arc<Data>>,
    containers: Reads<(Box<str>, Workload), Arc<[Container]>>,
    pace: Pace,
}

impl Reader {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            data: Reads::new(MAX_REMEMBERED),
            containers: Reads::new(MAX_REMEMBERED),
            pace: Pace::new(READS_A_SECOND),
        }
    }

    pub(super) async fn scaled(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Scaled>, ReadError> {
        let object = self.get(&kind.resource(), Some(namespace), name).await?;
        Ok(object.map(|object| Scaled::read(kind, object)))
    }

    /// All of it.
    pub(super) async fn object(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ReadError> {
        self.get(&kind.resource(), Some(namespace), name).await
    }

    pub(super) async fn has_namespace(&self, name: &str) -> Result<bool, ReadError> {
        let resource = ApiResource::erase::<Namespace>(&());
        Ok(self.get_text(&resource, None, name).await?.is_some())
    }

    /// Whether there are kinds of this group and version.
    pub(super) async fn has_kinds(&self, of: &str) -> Result<bool, ReadError> {
        let discovered = self.client.list_api_group_resources(of);
        match timeout(TIMEOUT, discovered).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(false),
            Ok(Err(error)) => Err(ReadError::new(error, format!("discover {of}"))),
            Err(_elapsed) => Err(unanswered()),
        }
    }

    pub(super) async fn datadog_metric(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<DatadogMetric>, ReadError> {
        let resource = datadog_metrics::resource();
        let object: Option<DynamicObject> = self.get(&resource, Some(namespace), name).await?;
        if object.is_none() && !self.has_kinds(&resource.api_version).await? {
            return Err(ReadError::Absent);
        }
        Ok(object.as_ref().map(DatadogMetric::read))
    }

    pub(super) async fn authentication(
        &self,
        kind: &AuthenticationKind,
        wanted: &AuthenticationName,
    ) -> Result<Option<Arc<AuthenticationSpec>>, ReadError> {
        let Some(resource) = kind.resource() else { return Ok(None) };
        self.turn().await?;
        let object = self.get(&resource, wanted.namespace.as_deref(), &wanted.name).await?;
        Ok(object.map(|object| authentication(object).1))
    }

    pub(super) async fn data(
        &self,
        kind: DataKind,
        namespace: &str,
        name: &str,
        since: Instant,
    ) -> Result<Option<Arc<Data>>, ReadError> {
        let key = (kind, namespace.into(), name.into());
        let read = async {
            self.turn().await?;
            let resource = match kind {
                DataKind::Secret => ApiResource::erase::<Secret>(&()),
                DataKind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            };
            let text = self.get_text(&resource, Some(namespace), name).await?;
            let data = text.map(|text| match kind {
                DataKind::Secret => serde_json::from_str(&text).map(secret),
                DataKind::ConfigMap => serde_json::from_str(&text).map(config_map),
            });
            let not_understood =
                |_| ReadError::NotUnderstood { what: what(&resource, namespace, name) };
            data.transpose().map(|data| data.map(Arc::new)).map_err(not_understood)
        };
        self.data.get(key, since, read).await
    }

    pub(super) async fn containers(
        &self,
        namespace: &str,
        workload: &Workload,
        since: Instant,
    ) -> Result<Option<Arc<[Container]>>, ReadError> {
        let key = (namespace.into(), workload.clone());
        let read = async {
            self.turn().await?;
            let Some(resource) = self.resource(workload).await? else { return Ok(None) };
            let object = self.get(&resource, Some(namespace), &workload.name).await?;
            Ok(object.map(|object: Value| containers(&object, &workload.kind)))
        };
        self.containers.get(key, since, read).await
    }

    /// What the kind is called in URLs; `None` if there is no such kind.
    async fn resource(&self, workload: &Workload) -> Result<Option<ApiResource>, ReadError> {
        let Workload { api_version, kind, .. } = workload;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = GroupVersionKind::gvk(group, version, kind);
        let known = match &**api_version {
            "apps/v1" | KEDA => ["Deployment", "StatefulSet", "ScaledJob"].contains(&&*kind.kind),
            _ => false,
        };
        if known {
            return Ok(Some(ApiResource::from_gvk(&kind)));
        }
        if group.is_empty() || !is_name(group) || !is_label(version) {
            return Ok(None);
        }
        let what = || format!("discover {api_version}");
        match timeout(TIMEOUT, discovery::pinned_kind(&self.client, &kind)).await {
            Ok(Ok((resource, _))) => Ok(Some(resource)),
            Ok(Err(kube::Error::Discovery(_))) => Ok(None),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(error)) => Err(ReadError::new(error, what())),
            Err(_elapsed) => Err(unanswered()),
        }
    }

    async fn turn(&self) -> Result<(), ReadError> {
        let wait = self.pace.reserve(Instant::now(), TURN).ok_or(ReadError::Busy)?;
        sleep(wait).await;
        Ok(())
    }

    async fn get<T: DeserializeOwned>(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<T>, ReadError> {
        let text = self.get_text(resource, namespace, name).await?;
        let object = text.map(|text| serde_json::from_str(&text)).transpose();
        let what = || what(resource, namespace.unwrap_or_default(), name);
        object.map_err(|_| ReadError::NotUnderstood { what: what() })
    }

    /// Not as `Api::get`, which logs a body that is not understood.
    async fn get_text(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<String>, ReadError> {
        // Neither goes into a URL unless it can be one.
        if !is_name(name) || !namespace.is_none_or(is_label) {
            return Ok(None);
        }
        let path = DynamicObject::url_path(resource, namespace);
        let what = || what(resource, namespace.unwrap_or_default(), name);
        let request = kube::core::Request::new(path).get(name, &GetParams::default());
        let request = request.map_err(|_| ReadError::NotUnderstood { what: what() })?;
        match timeout(TIMEOUT, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(Some(text)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(error)) => Err(ReadError::new(error, what())),
            Err(_elapsed) => Err(unanswered()),
        }
    }
}

/// What a read tries to do. With the name: RBAC may go by it.
fn what(resource: &ApiResource, namespace: &str, name: &str) -> String {
    let plural = &resource.plural;
    match namespace {
        "" => format!("get {plural}/{name}"),
        _ => format!("get {plural}/{name} in the namespace {namespace}"),
    }
}

fn unanswered() -> ReadError {
    ReadError::Unreachable { cause: format!("no answer within {TIMEOUT:?}") }
}

/// What stands where a kind with a pod template has it.
fn containers(object: &Value, kind: &str) -> Arc<[Container]> {
    let template = match kind {
        "ScaledJob" => "/spec/jobTargetRef/template/spec/containers",
        _ => "/spec/template/spec/containers",
    };
    let found = object.pointer(template).map(Vec::<Container>::deserialize);
    let containers = found.and_then(Result::ok).unwrap_or_default().into_iter();
    containers
        .map(|Container { name, env, env_from, .. }| Container {
            name,
            env,
            env_from,
            ..Container::default()
        })
        .collect()
}

impl Data {
    /// `None` if there is no such key.
    pub fn get(&self, key: &str) -> Option<&SecretString> {
        self.values.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &SecretString)> {
        self.values.iter().map(|(key, value)| (&**key, value))
    }
}

impl FromIterator<(String, SecretString)> for Data {
    fn from_iter<I: IntoIterator<Item = (String, SecretString)>>(values: I) -> Self {
        let fits = |(_, value): &(_, SecretString)| value.expose_secret().len() <= MAX_VALUE;
        Self { values: values.into_iter().filter(fits).collect() }
    }
}

fn secret(secret: Secret) -> Data {
    let values = secret.data.unwrap_or_default().into_iter();
    // What is no text is no key, and is told as something else than one where it is used.
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into();
    values.map(|(key, value)| (key, text(&value.0))).collect()
}

fn config_map(map: ConfigMap) -> Data {
    let values = map.data.unwrap_or_default().into_iter();
    values.map(|(key, value)| (key, value.into())).collect()
}

impl Weigh for Arc<Data> {
    fn weight(&self) -> usize {
        let each = self.values.iter();
        each.map(|(key, value)| key.len() + value.expose_secret().len() + 100).sum()
    }
}

impl Weigh for Arc<[Container]> {
    fn weight(&self) -> usize {
        let variables = self.iter().flat_map(|container| container.env.iter().flatten());
        let values = variables.map(|it| it.name.len() + it.value.as_ref().map_or(100, String::len));
        values.map(|bytes| bytes + 200).sum::<usize>() + 500 * self.len()
    }
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        })
    }
}
