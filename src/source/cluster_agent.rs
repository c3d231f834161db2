//! The Cluster Agent's external metrics API, as an HPA would ask it: one value of one
//! `DatadogMetric`, with the token of a `ServiceAccount`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    Answer, Batch, Reply, Source, SourceError,
    datadog::{headers, wall_clock},
};
use crate::{
    demand::{Account, Query, Trust},
    http,
    metrics::Metrics,
};

pub(super) mod answer;

use answer::{interpret, not_fetched};

/// Most requests of a batch that are under way at once. They share a connection.
const MAX_AT_ONCE: usize = 16;
/// Most ways of trusting an agent for which connections are kept.
const MAX_CLIENTS: usize = 32;

pub struct ClusterAgent {
    /// Of a batch, whose requests wait for each other.
    request_timeout: Duration,
    /// The one that was used last is the last.
    clients: Mutex<Vec<(Trust, http::Client)>>,
    forwards: Vec<http::Forward>,
    metrics: Arc<Metrics>,
}

impl ClusterAgent {
    pub fn new(request_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self { request_timeout, clients: Mutex::default(), forwards: Vec::new(), metrics }
    }

    /// The same, for agents that are reached by another way.
    #[must_use]
    pub fn forwarded(self, forwards: Vec<http::Forward>) -> Self {
        Self { forwards, ..self }
    }

    /// Who trusts alike shares connections.
    fn client(&self, account: &Account) -> Result<http::Client, SourceError> {
        let trust = account.trust().unwrap_or(&Trust::System);
        let known = {
            let mut clients = self.clients();
            let place = clients.iter().position(|(known, _)| known == trust);
            place.map(|place| {
                clients[place..].rotate_left(1);
                clients[clients.len() - 1].1.clone()
            })
        };
        if let Some(client) = known {
            return Ok(client);
        }
        let client = http::Client::for_agents(self.request_timeout, trust, &self.forwards);
        let client = client.map_err(|error| SourceError::Unreachable {
            host: account.host(),
            cause: error.to_string(),
        })?;
        let mut clients = self.clients();
        if clients.len() >= MAX_CLIENTS {
            clients.remove(0);
        }
        clients.push((trust.clone(), client.clone()));
        Ok(client)
    }

    fn clients(&self) -> MutexGuard<'_, Vec<(Trust, http::Client)>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request.
    async fn ask(
        &self,
        client: &http::Client,
        account: &Account,
        query: &Query,
        deadline: Instant,
    ) -> Result<Answer, SourceError> {
        let started_at = Instant::now();
        let answered = timeout_at(deadline, get(client, account, query)).await;
        let answered = answered.unwrap_or_else(|_elapsed| {
            let (host, after) = (account.host(), self.request_timeout);
            Err(SourceError::TimedOut { host, after })
        });
        let outcome = answered.as_ref().err().map_or("ok", SourceError::outcome);
        self.metrics.requested(outcome, started_at.elapsed());
        answered
    }
}

impl Source for ClusterAgent {
    async fn fetch(&self, batch: &Batch) -> Reply {
        let deadline = Instant::now() + self.request_timeout;
        let outcomes = match self.client(&batch.account) {
            Ok(client) => {
                let ask = |query| self.ask(&client, &batch.account, query, deadline);
                let asked: Vec<_> = batch.queries.iter().map(ask).collect();
                stream::iter(asked).buffered(MAX_AT_ONCE).collect().await
            }
            Err(error) => vec![Err(error); batch.queries.len()],
        };
        Reply { outcomes, rate_limit: None }
    }
}

async fn get(
    client: &http::Client,
    account: &Account,
    query: &Query,
) -> Result<Answer, SourceError> {
    let refused = || SourceError::TokenRefused { host: account.host() };
    let headers = headers(account.keys()).ok_or_else(refused)?;
    let response = client.get(url(account.base_url(), query), headers).await;
    let response = response.map_err(|error| not_fetched(error, account, query))?;
    interpret(&response, account, query, wall_clock())
}

/// The namespace of the path is the one that the agent authorizes for, but the name is what it reads:
/// both have to be the metric's.
fn url(base: &Url, query: &Query) -> Url {
    let mut url = base.clone();
    let (namespace, _) = query.metric().unwrap_or_default();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty();
        path.extend(["apis", "external.metrics.k8s.io", "v1beta1", "namespaces", namespace]);
        path.push(&query.text);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_has_the_metrics_own_namespace() {
        let base = "https://agent.datadog.svc:8443".parse().unwrap();
        assert_eq!(
            url(&base, &Query::of_metric("Shop", "orders")).as_str(),
            "https://agent.datadog.svc:8443/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/\
             datadogmetric@shop:orders"
        );
    }

    #[test]
    fn clients_are_shared_by_who_trusts_alike_and_have_an_end() {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = ClusterAgent::new(Duration::from_secs(1), Arc::new(Metrics::new()));
        let account =
            |trust| Account::of_agent("https://a.dd.svc:8443".parse().unwrap(), "t".into(), trust);
        for _ in 0..3 {
            agent.client(&account(Trust::Anybody)).unwrap();
        }
        assert_eq!(agent.clients().len(), 1);
        agent.client(&account(Trust::Authorities("no PEM".into()))).unwrap_err();
        assert_eq!(agent.clients().len(), 1);
    }
}
