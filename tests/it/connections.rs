//! Connections that are not what KEDA has: none of them keeps KEDA from being answered.

use std::{net::SocketAddr, time::Duration};

use keda_datadog_scaler::{
    proto::{IsActiveResponse, ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    serve,
    serve::Limits,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::harness::{FakeDatadog, Keda, Reply, Server, check_status, config, object, soon};

/// The HTTP/2 preface, and SETTINGS without a setting.
pub(crate) const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const KEDA: [u8; 4] = [127, 0, 0, 1];
/// Other machines.
const ELSEWHERE: [u8; 4] = [127, 0, 0, 2];
const FAR: [u8; 4] = [127, 0, 0, 3];

async fn start(limits: Limits) -> (Server, FakeDatadog) {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let config = serve::Config { limits, ..config(&datadog.url) };
    (Server::start_with(config).await, datadog)
}

async fn connect_from(from: [u8; 4], server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let to = server.grpc.trim_start_matches("http://").parse().unwrap();
    soon(socket.connect(to)).await.unwrap()
}

/// Whether the server begins HTTP/2; else it has closed the connection.
async fn greets(client: &mut TcpStream) -> bool {
    let mut frame = [0; 9];
    let greeted = async {
        client.write_all(GREETING).await?;
        client.read_exact(&mut frame).await
    };
    soon(greeted).await.is_ok()
}

async fn is_closed(mut client: TcpStream) -> bool {
    let mut rest = Vec::new();
    // It may be reset.
    let _ = soon(client.read_to_end(&mut rest)).await;
    rest.is_empty()
}

#[tokio::test]
async fn who_says_nothing_or_half_of_it_is_closed_in_time() {
    let limits = Limits { silence: Duration::from_millis(50), ..Limits::default() };
    let (server, _datadog) = start(limits).await;
    for said in [0, 1, 23] {
        let mut client = connect_from(ELSEWHERE, &server).await;
        client.write_all(&GREETING[..said]).await.unwrap();
        assert!(is_closed(client).await, "{said}");
    }
}

#[tokio::test]
async fn who_says_nothing_makes_room_for_who_does() {
    let limits = Limits { silent: 3, silence: Duration::from_hours(1), ..Limits::default() };
    let (server, _datadog) = start(limits).await;
    let mut slow = connect_from(KEDA, &server).await;
    slow.write_all(&GREETING[..9]).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(connect_from(ELSEWHERE, &server).await);
    }
    // They come after the others.
    let mut newcomers = [connect_from(ELSEWHERE, &server).await, connect_from(KEDA, &server).await];
    for newcomer in &mut newcomers {
        assert!(greets(newcomer).await);
    }
    assert!(is_closed(silent.remove(0)).await);
    // It is older than all of them, but alone at its address.
    slow.write_all(&GREETING[9..]).await.unwrap();
    let mut frame = [0; 9];
    soon(slow.read_exact(&mut frame)).await.unwrap();
}

#[tokio::test]
async fn there_are_only_so_many_connections_in_all_and_from_one_address() {
    let limits = Limits { connections: 3, connections_of_an_address: 2, ..Limits::default() };
    let (server, _datadog) = start(limits).await;
    let greeted = async |from| {
        let mut client = connect_from(from, &server).await;
        greets(&mut client).await.then_some(client)
    };
    let first = greeted(ELSEWHERE).await.unwrap();
    let _second = greeted(ELSEWHERE).await.unwrap();
    assert!(greeted(ELSEWHERE).await.is_none(), "a third from one address");
    let _third = greeted(KEDA).await.unwrap();
    assert!(greeted(FAR).await.is_none(), "a fourth in all");
    drop(first);
    soon(async { while greeted(FAR).await.is_none() {} }).await;
}

#[tokio::test]
async fn a_connection_that_does_not_end_when_asked_to_is_cut() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let mut config = config(&datadog.url);
    config.connection_age = Duration::from_millis(100);
    let server = Server::start_with(config).await;
    let mut keda = server.client().await;
    // It lasts minutes by itself.
    let mut stream = soon(keda.client.stream_is_active(object(&[]))).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    assert!(soon(stream.message()).await.is_err());
}

#[tokio::test]
async fn a_request_that_is_not_finished_ends() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let mut config = config(&datadog.url);
    config.scaler.patience = Duration::from_millis(1);
    let server = Server::start_with(config).await;
    let mut client = Grpc::new(server.channel().await);
    soon(client.ready()).await.unwrap();
    let never = Request::new(futures_util::stream::pending::<ScaledObjectRef>());
    let path = PathAndQuery::from_static("/externalscaler.ExternalScaler/IsActive");
    let codec = ProstCodec::<ScaledObjectRef, IsActiveResponse>::default();
    let ended = soon(client.client_streaming(never, path, codec)).await;
    assert_eq!(ended.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn there_are_only_so_many_requests_in_all_and_from_one_address() {
    let limits = Limits { requests: 3, requests_of_an_address: 2, ..Limits::default() };
    let (server, _datadog) = start(limits).await;
    let from = async |address: [u8; 4]| {
        let endpoint = Channel::from_shared(server.grpc.clone()).unwrap();
        let endpoint = endpoint.local_address(Some(address.into()));
        Keda { client: ExternalScalerClient::new(soon(endpoint.connect()).await.unwrap()) }
    };
    let (mut keda, mut elsewhere, mut far) =
        (from(KEDA).await, from(ELSEWHERE).await, from(FAR).await);
    let stream = async |keda: &mut Keda| {
        let mut stream =
            soon(keda.client.stream_is_active(object(&[]))).await.unwrap().into_inner();
        assert!(soon(stream.message()).await.unwrap().is_some());
        stream
    };
    let first = stream(&mut elsewhere).await;
    let second = stream(&mut elsewhere).await;
    let exhausted = Code::ResourceExhausted;
    check_status(
        elsewhere.value(&object(&[])).await,
        exhausted,
        "there are 2 requests under way already",
    );
    // Unary requests give their place back.
    for _ in 0..3 {
        assert_eq!(keda.value(&object(&[])).await.unwrap(), 8.0);
    }
    let _third = stream(&mut keda).await;
    check_status(
        far.value(&object(&[])).await,
        exhausted,
        "there are 3 requests under way already",
    );
    drop((first, second));
    soon(async { while far.value(&object(&[])).await.is_err() {} }).await;
}
