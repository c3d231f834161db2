//! How a pace is shared out among namespaces. Who needs no more than an equal part gets all it needs,
//! as in max-min fairness. What that leaves gives the others one interval in common, and so more to
//! who asks for more; only who is much larger than the smallest of them has a longer one. Pure.

use std::time::Duration;

/// What one of those who share gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    /// How often each of its demands is read.
    pub(super) interval: Duration,
    /// Requests a round that it may have; what is beyond does not fit.
    pub(super) most: f64,
}

/// Who is more than so many times as large as the smallest of those that are stretched, stretches
/// further: so nobody has less than half of an equal part because others ask for much.
const LARGE: f64 = 2.0;

/// `costs` are the requests that a round of each takes, `pace` the requests a second for all. Who
/// needs no more than an equal part of the pace is read each `refresh`. The others have one interval
/// in common, but for those that are much larger than the smallest of them.
pub(super) fn share_out(
    pace: f64,
    costs: &[f64],
    refresh: Duration,
    max_round: Duration,
) -> Vec<Part> {
    let refresh_seconds = refresh.as_secs_f64();
    let longest = max_round.max(refresh);
    let level = level(pace, costs.iter().map(|cost| cost / refresh_seconds).collect());
    let is_stretched = |cost: f64| cost / refresh_seconds > level;
    let stretched: Vec<f64> = costs.iter().copied().filter(|c| is_stretched(*c)).collect();
    let smallest = stretched.iter().copied().fold(f64::INFINITY, f64::min);
    let factor = |cost: f64| (cost / (LARGE * smallest)).max(1.0);
    #[expect(clippy::cast_precision_loss, reason = "there are not so many namespaces")]
    let rate = level * stretched.len() as f64;
    let common = stretched.iter().map(|cost| cost / factor(*cost)).sum::<f64>() / rate;
    let part = |cost: &f64| {
        if !is_stretched(*cost) {
            return Part { interval: refresh, most: f64::INFINITY };
        }
        let seconds = common * factor(*cost);
        let interval = Duration::try_from_secs_f64(seconds).unwrap_or(longest);
        let most = if interval > longest || !seconds.is_finite() {
            cost * longest.as_secs_f64() / seconds
        } else {
            f64::INFINITY
        };
        Part { interval: interval.clamp(refresh, longest), most }
    };
    costs.iter().map(part).collect()
}

/// Up to which rate everybody's need is met, so that all together take `pace`.
fn level(pace: f64, mut needs: Vec<f64>) -> f64 {
    needs.sort_by(f64::total_cmp);
    let mut left = pace;
    let mut sharers = needs.len();
    for need in needs {
        #[expect(clippy::cast_precision_loss, reason = "there are not so many namespaces")]
        let equal = left / sharers as f64;
        if need > equal {
            return equal;
        }
        left -= need;
        sharers -= 1;
    }
    f64::INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Intervals in seconds, and what fits, at a refresh of 10 s and rounds of 100 s at most.
    #[track_caller]
    fn check(pace: f64, costs: &[f64], expected: &[(u64, f64)]) {
        let parts = share_out(pace, costs, Duration::from_secs(10), Duration::from_secs(100));
        let shown: Vec<(u64, f64)> =
            parts.iter().map(|part| (part.interval.as_secs(), part.most)).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn who_fits_is_read_each_refresh() {
        check(1.0, &[3.0, 5.0], &[(10, f64::INFINITY), (10, f64::INFINITY)]);
    }

    #[test]
    fn the_largest_stretches_first() {
        // 0.1 a second go to the small one, which needs no more, and 0.9 to the large one.
        check(1.0, &[1.0, 18.0], &[(10, f64::INFINITY), (20, f64::INFINITY)]);
        // Those of about one size have one interval, the large one a longer one.
        check(
            1.0,
            &[20.0, 10.0, 10.0, 80.0],
            &[
                (60, f64::INFINITY),
                (60, f64::INFINITY),
                (60, f64::INFINITY),
                (100, 80.0 * 100.0 / 240.0),
            ],
        );
    }

    #[test]
    fn nobody_loses_half_of_an_equal_part_to_the_many_of_another() {
        for costs in [[4.0, 1_000.0], [4.0, 5.0]] {
            let longest = Duration::from_mins(4);
            let parts = share_out(0.35, &costs, Duration::from_secs(15), longest);
            let rate = costs[0].min(parts[0].most) / parts[0].interval.as_secs_f64();
            assert!(rate >= 0.35 / 4.0, "{costs:?}: {rate}");
        }
    }

    #[test]
    fn all_together_take_the_pace() {
        for costs in [&[3.0, 40.0, 41.0][..], &[1.0, 1.0, 90.0], &[9.0; 7]] {
            let longest = Duration::from_hours(1);
            let parts = share_out(1.0, costs, Duration::from_secs(10), longest);
            let rates =
                costs.iter().zip(parts).map(|(cost, part)| cost / part.interval.as_secs_f64());
            assert!((rates.sum::<f64>() - 1.0).abs() < 0.01);
        }
    }

    #[test]
    fn beyond_the_longest_round_it_does_not_fit() {
        check(1.0, &[60.0, 60.0], &[(100, 50.0), (100, 50.0)]);
        check(1.0, &[1.0, 1_000.0], &[(10, f64::INFINITY), (100, 90.0)]);
        check(0.0, &[1.0], &[(100, 0.0)]);
        check(1.0, &[], &[]);
    }
}
