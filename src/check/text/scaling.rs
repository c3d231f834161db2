//! What follows from a value.

use super::{MAX_TEXT, Page, number};
use crate::{
    check::report::{Examined, Jobs, MetricType, Outcome, Replicas},
    words::shorten,
};

impl Page {
    pub(super) fn replicas(&mut self, replicas: &Replicas, examined: &Examined) {
        let Some(Outcome::Answered { value, active, target }) = &examined.outcome else { return };
        // Nothing below 0 is sent.
        let (value, target) = (number(value.max(0.0)), number(*target));
        let Replicas { current, min, max, wanted, .. } = replicas;
        if *current == 0 {
            self.row("wanted", &format!("{wanted}, by KEDA; the HPA does nothing at 0"));
        } else {
            let by_value = format!("{current} × {value} / {target}");
            for (metric_type, count, how) in [
                (
                    MetricType::AverageValue,
                    replicas.by_average_value,
                    format!("{value} / {target}"),
                ),
                (MetricType::Value, replicas.by_value, by_value),
            ] {
                let mark = if metric_type == replicas.metric_type { " (this trigger)" } else { "" };
                self.row(&metric_type.to_string(), &format!("{count}{mark}: {how}"));
            }
            self.row(
                "wanted",
                &format!(
                    "{wanted}, from {current}, between {min} and {max}; rounded up, but nothing \
                     changes within a tenth"
                ),
            );
        }
        match (active, replicas.idle) {
            (false, Some(idle)) if *current > 0 => self.row(
                "not active",
                &format!("KEDA goes to {idle} after `cooldownPeriod`, if no trigger is active"),
            ),
            (false, None) => self.row("not active", "but `minReplicaCount` keeps replicas"),
            _ => {}
        }
    }

    pub(super) fn jobs(&mut self, jobs: &Jobs, examined: &Examined) {
        let Some(Outcome::Answered { value, active, target }) = &examined.outcome else { return };
        let Jobs { wanted, min, max, strategy } = jobs;
        if *active {
            let (value, target) = (number(value.max(0.0)), number(*target));
            let beyond =
                if *min > 0 { format!(" beyond the {min} it keeps") } else { String::new() };
            let how = format!("{wanted}: {value} / {target}, rounded up, at most {max}{beyond}");
            self.row("wanted", &how);
            let strategy = shorten(strategy, MAX_TEXT);
            self.row(
                "started",
                &format!("by `scalingStrategy` {strategy}, which counts those there are"),
            );
        } else {
            self.row("wanted", &format!("{wanted}, since it is not active; KEDA keeps {min}"));
        }
    }
}
