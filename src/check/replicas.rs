//! What an HPA would make of a value. Its arithmetic, of
//! `pkg/controller/podautoscaler/replica_calculator.go` in Kubernetes, and KEDA's rounding.

use super::{
    manifest::{Kind, Manifest, Written},
    report::{Count, Replicas},
};

/// The HPA does nothing while it is off by less than this.
const TOLERANCE: f64 = 0.1;
/// KEDA's defaults (`apis/keda/v1alpha1`).
const MAX_REPLICAS: u64 = 100;

/// `at` replicas are there. `value` and `target` are as the scaler sends them.
pub(super) fn asked_for(
    manifest: &Manifest,
    written: &Written,
    value: f64,
    target: f64,
    at: u32,
) -> Replicas {
    let metric_type = match written.metric_type.as_deref() {
        Some("Value") => "Value",
        _ => "AverageValue",
    };
    let (average_value, by_value) =
        (of_average_value(value, target, at), of_value(value, target, at));
    let spec = &manifest.spec;
    let most = spec.max_replica_count.unwrap_or(MAX_REPLICAS);
    let least = match manifest.kind {
        // The HPA knows no zero; that is KEDA's part.
        Kind::ScaledObject => spec.min_replica_count.unwrap_or(0).max(1),
        Kind::ScaledJob => 0,
    };
    let asked = match (manifest.kind, metric_type) {
        // Jobs are started for the whole backlog.
        (Kind::ScaledJob, _) => of_average_value(value, target, 0),
        (Kind::ScaledObject, "Value") => by_value,
        (Kind::ScaledObject, _) => average_value,
    };
    Replicas {
        at,
        average_value,
        value: by_value,
        metric_type,
        asked: asked.replicas.max(least).min(most),
        least,
        most,
        idle: match manifest.kind {
            Kind::ScaledObject if spec.idle_replica_count.is_some() => spec.idle_replica_count,
            Kind::ScaledObject if spec.min_replica_count.unwrap_or(0) == 0 => Some(0),
            _ => None,
        },
    }
}

/// `GetExternalPerPodMetricReplicas`
fn of_average_value(value: f64, target: f64, at: u32) -> Count {
    let (value, target) = (as_sent(value), as_sent(target));
    if is_within_tolerance(value / (target * f64::from(at))) {
        return as_they_are(at);
    }
    whole((value / target).ceil())
}

/// `GetExternalMetricReplicas`, all replicas being ready.
fn of_value(value: f64, target: f64, at: u32) -> Count {
    let ratio = as_sent(value) / as_sent(target);
    if at == 0 {
        return whole(ratio.ceil());
    }
    if is_within_tolerance(ratio) {
        return as_they_are(at);
    }
    whole((ratio * f64::from(at)).ceil())
}

fn is_within_tolerance(ratio: f64) -> bool {
    (ratio - 1.0).abs() <= TOLERANCE
}

/// Thousandths: KEDA formats with three decimals, and sends nothing below 0
/// (`quantityFromFloat64`, `pkg/scalers/external_scaler.go`).
fn as_sent(number: f64) -> f64 {
    (number.max(0.0) * 1_000.0).round()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn whole(number: f64) -> Count {
    Count { replicas: number as u64, within_tolerance: false }
}

fn as_they_are(at: u32) -> Count {
    Count { replicas: at.into(), within_tolerance: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value, target, replicas → by average value, by value.
    #[track_caller]
    fn check(value: f64, target: f64, at: u32, expected: (u64, u64)) {
        let counts = (of_average_value(value, target, at), of_value(value, target, at));
        assert_eq!((counts.0.replicas, counts.1.replicas), expected);
    }

    #[test]
    fn replicas_are_reckoned_as_the_hpa_does() {
        check(20.0, 5.0, 1, (4, 4));
        check(20.0, 5.0, 2, (4, 8));
        check(21.0, 5.0, 4, (4, 17));
        check(5.4, 5.0, 3, (2, 3));
        check(5.6, 5.0, 3, (2, 4));
        check(0.0, 5.0, 3, (0, 0));
        check(-7.0, 5.0, 3, (0, 0));
        check(12.0, 5.0, 0, (3, 3));
        check(0.0014, 0.001, 1, (1, 1));
        check(1e300, 0.001, 1, (u64::MAX, u64::MAX));
    }
}
