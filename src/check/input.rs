//! Files of YAML or JSON → the triggers in them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    MAX_SHOWN,
    manifest::{Manifest, Selected, Spec},
};
use crate::{
    kubernetes::{AccessError, Kind},
    words::shorten,
};

/// Largest input; the largest object that etcd takes has 1.5 MB.
const MAX_INPUT: u64 = 16 << 20;

/// Most triggers, files or kinds that an error lists.
const MAX_LISTED: usize = 20;

/// What is in the files.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) manifests: Vec<Manifest>,
    /// Objects of KEDA's that are not as KEDA wants them, in words.
    pub(super) odd: Vec<String>,
    /// The kinds of what is no object of KEDA's.
    others: Vec<String>,
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
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{object} cannot be read: {cause}")]
    NotRead { object: String, cause: String },
    #[error("there is no {kinds} `{name}` in the namespace {namespace} of {cluster}")]
    NoObject { cluster: String, namespace: String, kinds: String, name: String },
    #[error("there is no namespace {namespace} in {cluster}")]
    NoNamespace { cluster: String, namespace: String },
    #[error("there is no KEDA in {cluster}; is it the right `--context`?")]
    NoKeda { cluster: String },
    #[error("no trigger is of type `datadog`, or of type `external` with keys of this scaler")]
    NoneOurs,
    #[error("there is no trigger `{wanted}`; there are: {}", .there.join(", "))]
    NoTrigger { wanted: String, there: Vec<String> },
}

impl InputError {
    /// Whether the command line is at fault, and not what is in the files or the object.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::NotYaml { .. } | Self::Nothing { .. } | Self::NoneOurs)
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
    pub(super) fn of_metadata(metadata: &BTreeMap<String, String>) -> Self {
        Self { manifests: vec![Manifest::of_metadata(metadata)], ..Self::default() }
    }

    /// One object that was read elsewhere.
    pub(super) fn of_object(place: &str, mut object: Value) -> Self {
        let mut found = Self::default();
        take_nulls_out(&mut object);
        found.add_object(place, &object);
        found
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
