//! Triggers that ask the Cluster Agent (`useClusterAgentProxy`): what is said of them without it, and
//! what came of asking it once.

use std::sync::Arc;

use super::{
    MAX_SHOWN, Server,
    keys::{Asked, Keys},
    manifest::Selected,
    reading::{Asking, Fetched, Own, fail, judge},
    report::{Evidence, Examined, Level, MetricSeen, Outcome, Request, Step},
};
use crate::{
    credentials::{AgentSource, CredentialsError, Pattern, Rules},
    demand::{Account, Demand, Point, Query, Reading, Trust},
    http::Forward,
    kubernetes::DatadogMetric,
    scaler::{Failure, demand, question_names},
    source::{Source, SourceError, datadog::wall_clock, watched::interpret},
    trigger::{Subject, Trigger, Unanswered},
    words::shorten,
};

/// Seconds by which clocks may differ.
const MAX_AHEAD: i64 = 30;

/// How Cluster Agents are asked from here.
pub(super) struct Agents {
    /// The one that stands for the scaler's own.
    pub(super) own: Own,
    pub(super) forwards: Vec<Forward>,
    /// Whether this is a pod: elsewhere, the name of a Service may lead anywhere.
    pub(super) is_in_pod: bool,
    /// How the scaler reads `DatadogMetric`s.
    pub(super) source: AgentSource,
}

/// A Service, as an agent's address names it.
struct Service<'a> {
    name: &'a str,
    namespace: &'a str,
    port: u16,
}

/// What is told without the agent.
pub(super) fn question(
    selected: &Selected<'_>,
    trigger: &Trigger,
    source: AgentSource,
    asked: Asked,
    examined: &mut Examined,
) {
    let Subject::DatadogMetric { name, .. } = &trigger.subject else { return };
    match question_names(trigger) {
        Err(failure) if asked == Asked::Scaler => {
            examined.find(Level::Warning, Step::Metadata, failure.to_string());
        }
        Err(failure) => fail(examined, Step::Metadata, &failure),
        Ok(()) if asked != Asked::Datadog && name.contains('.') => {
            // A running scaler says by itself what it makes of it.
            let source = if asked == Asked::Scaler { AgentSource::Auto } else { source };
            dotted(trigger, source, examined);
        }
        Ok(()) => {}
    }
    if selected.spec.r#type == "datadog" {
        let (index, metric) = (selected.index, trigger.metric_name());
        let message = format!(
            "once it is moved, the HPA's metric is `s{index}-{metric}`, which the Cluster Agent does \
             not know for its own; the DatadogMetric then needs the annotation \
             `external-metrics.datadoghq.com/always-active: \"true\"`"
        );
        examined.find(Level::Note, Step::Trigger, message);
    }
}

/// The Cluster Agent cannot be asked for it; the scaler's watch would tell of it.
fn dotted(trigger: &Trigger, source: AgentSource, examined: &mut Examined) {
    let Subject::DatadogMetric { name, .. } = &trigger.subject else { return };
    let failure = Failure::DottedName { name: shorten(name, MAX_SHOWN) };
    match source {
        AgentSource::Crd => {}
        AgentSource::Auto => examined.find(Level::Warning, Step::Metadata, failure.to_string()),
        AgentSource::Http => fail(examined, Step::Metadata, &failure),
    }
}

/// Whether the scaler reads the metric with its own token, as far as it is known which namespaces'
/// metrics are for all. Says so if it does not.
pub(super) fn question_namespace(
    selected: &Selected<'_>,
    trigger: &Trigger,
    shared: &[Pattern],
    examined: &mut Examined,
) -> bool {
    let Subject::DatadogMetric { namespace: of, .. } = &trigger.subject else { return true };
    // Where it is applied without one, kubectl decides.
    let Some(namespace) = &selected.manifest.namespace else { return true };
    let rules = Rules { agent_namespaces: shared.to_vec(), ..Rules::default() };
    let Err(error) = rules.allow_metric(namespace, of) else { return true };
    if !shared.is_empty() {
        fail(examined, Step::Credentials, &Failure::Credentials(error));
        return false;
    }
    let message = format!(
        "the DatadogMetric is of another namespace than the trigger; with its own token, the scaler \
         reads it only if its `--cluster-agent-namespaces` have {}",
        of.to_lowercase()
    );
    examined.find(Level::Note, Step::Credentials, message);
    true
}

impl<S: Source> Asking<S> {
    /// Fills in what was asked, what came, and what KEDA would get of it at that instant.
    pub(super) async fn explain_metric(
        &mut self,
        trigger: &Trigger,
        keys: Keys,
        server: &Server,
        examined: &mut Examined,
    ) {
        if let Keys::Unneeded(metric) = &keys {
            return explain_watched(metric.as_ref(), trigger, server, examined);
        }
        let Some((account, keys)) = self.agents.account(keys, examined) else { return };
        let forward = self.agents.forwards.iter().find(|it| it.concerns(account.base_url()));
        let service = Service::of(&account);
        if let (Some(service), None, false) = (&service, forward, self.agents.is_in_pod) {
            return examined.find(Level::Warning, Step::Request, service.forward_it());
        }
        let demand = match demand(trigger, account.clone()) {
            Ok(demand) => demand,
            // It has been told that there is no such name.
            Err(_) if question_names(trigger).is_err() => return,
            Err(_) => return dotted(trigger, self.agents.source, examined),
        };
        let query = demand.query.clone();
        let fetched = self.fetches.get(&self.source, demand).await;
        let request = Request {
            host: account.host(),
            keys,
            through: forward.map(|forward| forward.to.to_string()),
            trust: account.trust().map(vouching),
            took_ms: fetched.took.as_secs_f64() * 1_000.0,
        };
        let reckoning = match (&fetched.result, forward) {
            (Err(SourceError::Unreachable { cause, .. }), Some(forward))
                if cause.contains("refused") =>
            {
                examined.find(Level::Warning, Step::Request, not_forwarded(forward));
                None
            }
            _ => judge(trigger, &fetched, server, examined),
        };
        if let Err(error) = &fetched.result {
            examined.findings_on(error, &query, service.as_ref());
        }
        let metric = see(trigger, &query, &fetched, server, examined);
        examined.evidence = Evidence::ClusterAgent { request, metric, reckoning };
    }
}

/// The same, of what stands in Kubernetes.
fn explain_watched(
    metric: Option<&DatadogMetric>,
    trigger: &Trigger,
    server: &Server,
    examined: &mut Examined,
) {
    let account = Arc::new(Account::of_watch());
    let Ok(Demand { query, .. }) = demand(trigger, account.clone()) else { return };
    let result = interpret(metric, true, &account, &query, wall_clock());
    let fetched = Fetched::at_once(result);
    let reckoning = judge(trigger, &fetched, server, examined);
    if let Err(error) = &fetched.result {
        examined.findings_on(error, &query, None);
    }
    let metric = see(trigger, &query, &fetched, server, examined);
    let request = Request {
        host: account.host(),
        keys: String::new(),
        through: None,
        trust: None,
        took_ms: 0.0,
    };
    examined.evidence = Evidence::ClusterAgent { request, metric, reckoning };
}

/// What there is of the metric, once its age has been questioned.
fn see(
    trigger: &Trigger,
    query: &Query,
    fetched: &Fetched,
    server: &Server,
    examined: &mut Examined,
) -> MetricSeen {
    let reading = fetched.result.as_deref().ok();
    if let Some(reading) = reading {
        question_age(trigger, reading, server, examined);
    }
    MetricSeen::of(trigger, query, reading)
}

impl Agents {
    /// With where its token comes from. Says why there is none.
    fn account(&self, keys: Keys, examined: &mut Examined) -> Option<(Arc<Account>, String)> {
        match (keys, &self.own.account) {
            (Keys::Resolved { account, of }, _) => Some((account, of)),
            (Keys::OfShell, Ok(account)) => Some((account.clone(), self.own.from.clone())),
            // What KEDA would get is known without.
            (Keys::Unneeded(_), _) => None,
            (Keys::None, _) if examined.outcome.is_some() => None,
            (Keys::None, _) => {
                let message = "the Cluster Agent is not asked, since there is no token for it here";
                examined.find(Level::Note, Step::Request, message);
                None
            }
            (Keys::OfShell, Err(CredentialsError::NoAgent)) if self.source == AgentSource::Crd => {
                let message = "with `--cluster-agent-source=crd`, the value stands in Kubernetes; \
                               apply the trigger, and read it there with `-n NAMESPACE NAME`";
                examined.find(Level::Warning, Step::Request, message);
                None
            }
            (Keys::OfShell, Err(CredentialsError::NoAgent)) => {
                let message = "no Cluster Agent is known here; give its address with \
                               `--cluster-agent-url`, and a token with `--cluster-agent-token-file`";
                examined.find(Level::Warning, Step::Request, message);
                None
            }
            (Keys::OfShell, Err(error)) => {
                fail(examined, Step::Request, &Failure::Credentials(error.clone()));
                let message = "`kubectl create token SERVICEACCOUNT --namespace NAMESPACE` prints a \
                               token; write it to a file, and give that with \
                               `--cluster-agent-token-file`";
                examined.find(Level::Note, Step::Request, message);
                None
            }
        }
    }
}

impl<'a> Service<'a> {
    fn of(account: &'a Account) -> Option<Self> {
        let url = account.base_url();
        let mut labels = url.host_str()?.split('.');
        let (name, namespace) = (labels.next()?, labels.next()?);
        if labels.next() != Some("svc") {
            return None;
        }
        Some(Self { name, namespace, port: url.port_or_known_default()? })
    }

    fn forward_it(&self) -> String {
        let Self { name, namespace, port } = self;
        // Others are the administrator's.
        let local = if *port < 1_024 { port + 8_000 } else { *port };
        let ports = if local == *port { port.to_string() } else { format!("{local}:{port}") };
        format!(
            "{name}.{namespace}.svc is a name of Kubernetes, and not looked up elsewhere; run \
             `kubectl port-forward --namespace {namespace} service/{name} {ports}`, and add \
             `--cluster-agent-forward {name}.{namespace}.svc:{port}=127.0.0.1:{local}`"
        )
    }
}

fn not_forwarded(Forward { host, port, to }: &Forward) -> String {
    format!(
        "nobody listens at {to}, so that it is not known here what the scaler gets of {host}:{port}; \
         is `kubectl port-forward` running?"
    )
}

/// A value that is too old is held all the same, as the last good one. One of the future is not
/// found to be.
fn question_age(trigger: &Trigger, reading: &Reading, server: &Server, examined: &mut Examined) {
    let ahead = newest(reading).map_or(0, |point| point.at_ms - reading.window_end_ms) / 1_000;
    if ahead > MAX_AHEAD {
        let message = format!(
            "the value is of a time {ahead} s ahead of this machine's clock; set that right, or that \
             of the agent's node, else a value that is too old is found out as much later"
        );
        examined.find(Level::Warning, Step::Request, message);
    }
    let Some(Outcome::Answered { active, .. }) = examined.outcome else { return };
    let stale = trigger.reckon(reading);
    if let (None, Err(stale @ Unanswered::Stale { age, max_age, .. })) = (trigger.fill, &stale) {
        let hold = trigger.held_for(active, server.refresh, server.hold);
        let left = (*max_age + hold).saturating_sub(*age);
        let message = format!("it is held for {} s more: {stale}", left.as_secs());
        examined.find(Level::Warning, Step::Request, message);
    }
}

impl Examined {
    /// What to type about it.
    fn findings_on(&mut self, error: &SourceError, query: &Query, service: Option<&Service<'_>>) {
        let (namespace, name) = query.metric().unwrap_or_default();
        let message = match (error, service) {
            (SourceError::NotReady { .. } | SourceError::Inactive { .. }, _) => format!(
                "`kubectl annotate datadogmetric {name} --namespace {namespace} \
                 external-metrics.datadoghq.com/always-active=true` adds the annotation"
            ),
            // rustls' name for it.
            (SourceError::Unreachable { cause, .. }, _) if cause.contains("CaUsedAsEndEntity") => {
                "the agent shows the certificate of a CA (`CA:TRUE`), which is none of a server; have \
                 that CA issue one for the agent, with the name of its Service"
                    .to_owned()
            }
            (SourceError::Unreachable { cause, .. }, Some(Service { name, namespace, .. }))
                if cause.contains("lookup") =>
            {
                format!("is there a Service? `kubectl get service {name} --namespace {namespace}`")
            }
            _ => return,
        };
        self.find(Level::Note, Step::Request, message);
    }
}

impl MetricSeen {
    fn of(trigger: &Trigger, query: &Query, reading: Option<&Reading>) -> Self {
        let max_age = match &trigger.subject {
            Subject::DatadogMetric { max_age, .. } => *max_age,
            Subject::Query(_) => None,
        };
        let point = reading.and_then(|it| Some((it, newest(it)?)));
        Self {
            name: query.text.to_string(),
            value: point.map(|(_, point)| point.value),
            at_ms: point.map(|(_, point)| point.at_ms),
            age_seconds: point.map(|(it, point)| (it.window_end_ms - point.at_ms) / 1_000),
            max_age_seconds: max_age.map(|age| age.as_secs()),
        }
    }
}

fn newest(reading: &Reading) -> Option<&Point> {
    reading.series.first()?.points.last()
}

/// Who vouches for its certificate.
fn vouching(trust: &Trust) -> &'static str {
    match trust {
        Trust::System => "system",
        Trust::Authorities(_) | Trust::AuthoritiesFor { .. } => "authorities",
        Trust::Anybody => "anybody",
    }
}
