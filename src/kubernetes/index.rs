//! Pure: what the watches have told so far, and which stored trigger a request is that of.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    datadog_metrics::{DatadogMetric, DatadogMetrics, MetricName},
    objects::{AuthenticationName, AuthenticationSpec, Kind, Scaled, Stored},
};
use crate::words::shorten;

/// How long what an object was before its last change is accepted: KEDA's caches lag, too.
const LAG: Duration = Duration::from_mins(1);
/// Most keys that are named as different.
const MAX_NAMED: usize = 20;
/// Most characters of a key that is named.
const MAX_KEY: usize = 100;
/// Most triggers of an object that a request is compared with for the log.
const MAX_COMPARED: usize = 20;

/// What a request says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub metadata: &'a HashMap<String, String>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    objects: HashMap<Arc<str>, HashMap<Arc<str>, Named>>,
    authentications: HashMap<AuthenticationName, Kept<Arc<AuthenticationSpec>>>,
    pub(super) datadog_metrics: DatadogMetrics,
    /// Of the newest listing that began.
    epoch: u64,
}

/// What bears one name: a ScaledObject, a ScaledJob, or both.
#[derive(Debug, Default)]
struct Named {
    scaled_object: Option<Known>,
    scaled_job: Option<Known>,
}

#[derive(Debug)]
struct Known {
    triggers: Kept<Arc<[Arc<Stored>]>>,
    /// What they were before, and until when that counts.
    before: Option<(Arc<[Arc<Stored>]>, Instant)>,
}

#[derive(Debug)]
struct Kept<T> {
    value: T,
    /// Of the listing that saw it last.
    epoch: u64,
    /// When it was read by itself, if no watch has told of it.
    read_at: Option<Instant>,
    /// When a watch last told of it, or it was last read.
    told_at: Instant,
}

/// Something that a watch tells of, or that was read by itself.
#[derive(Debug)]
pub(super) enum Item {
    Scaled(Scaled),
    Authentication(AuthenticationName, Arc<AuthenticationSpec>),
    DatadogMetric(MetricName, DatadogMetric),
}

/// What a watch covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    pub(super) what: Watched,
    /// All of them, or cluster-scoped, if `None`.
    pub(super) namespace: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Watched {
    Scaled(Kind),
    TriggerAuthentication,
    ClusterTriggerAuthentication,
    DatadogMetric,
}

#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// `read_at` is set if no watch vouches for it.
    One {
        trigger: Arc<Stored>,
        read_at: Option<Instant>,
    },
    /// Equal triggers with different credentials.
    Several,
    None,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.what {
            Watched::Scaled(Kind::ScaledObject) => "scaledobjects",
            Watched::Scaled(Kind::ScaledJob) => "scaledjobs",
            Watched::TriggerAuthentication => "triggerauthentications",
            Watched::ClusterTriggerAuthentication => "clustertriggerauthentications",
            Watched::DatadogMetric => "datadogmetrics",
        })?;
        match &self.namespace {
            Some(namespace) => write!(f, " in the namespace {namespace}"),
            None => Ok(()),
        }
    }
}

impl Index {
    pub(super) fn find(&self, claim: &Claim<'_>, now: Instant) -> Found {
        let Some(named) = self.named(claim) else { return Found::None };
        for known in [&named.scaled_object, &named.scaled_job].into_iter().flatten() {
            let before = known.before.as_ref().filter(|(_, until)| now < *until);
            let generations = [Some(&known.triggers.value), before.map(|(triggers, _)| triggers)];
            for triggers in generations.into_iter().flatten() {
                let mut equal = triggers.iter().filter(|trigger| trigger.is_claimed_by(claim));
                let Some(first) = equal.next() else { continue };
                if equal.any(|other| other.authentication != first.authentication) {
                    return Found::Several;
                }
                let read_at = known.triggers.read_at;
                return Found::One { trigger: first.clone(), read_at };
            }
        }
        Found::None
    }

    /// The keys in which a request differs from the trigger that it is most like, of the first.
    /// `None` if there is none of that name. For our log: told to who asks, it would tell another's
    /// metadata.
    pub(super) fn differences(&self, claim: &Claim<'_>) -> Option<Vec<String>> {
        let named = self.named(claim)?;
        let known = [&named.scaled_object, &named.scaled_job].into_iter().flatten();
        let differences = known
            .flat_map(|known| known.triggers.value.iter())
            .take(MAX_COMPARED)
            .map(|trigger| trigger.differences(claim))
            .min_by_key(BTreeSet::len)
            .unwrap_or_default();
        let named = differences.into_iter().take(MAX_NAMED).map(|key| shorten(key, MAX_KEY));
        Some(named.collect())
    }

    fn named(&self, claim: &Claim<'_>) -> Option<&Named> {
        self.objects.get(claim.namespace)?.get(claim.name)
    }

    pub(super) fn authentication(
        &self,
        name: &AuthenticationName,
    ) -> Option<(Arc<AuthenticationSpec>, Option<Instant>)> {
        let kept = self.authentications.get(name)?;
        Some((kept.value.clone(), kept.read_at))
    }

    /// All triggers that are known.
    pub(super) fn triggers(&self) -> Vec<Arc<Stored>> {
        let named = self.objects.values().flat_map(HashMap::values);
        let known = named.flat_map(|named| [&named.scaled_object, &named.scaled_job]);
        known.flatten().flat_map(|known| known.triggers.value.iter().cloned()).collect()
    }

    /// A watch tells of it, or, with `read_at`, it was read by itself: that says nothing if a watch
    /// has told of it since the read began.
    pub(super) fn put(&mut self, item: Item, read_at: Option<Instant>, now: Instant) {
        let epoch = self.epoch;
        match item {
            Item::Scaled(scaled) => {
                let Scaled { kind, namespace, name, triggers } = scaled;
                let named = self.objects.entry(namespace).or_default().entry(name).or_default();
                let place = named.of(kind);
                if place.as_ref().is_some_and(|it| it.triggers.outdates(read_at)) {
                    return;
                }
                let is_watched = place.as_ref().is_some_and(|it| it.triggers.read_at.is_none());
                let read_at = read_at.filter(|_| !is_watched);
                let triggers = Kept { value: triggers, epoch, read_at, told_at: now };
                let before = match place.take() {
                    Some(known) if known.triggers.value == triggers.value => known.before,
                    Some(known) => Some((known.triggers.value, now + LAG)),
                    None => None,
                };
                *place = Some(Known { triggers, before });
            }
            Item::Authentication(name, value) => {
                if self.authentications.get(&name).is_some_and(|it| it.outdates(read_at)) {
                    return;
                }
                // Whoever resolved it knows by the pointer that it has not changed.
                let (value, is_watched) = match self.authentications.get(&name) {
                    Some(kept) if kept.value == value => {
                        (kept.value.clone(), kept.read_at.is_none())
                    }
                    Some(kept) => (value, kept.read_at.is_none()),
                    None => (value, false),
                };
                let read_at = read_at.filter(|_| !is_watched);
                self.authentications.insert(name, Kept { value, epoch, read_at, told_at: now });
            }
            Item::DatadogMetric(name, metric) => self.datadog_metrics.put(name, metric, epoch),
        }
    }

    /// A watch tells that it is gone.
    pub(super) fn remove(&mut self, item: &Item) {
        match item {
            Item::Scaled(scaled) => {
                self.remove_scaled(scaled.kind, &scaled.namespace, &scaled.name, None);
            }
            Item::Authentication(name, _) => self.remove_authentication(name, None),
            Item::DatadogMetric(name, _) => self.datadog_metrics.remove(name),
        }
    }

    /// It is gone; with `read_at`, as for `put`.
    pub(super) fn remove_scaled(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        read_at: Option<Instant>,
    ) {
        if let Some(objects) = self.objects.get_mut(namespace)
            && let Some(named) = objects.get_mut(name)
        {
            let place = named.of(kind);
            if place.as_ref().is_some_and(|it| it.triggers.outdates(read_at)) {
                return;
            }
            *place = None;
            if named.is_empty() {
                objects.remove(name);
            }
            if objects.is_empty() {
                self.objects.remove(namespace);
            }
        }
    }

    /// It is gone; with `read_at`, as for `put`.
    pub(super) fn remove_authentication(
        &mut self,
        name: &AuthenticationName,
        read_at: Option<Instant>,
    ) {
        if !self.authentications.get(name).is_some_and(|it| it.outdates(read_at)) {
            self.authentications.remove(name);
        }
    }

    /// A listing begins.
    pub(super) fn begin(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    /// A listing that began as `epoch` is complete: what it did not see is gone.
    pub(super) fn end(&mut self, scope: &Scope, epoch: u64) {
        let covers = |namespace: &str| scope.namespace.as_deref().is_none_or(|it| it == namespace);
        match scope.what {
            Watched::Scaled(kind) => {
                for (namespace, objects) in &mut self.objects {
                    for named in objects.values_mut().filter(|_| covers(namespace)) {
                        let place = named.of(kind);
                        if place.as_ref().is_some_and(|known| known.triggers.epoch < epoch) {
                            *place = None;
                        }
                    }
                }
                for objects in self.objects.values_mut() {
                    objects.retain(|_, named| !named.is_empty());
                }
                self.objects.retain(|_, objects| !objects.is_empty());
            }
            Watched::TriggerAuthentication => self.authentications.retain(|name, kept| {
                kept.epoch >= epoch || !name.namespace.as_deref().is_some_and(covers)
            }),
            Watched::ClusterTriggerAuthentication => self
                .authentications
                .retain(|name, kept| kept.epoch >= epoch || name.namespace.is_some()),
            Watched::DatadogMetric => self.datadog_metrics.end(scope.namespace.as_ref(), epoch),
        }
    }
}

impl<T> Kept<T> {
    /// Whether a watch has told of it since a read of it began.
    fn outdates(&self, read_at: Option<Instant>) -> bool {
        self.read_at.is_none() && read_at.is_some_and(|began_at| began_at <= self.told_at)
    }
}

impl Named {
    fn of(&mut self, kind: Kind) -> &mut Option<Known> {
        match kind {
            Kind::ScaledObject => &mut self.scaled_object,
            Kind::ScaledJob => &mut self.scaled_job,
        }
    }

    fn is_empty(&self) -> bool {
        self.scaled_object.is_none() && self.scaled_job.is_none()
    }
}

impl Stored {
    fn is_claimed_by(&self, claim: &Claim<'_>) -> bool {
        let literal = self.metadata.iter().filter(|(key, _)| !is_resolved(key));
        let mut literals = 0;
        for (key, value) in literal {
            if claim.metadata.get(&**key).map(String::as_str) != Some(value) {
                return false;
            }
            literals += 1;
        }
        let others = claim.metadata.keys().filter(|key| !is_resolved(key)).count() - literals;
        let mut resolved = claim.metadata.keys().filter(|key| is_resolved(key));
        others == 0 && resolved.all(|key| self.value(key).is_some())
    }

    fn differences<'a>(&'a self, claim: &Claim<'a>) -> BTreeSet<&'a str> {
        let stored = self.metadata.iter().map(|(key, _)| &**key);
        let keys = stored.chain(claim.metadata.keys().map(String::as_str));
        let differs = |key: &&str| {
            let (stored, claimed) = (self.value(key), claim.metadata.get(*key));
            if is_resolved(key) { stored.is_none() } else { stored != claimed.map(String::as_str) }
        };
        keys.filter(differs).collect()
    }

    /// Of its metadata.
    pub fn value(&self, key: &str) -> Option<&str> {
        let place = self.metadata.binary_search_by(|(stored, _)| (**stored).cmp(key)).ok()?;
        Some(&self.metadata[place].1)
    }
}

/// KEDA sends the value of the variable that such a key names, and leaves the key out if there is
/// none (`parseExternalScalerMetadata`, `pkg/scalers/external_scaler.go`).
fn is_resolved(key: &str) -> bool {
    key.ends_with("FromEnv")
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::objects::authentication;

    fn scaled(triggers: &[Value]) -> Item {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"namespace": "demo", "name": "shop"},
            "spec": {"scaleTargetRef": {"name": "shop"}, "triggers": triggers},
        }))
        .unwrap();
        Item::Scaled(Scaled::read(Kind::ScaledObject, object))
    }

    /// With one trigger that refers to this TriggerAuthentication.
    fn referring(to: &str) -> Item {
        let reference = json!({"name": to});
        scaled(&[json!({"type": "external", "metadata": {}, "authenticationRef": reference})])
    }

    /// What the trigger of demo/shop refers to.
    fn reference(index: &Index, now: Instant) -> Option<Box<str>> {
        let claim = Claim { namespace: "demo", name: "shop", metadata: &HashMap::new() };
        match index.find(&claim, now) {
            Found::One { trigger, .. } => Some(trigger.authentication.as_ref()?.name.clone()),
            _ => None,
        }
    }

    #[test]
    fn a_read_that_a_watch_has_overtaken_says_nothing() {
        let (mut index, start) = (Index::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        index.put(referring("old"), None, at(0));
        index.put(referring("new"), None, at(2));
        // It began before the change.
        index.put(referring("old"), Some(at(1)), at(3));
        assert_eq!(reference(&index, at(3)).as_deref(), Some("new"));
        index.remove_scaled(Kind::ScaledObject, "demo", "shop", Some(at(1)));
        assert_eq!(reference(&index, at(3)).as_deref(), Some("new"));
        // The watch lags.
        index.put(referring("newer"), Some(at(4)), at(5));
        assert_eq!(reference(&index, at(5)).as_deref(), Some("newer"));
        index.remove_scaled(Kind::ScaledObject, "demo", "shop", Some(at(6)));
        assert_eq!(reference(&index, at(6)), None);
    }

    #[test]
    fn nor_does_one_of_a_trigger_authentication() {
        let (mut index, start) = (Index::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let of = |key: &str| {
            let entry = json!({"parameter": "apiKey", "name": "keys", "key": key});
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "TriggerAuthentication",
                "metadata": {"namespace": "demo", "name": "datadog"},
                "spec": {"secretTargetRef": [entry]},
            }))
            .unwrap();
            authentication(object)
        };
        let item = |key| {
            let (name, spec) = of(key);
            Item::Authentication(name, spec)
        };
        let (name, new) = of("new");
        index.put(item("new"), None, at(2));
        index.put(item("old"), Some(at(1)), at(3));
        index.remove_authentication(&name, Some(at(1)));
        assert_eq!(index.authentication(&name), Some((new, None)));
        index.remove_authentication(&name, Some(at(3)));
        assert_eq!(index.authentication(&name), None);
    }

    #[test]
    fn what_no_request_can_be_is_not_kept() {
        let metadata = |keys: usize| -> Value {
            (0..keys).map(|n| (format!("key-{n}"), Value::from("x"))).collect()
        };
        let of = |metadata: Value| json!({"type": "external", "metadata": metadata});
        let mut triggers = vec![of(metadata(101)), of(json!({"query": "x".repeat(70_000)}))];
        triggers.extend((0..10_000).map(|n| of(json!({"query": n.to_string()}))));
        let mut index = Index::default();
        index.put(scaled(&triggers), None, Instant::now());
        let kept = index.triggers();
        assert_eq!(kept.len(), 500);
        assert_eq!(kept[0].value("query"), Some("0"));
    }
}
