//! Pure: which `authenticationRef`s are in use, what they came to, and when each is read next.

use std::{
    collections::{HashMap, hash_map},
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
/// Most of one namespace that are resolved at once: it may have some that take long.
const MAX_OF_NAMESPACE: usize = 4;
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
    /// Those that have entries.
    namespaces: HashMap<Arc<str>, Namespace>,
    forgotten_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Namespace {
    entries: usize,
    /// Of them, those that are being resolved.
    under_way: usize,
    /// When one of them was last taken: who was served least lately goes first.
    served_at: Option<Instant>,
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
        if self.entries.len() >= MAX_ENTRIES && !self.make_room(&authentication.namespace) {
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
        self.namespaces.entry(authentication.namespace.clone()).or_default().entries += 1;
        self.entries.insert(Arc::new(authentication), entry);
        Ok((receiver, true))
    }

    /// Whether the namespace that has the most gave one up for another, which has fewer.
    fn make_room(&mut self, namespace: &str) -> bool {
        let own = self.namespaces.get(namespace).map_or(0, |it| it.entries);
        let largest = self.namespaces.iter().max_by_key(|(_, it)| it.entries);
        let Some((largest, _)) = largest.filter(|(_, it)| it.entries > own + 1) else {
            return false;
        };
        let of_largest = self.entries.iter().filter(|(authentication, entry)| {
            authentication.namespace == *largest && !matches!(entry.turn, Turn::Now { .. })
        });
        let Some((oldest, _)) = of_largest.min_by_key(|(_, entry)| entry.asked_at) else {
            return false;
        };
        let oldest = oldest.clone();
        if let Some(mut entry) = self.entries.remove(&oldest) {
            entry.has_failed(CredentialsError::TooMany { most: MAX_ENTRIES });
            release(&mut self.namespaces, &oldest.namespace);
        }
        true
    }

    /// What is to be resolved now, by what was read since an instant: of the namespace that was
    /// served least lately, first what never was, then what has waited longest.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Arc<Authentication>, Instant)> {
        let due = self.waiting().filter(|(at, ..)| *at <= now);
        let (.., first) = due.min_by_key(|(at, namespace, entry, _)| {
            (namespace.served_at, entry.account.borrow().is_some(), *at)
        })?;
        let first = first.clone();
        let namespace = self.namespaces.entry(first.namespace.clone()).or_default();
        namespace.under_way += 1;
        namespace.served_at = Some(now);
        let entry = self.entries.get_mut(&first).expect("what was found has an entry");
        entry.turn = Turn::Now { again: false };
        let is_doubted = std::mem::take(&mut entry.is_doubted);
        let lately = now.checked_sub(LATELY).filter(|_| !is_doubted);
        Some((first, lately.unwrap_or(now)))
    }

    /// `None` also while only what is under way makes room for what is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting().map(|(at, ..)| at).min()
    }

    /// What may be resolved, and when, as far as its namespace leaves room.
    fn waiting(&self) -> impl Iterator<Item = (Instant, &Namespace, &Entry, &Arc<Authentication>)> {
        self.entries.iter().filter_map(|(authentication, entry)| {
            let Turn::At(at) = entry.turn else { return None };
            let namespace = self.namespaces.get(&authentication.namespace)?;
            let has_room = namespace.under_way < MAX_OF_NAMESPACE;
            has_room.then_some((at, namespace, entry, authentication))
        })
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
        if let Some(namespace) = self.namespaces.get_mut(&authentication.namespace) {
            namespace.under_way = namespace.under_way.saturating_sub(1);
        }
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
                let pause = if error.is_of_the_text() { ROUND } else { RETRY };
                (entry.has_failed(error), pause)
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
        let Self { entries, namespaces, .. } = self;
        entries.retain(|authentication, entry| {
            let is_followed = entry.account.receiver_count() > 0;
            let is_kept = is_followed
                || matches!(entry.turn, Turn::Now { .. })
                || now < entry.asked_at + IDLE;
            if !is_kept {
                release(namespaces, &authentication.namespace);
            }
            is_kept
        });
    }
}

/// One entry less.
fn release(namespaces: &mut HashMap<Arc<str>, Namespace>, of: &Arc<str>) {
    if let hash_map::Entry::Occupied(mut namespace) = namespaces.entry(of.clone()) {
        namespace.get_mut().entries -= 1;
        if namespace.get().entries == 0 {
            namespace.remove();
        }
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

    /// Whether only another TriggerAuthentication, or another reference, comes to something else:
    /// the watches tell of that.
    fn is_of_the_text(&self) -> bool {
        matches!(self, Self::NoSuchKind { .. } | Self::Unresolved { .. } | Self::NotGiven { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::Service;
    use crate::kubernetes::Reference;

    fn reference(namespace: &str, n: usize) -> Authentication {
        let reference = Reference::new("", &format!("dd-{n}")).unwrap();
        let service = Service::DatadogApi;
        Authentication { service, namespace: namespace.into(), reference, workload: None }
    }

    fn fails(keyring: &mut Keyring, authentication: &Authentication, now: Instant) -> Settled {
        let error = CredentialsError::Pending;
        keyring.settle(authentication, None, Err(error), Duration::ZERO, now)
    }

    #[test]
    fn one_namespace_does_not_take_the_room_of_others() {
        let (mut keyring, now) = (Keyring::default(), Instant::now());
        let mut follow = |namespace, n| keyring.follow(reference(namespace, n), now);
        let (oldest, _) = follow("large", 0).unwrap();
        let others: Vec<_> = (1..MAX_ENTRIES).map(|n| follow("large", n).unwrap().0).collect();
        let too_many = CredentialsError::TooMany { most: MAX_ENTRIES };
        assert_eq!(follow("large", MAX_ENTRIES).unwrap_err(), too_many);
        let (small, is_new) = follow("small", 0).unwrap();
        assert!(is_new && small.borrow().is_none());
        // Who is left out is told.
        let given_up = [oldest].into_iter().chain(others).filter(|it| it.has_changed().is_err());
        let told: Vec<_> = given_up.map(|it| it.borrow().clone()).collect();
        assert_eq!(told, [Some(Err(too_many))]);
        assert_eq!(keyring.entries.len(), MAX_ENTRIES);
    }

    #[test]
    fn what_one_namespace_has_that_takes_long_leaves_room_for_others() {
        let (mut keyring, now) = (Keyring::default(), Instant::now());
        for n in 0..100 {
            keyring.follow(reference("slow", n), now).unwrap();
        }
        let taken: Vec<_> = std::iter::from_fn(|| keyring.take_due(now)).collect();
        assert_eq!(taken.len(), MAX_OF_NAMESPACE);
        // The others are due, but nobody is to look for them before one of these is done.
        assert_eq!(keyring.next_due(), None);
        keyring.follow(reference("quick", 0), now).unwrap();
        assert_eq!(&*keyring.take_due(now).unwrap().0.namespace, "quick");
        fails(&mut keyring, &taken[0].0, now);
        assert_eq!(&*keyring.take_due(now).unwrap().0.namespace, "slow");
    }

    #[test]
    fn new_references_of_one_namespace_do_not_keep_those_of_others_waiting() {
        let (mut keyring, now) = (Keyring::default(), Instant::now());
        let known = reference("small", 0);
        keyring.follow(known.clone(), now).unwrap();
        keyring.take_due(now).unwrap();
        fails(&mut keyring, &known, now);
        for n in 0..100 {
            keyring.follow(reference("large", n), now).unwrap();
        }
        let later = now + RETRY;
        let taken = [later, later].map(|at| keyring.take_due(at).unwrap().0);
        assert!(taken.iter().any(|taken| **taken == known));
    }

    #[test]
    fn namespaces_without_references_are_forgotten() {
        let (mut keyring, now) = (Keyring::default(), Instant::now());
        keyring.follow(reference("demo", 0), now).unwrap();
        keyring.forget_idle(now + IDLE);
        assert!(keyring.entries.is_empty() && keyring.namespaces.is_empty());
    }
}
