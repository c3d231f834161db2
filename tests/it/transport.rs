//! How the server reaches Datadog: TLS with a private CA, HTTP/2, gzip, a proxy.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, http::Version, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tonic::Code;

use crate::{
    authority::Authority,
    harness::{FakeDatadog, Reply, Server, config, install_tls, object, repository, soon},
};

/// A Datadog behind TLS, with a certificate of its own CA.
pub(crate) struct TlsDatadog {
    pub(crate) url: String,
    pub(crate) ca_file: PathBuf,
    /// The HTTP version of each request.
    versions: mpsc::UnboundedReceiver<Version>,
    _directory: TempDir,
    _server: JoinSet<()>,
}

impl TlsDatadog {
    pub(crate) async fn start() -> Self {
        install_tls();
        let authority = Authority::new("Datadog");
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();

        let (certificate, key) = authority.issue("localhost").der();
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (sender, versions) = mpsc::unbounded_channel();
        let router = Router::new().route(
            "/api/v1/query",
            get(move |version: Version| async move {
                sender.send(version).unwrap();
                r#"{"status":"ok","series":[{"pointlist":[[0,8]]}]}"#
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let mut server = JoinSet::new();
        server.spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), router));
        Self { url, ca_file, versions, _directory: directory, _server: server }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, router) = (tls.clone(), router.clone());
        connections.spawn(async move {
            // A client that does not trust the certificate hangs up.
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = TowerToHyperService::new(router);
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[tokio::test]
async fn a_private_ca_is_trusted_and_http_2_is_spoken() {
    let mut datadog = TlsDatadog::start().await;
    let mut config = config(&datadog.url);
    config.http.ca_file = Some(datadog.ca_file.clone());
    let server = Server::start_with(config).await;
    assert_eq!(server.client().await.value(&object(&[])).await.unwrap(), 8.0);
    assert_eq!(soon(datadog.versions.recv()).await, Some(Version::HTTP_2));
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_with_the_way_out() {
    let datadog = TlsDatadog::start().await;
    let server = Server::start_with(config(&datadog.url)).await;
    let status = server.client().await.value(&object(&[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let host = datadog.url.trim_start_matches("https://");
    assert_eq!(
        status.message(),
        format!(
            "{host} cannot be reached: invalid peer certificate: UnknownIssuer; \
             give its CA with `--ca-file`"
        )
    );
}

#[tokio::test]
async fn a_ca_file_that_holds_none_is_an_error_at_the_start() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let mut config = config(&datadog.url);
    for (file, message) in
        [("nowhere.pem", "cannot be read"), ("README.md", "holds no PEM certificate")]
    {
        config.http.ca_file = Some(repository().join(file));
        let error = Server::start_with(config.clone()).await.ended().await.unwrap_err();
        assert!(error.to_string().ends_with(message), "{error}");
    }
}

#[tokio::test]
async fn a_compressed_answer_is_read() {
    let body = std::fs::read(repository().join("tests/data/two_points.json.gz")).unwrap();
    let datadog = FakeDatadog::start(move |_| Reply {
        status: 200,
        headers: vec![("content-encoding".into(), "gzip".into())],
        body: body.clone(),
        delay: Duration::ZERO,
    })
    .await;
    let server = Server::start(&datadog).await;
    assert_eq!(server.client().await.value(&object(&[])).await.unwrap(), 2.5);
}
