//! For whoever looks after the scaler, over HTTP: health and metrics, with nothing that names a
//! tenant's query; and, on an address of its own, the status, which does.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::{net::TcpListener, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{
    credentials::Credentials,
    kubernetes::Kubernetes,
    metrics::{Limit, Metrics, Organisation, Standing},
    refresh::{DemandState, OrganisationStatus, Refresher, Totals},
};

pub mod status;
mod document;
pub(crate) mod host;

/// Most organisations on the metrics page; each is a handful of time series.
const MAX_ORGANISATIONS: usize = 50;

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    refresher: Refresher,
    tenants: Tenants,
    phases: Phases,
}

/// Where triggers and their credentials come from.
#[derive(Clone)]
pub struct Tenants {
    pub credentials: Credentials,
    /// `None` if there is none.
    pub kubernetes: Option<Kubernetes>,
}

/// When the server is ready.
#[derive(Clone)]
pub struct Phases {
    /// From when this fires,
    pub started: CancellationToken,
    /// until this does.
    pub leaving: CancellationToken,
}

/// Serves until `stop`. `/livez` does not depend on Datadog: a
/// restart would not mend it, and lose what is held.
pub fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    refresher: Refresher,
    tenants: Tenants,
    phases: Phases,
    stop: CancellationToken,
) -> impl Future<Output = io::Result<()>> {
    let router = Router::new()
        .route("/livez", get("ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .with_state(Admin { metrics, refresher, tenants, phases });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).into_future()
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    let Phases { started, leaving } = &admin.phases;
    if leaving.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else if !started.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "starting: KEDA's objects are being listed\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

/// To count many demands takes milliseconds, which RPCs would wait on this thread.
async fn metrics_page(State(admin): State<Admin>) -> Response {
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let counted = spawn_blocking(move || {
        let standing = admin.tenants.standing(standing(admin.refresher.totals()));
        admin.metrics.encode(&standing)
    });
    match counted.await {
        Ok(page) => ([(CONTENT_TYPE, open_metrics)], page).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "counting failed\n").into_response(),
    }
}

fn standing(totals: Totals) -> Standing {
    let in_use = totals.organisations.iter().filter_map(organisation);
    let organisations = in_use.take(MAX_ORGANISATIONS).collect();
    let demands = DemandState::ALL.map(|state| (state.name(), totals.in_state(state)));
    let mut ages = totals.ages;
    let oldest = ages.iter().max().copied();
    let reading_ages = oldest.map(|oldest| {
        let middle = ages.len() / 2;
        (*ages.select_nth_unstable(middle).1, oldest)
    });
    let (demands, held) = (demands.into(), totals.held);
    Standing { organisations, demands, held, reading_ages, ..Standing::default() }
}

impl Tenants {
    fn standing(&self, standing: Standing) -> Standing {
        let credentials = self.credentials.states().unwrap_or_default().into_iter();
        let watches = self.kubernetes.as_ref().map(Kubernetes::watches).unwrap_or_default();
        Standing {
            credentials: credentials.map(|(state, count)| (state.name(), count)).collect(),
            watches: watches.into_iter().map(|(state, count)| (state.name(), count)).collect(),
            ..standing
        }
    }
}

/// `None` if nobody uses its accounts any more.
fn organisation(status: &OrganisationStatus) -> Option<Organisation> {
    let limit = Limit { requests: status.limit, remaining: status.remaining, reset: status.reset };
    Some(Organisation {
        host: status.accounts.first()?.host(),
        number: status.number,
        limit: status.is_told.then_some(limit),
        used_share: used_share(status),
        intervals: intervals(status),
    })
}

/// All of it, if others leave nothing.
#[expect(clippy::cast_precision_loss, reason = "a limit is no such number")]
fn used_share(status: &OrganisationStatus) -> f64 {
    if status.allowance == 0 { 1.0 } else { status.sent as f64 / status.allowance as f64 }
}

/// `None` before the first plan.
fn intervals(status: &OrganisationStatus) -> Option<(Duration, Duration)> {
    Some(status.intervals).filter(|(_, longest)| !longest.is_zero())
}
