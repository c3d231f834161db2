//! Which accounts share a rate limit. Datadog counts requests for each organisation, and nothing
//! says which one an account belongs to; so accounts with one API key are one, and those of one
//! site whose limits agree are taken for one until what is left of them proves otherwise. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    budget::{Budget, Terms},
    meter::{Meter, OrganisationId, Payer},
    queue::Filled,
    turns::Turns,
};
use crate::{
    demand::Account,
    source::{RateLimit, SourceError},
};

pub(super) struct Organisations {
    share: f64,
    meters: HashMap<Payer, Meter>,
    all: BTreeMap<OrganisationId, Organisation>,
    next_id: u64,
}

pub(super) struct Organisation {
    pub(super) budget: Budget,
    /// Requests since it is known, of all its meters.
    started: u64,
    answered: u64,
    pub(super) turns: Turns,
    pub(super) round: Round,
}

/// What was planned last.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// The shortest and the longest.
    pub(super) intervals: (Duration, Duration),
    pub(super) awake: usize,
    /// Of them, those that have never been read.
    pub(super) unread: usize,
    pub(super) quarantined: usize,
    pub(super) refused: usize,
    pub(super) told: Told,
}

impl Round {
    /// Whether first readings are to take less than half: there is not enough for all, and most have
    /// been read, so that it is not a start.
    pub(super) fn is_short(&self, refresh: Duration) -> bool {
        self.intervals.1 > refresh && 4 * self.unread < self.awake
    }
}

/// What the log has been told of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) is_long: bool,
    pub(super) some_refused: bool,
}

impl Organisations {
    pub(super) fn new(share: f64) -> Self {
        Self { share, meters: HashMap::new(), all: BTreeMap::new(), next_id: 0 }
    }

    /// An account that is not known is its own organisation until its terms are.
    pub(super) fn of(&mut self, payer: &Payer, now: Instant) -> OrganisationId {
        if let Some(meter) = self.meters.get(payer) {
            return meter.organisation;
        }
        let budget = if payer.is_metered() { Budget::new } else { Budget::unlimited };
        let organisation = self.found(budget(self.share, now));
        self.meters.insert(payer.clone(), Meter::new(organisation, now));
        organisation
    }

    pub(super) fn get_mut(&mut self, id: OrganisationId) -> Option<&mut Organisation> {
        self.all.get_mut(&id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (OrganisationId, &Organisation)> {
        self.all.iter().map(|(id, organisation)| (*id, organisation))
    }

    pub(super) fn budget(&mut self, id: OrganisationId) -> Option<&mut Budget> {
        self.all.get_mut(&id).map(|organisation| &mut organisation.budget)
    }

    /// Those whose requests are counted.
    pub(super) fn limited(&self) -> impl Iterator<Item = (OrganisationId, &Organisation)> {
        self.all().filter(|(_, organisation)| !organisation.budget.is_unlimited())
    }

    /// How the requests of its accounts are filled.
    pub(super) fn filled(
        &mut self,
        id: OrganisationId,
        most_queries: usize,
        now: Instant,
    ) -> Filled {
        let first_wait = self.budget(id).map_or(Duration::ZERO, |budget| budget.first_wait(now));
        Filled { most_queries, first_wait }
    }

    /// When a request of this account may be sent before which so many others are, and why not
    /// before.
    pub(super) fn postponed(
        &mut self,
        id: OrganisationId,
        account: &Account,
        ahead: usize,
        now: Instant,
    ) -> Option<(Instant, SourceError)> {
        if !self.has_answered(id) {
            // What the limit is will be known in a moment.
            return None;
        }
        let budget = self.budget(id)?;
        let next_at = budget.next_at(ahead, now);
        let host = account.host();
        let why = match budget.paused_until(now) {
            Some(_) => SourceError::Throttled { host, limit: Some(budget.said(now)) },
            None => SourceError::Spent { host, wait: next_at.saturating_duration_since(now) },
        };
        Some((next_at, why))
    }

    pub(super) fn has_answered(&self, id: OrganisationId) -> bool {
        self.all.get(&id).is_some_and(|organisation| organisation.answered > 0)
    }

    /// A request is sent.
    pub(super) fn send(&mut self, payer: &Payer, now: Instant) {
        let id = self.of(payer, now);
        let (Some(meter), Some(organisation)) = (self.meters.get_mut(payer), self.all.get_mut(&id))
        else {
            return;
        };
        organisation.budget.send(now);
        let others_answered = organisation.answered - meter.answered;
        meter.send(organisation.budget.terms(), others_answered, now);
        organisation.started += 1;
    }

    /// A request has ended. True if what its payer may send is another matter now.
    pub(super) fn end(
        &mut self,
        payer: &Payer,
        said: Option<&RateLimit>,
        is_throttled: bool,
        now: Instant,
    ) -> bool {
        let id = self.of(payer, now);
        let (Some(meter), Some(organisation)) = (self.meters.get_mut(payer), self.all.get_mut(&id))
        else {
            return false;
        };
        meter.answered += 1;
        organisation.answered += 1;
        let is_first = organisation.answered == 1;
        let was_told = organisation.budget.is_told;
        if !is_throttled {
            organisation.budget.forgive();
        }
        let Some((said, terms)) = said.and_then(|said| Some((said, Terms::of(said, now)?))) else {
            return is_first;
        };
        meter.terms = Some(terms.clone());
        let is_alone = self.meters.values().filter(|other| other.organisation == id).count() == 1;
        let belongs = is_alone || {
            let agrees = organisation.budget.terms().agree(&terms);
            let meter = self.meters.get_mut(payer).expect("whose request ended has a meter");
            let others_started = organisation.started - meter.started;
            agrees && !meter.is_proof(said.remaining, &terms, others_started)
        };
        if belongs {
            organisation.budget.learn(&terms, said.remaining, now);
            let is_joined = is_alone && self.take_for_one(payer, id, &terms, now);
            is_first || !was_told || is_joined
        } else {
            self.leave(payer, id, now);
            let moved = self.of(payer, now);
            if let Some(budget) = self.budget(moved) {
                budget.learn(&terms, said.remaining, now);
            }
            true
        }
    }

    /// Forgets who has not been heard of for a whole period and is not in use.
    pub(super) fn forget(&mut self, is_in_use: impl Fn(&Payer) -> bool, now: Instant) {
        let all = &self.all;
        self.meters.retain(|payer, meter| {
            let period = all.get(&meter.organisation).map(|o| o.budget.terms().period);
            let is_recent = period.is_some_and(|period| now < meter.sent_until + period);
            meter.started != meter.answered || is_recent || is_in_use(payer)
        });
        let meters = &self.meters;
        self.all.retain(|id, _| meters.values().any(|meter| meter.organisation == *id));
    }

    /// Whose limit agrees with that of others of its site joins them.
    fn take_for_one(
        &mut self,
        payer: &Payer,
        id: OrganisationId,
        terms: &Terms,
        now: Instant,
    ) -> bool {
        let left = self.meters.get(payer).and_then(|meter| meter.left);
        let agrees = |other: &OrganisationId| {
            self.all
                .get(other)
                .is_some_and(|other| other.budget.is_told && other.budget.terms().agree(terms))
        };
        let mut others = self.meters.iter().filter(|(other, _)| other.shares_site_with(payer));
        let joined = others.find_map(|(_, meter)| {
            let other = meter.organisation;
            let is_proved = Some(other) == left || meter.left == Some(id);
            (other != id && !is_proved && agrees(&other)).then_some(other)
        });
        let Some(joined) = joined else { return false };
        let Some(gone) = self.all.remove(&id) else { return false };
        if let Some(organisation) = self.all.get_mut(&joined) {
            organisation.budget.join(&gone.budget, now);
            organisation.started += gone.started;
            organisation.answered += gone.answered;
        }
        for meter in self.meters.values_mut() {
            if meter.organisation == id {
                meter.organisation = joined;
            }
            if meter.organisation == joined {
                meter.begin_anew();
            }
        }
        true
    }

    fn leave(&mut self, payer: &Payer, id: OrganisationId, now: Instant) {
        let Some(meter) = self.meters.get_mut(payer) else { return };
        let Some(organisation) = self.all.get_mut(&id) else { return };
        organisation.started -= meter.started;
        organisation.answered -= meter.answered;
        let mut budget = organisation.budget.split_off(meter.sent, now);
        if let Some(terms) = &meter.terms
            && !terms.agree(budget.terms())
        {
            // Nothing of what was learned holds; nothing is proved either.
            budget = Budget::new(self.share, now);
        } else {
            meter.left = Some(id);
        }
        let (started, answered) = (meter.started, meter.answered);
        let own = self.found(budget);
        if let Some(organisation) = self.all.get_mut(&own) {
            (organisation.started, organisation.answered) = (started, answered);
        }
        for (other, meter) in &mut self.meters {
            if other == payer {
                meter.organisation = own;
            }
            if meter.organisation == id || meter.organisation == own {
                meter.begin_anew();
            }
        }
    }

    fn found(&mut self, budget: Budget) -> OrganisationId {
        let id = OrganisationId(self.next_id);
        self.next_id += 1;
        self.all.insert(id, Organisation::new(budget));
        id
    }
}

impl Organisation {
    fn new(budget: Budget) -> Self {
        let (turns, round) = (Turns::default(), Round::default());
        Self { budget, started: 0, answered: 0, turns, round }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::scripted::{account, limit, seconds};

    fn payer(host: &str, key: &str) -> Payer {
        Payer::of(&account(host, key))
    }

    /// Lets each of these, of the organisation that Datadog counts it for, ask once in each of so
    /// many rounds. Says how many organisations they are taken for.
    fn taken_for(payers: &[(Payer, usize)], rounds: u64) -> usize {
        let start = Instant::now();
        let mut organisations = Organisations::new(0.8);
        let mut spent = [0; 30];
        for round in 0..rounds {
            for (payer, organisation) in payers {
                let now = start + seconds(round * 15);
                organisations.send(payer, now);
                spent[*organisation] += 1;
                let said = limit(1_600, 1_600 - spent[*organisation], 3_600 - round * 15);
                organisations.end(payer, Some(&said), false, now);
            }
        }
        let now = start + seconds(rounds * 15);
        let ids = payers.iter().map(|(payer, _)| organisations.of(payer, now));
        ids.collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn accounts_whose_limits_agree_are_one_organisation() {
        let all: Vec<(Payer, usize)> = (0..20).map(|n| (payer("dd", &n.to_string()), 0)).collect();
        assert_eq!(taken_for(&all, 2), 1);
        assert_eq!(taken_for(&all, 50), 1);
    }

    #[test]
    fn two_organisations_with_equal_limits_are_told_apart_by_what_is_left() {
        let two = [(payer("dd", "a"), 0), (payer("dd", "b"), 1)];
        assert_eq!(taken_for(&two, 2), 1);
        assert_eq!(taken_for(&two, 6), 2);
        assert_eq!(taken_for(&two, 50), 2);
    }

    #[test]
    fn another_site_is_another_organisation() {
        let two = [(payer("dd", "a"), 0), (payer("dd.eu", "b"), 1)];
        assert_eq!(taken_for(&two, 1), 2);
    }

    #[test]
    fn what_one_sent_is_not_counted_as_others() {
        let (now, a, b) = (Instant::now(), payer("dd", "a"), payer("dd", "b"));
        let mut organisations = Organisations::new(0.8);
        let mut spent = 0;
        for _ in 0..10 {
            for payer in [&a, &b] {
                organisations.send(payer, now);
                spent += 1;
                organisations.end(payer, Some(&limit(1_600, 1_600 - spent, 3_000)), false, now);
            }
        }
        let id = organisations.of(&a, now);
        assert!(organisations.of(&b, now) == id);
        let budget = organisations.budget(id).unwrap();
        assert!((budget.sent() - 20.0).abs() < 0.1 && budget.others() < 0.1);
    }

    #[test]
    fn a_limit_that_is_raised_is_adopted_by_all() {
        let (now, a, b) = (Instant::now(), payer("dd", "a"), payer("dd", "b"));
        let mut organisations = Organisations::new(0.8);
        for told in [1_600, 1_600, 5_000, 5_000, 5_000] {
            for payer in [&a, &b] {
                organisations.send(payer, now);
                organisations.end(payer, Some(&limit(told, told - 100, 3_000)), false, now);
            }
        }
        let id = organisations.of(&a, now);
        assert!(organisations.of(&b, now) == id);
        assert!((organisations.budget(id).unwrap().terms().limit - 5_000.0).abs() < 1.0);
    }

    #[test]
    fn who_is_gone_for_a_period_is_forgotten() {
        let (now, a) = (Instant::now(), payer("dd", "a"));
        let mut organisations = Organisations::new(0.8);
        organisations.send(&a, now);
        organisations.end(&a, Some(&limit(1_600, 1_599, 3_000)), false, now);
        organisations.forget(|_| false, now + seconds(3_600));
        assert_eq!(organisations.all().count(), 1);
        organisations.forget(|_| true, now + seconds(9_000));
        assert_eq!(organisations.all().count(), 1);
        organisations.forget(|_| false, now + seconds(9_000));
        assert_eq!(organisations.all().count(), 0);
    }
}
