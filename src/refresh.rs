//! Keeps demands fresh. Whoever wants a reading asks the `Refresher`; the `Worker` is the one
//! loop that fetches; the `Book` between them decides.
//!
//! A demand is read once, however many ask. While somebody is interested, that is, holds a
//! receiver or asked recently, it is read again in the background each time it falls due, so
//! that an answer costs no I/O. What is known of it travels through a `watch` channel: an RPC
//! borrows the value, a stream follows it.
//!
//! The book is told in several files: `turns` says whose turn it is, `settle` what came of a request,
//! `divide` what one that failed as a whole proves; `plan` and `admission` say who is read how often,
//! by what `organisations` (`meter`, `budget`, `fair`) say may be sent. `queue` and `travel` fill
//! requests; `health` says what a failure means.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use crate::{
    demand::{Account, Demand, Reading},
    source::{Source, SourceError},
};

mod snapshot;
mod book;
mod turns;
mod settle;
mod divide;
mod plan;
mod admission;
mod entry;
mod organisations;
mod meter;
mod budget;
mod fair;
mod queue;
pub(crate) mod travel;
mod health;
mod worker;

use book::Book;
pub use snapshot::{DemandState, DemandStatus, OrganisationStatus, Snapshot, Totals};
pub use worker::Worker;

/// The handle: asks for readings. Cheap to clone.
#[derive(Clone)]
pub struct Refresher {
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How often a demanded query is read.
    pub refresh: Duration,
    /// A demand nobody asked for in this time is no longer read.
    pub idle_after: Duration,
    /// Most queries in one request; at least 1.
    pub batch_queries: usize,
    /// What may be used of that part of a rate limit which others leave: above 0, at most 1.
    pub rate_share: f64,
    /// The longest that a refresh may be put off for want of requests.
    pub max_round: Duration,
    /// Most demands that are known, in all and of one namespace.
    pub max_demands: usize,
    pub max_demands_per_namespace: usize,
}

/// Who wants a reading.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The ScaledObject's; requests are shared out fairly among namespaces.
    pub namespace: &'a str,
    /// Whether the width of the buckets must be known, even of a lone point.
    pub needs_step: bool,
}

/// What is known of a demand. Neither readings nor a failure: nothing yet.
#[derive(Clone, Debug, Default)]
pub struct Latest {
    /// Answers, newest first. An older one is kept only where there is more in it than in every
    /// newer one, for a trigger that finds nothing in those.
    pub readings: Vec<Arc<Reading>>,
    /// Why the newest attempt gave no answer; `None` if it gave one.
    pub failure: Option<SourceError>,
    /// How long after a success the next reading falls due.
    pub interval: Duration,
}

/// What whoever asked makes of the `Latest`.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<T, E> {
    Known(T),
    Failed(E),
    /// A better answer is on its way; `otherwise` will do if it does not come in time.
    Awaited {
        otherwise: Option<T>,
    },
}

/// Why `Refresher::read` gives no answer.
#[derive(Debug, PartialEq)]
pub enum Unread<E> {
    Failed(E),
    /// The deadline passed; the fetch goes on.
    TimedOut,
    /// The demand's account is no longer used; ask again with its successor.
    Withdrawn,
}

struct Shared {
    book: Mutex<Book>,
    /// Something may be due earlier than the worker thinks.
    wake: Notify,
    /// Accounts whose keys were refused, until somebody asks.
    refused: watch::Sender<Vec<Arc<Account>>>,
}

/// The worker does nothing until it is run.
pub fn new<S: Source>(config: Config, source: S) -> (Refresher, Worker<S>) {
    seeded(config, source, fastrand::u64(..))
}

/// `seed` is for jitter.
fn seeded<S: Source>(config: Config, source: S, seed: u64) -> (Refresher, Worker<S>) {
    let book = Mutex::new(Book::new(config, seed, Instant::now()));
    let shared =
        Arc::new(Shared { book, wake: Notify::new(), refused: watch::Sender::new(Vec::new()) });
    (Refresher { shared: shared.clone() }, Worker::new(shared, source))
}

impl Refresher {
    /// Declares interest in a demand, and follows what is known of it. The demand is kept fresh
    /// as long as the receiver lives. The channel closes when its account is withdrawn.
    pub fn watch(&self, demand: &Demand, asker: Asker<'_>) -> watch::Receiver<Arc<Latest>> {
        let (receiver, due) = self.shared.book().ask(demand, asker, Instant::now());
        if due {
            self.shared.wake.notify_one();
        }
        receiver
    }

    /// Waits until `judge` makes something of what is known, or `deadline` passes. Giving up
    /// does not cancel the fetch: the next to ask joins it.
    pub async fn read<T, E>(
        &self,
        demand: &Demand,
        asker: Asker<'_>,
        deadline: Instant,
        judge: impl Fn(&Latest, Instant) -> Verdict<T, E>,
    ) -> Result<T, Unread<E>> {
        let mut latest = self.watch(demand, asker);
        loop {
            // A clone, since judging may take a while, and the writer would wait.
            let known = latest.borrow_and_update().clone();
            let now = Instant::now();
            let otherwise = match judge(&known, now) {
                Verdict::Known(value) => return Ok(value),
                Verdict::Failed(error) => return Err(Unread::Failed(error)),
                Verdict::Awaited { otherwise } => otherwise,
            };
            // Who cannot be served in time need not wait for it.
            let postponed = self.shared.book().postponed(demand, now);
            if let Some((_, why)) = postponed.filter(|(until, _)| *until > deadline) {
                let failed = Latest { failure: Some(why), ..Latest::clone(&known) };
                return match judge(&failed, now) {
                    Verdict::Known(value) => Ok(value),
                    Verdict::Failed(error) => Err(Unread::Failed(error)),
                    Verdict::Awaited { otherwise } => otherwise.ok_or(Unread::TimedOut),
                };
            }
            match timeout_at(deadline, latest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return Err(Unread::Withdrawn),
                Err(_elapsed) => return otherwise.ok_or(Unread::TimedOut),
            }
        }
    }

    /// There is news of these: whoever is interested in one has it read at once.
    pub fn hasten(&self, demands: impl IntoIterator<Item = Demand>) {
        let now = Instant::now();
        let mut is_due = false;
        for demand in demands {
            is_due |= self.shared.book().hasten(&demand, now);
        }
        if is_due {
            self.shared.wake.notify_one();
        }
    }

    /// What is known and planned at this instant.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.book().snapshot(Instant::now())
    }

    /// The same in numbers, for whoever asks often: of a demand, nothing is copied.
    pub fn totals(&self) -> Totals {
        self.shared.book().totals(Instant::now())
    }

    /// Waits until Datadog refuses the keys of accounts; says which, once.
    pub async fn refused(&self) -> Vec<Arc<Account>> {
        let mut refused = self.shared.refused.subscribe();
        // The sender lives as long as this handle.
        let _ = refused.wait_for(|accounts| !accounts.is_empty()).await;
        self.shared.refused.send_replace(Vec::new())
    }

    /// An account that was replaced is used again.
    pub fn readmit(&self, account: &Arc<Account>) {
        self.shared.book().readmit(account);
    }

    /// `new` takes the place of `old`: demands and readings move over, and are read anew at
    /// once, if both are the same Datadog site; else they are withdrawn.
    pub fn replace(&self, old: &Arc<Account>, new: &Arc<Account>) {
        self.shared.book().replace(old, new, Instant::now());
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // The book cannot fail half-way, so what a panicking holder left behind is sound.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_refusal(&self, account: &Arc<Account>) {
        self.refused.send_if_modified(|accounts| {
            let is_news = !accounts.contains(account);
            if is_news {
                accounts.push(account.clone());
            }
            is_news
        });
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod batch_tests;
#[cfg(test)]
mod book_tests;
#[cfg(test)]
mod chaos_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tenant_tests;
