//! What Kubernetes tells of `DatadogMetric`s is read when it is told, and so pushed to whoever follows
//! it.

use std::sync::Arc;

use super::Scaler;
use crate::{
    demand::{Account, Demand, Query},
    kubernetes::Kubernetes,
};

impl Scaler {
    /// Never ends.
    pub async fn pass_on(&self, kubernetes: &Kubernetes) {
        let account = Arc::new(Account::of_watch());
        loop {
            let changed = kubernetes.changed_datadog_metrics().await;
            self.shared.refresher.hasten(changed.iter().map(|(namespace, name)| Demand {
                account: account.clone(),
                query: Query::of_metric(namespace, name),
            }));
        }
    }
}
