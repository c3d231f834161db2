//! Files of YAML or JSON → the triggers of the ScaledObjects and ScaledJobs in them, with KEDA's
//! defaults. Tolerant: what Kubernetes or KEDA would refuse is for the examination to say, where
//! it stands.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::MAX_SHOWN;
use crate::{proto::ScaledObjectRef, trigger::is_meant_for_us, words::shorten};

/// Largest input; the largest object that etcd takes has 1.5 MB.
const MAX_INPUT: u64 = 16 << 20;

/// In place of a file's name.
pub(super) const OF_METADATA: &str = "--metadata";

/// What is in the files.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) manifests: Vec<Manifest>,
    /// Objects of KEDA's that are not as KEDA wants them, in words.
    pub(super) odd: Vec<String>,
    /// The kinds of what is no object of KEDA's.
    others: Vec<String>,
}

/// A ScaledObject or ScaledJob as it is written down.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// As messages name it.
    pub(super) file: String,
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) spec: Spec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Kind {
    ScaledObject,
    ScaledJob,
}

/// Defaults are those of `apis/keda/v1alpha1`; counts of seconds and of replicas.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) triggers: Vec<TriggerSpec>,
    pub(super) polling_interval: u64,
    pub(super) cooldown_period: u64,
    pub(super) idle_replica_count: Option<u64>,
    min_replica_count: Option<u64>,
    max_replica_count: Option<u64>,
    advanced: Advanced,
    scaling_strategy: ScalingStrategy,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            triggers: Vec::new(),
            polling_interval: 30,
            cooldown_period: 300,
            idle_replica_count: None,
            min_replica_count: None,
            max_replica_count: None,
            advanced: Advanced::default(),
            scaling_strategy: ScalingStrategy::default(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Advanced {
    horizontal_pod_autoscaler_config: HpaConfig,
    scaling_modifiers: ScalingModifiers,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ScalingModifiers {
    formula: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct HpaConfig {
    behavior: Behavior,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Behavior {
    scale_down: ScaleDown,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScaleDown {
    stabilization_window_seconds: u64,
}

impl Default for ScaleDown {
    fn default() -> Self {
        Self { stabilization_window_seconds: 300 }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ScalingStrategy {
    strategy: String,
}

/// One trigger as it is written down.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TriggerSpec {
    pub(super) r#type: String,
    #[serde(deserialize_with = "filled")]
    pub(super) name: Option<String>,
    /// Kubernetes takes texts only, but people write numbers.
    pub(super) metadata: BTreeMap<String, Value>,
    #[serde(deserialize_with = "filled")]
    pub(super) metric_type: Option<String>,
    pub(super) authentication_ref: Option<AuthenticationRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthenticationRef {
    pub(super) name: String,
}

/// An empty text is none.
fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// A trigger that is to be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) spec: &'a TriggerSpec,
    /// From 0.
    pub(super) index: usize,
}

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("{file} cannot be read: {cause}")]
    Unreadable { file: String, cause: String },
    #[error("{file} is neither YAML nor JSON: {cause}{}", if *.is_template { "; if it is a template, render it first" } else { "" })]
    NotYaml { file: String, cause: String, is_template: bool },
    #[error(
        "there is no ScaledObject or ScaledJob in {}{}",
        .files.join(", "),
        if .others.is_empty() { String::new() } else { format!(", but: {}", .others.join(", ")) }
    )]
    Nothing { files: Vec<String>, others: Vec<String> },
    #[error("no trigger is of type `datadog`, or of type `external` with keys of this scaler")]
    NoneOurs,
    #[error("there is no trigger `{wanted}`; there are: {}", .there.join(", "))]
    NoTrigger { wanted: String, there: Vec<String> },
}

impl InputError {
    /// Whether the command line is at fault, and not what is in the files.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::NoTrigger { .. })
    }
}

/// In the order of the files; `-` is the standard input. Blocks.
pub(super) fn find(files: &[PathBuf]) -> Result<Found, InputError> {
    let mut found = Found::default();
    for path in files {
        found.add(&shown(path), &read(path)?)?;
    }
    if found.manifests.is_empty() && found.odd.is_empty() {
        let files = files.iter().take(MAX_LISTED).map(|path| shown(path)).collect();
        found.others.truncate(MAX_LISTED);
        return Err(InputError::Nothing { files, others: found.others });
    }
    Ok(found)
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        shorten(&path.display().to_string(), MAX_SHOWN)
    }
}

/// `-` is the standard input. Blocks.
fn read(path: &Path) -> Result<String, InputError> {
    read_text(path)
        .map_err(|error| InputError::Unreadable { file: shown(path), cause: error.to_string() })
}

fn read_text(path: &Path) -> io::Result<String> {
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    let mut text = String::new();
    source.take(MAX_INPUT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_INPUT {
        return Err(io::Error::other(format!("it has more than {} MiB", MAX_INPUT >> 20)));
    }
    Ok(text)
}

impl Found {
    /// One trigger of a ScaledObject that there need not be. As KEDA opens a stream for a trigger
    /// that pushes, it does.
    pub(super) fn of_metadata(metadata: &BTreeMap<String, String>) -> Self {
        let text = |(key, value): (&String, &String)| (key.clone(), Value::String(value.clone()));
        let metadata = metadata.iter().map(text).collect();
        let r#type = "external-push".to_owned();
        let trigger = TriggerSpec { r#type, metadata, ..TriggerSpec::default() };
        let manifest = Manifest {
            file: OF_METADATA.to_owned(),
            kind: Kind::ScaledObject,
            namespace: None,
            name: "check".to_owned(),
            spec: Spec { triggers: vec![trigger], ..Spec::default() },
        };
        Self { manifests: vec![manifest], ..Self::default() }
    }

    pub(super) fn add(&mut self, file: &str, text: &str) -> Result<(), InputError> {
        // Without the lines around an error: a Secret may stand in them.
        let options = serde_saphyr::options! { with_snippet: false };
        let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options);
        let documents = documents.map_err(|error| InputError::NotYaml {
            file: file.to_owned(),
            cause: in_words(&error),
            is_template: text.contains("{{"),
        })?;
        for mut document in documents {
            // Kubernetes takes null as absent.
            take_nulls_out(&mut document);
            // `kubectl get -o yaml` gives a list.
            match document.get("items") {
                Some(Value::Array(items)) => {
                    for item in items {
                        self.add_object(file, item);
                    }
                }
                _ => self.add_object(file, &document),
            }
        }
        Ok(())
    }

    fn add_object(&mut self, file: &str, object: &Value) {
        let kind = match object["kind"].as_str() {
            Some("ScaledObject") => Kind::ScaledObject,
            Some("ScaledJob") => Kind::ScaledJob,
            other => {
                self.others.push(shorten(other.unwrap_or("no kind"), MAX_SHOWN));
                return;
            }
        };
        let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
        let name = &object["metadata"]["name"];
        if !name.is_string() && !name.is_null() {
            let name = shorten(&name.to_string(), MAX_SHOWN);
            self.odd.push(format!(
                "the `metadata.name` of a {kind} in {file} is {name}, but must be a text; quote it"
            ));
            return;
        }
        let name = text("name").unwrap_or_default();
        let nothing = Value::Object(serde_json::Map::new());
        let spec = object.get("spec").unwrap_or(&nothing);
        match serde_path_to_error::deserialize::<_, Spec>(spec) {
            Ok(spec) => {
                let namespace = text("namespace").filter(|namespace| !namespace.is_empty());
                let file = file.to_owned();
                self.manifests.push(Manifest { file, kind, namespace, name, spec });
            }
            Err(error) => {
                let path = error.path().to_string();
                let mut cause = error.to_string();
                // What stands in place of metadata may hold a secret.
                if path == "." || path.contains("metadata") {
                    cause = without_quoted(&cause, '"');
                }
                let (name, cause) = (shorten(&name, MAX_SHOWN), shorten(&cause, 2 * MAX_SHOWN));
                self.odd.push(format!("the `spec` of {kind} `{name}` in {file}: {cause}"));
            }
        }
    }

    /// The triggers that are this scaler's, and how many are not; or the one that is wanted.
    pub(super) fn select(
        &self,
        only: Option<&str>,
    ) -> Result<(Vec<Selected<'_>>, usize), InputError> {
        let all: Vec<Selected<'_>> = self
            .manifests
            .iter()
            .flat_map(|manifest| {
                let triggers = manifest.spec.triggers.iter().enumerate();
                triggers.map(move |(index, spec)| Selected { manifest, spec, index })
            })
            .collect();
        let ours: Vec<_> = all.iter().copied().filter(|trigger| trigger.spec.is_ours()).collect();
        if ours.is_empty() && self.odd.is_empty() {
            return Err(InputError::NoneOurs);
        }
        let Some(wanted) = only else {
            let others = all.len() - ours.len();
            return Ok((ours, others));
        };
        let found: Vec<_> = ours.iter().copied().filter(|trigger| trigger.is(wanted)).collect();
        // What is wanted may be in what cannot be read.
        if found.is_empty() && self.odd.is_empty() {
            let there = ours.iter().map(|trigger| match &trigger.spec.name {
                Some(name) => shorten(&format!("{} ({name})", trigger.index), MAX_SHOWN),
                None => trigger.index.to_string(),
            });
            return Err(InputError::NoTrigger {
                wanted: wanted.to_owned(),
                there: there.take(MAX_LISTED).collect(),
            });
        }
        Ok((found, 0))
    }
}

/// Without what it quotes, which may be of a Secret.
fn in_words(error: &serde_saphyr::Error) -> String {
    if let serde_saphyr::Error::DuplicateMappingKey { location, .. } = error {
        let (line, column) = (location.line(), location.column());
        return format!("a key is there twice at line {line}, column {column}");
    }
    shorten(&without_quoted(&error.to_string(), '`'), 2 * MAX_SHOWN)
}

/// From the first of these marks to the last: there may be more of them in what is quoted.
fn without_quoted(text: &str, mark: char) -> String {
    match (text.find(mark), text.rfind(mark)) {
        (Some(first), Some(last)) if first < last => {
            format!("{}{mark}…{}", &text[..first], &text[last..])
        }
        _ => text.to_owned(),
    }
}

/// Most triggers, files or kinds that an error lists.
const MAX_LISTED: usize = 20;

fn take_nulls_out(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(take_nulls_out);
        }
        Value::Array(list) => list.iter_mut().for_each(take_nulls_out),
        _ => {}
    }
}

impl Selected<'_> {
    fn is(&self, wanted: &str) -> bool {
        self.spec.name.as_deref() == Some(wanted) || self.index.to_string() == wanted
    }

    /// Whether KEDA opens streams for it.
    pub(super) fn pushes(&self) -> bool {
        self.manifest.kind == Kind::ScaledObject && self.spec.r#type == "external-push"
    }

    /// What KEDA sends of it. Values of keys that end in `FromEnv` are the names of variables.
    pub(super) fn reference(&self) -> ScaledObjectRef {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let metadata = self.spec.metadata.iter().map(|(key, value)| (key.clone(), text(value)));
        let Manifest { name, namespace, .. } = self.manifest;
        ScaledObjectRef {
            name: name.clone(),
            namespace: namespace.clone().unwrap_or_else(|| "default".to_owned()),
            scaler_metadata: metadata.collect(),
        }
    }
}

impl Spec {
    /// `scaleDown.stabilizationWindowSeconds` of the HPA.
    pub(super) fn stabilization_window(&self) -> u64 {
        let behavior = &self.advanced.horizontal_pod_autoscaler_config.behavior;
        behavior.scale_down.stabilization_window_seconds
    }

    pub(super) fn has_scaling_modifiers(&self) -> bool {
        !self.advanced.scaling_modifiers.formula.is_empty()
    }

    pub(super) fn min_replica_count(&self) -> u64 {
        self.min_replica_count.unwrap_or(0)
    }

    pub(super) fn max_replica_count(&self) -> u64 {
        self.max_replica_count.unwrap_or(100)
    }

    /// Where KEDA goes when no trigger is active, if that is below what the HPA keeps.
    pub(super) fn idle(&self) -> Option<u64> {
        self.idle_replica_count.or((self.min_replica_count() == 0).then_some(0))
    }

    /// Of a ScaledJob.
    pub(super) fn strategy(&self) -> &str {
        let strategy = &self.scaling_strategy.strategy;
        if strategy.is_empty() { "default" } else { strategy }
    }
}

impl TriggerSpec {
    /// Whether this program answers it. Others have external scalers too.
    fn is_ours(&self) -> bool {
        let has_our_key = || self.metadata.keys().any(|key| is_meant_for_us(key));
        match &*self.r#type {
            "datadog" => true,
            "external" | "external-push" => has_our_key(),
            _ => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScaledObject => "ScaledObject",
            Self::ScaledJob => "ScaledJob",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, name and number of triggers of each, what is odd and what is else; or the message.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut found = Found::default();
        let shown = match found.add("x.yaml", text) {
            Ok(()) => found
                .manifests
                .iter()
                .map(|m| format!("{} {} {}", m.kind, m.name, m.spec.triggers.len()))
                .chain(found.odd)
                .chain(found.others)
                .collect::<Vec<_>>()
                .join(", "),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn documents_lists_and_json_are_read() {
        let object = "kind: ScaledObject\nmetadata: {name: a}\nspec: {triggers: [{type: cpu}]}\n";
        check(object, "ScaledObject a 1");
        check(&format!("---\n{object}---\n---\nkind: Secret\n"), "ScaledObject a 1, Secret");
        let job = r#"{"kind": "ScaledJob", "metadata": {"name": "b"}, "spec": {}}"#;
        check(&format!(r#"{{"kind": "List", "items": [{job}, 7]}}"#), "ScaledJob b 0, no kind");
        check("", "");
    }

    #[test]
    fn a_name_is_a_text() {
        check(
            "kind: ScaledJob\nmetadata: {name: 7}\n",
            "the `metadata.name` of a ScaledJob in x.yaml is 7, but must be a text; quote it",
        );
    }

    #[test]
    fn what_is_large_beyond_reason_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.yaml");
        std::fs::write(&path, "#".repeat((16 << 20) + 1)).unwrap();
        let error = find(&[path]).unwrap_err();
        assert!(error.is_usage());
        assert!(error.to_string().ends_with("it has more than 16 MiB"), "{error}");
    }

    #[test]
    fn keda_has_defaults() {
        let spec = Spec::default();
        let seconds = (spec.polling_interval, spec.cooldown_period, spec.stabilization_window());
        assert_eq!(seconds, (30, 300, 300));
        assert_eq!((spec.min_replica_count(), spec.max_replica_count()), (0, 100));
        assert_eq!((spec.idle(), spec.strategy()), (Some(0), "default"));
    }

    #[test]
    fn null_is_absent() {
        check(
            "kind: ScaledJob\nmetadata: {name: a}\nspec: {triggers: [{type: cpu, name: null}]}\n",
            "ScaledJob a 1",
        );
        check(
            "kind: ScaledJob\nmetadata: {name: a, namespace: }\nspec:\n  advanced:\n  triggers:\n",
            "ScaledJob a 0",
        );
    }

    #[test]
    fn what_is_odd_is_said_without_its_surroundings() {
        check(
            "kind: Secret\nstringData: {key: the-secret}\n---\na: [1\nb: 2\n",
            "x.yaml is neither YAML nor JSON: illegal placement of ':' indicator at line 5, column 2",
        );
        check(
            "kind: ScaledObject\nmetadata: {{ .x }}\n",
            "x.yaml is neither YAML nor JSON: expected string scalar at line 2, column 12; if it \
             is a template, render it first",
        );
        check(
            "kind: ScaledObject\nmetadata: {name: a}\nspec: {pollingInterval: '30'}\n---\n\
             kind: ScaledJob\nmetadata: {name: b}\n",
            "ScaledJob b 0, the `spec` of ScaledObject `a` in x.yaml: pollingInterval: invalid type: \
             string \"30\", expected u64",
        );
    }

    #[test]
    fn what_an_error_quotes_is_left_out() {
        check(
            "kind: Secret\nstringData: {key: 12345678e90123456789}\n",
            "x.yaml is neither YAML nor JSON: non-finite float `…` rejected by the configured \
             policy at line 2, column 19",
        );
        check(
            "kind: ScaledJob\nmetadata: {name: a}\nspec: {triggers: [{metadata: 'key=s\"ecret'}]}\n",
            "the `spec` of ScaledJob `a` in x.yaml: triggers[0].metadata: invalid type: string \"…\", \
             expected a map",
        );
        check(
            "kind: Secret\nstringData: {key: a, key: b}\n",
            "x.yaml is neither YAML nor JSON: a key is there twice at line 2, column 22",
        );
    }

    #[test]
    fn other_peoples_external_scalers_are_left_alone() {
        let mut found = Found::default();
        let yaml = "kind: ScaledObject\nmetadata: {name: a}\nspec: {triggers: [\
                    {type: cpu}, {type: external, metadata: {scalerAddress: 'a:1', threshold: '5'}}, \
                    {type: external, metadata: {scalerAddress: 'a:1', queryvalue: '5'}}, \
                    {type: datadog}]}\n";
        found.add("x.yaml", yaml).unwrap();
        let (ours, others) = found.select(None).unwrap();
        assert_eq!((ours.iter().map(|t| t.index).collect::<Vec<_>>(), others), (vec![2, 3], 2));
        assert_eq!(found.select(Some("3")).unwrap().1, 0);
        let error = found.select(Some("1")).unwrap_err().to_string();
        assert_eq!(error, "there is no trigger `1`; there are: 2, 3");
    }
}
