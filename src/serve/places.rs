//! How many connections or requests there are, in all and from each address, and whether there may
//! be one more: what one client takes, it does not take from all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What clients of the gRPC port may take. KEDA needs a connection for each `scalerAddress` and TLS
/// setting, and on that two streams for each trigger that pushes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// They leave file descriptors of the 1,024 that a process often has.
    pub connections: usize,
    pub connections_of_an_address: usize,
    /// Connections that have yet to say that they speak HTTP/2.
    pub silent: usize,
    /// How long they have for that, with the TLS handshake.
    pub silence: Duration,
    /// Requests whose answer has yet to be taken, streams among them. Each takes some 9 KB.
    pub requests: usize,
    pub requests_of_an_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 700,
            connections_of_an_address: 200,
            silent: 100,
            silence: Duration::from_secs(10),
            requests: 20_000,
            requests_of_an_address: 15_000,
        }
    }
}

/// How often it is said that there are no more: what others do is not to fill the log.
const TOLD_EVERY: Duration = Duration::from_mins(10);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    most: usize,
    most_of_an_address: usize,
}

/// Given back when it is dropped.
pub(super) struct Place {
    places: Places,
    pub(super) of: IpAddr,
}

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) most: usize,
    /// `None` if it is so for all.
    address: Option<IpAddr>,
    /// Whether it is time to say so.
    is_news: bool,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    /// An address that has none is not in it.
    of: HashMap<IpAddr, usize>,
    told_at: Option<Instant>,
}

impl Places {
    pub(super) fn new(most: usize, most_of_an_address: usize) -> Self {
        Self { taken: Arc::default(), most, most_of_an_address }
    }

    pub(super) fn take(&self, of: IpAddr) -> Result<Place, Full> {
        let mut taken = self.taken();
        if taken.in_all == self.most {
            return Err(taken.full(self.most, None));
        }
        let own = taken.of.get(&of).copied().unwrap_or_default();
        if own == self.most_of_an_address {
            return Err(taken.full(self.most_of_an_address, Some(of)));
        }
        taken.in_all += 1;
        taken.of.insert(of, own + 1);
        Ok(Place { places: self.clone(), of })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn full(&mut self, most: usize, address: Option<IpAddr>) -> Full {
        let is_news = self.told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        if is_news {
            self.told_at = Some(Instant::now());
        }
        Full { most, address, is_news }
    }
}

impl Full {
    pub(super) fn tell(&self, message: &'static str) {
        if self.is_news {
            tracing::warn!(limit = self.most, address = self.address.map(display), "{message}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.in_all -= 1;
        if let Some(own) = taken.of.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test]
    async fn nobody_has_more_than_a_part_and_places_are_given_back() {
        let places = Places::new(5, 2);
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let take = |of| places.take(of).map_err(|full| (full.most, full.address));
        let first = take(a).ok().unwrap();
        let _second = take(a).ok().unwrap();
        assert_eq!(take(a).err(), Some((2, Some(a))));
        let _of_b = [take(b).ok().unwrap(), take(b).ok().unwrap()];
        let of_c = take(c).ok().unwrap();
        assert_eq!(take(c).err(), Some((5, None)));
        assert_eq!(take(a).err(), Some((5, None)));
        drop((first, of_c));
        assert!(take(a).is_ok());
        assert!(!places.taken().of.contains_key(&c), "an address is remembered for nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_are_no_more_is_said_now_and_then() {
        let places = Places::new(9, 1);
        let is_news = |last| {
            let address = IpAddr::from([10, 0, 0, last]);
            let _place = places.take(address).ok().unwrap();
            places.take(address).err().map(|full| full.is_news)
        };
        assert_eq!((is_news(1), is_news(1), is_news(2)), (Some(true), Some(false), Some(false)));
        advance(TOLD_EVERY).await;
        assert_eq!((is_news(2), is_news(2)), (Some(true), Some(false)));
    }
}
