//! The program beside Kubernetes: an API server and a Datadog on sockets, and keys that nobody may see.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use keda_datadog_scaler::proto::ScaledObjectRef;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tonic::Code;

use crate::{
    authentication::{authentication, data, entry},
    binary::start_serve,
    fake_kubernetes::{FakeKubernetes, TOKEN, Trouble},
    harness::{
        API_KEY, APP_KEY, FakeDatadog, Reply, check_status, http_client, install_tls, object, soon,
    },
    kubernetes::{scaled_object, trigger},
};

/// The way to `https://api.datadoghq.com`: a proxy that ends up at a fake one.
pub(crate) struct Proxy {
    pub(crate) url: String,
    pub(crate) ca_file: PathBuf,
    _directory: TempDir,
    _server: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(to: &FakeDatadog) -> Self {
        install_tls();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["api.datadoghq.com".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).unwrap();
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let to = to.url.trim_start_matches("http://").to_owned();
        let mut server = JoinSet::new();
        server.spawn(proxy(listener, TlsAcceptor::from(Arc::new(tls)), to));
        Self { url, ca_file, _directory: directory, _server: server }
    }
}

async fn proxy(listener: TcpListener, tls: TlsAcceptor, to: String) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let (tls, to) = (tls.clone(), to.clone());
        connections.spawn(async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(client.read_u8().await.unwrap());
            }
            assert!(asked.starts_with(b"CONNECT api.datadoghq.com:443 "));
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut client = tls.accept(client).await.unwrap();
            let mut datadog = TcpStream::connect(to).await.unwrap();
            // Either side may hang up.
            let _ = copy_bidirectional(&mut client, &mut datadog).await;
        });
    }
}

/// API and application keys of tenants.
const OLD: (&str, &str) = ("marker-of-a-tenants-api-key", "marker-of-a-tenants-app-key");
const NEW: (&str, &str) = ("marker-of-the-new-api-key", "marker-of-the-new-app-key");
const ODD: (&str, &str) = ("marker of a key with spaces", "marker-of-another-app-key");
const REFUSED: (&str, &str) = ("marker-of-a-refused-api-key", "marker-of-a-refused-app-key");

fn named(name: &str) -> ScaledObjectRef {
    object(&[("triggerName", name)])
}

fn keys(name: &str, (api, app): (&str, &str)) -> Value {
    data("Secret", "demo", name, &[("api", api), ("app", app)])
}

#[tokio::test]
async fn keys_go_to_datadog_and_nowhere_else() {
    let is_rotated = Arc::new(AtomicBool::new(false));
    let refuses_old = is_rotated.clone();
    let datadog = FakeDatadog::start(move |asked| {
        let key = asked.headers["dd-api-key"].to_str().unwrap();
        match key {
            "marker-of-a-tenants-api-key" if !refuses_old.load(Ordering::SeqCst) => {
                Reply::points(&[8.0])
            }
            "marker-of-the-new-api-key" => Reply::points(&[9.0]),
            // As Datadog would, but with the key.
            _ => Reply::json(403, &json!({"errors": [format!("Forbidden: {key}")]})),
        }
    })
    .await;
    let proxy = Proxy::start(&datadog).await;
    let kubernetes = FakeKubernetes::new();
    let triggers = ["good", "odd", "gone", "site", "refused", "garbage"].map(|name| {
        let mut entries = vec![entry("apiKey", name, "api"), entry("appKey", name, "app")];
        if name == "site" {
            entries.push(entry("datadogSite", name, "app"));
        }
        kubernetes.apply(authentication(Some("demo"), name, json!({"secretTargetRef": entries})));
        trigger(&named(name), json!({"name": name}))
    });
    kubernetes.apply(scaled_object(&object(&[]), &triggers));
    for (name, pair) in [("good", OLD), ("site", OLD), ("odd", ODD), ("refused", REFUSED)] {
        kubernetes.apply(keys(name, pair));
    }
    let listening = kubernetes.listen().await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, listening.kubeconfig()).unwrap();
    let environment = [
        ("RUST_LOG", "trace"),
        ("SCALER_KUBERNETES", "on"),
        ("KUBECONFIG", kubeconfig.to_str().unwrap()),
        ("HTTPS_PROXY", &*proxy.url),
        ("NO_PROXY", "127.0.0.1"),
        ("SCALER_CA_FILE", proxy.ca_file.to_str().unwrap()),
        ("SCALER_PATIENCE", "20s"),
        ("SCALER_REFRESH", "1s"),
    ];
    let (mut running, mut keda, admin) = start_serve(&environment).await;
    let log = running.log();

    assert_eq!(keda.value(&named("good")).await.unwrap(), 8.0);
    kubernetes.apply(keys("good", NEW));
    is_rotated.store(true, Ordering::SeqCst);
    // No request fails meanwhile.
    let rotated = async { while keda.value(&named("good")).await.unwrap() < 9.0 {} };
    soon(rotated).await;

    let mut told = String::new();
    for (name, code) in [
        ("odd", Code::FailedPrecondition),
        ("gone", Code::FailedPrecondition),
        ("site", Code::FailedPrecondition),
        ("refused", Code::FailedPrecondition),
    ] {
        let status = keda.value(&named(name)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        told += status.message();
    }
    kubernetes.trouble("secrets", Trouble::Garbage("{\"data\": {\"api\": \"marker-in-garbage"));
    kubernetes.apply(authentication(
        Some("demo"),
        "garbage",
        json!({"secretTargetRef": [
            entry("apiKey", "other", "api"), entry("appKey", "other", "app"),
        ]}),
    ));
    let garbled = async {
        loop {
            let status = keda.value(&named("garbage")).await.unwrap_err();
            if status.code() == Code::Internal {
                return status.message().to_owned();
            }
        }
    };
    told += &soon(garbled).await;
    let forged = object(&[("triggerName", "good"), ("query", "sum:a{*}")]);
    let message = "no trigger of a ScaledObject or ScaledJob of this name has this metadata";
    check_status(keda.value(&forged).await, Code::PermissionDenied, message);

    for page in [format!("{admin}/metrics"), format!("{}/api/status", running.status)] {
        let page = soon(http_client().get(page).send()).await.unwrap();
        assert!(page.status().is_success());
        told += &page.text().await.unwrap();
    }
    running.signal("TERM");
    running.signal("INT");
    assert!(running.exit_code().await.is_some());
    let log = log.join().unwrap();
    assert!(log.contains("credentials are in use"), "{log}");
    for text in [told, log] {
        let markers = ["marker-", "marker of", API_KEY, APP_KEY, TOKEN];
        let around = text.lines().find(|line| markers.iter().any(|marker| line.contains(marker)));
        assert_eq!(around, None);
    }
}
