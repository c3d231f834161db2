//! The requests that may be sent to one organisation. Learns from what Datadog says of its rate
//! limit. Pure: takes `now`, does no I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::source::RateLimit;

/// Until Datadog says more: the lowest limit that it ever documented.
const UNTOLD_LIMIT: f64 = 300.0;
const UNTOLD_PERIOD: Duration = Duration::from_hours(1);
/// What a period may be; a header may say anything.
const PERIODS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(24));
/// The part of a limit that may be sent at once.
const BURST: f64 = 0.05;
/// How far apart two replies may put one reset: whole seconds, and some on the way.
const SAME_RESET: Duration = Duration::from_secs(5);
/// The part of a period from which on the use by others can be projected.
const PROJECTABLE: f64 = 0.05;
/// The longest that nothing is sent after a 429.
const MAX_PAUSE: Duration = Duration::from_hours(1);
/// The pause after a 429 that does not say when it ends; doubled for each further one.
const BLIND_PAUSE: Duration = Duration::from_secs(30);
const MAX_BLIND_PAUSE: Duration = Duration::from_mins(4);

/// Requests are counted as Datadog counts them, in periods that end together for everybody.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    share: f64,
    terms: Terms,
    /// Whether Datadog said so.
    pub(super) is_told: bool,
    /// Our own requests of this period.
    sent: f64,
    /// Requests of this period that others are known to have sent: it does not fall within one.
    others: f64,
    /// The same of the whole period before.
    others_before: Option<f64>,
    /// What may be sent at once.
    tokens: f64,
    refilled_at: Instant,
    /// The largest burst that was granted in this period.
    granted: f64,
    /// Requests of one whole round.
    round: f64,
    paused_until: Option<Instant>,
    /// How many 429 came since the last answer.
    throttled: u32,
}

/// `limit` requests each `period`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Terms {
    pub(super) limit: f64,
    pub(super) period: Duration,
    pub(super) ends_at: Instant,
    pub(super) name: Option<Box<str>>,
}

impl Terms {
    /// `None` if it is not said how many requests there may be.
    #[expect(clippy::cast_precision_loss, reason = "a limit is no such number")]
    pub(super) fn of(said: &RateLimit, now: Instant) -> Option<Self> {
        let limit = said.limit.filter(|limit| *limit > 0)? as f64;
        let period = said.period.unwrap_or(UNTOLD_PERIOD).clamp(PERIODS.0, PERIODS.1);
        let ends_at = now + said.reset.unwrap_or(period).min(period);
        Some(Self { limit, period, ends_at, name: said.name.clone() })
    }

    /// Whether both may be of one organisation.
    pub(super) fn agree(&self, other: &Self) -> bool {
        let (early, late) = (self.ends_at.min(other.ends_at), self.ends_at.max(other.ends_at));
        // One may have been said a period ago.
        let apart = late.duration_since(early).as_secs_f64() % self.period.as_secs_f64();
        let apart = apart.min(self.period.as_secs_f64() - apart);
        (self.limit.total_cmp(&other.limit).is_eq())
            && self.period == other.period
            && self.name == other.name
            && apart <= SAME_RESET.as_secs_f64()
    }
}

impl Budget {
    pub(super) fn new(share: f64, now: Instant) -> Self {
        let terms = Terms {
            limit: UNTOLD_LIMIT,
            period: UNTOLD_PERIOD,
            ends_at: now + UNTOLD_PERIOD,
            name: None,
        };
        let burst = BURST * UNTOLD_LIMIT;
        Self {
            share,
            terms,
            is_told: false,
            sent: 0.0,
            others: 0.0,
            others_before: None,
            tokens: burst,
            refilled_at: now,
            granted: burst,
            round: 0.0,
            paused_until: None,
            throttled: 0,
        }
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What a reply said, and of how many requests that are left.
    #[expect(clippy::cast_precision_loss, reason = "a limit is no such number")]
    pub(super) fn learn(&mut self, said: &Terms, remaining: Option<u64>, now: Instant) {
        self.roll(now);
        let known = self.terms.ends_at;
        let spent = remaining.map(|remaining| (said.limit - remaining as f64).max(0.0));
        if !self.is_told {
            (self.is_told, self.terms) = (true, said.clone());
        } else if said.ends_at + SAME_RESET < known {
            // A reply may be late, and speak of the period before.
            let of_before = known.checked_sub(self.terms.period);
            if of_before.is_some_and(|ended_at| said.ends_at <= ended_at + SAME_RESET) {
                return;
            }
            self.terms = said.clone();
        } else if said.ends_at > known + SAME_RESET {
            // Another period than we thought. Of this one, we cannot have sent more than all.
            self.sent = self.sent.min(spent.unwrap_or(self.sent));
            (self.terms, self.others) = (said.clone(), 0.0);
        } else {
            // Rather a second late than one early.
            self.terms = Terms { ends_at: said.ends_at.max(known), ..said.clone() };
        }
        if let Some(spent) = spent {
            // Some of ours may not have been counted yet; the next reply will tell.
            self.others = self.others.max(spent - self.sent).min(self.terms.limit);
        }
        self.throttled = 0;
        self.grant();
    }

    /// A 429: nothing more until the limit resets.
    pub(super) fn pause(&mut self, said: Option<&RateLimit>, jitter: f64, now: Instant) {
        self.throttled = self.throttled.saturating_add(1);
        let pause = match said.and_then(|said| said.reset) {
            Some(reset) => reset.max(Duration::from_secs(1)).min(MAX_PAUSE),
            None => {
                let doubled = BLIND_PAUSE.saturating_mul(1 << (self.throttled - 1).min(10));
                doubled.min(MAX_BLIND_PAUSE).mul_f64(jitter)
            }
        };
        self.paused_until = self.paused_until.max(Some(now + pause));
    }

    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// How many requests a round of all has; that many may be sent at once.
    pub(super) fn set_round(&mut self, requests: f64) {
        self.round = requests;
        self.grant();
    }

    /// Whether a request may be sent now.
    pub(super) fn has_one(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.paused_until(now).is_none() && self.tokens.min(self.left()) >= 1.0
    }

    pub(super) fn send(&mut self, now: Instant) {
        self.refill(now);
        self.tokens = (self.tokens - 1.0).max(0.0);
        self.sent += 1.0;
    }

    /// When the request may be sent before which so many others are, if nothing changes.
    pub(super) fn next_at(&self, ahead: f64, now: Instant) -> Instant {
        if let Some(until) = self.paused_until(now) {
            return until;
        }
        let wanted = ahead + 1.0;
        if self.left() < wanted {
            return self.terms.ends_at;
        }
        let missing = (wanted - self.tokens).max(0.0);
        let wait = Duration::try_from_secs_f64(missing / self.pace(now)).unwrap_or(Duration::MAX);
        now.checked_add(wait).map_or(self.terms.ends_at, |at| at.min(self.terms.ends_at))
    }

    /// Our part of what others leave of the limit.
    pub(super) fn allowance(&self) -> f64 {
        self.share * (self.terms.limit - self.others).max(0.0)
    }

    /// Requests a second until the period ends.
    pub(super) fn pace(&self, now: Instant) -> f64 {
        let all = self.share * (self.terms.limit - self.others_in_all(now)) - self.sent;
        // What others will send is a guess, and must not silence us.
        all.max(self.left() / 2.0) / self.time_left(now)
    }

    /// Requests a second over such a time, into the period that follows.
    pub(super) fn pace_over(&self, horizon: Duration, now: Instant) -> f64 {
        let (horizon, time_left) = (horizon.as_secs_f64(), self.time_left(now));
        if horizon <= time_left {
            return self.pace(now);
        }
        (self.pace(now) * time_left + self.usual_pace(now) * (horizon - time_left)) / horizon
    }

    /// Requests a second over a whole period.
    pub(super) fn usual_pace(&self, now: Instant) -> f64 {
        let left = self.terms.limit - self.others_in_all(now);
        let left = left.max((self.terms.limit - self.others) / 2.0).max(0.0);
        self.share * left / self.terms.period.as_secs_f64()
    }

    pub(super) fn sent(&self) -> f64 {
        self.sent
    }

    pub(super) fn others(&self) -> f64 {
        self.others
    }

    /// Of the limit, for everybody, by what is known.
    pub(super) fn remaining(&self) -> f64 {
        (self.terms.limit - self.others - self.sent).max(0.0)
    }

    /// Begins the next period, if this one is over.
    pub(super) fn roll(&mut self, now: Instant) {
        if now < self.terms.ends_at {
            return;
        }
        let over = now.duration_since(self.terms.ends_at).as_secs_f64();
        let periods = (over / self.terms.period.as_secs_f64()).floor();
        let is_next = periods < 1.0;
        self.terms.ends_at += self.terms.period.mul_f64(periods + 1.0);
        self.others_before = (is_next && self.is_told).then_some(self.others);
        (self.sent, self.others) = (0.0, 0.0);
        self.granted = self.burst();
    }

    /// Takes another's part over: both turned out to be, or are taken for, one organisation's.
    pub(super) fn join(&mut self, other: &Budget, now: Instant) {
        self.refill(now);
        // What each took for others' was perhaps the other's.
        let others = (self.others - other.sent).max(other.others - self.sent).max(0.0);
        self.sent += other.sent;
        self.others = others;
        self.others_before = None;
        self.tokens = self.tokens.min(other.tokens);
        self.paused_until = self.paused_until.max(other.paused_until);
        self.terms.ends_at = self.terms.ends_at.max(other.terms.ends_at);
    }

    /// The part of one that turned out not to belong here, which sent so many of ours.
    pub(super) fn split_off(&mut self, sent: f64, now: Instant) -> Budget {
        self.refill(now);
        let mut other = self.clone();
        other.sent = sent;
        self.sent = (self.sent - sent).max(0.0);
        other
    }

    fn left(&self) -> f64 {
        (self.allowance() - self.sent).max(0.0)
    }

    fn time_left(&self, now: Instant) -> f64 {
        self.terms.ends_at.saturating_duration_since(now).as_secs_f64().max(1.0)
    }

    /// What others will have sent by the end of the period: as much as in the last one, or, without
    /// one, at the same rate as up to now.
    fn others_in_all(&self, now: Instant) -> f64 {
        let expected = match self.others_before {
            Some(before) => before,
            None if self.is_told => {
                let period = self.terms.period.as_secs_f64();
                let passed = (1.0 - self.time_left(now) / period).max(0.0);
                if passed < PROJECTABLE { self.others } else { self.others / passed }
            }
            None => self.others,
        };
        self.others.max(expected).min(self.terms.limit)
    }

    fn burst(&self) -> f64 {
        (BURST * self.terms.limit).max(self.round)
    }

    /// A start, a split or a new team does not wait for the pace.
    fn grant(&mut self) {
        let burst = self.burst();
        if burst > self.granted {
            self.tokens += burst - self.granted;
            self.granted = burst;
        }
        self.tokens = self.tokens.min(burst);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled_at).as_secs_f64();
        let refilled = self.tokens + passed * self.pace(now);
        self.roll(now);
        self.tokens = refilled.min(self.burst());
        self.refilled_at = now;
    }
}
