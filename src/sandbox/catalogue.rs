//! The metrics of the simulated Datadog.

use std::{
    f64::consts::TAU,
    sync::atomic::{AtomicU64, Ordering},
};

/// Seconds between two samples of every metric, as the Datadog Agent sends them by default.
pub(super) const INTERVAL: i64 = 10;

pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    wave: Wave,
    /// Values of the tag `queue`; a metric without has one series without that tag.
    pub(super) queues: &'static [&'static str],
}

/// Periods in seconds.
enum Wave {
    Flat(f64),
    Sine {
        low: f64,
        high: f64,
        period: f64,
    },
    Steps {
        levels: &'static [f64],
        each: f64,
    },
    Sawtooth {
        low: f64,
        high: f64,
        period: f64,
    },
    /// This, but one sample in three is missing.
    Gaps(f64),
    /// This, but what is younger than `by` is not there yet: Datadog sends null for it.
    Late {
        value: f64,
        by: i64,
    },
    /// What [`set_dial`] said last, as if it had always been so.
    Dial,
}

/// The bits of a double. One for the process, for that has one simulated Datadog.
static DIAL: AtomicU64 = AtomicU64::new(0);

/// Says what `sandbox.dial` is.
pub(super) fn set_dial(value: f64) {
    DIAL.store(value.to_bits(), Ordering::Relaxed);
}

pub(super) const METRICS: [Metric; 10] = [
    Metric {
        name: "sandbox.sine",
        about: "0 to 20 and back, in 5 minutes",
        wave: Wave::Sine { low: 0.0, high: 20.0, period: 300.0 },
        queues: &[],
    },
    Metric {
        name: "sandbox.steps",
        about: "2, 8, 20, 8, 2, 0, each for a minute",
        wave: Wave::Steps { levels: &[2.0, 8.0, 20.0, 8.0, 2.0, 0.0], each: 60.0 },
        queues: &[],
    },
    Metric {
        name: "sandbox.sawtooth",
        about: "rises from 0 to 30 in 3 minutes, then falls at once",
        wave: Wave::Sawtooth { low: 0.0, high: 30.0, period: 180.0 },
        queues: &[],
    },
    Metric { name: "sandbox.flat", about: "12, always", wave: Wave::Flat(12.0), queues: &[] },
    Metric { name: "sandbox.zero", about: "0, always", wave: Wave::Flat(0.0), queues: &[] },
    Metric { name: "sandbox.negative", about: "-5, always", wave: Wave::Flat(-5.0), queues: &[] },
    Metric {
        name: "sandbox.gaps",
        about: "7, but every third point is missing",
        wave: Wave::Gaps(7.0),
        queues: &[],
    },
    Metric {
        name: "sandbox.late",
        about: "9, but the newest points are null for 30 seconds",
        wave: Wave::Late { value: 9.0, by: 30 },
        queues: &[],
    },
    Metric {
        name: "sandbox.queue.length",
        about: "0 to 60, by {queue}: orders, mails, images",
        wave: Wave::Sine { low: 0.0, high: 60.0, period: 240.0 },
        queues: &["orders", "mails", "images"],
    },
    Metric {
        name: "sandbox.dial",
        about: "0, until PUT /dial?value=NUMBER says otherwise",
        wave: Wave::Dial,
        queues: &[],
    },
];

/// What Datadog has of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sample {
    Value(f64),
    Null,
    Missing,
}

impl Metric {
    /// The sample at `at`, seen at `now`, in seconds since the epoch. `queue` counts from 0.
    pub(super) fn sample(&self, queue: usize, at: i64, now: i64) -> Sample {
        // What a double holds exactly lasts for 285 million years.
        #[expect(clippy::cast_precision_loss, reason = "seconds since the epoch are small")]
        let (seconds, phase) = (at as f64, queue as f64 / self.queues.len().max(1) as f64);
        match self.wave {
            Wave::Sine { low, high, period } => {
                let turn = (seconds / period + phase) * TAU;
                Sample::Value(low + (high - low) * (1.0 - turn.cos()) / 2.0)
            }
            Wave::Steps { levels, each } => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the epoch is in the past"
                )]
                let step = (seconds / each) as usize;
                Sample::Value(levels[step % levels.len()])
            }
            Wave::Sawtooth { low, high, period } => {
                Sample::Value(low + (high - low) * (seconds / period).fract())
            }
            Wave::Gaps(_) if (at / INTERVAL) % 3 == 0 => Sample::Missing,
            Wave::Late { by, .. } if at > now - by => Sample::Null,
            Wave::Dial => Sample::Value(f64::from_bits(DIAL.load(Ordering::Relaxed))),
            Wave::Flat(value) | Wave::Gaps(value) | Wave::Late { value, .. } => {
                Sample::Value(value)
            }
        }
    }
}

pub(super) fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, queue: usize, at: i64, expected: Sample) {
        let got = find(name).expect("it is in the catalogue").sample(queue, at, 1_000);
        match (got, expected) {
            (Sample::Value(got), Sample::Value(expected)) => {
                assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
            }
            _ => assert_eq!(got, expected),
        }
    }

    #[test]
    fn waves_are_what_the_table_says() {
        check("sandbox.sine", 0, 300, Sample::Value(0.0));
        check("sandbox.sine", 0, 450, Sample::Value(20.0));
        check("sandbox.steps", 0, 130, Sample::Value(20.0));
        check("sandbox.steps", 0, 359, Sample::Value(0.0));
        check("sandbox.sawtooth", 0, 90, Sample::Value(15.0));
        check("sandbox.gaps", 0, 300, Sample::Missing);
        check("sandbox.gaps", 0, 310, Sample::Value(7.0));
        check("sandbox.late", 0, 970, Sample::Value(9.0));
        check("sandbox.late", 0, 980, Sample::Null);
        check("sandbox.queue.length", 0, 240, Sample::Value(0.0));
        check("sandbox.queue.length", 1, 280, Sample::Value(60.0));
    }
}
