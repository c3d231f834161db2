//! What the manifests in `deploy/` grant is what the scaler asks for, and nothing else.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    time::Duration,
};

use keda_datadog_scaler::kubernetes::{
    self, Access, AuthenticationKind, Claim, ClaimError, DataKind, Kubernetes, Reference, Workload,
};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{fake_kubernetes::FakeKubernetes, harness::repository};

/// A verb, a group, a resource, and the namespace; that is empty for all of them.
type Right = (String, String, String, String);

const GRANTED: [&str; 2] = ["deploy/install.yaml", "deploy/install-namespaced.yaml"];
const EXAMPLE: &str = "deploy/examples/triggerauthentication.yaml";

pub(crate) fn documents(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(repository().join(path)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn namespace(document: &Value) -> String {
    document["metadata"]["namespace"].as_str().unwrap_or_default().to_owned()
}

/// The rules of all roles, each with the namespace where it counts.
fn rules(documents: &[Value]) -> Vec<(String, &Value)> {
    let roles = of_kind(documents, "Role").chain(of_kind(documents, "ClusterRole"));
    roles
        .flat_map(|role| {
            let of_role = role["rules"].as_array().unwrap().iter();
            of_role.map(|rule| (namespace(role), rule))
        })
        .collect()
}

fn granted(documents: &[Value]) -> BTreeSet<Right> {
    let mut granted = BTreeSet::new();
    for (namespace, rule) in rules(documents) {
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    granted.insert((verb.clone(), group.clone(), resource, namespace.clone()));
                }
            }
        }
    }
    granted
}

/// What is asked of Kubernetes for objects of these namespaces (of all, if there are none), by all
/// that can be asked of `Kubernetes`. Nothing is found, so that everything is looked for.
async fn asked(namespaces: &[&str]) -> BTreeSet<Right> {
    let fake = FakeKubernetes::new();
    let config = kubernetes::Config {
        access: Access::Pod,
        namespaces: namespaces.iter().map(|name| (*name).into()).collect(),
        watches_datadog_metrics: true,
    };
    let (kubernetes, watches) = kubernetes::new(config, fake.client());
    let mut tasks = JoinSet::new();
    tasks.spawn(watches.run(CancellationToken::new()));
    kubernetes.settled().await;
    for kind in ["scaledobjects", "scaledjobs", "triggerauthentications", "datadogmetrics"] {
        fake.was_asked("watch", kind, namespaces.len().max(1)).await;
    }
    ask_everything(&kubernetes).await;
    // Discovery is open to all (`system:discovery`).
    let asked = fake.asked().into_iter().filter(|it| !it.resource.is_empty());
    asked.map(|it| (it.verb.to_owned(), it.group, it.resource, it.namespace)).collect()
}

async fn ask_everything(kubernetes: &Kubernetes) {
    let now = Instant::now();
    let claim = Claim { namespace: "shop", name: "basket", metadata: &HashMap::new() };
    let none = kubernetes.honour(&claim, now + Duration::from_secs(9)).await;
    assert!(matches!(none, Err(ClaimError::NoTrigger { .. })), "{none:?}");
    for kind in [
        AuthenticationKind::TriggerAuthentication,
        AuthenticationKind::ClusterTriggerAuthentication,
    ] {
        let reference = Reference { kind, name: "datadog".into() };
        let none = kubernetes.authentication(&"shop".into(), &reference).await.unwrap();
        assert!(none.is_none());
    }
    assert_eq!(kubernetes.read_datadog_metric("shop", "orders").await, Ok(None));
    for kind in [DataKind::Secret, DataKind::ConfigMap] {
        assert!(kubernetes.data(kind, "shop", "datadog-keys", now).await.unwrap().is_none());
    }
    for (api_version, kind) in
        [("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("keda.sh/v1alpha1", "ScaledJob")]
    {
        let (api_version, kind, name) = (api_version.into(), kind.into(), "basket".into());
        let workload = Workload { api_version, kind, name };
        let none = kubernetes.containers("shop", &workload, now).await.unwrap();
        assert!(none.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn in_all_namespaces_exactly_what_is_asked_for_is_granted() {
    let documents = documents(GRANTED[0]);
    let resources = |rights: BTreeSet<Right>| -> BTreeSet<_> {
        rights.into_iter().map(|(verb, group, resource, _)| (verb, group, resource)).collect()
    };
    let granted = granted(&documents);
    let of_namespaces: Vec<_> = granted.iter().filter(|right| !right.3.is_empty()).collect();
    let secrets = ("get".to_owned(), String::new(), "secrets".to_owned(), "keda".to_owned());
    assert_eq!(of_namespaces, [&secrets]);
    assert_eq!(resources(granted), resources(asked(&[]).await));
}

#[tokio::test(start_paused = true)]
async fn in_one_namespace_exactly_what_is_asked_for_is_granted() {
    let granted = granted(&documents(GRANTED[1]));
    let mut asked = asked(&["shop"]).await;
    // What no Role can grant.
    asked.retain(|(_, _, resource, _)| resource != "clustertriggerauthentications");
    assert_eq!(granted, asked);
}

#[test]
fn a_secret_is_granted_by_its_name_and_nothing_by_a_wildcard() {
    for path in GRANTED.into_iter().chain([EXAMPLE]) {
        let documents = documents(path);
        let rules = rules(&documents);
        assert!(!rules.is_empty(), "{path}");
        for (namespace, rule) in rules {
            assert!(!rule.to_string().contains('*'), "{path}: {rule}");
            if texts(&rule["resources"]).contains(&"secrets".to_owned()) {
                assert_eq!(texts(&rule["verbs"]), ["get"], "{path}");
                assert_eq!(texts(&rule["resourceNames"]), ["datadog-keys"], "{path}");
                assert!(!namespace.is_empty(), "{path}");
            }
        }
    }
}

#[test]
fn every_role_is_bound_to_the_account_of_the_deployment() {
    for path in GRANTED.into_iter().chain([EXAMPLE]) {
        let installed = documents(if path == EXAMPLE { GRANTED[0] } else { path });
        let deployment = of_kind(&installed, "Deployment").next().unwrap();
        let account = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
        let account = (account.as_str().unwrap(), namespace(deployment));
        let documents = documents(path);
        for accounted in of_kind(&documents, "ServiceAccount") {
            let name = accounted["metadata"]["name"].as_str().unwrap();
            assert_eq!((name, namespace(accounted)), account, "{path}");
        }
        let mut bound = 0;
        for kind in ["Role", "ClusterRole"] {
            for role in of_kind(&documents, kind) {
                let binding = of_kind(&documents, &format!("{kind}Binding")).find(|binding| {
                    binding["roleRef"]["kind"] == kind
                        && binding["roleRef"]["name"] == role["metadata"]["name"]
                        && namespace(binding) == namespace(role)
                });
                let binding = binding.unwrap_or_else(|| panic!("{path}: {role} is not bound"));
                let subjects = binding["subjects"].as_array().unwrap();
                assert_eq!(subjects.len(), 1);
                assert_eq!(subjects[0]["kind"], "ServiceAccount");
                let name = subjects[0]["name"].as_str().unwrap();
                let of = subjects[0]["namespace"].as_str().unwrap().to_owned();
                assert_eq!((name, of), account, "{path}");
                bound += 1;
            }
        }
        assert!(bound > 0, "{path}");
    }
}

/// From the trigger over its TriggerAuthentication to the Secret that the Role is for.
#[test]
fn the_example_fits_together() {
    let documents = documents(EXAMPLE);
    let one = |kind| of_kind(&documents, kind).next().unwrap();
    let (scaled, authentication) = (one("ScaledObject"), one("TriggerAuthentication"));
    let reference = &scaled["spec"]["triggers"][0]["authenticationRef"]["name"];
    assert_eq!(*reference, authentication["metadata"]["name"]);
    let entries = authentication["spec"]["secretTargetRef"].as_array().unwrap();
    let parameters: Vec<_> = entries.iter().map(|entry| &entry["parameter"]).collect();
    assert_eq!(parameters, ["apiKey", "appKey", "datadogSite"]);
    let (_, rule) = rules(&documents)[0];
    assert!(entries.iter().all(|entry| entry["name"] == rule["resourceNames"][0]));
    let namespaces = documents.iter().map(namespace);
    assert!(namespaces.eq(std::iter::repeat_n("shop", documents.len())));
}
