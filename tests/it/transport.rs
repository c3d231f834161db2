//! How the server reaches Datadog: TLS with a private CA, HTTP/2, gzip, a proxy.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, http::Version, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier},
};
use tonic::Code;

use crate::harness::{FakeDatadog, Reply, Server, config, install_tls, object, repository, soon};

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
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).unwrap();

        let key = key.serialize_der().try_into().unwrap();
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
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

/// Takes TLS off connections and passes them on. Wants a client certificate of its own CA.
pub(crate) struct TlsRelay {
    pub(crate) address: SocketAddr,
    pub(crate) ca_file: PathBuf,
    directory: TempDir,
    _server: JoinSet<()>,
}

impl TlsRelay {
    /// Its certificate is that of `scaler.example`.
    pub(crate) async fn start(to: SocketAddr) -> Self {
        install_tls();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &ca).unwrap(), key)
        };
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).unwrap();
        let (client, client_key) = issue("keda");
        std::fs::write(directory.path().join("client.pem"), client.pem()).unwrap();
        std::fs::write(directory.path().join("client.key"), client_key.serialize_pem()).unwrap();

        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let (certificate, key) = issue("scaler.example");
        let key = key.serialize_der().try_into().unwrap();
        let mut tls = ServerConfig::builder()
            .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(relay(listener, TlsAcceptor::from(Arc::new(tls)), to));
        Self { address, ca_file, directory, _server: server }
    }

    /// Certificate and key.
    pub(crate) fn client_files(&self) -> (String, String) {
        let path = |name: &str| self.directory.path().join(name).to_str().unwrap().to_owned();
        (path("client.pem"), path("client.key"))
    }
}

async fn relay(listener: TcpListener, tls: TlsAcceptor, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let tls = tls.clone();
        connections.spawn(async move {
            // Either side may hang up.
            let Ok(mut client) = tls.accept(stream).await else { return };
            let mut server = TcpStream::connect(to).await.unwrap();
            let _ = copy_bidirectional(&mut client, &mut server).await;
        });
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
