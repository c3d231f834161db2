//! The service as KEDA meets it: a real client, a real server, a fake Datadog that answers and
//! remembers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::float_cmp, reason = "what is expected is exactly what was scripted")]

mod harness;
mod authority;
mod engine;
mod fake_scaler;
mod fake_kubernetes;
mod fake_agent;

mod conformance;
mod replies;
mod transport;
mod rpc;
mod economy;
mod outage;
mod streams;
mod credentials;
mod kubernetes;
mod authentication;
mod rotation;
mod tenant;
mod cluster_agent;
mod datadog_metrics;
mod shutdown;
mod connections;
mod tls;
mod tls_example;
mod status;
mod binary;
mod cluster;
mod sandbox;
mod sandbox_agent;
mod faults;
mod check;
mod presence;
mod watch;
mod live;
mod reach;
mod check_agent;
mod check_watched;
mod rbac;
mod tidy;
