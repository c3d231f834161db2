//! Pure: which `authenticationRef`s are in use, what they came to, and when each is read next.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Authentication, CredentialsError, Own};
use crate::{
    demand::Account,
    kubernetes::{AuthenticationSpec, ReadError},
};

/// Most that are followed.
const MAX_ENTRIES: usize = 10_000;
/// How often each is read again: what Kubernetes itself takes to project a changed Secret.
const ROUND: Duration = Duration::from_mins(1);
/// The same, of what has come to nothing: its author may be mending it.
const RETRY: Duration = Duration::from_secs(5);
/// Keys that were not refused for so long are refused anew.
const REFUSED_ANEW: Duration = Duration::from_mins(10);
/// What was read for another so lately will do, unless there is a reason to doubt it.
const LATELY: Duration = Duration::from_secs(10);
/// What nobody asked for in this time is forgotten.
const IDLE: Duration = Duration::from_mins(10);
/// How often that is looked for.
const FORGET_EVERY: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Keyring {
    entries: HashMap<Arc<Authentication>, Entry>,
    /// When something of a namespace was last taken: who was served least lately goes first.
    served: HashMap<Arc<str>, Instant>,
    forgotten_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// `None` until it has been resolved once.
    account: watch::Sender<Option<Own>>,
    asked_at: Instant,
    turn: Turn,
    /// Whether what was read lately will not do.
    is_doubted: bool,
    /// What it was resolved by.
    basis: Option<Arc<AuthenticationSpec>>,
    /// Since when it comes to nothing, though it did before, and to what.
    failing: Option<(Instant, CredentialsError)>,
    refusal: Option<Refusal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    At(Instant),
    /// Being resolved; `again` once that is done, since something changed meanwhile.
    Now {
        again: bool,
    },
}

/// That Datadog refuses the keys that are in use.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    last_at: Instant,
    /// Whoever rotates keys may revoke the old ones before the new ones are in the Secret.
    pause: Duration,
}

/// How it stands with an `authenticationRef`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialState {
    InUse,
    /// What it refers to has vanished; the last keys are used on for a while.
    Held,
    /// There are no keys.
    Failed,
    /// It has yet to be resolved.
    Pending,
}

impl CredentialState {
    pub const ALL: [Self; 4] = [Self::InUse, Self::Held, Self::Failed, Self::Pending];

    /// As metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Pending => "pending",
        }
    }
}

/// What came of a resolution, for the log and the readings.
#[derive(Debug, PartialEq)]
pub(super) enum Settled {
    /// Nothing new.
    Same,
    /// Keys for the first time, or again.
    Found(Arc<Account>),
    /// Other keys than before.
    Changed { old: Arc<Account>, new: Arc<Account> },
    /// The last keys stay in use, for now.
    Kept(CredentialsError),
    /// There are none.
    Failed(CredentialsError),
}

impl Keyring {
    /// Notes the interest. True if it has to be resolved.
    pub(super) fn follow(
        &mut self,
        authentication: Authentication,
        now: Instant,
    ) -> Result<(watch::Receiver<Option<Own>>, bool), CredentialsError> {
        if let Some(entry) = self.entries.get_mut(&authentication) {
            entry.asked_at = now;
            return Ok((entry.account.subscribe(), false));
        }
        if self.entries.len() >= MAX_ENTRIES {
            self.forget_idle(now);
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(CredentialsError::TooMany { most: MAX_ENTRIES });
        }
        let (account, receiver) = watch::channel(None);
        let entry = Entry {
            account,
            asked_at: now,
            turn: Turn::At(now),
            is_doubted: false,
            basis: None,
            failing: None,
            refusal: None,
        };
        self.entries.insert(Arc::new(authentication), entry);
        Ok((receiver, true))
    }

    /// What is to be resolved now, by what was read since an instant: first what never was, then what has waited longest; of each, of
    /// the namespace that was served least lately.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Arc<Authentication>, Instant)> {
        let due = self.entries.iter().filter_map(|(authentication, entry)| match entry.turn {
            Turn::At(at) if at <= now => {
                let is_known = entry.account.borrow().is_some();
                let served_at = self.served.get(&authentication.namespace);
                Some(((is_known, served_at, at), authentication))
            }
            Turn::At(_) | Turn::Now { .. } => None,
        });
        let (_, first) = due.min_by_key(|(place, _)| *place)?;
        let first = first.clone();
        self.served.insert(first.namespace.clone(), now);
        let entry = self.entries.get_mut(&first).expect("what was found has an entry");
        entry.turn = Turn::Now { again: false };
        let is_doubted = std::mem::take(&mut entry.is_doubted);
        let lately = now.checked_sub(LATELY).filter(|_| !is_doubted);
        Some((first, lately.unwrap_or(now)))
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let times = self.entries.values().filter_map(|entry| match entry.turn {
            Turn::At(at) => Some(at),
            Turn::Now { .. } => None,
        });
        times.min()
    }

    /// A resolution came to `outcome`. What passes leaves the last keys in use; what does not, for
    /// `hold`.
    pub(super) fn settle(
        &mut self,
        authentication: &Authentication,
        basis: Option<Arc<AuthenticationSpec>>,
        outcome: Own,
        hold: Duration,
        now: Instant,
    ) -> Settled {
        let Some(entry) = self.entries.get_mut(authentication) else { return Settled::Same };
        let again = entry.turn == Turn::Now { again: true };
        let before = entry.account.borrow().clone();
        let (settled, pause) = match (before, outcome) {
            (before, Ok(new)) => {
                (entry.basis, entry.failing) = (basis, None);
                let settled = entry.has_found(before, new);
                (settled, entry.refusal.as_mut().map_or(ROUND, Refusal::pause))
            }
            // The watches say that Kubernetes is away.
            (Some(Ok(_)), Err(error)) if error.passes() => (Settled::Same, RETRY),
            (Some(Ok(_)), Err(error)) => {
                entry.basis = basis;
                let (since, is_news) = match &entry.failing {
                    Some((since, said)) => (*since, *said != error),
                    None => (now, true),
                };
                entry.failing = Some((since, error.clone()));
                if now >= since + hold {
                    (entry.has_failed(error), RETRY)
                } else {
                    let settled = if is_news { Settled::Kept(error) } else { Settled::Same };
                    (settled, RETRY.min(since + hold - now))
                }
            }
            (_, Err(error)) => {
                entry.basis = basis;
                (entry.has_failed(error), RETRY)
            }
        };
        entry.turn = Turn::At(if again { now } else { now + pause });
        let is_in_use = matches!(&*entry.account.borrow(), Some(Ok(_)));
        entry.is_doubted |= !is_in_use || entry.failing.is_some() || entry.refusal.is_some();
        settled
    }

    /// Datadog refuses the keys: they are read again at once, and then after growing pauses.
    pub(super) fn refused(&mut self, account: &Account, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| entry.has(account)) {
            let before = entry.refusal.take().filter(|it| now < it.last_at + REFUSED_ANEW);
            if before.is_none() {
                entry.hasten(now);
            }
            let pause = before.map_or(RETRY, |it| it.pause);
            entry.refusal = Some(Refusal { last_at: now, pause });
        }
    }

    /// TriggerAuthentications have changed: what was resolved by another than `current` is due.
    pub(super) fn changed(
        &mut self,
        current: impl Fn(&Authentication) -> Option<Arc<AuthenticationSpec>>,
        now: Instant,
    ) {
        for (authentication, entry) in &mut self.entries {
            let current = current(authentication);
            let is_same = match (&entry.basis, &current) {
                (Some(basis), Some(current)) => Arc::ptr_eq(basis, current),
                (None, None) => true,
                _ => false,
            };
            // One that is not watched is not told of either; its turn comes.
            if !is_same {
                entry.hasten(now);
            }
        }
    }

    /// Whether it is the account of some `authenticationRef` now.
    pub(super) fn uses(&self, account: &Account) -> bool {
        self.entries.values().any(|entry| entry.has(account))
    }

    pub(super) fn states(&self) -> Vec<(CredentialState, usize)> {
        let states: Vec<CredentialState> = self.entries.values().map(Entry::state).collect();
        let count = |state| states.iter().filter(|it| **it == state).count();
        CredentialState::ALL.map(|state| (state, count(state))).into()
    }

    pub(super) fn forget_idle(&mut self, now: Instant) {
        if self.forgotten_at.is_some_and(|at| now < at + FORGET_EVERY) {
            return;
        }
        self.forgotten_at = Some(now);
        self.entries.retain(|_, entry| {
            let is_followed = entry.account.receiver_count() > 0;
            is_followed || matches!(entry.turn, Turn::Now { .. }) || now < entry.asked_at + IDLE
        });
        let namespaces: HashSet<&Arc<str>> = self.entries.keys().map(|it| &it.namespace).collect();
        self.served.retain(|namespace, _| namespaces.contains(namespace));
    }
}

impl Refusal {
    /// Until the keys are read again.
    fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (2 * pause).min(ROUND);
        pause
    }
}

impl Entry {
    fn state(&self) -> CredentialState {
        match &*self.account.borrow() {
            Some(Ok(_)) if self.failing.is_some() => CredentialState::Held,
            Some(Ok(_)) => CredentialState::InUse,
            Some(Err(_)) => CredentialState::Failed,
            None => CredentialState::Pending,
        }
    }

    fn has(&self, account: &Account) -> bool {
        matches!(&*self.account.borrow(), Some(Ok(own)) if **own == *account)
    }

    fn has_found(&mut self, before: Option<Own>, new: Arc<Account>) -> Settled {
        let settled = match before {
            Some(Ok(old)) if old == new => return Settled::Same,
            Some(Ok(old)) => Settled::Changed { old, new: new.clone() },
            Some(Err(_)) | None => Settled::Found(new.clone()),
        };
        self.refusal = None;
        self.account.send_replace(Some(Ok(new)));
        settled
    }

    fn has_failed(&mut self, error: CredentialsError) -> Settled {
        let failed = Some(Err(error.clone()));
        let is_news = self.account.send_if_modified(|account| {
            let is_news = *account != failed;
            *account = failed;
            is_news
        });
        if is_news { Settled::Failed(error) } else { Settled::Same }
    }

    fn hasten(&mut self, now: Instant) {
        self.is_doubted = true;
        self.turn = match self.turn {
            Turn::At(at) => Turn::At(at.min(now)),
            Turn::Now { .. } => Turn::Now { again: true },
        };
    }
}

impl CredentialsError {
    /// Whether it says nothing of the credentials, only of Kubernetes.
    fn passes(&self) -> bool {
        match self {
            Self::Read { error } => !matches!(error, ReadError::Forbidden { .. }),
            _ => false,
        }
    }
}
