//! What runs with Kubernetes only, and when the server is ready.

use tokio_util::sync::CancellationToken;

use crate::{
    credentials::{Credentials, Resolver},
    kubernetes::{self, AccessError, Kubernetes, Watches},
    refresh::Refresher,
    scaler::Scaler,
};

pub(super) struct Cluster {
    kubernetes: Kubernetes,
    watches: Watches,
    resolver: Resolver,
}

impl Cluster {
    /// Credentials that come from Kubernetes, if it is to be asked.
    pub(super) async fn connect(
        credentials: Credentials,
        config: Option<kubernetes::Config>,
    ) -> Result<(Credentials, Option<Self>), AccessError> {
        let Some(config) = config else { return Ok((credentials, None)) };
        let (kubernetes, watches) = kubernetes::connect(config).await?;
        let (credentials, resolver) = credentials.with_kubernetes(kubernetes.clone());
        Ok((credentials, Some(Self { kubernetes, watches, resolver })))
    }

    pub(super) fn kubernetes(&self) -> Kubernetes {
        self.kubernetes.clone()
    }
}

/// Until `stop`. Awaits `ready` once the first listing is there, or at once without Kubernetes.
pub(super) async fn run(
    cluster: Option<Cluster>,
    scaler: Scaler,
    refresher: Refresher,
    stop: CancellationToken,
    ready: impl Future<Output = ()>,
) {
    let Some(Cluster { kubernetes, watches, resolver }) = cluster else {
        ready.await;
        return stop.cancelled().await;
    };
    let starting = async {
        kubernetes.settled().await;
        ready.await;
        scaler.warm(&kubernetes).await;
    };
    tokio::join!(
        watches.run(stop.clone()),
        stop.run_until_cancelled(scaler.pass_on(&kubernetes)),
        resolver.run(refresher, stop.clone()),
        stop.run_until_cancelled(starting),
    );
}
