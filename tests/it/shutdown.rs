//! How the server ends: nothing that had begun is lost, and nothing keeps it from ending.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{net::TcpStream, task::JoinSet};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{FakeDatadog, Reply, Server, config, object, soon};

#[tokio::test]
async fn streams_end_with_ok_and_rpcs_that_had_begun_are_answered() {
    const RPCS: usize = 12;
    let datadog =
        FakeDatadog::start(|_| Reply::points(&[3.0]).after(Duration::from_millis(500))).await;
    let mut server = Server::start(&datadog).await;
    let keda = server.client().await;

    // As 250 push triggers have them.
    let streams = (0..250u32).map(|n| {
        let mut keda = keda.clone();
        let trigger = object(&[("triggerName", &n.to_string())]);
        async move {
            let active = soon(keda.client.stream_is_active(trigger.clone())).await.unwrap();
            let spec = soon(keda.client.stream_metric_spec(trigger)).await.unwrap();
            (active.into_inner(), spec.into_inner())
        }
    });
    let mut streams = join_all(streams).await;
    for (active, spec) in &mut streams {
        assert!(soon(active.message()).await.unwrap().unwrap().result);
        assert!(soon(spec.message()).await.unwrap().is_some());
    }
    let mut begun = JoinSet::new();
    for n in 0..RPCS {
        let mut keda = keda.clone();
        let trigger = object(&[("query", &format!("sum:shop.orders{{till:{n}}}"))]);
        begun.spawn(async move { keda.value(&trigger).await });
    }
    datadog.was_asked(1 + RPCS).await;

    server.shutdown.leave.cancel();
    for (active, spec) in &mut streams {
        let ends = (soon(active.message()).await, soon(spec.message()).await);
        assert!(matches!(ends, (Ok(None), Ok(None))), "{ends:?}");
    }
    let answers = soon(begun.join_all()).await;
    assert!(answers.into_iter().all(|value| value.unwrap() == 3.0));
    server.ended().await.unwrap();
}

#[tokio::test]
async fn everything_is_served_on_during_the_drain_delay_but_not_ready() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[3.0])).await;
    let mut config = config(&datadog.url);
    config.drain_delay = Duration::from_hours(1);
    let mut server = Server::start_with(config).await;
    let mut keda = server.client().await;
    let mut stream = soon(keda.client.stream_is_active(object(&[]))).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().unwrap().result);

    let mut health = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest::default();
    let mut changes = soon(health.watch(request)).await.unwrap().into_inner();
    server.shutdown.leave.cancel();
    loop {
        let change = soon(changes.message()).await.unwrap().expect("health is served on");
        if change.status() == ServingStatus::NotServing {
            break;
        }
    }
    assert_eq!(server.get("/readyz").await, (503, "shutting down\n".into()));
    assert_eq!(server.get("/livez").await.0, 200);
    assert_eq!(keda.value(&object(&[])).await.unwrap(), 3.0);

    // A second signal.
    server.shutdown.abort.cancel();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_does_not_keep_the_server_from_ending() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[3.0])).await;
    let mut config = config(&datadog.url);
    // The grace is a little longer than the patience.
    config.scaler.patience = Duration::from_hours(1);
    let mut server = Server::start_with(config).await;
    let _idle = TcpStream::connect(server.grpc.trim_start_matches("http://")).await.unwrap();
    let _also = TcpStream::connect(server.admin.trim_start_matches("http://")).await.unwrap();
    // The connections are accepted before this RPC is answered.
    server.client().await.value(&object(&[])).await.unwrap();
    server.shutdown.leave.cancel();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_while_datadog_hangs_ends_nonetheless() {
    let datadog =
        FakeDatadog::start(|_| Reply::points(&[3.0]).after(Duration::from_hours(1))).await;
    let mut server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { keda.value(&object(&[("timeout", "1s")])).await });
    datadog.was_asked(1).await;
    server.shutdown.leave.cancel();
    let answer = soon(waiting.join_next()).await.unwrap().unwrap();
    assert_eq!(answer.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    server.ended().await.unwrap();
}
