//! A Datadog for one scenario: the sandbox's, behind a certificate for `https://api.<site>`, with
//! keys of its own and a memory of who called; and the sandbox's Cluster Agent as it is.

use std::{
    collections::HashSet,
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::{
    certificates::{Authority, Pair},
    processes::{Process, Program, free_ports},
    proxy::Proxy,
    wait::{seconds, until},
};

/// What the sandbox takes.
const SANDBOX_KEYS: [(&str, &str); 2] =
    [("dd-api-key", "sandbox-api-key"), ("dd-application-key", "sandbox-app-key")];
/// Of an hour: the limit is not what is tried here.
const RATE_LIMIT: &str = "1000000";

pub(crate) struct Datadog {
    /// Without `api.`.
    pub(crate) site: String,
    /// Of the simulated Cluster Agent.
    pub(crate) agent_url: String,
    sandbox: String,
    client: reqwest::Client,
    front: Arc<Front>,
    process: tokio::sync::Mutex<Process>,
    _server: JoinSet<()>,
}

struct Front {
    sandbox: String,
    client: reqwest::Client,
    seen: Mutex<Seen>,
    /// Of the calls.
    log: File,
}

#[derive(Default)]
struct Seen {
    /// The API keys that are known here.
    keys: HashSet<String>,
    calls: Vec<Call>,
}

/// A request, whatever its answer was.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) at: Instant,
    pub(crate) key: String,
    pub(crate) by: Caller,
    pub(crate) status: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// KEDA's built-in scaler.
    BuiltIn,
    Scaler,
}

impl Datadog {
    /// From now on, the proxy leads `https://api.<site>` here.
    pub(crate) async fn start(
        site: &str,
        binary: &Path,
        authority: &Authority,
        proxy: &Proxy,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let [listen, agent] = free_ports()?.map(|port: u16| format!("127.0.0.1:{port}"));
        let arguments = vec![
            "sandbox".to_owned(),
            "--datadog-only".into(),
            format!("--datadog-listen={listen}"),
            format!("--agent-listen={agent}"),
            format!("--rate-limit={RATE_LIMIT}"),
        ];
        let environment = Vec::new();
        let program = Program { name: "datadog", path: binary, arguments, environment };
        let process = program.start(logs)?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let sandbox = format!("http://{listen}");
        let seen = Mutex::default();
        let log = File::create(logs.join("calls.log"))?;
        let front = Arc::new(Front { sandbox: sandbox.clone(), client: client.clone(), seen, log });
        let host = format!("api.{site}");
        let tls = acceptor(&authority.server(&[&host])?)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        proxy.lead(&format!("{host}:443"), listener.local_addr()?);
        let mut server = JoinSet::new();
        server.spawn(accept(listener, tls, front.clone()));
        let process = tokio::sync::Mutex::new(process);
        let datadog = Self {
            site: site.to_owned(),
            agent_url: format!("https://{agent}"),
            sandbox,
            client,
            front,
            process,
            _server: server,
        };
        let ready = async || {
            datadog.process.lock().await.check()?;
            Ok(datadog.client.get(format!("{}/faults", datadog.sandbox)).send().await.is_ok())
        };
        until("ready: the simulated Datadog", seconds(20), ready, |ready| *ready).await?;
        Ok(datadog)
    }

    /// What `sandbox.dial` is from now on.
    pub(crate) async fn set(&self, value: f64) -> anyhow::Result<()> {
        self.put(&format!("/dial?value={value}")).await
    }

    /// Breaks it for all queries.
    pub(crate) async fn fault(&self, name: &str) -> anyhow::Result<()> {
        self.put(&format!("/faults/{name}")).await
    }

    /// Breaks it for this query, and with it calls that have this one among others.
    pub(crate) async fn fault_of(&self, name: &str, query: &str) -> anyhow::Result<()> {
        let put = self.client.put(format!("{}/faults/{name}", self.sandbox));
        let sent = put.query(&[("query", query)]).send().await?;
        sent.error_for_status().with_context(|| name.to_owned())?;
        Ok(())
    }

    pub(crate) async fn mend(&self) -> anyhow::Result<()> {
        let sent = self.client.delete(format!("{}/faults", self.sandbox)).send().await?;
        sent.error_for_status()?;
        Ok(())
    }

    /// From now on, no other API keys are known.
    pub(crate) fn allow(&self, keys: &[&str]) {
        self.front.seen().keys = keys.iter().map(|&key| key.to_owned()).collect();
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.front.seen().calls.clone()
    }

    /// How many calls had a key that was not known.
    pub(crate) fn refused(&self) -> usize {
        self.front.seen().calls.iter().filter(|call| call.status == 403).count()
    }

    /// The keys of those who called, in this time up to now.
    pub(crate) fn keys(&self, period: Duration) -> HashSet<String> {
        let calls = self.calls();
        let recent = calls.iter().filter(|call| call.at.elapsed() < period);
        recent.map(|call| call.key.clone()).collect()
    }

    /// Calls a minute of those who called, in this time up to now.
    pub(crate) fn rate(&self, by: Caller, period: Duration) -> f64 {
        let calls = self.calls();
        let recent = calls.iter().filter(|call| call.by == by && call.at.elapsed() < period);
        #[expect(clippy::cast_precision_loss, reason = "there are not that many")]
        let count = recent.count() as f64;
        count * 60.0 / period.as_secs_f64()
    }

    async fn put(&self, path: &str) -> anyhow::Result<()> {
        let sent = self.client.put(format!("{}{path}", self.sandbox)).send().await?;
        sent.error_for_status().with_context(|| path.to_owned())?;
        Ok(())
    }
}

impl Front {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, headers: &HeaderMap, uri: &Uri) -> Response {
        let text = |name| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let key = text("dd-api-key").to_owned();
        let agent = text(header::USER_AGENT.as_str());
        let by =
            if agent.starts_with("keda-datadog-scaler") { Caller::Scaler } else { Caller::BuiltIn };
        let response = if self.seen().keys.contains(&key) {
            self.forward(uri).await.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
        } else {
            (StatusCode::FORBIDDEN, r#"{"errors":["Forbidden"]}"#).into_response()
        };
        let (at, status) = (Instant::now(), response.status().as_u16());
        #[expect(clippy::disallowed_methods, reason = "as in the other logs")]
        let when = jiff::Timestamp::now();
        let query = uri.query().unwrap_or_default();
        let line = format!("{when} {by:?} {key} {status} {query}\n");
        // In one piece, since others write too.
        let _ = (&self.log).write_all(line.as_bytes());
        self.seen().calls.push(Call { at, key, by, status });
        response
    }

    async fn forward(&self, uri: &Uri) -> anyhow::Result<Response> {
        let path = uri.path_and_query().context("there is no path")?;
        let mut request = self.client.get(format!("{}{path}", self.sandbox));
        for (name, value) in SANDBOX_KEYS {
            request = request.header(name, value);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut response = (status, Body::from(answer.bytes().await?)).into_response();
        for (name, value) in &headers {
            if *name == header::CONTENT_TYPE || name.as_str().starts_with("x-ratelimit") {
                response.headers_mut().insert(name.clone(), value.clone());
            }
        }
        Ok(response)
    }
}

fn acceptor(pair: &Pair) -> anyhow::Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_slice(pair.cert.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, front: Arc<Front>) {
    let answer = async |State(front): State<Arc<Front>>,
                        headers: HeaderMap,
                        uri: Uri|
           -> Response { front.answer(&headers, &uri).await };
    let router = Router::new().fallback(answer).with_state(front);
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (tls, router) = (tls.clone(), router.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = TowerToHyperService::new(router);
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}
