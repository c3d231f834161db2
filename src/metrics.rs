//! Every Prometheus family on one page.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// Prefix of every name.
const PREFIX: &str = "keda_datadog_scaler";

/// Handles to count with, and the registry they are read from.
pub struct Metrics {
    registry: Registry,
    rpcs: Family<Rpc, Counter>,
    rpc_duration: Family<ByMethod, Histogram>,
    open_streams: Family<ByMethod, Gauge>,
    requests: Family<Request, Counter>,
    request_duration: Histogram,
}

/// What holds when the page is asked for.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    pub organisations: Vec<Organisation>,
    /// How many there are in each state.
    pub demands: Vec<(&'static str, usize)>,
    pub held: usize,
    /// The median and the oldest.
    pub reading_ages: Option<(Duration, Duration)>,
    /// How many `authenticationRef`s, and watches of Kubernetes, there are in each state; empty
    /// without Kubernetes.
    pub credentials: Vec<(&'static str, usize)>,
    pub watches: Vec<(&'static str, usize)>,
}

/// How it stands with one rate limit.
#[derive(Clone, Debug)]
pub struct Organisation {
    pub host: String,
    pub number: usize,
    /// What Datadog says, once it does.
    pub limit: Option<Limit>,
    /// Of what we may send in this period, the part that we have sent.
    pub used_share: f64,
    /// The shortest and the longest.
    pub intervals: Option<(Duration, Duration)>,
}

#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub requests: u64,
    pub remaining: u64,
    pub reset: Duration,
}

/// An RPC of the `ExternalScaler` service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Method {
    IsActive,
    StreamIsActive,
    GetMetricSpec,
    StreamMetricSpec,
    GetMetrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    method: Method,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMethod {
    method: Method,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOrganisation {
    host: String,
    organisation: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IntervalOf {
    host: String,
    organisation: usize,
    bound: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgeOf {
    bound: &'static str,
}

/// Of whole numbers, and of others.
type Whole = Gauge<u64, AtomicU64>;
type Real = Gauge<f64, AtomicU64>;

impl Metrics {
    pub fn new() -> Self {
        // 50 µs to 3.3 s: a warm RPC at the near end, `--patience` at the far one.
        let rpc_histogram: fn() -> Histogram =
            || Histogram::new(exponential_buckets(0.000_05, 4.0, 9));
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            rpcs: Family::default(),
            rpc_duration: Family::new_with_constructor(rpc_histogram),
            open_streams: Family::default(),
            requests: Family::default(),
            request_duration: Histogram::new(exponential_buckets(0.02, 2.0, 11)),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version", version);
        registry.register(
            "rpcs",
            "RPCs that were answered, and streams that ended, by gRPC code",
            self.rpcs.clone(),
        );
        registry.register_with_unit(
            "rpc_duration",
            "Time to answer a unary RPC",
            Unit::Seconds,
            self.rpc_duration.clone(),
        );
        registry.register(
            "open_streams",
            "Streams that are open now; an external-push trigger has one, or two from KEDA 2.21 on",
            self.open_streams.clone(),
        );
        registry.register(
            "datadog_requests",
            "Requests to the Datadog API, by outcome",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "datadog_request_duration",
            "Time from sending a request to Datadog or a Cluster Agent to having its answer",
            Unit::Seconds,
            self.request_duration.clone(),
        );
    }

    /// A unary RPC was answered, with `code` as gRPC spells it (`OK`, `NOT_FOUND`).
    pub fn answered(&self, method: Method, code: &'static str, took: Duration) {
        self.rpcs.get_or_create(&Rpc { method, code }).inc();
        self.rpc_duration.get_or_create(&ByMethod { method }).observe(took.as_secs_f64());
    }

    pub fn stream_opened(&self, method: Method) {
        self.open_streams.get_or_create(&ByMethod { method }).inc();
    }

    pub fn stream_ended(&self, method: Method, code: &'static str) {
        self.open_streams.get_or_create(&ByMethod { method }).dec();
        self.rpcs.get_or_create(&Rpc { method, code }).inc();
    }

    /// A stream was not opened, because the request cannot work.
    pub fn stream_refused(&self, method: Method, code: &'static str) {
        self.rpcs.get_or_create(&Rpc { method, code }).inc();
    }

    /// A request to Datadog ended, as `SourceError::outcome` says or `ok`.
    pub fn requested(&self, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&Request { outcome }).inc();
        self.request_duration.observe(took.as_secs_f64());
    }

    /// The OpenMetrics text format, version 1.0.0.
    pub fn encode(&self, standing: &Standing) -> String {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)
            .and_then(|()| text::encode_registry(&mut text, &standing.registry()))
            .and_then(|()| text::encode_eof(&mut text))
            .expect("a string takes any text");
        text
    }
}

impl Standing {
    /// A new one for each page, so that nothing stays of what is gone.
    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        self.register_organisations(&mut registry);
        for (name, help, counts) in [
            ("demands", "Queries that are known, by what becomes of them", &self.demands),
            ("credentials", "References to TriggerAuthentications, by outcome", &self.credentials),
            ("watches", "Watches of Kubernetes, by whether they tell of changes", &self.watches),
        ] {
            let family = Family::<ByState, Whole>::default();
            for (state, count) in counts {
                family.get_or_create(&ByState { state }).set(*count as u64);
            }
            registry.register(name, help, family);
        }
        let held = Whole::default();
        held.set(self.held as u64);
        registry.register(
            "demands_held",
            "Queries whose newest attempt failed, and that an older reading answers",
            held,
        );
        let ages = Family::<AgeOf, Real>::default();
        if let Some((median, oldest)) = self.reading_ages {
            ages.get_or_create(&AgeOf { bound: "median" }).set(median.as_secs_f64());
            ages.get_or_create(&AgeOf { bound: "oldest" }).set(oldest.as_secs_f64());
        }
        registry.register_with_unit(
            "reading_age",
            "Age of the newest readings of the queries that are read when they fall due",
            Unit::Seconds,
            ages,
        );
        registry
    }

    fn register_organisations(&self, registry: &mut Registry) {
        let limit = Family::<ByOrganisation, Whole>::default();
        let remaining = Family::<ByOrganisation, Whole>::default();
        let reset = Family::<ByOrganisation, Real>::default();
        let used_share = Family::<ByOrganisation, Real>::default();
        let interval = Family::<IntervalOf, Real>::default();
        for Organisation { host, number, limit: said, used_share: used, intervals } in
            &self.organisations
        {
            let labels = ByOrganisation { host: host.clone(), organisation: *number };
            if let Some(said) = said {
                limit.get_or_create(&labels).set(said.requests);
                remaining.get_or_create(&labels).set(said.remaining);
                reset.get_or_create(&labels).set(said.reset.as_secs_f64());
            }
            used_share.get_or_create(&labels).set(*used);
            if let Some((shortest, longest)) = intervals {
                for (bound, duration) in [("shortest", shortest), ("longest", longest)] {
                    let labels = IntervalOf { host: host.clone(), organisation: *number, bound };
                    interval.get_or_create(&labels).set(duration.as_secs_f64());
                }
            }
        }
        registry.register(
            "rate_limit",
            "Requests that Datadog allows an organisation in a period",
            limit,
        );
        registry.register(
            "rate_limit_remaining",
            "Requests that are left of the period, for everybody in the organisation",
            remaining,
        );
        registry.register_with_unit(
            "rate_limit_reset",
            "Time until the next period",
            Unit::Seconds,
            reset,
        );
        registry.register(
            "rate_limit_used_share",
            "The part of what the scaler may send in the period that it has sent",
            used_share,
        );
        registry.register_with_unit(
            "refresh_interval",
            "Time between two readings of a query",
            Unit::Seconds,
            interval,
        );
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_reads_as_documented() {
        let metrics = Metrics::new();
        metrics.answered(Method::GetMetrics, "OK", Duration::from_millis(1));
        metrics.requested("timed_out", Duration::from_secs(10));
        metrics.stream_opened(Method::StreamIsActive);
        let limit = Limit { requests: 1_600, remaining: 1_200, reset: Duration::from_mins(5) };
        let organisation = Organisation {
            host: "api.datadoghq.eu".into(),
            number: 1,
            limit: Some(limit),
            used_share: 0.25,
            intervals: Some((Duration::from_secs(15), Duration::from_mins(1))),
        };
        let standing = Standing {
            organisations: vec![organisation],
            demands: vec![("awake", 3), ("asleep", 0)],
            held: 1,
            reading_ages: Some((Duration::from_millis(7_500), Duration::from_secs(70))),
            credentials: vec![("in_use", 2)],
            watches: vec![("failing", 4)],
        };
        let page = metrics.encode(&standing);
        for line in [
            r#"keda_datadog_scaler_rpcs_total{method="GetMetrics",code="OK"} 1"#,
            r#"keda_datadog_scaler_rpc_duration_seconds_count{method="GetMetrics"} 1"#,
            r#"keda_datadog_scaler_open_streams{method="StreamIsActive"} 1"#,
            r#"keda_datadog_scaler_datadog_requests_total{outcome="timed_out"} 1"#,
            "keda_datadog_scaler_datadog_request_duration_seconds_count 1",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        assert!(page.ends_with("\n# EOF\n") && page.matches("# EOF").count() == 1, "{page}");
        // In no order within a family.
        let mut gauges: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("keda_datadog_scaler_"))
            .skip_while(|line| !line.starts_with("rate_limit"))
            .collect();
        gauges.sort_unstable();
        insta::assert_snapshot!(gauges.join("\n"), @r#"
        credentials{state="in_use"} 2
        demands_held 1
        demands{state="asleep"} 0
        demands{state="awake"} 3
        rate_limit_remaining{host="api.datadoghq.eu",organisation="1"} 1200
        rate_limit_reset_seconds{host="api.datadoghq.eu",organisation="1"} 300.0
        rate_limit_used_share{host="api.datadoghq.eu",organisation="1"} 0.25
        rate_limit{host="api.datadoghq.eu",organisation="1"} 1600
        reading_age_seconds{bound="median"} 7.5
        reading_age_seconds{bound="oldest"} 70.0
        refresh_interval_seconds{host="api.datadoghq.eu",organisation="1",bound="longest"} 60.0
        refresh_interval_seconds{host="api.datadoghq.eu",organisation="1",bound="shortest"} 15.0
        watches{state="failing"} 4
        "#);
    }

    #[test]
    fn what_nobody_knows_is_not_shown() {
        let organisation = Organisation {
            host: "api.datadoghq.eu".into(),
            number: 1,
            limit: None,
            used_share: 0.0,
            intervals: None,
        };
        let standing = Standing { organisations: vec![organisation], ..Standing::default() };
        let page = Metrics::new().encode(&standing);
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.strip_prefix("keda_datadog_scaler_"));
        let gauges: Vec<&str> =
            samples.skip_while(|line| !line.starts_with("rate_limit")).collect();
        insta::assert_snapshot!(gauges.join("\n"), @r#"
        rate_limit_used_share{host="api.datadoghq.eu",organisation="1"} 0.0
        demands_held 0
        "#);
    }
}
