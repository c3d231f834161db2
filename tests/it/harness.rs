//! What the tests have in common: a fake Datadog, a running server, triggers, and waits that end.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Once},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use clap::Parser as _;
use keda_datadog_scaler::{
    cli::{Cli, Command, Environment},
    proto::{GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    serve::{self, Addresses, Listeners, Shutdown},
};
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status, transport::Channel};

pub(crate) const API_KEY: &str = "marker-of-the-api-key";
pub(crate) const APP_KEY: &str = "marker-of-the-app-key";

/// Long enough for a slow machine; a test that needs it fails.
const FOREVER: Duration = Duration::from_secs(30);

/// Awaits something that must happen.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        timeout(FOREVER, future).await.unwrap_or_else(|_| panic!("it did not happen: {caller}"))
    }
}

/// A request that the fake Datadog got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) query: String,
    /// Seconds since the epoch.
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) headers: HeaderMap,
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Before a byte of it is sent.
    pub(crate) delay: Duration,
}

type Script = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// Answers by its script and remembers what it was asked.
pub(crate) struct FakeDatadog {
    pub(crate) url: String,
    asked: watch::Sender<Vec<Asked>>,
    _server: JoinSet<()>,
}

impl FakeDatadog {
    pub(crate) async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Script = Arc::new(script);
        let (asked, _) = watch::channel(Vec::new());
        let router = Router::new()
            .route("/api/v1/query", axum::routing::get(answer))
            .with_state((script, asked.clone()));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, asked, _server: server }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    pub(crate) async fn was_asked(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        soon(asked.wait_for(|asked| asked.len() >= times)).await.unwrap();
    }
}

async fn answer(
    State((script, asked)): State<(Script, watch::Sender<Vec<Asked>>)>,
    Query(parameters): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let request = Asked {
        query: parameters["query"].clone(),
        from: parameters["from"].parse().unwrap(),
        to: parameters["to"].parse().unwrap(),
        headers,
    };
    asked.send_modify(|all| all.push(request.clone()));
    let reply = script(&request);
    sleep(reply.delay).await;
    let mut response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(reply.body)).unwrap()
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.to_string().into_bytes(),
            delay: Duration::ZERO,
        }
    }

    /// One series with these points.
    pub(crate) fn points(values: &[f64]) -> Self {
        let points: Vec<Value> =
            (0i64..).zip(values).map(|(n, value)| json!([n * 10_000, value])).collect();
        Self::json(200, &json!({"status": "ok", "series": [{"scope": "*", "pointlist": points}]}))
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::json(status, &json!({"errors": ["scripted"]}))
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// `tests/data/replies/NAME.json`
    pub(crate) fn recorded(name: &str) -> Self {
        let path = repository().join("tests/data/replies").join(name).with_extension("json");
        let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let headers = recorded["headers"].as_object().unwrap();
        let headers = headers.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()));
        let body = match &recorded["body"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Self {
            status: recorded["status"].as_u64().unwrap().try_into().unwrap(),
            headers: headers.collect(),
            body: body.into_bytes(),
            delay: Duration::ZERO,
        }
    }
}

/// The real thing on free ports.
pub(crate) struct Server {
    pub(crate) grpc: String,
    pub(crate) admin: String,
    pub(crate) status: String,
    pub(crate) shutdown: Shutdown,
    running: JoinSet<anyhow::Result<()>>,
}

impl Server {
    pub(crate) async fn start(datadog: &FakeDatadog) -> Self {
        Self::start_with(config(&datadog.url)).await
    }

    pub(crate) async fn start_with(config: serve::Config) -> Self {
        install_tls();
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listeners = Addresses { grpc: free, admin: free, status: free };
        let listeners = Listeners::bind(listeners).await.unwrap();
        let Addresses { grpc, admin, status } = listeners.addresses().unwrap();
        let shutdown = Shutdown::default();
        let mut running = JoinSet::new();
        running.spawn(serve::run(config, listeners, shutdown.clone()));
        Self {
            grpc: format!("http://{grpc}"),
            admin: format!("http://{admin}"),
            status: format!("http://{status}"),
            shutdown,
            running,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(&self.grpc).await
    }

    pub(crate) async fn client(&self) -> Keda {
        Keda::at(&self.grpc).await
    }

    /// What `serve::run` returned.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        soon(self.running.join_next()).await.unwrap().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response =
            soon(http_client().get(format!("{}{path}", self.admin)).send()).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

/// Passes connections on to a server, and counts them.
pub(crate) struct Relay {
    pub(crate) url: String,
    pub(crate) connections: watch::Receiver<usize>,
    _running: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(to: &str) -> Self {
        let to = to.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (count, connections) = watch::channel(0);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut relayed = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(&to).await.unwrap();
                count.send_modify(|connections| *connections += 1);
                // Either side may hang up.
                relayed.spawn(async move {
                    copy_bidirectional(&mut client, &mut server).await.map_err(drop)
                });
            }
        });
        Self { url, connections, _running: running }
    }
}

/// Asks as KEDA does.
#[derive(Clone)]
pub(crate) struct Keda {
    pub(crate) client: ExternalScalerClient<Channel>,
}

impl Keda {
    pub(crate) async fn at(url: &str) -> Self {
        Self { client: ExternalScalerClient::new(channel(url).await) }
    }

    pub(crate) async fn value(&mut self, object: &ScaledObjectRef) -> Result<f64, Status> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: "whatever".into(),
        };
        let response = soon(self.client.get_metrics(request)).await?.into_inner();
        let [value] = &*response.metric_values else { panic!("not one value: {response:?}") };
        assert_eq!(value.metric_name, "whatever");
        Ok(value.metric_value_float)
    }

    pub(crate) async fn is_active(&mut self, object: &ScaledObjectRef) -> Result<bool, Status> {
        Ok(soon(self.client.is_active(object.clone())).await?.into_inner().result)
    }
}

async fn channel(url: &str) -> Channel {
    soon(Channel::from_shared(url.to_owned()).unwrap().connect()).await.unwrap()
}

/// `serve` as it is by default, with the keys of the tests and without the drain delay.
pub(crate) fn config(datadog_url: &str) -> serve::Config {
    let arguments =
        ["keda-datadog-scaler", "serve", "--datadog-url", datadog_url, "--drain-delay", "0s"];
    let Command::Serve(serve) = Cli::parse_from(arguments).command else { panic!("it is `serve`") };
    let environment = Environment::read(|name| match name {
        "DD_API_KEY" => Some(API_KEY.into()),
        "DD_APP_KEY" => Some(APP_KEY.into()),
        _ => None,
    });
    let mut config = serve.config(environment).unwrap();
    // Nothing is to depend on how quick this machine is.
    config.scaler.patience = Duration::from_secs(20);
    // A proxy of this machine is none of the tests' business.
    config.http.proxy_from_environment = false;
    config
}

/// The trigger `sum:shop.orders{*}` with a target of 5, and these entries added.
pub(crate) fn object(extra: &[(&str, &str)]) -> ScaledObjectRef {
    let basis =
        [("query", "sum:shop.orders{*}"), ("queryValue", "5"), ("scalerAddress", "here:9090")];
    let entries = basis.iter().chain(extra);
    ScaledObjectRef {
        name: "shop".into(),
        namespace: "demo".into(),
        scaler_metadata: entries.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

#[track_caller]
pub(crate) fn check_status<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    message: &str,
) {
    let status = result.expect_err("it fails");
    assert_eq!((status.code(), status.message()), (code, message));
}

pub(crate) fn http_client() -> reqwest::Client {
    install_tls();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub(crate) fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().unwrap();
    });
}

pub(crate) fn repository() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// The files of `deploy/examples`, all of them.
pub(crate) fn examples() -> Vec<PathBuf> {
    let files = std::fs::read_dir(repository().join("deploy/examples")).unwrap();
    let mut examples: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    examples.sort();
    assert!(!examples.is_empty());
    examples
}
