//! How many connections or requests there are, in all and from each address, and whether there may
//! be one more: what one client takes, it does not take from all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
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
    /// Whether nobody was told since half of them were free.
    is_news: bool,
}

struct Taken {
    in_all: Count,
    /// An address without a connection is not in it.
    of: HashMap<IpAddr, Count>,
    most_of_an_address: usize,
}

struct Count {
    taken: usize,
    most: usize,
    /// Whether somebody was told that there are no more, until half of them are free.
    is_told: bool,
}

impl Places {
    pub(super) fn new(most: usize, most_of_an_address: usize) -> Self {
        let taken = Taken { in_all: Count::new(most), of: HashMap::new(), most_of_an_address };
        Self { taken: Arc::new(Mutex::new(taken)) }
    }

    pub(super) fn take(&self, of: IpAddr) -> Result<Place, Full> {
        let mut taken = self.taken();
        let Taken { in_all, of: each, most_of_an_address } = &mut *taken;
        if in_all.taken == in_all.most {
            return Err(in_all.full(None));
        }
        let own = each.entry(of).or_insert_with(|| Count::new(*most_of_an_address));
        if own.taken == own.most {
            return Err(own.full(Some(of)));
        }
        in_all.taken += 1;
        own.taken += 1;
        Ok(Place { places: self.clone(), of })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
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
        taken.in_all.give_back();
        if let Some(own) = taken.of.get_mut(&self.of) {
            own.give_back();
            if own.taken == 0 {
                taken.of.remove(&self.of);
            }
        }
    }
}

impl Count {
    fn new(most: usize) -> Self {
        Self { taken: 0, most, is_told: false }
    }

    fn full(&mut self, address: Option<IpAddr>) -> Full {
        let is_news = !std::mem::replace(&mut self.is_told, true);
        Full { most: self.most, address, is_news }
    }

    fn give_back(&mut self) {
        self.taken -= 1;
        self.is_told &= self.taken > self.most / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_part_and_places_are_given_back() {
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

    #[test]
    fn it_is_news_again_once_half_of_them_are_free() {
        let places = Places::new(9, 4);
        let address = IpAddr::from([10, 0, 0, 1]);
        let is_news = || places.take(address).err().map(|full| full.is_news);
        let mut taken: Vec<Place> = (0..4).map(|_| places.take(address).ok().unwrap()).collect();
        assert_eq!((is_news(), is_news()), (Some(true), Some(false)));
        taken.pop();
        taken.push(places.take(address).ok().unwrap());
        assert_eq!(is_news(), Some(false));
        taken.truncate(2);
        taken.extend((0..2).map(|_| places.take(address).ok().unwrap()));
        assert_eq!(is_news(), Some(true));
    }
}
