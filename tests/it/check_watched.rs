//! `check -n` of triggers whose `DatadogMetric` the scaler reads in Kubernetes.

use serde_json::Value;

use crate::{
    check_agent::{section, trigger},
    datadog_metrics::{ACTIVE, datadog_metric, invalid, turned},
    live::{Cluster, run, said},
    rbac::documents,
};

/// shop/checkout reads shop/NAME, without an `authenticationRef`.
async fn cluster(name: &str, extra: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start().await;
    cluster.object("ScaledObject", "checkout", &[trigger(name, extra)]);
    cluster
}

/// The value or code, and what is said.
async fn told(cluster: &Cluster, arguments: &[&str]) -> String {
    let told = cluster.check(&[&["checkout", "--output", "json"], arguments].concat()).await;
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    let examined = &report["triggers"][0];
    let outcome = &examined["outcome"];
    let got = if outcome["value"].is_null() { &outcome["code"] } else { &outcome["value"] };
    let said = said(examined).into_iter();
    said.fold(got.to_string(), |all, line| format!("{all}\n  {line}"))
}

#[tokio::test]
async fn what_stands_in_kubernetes_is_what_the_scaler_reads() {
    let cluster = cluster("Orders.v2", &[]).await;
    cluster.kubernetes.apply(datadog_metric("shop", "orders.v2", "20"));
    let told = cluster.check(&["checkout"]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    let of_agent = section(&told.stdout, "Cluster Agent");
    assert!(of_agent.contains("as the status of the DatadogMetric tells it, in Kubernetes"));
    assert_eq!(section(&told.stdout, "Value"), "  20, active");
    assert_eq!(cluster.kubernetes.times_asked("get", "datadogmetrics"), 1);
}

#[tokio::test]
async fn each_state_is_told_as_the_scaler_answers() {
    let cluster = cluster("orders", &[]).await;
    let sound = || datadog_metric("shop", "orders", "20");
    let mut all = vec![told(&cluster, &[]).await];
    for state in [
        turned(sound(), ACTIVE),
        invalid(sound(), "no serie was found for this query in API Response"),
        invalid(sound(), "Datadog API call error (all queries), error: 500"),
    ] {
        cluster.kubernetes.apply(state);
        all.push(told(&cluster, &[]).await);
    }
    insta::assert_snapshot!(all.join("\n"), @r#"
    "FAILED_PRECONDITION"
      note: the scaler reads the DatadogMetric in Kubernetes, for which no token is needed, if it may `list` and `watch` them; else it asks the Cluster Agent, unless `--cluster-agent-source` says otherwise
    "FAILED_PRECONDITION"
      note: the scaler reads the DatadogMetric in Kubernetes, for which no token is needed, if it may `list` and `watch` them; else it asks the Cluster Agent, unless `--cluster-agent-source` says otherwise
    "NOT_FOUND"
      note: the scaler reads the DatadogMetric in Kubernetes, for which no token is needed, if it may `list` and `watch` them; else it asks the Cluster Agent, unless `--cluster-agent-source` says otherwise
    "UNAVAILABLE"
      note: the scaler reads the DatadogMetric in Kubernetes, for which no token is needed, if it may `list` and `watch` them; else it asks the Cluster Agent, unless `--cluster-agent-source` says otherwise
    "#);
}

#[tokio::test]
async fn where_it_cannot_be_read_it_is_said_what_is_not_known() {
    let own = cluster("orders", &[]).await;
    own.kubernetes.forbid("get", "datadogmetrics");
    let mut all = vec![told(&own, &[]).await];
    all.push(told(&own, &["--cluster-agent-source", "crd"]).await);
    own.kubernetes.uninstall("datadoghq.com");
    own.kubernetes.allow("get", "datadogmetrics");
    all.push(told(&own, &["--cluster-agent-source", "crd"]).await);
    let elsewhere = cluster("orders", &[("datadogMetricNamespace", "bank")]).await;
    elsewhere.kubernetes.apply(datadog_metric("bank", "orders", "20"));
    all.push(told(&elsewhere, &["--cluster-agent-source", "crd"]).await);
    let shared = ["--cluster-agent-source", "crd", "--cluster-agent-namespaces", "ba*"];
    all.push(told(&elsewhere, &shared).await);
    insta::assert_snapshot!(all.join("\n"), @r#"
    null
      warning: Kubernetes forbids you to get datadogmetrics/orders in the namespace shop, so that it is not known here what the scaler reads there
      note: there is no `authenticationRef`; the scaler uses its own Cluster Agent, if its `--own-account-namespaces` allow the namespace shop; here, your `--cluster-agent-url` stands for it
    null
      warning: Kubernetes forbids you to get datadogmetrics/orders in the namespace shop, so that it is not known here what the scaler reads there
    "FAILED_PRECONDITION"
    "PERMISSION_DENIED"
      error: the DatadogMetric is of the namespace bank, and triggers of shop may not read it by what the scaler itself may; refer to a TriggerAuthentication with a `token`, or have the administrator add bank to `--cluster-agent-namespaces`
    20.0
      note: the scaler reads the DatadogMetric in Kubernetes, for which no token is needed, if it may `list` and `watch` them; else it asks the Cluster Agent, unless `--cluster-agent-source` says otherwise
    "#);
}

#[tokio::test]
async fn what_stands_only_in_kubernetes_is_not_asked_of_an_agent() {
    let metadata = [
        "useClusterAgentProxy=true",
        "datadogMetricNamespace=shop",
        "datadogMetricName=orders",
        "targetValue=5",
    ];
    let metadata = metadata.map(|entry| ["--metadata", entry]);
    let told =
        run(&[], &[metadata.as_flattened(), &["--cluster-agent-source", "crd"]].concat()).await;
    assert_eq!((told.code, &*told.stderr), (1, ""), "{}", told.stdout);
    insta::assert_snapshot!(section(&told.stdout, "Cluster Agent"), @r"
    warning: with `--cluster-agent-source=crd`, the value stands in Kubernetes;
      apply the trigger, and read it there with `-n NAMESPACE NAME`
    ");
}

#[tokio::test]
async fn the_example_is_read_either_way() {
    let cluster = Cluster::start().await;
    for mut document in documents("deploy/examples/clusteragent.yaml") {
        match document["kind"].as_str().unwrap() {
            "ScaledObject" | "TriggerAuthentication" | "ConfigMap" => {}
            // Kubernetes fills it in.
            "Secret" => document["stringData"]["token"] = "of-the-example".into(),
            "DatadogMetric" => {
                let metadata = document["metadata"].take();
                document = datadog_metric("shop", "orders", "20");
                document["metadata"] = metadata;
            }
            _ => continue,
        }
        cluster.kubernetes.apply(document);
    }
    let told = cluster.check(&["mailer"]).await;
    assert_eq!((told.code, &*told.stderr), (0, ""), "{}", told.stdout);
    assert_eq!(section(&told.stdout, "Value"), "  20, active");
    let told = cluster.check(&["mailer", "--cluster-agent-source", "http"]).await;
    insta::assert_snapshot!(section(&told.stdout, "Credentials"), @r"
    authenticationRef         TriggerAuthentication shop/cluster-agent
    token                     `token` of the Secret shop/cluster-agent-token
    datadogNamespace          `namespace` of the ConfigMap shop/cluster-agent
    datadogMetricsService     `service` of the ConfigMap shop/cluster-agent
    unsafeSsl                 `unsafeSsl` of the ConfigMap shop/cluster-agent
    Cluster Agent             datadog-cluster-agent-metrics-api.datadog.svc:8443
    ");
}
