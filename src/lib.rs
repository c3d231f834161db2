//! A KEDA external scaler for Datadog.
//!
//! A **trigger** names a query and its credentials. Credentials and a query make a
//! **demand**. A demand, kept fresh, yields **readings**. A reading answers KEDA.
//!
//! ```text
//! KEDA ──► scaler ──► trigger ──► credentials ──► demand ──► refresh ──► source ──► Datadog API
//!             ▲                        │                        │           ├─────► Cluster Agent
//!             │                   kubernetes                    │           └─────► kubernetes: DatadogMetrics
//!             └───────────────── a reading ◄────────────────────┴──► admin: /metrics, /api/status
//! sandbox ──► a Datadog and a Cluster Agent made of waves, and the real server in front of them
//! check ──► the same trigger, credentials and source: once, aloud, without the engine
//! ```
//!
//! The modules are listed in reading order, and a module uses only modules listed after it.

pub mod cli;
pub mod sandbox;
pub mod check;
pub mod serve;
pub mod scaler;
pub mod admin;
pub mod tls;
pub mod trigger;
pub mod credentials;
pub mod refresh;
pub mod source;
pub mod http;
pub mod kubernetes;
pub mod demand;
pub mod metrics;
pub mod words;
pub mod proto;
