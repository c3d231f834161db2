//! The rate limit of the simulated Datadog, and who has spent it.

/// Seconds; aligned to the calendar, as Datadog's are.
const PERIOD: i64 = 3_600;

#[derive(Clone)]
pub(super) struct Limit {
    requests: u32,
    /// Number of the period that `spent` belongs to.
    period: i64,
    spent: u32,
}

/// How the limit stands at one instant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) requests: u32,
    pub(super) spent: u32,
    /// What somebody else with the same account has spent.
    pub(super) by_neighbour: u32,
    /// Seconds.
    pub(super) resets_in: i64,
}

impl Limit {
    pub(super) fn new(requests: u32) -> Self {
        Self { requests, period: 0, spent: 0 }
    }

    /// Counts one request. False if there was none left.
    pub(super) fn spend(&mut self, now: i64, neighbour_since: Option<i64>) -> bool {
        let has_room = self.standing(now, neighbour_since).left() > 0;
        let period = now.div_euclid(PERIOD);
        if period != self.period {
            (self.period, self.spent) = (period, 0);
        }
        self.spent += u32::from(has_room);
        has_room
    }

    /// A neighbour spends a tenth of the limit each second, and begins anew with each period. It is
    /// reckoned and not counted, so that nothing of it stays once it is gone.
    pub(super) fn standing(&self, now: i64, neighbour_since: Option<i64>) -> Standing {
        let (period, into_period) = (now.div_euclid(PERIOD), now.rem_euclid(PERIOD));
        let spent = if period == self.period { self.spent } else { 0 };
        let by_neighbour = neighbour_since.map_or(0, |since| {
            let seconds = (now - since).clamp(0, into_period.min(10));
            let wanted = i64::from(self.requests) * seconds / 10;
            u32::try_from(wanted).unwrap_or(u32::MAX).min(self.requests - spent)
        });
        Standing { requests: self.requests, spent, by_neighbour, resets_in: PERIOD - into_period }
    }
}

impl Standing {
    pub(super) fn left(&self) -> u32 {
        self.requests - self.spent - self.by_neighbour
    }

    /// What an answer says of it.
    pub(super) fn headers(&self) -> [(&'static str, String); 4] {
        self.headers_with(self.left())
    }

    /// The same, but nothing is left.
    pub(super) fn headers_of_none_left(&self) -> [(&'static str, String); 4] {
        self.headers_with(0)
    }

    fn headers_with(&self, left: u32) -> [(&'static str, String); 4] {
        [
            ("x-ratelimit-limit", self.requests.to_string()),
            ("x-ratelimit-period", PERIOD.to_string()),
            ("x-ratelimit-remaining", left.to_string()),
            ("x-ratelimit-reset", self.resets_in.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spends at each instant; each time, whether there was room, what is left, and until when.
    #[track_caller]
    fn check(requests: u32, neighbour_since: Option<i64>, expected: &[(i64, bool, u32, i64)]) {
        let mut limit = Limit::new(requests);
        for (now, has_room, left, resets_in) in expected {
            assert_eq!(limit.spend(*now, neighbour_since), *has_room, "at {now}");
            let standing = limit.standing(*now, neighbour_since);
            assert_eq!((standing.left(), standing.resets_in), (*left, *resets_in), "at {now}");
        }
    }

    #[test]
    fn the_limit_is_true_and_ends_with_the_calendars_hour() {
        check(
            2,
            None,
            &[
                (7_000, true, 1, 200),
                (7_100, true, 0, 100),
                (7_199, false, 0, 1),
                (7_200, true, 1, 3_600),
            ],
        );
    }

    #[test]
    fn a_neighbour_spends_a_tenth_each_second_and_begins_anew_with_the_hour() {
        check(
            100,
            Some(7_190),
            &[
                (7_190, true, 99, 10),
                (7_193, true, 68, 7),
                (7_199, true, 7, 1),
                (7_200, true, 99, 3_600),
                (7_209, true, 8, 3_591),
                (7_210, false, 0, 3_590),
            ],
        );
    }

    #[test]
    fn nothing_of_a_neighbour_stays_once_it_is_gone() {
        let mut limit = Limit::new(100);
        assert!(limit.spend(7_200, Some(7_200)));
        assert!(!limit.spend(7_300, Some(7_200)));
        let expected = Standing { requests: 100, spent: 1, by_neighbour: 99, resets_in: 3_500 };
        assert_eq!(limit.standing(7_300, Some(7_200)), expected);
        assert_eq!(limit.standing(7_300, None), Standing { by_neighbour: 0, ..expected });
    }

    #[test]
    fn the_headers_tell_how_it_stands() {
        let standing = Limit::new(5).standing(7_300, None);
        let values = |headers: [(&'static str, String); 4]| headers.map(|(_, value)| value);
        assert_eq!(values(standing.headers()), ["5", "3600", "5", "3500"]);
        assert_eq!(values(standing.headers_of_none_left()), ["5", "3600", "0", "3500"]);
    }
}
