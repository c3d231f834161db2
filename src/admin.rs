//! Health and metrics over HTTP: nothing that names a tenant's query.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    /// Not ready any more once it fires.
    leaving: CancellationToken,
}

/// Serves until `stop`, and is not ready from `leaving` on. `/livez` does not depend on Datadog: a
/// restart would not mend it, and lose what is held.
pub fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    leaving: CancellationToken,
    stop: CancellationToken,
) -> impl Future<Output = io::Result<()>> {
    let router = Router::new()
        .route("/livez", get("ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .with_state(Admin { metrics, leaving });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).into_future()
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.leaving.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics_page(State(admin): State<Admin>) -> impl IntoResponse {
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, open_metrics)], admin.metrics.encode())
}
