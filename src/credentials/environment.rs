//! Pure: the environment of a container, as far as it can be known without running it. The rules
//! are KEDA's (`resolveEnv` and `resolveEnvValue`, `pkg/scaling/resolver/scale_resolvers.go`).

use std::{collections::HashMap, sync::Arc};

use secrecy::{ExposeSecret as _, SecretString};

use super::resolution::Gap;
use crate::kubernetes::{Container, Data, DataKind};

/// What was read of the Secrets and ConfigMaps that a container names; `None` is one that does
/// not exist.
pub(super) type Sources = HashMap<(DataKind, String), Option<Arc<Data>>>;

/// Which of a pod's containers; the first one, unless a name is given.
pub(super) fn container<'a>(
    containers: &'a [Container],
    name: Option<&str>,
) -> Option<&'a Container> {
    match name {
        None | Some("") => containers.first(),
        Some(name) => containers.iter().find(|container| container.name == name),
    }
}

/// The Secrets and ConfigMaps that it needs; without Secrets where they are not to be read.
pub(super) fn needs(container: &Container, reads_secrets: bool) -> Vec<(DataKind, String)> {
    let mut needed = Vec::new();
    for source in container.env_from.iter().flatten() {
        if let Some(map) = &source.config_map_ref {
            needed.push((DataKind::ConfigMap, map.name.clone()));
        } else if let Some(secret) = &source.secret_ref {
            needed.push((DataKind::Secret, secret.name.clone()));
        }
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref())
    {
        if let Some(secret) = &source.secret_key_ref {
            needed.push((DataKind::Secret, secret.name.clone()));
        } else if let Some(map) = &source.config_map_key_ref {
            needed.push((DataKind::ConfigMap, map.name.clone()));
        }
    }
    needed.retain(|(kind, _)| reads_secrets || *kind != DataKind::Secret);
    needed.sort_unstable_by(|a, b| a.1.cmp(&b.1).then((a.0 as u8).cmp(&(b.0 as u8))));
    needed.dedup();
    needed
}

/// Every variable with its value. One source that is missing spoils all, as in KEDA, unless it is
/// optional.
pub(super) fn variables(
    container: &Container,
    sources: &Sources,
    namespace: &str,
) -> Result<HashMap<String, SecretString>, Gap> {
    let mut variables = HashMap::new();
    // `None` is one that is not to be read.
    let source = |kind, name: &str| sources.get(&(kind, name.to_owned()));
    let no_object = |kind, name: &str| Gap::NoObject {
        kind,
        namespace: namespace.into(),
        name: name.to_owned(),
    };
    for from in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => (DataKind::ConfigMap, &map.name, map.optional),
            (None, Some(secret)) => (DataKind::Secret, &secret.name, secret.optional),
            (None, None) => continue,
        };
        match source(kind, name) {
            Some(Some(data)) => {
                let prefix = from.prefix.as_deref().unwrap_or_default();
                variables.extend(
                    data.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
                );
            }
            Some(None) if optional != Some(true) => return Err(no_object(kind, name)),
            Some(None) | None => {}
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (variable.value.as_deref(), &variable.value_from) {
            (Some(value), _) if !value.is_empty() => expand(value, &variables).into(),
            (_, None) => SecretString::default(),
            (_, Some(from)) => {
                let (kind, name, key, optional) =
                    match (&from.secret_key_ref, &from.config_map_key_ref) {
                        (Some(it), _) => (DataKind::Secret, &it.name, &it.key, it.optional),
                        (None, Some(it)) => (DataKind::ConfigMap, &it.name, &it.key, it.optional),
                        // `fieldRef` and the like.
                        (None, None) => continue,
                    };
                match source(kind, name) {
                    Some(Some(data)) => data.get(key).cloned().unwrap_or_default(),
                    Some(None) if optional != Some(true) => return Err(no_object(kind, name)),
                    Some(None) | None => continue,
                }
            }
        };
        variables.insert(variable.name.clone(), value);
    }
    Ok(variables)
}

/// `$(NAME)` is the value of a variable that comes before; `$$` is a dollar.
fn expand(value: &str, variables: &HashMap<String, SecretString>) -> String {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        // KEDA leaves the last characters as they are.
        if after.len() < 3 {
            expanded.push('$');
            rest = after;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        rest = if let Some((name, after)) = reference {
            match variables.get(name) {
                Some(value) => expanded.push_str(value.expose_secret()),
                None => expanded.extend(["$(", name, ")"]),
            }
            after
        } else {
            expanded.push('$');
            after.strip_prefix('$').unwrap_or(after)
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sources() -> Sources {
        let data = |values: &[(&str, &str)]| {
            let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).into()));
            Some(Arc::new(values.collect::<Data>()))
        };
        HashMap::from([
            ((DataKind::Secret, "keys".to_owned()), data(&[("api", "a"), ("app", "b")])),
            ((DataKind::ConfigMap, "site".to_owned()), data(&[("SITE", "eu"), ("api", "c")])),
            ((DataKind::Secret, "gone".to_owned()), None),
        ])
    }

    fn environment(container: &Value) -> Result<Vec<String>, Gap> {
        let container: Container = serde_json::from_value(container.clone()).unwrap();
        let variables = variables(&container, &sources(), "shop")?;
        let told =
            variables.iter().map(|(name, value)| format!("{name}={}", value.expose_secret()));
        let mut told: Vec<String> = told.collect();
        told.sort();
        Ok(told)
    }

    #[track_caller]
    fn check(container: &Value, expected: &[&str]) {
        assert_eq!(environment(container).unwrap(), expected);
    }

    #[test]
    fn whole_maps_come_first_and_single_variables_win() {
        let container = json!({
            "name": "app",
            "envFrom": [
                {"secretRef": {"name": "keys"}},
                {"configMapRef": {"name": "site"}, "prefix": "DD_"},
                {"secretRef": {"name": "gone", "optional": true}},
            ],
            "env": [
                {"name": "app", "value": "other"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "app"}}},
                {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "site", "key": "none"}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "BLANK"},
            ],
        });
        check(
            &container,
            &["BLANK=", "DD_SITE=eu", "DD_api=c", "KEY=b", "NONE=", "api=a", "app=other"],
        );
    }

    #[test]
    fn a_source_that_is_missing_spoils_all() {
        for env in [
            json!({"envFrom": [{"secretRef": {"name": "gone"}}]}),
            json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "k"}}}]}),
        ] {
            let mut container = env;
            container["name"] = "app".into();
            assert_eq!(
                environment(&container).unwrap_err().to_string(),
                "the Secret shop/gone does not exist"
            );
        }
    }

    #[test]
    fn variables_refer_to_those_before_them() {
        let value = |value: &str| {
            json!({"name": "app", "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": value}, {"name": "C", "value": "3"},
            ]})
        };
        for (given, expected) in [
            ("x-$(A)-y", "x-1-y"),
            ("$(A)$(A)", "11"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$(A", "$(A"),
            ("$x $(A)", "$x 1"),
            ("5$", "5$"),
            ("$$", "$$"),
        ] {
            check(&value(given), &["A=1", &format!("B={expected}"), "C=3"]);
        }
    }

    #[test]
    fn what_is_needed_is_read_once() {
        let container: Container = serde_json::from_value(json!({
            "name": "app",
            "envFrom": [{"secretRef": {"name": "keys"}}],
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "app"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "site", "key": "x"}}},
            ],
        }))
        .unwrap();
        let secret = (DataKind::Secret, "keys".to_owned());
        let map = (DataKind::ConfigMap, "site".to_owned());
        assert_eq!(needs(&container, true), [secret, map.clone()]);
        assert_eq!(needs(&container, false), [map]);
    }
}
