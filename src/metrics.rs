//! Every Prometheus family on one page.

use std::time::Duration;

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
    demands: Gauge,
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
            demands: Gauge::default(),
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
            "Time from sending a request to the Datadog API to having its answer",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register(
            "demands",
            "Queries that are known, refreshed or idle",
            self.demands.clone(),
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

    pub fn set_demands(&self, known: usize) {
        self.demands.set(i64::try_from(known).unwrap_or(i64::MAX));
    }

    /// The OpenMetrics text format, version 1.0.0.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a string takes any text");
        text
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
        let page = metrics.encode();
        for line in [
            r#"keda_datadog_scaler_rpcs_total{method="GetMetrics",code="OK"} 1"#,
            r#"keda_datadog_scaler_rpc_duration_seconds_count{method="GetMetrics"} 1"#,
            r#"keda_datadog_scaler_open_streams{method="StreamIsActive"} 1"#,
            r#"keda_datadog_scaler_datadog_requests_total{outcome="timed_out"} 1"#,
            "keda_datadog_scaler_datadog_request_duration_seconds_count 1",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
