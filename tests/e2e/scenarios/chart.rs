//! The chart: what Kubernetes says to all that it can make, and whether a scaler has the rights that
//! it needs by it, and no others.

use std::fs;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::{Outcome, QUICK, Scene};
use crate::{
    api::{documents, path},
    cluster::{INSTALLED, ROUNDS},
    cluster_agent::ClusterAgent,
    helm::{CHART, Helm},
    stage::{Stage, authentication, repository, secret},
    wait::{seconds, until},
};

/// Settings that cannot be, and what is said of them beside what they are.
const REFUSED: [(&str, &str); 11] = [
    ("tls.existingSecret=a,tls.certManager.enabled=true", "exclude each other"),
    ("tls.certManager.enabled=true,tls.certManager.generateCA=false", "issuer.name` is missing"),
    ("tls.certManager.enabled=true,kedaNamespace=other", "in `kedaNamespace`"),
    ("ownAccount.existingSecret=,ownAccount.namespaces={shop}", "no `ownAccount.existingSecret`"),
    ("ownAccount.keys.apiKey=", "minLength"),
    ("clusterAgent.unsafeSsl=true", "which is not set"),
    (
        "clusterAgent.url=https://a,clusterAgent.unsafeSsl=true,clusterAgent.serverName=b",
        "looks at no name",
    ),
    ("clusterAgent.serverName=b", "needs the CA"),
    ("kubernetes.enabled=false,clusterAgent.source=crd", "needs `kubernetes.enabled`"),
    ("service.port=443", "additional properties"),
    ("extraArgs.refrsh=30s", "must be one of"),
];

/// Everything that it makes of `ci/` is taken by Kubernetes, and nothing is made of what cannot be.
pub(super) async fn renderings(scene: Scene) -> Outcome {
    let cluster = &scene.cluster;
    let helm = Helm::new(cluster.directory.join(scene.name))?;
    helm.lint().await?;
    cluster.define(&helm.definitions()).await?;
    for kind in ["Certificate", "Issuer", "ServiceMonitor"] {
        let all = path(kind, None, "")?;
        let known = async || Ok(cluster.api.is_fine(&all).await);
        until(&format!("known: each {kind}"), seconds(60), known, |known| *known).await?;
    }
    let mut renderings = Vec::new();
    for rendered in [INSTALLED, "deploy/install-namespaced.yaml"] {
        renderings.push((rendered.to_owned(), documents(&repository(rendered))?));
    }
    for values in fs::read_dir(repository(CHART).join("ci"))? {
        let values = values?.path();
        let name = values.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let file = values.display().to_string();
        let rendered = helm.template(&name, &["--values", &file]).await?;
        renderings.push((name, rendered));
    }
    let mut taken = 0;
    for (name, objects) in &renderings {
        for object in objects {
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                cluster.namespace(namespace).await?;
            }
            cluster.api.dry_run(object).await.with_context(|| name.clone())?;
            taken += 1;
        }
    }
    for (settings, expected) in REFUSED {
        let Err(refusal) = helm.template("refused", &["--set", settings]).await else {
            bail!("something is made of {settings}");
        };
        let refusal = format!("{refusal:#}");
        ensure!(refusal.contains(expected), "{settings}: {refusal}");
    }
    Ok(format!(
        "{} renderings with {taken} objects are taken, {} settings refused",
        renderings.len(),
        REFUSED.len()
    ))
}

/// What each trigger is read with, by its name.
const FEATURES: [&str; 6] = ["own", "secret", "shared", "config-map", "env", "metric"];

/// Values of the chart, and what is not granted by them: which triggers fail, and what KEDA is told.
fn grants() -> [(Value, Vec<(&'static str, &'static str)>); 9] {
    let secret =
        ("secret", "forbids the scaler to get secrets/datadog-keys in the namespace rights");
    let shared = ("shared", "forbids the scaler to get secrets/datadog-keys in the namespace keda");
    let cluster_wide = ("shared", "forbids the scaler to get clustertriggerauthentications/shared");
    let config_map =
        ("config-map", "forbids the scaler to get configmaps/keys in the namespace rights");
    let env = ("env", "forbids the scaler to get deployments/env in the namespace rights");
    let metric = ("metric", "forbids the scaler to watch `datadogmetrics`");
    let unverified =
        |name| (name, "cannot be verified: Kubernetes forbids the scaler to get scaledobjects");
    let rbac = |rbac: Value| json!({"rbac": rbac});
    let only_here = |rbac: Value| json!({"rbac": rbac, "watchNamespace": "rights"});
    [
        (rbac(json!({})), vec![secret]),
        (rbac(json!({"allSecrets": true})), vec![]),
        (rbac(json!({"secrets": []})), vec![secret, shared]),
        (rbac(json!({"configMaps": false})), vec![secret, config_map]),
        (rbac(json!({"workloads": []})), vec![secret, env]),
        (rbac(json!({"datadogMetrics": false})), vec![secret, metric]),
        (rbac(json!({"create": false})), FEATURES.map(unverified).to_vec()),
        (only_here(json!({})), vec![cluster_wide]),
        (only_here(json!({"clusterTriggerAuthentications": true})), vec![]),
    ]
}

/// Installed with the rights that its values grant, under the token of its own account, it answers
/// what these are for, and says what is missing for the rest.
pub(super) async fn rights(scene: Scene) -> Outcome {
    let mut stage = scene.stage().await?;
    let cluster = scene.cluster.clone();
    let helm = Helm::new(stage.logs.join("helm"))?;
    let agent = ClusterAgent::start(&cluster.api, &stage.namespace, &stage.logs)?;
    agent.define().await?;
    stage.datadog.set(12.0).await?;
    prepare(&stage, &agent).await?;

    let (mut answered, mut refused) = (0, 0);
    for (mut values, missing) in grants() {
        values["kedaNamespace"] = "keda".into();
        values["ownAccount"] = json!({"namespaces": [stage.namespace]});
        let notes = helm.install(&cluster.admin(), &stage.namespace, &values).await?;
        ensure!(notes.contains("scalerAddress: rights-keda-datadog-scaler.rights:9090"), "{notes}");
        let deployment = stage.get("Deployment", "rights-keda-datadog-scaler").await?;
        stage.start_installed(&deployment, &QUICK).await?;
        for feature in FEATURES {
            let expected = missing.iter().find(|(name, _)| *name == feature);
            let outcome =
                async || Ok(stage.check(feature).await?["triggers"][0]["outcome"].clone());
            let is_as_granted = |told: &Value| match expected {
                None => told["value"] == 12.0,
                Some((_, words)) => {
                    let message = told["message"].as_str().unwrap_or_default();
                    message.contains(words) && message.contains("see Rights in the README")
                }
            };
            // Kubernetes goes by what is granted a moment later.
            let what = format!("as granted with {values}: {feature}");
            until(&what, ROUNDS, outcome, is_as_granted).await?;
            *if expected.is_some() { &mut refused } else { &mut answered } += 1;
        }
        is_reached(&stage, &helm).await?;
        stage.end_scaler().await?;
    }
    agent.undefine().await?;
    Ok(format!("{} grants: {answered} answered, {refused} told what is missing", grants().len()))
}

/// By what `helm test` runs in a Pod.
async fn is_reached(stage: &Stage, helm: &Helm) -> anyhow::Result<()> {
    let flags = ["--show-only", "templates/tests/reach.yaml"];
    let pods = helm.template(&stage.namespace, &flags).await?;
    let arguments = pods[0]["spec"]["containers"][0]["args"].as_array().context("no arguments")?;
    let arguments: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
    let [command, through] = &arguments[..] else { bail!("the test runs {arguments:?}") };
    // The name of the Service is none without DNS.
    let address = "--through=rights-keda-datadog-scaler.keda:9090";
    ensure!(*through == address, "the test asks {through}");
    let tested = stage.run(&[command, &format!("--through={}", stage.scaler_address())]).await?;
    let told = String::from_utf8_lossy(&tested.stdout);
    ensure!(tested.status.success() && told.contains(" serves"), "{told}");
    Ok(())
}

/// A trigger for each feature.
async fn prepare(stage: &Stage, agent: &ClusterAgent) -> anyhow::Result<()> {
    let api = &stage.cluster.api;
    stage.datadog.allow(&["own-api-key", "key"]);
    let keys = json!({"apiKey": "key", "appKey": "app", "datadogSite": stage.datadog.site});
    for namespace in [&stage.namespace, "keda"] {
        secret(&stage.cluster, namespace, "datadog-keys", &keys).await?;
    }
    stage.authentication("secret").await?;
    api.apply(&authentication("ClusterTriggerAuthentication", None, "shared")).await?;
    let metadata = |name: &str| json!({"name": name, "namespace": stage.namespace});
    api.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("keys"), "data": keys,
    }))
    .await?;
    let of = |name: &str, spec: Value| {
        let (api_version, kind) = ("keda.sh/v1alpha1", "TriggerAuthentication");
        json!({"apiVersion": api_version, "kind": kind, "metadata": metadata(name), "spec": spec})
    };
    let parameters = ["apiKey", "appKey", "datadogSite"];
    let from_map = parameters.map(|key| json!({"parameter": key, "name": "keys", "key": key}));
    api.apply(&of("config-map", json!({"configMapTargetRef": from_map}))).await?;
    let from_env = parameters.map(|key| json!({"parameter": key, "name": key}));
    api.apply(&of("env", json!({"env": from_env}))).await?;

    agent.create("metric", true).await?;
    agent.set("metric", 12.0).await?;
    for feature in FEATURES {
        stage.deployment(feature, 0).await?;
        let mut trigger = match feature {
            "metric" => stage.agent_trigger("metric", &json!({})),
            _ => stage.trigger(&json!({"triggerName": feature})),
        };
        match feature {
            "own" | "metric" => {}
            "shared" => {
                trigger["authenticationRef"] =
                    json!({"name": "shared", "kind": "ClusterTriggerAuthentication"});
            }
            _ => trigger["authenticationRef"] = json!({"name": feature}),
        }
        stage.scaled_object(feature, &[trigger], &json!({})).await?;
    }
    let variables = parameters.map(|key| json!({"name": key, "value": keys[key]}));
    let containers = json!([{"name": "app", "image": "none", "env": variables}]);
    let template = json!({"spec": {"containers": containers}});
    stage.patch("Deployment", "env", &json!({"spec": {"template": template}})).await
}
