//! etcd and the API server, as processes.

use std::path::Path;

use super::{Certificates, Ports};
use crate::{
    processes::{Process, Program},
    tools::Tools,
};

pub(super) fn start_etcd(
    tools: &Tools,
    directory: &Path,
    port: u16,
    peers: u16,
) -> anyhow::Result<Process> {
    let clients = format!("http://127.0.0.1:{port}");
    let program = Program {
        name: "etcd",
        path: &tools.path("server"),
        arguments: vec![
            format!("--data-dir={}", directory.join("etcd").display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ],
        environment: Vec::new(),
    };
    program.start(directory)
}

pub(super) fn start_apiserver(
    tools: &Tools,
    certificates: &Certificates,
    ports: &Ports,
    directory: &Path,
) -> anyhow::Result<Process> {
    let at = |name: &str| certificates.path(name).display().to_string();
    let program = Program {
        name: "apiserver",
        path: &tools.path("kube-apiserver"),
        arguments: vec![
            format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", ports.api),
            format!("--cert-dir={}", directory.display()),
            format!("--tls-cert-file={}", at("apiserver/tls.crt")),
            format!("--tls-private-key-file={}", at("apiserver/tls.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            "--authorization-mode=RBAC".into(),
            // Without nodes no pod ever has a token.
            "--disable-admission-plugins=ServiceAccount".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("accounts.pub")),
            format!("--service-account-signing-key-file={}", at("accounts.key")),
            format!("--requestheader-client-ca-file={}", at("ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            format!("--proxy-client-cert-file={}", at("front/tls.crt")),
            format!("--proxy-client-key-file={}", at("front/tls.key")),
        ],
        environment: Vec::new(),
    };
    program.start(directory)
}
