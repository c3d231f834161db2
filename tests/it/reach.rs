//! How `check -n` finds an object, and the Kubernetes that it is in.

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    check::written,
    fake_kubernetes::TOKEN,
    live::{Cluster, run, trigger},
};

#[tokio::test]
async fn an_object_is_found_by_its_kind_and_name() {
    let cluster = Cluster::start().await;
    let check = async |name: &str| {
        let told = cluster.check(&["--offline", name]).await;
        let first = told.stdout.lines().next().map(str::to_owned);
        (told.code, first.unwrap_or(told.stderr))
    };
    let title = |text: &str| (0, text.to_owned());
    let none = |kind: &str, name: &str| {
        let place = "in the namespace shop of Kubernetes at HERE";
        (2, format!("error: there is no {kind} `{name}` {place}\n"))
    };
    assert_eq!(check("mails").await, none("ScaledObject or ScaledJob", "mails"));
    let job = |authentication: &str| trigger(&json!({"name": authentication}));
    cluster.object("ScaledJob", "mails", &[job("datadog")]);
    assert_eq!(check("mails").await, title("ScaledJob shop/mails, trigger 0, external"));
    cluster.object("ScaledJob", "checkout", &[job("datadog")]);
    assert_eq!(check("checkout").await, title("ScaledObject shop/checkout, trigger 0, external"));
    let of_job = title("ScaledJob shop/checkout, trigger 0, external");
    assert_eq!(check("scaledjob/checkout").await, of_job);
    assert_eq!(check("scaledjobs.keda.sh/checkout").await, of_job);
    assert_eq!(check("scaledobject/mails").await, none("ScaledObject", "mails"));
}

#[tokio::test]
async fn why_there_is_no_object_is_told() {
    let cluster = Cluster::start().await;
    let why = async |arguments: &[&str]| {
        let told = cluster.check(&[&["--offline"], arguments].concat()).await;
        assert_eq!((told.code, &*told.stdout), (2, ""));
        told.stderr
    };
    let mut all = String::new();
    all += &why(&["nowhere"]).await;
    all += &why(&["checkout", "--context", "elsewhere"]).await;
    all += &why(&["checkout", "--trigger", "mails"]).await;
    cluster.kubernetes.delete("namespaces", "", "shop");
    all += &why(&["nowhere"]).await;
    // Many may not read namespaces.
    cluster.kubernetes.forbid("get", "namespaces");
    all += &why(&["nowhere"]).await;
    cluster.kubernetes.forbid("get", "scaledobjects");
    all += &why(&["checkout"]).await;
    cluster.kubernetes.fail(401);
    all += &why(&["checkout"]).await;
    cluster.kubernetes.recover();
    cluster.kubernetes.allow("*", "*");
    cluster.kubernetes.uninstall("keda.sh");
    all += &why(&["checkout"]).await;
    insta::assert_snapshot!(all, @r#"
    error: there is no ScaledObject or ScaledJob `nowhere` in the namespace shop of Kubernetes at HERE
    error: the kubeconfig cannot be used: it has no context "elsewhere"
    error: there is no trigger `mails`; there are: 0
    error: there is no namespace shop in Kubernetes at HERE
    error: there is no ScaledObject or ScaledJob `nowhere` in the namespace shop of Kubernetes at HERE
    error: the ScaledObject shop/checkout cannot be read: Kubernetes forbids you to get scaledobjects/checkout in the namespace shop
    error: the ScaledObject shop/checkout cannot be read: Kubernetes at HERE cannot be asked: 401 Unauthorized
    error: there is no KEDA in Kubernetes at HERE; is it the right `--context`?
    "#);
}

#[tokio::test]
async fn why_kubernetes_is_not_reached_is_told() {
    let why = async |environment: &[(&str, &str)]| {
        let told = run(environment, &["-n", "shop", "checkout", "--offline"]).await;
        assert_eq!((told.code, &*told.stdout), (2, ""));
        told.stderr
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let config = |text: &str| {
        let file = directory.path().join("config");
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let mut all = why(&[("HOME", path)]).await;
    all += &why(&[("KUBECONFIG", path)]).await;
    all += &why(&[("KUBECONFIG", &config("clusters: []"))]).await;
    // Without a word of what stands there.
    all += &why(&[("KUBECONFIG", &config(&format!("users: [{{{TOKEN}: [}}")))]).await;
    all += &why(&[("KUBECONFIG", &config(&format!("users: {TOKEN}")))]).await;
    // A port that was free a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let kubeconfig = |server: &str, user: &Value| {
        json!({
            "clusters": [{"name": "a", "cluster": {"server": server}}],
            "users": [{"name": "a", "user": user}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        })
        .to_string()
    };
    let away = format!("http://{address}");
    all += &why(&[("KUBECONFIG", &config(&kubeconfig(&away, &json!({}))))]).await;
    let plugin = |command: &str, arguments: &[&str]| {
        let api_version = "client.authentication.k8s.io/v1";
        json!({"exec": {
            "apiVersion": api_version, "command": command, "args": arguments,
            "interactiveMode": "Never",
        }})
    };
    for user in [
        plugin("/nowhere/get-token", &[]),
        plugin("/bin/sh", &["-c", &format!("echo {TOKEN}; exit 3")]),
        plugin("/bin/echo", &[TOKEN]),
    ] {
        all += &why(&[("KUBECONFIG", &config(&kubeconfig(&away, &user)))]).await;
    }
    let all = all.replace(path, "DIRECTORY").replace(&address, "HERE");
    insta::assert_snapshot!(all, @r"
    error: the kubeconfig cannot be used: there is no DIRECTORY/.kube/config; set `KUBECONFIG`
    error: the kubeconfig cannot be used: DIRECTORY: Is a directory (os error 21)
    error: the kubeconfig cannot be used: it has no current context; choose one with `kubectl config use-context`
    error: the kubeconfig cannot be used: it is not the YAML of a kubeconfig
    error: the kubeconfig cannot be used: it is not the YAML of a kubeconfig
    error: the ScaledObject shop/checkout cannot be read: Kubernetes at HERE cannot be asked: Connection refused (os error 111)
    error: no client for Kubernetes can be made: the kubeconfig's command for credentials cannot be run: No such file or directory (os error 2)
    error: no client for Kubernetes can be made: the kubeconfig's command for credentials failed (exit status: 3)
    error: no client for Kubernetes can be made: the kubeconfig's command for credentials printed something else
    ");
}

#[tokio::test]
async fn what_cannot_go_together_is_refused() {
    let cluster = Cluster::start().await;
    for arguments in [
        &["checkout", "-f", "a.yaml"][..],
        &["checkout", "--metadata", "query=a"],
        &["checkout", "--compare-batch"],
        &["secret/checkout"],
        &["scaledobject/"],
        &["Checkout"],
        &[],
    ] {
        let told = cluster.check(arguments).await;
        assert_eq!((told.code, &*told.stdout), (2, ""), "{arguments:?}");
    }
    let told = run(&[], &["checkout"]).await;
    assert!(told.stderr.contains("--namespace <NAMESPACE>"), "{}", told.stderr);
}

#[tokio::test]
async fn kubernetes_is_reached_through_the_proxy_that_kubectl_would_take() {
    let cluster = Cluster::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let check = async |server: &str, more: &str, environment: &[(&str, &str)]| {
        let kubeconfig = cluster.listening.kubeconfig();
        let cluster_of = format!("server: {:?}", cluster.listening.url);
        let kubeconfig = kubeconfig.replace(&cluster_of, &format!("server: {server:?}{more}"));
        let kubeconfig = written(&kubeconfig);
        let path = kubeconfig.path().to_str().unwrap();
        let environment = [&[("KUBECONFIG", path)], environment].concat();
        run(&environment, &["-n", "shop", "checkout", "--offline"]).await
    };
    let of_shell = [("HTTP_PROXY", &*away), ("HTTPS_PROXY", &*away)];
    let here = &cluster.listening.url;
    assert_eq!(check(here, "", &of_shell).await.code, 0);
    let told = check(here, &format!(", proxy-url: {away:?}"), &[]).await;
    assert!(told.code == 2 && told.stderr.contains("refused"), "{}", told.stderr);
    // This machine by a name that does not say so.
    let elsewhere = here.replace("127.0.0.1", "0.0.0.0");
    let told = check(&elsewhere, "", &of_shell).await;
    assert!(told.code == 2 && told.stderr.contains("refused"), "{}", told.stderr);
    let spared = [&of_shell[..], &[("NO_PROXY", "0.0.0.0")]].concat();
    assert_eq!(check(&elsewhere, "", &spared).await.code, 0);
    // The password of a proxy is nobody's business.
    let told = check(here, ", proxy-url: 'ftp://user:secret@proxy'", &[]).await;
    let message = "error: no client for Kubernetes can be made: the proxy must be given as \
                   `http://…` or `https://…`\n";
    assert_eq!((told.code, &*told.stderr), (2, message));
}
