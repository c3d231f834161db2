//! The steps that need nobody's answer: the trigger in its object, its metadata, and how long its
//! readings are held.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;

use super::{
    manifest::{Kind, Manifest, Written},
    report::{Examined, Hold, Level, Outcome, Step},
    settings::settings,
};
use crate::{
    scaler::Failure,
    trigger::{Subject, Trigger},
    words::shorten,
};

/// Most characters of somebody's text that a finding repeats.
const MAX_SHOWN: usize = 100;
/// KEDA's default (`apis/keda/v1alpha1/scaledobject_types.go`), in seconds.
const COOLDOWN: u64 = 300;

/// As the server runs, or would.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub refresh: Duration,
    pub hold: Duration,
    pub patience: Duration,
    pub strict_metadata: bool,
}

/// `None` if the metadata has a fault.
pub(super) fn examine(
    manifest: &Manifest,
    index: usize,
    server: &Server,
) -> (Examined, Option<Trigger>) {
    let written = &manifest.spec.triggers[index];
    let mut examined = Examined {
        file: manifest.file.clone(),
        kind: manifest.kind.to_string(),
        namespace: manifest.namespace.clone(),
        object: manifest.name.clone(),
        index,
        name: written.name.clone(),
        r#type: written.r#type.clone(),
        findings: Vec::new(),
        settings: Vec::new(),
        request: None,
        series: Vec::new(),
        reckoning: None,
        calls: Vec::new(),
        outcome: None,
        replicas: None,
        hold: None,
    };
    question_trigger(manifest, written, &mut examined);
    question_values(written, &mut examined);
    let metadata = metadata(written);
    let trigger = match Trigger::parse(&metadata, server.strict_metadata) {
        Ok((trigger, advice)) => {
            for advice in advice {
                examined.find(Level::Warning, Step::Metadata, advice.to_string());
            }
            trigger
        }
        Err(error) => {
            for fault in &error.faults {
                examined.find(Level::Error, Step::Metadata, fault.to_string());
            }
            let failure = Failure::Metadata(error);
            examined.outcome =
                Some(Outcome::Failed { code: failure.code_name(), message: failure.to_string() });
            return (examined, None);
        }
    };
    examined.settings = settings(&trigger, &metadata, server);
    question_metadata(manifest, &metadata, &trigger, server, &mut examined);
    examined.hold = Some(hold(manifest, &trigger, server, &mut examined));
    (examined, Some(trigger))
}

/// As KEDA sends it: a key without a value is an empty text.
pub(super) fn metadata(written: &Written) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    written.metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// What KEDA or Kubernetes would say of the trigger, metadata aside.
fn question_trigger(manifest: &Manifest, written: &Written, examined: &mut Examined) {
    let mut find = |level, message: String| examined.find(level, Step::Trigger, message);
    let is_job = manifest.kind == Kind::ScaledJob;
    if manifest.name.is_empty() {
        find(Level::Error, format!("the {} has no `metadata.name`; set it", manifest.kind));
    }
    match &*written.r#type {
        "datadog" => find(
            Level::Note,
            "to move it here, set `type: external`, and add `scalerAddress` to its metadata"
                .to_owned(),
        ),
        "external-push" if is_job => find(
            Level::Warning,
            "`type` is \"external-push\", but KEDA does not push to a ScaledJob; it polls it; use \
             `external`"
                .to_owned(),
        ),
        _ => {}
    }
    if written.r#type != "datadog" && !written.metadata.contains_key("scalerAddress") {
        find(
            Level::Error,
            "`scalerAddress` is missing, and KEDA needs it; set it, such as \
             `keda-datadog-scaler.keda:9090`"
                .to_owned(),
        );
    }
    match written.metric_type.as_deref() {
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
    let namesakes = manifest.spec.triggers.iter().filter(|other| other.name == written.name);
    if let Some(name) = &written.name
        && namesakes.count() > 1
    {
        let name = shorten(name, MAX_SHOWN);
        find(
            Level::Error,
            format!("the `name` \"{name}\" is that of several triggers; KEDA wants it unique"),
        );
    }
}

/// Kubernetes refuses anything but texts.
fn question_values(written: &Written, examined: &mut Examined) {
    for (key, value) in &written.metadata {
        let key = shorten(key, MAX_SHOWN);
        let message = match value {
            Value::String(_) | Value::Null => continue,
            Value::Bool(_) | Value::Number(_) => {
                format!("`{key}` is {value}, but must be a text; quote it: `{key}: \"{value}\"`")
            }
            Value::Array(_) => format!("`{key}` is a list, but must be a text"),
            Value::Object(_) => {
                format!("`{key}` is a map, but must be a text; quote it, if it has braces in it")
            }
        };
        examined.find(Level::Error, Step::Metadata, message);
    }
}

/// What is sound by itself, but not here.
fn question_metadata(
    manifest: &Manifest,
    metadata: &HashMap<String, String>,
    trigger: &Trigger,
    server: &Server,
    examined: &mut Examined,
) {
    let written = &manifest.spec.triggers[examined.index];
    let mut find = |level, message: String| examined.find(level, Step::Metadata, message);
    let is_global =
        metadata.get("type").is_some_and(|value| value.trim().eq_ignore_ascii_case("global"));
    if is_global && written.metric_type.as_deref() != Some("Value") {
        find(
            Level::Warning,
            "`type` is \"global\", which has no effect; for one target for all replicas together, \
             set `metricType: Value` beside `type` of the trigger"
                .to_owned(),
        );
    }
    let has_target = ["queryValue", "targetValue"].iter().any(|key| metadata.contains_key(*key));
    // Else its absence would be a fault.
    if !has_target && !manifest.spec.has_scaling_modifiers() {
        find(
            Level::Warning,
            "`asMetricSource` leaves the target to `advanced.scalingModifiers`, but there are \
             none; add them, or set `queryValue`"
                .to_owned(),
        );
    }
    if let Some(timeout) = trigger.timeout.filter(|timeout| *timeout > server.patience) {
        let patience = server.patience;
        find(
            Level::Note,
            format!(
                "`timeout` is {timeout:?}, and has no effect: KEDA has its answer within \
                 {patience:?} (`--patience`)"
            ),
        );
    }
    let without_effect: &[&str] = match trigger.subject {
        Subject::Query(_) => &["maxAge", "datadogMetricName", "datadogMetricNamespace"],
        Subject::DatadogMetric { .. } => &[
            "query",
            "age",
            "timeWindowOffset",
            "lastAvailablePointOffset",
            "timeAggregator",
            "queryAggregator",
        ],
    };
    for key in without_effect.iter().filter(|key| metadata.contains_key(**key)) {
        let mode = match trigger.subject {
            Subject::Query(_) => "the Datadog API is",
            Subject::DatadogMetric { .. } => "the Cluster Agent is",
        };
        find(Level::Note, format!("`{key}` has no effect where {mode} asked"));
    }
}

/// How long a reading is held, against what keeps the replicas up besides.
fn hold(manifest: &Manifest, trigger: &Trigger, server: &Server, examined: &mut Examined) -> Hold {
    let hold = trigger.hold.unwrap_or(server.hold);
    let refresh = server.refresh;
    let is_job = manifest.kind == Kind::ScaledJob;
    let cooldown = manifest.spec.cooldown_period.unwrap_or(COOLDOWN);
    let stabilization = manifest.spec.stabilization_window();
    if is_job && !hold.is_zero() {
        examined.find(
            Level::Warning,
            Step::Hold,
            "a value that is held would start Jobs again for work already done; set \
             `holdLastValue: \"0\"` for a ScaledJob",
        );
    }
    let windows = [("cooldownPeriod", cooldown), ("stabilizationWindowSeconds", stabilization)];
    for (name, seconds) in windows.into_iter().filter(|_| !is_job) {
        if hold.as_secs() > seconds {
            let message = format!(
                "a reading is held for {} s, longer than `{name}` ({seconds} s) would keep the \
                 replicas; set `holdLastValue: \"{seconds}\"`, or a longer `{name}`",
                hold.as_secs()
            );
            examined.find(Level::Warning, Step::Hold, message);
        }
    }
    Hold {
        refresh_seconds: refresh.as_secs(),
        hold_seconds: hold.as_secs(),
        active_seconds: (refresh + hold).as_secs(),
        inactive_seconds: (refresh + hold.min(refresh)).as_secs(),
        cooldown_seconds: (!is_job).then_some(cooldown),
        stabilization_seconds: (!is_job).then_some(stabilization),
    }
}
