//! The one loop: wait, take what is due, fetch, settle.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Shared, health::Change};
use crate::{
    demand::Service,
    source::{Batch, Reply, Source, SourceError},
    words::shorten,
};

/// Most requests that are under way at once, of all accounts: one that hangs has few of them.
const MAX_FETCHES: usize = 64;

/// Most characters of a query in the log.
const MAX_QUERY: usize = 300;

pub struct Worker<S> {
    shared: Arc<Shared>,
    source: Arc<S>,
    fetches: JoinSet<Reply>,
    /// What each running fetch is for and when it began, so that one that panics still settles.
    batches: HashMap<Id, (Batch, Instant)>,
}

impl<S: Source> Worker<S> {
    pub(super) fn new(shared: Arc<Shared>, source: S) -> Self {
        Self { shared, source: Arc::new(source), fetches: JoinSet::new(), batches: HashMap::new() }
    }

    /// Until `shutdown`; fetches that are under way then are dropped.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let next_turn = self.start_due();
            let due = async {
                match next_turn {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(done) = self.fetches.join_next_with_id() => self.settle(done),
                () = self.shared.wake.notified() => {}
                () = due => {}
            }
        }
    }

    /// Starts what is due; says when to look again, unless a fetch has to end first.
    fn start_due(&mut self) -> Option<Instant> {
        let room = MAX_FETCHES - self.fetches.len();
        let now = Instant::now();
        let (changes, batches, next_turn) = {
            let mut book = self.shared.book();
            let changes = book.plan(now);
            let batches = book.take_due(now, room);
            (changes, batches, book.next_turn(now))
        };
        changes.into_iter().for_each(tell);
        for batch in batches {
            let source = self.source.clone();
            let fetched = batch.clone();
            let task = self.fetches.spawn(async move { source.fetch(&fetched).await });
            self.batches.insert(task.id(), (batch, now));
        }
        next_turn.filter(|_| self.fetches.len() < MAX_FETCHES)
    }

    fn settle(&mut self, done: Result<(Id, Reply), JoinError>) {
        let (id, reply) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "a fetch did not end as it should");
                (error.id(), Reply { outcomes: Vec::new(), rate_limit: None })
            }
        };
        let Some((batch, started_at)) = self.batches.remove(&id) else { return };
        if reply.outcomes.iter().filter_map(|it| it.as_ref().err()).any(SourceError::refuses_keys) {
            self.shared.note_refusal(&batch.account);
        }
        let changes = self.shared.book().settle(batch, reply, started_at, Instant::now());
        changes.into_iter().for_each(tell);
    }
}

fn tell(change: Change) {
    match change {
        Change::AccountFails(account, error) => {
            let host = account.host();
            match account.service() {
                Service::DatadogApi => {
                    tracing::warn!(host, %error, "Datadog gives no answers; readings are held while they may be");
                }
                Service::ClusterAgent => {
                    tracing::warn!(host, %error, "the Cluster Agent gives no answers; readings are held while they may be");
                }
            }
        }
        Change::AccountRecovers(account) => {
            let host = account.host();
            match account.service() {
                Service::DatadogApi => tracing::info!(host, "Datadog answers again"),
                Service::ClusterAgent => tracing::info!(host, "the Cluster Agent answers again"),
            }
        }
        Change::Stretched { host, interval, refused } => {
            let interval_seconds = interval.as_secs();
            if refused > 0 {
                tracing::warn!(
                    host,
                    interval_seconds,
                    refused,
                    "Datadog's rate limit does not carry all queries; the newest are refused, see /api/status"
                );
            } else {
                tracing::warn!(
                    host,
                    interval_seconds,
                    "Datadog's rate limit does not carry a reading of each query each `--refresh`; they are taken less often"
                );
            }
        }
        Change::Relaxed { host } => {
            tracing::info!(
                host,
                "Datadog's rate limit carries a reading of each query each `--refresh` again"
            );
        }
        Change::QueryFails(demand, error) => {
            let query = shorten(&demand.query.text, MAX_QUERY);
            tracing::warn!(query, %error, "a query has no answer, while others of its account do");
        }
        Change::QueryRecovers(demand) => {
            let query = shorten(&demand.query.text, MAX_QUERY);
            tracing::info!(query, "a query has answers again");
        }
    }
}
