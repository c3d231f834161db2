//! What Datadog's replies say of one API key's requests, and for which organisation they are taken to
//! be counted. Pure.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::budget::Terms;
use crate::demand::{Account, Keys};

/// How often in a row a meter must fall by too little before it is no more taken for a part.
const PROOFS: u32 = 3;

/// What one payer's replies say.
pub(super) struct Meter {
    pub(super) organisation: OrganisationId,
    pub(super) terms: Option<Terms>,
    /// Requests since it is known.
    pub(super) started: u64,
    pub(super) answered: u64,
    /// Those of the period, and when that ends.
    pub(super) sent: f64,
    pub(super) sent_until: Instant,
    /// At the last reply with no other request under way.
    mark: Option<Mark>,
    /// Requests of the others that were answered when the one under way began, if it was alone.
    others_answered: u64,
    /// How often in a row less was gone than the others had sent.
    proofs: u32,
    /// The organisation that it turned out not to be a part of.
    pub(super) left: Option<OrganisationId>,
}

struct Mark {
    remaining: u64,
    ends_at: Instant,
    answered: u64,
    /// Requests of the others that had been started.
    others_started: u64,
}

/// What Datadog counts requests for, as an account shows it: an address, and an API key or token.
#[derive(Clone)]
pub(super) struct Payer(Arc<Account>);

/// Those that are taken for one have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct OrganisationId(pub(super) u64);

impl Meter {
    pub(super) fn new(organisation: OrganisationId, now: Instant) -> Self {
        Self {
            organisation,
            terms: None,
            started: 0,
            answered: 0,
            sent: 0.0,
            sent_until: now,
            mark: None,
            others_answered: 0,
            proofs: 0,
            left: None,
        }
    }

    /// A request is sent when so many of the others' have been answered.
    pub(super) fn send(&mut self, terms: &Terms, others_answered: u64, now: Instant) {
        if now >= self.sent_until {
            self.sent = 0.0;
        }
        self.sent_until = terms.ends_at;
        self.sent += 1.0;
        if self.started == self.answered {
            self.others_answered = others_answered;
        }
        self.started += 1;
    }

    pub(super) fn begin_anew(&mut self) {
        (self.mark, self.proofs) = (None, 0);
    }

    /// Whether this reply is the last that was wanting to prove that the others of its organisation
    /// are not counted with it: since the reply before, what is left fell by its own requests, but
    /// by less than the others' beside them. Requests count that Datadog has seen for certain.
    pub(super) fn is_proof(
        &mut self,
        remaining: Option<u64>,
        terms: &Terms,
        others_started: u64,
    ) -> bool {
        if self.started != self.answered {
            return false;
        }
        let Some(remaining) = remaining else { return false };
        let mark = self.mark.replace(Mark {
            remaining,
            ends_at: terms.ends_at,
            answered: self.answered,
            others_started,
        });
        let Some(mark) = mark else { return false };
        let is_next_period = terms.ends_at > mark.ends_at + terms.period / 2;
        let Some(fell) = mark.remaining.checked_sub(remaining).filter(|_| !is_next_period) else {
            return false;
        };
        let own = self.answered - mark.answered;
        let of_others = self.others_answered.saturating_sub(mark.others_started);
        if of_others == 0 || fell < own {
            return false;
        }
        self.proofs = if fell < own + of_others { self.proofs + 1 } else { 0 };
        self.proofs >= PROOFS
    }
}

impl Payer {
    pub(super) fn of(account: &Arc<Account>) -> Self {
        Self(account.clone())
    }

    pub(super) fn is_metered(&self) -> bool {
        self.0.is_metered()
    }

    pub(super) fn shares_site_with(&self, other: &Self) -> bool {
        self.0.base_url() == other.0.base_url()
    }

    fn key(&self) -> &str {
        match self.0.keys() {
            Keys::Pair { api: key, .. } | Keys::Bearer(key) => key.expose_secret(),
            Keys::None => "",
        }
    }
}

impl PartialEq for Payer {
    fn eq(&self, other: &Self) -> bool {
        self.shares_site_with(other) && self.key() == other.key()
    }
}

impl Eq for Payer {}

impl Hash for Payer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.base_url().hash(state);
        self.key().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::scripted::account;

    #[test]
    fn one_api_key_is_one_organisation_whatever_the_application_key() {
        let of = |api: &str, app: &str| {
            let keys = Keys::Pair { api: api.into(), app: app.into() };
            Payer::of(&Arc::new(Account::new("https://dd".parse().unwrap(), keys)))
        };
        assert!(of("a", "1") == of("a", "2"));
        assert!(of("a", "1") != of("b", "1"));
        let of_site = |host: &str| Payer::of(&account(host, "a"));
        assert!(of_site("dd") != of_site("dd.eu"));
    }
}
