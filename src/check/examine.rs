//! The steps that need nobody's answer: the trigger in its object, its metadata, and how long its
//! readings are held.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;

use super::{
    MAX_SHOWN, Server,
    manifest::{Manifest, OF_METADATA, Selected},
    report::{Evidence, Examined, Failed, Hold, Level, Outcome, Step},
    settings::settings,
};
use crate::{
    kubernetes::Kind,
    scaler::{Failure, understand},
    source::grammar,
    trigger::{Circumstances, Contradiction, KEYS, KEYS_OF_KEDA, Owner, Subject, Trigger, advice},
    words::{boolean, shorten},
};

/// Most values of one trigger that are questioned.
const MAX_QUESTIONED: usize = 20;

/// `server` is that which would answer, if it is known how that runs. No trigger if the metadata has
/// a fault.
pub(super) fn examine(
    selected: &Selected<'_>,
    server: Option<&Server>,
) -> (Examined, Option<Trigger>) {
    let Selected { manifest, spec, index } = *selected;
    let mut examined = Examined {
        file: manifest.file.clone(),
        kind: manifest.kind,
        namespace: manifest.namespace.clone(),
        object: manifest.name.clone(),
        index,
        name: spec.name.clone(),
        r#type: spec.r#type.clone(),
        service: selected.service(),
        findings: Vec::new(),
        settings: Vec::new(),
        credentials: None,
        evidence: Evidence::Nobody {},
        outcome: None,
        scaling: None,
        hold: None,
    };
    question_trigger(selected, &mut examined);
    question_values(selected, &mut examined);
    let object = selected.reference();
    let (mut trigger, advice) =
        match understand(&object, server.is_some_and(|server| server.strict_metadata)) {
            Ok(understood) => understood,
            Err(failure) => {
                tell_faults(&failure, &object.scaler_metadata, &mut examined);
                return (examined, None);
            }
        };
    for advice in advice {
        examined.find(Level::Warning, Step::Metadata, advice.to_string());
    }
    question_metadata(selected, &trigger, server, &mut examined);
    if let Some(server) = server {
        trigger = trigger.or_max_age(server.max_age);
    }
    examined.settings = settings(&trigger, &|key| is_given(selected, key), server);
    (examined, Some(trigger))
}

/// What the scaler would answer.
fn tell_faults(failure: &Failure, metadata: &HashMap<String, String>, examined: &mut Examined) {
    match failure {
        Failure::Metadata(error) => {
            for fault in &error.faults {
                examined.find(Level::Error, Step::Metadata, fault.to_string());
            }
            for advice in advice(metadata).iter().filter(|advice| !error.mentions(advice)) {
                examined.find(Level::Warning, Step::Metadata, advice.to_string());
            }
        }
        other => examined.find(Level::Error, Step::Metadata, other.to_string()),
    }
    examined.outcome = Some(Outcome::Failed(Failed {
        rpc: "GetMetricSpec",
        code: failure.code_name(),
        message: failure.to_string(),
    }));
}

/// An empty value counts as absent, here as in KEDA.
fn is_given(selected: &Selected<'_>, key: &str) -> bool {
    match selected.spec.metadata.get(key) {
        Some(Value::String(text)) => !text.trim().is_empty(),
        other => other.is_some(),
    }
}

/// What KEDA or Kubernetes would say of the trigger, most of its metadata aside.
fn question_trigger(selected: &Selected<'_>, examined: &mut Examined) {
    let Selected { manifest, spec, .. } = selected;
    let mut find = |level, message: String| examined.find(level, Step::Trigger, message);
    let is_job = manifest.kind == Kind::ScaledJob;
    if manifest.name.is_empty() {
        find(Level::Error, format!("the {} has no `metadata.name`; set it", manifest.kind));
    }
    match &*spec.r#type {
        "datadog" => find(
            Level::Note,
            "to move it here, set `type: external`, and add `scalerAddress` to its metadata"
                .to_owned(),
        ),
        _ if !is_given(selected, "scalerAddress") && manifest.file != OF_METADATA => find(
            Level::Error,
            "`scalerAddress` is missing, and KEDA needs it; set it, such as \
             `keda-datadog-scaler.keda:9090`"
                .to_owned(),
        ),
        _ => {}
    }
    for contradiction in contradictions(selected, Duration::ZERO, Step::Trigger) {
        find(Level::Warning, contradiction.to_string());
    }
    match spec.metric_type.as_deref() {
        Some(_) if is_job => find(
            Level::Error,
            "KEDA refuses `metricType` in the triggers of a ScaledJob; take it out".to_owned(),
        ),
        None | Some("AverageValue" | "Value") => {}
        Some(other) => find(
            Level::Error,
            format!(
                "`metricType` is \"{}\", but must be AverageValue or Value",
                shorten(other, MAX_SHOWN)
            ),
        ),
    }
    if spec.authentication_ref.as_ref().is_some_and(|reference| reference.name.is_empty()) {
        find(Level::Error, "`authenticationRef` has no `name`; set it, or take it out".to_owned());
    }
    let namesakes = manifest.spec.triggers.iter().filter(|other| other.name == spec.name);
    if let Some(name) = &spec.name
        && namesakes.count() > 1
    {
        let name = shorten(name, MAX_SHOWN);
        find(
            Level::Error,
            format!(
                "`name` is \"{name}\", but so is that of another trigger; KEDA wants it unique"
            ),
        );
    }
}

/// What contradicts the object, as far as it is told at this step. `hold` is how long an active
/// reading is held.
fn contradictions(selected: &Selected<'_>, hold: Duration, at: Step) -> Vec<Contradiction> {
    let Selected { manifest: Manifest { kind, spec: object, .. }, spec, .. } = selected;
    let text = |key: &str| spec.metadata.get(key).and_then(Value::as_str);
    let seconds = Duration::from_secs;
    let circumstances = Circumstances {
        owner: match kind {
            Kind::ScaledObject => Owner::ScaledObject {
                // Without a way to zero, nothing cools down.
                cooldown: object.idle().is_some().then(|| seconds(object.cooldown_period)),
                stabilization: Some(seconds(object.stabilization_window())),
            },
            Kind::ScaledJob => Owner::ScaledJob,
        },
        pushes: spec.r#type == "external-push",
        is_value: spec.metric_type.as_deref() == Some("Value"),
        is_global: text("type").is_some_and(|it| it.trim().eq_ignore_ascii_case("global")),
    };
    let mut found = circumstances.contradictions(hold);
    found.retain(|contradiction| {
        at == match contradiction {
            Contradiction::PushOfJob => Step::Trigger,
            Contradiction::Global => Step::Metadata,
            Contradiction::HoldOfJob | Contradiction::Hold { .. } => Step::Hold,
        }
    });
    found
}

/// Kubernetes refuses anything but texts.
fn question_values(selected: &Selected<'_>, examined: &mut Examined) {
    let entries = selected.spec.metadata.iter().filter(|(_, value)| !value.is_string());
    for (key, value) in entries.take(MAX_QUESTIONED) {
        // That of a key that is not known may be a secret.
        let is_ours = KEYS.contains(&&**key) && !KEYS_OF_KEDA.contains(&&**key);
        let what = match value {
            Value::Bool(_) if is_ours => format!("{value} without quotes"),
            Value::Number(number) if is_ours && (number.is_u64() || number.is_i64()) => {
                format!("{value} without quotes")
            }
            Value::Bool(_) => "true or false without quotes".to_owned(),
            Value::Number(_) => "a number without quotes".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            _ => "a map".to_owned(),
        };
        let key = shorten(key, MAX_SHOWN);
        let message = format!("`{key}` is {what}, but must be a text; quote it");
        examined.find(Level::Error, Step::Metadata, message);
    }
}

/// What is sound by itself, but not here.
fn question_metadata(
    selected: &Selected<'_>,
    trigger: &Trigger,
    server: Option<&Server>,
    examined: &mut Examined,
) {
    let Selected { manifest, spec, .. } = selected;
    let text = |key: &str| spec.metadata.get(key).and_then(Value::as_str).map(str::trim);
    let mut find = |level, message: String| examined.find(level, Step::Metadata, message);
    for key in ["enableTLS", "unsafeSsl"] {
        if let Some(value) = text(key).filter(|value| !value.is_empty() && boolean(value).is_none())
        {
            let value = shorten(value, MAX_SHOWN);
            find(Level::Error, format!("`{key}` is \"{value}\", but must be true or false"));
        }
    }
    for contradiction in contradictions(selected, Duration::ZERO, Step::Metadata) {
        find(Level::Warning, contradiction.to_string());
    }
    // Without `asMetricSource`, its absence would be a fault.
    let has_target = is_given(selected, "queryValue") || is_given(selected, "targetValue");
    if !has_target && !manifest.spec.has_scaling_modifiers() {
        find(
            Level::Warning,
            "`asMetricSource` leaves the target to `advanced.scalingModifiers`, but there are \
             none; add them, or set `queryValue`"
                .to_owned(),
        );
    }
    if let (Some(timeout), Some(&Server { patience, .. })) = (trigger.timeout, server)
        && timeout > patience
    {
        find(
            Level::Note,
            format!(
                "`timeout` is {timeout:?}, and has no effect; KEDA has its answer within \
                 {patience:?} (`--patience`)"
            ),
        );
    }
    if let Subject::Query(query) = &trigger.subject
        && let Some(queries) = grammar::split(&query.text)
        && queries.len() > 1
        && trigger.reckoning.over_series.is_none()
    {
        let queries = queries.len();
        find(
            Level::Warning,
            format!(
                "`query` holds {queries} queries; set `queryAggregator` to make one value of them"
            ),
        );
    }
    let (asked, without_effect): (_, &[&str]) = match trigger.subject {
        Subject::Query(_) => {
            ("Datadog API", &["maxAge", "datadogMetricName", "datadogMetricNamespace"])
        }
        Subject::DatadogMetric { .. } => (
            "Cluster Agent",
            &[
                "query",
                "age",
                "timeWindowOffset",
                "lastAvailablePointOffset",
                "timeAggregator",
                "queryAggregator",
            ],
        ),
    };
    for key in without_effect.iter().filter(|key| is_given(selected, key)) {
        find(Level::Note, format!("`{key}` has no effect where the {asked} is asked"));
    }
}

/// What else decides over the replicas.
pub(super) fn question_scaling(selected: &Selected<'_>, examined: &mut Examined) {
    let spec = &selected.manifest.spec;
    let is_reckoned = examined.scaling.is_some();
    let mut find = |level, message: String| examined.find(level, Step::Scaling, message);
    let (min, max) = (spec.min_replica_count(), spec.max_replica_count());
    if min > max || max == 0 {
        find(
            Level::Error,
            format!(
                "`maxReplicaCount` is {max}, but must be at least {}; raise it, or lower \
                 `minReplicaCount`",
                min.max(1)
            ),
        );
    }
    if selected.manifest.kind == Kind::ScaledJob {
        return;
    }
    if let Some(idle) = spec.idle_replica_count.filter(|idle| *idle >= min) {
        find(
            Level::Error,
            format!("`idleReplicaCount` is {idle}, but must be less than `minReplicaCount`, {min}"),
        );
    }
    if spec.has_scaling_modifiers() {
        find(
            Level::Note,
            "`scalingModifiers` decides over the replicas; this value is one input of its formula"
                .to_owned(),
        );
    } else if spec.triggers.len() > 1 && is_reckoned {
        let triggers = spec.triggers.len();
        find(Level::Note, format!("of its {triggers} triggers, the HPA takes what asks for most"));
    }
}

/// What becomes of a ScaledJob in a scaler that does not see that it is one.
pub(super) fn question_job(
    selected: &Selected<'_>,
    trigger: &Trigger,
    server: &Server,
    examined: &mut Examined,
) {
    let is_job = selected.manifest.kind == Kind::ScaledJob;
    if is_job && trigger.hold.is_none() && !server.hold.is_zero() {
        let hold = server.hold.as_secs_f64();
        examined.find(
            Level::Note,
            Step::Hold,
            format!(
                "a scaler without Kubernetes does not know a ScaledJob, and holds a value for \
                 {hold} s, which would start Jobs again for work already done; set \
                 `holdLastValue: \"0\"` there"
            ),
        );
    }
}

/// How long a reading lasts while Datadog fails, against what keeps the replicas up besides.
pub(super) fn question_hold(
    selected: &Selected<'_>,
    trigger: &Trigger,
    server: &Server,
    examined: &mut Examined,
) {
    let spec = &selected.manifest.spec;
    let refresh = server.refresh;
    let held_for = |active| trigger.held_for(active, refresh, server.hold);
    let hold = held_for(true);
    let is_job = selected.manifest.kind == Kind::ScaledJob;
    for contradiction in contradictions(selected, hold, Step::Hold) {
        examined.find(Level::Warning, Step::Hold, contradiction.to_string());
    }
    examined.hold = Some(Hold {
        refresh_seconds: refresh.as_secs_f64(),
        hold_seconds: hold.as_secs_f64(),
        active_seconds: (refresh.saturating_add(hold)).as_secs_f64(),
        inactive_seconds: (refresh.saturating_add(held_for(false))).as_secs_f64(),
        cooldown_seconds: (!is_job && spec.idle().is_some()).then_some(spec.cooldown_period),
        stabilization_seconds: (!is_job).then_some(spec.stabilization_window()),
    });
}
