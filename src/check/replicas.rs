//! What an HPA would make of a value. Its arithmetic is that of
//! `pkg/controller/podautoscaler/replica_calculator.go` in Kubernetes, with KEDA's rounding.

use super::{
    manifest::Selected,
    report::{Jobs, MetricType, Replicas, Scaling},
};
use crate::{kubernetes::Kind, trigger::Trigger};

/// The HPA does nothing while it is off by no more than this; Kubernetes' default.
const TOLERANCE: f64 = 0.1;

/// `current` replicas are there. `None` where this value alone does not decide.
pub(super) fn scaling(
    trigger: &Selected<'_>,
    value: f64,
    active: bool,
    target: f64,
    current: u32,
) -> Option<Scaling> {
    let spec = &trigger.manifest.spec;
    if spec.has_scaling_modifiers() || target < Trigger::MIN_TARGET {
        return None;
    }
    if trigger.manifest.kind == Kind::ScaledJob {
        // Those that KEDA keeps do not count (`MaxReplicaCount`, scaledjob_types.go).
        let max = spec.max_replica_count().saturating_sub(spec.min_replica_count());
        let wanted = of_average_value(value, target, 0).min(max);
        return Some(Scaling::Jobs(Jobs {
            wanted: if active { wanted } else { 0 },
            min: spec.min_replica_count(),
            max,
            strategy: spec.strategy().to_owned(),
        }));
    }
    let metric_type = match trigger.spec.metric_type.as_deref() {
        Some("Value") => MetricType::Value,
        _ => MetricType::AverageValue,
    };
    let by_average_value = of_average_value(value, target, current);
    let by_value = of_value(value, target, current);
    let (min, max) = (spec.min_replica_count().max(1), spec.max_replica_count());
    let wanted = match (current, metric_type) {
        // There is no HPA at work: KEDA decides.
        (0, _) if active => min,
        (0, _) => spec.idle().unwrap_or(min),
        (_, MetricType::AverageValue) => by_average_value.max(min).min(max),
        (_, MetricType::Value) => by_value.max(min).min(max),
    };
    Some(Scaling::Replicas(Replicas {
        current,
        metric_type,
        by_average_value,
        by_value,
        wanted,
        min,
        max,
        idle: spec.idle(),
    }))
}

/// `GetExternalPerPodMetricReplicas`
fn of_average_value(value: f64, target: f64, current: u32) -> u64 {
    let (value, target) = (as_sent(value), as_sent(target));
    if is_tolerated(value / (target * f64::from(current))) {
        return current.into();
    }
    whole((value / target).ceil())
}

/// `GetExternalMetricReplicas`, all replicas being ready.
fn of_value(value: f64, target: f64, current: u32) -> u64 {
    let ratio = as_sent(value) / as_sent(target);
    if current == 0 {
        return whole(ratio.ceil());
    }
    if is_tolerated(ratio) {
        return current.into();
    }
    whole((ratio * f64::from(current)).ceil())
}

/// Whether the HPA leaves the replicas as they are.
fn is_tolerated(ratio: f64) -> bool {
    (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio)
}

/// Thousandths: KEDA formats with three decimals, and sends nothing below 0
/// (`quantityFromFloat64`, `pkg/scalers/external_scaler.go`).
fn as_sent(number: f64) -> f64 {
    (number.max(0.0) * 1_000.0).round()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::check::input::Found;

    /// Value, target, replicas → by average value, by value.
    #[track_caller]
    fn check(value: f64, target: f64, current: u32, expected: (u64, u64)) {
        let counts = (of_average_value(value, target, current), of_value(value, target, current));
        assert_eq!(counts, expected);
    }

    #[test]
    fn replicas_are_reckoned_as_the_hpa_does() {
        check(20.0, 5.0, 1, (4, 4));
        check(20.0, 5.0, 2, (4, 8));
        check(21.0, 5.0, 4, (4, 17));
        check(5.4, 5.0, 3, (2, 3));
        check(5.5, 5.0, 1, (1, 1));
        check(4.5, 5.0, 1, (1, 1));
        check(5.6, 5.0, 3, (2, 4));
        check(0.0, 5.0, 3, (0, 0));
        check(-7.0, 5.0, 3, (0, 0));
        check(12.0, 5.0, 0, (3, 3));
        check(0.0014, 0.001, 1, (1, 1));
        check(1e300, 0.001, 1, (u64::MAX, u64::MAX));
    }

    /// What is wanted of a value of 12 with this target.
    fn wanted(
        kind: &str,
        metric_type: &str,
        spec: &Value,
        (active, target, current): (bool, f64, u32),
    ) -> Option<u64> {
        let mut spec = spec.clone();
        spec["triggers"] = json!([{"type": "datadog", "metricType": metric_type}]);
        let object = json!({"kind": kind, "metadata": {"name": "a"}, "spec": spec});
        let mut found = Found::default();
        found.add("x", &object.to_string()).unwrap();
        let trigger = found.select(None).unwrap().0[0];
        Some(match scaling(&trigger, 12.0, active, target, current)? {
            Scaling::Replicas(replicas) => replicas.wanted,
            Scaling::Jobs(jobs) => jobs.wanted,
        })
    }

    #[track_caller]
    fn check_replicas(spec: &Value, active: bool, current: u32, expected: Option<u64>) {
        let got = wanted("ScaledObject", "AverageValue", spec, (active, 5.0, current));
        assert_eq!(got, expected);
    }

    #[test]
    fn what_is_wanted_lies_within_the_bounds_of_the_object() {
        check_replicas(&json!({}), true, 1, Some(3));
        check_replicas(&json!({"maxReplicaCount": 2}), true, 1, Some(2));
        check_replicas(&json!({"minReplicaCount": 7}), true, 1, Some(7));
        // Below one replica, KEDA decides.
        check_replicas(&json!({}), true, 0, Some(1));
        check_replicas(&json!({}), false, 0, Some(0));
        check_replicas(&json!({"minReplicaCount": 2}), false, 0, Some(2));
        let formula = json!({"advanced": {"scalingModifiers": {"formula": "a + b"}}});
        check_replicas(&formula, true, 1, None);
    }

    #[test]
    fn the_metric_type_decides_how_a_value_is_taken() {
        let of = |metric_type, spec, target| {
            wanted("ScaledObject", metric_type, &spec, (true, target, 2))
        };
        assert_eq!(of("AverageValue", json!({}), 5.0), Some(3));
        assert_eq!(of("Value", json!({}), 5.0), Some(5));
        assert_eq!(of("Value", json!({"minReplicaCount": 7}), 5.0), Some(7));
        // The HPA refuses it.
        assert_eq!(of("Value", json!({}), 0.0001), None);
    }

    #[test]
    fn jobs_are_started_only_when_active() {
        let of = |spec, active| wanted("ScaledJob", "", &spec, (active, 5.0, 1));
        assert_eq!(of(json!({}), true), Some(3));
        assert_eq!(of(json!({"maxReplicaCount": 2}), true), Some(2));
        assert_eq!(of(json!({"maxReplicaCount": 4, "minReplicaCount": 2}), true), Some(2));
        assert_eq!(of(json!({}), false), Some(0));
    }
}
