//! The `metadata` map of a trigger → `Trigger`. Names, defaults and grammar are those of KEDA's
//! built-in scaler (`pkg/scalers/datadog_scaler.go` and, for the grammar,
//! `pkg/scalers/scalersconfig/typed_config.go`), so that a ScaledObject moves over unchanged.

use std::{collections::HashMap, time::Duration};

use crate::{
    demand::{Query, Window},
    words::{boolean, shorten},
};

use super::{
    Aggregator, PointOffset, Reckoning, Subject, TimeAggregator, Trigger,
    fault::{Fault, MetadataError},
    keys::{Advice, MAX_SHOWN, advice, is_secret, nearest_key, unknown_keys},
    values,
};

/// KEDA's default of `age`, in seconds.
const DEFAULT_AGE: u64 = 90;

impl Trigger {
    /// Understands a metadata map; faults are reported together. With `strict`, what would be
    /// advice is a fault.
    pub fn parse(
        metadata: &HashMap<String, String>,
        strict: bool,
    ) -> Result<(Trigger, Vec<Advice>), MetadataError> {
        let mut reader = Reader { metadata, faults: Vec::new() };
        let trigger = reader.trigger();
        let mut secrets: Vec<&String> = metadata.keys().filter(|key| is_secret(key)).collect();
        secrets.sort_unstable();
        reader.faults.extend(secrets.into_iter().map(|key| Fault::Secret { key: key.clone() }));
        let mut advice = advice(metadata);
        if strict {
            reader.faults.extend(advice.drain(..).map(Fault::Unwanted));
        }
        match trigger {
            Some(trigger) if reader.faults.is_empty() => Ok((trigger, advice)),
            _ => Err(MetadataError { faults: reader.faults }),
        }
    }
}

struct Reader<'a> {
    metadata: &'a HashMap<String, String>,
    faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    /// `None` only with at least one fault; with faults, it may yet be a trigger.
    fn trigger(&mut self) -> Option<Trigger> {
        // KEDA checks every key in either mode.
        let in_agent_mode = self.boolean("useClusterAgentProxy").unwrap_or(false);
        let query = self.query();
        let age = self.count("age").unwrap_or(DEFAULT_AGE);
        let window = Window { age, offset: self.count("timeWindowOffset").unwrap_or(0) };
        let offset = self.point_offset();
        let over_time = self.time_aggregator();
        let over_series = self.series_aggregator();
        let max_age = self.count("maxAge").map(Duration::from_secs);
        let target = self.target();
        let activation = self.activation(in_agent_mode);
        let fill = self.number("metricUnavailableValue");
        let hold = self.count("holdLastValue").map(Duration::from_secs);
        let timeout = self.timeout();
        self.deprecated_type();
        self.auth_mode();

        let subject = if in_agent_mode {
            let namespace = self.required("datadogMetricNamespace");
            let name = self.required("datadogMetricName");
            Subject::DatadogMetric {
                namespace: namespace?.to_owned(),
                name: name?.to_owned(),
                max_age,
            }
        } else {
            if query.is_none() {
                self.missing("query", &["query"]);
            }
            Subject::Query(Query { text: query?.into(), window })
        };
        // There is one value, of which the agent knows the time.
        let reckoning = match subject {
            Subject::Query(_) => Reckoning { offset, over_time, over_series },
            Subject::DatadogMetric { .. } => Reckoning::NEWEST,
        };
        Some(Trigger { subject, reckoning, target, activation, fill, hold, timeout })
    }

    fn query(&mut self) -> Option<&'a str> {
        let query = self.text("query")?;
        // KEDA: `.*\{.*\}.*`, in which the dot is no line break.
        let scoped = |line: &str| line.split_once('{').is_some_and(|(_, rest)| rest.contains('}'));
        if !query.split('\n').any(scoped) {
            let expected = "a Datadog query with a scope in braces, such as `avg:system.load.1{*}`";
            self.invalid("query", query, expected);
        }
        Some(query)
    }

    /// `targetValue` wins over `queryValue`.
    fn target(&mut self) -> f64 {
        let as_metric_source = self.boolean("asMetricSource").unwrap_or(false);
        let key = if self.text("targetValue").is_some() { "targetValue" } else { "queryValue" };
        let faults = self.faults.len();
        let given = self.number(key);
        let is_legible = self.faults.len() == faults;
        match given {
            Some(target) if target >= Trigger::MIN_TARGET => return target,
            // `scalingModifiers` sets the target, and the HPA never sees this one.
            _ if as_metric_source => {}
            // KEDA takes -1 for "not given".
            Some(_) => {
                let value = self.text(key).unwrap_or_default();
                self.invalid(key, value, "at least 0.0005, the smallest target KEDA can express");
            }
            None if is_legible => self.missing(key, &["queryValue", "targetValue"]),
            None => {}
        }
        1.0
    }

    /// Either key in either mode; with both, the one the built-in scaler reads in this mode.
    fn activation(&mut self, in_agent_mode: bool) -> f64 {
        let of_query = self.number("activationQueryValue");
        let of_target = self.number("activationTargetValue");
        let (first, second) =
            if in_agent_mode { (of_target, of_query) } else { (of_query, of_target) };
        first.or(second).unwrap_or(0.0)
    }

    fn point_offset(&mut self) -> PointOffset {
        match self.text("lastAvailablePointOffset") {
            Some("auto") => PointOffset::Auto,
            Some(value) => {
                if let Ok(points) = serde_json::from_str(value) {
                    return PointOffset::Points(points);
                }
                let expected = "a whole number of points, not negative, or `auto`";
                self.invalid("lastAvailablePointOffset", value, expected);
                PointOffset::Points(0)
            }
            None => PointOffset::Points(0),
        }
    }

    fn time_aggregator(&mut self) -> TimeAggregator {
        let Some(value) = self.text("timeAggregator") else { return TimeAggregator::Last };
        if value.eq_ignore_ascii_case("last") {
            return TimeAggregator::Last;
        }
        aggregator(value).map_or_else(
            || {
                self.invalid("timeAggregator", value, "last, average, max, min or sum");
                TimeAggregator::Last
            },
            TimeAggregator::Over,
        )
    }

    fn series_aggregator(&mut self) -> Option<Aggregator> {
        let value = self.text("queryAggregator")?;
        let parts: Option<Vec<Aggregator>> =
            value.split(',').map(|p| aggregator(p.trim())).collect();
        match parts.as_deref() {
            Some([one]) => Some(*one),
            // KEDA takes a list of its two names, and anything but "average" alone for max.
            Some(several)
                if several.iter().all(|a| matches!(a, Aggregator::Average | Aggregator::Max)) =>
            {
                Some(Aggregator::Max)
            }
            _ => {
                self.invalid("queryAggregator", value, "average, max, min or sum");
                None
            }
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let value = self.text("timeout")?;
        let parsed = values::duration(value);
        if parsed.is_none() {
            let expected = "a duration such as `500ms` or `2s`, or a whole number of \
                            milliseconds, not negative";
            self.invalid("timeout", value, expected);
        }
        // KEDA: 0 stands for the global time limit.
        parsed.filter(|timeout| !timeout.is_zero())
    }

    /// Deprecated and without effect since KEDA 2.18, but still checked, even when empty.
    fn deprecated_type(&mut self) {
        let Some(value) = self.metadata.get("type") else { return };
        if !["average", "global"].contains(&&*value.to_lowercase()) {
            let expected = "average or global; it has no effect, leave it out";
            self.invalid("type", value, expected);
        }
    }

    fn auth_mode(&mut self) {
        for key in ["authMode", "authModes"] {
            let Some(value) = self.text(key) else { continue };
            if value.split(',').any(|mode| mode.trim() != "bearer") {
                self.invalid(key, value, "bearer");
            }
        }
    }

    /// Trimmed; an empty value counts as absent.
    fn text(&self, key: &str) -> Option<&'a str> {
        self.metadata.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn required(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.text(key);
        if value.is_none() {
            self.missing(key, &[key]);
        }
        value
    }

    /// A JSON number: `.5`, `+5`, `NaN` and `Inf` are refused, as KEDA does since 2.18.
    fn number(&mut self, key: &'static str) -> Option<f64> {
        let value = self.text(key)?;
        let number = serde_json::from_str(value).ok();
        if number.is_none() {
            self.invalid(key, value, "a number such as `0.5`");
        }
        number
    }

    /// A JSON integer: `60.0`, `+60` and `060` are refused.
    fn count(&mut self, key: &'static str) -> Option<u64> {
        let value = self.text(key)?;
        let count = serde_json::from_str(value).ok();
        if count.is_none() {
            self.invalid(key, value, "a whole number of seconds such as `90`, not negative");
        }
        count
    }

    fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.text(key)?;
        let parsed = boolean(value);
        if parsed.is_none() {
            self.invalid(key, value, "true or false");
        }
        parsed
    }

    fn invalid(&mut self, key: &'static str, value: &str, expected: &'static str) {
        self.faults.push(Fault::Invalid { key, value: shorten(value, MAX_SHOWN), expected });
    }

    /// None of `names`, of which `key` is the first choice.
    fn missing(&mut self, key: &'static str, names: &[&str]) {
        let nearest = unknown_keys(self.metadata)
            .find(|given| nearest_key(given).is_some_and(|nearest| names.contains(&nearest)))
            .map(|given| shorten(given, MAX_SHOWN));
        self.faults.push(Fault::Missing { key, nearest });
    }
}

fn aggregator(name: &str) -> Option<Aggregator> {
    Some(match &*name.to_ascii_lowercase() {
        "average" => Aggregator::Average,
        "max" => Aggregator::Max,
        "min" => Aggregator::Min,
        "sum" => Aggregator::Sum,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trigger::KEYS;

    fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// A sound trigger with these entries added or, where the value is "-", taken away.
    #[track_caller]
    fn parse(entries: &[(&str, &str)]) -> Result<(Trigger, Vec<Advice>), MetadataError> {
        let mut metadata = map(&[("query", "sum:shop.orders{env:prod}"), ("queryValue", "7")]);
        metadata.extend(map(entries));
        metadata.retain(|_, value| value != "-");
        Trigger::parse(&metadata, false)
    }

    #[track_caller]
    fn trigger(entries: &[(&str, &str)]) -> Trigger {
        parse(entries).expect("the metadata is sound").0
    }

    #[track_caller]
    fn reckoning(entries: &[(&str, &str)]) -> Reckoning {
        trigger(entries).reckoning
    }

    #[track_caller]
    fn check_fault(entries: &[(&str, &str)], message: &str) {
        let error = parse(entries).expect_err("the metadata has a fault");
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn defaults_are_kedas() {
        let expected = Trigger {
            subject: Subject::Query(Query {
                text: "sum:shop.orders{env:prod}".into(),
                window: Window { age: 90, offset: 0 },
            }),
            reckoning: Reckoning {
                offset: PointOffset::Points(0),
                over_time: TimeAggregator::Last,
                over_series: None,
            },
            target: 7.0,
            activation: 0.0,
            fill: None,
            hold: None,
            timeout: None,
        };
        assert_eq!(trigger(&[]), expected);
        // Empty is absent.
        let blank = [("age", " "), ("timeout", ""), ("queryAggregator", ""), ("targetValue", "")];
        assert_eq!(trigger(&blank), expected);
    }

    #[test]
    fn the_metric_is_named_as_the_built_in_names_it() {
        for (query, name) in [
            ("sum:shop.orders{env:prod}", "datadog-sum-shop-orders"),
            ("top(abs(sum:a.b{*}), 5, 'mean')", "datadog-top-abs-sum-a-b"),
            ("100*(avg:a/b %{x:y})", "datadog-100*-avg-a-b -"),
        ] {
            assert_eq!(trigger(&[("query", query)]).metric_name(), name);
        }
        let agent = [
            ("useClusterAgentProxy", "true"),
            ("datadogMetricName", "Orders"),
            ("datadogMetricNamespace", "shop"),
        ];
        assert_eq!(trigger(&agent).metric_name(), "datadogmetric@shop:Orders");
    }

    #[test]
    fn numbers_are_json_numbers() {
        assert!((trigger(&[("queryValue", " 2.5e1\n")]).target - 25.0).abs() < f64::EPSILON);
        for odd in ["many", ".5", "+5", "NaN", "Inf", "0x10", "1,5", "null", "1e999", "\"7\""] {
            check_fault(
                &[("queryValue", odd)],
                &format!("`queryValue` is \"{odd}\", but must be a number such as `0.5`"),
            );
        }
        for odd in ["60.0", "+60", "060", "-1", "1e2", "1m"] {
            let message = format!(
                "`age` is \"{odd}\", but must be a whole number of seconds such as `90`, not negative"
            );
            check_fault(&[("age", odd)], &message);
        }
    }

    #[test]
    fn target_value_wins_and_minus_one_is_none() {
        let target = |entries: &[(&str, &str)]| trigger(entries).target;
        assert_eq!(target(&[("targetValue", "3")]).to_string(), "3");
        assert_eq!(target(&[("asMetricSource", "true"), ("queryValue", "-1.0")]).to_string(), "1");
        assert_eq!(target(&[("asMetricSource", "T"), ("queryValue", "-")]).to_string(), "1");
        assert_eq!(target(&[("asMetricSource", "1"), ("queryValue", "5")]).to_string(), "5");
        let missing = "`queryValue` (or `targetValue`) is missing; set it, or \
                       `asMetricSource: \"true\"` if `scalingModifiers` sets the target";
        check_fault(&[("queryValue", "-")], missing);
        check_fault(
            &[("queryValue", "-1")],
            "`queryValue` is \"-1\", but must be at least 0.0005, the smallest target KEDA can \
             express",
        );
        check_fault(
            &[("targetValue", "0.0004")],
            "`targetValue` is \"0.0004\", but must be at least 0.0005, the smallest target KEDA \
             can express",
        );
    }

    #[test]
    fn either_activation_key_works_in_either_mode() {
        let agent = [
            ("useClusterAgentProxy", "t"),
            ("datadogMetricName", "a"),
            ("datadogMetricNamespace", "b"),
        ];
        let activation = |entries: &[(&str, &str)]| trigger(entries).activation.to_string();
        assert_eq!(activation(&[("activationTargetValue", "2")]), "2");
        assert_eq!(
            activation(&[("activationTargetValue", "2"), ("activationQueryValue", "3")]),
            "3"
        );
        let both = [("activationTargetValue", "2"), ("activationQueryValue", "3")];
        assert_eq!(activation(&[&agent[..], &both[..]].concat()), "2");
        assert_eq!(activation(&[&agent[..], &both[1..]].concat()), "3");
    }

    #[test]
    fn aggregators_are_case_insensitive() {
        let over_series = |value| reckoning(&[("queryAggregator", value)]).over_series;
        assert_eq!(over_series("Average"), Some(Aggregator::Average));
        assert_eq!(over_series("SUM"), Some(Aggregator::Sum));
        assert_eq!(over_series("average, max"), Some(Aggregator::Max));
        check_fault(
            &[("queryAggregator", "median"), ("timeAggregator", "p95")],
            "`timeAggregator` is \"p95\", but must be last, average, max, min or sum; also \
             `queryAggregator` is \"median\", but must be average, max, min or sum",
        );
        let over_time = |value| reckoning(&[("timeAggregator", value)]).over_time;
        assert_eq!(over_time("Last"), TimeAggregator::Last);
        assert_eq!(over_time("min"), TimeAggregator::Over(Aggregator::Min));
    }

    #[test]
    fn a_timeout_of_nothing_is_none() {
        let timeout = |value| trigger(&[("timeout", value)]).timeout;
        assert_eq!(timeout("500ms"), Some(Duration::from_millis(500)));
        assert_eq!((timeout("0"), timeout("0s")), (None, None));
        check_fault(
            &[("timeout", "-5s")],
            "`timeout` is \"-5s\", but must be a duration such as `500ms` or `2s`, or a whole \
             number of milliseconds, not negative",
        );
    }

    #[test]
    fn a_query_needs_a_scope() {
        let message = |query: &str| {
            format!(
                "`query` is \"{query}\", but must be a Datadog query with a scope in braces, such \
                 as `avg:system.load.1{{*}}`"
            )
        };
        for query in ["sum:shop.orders", "sum:shop.orders{", "a}b{"] {
            check_fault(&[("query", query)], &message(query));
        }
        // Checked in the other mode as well, as KEDA does.
        let agent = [
            ("useClusterAgentProxy", "true"),
            ("datadogMetricName", "a"),
            ("datadogMetricNamespace", "b"),
        ];
        check_fault(&[&agent[..], &[("query", "a")]].concat(), &message("a"));
        assert!(parse(&[&agent[..], &[("query", "-")]].concat()).is_ok());
    }

    #[test]
    fn type_is_checked_even_when_empty() {
        assert_eq!(trigger(&[("type", "Global")]), trigger(&[]));
        for odd in ["", "invalid", " average"] {
            let message = format!(
                "`type` is \"{odd}\", but must be average or global; it has no effect, leave it out"
            );
            check_fault(&[("type", odd)], &message);
        }
    }

    #[test]
    fn all_faults_are_reported_together() {
        check_fault(
            &[("query", "-"), ("age", "x"), ("queryValue", "-"), ("useClusterAgentProxy", "maybe")],
            "`useClusterAgentProxy` is \"maybe\", but must be true or false; also `age` is \"x\", \
             but must be a whole number of seconds such as `90`, not negative; also `queryValue` (or \
             `targetValue`) is missing; set it, or `asMetricSource: \"true\"` if \
             `scalingModifiers` sets the target; also `query` is missing; set it",
        );
        check_fault(
            &[("useClusterAgentProxy", "true")],
            "`datadogMetricNamespace` is missing; set it; also `datadogMetricName` is missing; set it",
        );
    }

    #[test]
    fn a_near_miss_of_a_missing_key_is_named() {
        check_fault(
            &[("query", "-"), ("Querry", "secret")],
            "`Querry` is not known; did you mean `query`, which is missing?",
        );
        check_fault(
            &[("queryValue", "-"), ("targetValu", "5")],
            "`targetValu` is not known; did you mean `queryValue`, which is missing?",
        );
    }

    #[test]
    fn a_secret_is_refused_without_its_value() {
        check_fault(
            &[("apiKeyFromEnv", "hush")],
            "`apiKeyFromEnv` does not belong into metadata, which others can read; put the keys \
             into a Secret, and refer to it with a TriggerAuthentication (`authenticationRef`)",
        );
        for key in ["apiKey", "appKey", "token", "bearerToken", "appKeyFromEnv"] {
            let error = parse(&[(key, "hush")]).expect_err("it is a secret");
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_a_fault_if_so_wished() {
        let entries = [("query", "a{*}"), ("queryValue", "many"), ("agee", "60")];
        let error = Trigger::parse(&map(&entries), true).expect_err("it has a fault");
        assert_eq!(
            error.to_string(),
            "`queryValue` is \"many\", but must be a number such as `0.5`; also `agee` is not \
             known; did you mean `age`?"
        );
    }

    #[test]
    fn the_rest_is_read() {
        let window = trigger(&[("age", "60"), ("timeWindowOffset", "30")]).subject;
        let Subject::Query(query) = window else { panic!("it is a query") };
        assert_eq!(query.window, Window { age: 60, offset: 30 });
        let reckoning = reckoning(&[("lastAvailablePointOffset", "2")]);
        assert_eq!(reckoning.offset, PointOffset::Points(2));
        let auto = self::reckoning(&[("lastAvailablePointOffset", "auto")]);
        assert_eq!(auto.offset, PointOffset::Auto);
        let trigger = trigger(&[("holdLastValue", "0"), ("metricUnavailableValue", "-1.5")]);
        assert_eq!(trigger.hold, Some(Duration::ZERO));
        assert_eq!(trigger.fill, Some(-1.5));
    }

    proptest! {
        #[test]
        fn any_map_is_a_trigger_or_an_error(
            known in prop::collection::hash_map(
                prop::sample::select(KEYS.to_vec()),
                prop_oneof![any::<String>(), "[0-9a-z.,{}:+-]{0,12}", Just("true".to_owned())],
                0..12,
            ),
            strict in any::<bool>(),
            unknown in prop::collection::hash_map(any::<String>(), any::<String>(), 0..4),
        ) {
            let known = known.into_iter().map(|(key, value)| (key.to_owned(), value));
            let metadata = known.chain(unknown).collect();
            match Trigger::parse(&metadata, strict) {
                Ok((trigger, _)) => {
                    prop_assert!(trigger.target >= Trigger::MIN_TARGET && trigger.target.is_finite());
                    if let Subject::Query(_) = trigger.subject {
                        // The API server takes it for a path segment.
                        prop_assert!(!trigger.metric_name().contains(['/', '%']));
                    }
                }
                Err(error) => prop_assert!(!error.faults.is_empty()),
            }
        }
    }
}
