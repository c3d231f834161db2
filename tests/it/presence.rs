//! `check --through` without triggers: whether a scaler is there, and serves.

use clap::Parser as _;
use keda_datadog_scaler::{
    check,
    cli::{Cli, Command},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server as GrpcServer, server::TcpIncoming};

use crate::{
    authority::{Authority, Mounted},
    check::config,
    fake_scaler::FakeScaler,
    harness::{FakeDatadog, Reply, Server, soon},
    tls::{NAME, Secured, files},
};

/// What it prints, without the time it took, and whether it is fine.
async fn told(address: &str, more: &[&str]) -> (String, bool) {
    let config = config(&[&["--through", address], more].concat());
    let mut out = Vec::new();
    let checked = Box::pin(check::run(config, &mut out, CancellationToken::new()));
    let fine = soon(checked).await.unwrap();
    let text = anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string();
    let text = match text.split_once(", answered after ") {
        Some((before, _)) => before.to_owned(),
        None => text,
    };
    (text.replace(address, "HERE"), fine)
}

#[tokio::test]
async fn a_scaler_that_serves_is_fine_without_any_trigger() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let server = Server::start(&datadog).await;
    let address = server.grpc.trim_start_matches("http://");
    assert_eq!(told(address, &[]).await, ("Scaler\n  HERE serves".to_owned(), true));
    let (json, fine) = told(address, &["-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["fine"], &json["scaler"], fine), (&true.into(), &"HERE".into(), true));
    assert_eq!(datadog.asked().len(), 0);
}

#[tokio::test]
async fn who_does_not_serve_is_told_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (text, fine) = told(&address, &[]).await;
    assert!(
        !fine && text.starts_with("Scaler\n  HERE\n  error: no connection to HERE: "),
        "{text}"
    );

    // Another external scaler.
    let (address, _running) = FakeScaler::default().start().await;
    let (text, fine) = told(&address.to_string(), &[]).await;
    assert!(!fine, "{text}");
    insta::assert_snapshot!(text, @r"
    Scaler
      HERE
      error: it has no gRPC health service; is it another scaler?
    ");

    // One of ours that is about to end.
    let (health, service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut running = JoinSet::new();
    let incoming = TcpIncoming::from(listener);
    running.spawn(GrpcServer::builder().add_service(service).serve_with_incoming(incoming));
    let (text, fine) = told(&address, &[]).await;
    assert!(!fine, "{text}");
    insta::assert_snapshot!(text, @r"
    Scaler
      HERE
      error: it does not serve: it is starting, or about to end
    ");
}

#[tokio::test]
async fn it_takes_what_keda_shows() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let scaler = Secured::start(&servers, Some(&clients)).await;
    let address = scaler.server.grpc.trim_start_matches("http://");
    let secret = Mounted::new(&files(&clients.issue("keda"), &servers.pem()));
    let [cert, key, ca] =
        ["tls.crt", "tls.key", "ca.crt"].map(|name| secret.path(name).display().to_string());
    let trusted = ["--ca-cert", &*ca, "--server-name", NAME];
    let client = ["--tls-client-cert", &*cert, "--tls-client-key", &*key];
    assert!(told(address, &[&trusted[..], &client].concat()).await.1);
    let (text, fine) = told(address, &trusted).await;
    let asks = text.replace("\n    ", " ");
    assert!(!fine && asks.contains("it wants a client certificate"), "{text}");
    // How the connection breaks off, differs.
    let (text, fine) = told(address, &[]).await;
    let text = text.replace("\n    ", " ");
    assert!(!fine && text.ends_with("; if it speaks TLS, give `--ca-cert`\n"), "{text}");
}

#[test]
fn there_is_nothing_to_follow_or_to_choose_without_a_trigger() {
    let parse =
        |flags: &[&str]| Cli::try_parse_from([&["keda-datadog-scaler", "check"], flags].concat());
    let through = ["--through", "127.0.0.1:9090"];
    let Command::Check(_) = parse(&through).unwrap().command else { panic!("it is `check`") };
    assert!(parse(&[&through[..], &["--watch"]].concat()).is_err());
    assert!(parse(&[&through[..], &["--trigger", "0"]].concat()).is_err());
    assert!(parse(&[]).is_err());
}
