//! A Cluster Agent over HTTPS on this machine, every `DatadogMetric` of which has a value.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::{Path, State},
    http::header,
    response::IntoResponse,
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::generate_simple_self_signed;
use rustls::{ServerConfig, pki_types::PrivateKeyDer, version::TLS13};
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

pub(crate) struct Agent {
    pub(crate) url: String,
    pub(crate) token_file: PathBuf,
    counts: Arc<Counts>,
    _server: JoinSet<()>,
    _directory: TempDir,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    connections: AtomicU64,
}

impl Agent {
    pub(crate) async fn start() -> Self {
        // Another may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pair = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        let mut tls = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let token_file = directory.path().join("token");
        fs::write(&token_file, "of-the-benchmark").unwrap();
        let counts = Arc::new(Counts::default());
        let mut server = JoinSet::new();
        server.spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), counts.clone()));
        Self { url, token_file, counts, _server: server, _directory: directory }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, counts: Arc<Counts>) {
    let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}";
    let router = Router::new().route(path, get(answer)).with_state(counts.clone());
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
                .await;
        });
    }
}

async fn answer(
    State(counts): State<Arc<Counts>>,
    Path((_, metric)): Path<(String, String)>,
) -> impl IntoResponse {
    counts.requests.fetch_add(1, Ordering::Relaxed);
    #[expect(clippy::disallowed_methods, reason = "the scaler compares it with its own clock")]
    let now = jiff::Timestamp::now();
    let list = json!({
        "kind": "ExternalMetricValueList",
        "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {},
        "items": [{
            "metricName": metric,
            "metricLabels": null,
            "timestamp": now.to_string(),
            "value": "7750m",
        }],
    });
    ([(header::CONTENT_TYPE, "application/json")], list.to_string())
}
