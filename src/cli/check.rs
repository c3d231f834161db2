//! The flags of `check`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, ValueEnum};

use super::{
    ClusterAgent, Environment, Grants, Reach, Rules, UsageError,
    values::{a_second_or_more, entry, forward, host_and_port, namespace},
};
use crate::{
    check::{self, Ask, Follow, Live, Output, Tls, Triggers},
    http::Forward,
    kubernetes::{self, Access, Kind},
};

pub(super) const HELP: &str = "\
Examples:
  keda-datadog-scaler check -f scaledobject.yaml
  keda-datadog-scaler check -n shop checkout
  kubectl get scaledobject shop -o yaml | keda-datadog-scaler check -f -
  keda-datadog-scaler check -f scaledobject.yaml --through 127.0.0.1:9090 --watch
  keda-datadog-scaler check --through 127.0.0.1:9090
  keda-datadog-scaler check -f scaledobjects.yaml --compare-batch
  keda-datadog-scaler check -n shop checkout \\
      --cluster-agent-forward dd-metrics-api.datadog.svc:8443=127.0.0.1:8443
  keda-datadog-scaler check --metadata 'query=avg:system.load.1{*}' --metadata queryValue=5

Keys come from DD_API_KEY, DD_APP_KEY and DD_SITE, or --credentials-dir, a Cluster Agent and its
token from --cluster-agent-url and --cluster-agent-token-file; with -n from the
`authenticationRef` of the trigger, if it has one.
Exit code: 0 fine, 1 an error, a warning or a difference, 2 a command line that is not understood,
a file or an object that cannot be read, or no such trigger.";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("triggers").args(["filename", "metadata", "object"])))]
#[command(group(ArgGroup::new("subject").required(true).multiple(true).args(["filename", "metadata", "object", "through"])))]
pub struct Check {
    /// File with ScaledObjects or ScaledJobs, YAML or JSON; `-` is the standard input; repeatable
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,

    /// A trigger without a file: one entry of its metadata; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = entry)]
    metadata: Vec<(String, String)>,

    /// A ScaledObject in Kubernetes or, if there is none of this name, a ScaledJob; or which of both:
    /// `scaledobject/NAME`, `scaledjob/NAME`
    #[arg(value_name = "NAME", value_parser = object_name, requires = "namespace")]
    object: Option<ObjectName>,

    /// Namespace of that object, to tell where its `authenticationRef`s find their keys as well, and
    /// to read Datadog with these. Kubernetes is reached as `KUBECONFIG` or `~/.kube/config` says;
    /// in a pod, as its service account
    #[arg(short, long, value_name = "NAMESPACE", value_parser = namespace, requires = "object", conflicts_with_all = ["filename", "metadata"])]
    namespace: Option<String>,

    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME", requires = "object")]
    context: Option<String>,

    /// Only triggers with this index in their object, or with this name
    #[arg(long, value_name = "INDEX|NAME", requires = "triggers")]
    trigger: Option<String>,

    /// Replicas that there are, to tell what the HPA would ask for
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: u32,

    /// How to print what was found
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,

    /// Do not ask Datadog, or the Cluster Agent: tell what can be told without
    #[arg(long, conflicts_with = "through")]
    offline: bool,

    /// Play KEDA against the scaler that runs at this address, in place of asking Datadog; without
    /// triggers, ask only whether it serves
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    through: Option<String>,

    /// Read the queries together, as the server does, and each alone, and tell what differs, in place
    /// of explaining each trigger: one request for each query, and one for each batch of them
    #[arg(long, conflicts_with_all = ["offline", "through", "watch", "object"])]
    compare_batch: bool,

    /// Go on: poll as KEDA does, and follow StreamIsActive beside it, until Ctrl-C
    #[arg(long, requires_all = ["through", "triggers"])]
    watch: bool,

    /// How often to poll with `--watch` [default: `pollingInterval` of the object]
    #[arg(long, value_name = "DURATION", requires = "watch", value_parser = a_second_or_more)]
    interval: Option<Duration>,

    /// File with a CA certificate (PEM) for `--through`, as `caCert` of a TriggerAuthentication;
    /// turns TLS on, as `enableTLS` in the metadata does
    #[arg(long, value_name = "FILE", requires = "through")]
    ca_cert: Option<PathBuf>,

    /// File with a client certificate (PEM), as `tlsClientCert`
    #[arg(long, value_name = "FILE", requires_all = ["through", "tls_client_key"])]
    tls_client_cert: Option<PathBuf>,

    /// File with its key (PEM), as `tlsClientKey`
    #[arg(long, value_name = "FILE", requires_all = ["through", "tls_client_cert"])]
    tls_client_key: Option<PathBuf>,

    /// Name on the scaler's certificate, if that is not the host of `--through`
    #[arg(long, value_name = "NAME", requires = "through")]
    server_name: Option<String>,

    /// Where to reach a Cluster Agent from outside of Kubernetes, such as at a `kubectl port-forward`;
    /// its certificate and its token are those of its own address; repeatable
    #[arg(long, value_name = "AGENT=ADDRESS", value_parser = forward, conflicts_with_all = ["offline", "through"])]
    cluster_agent_forward: Vec<Forward>,

    #[command(flatten)]
    cluster_agent: ClusterAgent,

    #[command(flatten)]
    reach: Reach,

    #[command(flatten)]
    grants: Grants,

    #[command(flatten)]
    rules: Rules,
}

/// Of an object in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ObjectName {
    kind: Option<Kind>,
    name: String,
}

/// As kubectl spells it: `checkout`, `scaledobject/checkout`, `scaledjobs.keda.sh/mails`.
fn object_name(text: &str) -> Result<ObjectName, String> {
    let (kind, name) = match text.split_once('/') {
        None => (None, text),
        Some((kind, name)) => {
            let kind = match kind.to_ascii_lowercase().trim_end_matches(".keda.sh") {
                "scaledobject" | "scaledobjects" | "so" => Kind::ScaledObject,
                "scaledjob" | "scaledjobs" | "sj" => Kind::ScaledJob,
                _ => return Err("must be of a ScaledObject or ScaledJob".to_owned()),
            };
            (Some(kind), name)
        }
    };
    let is_of_name =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(is_of_name) {
        return Err("must be a name such as `checkout` or `scaledjob/checkout`".to_owned());
    }
    Ok(ObjectName { kind, name: name.to_owned() })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    Text,
    Json,
}

impl Check {
    pub fn config(&self, environment: Environment) -> Result<check::Config, UsageError> {
        let live = self.live(&environment);
        let ask = match &self.through {
            Some(address) => Ask::Scaler {
                address: address.clone(),
                tls: Tls {
                    ca: self.ca_cert.clone(),
                    client: self.tls_client_cert.clone().zip(self.tls_client_key.clone()),
                    server_name: self.server_name.clone(),
                },
                follow: self.watch.then_some(Follow { interval: self.interval }),
            },
            None if self.offline => Ask::Nobody,
            None => Ask::Datadog {
                is_in_pod: self.is_in_pod(&environment),
                credentials: Box::new(
                    self.cluster_agent.complete(self.reach.credentials(environment)?),
                ),
                http: self.reach.http(),
                forwards: self.cluster_agent_forward.clone(),
                compares: self.compare_batch,
            },
        };
        let triggers = if let Some(live) = live {
            Triggers::Live(live)
        } else if self.filename.is_empty() && self.metadata.is_empty() {
            Triggers::None
        } else if self.filename.is_empty() {
            let mut metadata = BTreeMap::new();
            for (key, value) in &self.metadata {
                if metadata.insert(key.clone(), value.clone()).is_some() {
                    return Err(UsageError::TwiceInMetadata { key: key.clone() });
                }
            }
            Triggers::Metadata(metadata)
        } else {
            Triggers::Files(self.filename.clone())
        };
        let Rules { refresh, hold, patience, batch_queries, strict_metadata } = self.rules;
        Ok(check::Config {
            triggers,
            only: self.trigger.clone(),
            replicas: self.replicas,
            output: match self.output {
                OutputFormat::Text => Output::Text { width: width() },
                OutputFormat::Json => Output::Json,
            },
            server: check::Server {
                refresh,
                hold,
                patience,
                max_age: self.cluster_agent.cluster_agent_max_age,
                batch_queries,
                strict_metadata,
            },
            agent_namespaces: self.cluster_agent.cluster_agent_namespaces.clone(),
            agent_source: self.cluster_agent.source(),
            ask,
        })
    }

    fn live(&self, environment: &Environment) -> Option<Live> {
        let (ObjectName { kind, name }, namespace) =
            self.object.clone().zip(self.namespace.clone())?;
        Some(Live {
            access: if self.is_in_pod(environment) {
                Access::Pod
            } else {
                Access::Kubeconfig { context: self.context.clone() }
            },
            namespace,
            kind,
            name,
            rules: self.cluster_agent.rules(self.grants.rules(environment, true, self.rules.hold)),
            knows_own: self.grants.own_account_namespaces.is_some(),
        })
    }

    /// One of the Kubernetes that is meant.
    fn is_in_pod(&self, environment: &Environment) -> bool {
        self.context.is_none() && !environment.has_kubeconfig && kubernetes::is_in_pod()
    }
}

/// Of the terminal; in a pipe, what every terminal has.
fn width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout())
        .map_or(80, |(terminal_size::Width(columns), _)| columns.into())
}

#[cfg(test)]
mod tests {
    use clap::{Parser as _, error::ErrorKind};

    use super::*;
    use crate::cli::{Cli, Command};

    #[track_caller]
    fn config(arguments: &[&str]) -> Result<check::Config, UsageError> {
        let arguments = [&["keda-datadog-scaler", "check", "--offline"], arguments].concat();
        let Command::Check(check) = Cli::parse_from(arguments).command else {
            panic!("it is `check`")
        };
        check.config(Environment::read(|_| None))
    }

    #[test]
    fn what_is_given_arrives() {
        let flags = ["-f", "a.yaml", "-f", "-", "--trigger", "b", "--replicas", "7"];
        let rules = ["--refresh", "20s", "--hold", "2m", "--patience", "1s", "--strict-metadata"];
        let batch = ["--batch-queries", "9"];
        let config = config(&[&flags[..], &rules, &batch].concat()).unwrap();
        let Triggers::Files(files) = config.triggers else { panic!("they are files") };
        assert_eq!(files, [PathBuf::from("a.yaml"), PathBuf::from("-")]);
        assert_eq!((config.only.as_deref(), config.replicas), (Some("b"), 7));
        let check::Server { refresh, hold, patience, batch_queries, strict_metadata, .. } =
            config.server;
        let seconds = [refresh, hold, patience].map(|duration| duration.as_secs());
        assert_eq!((seconds, batch_queries, strict_metadata), ([20, 120, 1], 9, true));
        assert!(matches!(config.ask, Ask::Nobody));
    }

    #[test]
    fn an_agent_of_the_shell_is_as_the_servers() {
        let parse = |flags: &[&str]| {
            let command = ["keda-datadog-scaler", "check", "-f", "a.yaml"];
            Cli::try_parse_from([&command, flags].concat())
        };
        let agent = ["--cluster-agent-url", "https://a:1", "--cluster-agent-max-age", "7m"];
        let forward = ["--cluster-agent-forward", "dd.datadog.svc:8443=localhost:18443"];
        let shared = ["--cluster-agent-namespaces", "shared-*"];
        let command = parse(&[&agent[..], &forward, &shared].concat()).unwrap().command;
        let Command::Check(check) = command else { panic!("it is `check`") };
        let config = check.config(Environment::read(|_| None)).unwrap();
        assert_eq!(config.server.max_age, Duration::from_mins(7));
        assert!(config.agent_namespaces[0].matches("shared-one"));
        let Ask::Datadog { credentials, forwards, .. } = config.ask else { panic!("it is asked") };
        assert_eq!(credentials.agent.unwrap().url.as_str(), "https://a:1/");
        let to = "127.0.0.1:18443".parse().unwrap();
        assert_eq!(forwards, [Forward { host: "dd.datadog.svc".to_owned(), port: 8443, to }]);
        for flags in [&["--offline"][..], &["--through", "a:1"]] {
            let error = parse(&[&forward[..], flags].concat()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{flags:?}");
        }
    }

    #[test]
    fn it_is_datadog_that_is_asked_twice() {
        let parse = |flags: &[&str]| {
            let command = ["keda-datadog-scaler", "check", "-f", "a.yaml", "--compare-batch"];
            Cli::try_parse_from([&command, flags].concat())
        };
        let Command::Check(check) = parse(&[]).unwrap().command else { panic!("it is `check`") };
        let config = check.config(Environment::read(|_| None)).unwrap();
        assert!(matches!(config.ask, Ask::Datadog { compares: true, .. }));
        let through = ["--through", "a:1"];
        for flags in [&["--offline"][..], &through, &[&through[..], &["--watch"]].concat()] {
            assert_eq!(parse(flags).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{flags:?}");
        }
    }

    #[test]
    fn an_object_of_kubernetes_has_the_rules_of_the_server() {
        let live = |arguments: &[&str]| {
            let object = ["-n", "shop", "scaledjob/mails"];
            match config(&[&object, arguments].concat()).unwrap().triggers {
                Triggers::Live(live) => live,
                other => panic!("{other:?}"),
            }
        };
        let plain = live(&[]);
        assert_eq!((&*plain.namespace, &*plain.name), ("shop", "mails"));
        assert_eq!((plain.kind, plain.knows_own), (Some(Kind::ScaledJob), false));
        assert_eq!(&*plain.rules.keda_namespace, "keda");
        assert!(plain.rules.allow_own("shop").is_err());
        let sites = ["--allow-site", "*.example.com", "--keda-namespace", "scaling"];
        let own = ["--own-account-namespaces", "shop", "--context", "prod"];
        let given = live(&[&sites[..], &own].concat());
        assert!(given.rules.sites[0].matches("dd.example.com"));
        assert_eq!(&*given.rules.keda_namespace, "scaling");
        assert!(given.knows_own && given.rules.allow_own("shop").is_ok());
        assert_eq!(given.access, Access::Kubeconfig { context: Some("prod".to_owned()) });
    }

    #[test]
    fn an_object_is_named_as_kubectl_names_it() {
        for (text, kind, name) in [
            ("checkout", None, "checkout"),
            ("scaledobject/checkout", Some(Kind::ScaledObject), "checkout"),
            ("ScaledObjects.keda.sh/a.b", Some(Kind::ScaledObject), "a.b"),
            ("so/a", Some(Kind::ScaledObject), "a"),
            ("scaledjob.keda.sh/a", Some(Kind::ScaledJob), "a"),
            ("sj/a", Some(Kind::ScaledJob), "a"),
        ] {
            assert_eq!(object_name(text), Ok(ObjectName { kind, name: name.to_owned() }));
        }
        for odd in ["", "Checkout", "so/", "secret/a", "so/a/b", "a b", "a?", &"a".repeat(254)] {
            assert!(object_name(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn one_key_has_one_value() {
        let twice = ["--metadata", "query=a", "--metadata", "query=b"];
        let error = config(&twice).unwrap_err().to_string();
        assert_eq!(error, "`--metadata` gives `query` twice; leave one of them out");
    }
}
