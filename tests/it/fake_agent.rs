//! A Cluster Agent that answers and remembers: HTTPS as a Kubernetes API server speaks it.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use jiff::{Timestamp, Unit};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, SupportedProtocolVersion, version::TLS13},
};

use crate::{
    authority::Pair,
    harness::{Reply, install_tls, soon},
};

/// A request that it got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) bearer: String,
    pub(crate) version: axum::http::Version,
    /// Which connection it came by.
    pub(crate) peer: SocketAddr,
}

impl Asked {
    /// The name of the `DatadogMetric`.
    pub(crate) fn metric(&self) -> &str {
        self.path.rsplit(':').next().unwrap_or_default()
    }
}

type Script = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

pub(crate) struct FakeAgent {
    pub(crate) url: String,
    asked: watch::Sender<Vec<Asked>>,
    server: JoinSet<()>,
}

impl FakeAgent {
    pub(crate) async fn start(
        pair: &Pair,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::speaking(pair, "127.0.0.1:0", &TLS13, script).await
    }

    /// Another version of TLS, or at an address that is known before.
    pub(crate) async fn speaking(
        pair: &Pair,
        at: &str,
        version: &'static SupportedProtocolVersion,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        install_tls();
        let (cert, key) = pair.der();
        let mut tls = ServerConfig::builder_with_protocol_versions(&[version])
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind(at).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (asked, _) = watch::channel(Vec::new());
        let mut server = JoinSet::new();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        server.spawn(accept(listener, acceptor, Arc::new(script), asked.clone()));
        Self { url, asked, server }
    }

    /// Frees the port.
    pub(crate) async fn stop(mut self) {
        self.server.shutdown().await;
    }

    /// Until one was such.
    pub(crate) async fn was_asked(&self, mut such: impl FnMut(&Asked) -> bool) {
        let mut asked = self.asked.subscribe();
        soon(asked.wait_for(|asked| asked.iter().any(&mut such))).await.unwrap();
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    script: Script,
    asked: watch::Sender<Vec<Asked>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        let (acceptor, state) = (acceptor.clone(), (script.clone(), asked.clone(), peer));
        connections.spawn(async move {
            // Who does not trust the certificate hangs up.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let router = Router::new().fallback(answer).with_state(state);
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
                .await;
        });
    }
}

async fn answer(
    State((script, asked, peer)): State<(Script, watch::Sender<Vec<Asked>>, SocketAddr)>,
    request: Request,
) -> Response {
    let bearer = request.headers().get("authorization").and_then(|it| it.to_str().ok());
    let bearer = bearer.and_then(|it| it.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    let request = Asked { path, bearer, version: request.version(), peer };
    asked.send_modify(|all| all.push(request.clone()));
    let reply = script(&request);
    sleep(reply.delay).await;
    let response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
    response.body(Body::from(reply.body)).unwrap()
}

/// A value that was taken now.
pub(crate) fn value(quantity: &str) -> Reply {
    value_at(quantity, now())
}

#[expect(clippy::disallowed_methods, reason = "the scaler compares it with its own clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

pub(crate) fn value_at(quantity: &str, at: Timestamp) -> Reply {
    let item = json!({
        "metricName": "datadogmetric@demo:orders", "metricLabels": null,
        "timestamp": at.round(Unit::Second).unwrap().to_string(), "value": quantity,
    });
    let list = json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {}, "items": [item],
    });
    Reply::json(200, &list)
}

/// As a Cluster Agent says whatever is wrong with a metric.
pub(crate) fn failure(cause: &str) -> Reply {
    status(500, "InternalError", &format!("Internal error occurred: {cause}"), cause)
}

pub(crate) fn unauthorized() -> Reply {
    status(401, "Unauthorized", "Unauthorized", "")
}

pub(crate) fn status(code: u16, reason: &str, message: &str, cause: &str) -> Reply {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if !cause.is_empty() {
        status["details"] = Value::from_iter([("causes", json!([{"message": cause}]))]);
    }
    Reply::json(code, &status)
}
