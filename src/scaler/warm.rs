//! At a start, what Kubernetes says will be asked for is demanded before KEDA asks.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{Scaler, Shared, asker, demand, question_names, understand, wanted};
use crate::{
    kubernetes::{Kubernetes, Stored},
    proto::ScaledObjectRef,
};

/// Most triggers whose credentials are waited for at once.
const AT_ONCE: usize = 64;
/// How long they are; KEDA will have asked by then.
const PATIENCE: Duration = Duration::from_mins(1);

impl Scaler {
    /// Demands the queries of all triggers that are this scaler's, as far as can be told: another
    /// external scaler may have some that look like it. Those are read until they fall idle.
    pub async fn warm(&self, kubernetes: &Kubernetes) {
        kubernetes.settled().await;
        let triggers = stream::iter(kubernetes.triggers());
        let warmed = triggers
            .map(|stored| self.shared.warm(kubernetes, stored))
            .buffer_unordered(AT_ONCE)
            .filter(|is_demanded| std::future::ready(*is_demanded));
        let demanded = warmed.count().await;
        if demanded > 0 {
            tracing::info!(
                triggers = demanded,
                "what Kubernetes knows is demanded before KEDA asks"
            );
        }
    }
}

impl Shared {
    /// Whether its query is demanded.
    async fn warm(&self, kubernetes: &Kubernetes, stored: Arc<Stored>) -> bool {
        let metadata = stored.metadata.iter();
        let object = ScaledObjectRef {
            name: stored.object.name.to_string(),
            namespace: stored.object.namespace.to_string(),
            scaler_metadata: metadata
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        };
        let Ok((trigger, _)) = understand(&object, self.config.strict_metadata) else {
            return false;
        };
        if question_names(&trigger).is_err() {
            return false;
        }
        let wanted = wanted(&trigger);
        let Ok(mut grant) = self.credentials.grant_to(kubernetes, stored, wanted) else {
            return false;
        };
        let Ok(account) = grant.account(Instant::now() + PATIENCE).await else { return false };
        let Ok(demand) = demand(&trigger, account) else { return false };
        // Whoever asks keeps the interest alive.
        drop(self.refresher.watch(&demand, asker(&object.namespace, &trigger)));
        true
    }
}
