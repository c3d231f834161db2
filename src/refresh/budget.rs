//! The requests that may be sent to one organisation. Learns from what Datadog says of its rate
//! limit. Pure: takes `now`, does no I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::source::RateLimit;

/// Until Datadog says more: the lowest limit that it ever documented.
const UNTOLD_LIMIT: f64 = 300.0;
const UNTOLD_PERIOD: Duration = Duration::from_hours(1);
/// More than anybody sends.
const NO_LIMIT: f64 = 1e12;
/// What a period may be; a header may say anything.
const PERIODS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(24));
/// The part of a limit that may be sent at once.
const BURST: f64 = 0.05;
/// How far apart two replies may put one reset: whole seconds, and some on the way.
const SAME_RESET: Duration = Duration::from_secs(5);
/// The part of a period from which on the use by others can be projected.
const PROJECTABLE: f64 = 0.05;
/// The longest that a first reading waits for company; much less than anybody's patience.
const MAX_FIRST_WAIT: Duration = Duration::from_millis(800);
/// The longest that nothing is sent after a 429.
const MAX_TOLD_PAUSE: Duration = Duration::from_hours(1);
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

    /// Nobody counts them.
    pub(super) fn unlimited(share: f64, now: Instant) -> Self {
        let mut budget = Self::new(share, now);
        budget.terms.limit = NO_LIMIT;
        budget.grant();
        budget
    }

    pub(super) fn is_unlimited(&self) -> bool {
        self.terms.limit >= NO_LIMIT
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
        self.grant();
    }

    /// An answer came that was no 429.
    pub(super) fn forgive(&mut self) {
        self.throttled = 0;
    }

    /// A 429: nothing more until the limit resets.
    pub(super) fn pause(&mut self, said: Option<&RateLimit>, jitter: f64, now: Instant) {
        self.throttled = self.throttled.saturating_add(1);
        let pause = if let Some(reset) = said.and_then(|said| said.reset) {
            reset.clamp(Duration::from_secs(1), MAX_TOLD_PAUSE)
        } else {
            let doubled = BLIND_PAUSE.saturating_mul(1 << (self.throttled - 1).min(10));
            doubled.min(MAX_BLIND_PAUSE).mul_f64(jitter)
        };
        self.paused_until = self.paused_until.max(Some(now + pause));
    }

    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// What Datadog said, and when it ends now.
    pub(super) fn said(&self, now: Instant) -> RateLimit {
        let Terms { limit, period, ends_at, name } = &self.terms;
        let until = self.paused_until(now).unwrap_or(*ends_at);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it was a whole number"
        )]
        let limit = self.is_told.then_some(*limit as u64);
        RateLimit {
            limit,
            period: limit.map(|_| *period),
            remaining: None,
            reset: Some(until - now),
            name: name.clone(),
        }
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

    /// How long a first reading may wait for others to travel with: the less may be sent at once,
    /// the longer.
    pub(super) fn first_wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        let full = self.tokens.min(self.left()) / self.burst();
        MAX_FIRST_WAIT.mul_f64((1.0 - 2.0 * full).clamp(0.0, 1.0))
    }

    pub(super) fn send(&mut self, now: Instant) {
        self.refill(now);
        self.tokens = (self.tokens - 1.0).max(0.0);
        self.sent += 1.0;
    }

    /// When the request may be sent before which so many others are, if nothing changes.
    #[expect(clippy::cast_precision_loss, reason = "it is a small number")]
    pub(super) fn next_at(&mut self, ahead: usize, now: Instant) -> Instant {
        self.refill(now);
        if let Some(until) = self.paused_until(now) {
            return until;
        }
        let wanted = ahead as f64 + 1.0;
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// What is left of 1,600 requests an hour, for so many seconds.
    fn said(remaining: u64, reset: u64) -> RateLimit {
        RateLimit {
            limit: Some(1_600),
            period: Some(HOUR),
            remaining: Some(remaining),
            reset: Some(Duration::from_secs(reset)),
            name: None,
        }
    }

    fn learn(budget: &mut Budget, said: &RateLimit, now: Instant) {
        let terms = Terms::of(said, now).expect("there is a limit");
        budget.learn(&terms, said.remaining, now);
    }

    fn told(remaining: u64, reset: u64, now: Instant) -> Budget {
        let mut budget = Budget::new(0.8, now);
        learn(&mut budget, &said(remaining, reset), now);
        budget
    }

    /// How many requests there are if everything that may be sent at an instant is.
    fn send_all(budget: &mut Budget, now: Instant) -> u64 {
        let mut sent = 0;
        while budget.has_one(now) {
            budget.send(now);
            sent += 1;
        }
        sent
    }

    #[test]
    fn what_is_not_told_is_300_an_hour() {
        let now = Instant::now();
        let mut budget = Budget::new(0.8, now);
        assert_eq!(send_all(&mut budget, now), 15);
        let an_hour: u64 =
            (1..3_600).map(|s| send_all(&mut budget, now + Duration::from_secs(s))).sum();
        assert_eq!(15 + an_hour, 240);
    }

    #[test]
    fn a_twentieth_may_be_sent_at_once_or_a_round_if_that_is_more() {
        let now = Instant::now();
        let mut budget = told(1_600, 3_600, now);
        assert_eq!(send_all(&mut budget, now), 80);
        budget.set_round(100.0);
        assert_eq!(send_all(&mut budget, now), 20);
        // But not more than is ours.
        let mut budget = told(50, 3_600, now);
        budget.set_round(100.0);
        assert_eq!(send_all(&mut budget, now), 40);
    }

    #[test]
    fn a_burst_is_granted_once() {
        let now = Instant::now();
        let mut budget = told(1_600, 3_600, now);
        budget.set_round(200.0);
        assert_eq!(send_all(&mut budget, now), 200);
        budget.set_round(10.0);
        budget.set_round(200.0);
        assert_eq!(send_all(&mut budget, now), 0);
    }

    /// Sends all it may for three hours, in front of a Datadog that counts exactly. Says how many
    /// requests there were in each whole hour: ours, and those beyond the limit.
    fn three_hours(others: impl Fn(u64) -> f64) -> Vec<(u64, u64)> {
        let start = Instant::now();
        let mut budget = Budget::new(0.8, start);
        let mut hours = [(0, 0); 4];
        let mut others_sent = 0.0;
        // We begin a quarter of an hour into the first.
        for second in 900..4 * 3_600_u64 {
            let now = start + Duration::from_secs(second - 900);
            let into = second % 3_600;
            if into == 0 {
                others_sent = 0.0;
            }
            others_sent += others(into);
            let hour = &mut hours[usize::try_from(second / 3_600).unwrap()];
            while budget.has_one(now) {
                budget.send(now);
                hour.0 += 1;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few")]
                let gone = hour.0 + others_sent as u64;
                hour.1 += u64::from(gone > 1_600);
                learn(&mut budget, &said(1_600_u64.saturating_sub(gone), 3_600 - into), now);
            }
        }
        hours[1..].to_vec()
    }

    #[test]
    fn alone_it_uses_its_share_and_no_more() {
        for (ours, beyond) in three_hours(|_| 0.0) {
            assert!((1_270..=1_280).contains(&ours), "{ours}");
            assert_eq!(beyond, 0);
        }
    }

    #[test]
    fn it_uses_its_share_of_what_others_leave() {
        let evenly = three_hours(|_| 800.0 / 3_600.0);
        let at_once = three_hours(|into| if into == 1_800 { 800.0 } else { 0.0 });
        for (ours, beyond) in [&evenly[1..], &at_once[1..]].concat() {
            assert!((600..=660).contains(&ours), "{ours}");
            assert_eq!(beyond, 0);
        }
        // Nothing was known of the others in the first.
        assert!(evenly.iter().chain(&at_once).all(|(_, beyond)| *beyond == 0));
    }

    #[test]
    fn when_others_take_everything_it_is_tried_again_in_the_next_period() {
        let now = Instant::now();
        let mut budget = told(0, 600, now);
        assert_eq!(send_all(&mut budget, now + seconds(599.0)), 0);
        assert_eq!(budget.next_at(0, now), now + seconds(600.0));
        let after = now + seconds(601.0);
        assert!(send_all(&mut budget, after) > 0);
        assert!(budget.pace(after) * 3_600.0 > 500.0);
    }

    #[test]
    fn a_late_reply_of_the_period_before_is_of_no_interest() {
        let now = Instant::now();
        let mut budget = told(1_600, 10, now);
        let after = now + seconds(11.0);
        budget.has_one(after);
        learn(&mut budget, &said(3, 0), after);
        assert!(budget.others() < 1.0, "{}", budget.others());
        // And one of this period is.
        learn(&mut budget, &said(1_000, 3_599), after);
        assert!((budget.others() - 600.0).abs() < 1.0, "{}", budget.others());
    }

    #[test]
    fn what_is_left_does_not_rise_within_a_period() {
        let now = Instant::now();
        let mut budget = told(800, 3_000, now);
        learn(&mut budget, &said(1_500, 3_000), now);
        assert!((budget.others() - 800.0).abs() < 1.0, "{}", budget.others());
    }

    #[test]
    fn a_reset_that_jumps_frees_nothing() {
        let now = Instant::now();
        let mut budget = told(1_600, 3_600, now);
        budget.set_round(1_000.0);
        assert_eq!(send_all(&mut budget, now), 1_000);
        // 600 are left, whenever that may end.
        for reset in [100, 3_000, 2, 3_600] {
            learn(&mut budget, &said(600, reset), now);
            assert!((budget.sent() + budget.others() - 1_000.0).abs() < 1.0, "{reset}");
        }
    }

    #[track_caller]
    fn check_pause(said: Option<&RateLimit>, times: u32, expected: u64) {
        let now = Instant::now();
        let mut budget = told(1_600, 3_600, now);
        (0..times).for_each(|_| budget.pause(said, 1.0, now));
        assert_eq!(budget.paused_until(now), Some(now + Duration::from_secs(expected)));
        assert!(!budget.has_one(now));
        assert!(budget.has_one(now + Duration::from_secs(expected)));
    }

    #[test]
    fn a_429_lasts_until_the_reset_and_is_bounded() {
        check_pause(Some(&said(0, 84)), 1, 84);
        check_pause(Some(&said(0, 90_000)), 1, 3_600);
        check_pause(Some(&said(0, 0)), 1, 1);
        check_pause(None, 1, 30);
        check_pause(None, 3, 120);
        check_pause(None, 30, 240);
    }

    #[test]
    fn terms_are_understood_as_far_as_they_go() {
        let now = Instant::now();
        let of = |said: RateLimit| Terms::of(&said, now).map(|terms| (terms.limit, terms.ends_at));
        assert_eq!(of(RateLimit::default()), None);
        assert_eq!(of(RateLimit { limit: Some(0), ..said(0, 1) }), None);
        let bare = RateLimit { limit: Some(7), ..RateLimit::default() };
        assert_eq!(of(bare), Some((7.0, now + HOUR)));
        // No period ends later than it lasts.
        assert_eq!(of(said(1, 90_000)), Some((1_600.0, now + HOUR)));
    }

    #[test]
    fn terms_agree_whatever_whole_seconds_they_were_told_in() {
        let now = Instant::now();
        let terms = |reset, later: f64| Terms::of(&said(9, reset), now + seconds(later)).unwrap();
        assert!(terms(100, 0.0).agree(&terms(98, 2.4)));
        // One was told in the period before.
        assert!(terms(10, 0.0).agree(&terms(3_550, 60.0)));
        assert!(!terms(100, 0.0).agree(&terms(150, 0.0)));
        let other = RateLimit { limit: Some(600), ..said(9, 100) };
        assert!(!terms(100, 0.0).agree(&Terms::of(&other, now).unwrap()));
    }
}
