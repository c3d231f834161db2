//! What an API server keeps: objects, what became of them, and who may ask for them.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::ByteString;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{Asked, Gone, Trouble};

/// Of what the scaler reads, and whether it is in a namespace.
const KINDS: &[(&str, &str, bool)] = &[
    ("v1", "Namespace", false),
    ("v1", "Secret", true),
    ("v1", "ConfigMap", true),
    ("apps/v1", "Deployment", true),
    ("apps/v1", "StatefulSet", true),
    ("keda.sh/v1alpha1", "ScaledObject", true),
    ("keda.sh/v1alpha1", "ScaledJob", true),
    ("keda.sh/v1alpha1", "TriggerAuthentication", true),
    ("keda.sh/v1alpha1", "ClusterTriggerAuthentication", false),
    ("datadoghq.com/v1alpha1", "DatadogMetric", true),
];

pub(super) struct Store {
    /// The resourceVersion of the newest change; one count for all kinds, as etcd has it.
    pub(super) version: u64,
    /// Changes up to this version are forgotten.
    pub(super) oldest: u64,
    pub(super) gone: Gone,
    pub(super) kinds: Vec<Kind>,
    /// In the order of a list.
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    /// What remains of lists that were answered in part, by the token to go on with.
    pub(super) remainders: HashMap<String, Remainder>,
    pub(super) rules: Vec<Rule>,
    /// Of which resource, `*` being all. The newest counts.
    pub(super) troubles: Vec<(String, Trouble)>,
    /// How often all watches were ended.
    pub(super) cuts: u64,
    pub(super) open_watches: usize,
    pub(super) asked: Vec<Asked>,
}

#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) names: ApiResource,
    pub(super) namespaced: bool,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    group: String,
    plural: String,
    namespace: String,
    name: String,
}

pub(super) struct Change {
    pub(super) version: u64,
    pub(super) what: What,
}

pub(super) enum What {
    Object { event: &'static str, group: String, plural: String, object: Value },
    Bookmark,
}

/// The later pages of a list are as old as its first.
#[derive(Clone)]
pub(super) struct Remainder {
    pub(super) version: u64,
    pub(super) items: Vec<Value>,
}

pub(super) struct Rule {
    pub(super) allowed: bool,
    pub(super) verb: String,
    pub(super) resource: String,
    /// None fits all.
    pub(super) namespace: Option<String>,
}

impl Store {
    pub(super) fn new() -> Self {
        let mut store = Self {
            version: 100,
            oldest: 100,
            gone: Gone::default(),
            kinds: Vec::new(),
            objects: BTreeMap::new(),
            history: Vec::new(),
            remainders: HashMap::new(),
            rules: Vec::new(),
            troubles: Vec::new(),
            cuts: 0,
            open_watches: 0,
            asked: Vec::new(),
        };
        for (api_version, kind, namespaced) in KINDS {
            let names = names(api_version, kind);
            store.kinds.push(Kind { names, namespaced: *namespaced });
        }
        store
    }

    pub(super) fn install(
        &mut self,
        api_version: &str,
        kind: &str,
        plural: &str,
        namespaced: bool,
    ) {
        let names = ApiResource { plural: plural.to_owned(), ..names(api_version, kind) };
        self.kinds.push(Kind { names, namespaced });
    }

    /// Its objects are deleted before.
    pub(super) fn uninstall(&mut self, group: &str) {
        let keys: Vec<Key> =
            self.objects.keys().filter(|key| key.group == group).cloned().collect();
        for key in keys {
            self.delete(&key.plural, &key.namespace, &key.name);
        }
        self.kinds.retain(|kind| kind.names.group != group);
    }

    #[track_caller]
    pub(super) fn apply(&mut self, mut object: Value) {
        let kind = self.kind_of(&object);
        encode_string_data(&mut object);
        let metadata = &mut object["metadata"];
        if kind.namespaced && metadata["namespace"].is_null() {
            metadata["namespace"] = "default".into();
        }
        let name = metadata["name"].as_str().expect("an object has a name");
        let key = kind.key(metadata["namespace"].as_str().unwrap_or_default(), name);
        let version = self.version + 1;
        let before = self.objects.get(&key);
        if let Some(before) = before {
            for kept in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
                metadata[kept] = before["metadata"][kept].clone();
            }
            if *before == object {
                return;
            }
            if before["spec"] != object["spec"] {
                let generation = before["metadata"]["generation"].as_u64().unwrap_or_default();
                object["metadata"]["generation"] = (generation + 1).into();
            }
        } else {
            metadata["uid"] = format!("00000000-0000-4000-8000-{version:012}").into();
            metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
            metadata["generation"] = 1.into();
        }
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.objects.insert(key, object.clone());
        self.remember(event, &kind, object);
    }

    #[track_caller]
    pub(super) fn delete(&mut self, plural: &str, namespace: &str, name: &str) {
        let kind = self.kinds.iter().find(|kind| kind.names.plural == plural);
        let kind = kind.expect("the kind is known").clone();
        let removed = self.objects.remove(&kind.key(namespace, name));
        let mut object = removed.expect("only what exists can be deleted");
        object["metadata"]["resourceVersion"] = (self.version + 1).to_string().into();
        self.remember("DELETED", &kind, object);
    }

    fn remember(&mut self, event: &'static str, kind: &Kind, object: Value) {
        let ApiResource { group, plural, .. } = kind.names.clone();
        self.version += 1;
        let what = What::Object { event, group, plural, object };
        self.history.push(Change { version: self.version, what });
    }

    pub(super) fn bookmark(&mut self) {
        self.version += 1;
        self.history.push(Change { version: self.version, what: What::Bookmark });
    }

    pub(super) fn expire(&mut self, gone: Gone) {
        // What happened elsewhere: no client has seen the newest version.
        self.version += 1;
        self.oldest = self.version;
        self.gone = gone;
        self.history.clear();
        self.remainders.clear();
        self.cuts += 1;
    }

    /// Makes a kind known that was not.
    #[track_caller]
    fn kind_of(&mut self, object: &Value) -> Kind {
        let text = |field: &str| object[field].as_str().expect("an object says what it is");
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let known = self
            .kinds
            .iter()
            .find(|known| known.names.api_version == api_version && known.names.kind == kind);
        if let Some(known) = known {
            return known.clone();
        }
        let namespaced = object["metadata"]["namespace"].is_string();
        let new = Kind { names: names(api_version, kind), namespaced };
        self.kinds.push(new.clone());
        new
    }

    /// Without namespace or name: of all.
    pub(super) fn objects<'a>(
        &'a self,
        kind: &'a Kind,
        selection: &'a Selection,
    ) -> impl Iterator<Item = &'a Value> {
        self.objects
            .iter()
            .filter(|(key, _)| key.group == kind.names.group && key.plural == kind.names.plural)
            .map(|(_, object)| object)
            .filter(|object| selection.has(object))
    }

    pub(super) fn since(&self, version: u64) -> &[Change] {
        let seen = self.history.partition_point(|change| change.version <= version);
        &self.history[seen..]
    }

    pub(super) fn allows(&self, asked: &Asked) -> bool {
        self.rules.iter().rfind(|rule| rule.fits(asked)).is_none_or(|rule| rule.allowed)
    }

    pub(super) fn trouble(&self, resource: &str) -> Option<Trouble> {
        let newest = self.troubles.iter().rfind(|(of, _)| of == resource || of == "*");
        newest.map(|(_, trouble)| *trouble)
    }

    pub(super) fn times_asked(&self, verb: &str, resource: &str) -> usize {
        let fits = |asked: &&Asked| asked.verb == verb && asked.resource == resource;
        self.asked.iter().filter(fits).count()
    }
}

impl Kind {
    fn key(&self, namespace: &str, name: &str) -> Key {
        Key {
            group: self.names.group.clone(),
            plural: self.names.plural.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Lists of these leave out what each item is.
    pub(super) fn is_built_in(&self) -> bool {
        !self.names.group.contains('.') || self.names.group.ends_with(".k8s.io")
    }
}

impl Rule {
    fn fits(&self, asked: &Asked) -> bool {
        (self.verb == "*" || self.verb == asked.verb)
            && (self.resource == "*" || self.resource == asked.resource)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == asked.namespace)
    }
}

/// Which objects of a kind. None is all.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

impl Selection {
    pub(super) fn has(&self, object: &Value) -> bool {
        let is = |wanted: &Option<String>, field: &str| {
            wanted.as_ref().is_none_or(|wanted| object["metadata"][field] == **wanted)
        };
        is(&self.namespace, "namespace") && is(&self.name, "name")
    }
}

fn names(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn encode_string_data(object: &mut Value) {
    let Some(plain) = object.as_object_mut().and_then(|object| object.remove("stringData")) else {
        return;
    };
    for (key, value) in plain.as_object().expect("`stringData` is a map") {
        let value = value.as_str().expect("its values are strings");
        object["data"][key] = json!(ByteString(value.as_bytes().to_vec()));
    }
}
