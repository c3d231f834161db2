//! What the rate limits carry: who is read how often, and who not at all. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    admission::{Member, Party, by_namespace},
    book::Book,
    entry::{Entry, Turn},
    fair::share_out,
    health::Change,
    meter::{OrganisationId, Payer},
    organisations::Told,
    queue::Lane,
};
use crate::{
    demand::{Account, Demand},
    source::SourceError,
};

/// How often there is a new plan, at least, and at most when demands come and go.
const EVERY: Duration = Duration::from_secs(5);
const SOONEST: Duration = Duration::from_secs(1);
/// An interval that differs by less stays.
const STEADY: f64 = 0.02;
/// The part of a pace that queries in quarantine take at most.
const MOST_QUARANTINED: f64 = 0.25;
/// From how many refreshes on an interval is worth a line in the log.
const WORTH_TELLING: u32 = 2;
/// Accounts that are remembered though nobody uses them.
const MAX_LEDGERS: usize = 1_000;

impl Book {
    /// Plans anew if it is time.
    pub(super) fn plan(&mut self, now: Instant) -> Vec<Change> {
        let is_early = self.planned_at.is_some_and(|at| now < at + self.until_next_plan());
        if self.entries.is_empty() || is_early {
            return Vec::new();
        }
        self.planned_at = Some(now);
        let mut changes = Vec::new();
        for (id, party) in self.parties(now) {
            changes.extend(self.plan_for(id, &party, now));
        }
        self.forget_accounts(now);
        changes
    }

    /// When the next plan is due.
    pub(super) fn next_plan(&self) -> Option<Instant> {
        if self.entries.is_empty() {
            return None;
        }
        self.planned_at.map(|at| at + self.until_next_plan())
    }

    fn until_next_plan(&self) -> Duration {
        if self.is_changed { SOONEST } else { EVERY }
    }

    /// Who is awake; on the way, who is of no interest any more falls asleep.
    fn parties(&mut self, now: Instant) -> HashMap<OrganisationId, Party> {
        let idle_after = self.config.idle_after;
        let most_queries = self.config.batch_queries;
        let mut parties: HashMap<OrganisationId, Party> = HashMap::new();
        let (mut idle, mut gone) = (Vec::new(), Vec::new());
        let organisations = &mut self.organisations;
        let places: HashMap<&Arc<Account>, (usize, OrganisationId)> = (0..)
            .zip(&self.ledgers)
            .map(|(place, (account, ledger))| {
                (account, (place, organisations.of(&ledger.payer, now)))
            })
            .collect();
        for (demand, entry) in &mut self.entries {
            if matches!(entry.turn, Turn::Asleep(_)) {
                continue;
            }
            entry.note_followers(now);
            if entry.is_idle(idle_after, now) {
                if !entry.is_fetching() {
                    idle.push(demand.clone());
                }
                continue;
            }
            entry.askers.retain(|(name, asked_at)| {
                let is_here = now < *asked_at + idle_after;
                if !is_here {
                    gone.push(name.clone());
                }
                is_here
            });
            let Some((place, id)) = places.get(&demand.account) else { continue };
            let party = parties.entry(*id).or_default();
            if entry.lane() == Lane::Quarantine {
                party.quarantined += 1;
                let pause = entry.pause_of_quarantine(now).max(self.config.refresh);
                party.quarantined_rate += 1.0 / pause.as_secs_f64();
                continue;
            }
            let weight = entry.weight(most_queries);
            let kind = (*place, demand.query.window);
            if weight < 1.0 {
                *party.classes.entry(kind).or_default() += weight;
            }
            party.members.push(Member {
                demand: demand.clone(),
                kind,
                number: entry.number,
                askers: entry.askers.iter().map(|(name, _)| name.clone()).collect(),
                weight,
                interval: entry.interval,
                is_refused: entry.turn == Turn::Refused,
                is_unread: entry.lane() == Lane::First,
            });
        }
        for demand in &idle {
            self.put_to_sleep(demand);
        }
        self.drop_askers(gone);
        // That some fell asleep is no news to this plan.
        self.is_changed = false;
        for party in parties.values_mut() {
            party.members.sort_unstable_by_key(|member| member.number);
        }
        parties
    }

    fn plan_for(&mut self, id: OrganisationId, party: &Party, now: Instant) -> Option<Change> {
        let (refresh, max_round) = (self.config.refresh, self.config.max_round);
        let is_known = self.organisations.has_answered(id);
        let budget = self.organisations.budget(id)?;
        // During a pause, nothing is known of what the limit carries after it.
        if budget.paused_until(now).is_some() {
            return None;
        }
        budget.roll(now);
        let less_quarantined =
            |pace: f64| pace - party.quarantined_rate.min(MOST_QUARANTINED * pace);
        let usual = less_quarantined(budget.usual_pace(now));
        let pace = less_quarantined(budget.pace_over(max_round, now));

        let costs = party.costs();
        let is_in = party.admitted(&costs, pace.max(usual), refresh, max_round, is_known);
        let admitted: Vec<(&Member, f64)> = party
            .members
            .iter()
            .zip(&costs)
            .zip(&is_in)
            .filter_map(|((member, cost), is_in)| is_in.then_some((member, *cost)))
            .collect();
        let round: f64 = admitted.iter().map(|(_, cost)| cost).sum();
        if is_known {
            budget.set_round(round);
        }

        let by_namespace = by_namespace(admitted.iter().copied());
        let needs: Vec<f64> = by_namespace.values().map(|(cost, _)| *cost).collect();
        let shares = share_out(pace, &needs, refresh, max_round);
        let intervals: HashMap<Arc<str>, Duration> =
            by_namespace.keys().cloned().zip(shares.iter().map(|part| part.interval)).collect();
        let (mut shortest, mut longest) = (max_round.max(refresh), refresh);
        for (member, _) in &admitted {
            let wanted = member.askers.iter().filter_map(|name| intervals.get(name)).min();
            let interval = wanted.copied().unwrap_or(refresh);
            (shortest, longest) = (shortest.min(interval), longest.max(interval));
            if member.is_refused {
                self.admit(&member.demand, now);
            }
            if !is_steady(member.interval, interval, refresh) {
                self.set_interval(&member.demand, interval);
            }
        }
        if admitted.is_empty() {
            shortest = refresh;
        }
        let mut refused = 0;
        for (member, is_in) in party.members.iter().zip(&is_in) {
            if !is_in {
                refused += 1;
                let name = member.askers.first();
                let capacity = name.and_then(|name| by_namespace.get(name)).map_or(0, |(_, n)| *n);
                self.refuse(&member.demand, capacity, max_round.max(refresh));
            }
        }
        let host = party.members.first().map(|member| member.demand.account.host())?;
        let round = &mut self.organisations.get_mut(id)?.round;
        round.intervals = (shortest, longest);
        (round.awake, round.quarantined, round.refused) =
            (admitted.len(), party.quarantined, refused);
        round.unread = admitted.iter().filter(|(member, _)| member.is_unread).count();
        let told = Told {
            // Once it was told, it is over when nothing is left of it.
            is_long: is_known
                && (longest >= refresh * WORTH_TELLING
                    || (round.told.is_long && longest > refresh)),
            some_refused: refused > 0,
        };
        let before = std::mem::replace(&mut round.told, told);
        if (told.is_long && !before.is_long) || (told.some_refused && !before.some_refused) {
            return Some(Change::Stretched { host, interval: longest, refused });
        }
        let is_relaxed = told == Told::default() && before != told;
        is_relaxed.then_some(Change::Relaxed { host })
    }

    fn admit(&mut self, demand: &Demand, now: Instant) {
        let Some(entry) = self.entries.get_mut(demand) else { return };
        entry.latest.send_modify(|latest| Arc::make_mut(latest).failure = None);
        self.wait(demand, now, false);
    }

    fn refuse(&mut self, demand: &Demand, capacity: usize, round: Duration) {
        let Some(entry) = self.entries.get(demand) else { return };
        // What is under way ends first.
        if !matches!(entry.turn, Turn::Waiting { .. }) {
            return;
        }
        self.leave_queue(demand);
        let Some(entry) = self.entries.get_mut(demand) else { return };
        entry.turn = Turn::Refused;
        let crowded = SourceError::Crowded { host: demand.account.host(), capacity, round };
        entry.latest.send_modify(|latest| Arc::make_mut(latest).failure = Some(crowded));
    }

    /// What has been read falls due by the new interval.
    fn set_interval(&mut self, demand: &Demand, interval: Duration) {
        let Some(entry) = self.entries.get_mut(demand) else { return };
        // What fails is held from when it was due; a plan does not prolong that.
        if entry.latest.borrow().failure.is_some() {
            return;
        }
        entry.interval = interval;
        let mut read_at = None;
        entry.latest.send_if_modified(|latest| {
            read_at = latest.readings.first().map(|reading| reading.taken_at);
            Arc::make_mut(latest).interval = interval;
            // Nobody has to look at it.
            false
        });
        if let (Turn::Waiting { .. }, Some(read_at)) = (entry.turn, read_at) {
            self.leave_queue(demand);
            self.wait(demand, read_at + interval, false);
        }
    }

    fn forget_accounts(&mut self, now: Instant) {
        let unused = self.ledgers.values().filter(|ledger| ledger.demands == 0).count();
        if unused > MAX_LEDGERS {
            self.ledgers.retain(|_, ledger| ledger.in_flight > 0 || ledger.demands > 0);
        }
        let payers: HashSet<&Payer> = self.ledgers.values().map(|ledger| &ledger.payer).collect();
        self.organisations.forget(|payer| payers.contains(payer), now);
    }
}

/// Whether the old interval may stay.
fn is_steady(old: Duration, new: Duration, refresh: Duration) -> bool {
    let change = (new.as_secs_f64() / old.as_secs_f64() - 1.0).abs();
    old == new || (new != refresh && change <= STEADY)
}

impl Entry {
    /// How long it is put off, as far as is known.
    fn pause_of_quarantine(&self, now: Instant) -> Duration {
        match self.turn {
            Turn::Waiting { due_at, .. } => due_at.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }
}
