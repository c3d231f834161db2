//! The five RPCs, and what stands beside them on the port.

use std::time::Duration;

use futures_util::FutureExt as _;
use keda_datadog_scaler::{
    credentials::{Given, Origin},
    proto::{GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient},
};
use tokio::net::TcpListener;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{
    API_KEY, APP_KEY, FakeDatadog, Keda, Relay, Reply, Server, check_status, config, object, soon,
};

#[tokio::test]
async fn one_reading_answers_the_pair() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0, 22.222])).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;

    let spec = soon(keda.client.get_metric_spec(object(&[]))).await.unwrap().into_inner();
    let [spec] = &*spec.metric_specs else { panic!("not one spec") };
    assert_eq!(spec.metric_name, "datadog-sum-shop-orders");
    assert_eq!((spec.target_size, spec.target_size_float), (5, 5.0));
    assert!(datadog.asked().is_empty());

    assert_eq!(keda.value(&object(&[])).await.unwrap(), 22.222);
    assert!(keda.is_active(&object(&[])).await.unwrap());
    assert!(!keda.is_active(&object(&[("activationQueryValue", "22.222")])).await.unwrap());
    assert_eq!(datadog.asked().len(), 1);
}

#[tokio::test]
async fn a_request_says_who_asks_and_for_when() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let server = Server::start(&datadog).await;
    let query = "sum:shop.orders{env:live, tier:a&b} by {host}.as_count()";
    let object = object(&[("query", query), ("age", "60"), ("timeWindowOffset", "30")]);
    server.client().await.value(&object).await.unwrap();

    let [asked] = &*datadog.asked() else { panic!("not one request") };
    assert_eq!(asked.query, query);
    assert_eq!(asked.to - asked.from, 60);
    assert_eq!(asked.headers["dd-api-key"], API_KEY);
    assert_eq!(asked.headers["dd-application-key"], APP_KEY);
    let version = concat!("keda-datadog-scaler/", env!("CARGO_PKG_VERSION"));
    assert_eq!(asked.headers["user-agent"], version);
    assert_eq!(asked.headers["accept-encoding"], "gzip");
}

#[tokio::test]
async fn an_access_token_travels_as_a_bearer() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let mut config = config(&datadog.url);
    let given = Given { app_key: Some("ddpat_of-the-tests\n".into()), ..Given::default() };
    config.credentials.origin = Origin::Given(given);
    let server = Server::start_with(config).await;
    server.client().await.value(&object(&[])).await.unwrap();
    let [asked] = &*datadog.asked() else { panic!("not one request") };
    assert_eq!(asked.headers["authorization"], "Bearer ddpat_of-the-tests");
    assert!(!asked.headers.contains_key("dd-api-key"));
    assert!(!asked.headers.contains_key("dd-application-key"));
}

#[tokio::test]
async fn faults_of_the_metadata_are_told_together() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    let bad = object(&[("queryValue", "many"), ("age", "1m")]);
    let message = "`age` is \"1m\", but must be a whole number of seconds such as `90`, not negative; also \
                   `queryValue` is \"many\", but must be a number such as `0.5`";
    let code = Code::InvalidArgument;
    check_status(keda.client.get_metric_spec(bad.clone()).await, code, message);
    check_status(keda.value(&bad).await, code, message);
    check_status(keda.is_active(&bad).await, code, message);
    check_status(keda.client.stream_is_active(bad.clone()).await, code, message);
    check_status(keda.client.stream_metric_spec(bad).await, code, message);
    let nobody = GetMetricsRequest::default();
    let message = "the request names no ScaledObject";
    check_status(keda.client.get_metrics(nobody).await, code, message);
    assert!(datadog.asked().is_empty());
}

#[tokio::test]
async fn unknown_keys_are_errors_if_so_wished() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let mut config = config(&datadog.url);
    let typo = object(&[("agee", "60")]);
    let server = Server::start_with(config.clone()).await;
    assert!(server.client().await.value(&typo).await.is_ok());

    config.scaler.strict_metadata = true;
    let server = Server::start_with(config).await;
    let message = "`agee` is not known; did you mean `age`?";
    check_status(server.client().await.value(&typo).await, Code::InvalidArgument, message);
}

#[tokio::test]
async fn a_slow_datadog_costs_an_rpc_its_patience_and_no_more() {
    let datadog =
        FakeDatadog::start(|_| Reply::points(&[8.0]).after(Duration::from_millis(500))).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    let host = datadog.url.trim_start_matches("http://");
    let hurried = object(&[("timeout", "50ms")]);
    let message = format!("no reading from {host} within 50ms; it is still being fetched");
    check_status(keda.value(&hurried).await, Code::DeadlineExceeded, &message);
    // The next to ask joins the fetch that goes on.
    assert_eq!(keda.value(&object(&[])).await.unwrap(), 8.0);
    assert_eq!(keda.value(&hurried).await.unwrap(), 8.0);
    assert_eq!(datadog.asked().len(), 1);
}

#[tokio::test]
async fn a_datadog_that_hangs_or_is_away_is_unavailable() {
    let datadog =
        FakeDatadog::start(|_| Reply::points(&[8.0]).after(Duration::from_hours(1))).await;
    let mut config = config(&datadog.url);
    config.http.request_timeout = Duration::from_millis(100);
    let server = Server::start_with(config.clone()).await;
    let host = datadog.url.trim_start_matches("http://");
    let message = format!("{host} gave no complete answer within 100ms");
    check_status(server.client().await.value(&object(&[])).await, Code::Unavailable, &message);

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    config.credentials.base_url = Some(format!("http://{free}").parse().unwrap());
    let server = Server::start_with(config).await;
    let message = format!("{free} cannot be reached: Connection refused (os error 111)");
    check_status(server.client().await.value(&object(&[])).await, Code::Unavailable, &message);
}

#[tokio::test]
async fn an_answer_too_big_to_read_is_refused() {
    let datadog =
        FakeDatadog::start(|_| Reply { body: vec![b' '; 20 << 20], ..Reply::status(200) }).await;
    let server = Server::start(&datadog).await;
    let message = "the answer has more than 8 MiB; group by fewer tags, or ask for a shorter `age`";
    check_status(server.client().await.value(&object(&[])).await, Code::InvalidArgument, message);
}

#[tokio::test]
async fn a_request_too_big_to_be_a_trigger_is_refused() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    let huge = object(&[("query", &"x".repeat(2 << 20))]);
    assert_eq!(keda.is_active(&huge).await.unwrap_err().code(), Code::OutOfRange);
    assert!(keda.is_active(&object(&[])).await.is_ok());
}

#[tokio::test]
async fn what_no_trigger_can_be_is_refused_before_it_costs_anything() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    let long_name = ScaledObjectRef { name: "x".repeat(254), ..object(&[]) };
    let long_namespace = ScaledObjectRef { namespace: "x".repeat(64), ..object(&[]) };
    let keys: Vec<(String, &str)> = (0..100).map(|n| (format!("key{n}"), "")).collect();
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (&**key, *value)).collect();
    let many_keys = object(&keys);
    for (odd, what) in
        [(long_name, "name is"), (long_namespace, "namespace is"), (many_keys, "metadata has keys")]
    {
        let message = format!(
            "the request is not that of a trigger: its {what} beyond what Kubernetes or KEDA allows"
        );
        check_status(keda.value(&odd).await, Code::InvalidArgument, &message);
        let spec = keda.client.get_metric_spec(odd).await;
        check_status(spec, Code::InvalidArgument, &message);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_not_no_data() {
    let date = ("date".to_owned(), "Sun, 22 Nov 2015 12:00:00 GMT".to_owned());
    let datadog = FakeDatadog::start(move |asked| {
        let mut reply = Reply::recorded(if asked.query.contains("old") {
            "empty_series"
        } else {
            "single_series"
        });
        reply.headers.push(date.clone());
        reply
    })
    .await;
    let server = Server::start(&datadog).await;
    let mut keda = server.client().await;
    let fill = ("metricUnavailableValue", "0");
    let status = keda.value(&object(&[fill, ("query", "sum:old{*}")])).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("this machine's clock and that of "), "{status}");
    // What came nonetheless is a value.
    assert_eq!(keda.value(&object(&[])).await.unwrap(), 4.25);
}

#[tokio::test]
async fn a_query_too_long_for_a_url_is_its_authors_affair() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let server = Server::start(&datadog).await;
    let long = format!("sum:shop.orders{{{}}}", "{".repeat(30_000));
    let value = server.client().await.value(&object(&[("query", &long)])).await;
    let message = "Datadog rejects the query: it is too long";
    check_status(value, Code::InvalidArgument, message);
}

#[tokio::test]
async fn a_large_answer_is_read_like_a_small_one() {
    let points: Vec<f64> = (0..20_000u32).map(f64::from).collect();
    let datadog = FakeDatadog::start(move |_| Reply::points(&points)).await;
    let server = Server::start(&datadog).await;
    assert_eq!(server.client().await.value(&object(&[])).await.unwrap(), 19_999.0);
}

#[tokio::test]
async fn clients_are_asked_to_connect_anew_and_streams_live_on() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let mut config = config(&datadog.url);
    config.connection_age = Duration::from_secs(1);
    let server = Server::start_with(config).await;
    let relay = Relay::start(&server.grpc).await;
    let channel = Channel::from_shared(relay.url.clone()).unwrap().connect_lazy();
    let mut keda = Keda { client: ExternalScalerClient::new(channel) };
    let mut stream = soon(keda.client.stream_is_active(object(&[]))).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().unwrap().result);

    let third_connection = async {
        while *relay.connections.borrow() < 3 {
            match keda.value(&object(&[])).await {
                // It was not sent on the closing connection; grpc-go sends such again by itself.
                Err(status) if status.code() == Code::Cancelled => {}
                other => assert_eq!(other.unwrap(), 1.0),
            }
        }
    };
    soon(third_connection).await;
    // The stream of the first connection is open until it ends by itself, with OK.
    assert!(stream.message().now_or_never().is_none());
    server.shutdown.leave.cancel();
    assert!(matches!(soon(stream.message()).await, Ok(None)));
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[1.0])).await;
    let server = Server::start(&datadog).await;
    let channel = server.channel().await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "externalscaler.ExternalScaler"] {
        let request = HealthCheckRequest { service: service.into() };
        let response = soon(health.check(request)).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::Serving);
    }

    let symbol = "externalscaler.ExternalScaler".to_owned();
    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::FileContainingSymbol(
            symbol.clone(),
        )),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let stream = futures_util::stream::iter([request]);
    let mut responses = soon(client.server_reflection_info(stream)).await.unwrap().into_inner();
    let response = soon(responses.message()).await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(
        response,
        v1::server_reflection_response::MessageResponse::FileDescriptorResponse(_)
    ));

    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(symbol),
        ),
        ..Default::default()
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let stream = futures_util::stream::iter([request]);
    let mut responses = soon(client.server_reflection_info(stream)).await.unwrap().into_inner();
    let response = soon(responses.message()).await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(
        response,
        v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_)
    ));
}

#[tokio::test]
async fn health_and_metrics_do_not_depend_on_datadog() {
    let datadog = FakeDatadog::start(|_| Reply::status(503)).await;
    let server = Server::start(&datadog).await;
    let failed = server.client().await.value(&object(&[])).await;
    assert_eq!(failed.unwrap_err().code(), Code::Unavailable);
    assert_eq!(server.get("/livez").await, (200, "ok\n".into()));
    assert_eq!(server.get("/readyz").await, (200, "ok\n".into()));
    let (status, page) = server.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        r#"keda_datadog_scaler_rpcs_total{method="GetMetrics",code="UNAVAILABLE"} 1"#,
        r#"keda_datadog_scaler_datadog_requests_total{outcome="outage"} 1"#,
        r#"keda_datadog_scaler_demands{state="awake"} 1"#,
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}
