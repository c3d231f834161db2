//! Reads by name, remembered for a while: who asks for what is being read waits for that.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::ReadError;

/// Most bytes of content that are remembered.
const MAX_BYTES: usize = 32 << 20;

/// What a read found: `None` is an object that is not there.
type Outcome<T> = Result<Option<T>, ReadError>;

/// At most so many reads in a second, and as many at once.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    burst: u32,
    /// When the burst would be whole again.
    whole_at: Mutex<Instant>,
}

pub(super) struct Reads<K, T> {
    slots: Mutex<Slots<K, T>>,
    max_slots: usize,
}

struct Slots<K, T> {
    slots: HashMap<K, Slot<T>>,
    bytes: usize,
}

enum Slot<T> {
    /// The channel closes without a value if the reader gave up.
    Reading(watch::Receiver<()>),
    Read {
        began_at: Instant,
        bytes: usize,
        outcome: Outcome<T>,
    },
}

/// What an object weighs while it is remembered.
pub(super) trait Weigh {
    /// In bytes, roughly.
    fn weight(&self) -> usize;
}

enum Step<T> {
    Known(Outcome<T>),
    Wait(watch::Receiver<()>),
    Read(watch::Sender<()>),
}

impl Pace {
    pub(super) fn new(a_second: u32) -> Self {
        let interval = Duration::from_secs(1) / a_second;
        Self { interval, burst: a_second, whole_at: Mutex::new(Instant::now()) }
    }

    /// How long to wait before the read; `None`, and nothing is reserved, if that would be longer
    /// than `patience`.
    pub(super) fn reserve(&self, now: Instant, patience: Duration) -> Option<Duration> {
        let mut whole_at = self.whole_at.lock().unwrap_or_else(PoisonError::into_inner);
        let debt = whole_at.saturating_duration_since(now) + self.interval;
        let wait = debt.saturating_sub(self.interval * self.burst);
        if wait > patience {
            return None;
        }
        *whole_at = now + debt;
        Some(wait)
    }
}

impl<K: Eq + Hash + Clone, T: Clone + Weigh> Reads<K, T> {
    pub(super) fn new(max_slots: usize) -> Self {
        let slots = Slots { slots: HashMap::new(), bytes: 0 };
        Self { slots: Mutex::new(slots), max_slots }
    }

    /// What a read found that began at `since` or later; if there is none, `read` is it.
    pub(super) async fn get(
        &self,
        key: K,
        since: Instant,
        read: impl Future<Output = Outcome<T>>,
    ) -> Outcome<T> {
        loop {
            let mut done = match self.step(&key, since) {
                Step::Known(outcome) => return outcome,
                Step::Wait(done) => done,
                Step::Read(done) => {
                    let began_at = Instant::now();
                    let outcome = read.await;
                    self.remember(key, began_at, outcome.clone());
                    drop(done);
                    return outcome;
                }
            };
            // Closed either way.
            let _ = done.changed().await;
        }
    }

    fn step(&self, key: &K, since: Instant) -> Step<T> {
        let mut slots = self.slots();
        match slots.slots.get(key) {
            Some(Slot::Read { began_at, outcome, .. }) if *began_at >= since => {
                return Step::Known(outcome.clone());
            }
            Some(Slot::Reading(done)) if done.has_changed().is_ok() => {
                return Step::Wait(done.clone());
            }
            _ => {}
        }
        let (sender, done) = watch::channel(());
        slots.put(key.clone(), Slot::Reading(done));
        self.make_room(&mut slots);
        Step::Read(sender)
    }

    fn remember(&self, key: K, began_at: Instant, outcome: Outcome<T>) {
        let content = outcome.as_ref().ok().and_then(Option::as_ref);
        let bytes = content.map_or(0, Weigh::weight);
        let mut slots = self.slots();
        slots.put(key, Slot::Read { began_at, bytes, outcome });
        self.make_room(&mut slots);
    }

    fn make_room(&self, slots: &mut Slots<K, T>) {
        let is_full =
            |slots: &Slots<K, T>| slots.slots.len() > self.max_slots || slots.bytes > MAX_BYTES;
        if is_full(slots) {
            slots.slots.retain(|_, slot| !slot.is_abandoned());
        }
        if is_full(slots) {
            slots.forget_older_half();
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots<K, T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T> Slots<K, T> {
    fn put(&mut self, key: K, slot: Slot<T>) {
        self.bytes += slot.bytes();
        if let Some(old) = self.slots.insert(key, slot) {
            self.bytes -= old.bytes();
        }
    }

    /// Of what has been read; who reads is bounded elsewhere.
    fn forget_older_half(&mut self) {
        let read_at = |slot: &Slot<T>| match slot {
            Slot::Read { began_at, .. } => Some(*began_at),
            Slot::Reading(_) => None,
        };
        let mut times: Vec<Instant> = self.slots.values().filter_map(read_at).collect();
        let middle = times.len() / 2;
        if times.is_empty() {
            return;
        }
        let median = *times.select_nth_unstable(middle).1;
        self.slots.retain(|_, slot| read_at(slot).is_none_or(|at| at > median));
        self.bytes = self.slots.values().map(Slot::bytes).sum();
    }
}

impl<T> Slot<T> {
    /// Its reader gave up.
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Reading(done) if done.has_changed().is_err())
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Reading(_) => 0,
            Self::Read { bytes, .. } => *bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    impl Weigh for () {
        fn weight(&self) -> usize {
            0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_were_given_up_are_not_remembered_for_ever() {
        let reads = Reads::<u32, ()>::new(10);
        let since = Instant::now();
        for key in 0..1_000 {
            let never = reads.get(key, since, std::future::pending());
            assert!(timeout(Duration::from_millis(1), never).await.is_err());
        }
        assert!(reads.slots().slots.len() <= 11);
        // One that goes on is not forgotten: who asks joins it.
        let joined = async {
            let (slow, quick) = (reads.get(0, since, std::future::pending()), async {
                for key in 1..1_000 {
                    reads.get(key, since, async { Ok(Some(())) }).await.unwrap();
                }
                matches!(reads.step(&0, since), Step::Wait(_))
            });
            tokio::select! {
                biased;
                _ = slow => false,
                is_joined = quick => is_joined,
            }
        };
        assert!(joined.await);
    }
}
