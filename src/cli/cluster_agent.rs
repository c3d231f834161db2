//! The flags of `serve` and `check` for Cluster Agents: the server's own, and what triggers may ask
//! of it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use url::Url;

use super::values::{agent_url, positive, server_name};
use crate::{
    credentials::{self, AgentConfig, AgentSource, AgentText, Pattern},
    kubernetes,
};

/// Where Kubernetes mounts a pod's own token.
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How often its files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[expect(clippy::struct_field_names, reason = "they are the names of flags")]
#[derive(Debug, Args)]
pub struct ClusterAgent {
    /// Base URL of the server's own Cluster Agent, for triggers without an `authenticationRef`, such
    /// as `https://datadog-cluster-agent-metrics-api.datadog.svc:8443`
    #[arg(long, env = "SCALER_CLUSTER_AGENT_URL", value_name = "URL", value_parser = agent_url)]
    cluster_agent_url: Option<Url>,

    /// File with the token for it, re-read as it changes
    #[arg(long, env = "SCALER_CLUSTER_AGENT_TOKEN_FILE", value_name = "FILE", default_value = TOKEN_FILE)]
    cluster_agent_token_file: PathBuf,

    /// File with the CA certificates (PEM) that alone vouch for Cluster Agents, unless a
    /// TriggerAuthentication has a `datadogCaCert` or `unsafeSsl` [default: those of the system]
    #[arg(long, env = "SCALER_CLUSTER_AGENT_CA", value_name = "FILE")]
    cluster_agent_ca: Option<PathBuf>,

    /// Name on the certificate of the server's own Cluster Agent, if that is not the host of its
    /// URL; needs `--cluster-agent-ca`
    #[arg(
        long,
        env = "SCALER_CLUSTER_AGENT_SERVER_NAME",
        value_name = "NAME",
        value_parser = server_name,
        requires = "cluster_agent_ca",
        conflicts_with = "cluster_agent_unsafe_ssl"
    )]
    cluster_agent_server_name: Option<String>,

    /// Take any certificate of the server's own Cluster Agent: whoever answers there gets the token
    #[arg(
        long,
        env = "SCALER_CLUSTER_AGENT_UNSAFE_SSL",
        value_parser = BoolishValueParser::new(),
        requires = "cluster_agent_url"
    )]
    cluster_agent_unsafe_ssl: bool,

    /// How `DatadogMetric`s are read: as Kubernetes tells them (`crd`), from a Cluster Agent
    /// (`http`), or from one only where Kubernetes does not tell them (`auto`)
    #[arg(
        long,
        env = "SCALER_CLUSTER_AGENT_SOURCE",
        value_name = "SOURCE",
        default_value = "auto"
    )]
    cluster_agent_source: Source,

    /// How old a Cluster Agent's value may be; one that is older is no data; per trigger: `maxAge`
    #[arg(long, env = "SCALER_CLUSTER_AGENT_MAX_AGE", value_name = "DURATION", default_value = "16m", value_parser = positive)]
    pub(super) cluster_agent_max_age: Duration,

    /// Namespaces whose `DatadogMetric`s triggers of other namespaces may read as Kubernetes tells
    /// them, or with the server's own token, separated by commas; `*` stands for any characters
    /// [default: none]
    #[arg(
        long,
        env = "SCALER_CLUSTER_AGENT_NAMESPACES",
        value_name = "PATTERNS",
        value_delimiter = ','
    )]
    pub(super) cluster_agent_namespaces: Vec<Pattern>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    Auto,
    Crd,
    Http,
}

impl ClusterAgent {
    /// Whether only Kubernetes is to tell of `DatadogMetric`s.
    pub(super) fn needs_kubernetes(&self) -> bool {
        self.cluster_agent_source == Source::Crd
    }

    /// The same, with what these flags say.
    pub(super) fn watching(&self, config: kubernetes::Config) -> kubernetes::Config {
        let watches_datadog_metrics = self.cluster_agent_source != Source::Http;
        kubernetes::Config { watches_datadog_metrics, ..config }
    }

    /// The same, with what these flags say.
    pub(super) fn complete(&self, config: credentials::Config) -> credentials::Config {
        let ca = self.cluster_agent_ca.clone().map(AgentText::File);
        let agent = self.cluster_agent_url.clone().map(|url| AgentConfig {
            url,
            token: AgentText::File(self.cluster_agent_token_file.clone()),
            ca: ca.clone(),
            server_name: self.cluster_agent_server_name.as_deref().map(Into::into),
            is_unsafe: self.cluster_agent_unsafe_ssl,
            look_every: LOOK_EVERY,
        });
        let rules = self.rules(config.rules);
        credentials::Config { agent, agent_ca: ca, rules, ..config }
    }

    /// The same, with what these flags say.
    pub(super) fn rules(&self, rules: credentials::Rules) -> credentials::Rules {
        let agent_namespaces = self.cluster_agent_namespaces.clone();
        credentials::Rules { agent_namespaces, agent_source: self.source(), ..rules }
    }

    pub(super) fn source(&self) -> AgentSource {
        match self.cluster_agent_source {
            Source::Auto => AgentSource::Auto,
            Source::Crd => AgentSource::Crd,
            Source::Http => AgentSource::Http,
        }
    }
}
