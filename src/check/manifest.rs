//! Files of YAML or JSON → the ScaledObjects and ScaledJobs in them. Tolerant: what Kubernetes
//! or KEDA would refuse is for the examination to say, where it stands.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::words::shorten;

/// Largest input; the largest object that etcd takes has 1.5 MB.
const MAX_INPUT: u64 = 16 << 20;
/// Most characters of what somebody wrote that an error repeats.
const MAX_SHOWN: usize = 100;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ScaledObject,
    ScaledJob,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) triggers: Vec<Written>,
    /// Seconds, as the other two.
    pub(super) polling_interval: Option<u64>,
    pub(super) cooldown_period: Option<u64>,
    pub(super) idle_replica_count: Option<u64>,
    pub(super) min_replica_count: Option<u64>,
    pub(super) max_replica_count: Option<u64>,
    advanced: Advanced,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Advanced {
    horizontal_pod_autoscaler_config: HpaConfig,
    scaling_modifiers: Option<Value>,
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

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScaleDown {
    stabilization_window_seconds: Option<u64>,
}

/// One trigger as it is written down.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Written {
    pub(super) r#type: String,
    pub(super) name: Option<String>,
    /// Kubernetes takes texts only, but people write numbers.
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) metric_type: Option<String>,
    pub(super) authentication_ref: Option<AuthenticationRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthenticationRef {
    pub(super) name: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{file} cannot be read: {cause}")]
    Unreadable { file: String, cause: String },
    #[error("{file} is neither YAML nor JSON: {cause}{}", .hint.unwrap_or_default())]
    NotYaml { file: String, cause: String, hint: Option<&'static str> },
    #[error("{file}: {what} is not as KEDA wants it: {cause}")]
    Odd { file: String, what: String, cause: String },
    #[error(
        "there is no ScaledObject or ScaledJob in {}{}",
        .files.join(", "),
        if .kinds.is_empty() { String::new() } else { format!(", but: {}", .kinds.join(", ")) }
    )]
    Nothing { files: Vec<String>, kinds: Vec<String> },
    #[error("no trigger is of type `datadog`, `external` or `external-push`")]
    NoneOurs,
    #[error("there is no trigger `{wanted}`; there are: {}", .there.join(", "))]
    NoTrigger { wanted: String, there: Vec<String> },
}

impl ManifestError {
    /// Whether the command line is at fault, and not what is in the files.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::NoTrigger { .. })
    }
}

/// In the order of the files; `-` is the standard input. Blocks.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Manifest>, ManifestError> {
    let (mut manifests, mut kinds) = (Vec::new(), Vec::new());
    for path in files {
        let file = shown(path);
        let text = read_text(path).map_err(|cause| ManifestError::Unreadable {
            file: file.clone(),
            cause: cause.to_string(),
        })?;
        parse(&file, &text, &mut manifests, &mut kinds)?;
    }
    if manifests.is_empty() {
        return Err(ManifestError::Nothing {
            files: files.iter().map(|path| shown(path)).collect(),
            kinds,
        });
    }
    Ok(manifests)
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
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

/// `kinds` takes what is no object of KEDA's.
pub(super) fn parse(
    file: &str,
    text: &str,
    manifests: &mut Vec<Manifest>,
    kinds: &mut Vec<String>,
) -> Result<(), ManifestError> {
    // Without the lines around an error: a Secret may stand in them.
    let options = serde_saphyr::options! { with_snippet: false };
    let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options);
    let documents = documents.map_err(|error| ManifestError::NotYaml {
        file: file.to_owned(),
        cause: shorten(&error.to_string(), 2 * MAX_SHOWN),
        hint: text.contains("{{").then_some("; if it is a template, render it first"),
    })?;
    for document in documents {
        // `kubectl get -o yaml` gives a list.
        let items = match document.get("items") {
            Some(Value::Array(items)) => items.clone(),
            _ => vec![document],
        };
        for item in items {
            match manifest(file, &item)? {
                Some(manifest) => manifests.push(manifest),
                None => {
                    kinds.push(shorten(item["kind"].as_str().unwrap_or("no kind"), MAX_SHOWN));
                }
            }
        }
    }
    Ok(())
}

/// `None` if it is something else.
fn manifest(file: &str, document: &Value) -> Result<Option<Manifest>, ManifestError> {
    let kind = match document["kind"].as_str() {
        Some("ScaledObject") => Kind::ScaledObject,
        Some("ScaledJob") => Kind::ScaledJob,
        _ => return Ok(None),
    };
    let text = |key: &str| document["metadata"][key].as_str().map(|text| shorten(text, 253));
    let name = text("name").unwrap_or_default();
    let spec = Spec::deserialize(&document["spec"]).map_err(|error| ManifestError::Odd {
        file: file.to_owned(),
        what: format!("the `spec` of {kind} `{name}`"),
        cause: shorten(&error.to_string(), 2 * MAX_SHOWN),
    })?;
    Ok(Some(Manifest { file: file.to_owned(), kind, namespace: text("namespace"), name, spec }))
}

impl Manifest {
    /// One trigger of a ScaledObject that there need not be.
    pub(super) fn of_metadata(metadata: &BTreeMap<String, String>) -> Self {
        let text = |(key, value): (&String, &String)| (key.clone(), Value::String(value.clone()));
        let mut metadata: BTreeMap<String, Value> = metadata.iter().map(text).collect();
        metadata.entry("scalerAddress".to_owned()).or_insert_with(|| "check:9090".into());
        let written = Written { r#type: "external".to_owned(), metadata, ..Written::default() };
        Self {
            file: "--metadata".to_owned(),
            kind: Kind::ScaledObject,
            namespace: None,
            name: "check".to_owned(),
            spec: Spec { triggers: vec![written], ..Spec::default() },
        }
    }
}

impl Spec {
    /// `scaleDown.stabilizationWindowSeconds` of the HPA, whose default is 300.
    pub(super) fn stabilization_window(&self) -> u64 {
        let behavior = &self.advanced.horizontal_pod_autoscaler_config.behavior;
        behavior.scale_down.stabilization_window_seconds.unwrap_or(300)
    }

    pub(super) fn has_scaling_modifiers(&self) -> bool {
        self.advanced.scaling_modifiers.is_some()
    }
}

impl Written {
    /// Whether this program answers triggers of this type.
    pub(super) fn is_ours(&self) -> bool {
        matches!(&*self.r#type, "datadog" | "external" | "external-push")
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ScaledObject => "ScaledObject",
            Self::ScaledJob => "ScaledJob",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, name and number of triggers of each, or the message.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let (mut manifests, mut kinds) = (Vec::new(), Vec::new());
        let shown = match parse("x.yaml", text, &mut manifests, &mut kinds) {
            Ok(()) => manifests
                .iter()
                .map(|m| format!("{} {} {}", m.kind, m.name, m.spec.triggers.len()))
                .chain(kinds)
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
            "kind: ScaledObject\nmetadata: {name: a}\nspec: {pollingInterval: '30'}\n",
            "x.yaml: the `spec` of ScaledObject `a` is not as KEDA wants it: invalid type: string \
             \"30\", expected u64",
        );
    }
}
