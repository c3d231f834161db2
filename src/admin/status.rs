//! The status: what is known of each query, and of each rate limit. It names tenants' queries and
//! namespaces, so it is served apart, and to no website.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::{Query, Request, State},
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::Semaphore, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    document::{Document, Which},
    host,
};
use crate::{refresh::Refresher, words::json};

/// Most answers that are made at once: one may have some megabytes.
const AT_ONCE: usize = 2;

#[derive(Clone)]
struct Status {
    refresher: Refresher,
    turns: Arc<Semaphore>,
}

/// Serves until `stop`.
pub fn serve(
    listener: TcpListener,
    refresher: Refresher,
    stop: CancellationToken,
) -> impl Future<Output = io::Result<()>> {
    let router = Router::new()
        .route("/api/status", get(status))
        .fallback(async || (StatusCode::NOT_FOUND, "there is /api/status, and nothing else\n"))
        .layer(from_fn(no_website))
        .with_state(Status { refresher, turns: Arc::new(Semaphore::new(AT_ONCE)) });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).into_future()
}

/// A large answer takes milliseconds, which RPCs would wait.
async fn status(State(status): State<Status>, Query(which): Query<Which>) -> Response {
    let _turn = status.turns.acquire().await;
    let written = spawn_blocking(move || {
        let snapshot = status.refresher.snapshot();
        json::document(&Document::of(&snapshot, &which))
    });
    let Ok(Ok(json)) = written.await else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be told\n").into_response();
    };
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, json).into_response()
}

async fn no_website(request: Request, next: Next) -> Response {
    if host::address(request.headers()).is_some() {
        return next.run(request).await;
    }
    let refusal = "the status is told at an IP address or `localhost` only, so that no website can \
                   ask for it; use `kubectl port-forward`\n";
    (StatusCode::FORBIDDEN, refusal).into_response()
}
