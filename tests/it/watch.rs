//! `check --watch`: what KEDA sees as time goes by.

use std::io::{self, Write};

use keda_datadog_scaler::check;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    check::{QUERY, TARGET, config, written},
    fake_scaler::FakeScaler,
    harness::{FakeDatadog, Reply, Server, soon},
};

/// Sends each line on.
struct Lines {
    rest: Vec<u8>,
    lines: mpsc::UnboundedSender<String>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8(std::mem::take(&mut self.rest)).unwrap();
                self.lines.send(line).unwrap();
            } else {
                self.rest.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `check --watch`, and the lines that it prints.
struct Watching {
    lines: mpsc::UnboundedReceiver<String>,
    shutdown: CancellationToken,
    running: JoinSet<anyhow::Result<bool>>,
}

impl Watching {
    fn start(arguments: &[&str]) -> Self {
        let config = config(&[arguments, &["--watch", "--output", "json"]].concat());
        let shutdown = CancellationToken::new();
        let (sender, lines) = mpsc::unbounded_channel();
        let mut running = JoinSet::new();
        running.spawn({
            let shutdown = shutdown.clone();
            async move {
                let mut out = Lines { rest: Vec::new(), lines: sender };
                check::run(config, &mut out, shutdown).await
            }
        });
        Self { lines, shutdown, running }
    }

    async fn next(&mut self) -> Value {
        serde_json::from_str(&soon(self.lines.recv()).await.unwrap()).unwrap()
    }

    /// Ended by Ctrl-C.
    async fn end(mut self) -> bool {
        self.shutdown.cancel();
        soon(self.running.join_next()).await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn watching_shows_polls_and_pushes_until_it_is_ended() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let server = Server::start(&datadog).await;
    let address = server.grpc.trim_start_matches("http://");
    let through = ["--through", address, "--interval", "1s"];
    let mut watching = Watching::start(&[&QUERY[..], &TARGET, &through].concat());
    assert_eq!(watching.next().await["fine"], true);
    let (mut polls, mut pushes) = (0, 0);
    while polls < 2 || pushes < 1 {
        let event = watching.next().await;
        match event["event"].as_str() {
            Some("poll") => {
                assert_eq!((&event["value"], &event["status"]), (&8.0.into(), &"answered".into()));
                polls += 1;
            }
            Some("push") => {
                let seen = (&event["trigger"], &event["active"]);
                assert_eq!(seen, (&"check[0]".into(), &true.into()));
                pushes += 1;
            }
            _ => {}
        }
    }
    assert!(watching.end().await);
}

#[tokio::test]
async fn only_what_pushes_is_streamed_and_a_warning_is_not_forgotten() {
    let scaler = FakeScaler::answering(&[(7.0, 7)]);
    let (address, _server) = scaler.start().await;
    let address = address.to_string();
    let manifest = written(
        r#"
kind: ScaledObject
metadata: {name: shop}
spec:
  pollingInterval: 1
  triggers:
    - type: external
      metadata: {scalerAddress: "here:9090", query: "avg:a{*}", queryValue: "5", agee: "60"}
"#,
    );
    let mut watching =
        Watching::start(&["-f", manifest.path().to_str().unwrap(), "--through", &address]);
    assert_eq!(watching.next().await["fine"], false);
    assert_eq!(watching.next().await["event"], "poll");
    assert!(!watching.end().await);
    assert!(!scaler.methods().contains(&"StreamIsActive"));
}

#[tokio::test]
async fn a_scaler_that_fails_at_the_end_is_not_fine() {
    let scaler = FakeScaler { fails_after: Some(1), ..FakeScaler::answering(&[(7.0, 7)]) };
    let (address, _server) = scaler.start().await;
    let address = address.to_string();
    let through = ["--through", &*address, "--interval", "1s"];
    let mut watching = Watching::start(&[&QUERY[..], &TARGET, &through].concat());
    assert_eq!(watching.next().await["fine"], true);
    loop {
        let event = watching.next().await;
        if event["event"] == "poll" {
            assert_eq!((&event["status"], &event["rpc"]), (&"failed".into(), &"GetMetrics".into()));
            break;
        }
    }
    assert!(!watching.end().await);
}

#[tokio::test]
async fn a_scaler_that_comes_late_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let through = address.to_string();
    let through = ["--through", &*through, "--interval", "1s"];
    let mut watching = Watching::start(&[&QUERY[..], &TARGET, &through].concat());
    assert_eq!(watching.next().await["fine"], false);
    let scaler = FakeScaler::answering(&[(7.0, 7)]);
    let _server = scaler.start_at(address).await;
    loop {
        let event = watching.next().await;
        if event["event"] == "poll" && event["status"] == "answered" {
            break;
        }
    }
    assert!(!watching.end().await);
}
