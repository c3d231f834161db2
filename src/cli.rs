//! Every flag and environment name, turned into each room's `Config`. The only file that knows
//! them.

use std::{
    ffi::OsString,
    io::IsTerminal as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    credentials::{self, Given, Origin, Pattern},
    http,
    kubernetes::{self, Access},
    scaler, serve,
    words::boolean,
};

mod sandbox;
mod check;
mod cluster_agent;
mod engine;
mod tls;
mod values;

pub use check::Check;
pub use cluster_agent::ClusterAgent;
pub use engine::{Engine, Rules};
pub use sandbox::Sandbox;
pub use tls::Tls;
use values::{address, base_url, duration, namespace, positive};

/// A KEDA external scaler for Datadog: any number of triggers from few requests
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer KEDA
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Explain triggers, point by point, or play KEDA against a running scaler
    #[command(after_help = check::HELP)]
    Check(Check),
    /// Try it: a simulated Datadog and Cluster Agent, and the real server in front of them, on this
    /// machine only
    #[command(after_help = sandbox::help())]
    Sandbox(Sandbox),
}

const SERVE_HELP: &str = "\
Environment:
  DD_API_KEY   the server's own Datadog keys; they have no flag, since others
  DD_APP_KEY   can read the command line of a process. An access token (ddpat_,
               ddsat_) goes into DD_APP_KEY, without an API key.
  DD_SITE      the site of these keys [default: datadoghq.com]
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
               the proxy to reach Datadog through
  KEDA_CLUSTER_OBJECT_NAMESPACE, KEDA_RESTRICT_SECRET_ACCESS
               as KEDA's operator has them: another name of `--keda-namespace`,
               and whether Secrets are read in that namespace only
  RUST_LOG     which logs to write [default: info]";

#[derive(Debug, Args)]
pub struct Serve {
    /// Address for KEDA (gRPC) [default: [::]:9090, or 0.0.0.0:9090 without IPv6]
    #[arg(long, env = "SCALER_LISTEN", value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,

    /// Address for health and metrics (HTTP) [default: [::]:8080, or 0.0.0.0:8080 without IPv6]
    #[arg(long, env = "SCALER_ADMIN_LISTEN", value_name = "ADDRESS", value_parser = address)]
    admin_listen: Option<SocketAddr>,

    /// Address for the status (HTTP), which tells everybody who reaches it what all tenants query;
    /// `kubectl port-forward` reaches the default
    #[arg(long, env = "SCALER_STATUS_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8081", value_parser = address)]
    status_listen: SocketAddr,

    #[command(flatten)]
    tls: Tls,

    #[command(flatten)]
    reach: Reach,

    #[command(flatten)]
    tenants: Tenants,

    #[command(flatten)]
    cluster_agent: ClusterAgent,

    /// How long everything is served on after SIGTERM, not ready [default: 5s, 0s on a terminal]
    #[arg(long, env = "SCALER_DRAIN_DELAY", value_name = "DURATION", value_parser = duration)]
    drain_delay: Option<Duration>,

    #[command(flatten)]
    engine: Engine,

    #[command(flatten)]
    log: Log,
}

/// How to reach Datadog, for `serve` and `check`.
#[derive(Debug, Args)]
pub struct Reach {
    /// Base URL of the Datadog API, in place of `https://api.<site>`; also `DATADOG_HOST`
    #[arg(long, env = "SCALER_DATADOG_URL", value_name = "URL")]
    datadog_url: Option<String>,

    /// Directory with the files `api_key`, `app_key` and, if there is one, `site`; re-read when
    /// they change; wins over `DD_API_KEY`, `DD_APP_KEY` and `DD_SITE`
    #[arg(long, env = "SCALER_CREDENTIALS_DIR", value_name = "DIRECTORY")]
    credentials_dir: Option<PathBuf>,

    /// File with CA certificates (PEM) to trust beside the system's when reaching Datadog
    #[arg(long, env = "SCALER_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// How long one request to Datadog, or to a Cluster Agent, may take
    #[arg(long, env = "SCALER_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = positive)]
    request_timeout: Duration,
}

/// Whose triggers there are, and which keys they may use.
#[derive(Debug, Args)]
struct Tenants {
    /// Whether to verify requests and resolve `authenticationRef`s through Kubernetes; `auto` is on
    /// in a pod with a service account, and off elsewhere; `on` uses a kubeconfig elsewhere
    #[arg(long, env = "SCALER_KUBERNETES", value_name = "WHEN", default_value = "auto")]
    kubernetes: When,

    /// Namespaces whose ScaledObjects are served, separated by commas [default: all]
    #[arg(long, env = "SCALER_NAMESPACES", value_name = "NAMES", value_delimiter = ',', value_parser = namespace)]
    namespaces: Vec<String>,

    #[command(flatten)]
    grants: Grants,
}

/// Which keys a trigger may use, in `check` too.
#[derive(Debug, Args)]
struct Grants {
    /// Where the Secrets of a ClusterTriggerAuthentication are [default: keda]
    #[arg(long, env = "SCALER_KEDA_NAMESPACE", value_name = "NAME", value_parser = namespace)]
    keda_namespace: Option<String>,

    /// Namespaces whose triggers may use the server's own account, separated by commas; `*` stands
    /// for any characters [default: none with Kubernetes, all without]
    #[arg(
        long,
        env = "SCALER_OWN_ACCOUNT_NAMESPACES",
        value_name = "PATTERNS",
        value_delimiter = ','
    )]
    own_account_namespaces: Option<Vec<Pattern>>,

    /// Sites beside Datadog's own that a TriggerAuthentication may send its keys to, separated by
    /// commas; `*` stands for any characters
    #[arg(long, env = "SCALER_ALLOW_SITE", value_name = "PATTERNS", value_delimiter = ',')]
    allow_site: Vec<Pattern>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    On,
    Off,
}

#[derive(Debug, Args)]
pub struct Log {
    /// How logs are written [default: text on a terminal, else json]
    #[arg(long, env = "SCALER_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// What the environment says that is no flag: names of Datadog, KEDA and Kubernetes.
pub struct Environment {
    given: Given,
    datadog_host: Option<String>,
    keda_namespace: Option<String>,
    restricts_secrets: bool,
    has_kubeconfig: bool,
}

/// Something on the command line or in the environment that cannot work: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Without the value, which may hold a password.
    #[error("`{name}` {expected}")]
    DatadogUrl { name: &'static str, expected: String },
    #[error("`--metadata` gives `{key}` twice; leave one of them out")]
    TwiceInMetadata { key: String },
    #[error(
        "`--cluster-agent-source=crd` needs Kubernetes; set `--kubernetes=on`, or another source"
    )]
    NoKubernetes,
}

impl Environment {
    /// `var` is `std::env::var_os`.
    pub fn read(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name| var(name).map(|value| value.to_string_lossy().into_owned());
        let given = Given {
            api_key: text("DD_API_KEY").map(Into::into),
            app_key: text("DD_APP_KEY").map(Into::into),
            site: text("DD_SITE"),
        };
        let given_text = |name| text(name).filter(|value| !value.trim().is_empty());
        let restricts = given_text("KEDA_RESTRICT_SECRET_ACCESS");
        Self {
            given,
            datadog_host: given_text("DATADOG_HOST"),
            keda_namespace: given_text("KEDA_CLUSTER_OBJECT_NAMESPACE"),
            has_kubeconfig: given_text("KUBECONFIG").is_some(),
            // As KEDA's operator: `strconv.ParseBool`, and no word is no.
            restricts_secrets: restricts.and_then(|text| boolean(text.trim())).unwrap_or(false),
        }
    }
}

impl Serve {
    pub fn config(&self, environment: Environment) -> Result<serve::Config, UsageError> {
        let on_terminal = std::io::stderr().is_terminal();
        let default_delay = if on_terminal { Duration::ZERO } else { Duration::from_secs(5) };
        let kubernetes = self.tenants.kubernetes();
        if kubernetes.is_none() && self.cluster_agent.needs_kubernetes() {
            return Err(UsageError::NoKubernetes);
        }
        let Tenants { grants, .. } = &self.tenants;
        let rules = grants.rules(&environment, kubernetes.is_some(), self.engine.rules.hold);
        let credentials = self.reach.credentials(environment)?;
        let is_optional = kubernetes.is_some();
        Ok(serve::Config {
            tls: self.tls.config(),
            limits: serve::Limits::default(),
            credentials: self.cluster_agent.complete(credentials::Config {
                rules,
                is_optional,
                ..credentials
            }),
            kubernetes: kubernetes.map(|config| self.cluster_agent.watching(config)),
            http: self.reach.http(),
            refresh: self.engine.refresh_config(),
            scaler: scaler::Config {
                max_age: self.cluster_agent.cluster_agent_max_age,
                ..self.engine.scaler_config()
            },
            drain_delay: self.drain_delay.unwrap_or(default_delay),
            connection_age: connection_age(),
        })
    }

    pub fn addresses(&self) -> serve::Addresses {
        serve::Addresses {
            grpc: self.listen.unwrap_or_else(|| any_address(9090)),
            admin: self.admin_listen.unwrap_or_else(|| any_address(8080)),
            status: self.status_listen,
        }
    }

    pub fn log_format(&self) -> LogFormat {
        self.log.format()
    }
}

impl Reach {
    fn credentials(&self, environment: Environment) -> Result<credentials::Config, UsageError> {
        let given = match (self.datadog_url.clone(), environment.datadog_host) {
            (Some(url), _) => Some(("--datadog-url", url)),
            (None, Some(host)) => Some(("DATADOG_HOST", host)),
            (None, None) => None,
        };
        let base_url = given.map(|(name, text)| {
            base_url(&text).map_err(|expected| UsageError::DatadogUrl { name, expected })
        });
        let base_url = base_url.transpose()?;
        let origin = match &self.credentials_dir {
            Some(directory) => Origin::Directory(directory.clone()),
            None => Origin::Given(environment.given),
        };
        let rules = credentials::Rules::default();
        Ok(credentials::Config {
            origin,
            base_url,
            rules,
            agent: None,
            agent_ca: None,
            is_optional: false,
        })
    }

    fn http(&self) -> http::Config {
        http::Config {
            request_timeout: self.request_timeout,
            ca_file: self.ca_file.clone(),
            proxy_from_environment: true,
        }
    }
}

impl Tenants {
    fn kubernetes(&self) -> Option<kubernetes::Config> {
        let is_in_pod = kubernetes::is_in_pod();
        let access = match self.kubernetes {
            When::Off => return None,
            When::Auto if !is_in_pod => return None,
            When::Auto | When::On if is_in_pod => Access::Pod,
            When::Auto | When::On => Access::Kubeconfig { context: None },
        };
        let namespaces = self.namespaces.iter().map(|name| (&**name).into()).collect();
        Some(kubernetes::Config { access, namespaces, watches_datadog_metrics: false })
    }
}

impl Grants {
    fn rules(
        &self,
        environment: &Environment,
        has_kubernetes: bool,
        hold: Duration,
    ) -> credentials::Rules {
        let defaults = credentials::Rules::default();
        let own_namespaces = self
            .own_account_namespaces
            .clone()
            .unwrap_or_else(|| if has_kubernetes { Vec::new() } else { defaults.own_namespaces });
        let keda_namespace = self.keda_namespace.as_ref().or(environment.keda_namespace.as_ref());
        credentials::Rules {
            own_namespaces,
            sites: self.allow_site.clone(),
            keda_namespace: keda_namespace
                .map_or_else(|| defaults.keda_namespace.clone(), |it| it.trim().into()),
            restricts_secrets: environment.restricts_secrets,
            hold,
            ..defaults
        }
    }
}

impl Log {
    fn format(&self) -> LogFormat {
        self.log_format.unwrap_or(if std::io::stderr().is_terminal() {
            LogFormat::Text
        } else {
            LogFormat::Json
        })
    }
}

/// 10 minutes ±10 %, drawn once per process: tonic knows no jitter per connection.
fn connection_age() -> Duration {
    Duration::from_mins(10).mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// All of IPv6, which includes IPv4 on Linux; all of IPv4 where IPv6 is off.
fn any_address(port: u16) -> SocketAddr {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    let any =
        if has_ipv6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    (any, port).into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[track_caller]
    fn serve_config(arguments: &[&str], environment: &[(&str, &str)]) -> serve::Config {
        let arguments = [&["keda-datadog-scaler", "serve"], arguments].concat();
        let Command::Serve(serve) = Cli::parse_from(arguments).command else {
            panic!("it is `serve`")
        };
        let environment = Environment::read(|name| {
            let (_, value) = environment.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(value))
        });
        serve.config(environment).unwrap()
    }

    #[test]
    fn datadog_host_is_the_base_url_unless_a_flag_is_given() {
        let host = [("DATADOG_HOST", "https://dd.example.com")];
        let url = |config: serve::Config| config.credentials.base_url.map(|url| url.to_string());
        assert_eq!(url(serve_config(&[], &host)).as_deref(), Some("https://dd.example.com/"));
        let flag = ["--datadog-url", "http://127.0.0.1:1"];
        assert_eq!(url(serve_config(&flag, &host)).as_deref(), Some("http://127.0.0.1:1/"));
        assert_eq!(url(serve_config(&[], &[("DATADOG_HOST", " ")])), None);
    }

    #[test]
    fn a_directory_of_credentials_wins() {
        let config = serve_config(&["--credentials-dir", "/keys"], &[("DD_API_KEY", "a")]);
        assert!(matches!(config.credentials.origin, Origin::Directory(_)));
    }
}
