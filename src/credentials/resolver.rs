//! The one loop that resolves `authenticationRef`s: those that are asked for at once, each again
//! every minute, and at once when its TriggerAuthentication changes or Datadog refuses its keys.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Authentication, CredentialsError, Own, Rules,
    keyring::{CredentialState, Keyring, Settled},
    resolution::Resolution,
};
use crate::{
    demand::Account,
    kubernetes::{AuthenticationSpec, Kubernetes, ReadError},
    refresh::Refresher,
};

/// Most that are resolved at once. How fast is decided where they are read.
const MAX_AT_ONCE: usize = 16;

/// The accounts that are in use.
#[derive(Debug)]
pub(super) struct Ring {
    keyring: Mutex<Keyring>,
    wake: Notify,
    /// The server's own, of the Datadog API and of a Cluster Agent.
    pub(super) own: watch::Receiver<Option<Own>>,
    pub(super) own_agent: watch::Receiver<Option<Own>>,
}

/// Resolves what the `Credentials` are asked for, once it is run.
pub struct Resolver {
    kubernetes: Kubernetes,
    rules: Arc<Rules>,
    ring: Arc<Ring>,
}

/// What an `authenticationRef` came to, and by what.
type Outcome = (Option<Arc<AuthenticationSpec>>, Own);

impl Ring {
    pub(super) fn new(
        own: watch::Receiver<Option<Own>>,
        own_agent: watch::Receiver<Option<Own>>,
    ) -> Self {
        Self { keyring: Mutex::default(), wake: Notify::new(), own, own_agent }
    }

    /// What an `authenticationRef` comes to, now and later.
    pub(super) fn follow(
        &self,
        authentication: Authentication,
    ) -> Result<watch::Receiver<Option<Own>>, CredentialsError> {
        let (account, is_new) = self.keyring().follow(authentication, Instant::now())?;
        if is_new {
            self.wake.notify_one();
        }
        Ok(account)
    }

    /// `new` is in use from now on. What was read with `old` is carried over to it, unless somebody
    /// else uses that.
    pub(super) fn succeed(&self, refresher: &Refresher, old: &Arc<Account>, new: &Arc<Account>) {
        if !self.uses(old) {
            refresher.replace(old, new);
        }
    }

    fn uses(&self, account: &Account) -> bool {
        let is_own = |own: &watch::Receiver<Option<Own>>| matches!(&*own.borrow(), Some(Ok(own)) if **own == *account);
        is_own(&self.own) || is_own(&self.own_agent) || self.keyring().uses(account)
    }

    pub(super) fn states(&self) -> Vec<(CredentialState, usize)> {
        self.keyring().states()
    }

    fn keyring(&self) -> MutexGuard<'_, Keyring> {
        // It cannot fail half-way.
        self.keyring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    pub(super) fn new(kubernetes: Kubernetes, rules: Arc<Rules>, ring: Arc<Ring>) -> Self {
        Self { kubernetes, rules, ring }
    }

    /// Until `stop`.
    pub async fn run(self, refresher: Refresher, stop: CancellationToken) {
        let mut changes = self.kubernetes.changes();
        let mut resolving = JoinSet::new();
        let mut under_way = HashMap::new();
        loop {
            while resolving.len() < MAX_AT_ONCE {
                let due = self.ring.keyring().take_due(Instant::now());
                let Some((authentication, since)) = due else { break };
                let (kubernetes, rules) = (self.kubernetes.clone(), self.rules.clone());
                let resolved = resolve(kubernetes, rules, authentication.clone(), since);
                under_way.insert(resolving.spawn(resolved).id(), authentication);
            }
            let next = self.ring.keyring().next_due().filter(|_| resolving.len() < MAX_AT_ONCE);
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = due => self.ring.keyring().forget_idle(Instant::now()),
                () = self.ring.wake.notified() => {}
                Some(done) = resolving.join_next_with_id() => {
                    let (id, outcome) = done.map_or_else(
                        |error| (error.id(), did_not_end(&error)),
                        |(id, outcome)| (id, outcome),
                    );
                    if let Some(authentication) = under_way.remove(&id) {
                        self.settle(&authentication, outcome, &refresher);
                    }
                }
                Ok(()) = changes.changed() => {
                    let current = |it: &Authentication| {
                        self.kubernetes.known_authentication(&it.namespace, &it.reference)
                    };
                    self.ring.keyring().changed(current, Instant::now());
                }
                refused = refresher.refused() => {
                    let mut keyring = self.ring.keyring();
                    for account in refused {
                        keyring.refused(&account, Instant::now());
                    }
                }
            }
        }
    }

    fn settle(&self, authentication: &Authentication, outcome: Outcome, refresher: &Refresher) {
        let (basis, outcome) = outcome;
        if let Ok(account) = &outcome {
            // It may have been replaced for another that had it.
            refresher.readmit(account);
        }
        let (hold, now) = (self.rules.hold, Instant::now());
        let settled = self.ring.keyring().settle(authentication, basis, outcome, hold, now);
        // With `env`, one TriggerAuthentication gives each workload other keys.
        let workload = authentication.workload.as_ref().map(|workload| &*workload.name);
        match settled {
            Settled::Same => {}
            Settled::Found(account) => {
                tracing::info!(%authentication, workload, host = account.host(), "credentials are in use");
            }
            Settled::Changed { old, new } => {
                tracing::info!(%authentication, workload, host = new.host(), "new credentials are in use");
                self.ring.succeed(refresher, &old, &new);
            }
            Settled::Kept(error) => {
                tracing::warn!(%authentication, workload, %error, "the last credentials stay in use");
            }
            Settled::Failed(error) => {
                tracing::warn!(%authentication, workload, %error, "there are no credentials");
            }
        }
    }
}

async fn resolve(
    kubernetes: Kubernetes,
    rules: Arc<Rules>,
    authentication: Arc<Authentication>,
    since: Instant,
) -> Outcome {
    let (kubernetes, rules) = (&kubernetes, &rules);
    let resolution = Resolution { kubernetes, rules, authentication: &authentication, since };
    resolution.account().await
}

/// The last keys stay in use, if there are any.
fn did_not_end(error: &JoinError) -> Outcome {
    tracing::error!(%error, "resolving credentials did not end as it should");
    let what = "resolve credentials".to_owned();
    (None, Err(CredentialsError::Read { error: ReadError::NotUnderstood { what } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::{Keys, Trust};

    #[test]
    fn the_servers_own_accounts_are_in_use() {
        let url = || "https://a.dd.svc:8443".parse().unwrap();
        let keys = Keys::Pair { api: "a".into(), app: "b".into() };
        let (api, agent) =
            (Account::new(url(), keys), Account::of_agent(url(), "t".into(), Trust::System));
        let (api, agent) = (Arc::new(api), Arc::new(agent));
        let channel = |account: &Arc<Account>| watch::channel(Some(Ok(account.clone()))).1;
        let ring = Ring::new(channel(&api), channel(&agent));
        assert!(ring.uses(&api) && ring.uses(&agent));
        assert!(!ring.uses(&Account::of_agent(url(), "other".into(), Trust::System)));
    }
}
