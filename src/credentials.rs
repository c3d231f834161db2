//! Which keys a trigger may use. With Kubernetes, a request is honoured only for a trigger that
//! exists, and an `authenticationRef` is resolved as KEDA would; without one, and without
//! Kubernetes, the server's own account is used, where that is allowed.

use std::{fmt, sync::Arc};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    demand::{Account, Service},
    kubernetes::{
        AuthenticationKind, Claim, ClaimError, Kubernetes, NoWatch, ReadError, Reference, Stored,
        Workload,
    },
};

mod rules;
mod resolver;
mod keyring;
mod resolution;
mod environment;
mod own;
mod own_agent;
mod keys;
mod agent;
mod agent_ca;
mod pattern;

pub use agent_ca::AgentCa;
pub use keyring::CredentialState;
pub use own::{Config, Given, Keeper, Origin, load};
pub use own_agent::{AgentConfig, AgentText};
pub use pattern::Pattern;
pub use resolution::{Gap, Parameter, Provenance, Resolution};
pub use resolver::Resolver;
pub use rules::{AgentSource, Rules};

use resolver::Ring;

/// Answers with the account to use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Credentials {
    rules: Arc<Rules>,
    ring: Arc<Ring>,
    /// The account of the watch, which does not change.
    watched: watch::Receiver<Option<Own>>,
    kubernetes: Option<Kubernetes>,
}

/// What is to be read with an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// A query, from the Datadog API.
    Query,
    /// A `DatadogMetric` of a namespace, from a Cluster Agent.
    Metric { namespace: &'a str },
}

impl Wanted<'_> {
    pub fn service(self) -> Service {
        match self {
            Self::Query => Service::DatadogApi,
            Self::Metric { .. } => Service::ClusterAgent,
        }
    }
}

type Own = Result<Arc<Account>, CredentialsError>;

/// Leave to use an account, which may change.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The trigger as it stands in Kubernetes; `None` without.
    pub trigger: Option<Arc<Stored>>,
    /// `None` until it has been resolved once.
    account: watch::Receiver<Option<Own>>,
}

/// An `authenticationRef`, and where it counts from. As text, what messages call it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authentication {
    /// Whose account it is to make.
    pub service: Service,
    /// The trigger's; that of KEDA, where it makes no difference.
    pub namespace: Arc<str>,
    pub reference: Reference,
    /// Whose environment may be looked into; `None` if that is not needed.
    pub workload: Option<Workload>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    #[error("there are no Datadog keys; set `DD_API_KEY` and `DD_APP_KEY`, or `--credentials-dir`")]
    None,
    #[error(
        "the {missing} is missing; both keys are needed, unless the application key is an access \
         token (`ddpat_`, `ddsat_`)"
    )]
    Half { missing: &'static str },
    #[error("the {which} holds a character that no key has; was something else pasted?")]
    NotAKey { which: &'static str },
    #[error(
        "the site is \"{site}\", but must be one such as `datadoghq.com` or `us5.datadoghq.com`"
    )]
    Site { site: String },
    #[error("the credentials in {path} cannot be read: {cause}")]
    File { path: String, cause: String },
    #[error(
        "the trigger has no `authenticationRef`, and the namespace {namespace} may not use the \
         scaler's own account; refer to a TriggerAuthentication, or have the administrator add the \
         namespace to `--own-account-namespaces`"
    )]
    NotOwn { namespace: Arc<str> },
    #[error(
        "`authenticationRef` is to a \"{kind}\", but must be to a TriggerAuthentication or \
         ClusterTriggerAuthentication"
    )]
    NoSuchKind { kind: String },
    #[error("{authentication} does not exist; create it, or correct `authenticationRef`")]
    NoAuthentication { authentication: String },
    #[error(
        "{authentication} uses `{source_name}`, which this version does not resolve; put the keys \
         into a Secret, and use `secretTargetRef`"
    )]
    Unresolved { authentication: String, source_name: &'static str },
    #[error("{authentication} gives no `{parameter}`; add it, such as to its `secretTargetRef`")]
    NotGiven { authentication: String, parameter: &'static str },
    #[error("{authentication} gives no `{parameter}`: {gap}")]
    Missing { authentication: String, parameter: &'static str, gap: Gap },
    #[error(
        "`{parameter}` of {authentication} holds a character that no key has; was something else \
         pasted?"
    )]
    NoParameterKey { authentication: String, parameter: &'static str },
    /// Without the site, which may be a key that got there by mistake.
    #[error(
        "`datadogSite` of {authentication} is not one of Datadog's sites, such as \
         `us5.datadoghq.com`; correct it, or have the administrator allow it with `--allow-site`"
    )]
    SiteNotAllowed { authentication: String },
    #[error(
        "the trigger has no `authenticationRef`, and the scaler has no Cluster Agent of its own; \
         refer to a TriggerAuthentication with `token`, `datadogNamespace` and \
         `datadogMetricsService`, or have the administrator set `--cluster-agent-url`"
    )]
    NoAgent,
    /// Nor is there a watch.
    #[error("{why}; or refer to a TriggerAuthentication with the `token` for a Cluster Agent")]
    NoWatch { why: NoWatch },
    /// Of the server's own agent.
    #[error("the file {path} for the Cluster Agent cannot be used: {cause}")]
    AgentFile { path: String, cause: String },
    /// Without the value, which may be a token that got there by mistake.
    #[error("`{parameter}` of {authentication} must be {expected}")]
    AgentParameter { authentication: String, parameter: &'static str, expected: &'static str },
    #[error(
        "the DatadogMetric is of the namespace {of}, and triggers of {namespace} may not read it by \
         what the scaler itself may; refer to a TriggerAuthentication with a `token`, or have the \
         administrator add {of} to `--cluster-agent-namespaces`"
    )]
    NotOwnMetric { namespace: Arc<str>, of: Arc<str> },
    #[error("{error}")]
    Claim { error: ClaimError },
    #[error("{error}")]
    Read { error: ReadError },
    #[error("the credentials are still being read from Kubernetes; ask again")]
    Pending,
    #[error("more than {most} `authenticationRef`s are in use, the most the scaler follows")]
    TooMany { most: usize },
}

impl Credentials {
    /// The same, for requests that are verified, and triggers whose credentials come from
    /// Kubernetes: run the `Resolver`.
    pub fn with_kubernetes(self, kubernetes: Kubernetes) -> (Self, Resolver) {
        let Self { rules, ring, .. } = self.clone();
        let resolver = Resolver::new(kubernetes.clone(), rules, ring);
        (Self { kubernetes: Some(kubernetes), ..self }, resolver)
    }

    /// Leave for a request, if it is that of a trigger that may use some account. Waits for
    /// Kubernetes, until `deadline`, only where the trigger is not known.
    pub async fn grant(
        &self,
        claim: &Claim<'_>,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<Grant, CredentialsError> {
        let Some(kubernetes) = &self.kubernetes else {
            return self.grant_own(claim.namespace, None, wanted);
        };
        let trigger = kubernetes.honour(claim, deadline).await;
        let trigger = trigger.map_err(|error| CredentialsError::Claim { error })?;
        self.grant_to(kubernetes, trigger, wanted)
    }

    /// Leave for a trigger as it stands in Kubernetes.
    pub(crate) fn grant_to(
        &self,
        kubernetes: &Kubernetes,
        trigger: Arc<Stored>,
        wanted: Wanted<'_>,
    ) -> Result<Grant, CredentialsError> {
        let namespace = &trigger.object.namespace;
        let reference = trigger.authentication.as_ref();
        let known = reference.and_then(|it| kubernetes.known_authentication(namespace, it));
        let service = wanted.service();
        // One that only says how KEDA reaches the scaler (`caCert` and the like).
        let names = Parameter::names(service);
        let is_keda_s = known.as_ref().is_some_and(|spec| !spec.concerns(names));
        if let Wanted::Metric { namespace: of } = wanted
            && self.reads_by_watch(kubernetes, namespace, of, reference.is_some() && !is_keda_s)?
        {
            return Ok(Grant { trigger: Some(trigger), account: self.watched.clone() });
        }
        let Some(reference) = reference else {
            return self.grant_own(&namespace.clone(), Some(trigger), wanted);
        };
        if is_keda_s && self.rules.allow_own(namespace).is_ok() {
            return self.grant_own(&namespace.clone(), Some(trigger), wanted);
        }
        let needs_workload = known.is_none_or(|spec| spec.needs_workload());
        // One without a namespace is the same for all, unless it looks into their workloads.
        let is_shared =
            reference.kind == AuthenticationKind::ClusterTriggerAuthentication && !needs_workload;
        let namespace = if is_shared { &self.rules.keda_namespace } else { namespace };
        let authentication = Authentication {
            service,
            namespace: namespace.clone(),
            reference: reference.clone(),
            workload: needs_workload.then(|| trigger.object.workload.clone()),
        };
        let account = self.ring.follow(authentication)?;
        Ok(Grant { trigger: Some(trigger), account })
    }

    /// Whether a trigger of `namespace` reads the `DatadogMetric`s of another, or its own, by the
    /// watch.
    fn reads_by_watch(
        &self,
        kubernetes: &Kubernetes,
        namespace: &str,
        of: &str,
        has_token: bool,
    ) -> Result<bool, CredentialsError> {
        let of = of.to_lowercase();
        let may = self.rules.may_watch(namespace, &of, has_token)?;
        let insists = self.rules.agent_source == AgentSource::Crd;
        Ok(may && (insists || kubernetes.tells_datadog_metrics(&of).is_ok()))
    }

    fn grant_own(
        &self,
        namespace: &str,
        trigger: Option<Arc<Stored>>,
        wanted: Wanted<'_>,
    ) -> Result<Grant, CredentialsError> {
        let account = match wanted {
            Wanted::Query => &self.ring.own,
            Wanted::Metric { namespace: of } => {
                self.rules.allow_metric(namespace, of)?;
                self.question_agent(of)?;
                &self.ring.own_agent
            }
        };
        self.rules.allow_own(namespace)?;
        Ok(Grant { trigger, account: account.clone() })
    }

    /// That there is a Cluster Agent to ask; where there is none, the watch would do.
    fn question_agent(&self, of: &str) -> Result<(), CredentialsError> {
        if !matches!(&*self.ring.own_agent.borrow(), Some(Err(CredentialsError::NoAgent))) {
            return Ok(());
        }
        if let Some(kubernetes) = &self.kubernetes
            && self.rules.agent_source == AgentSource::Auto
            && let Err(why) = kubernetes.tells_datadog_metrics(&of.to_lowercase())
        {
            return Err(CredentialsError::NoWatch { why });
        }
        Err(CredentialsError::NoAgent)
    }

    /// How many `authenticationRef`s there are in each state; `None` without Kubernetes.
    pub fn states(&self) -> Option<Vec<(CredentialState, usize)>> {
        self.kubernetes.as_ref().map(|_| self.ring.states())
    }

    /// The server's own account.
    pub fn own(&self) -> Result<Arc<Account>, CredentialsError> {
        self.ring.own.borrow().clone().unwrap_or(Err(CredentialsError::None))
    }
}

impl Grant {
    /// The account as it is now; waits for it, until `deadline`, if it has yet to be resolved.
    pub async fn account(&mut self, deadline: Instant) -> Result<Arc<Account>, CredentialsError> {
        match timeout_at(deadline, self.account.wait_for(Option::is_some)).await {
            Ok(Ok(account)) => account.clone().unwrap_or(Err(CredentialsError::Pending)),
            Ok(Err(_)) | Err(_) => Err(CredentialsError::Pending),
        }
    }

    /// The account as it is now.
    pub fn account_now(&mut self) -> Result<Arc<Account>, CredentialsError> {
        self.account.borrow_and_update().clone().unwrap_or(Err(CredentialsError::Pending))
    }

    /// Ends when the account changes; never, if it cannot.
    pub async fn changed(&mut self) {
        if self.account.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Display for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reference { kind, name } = &self.reference;
        match kind {
            AuthenticationKind::ClusterTriggerAuthentication => write!(f, "the {kind} {name}"),
            _ => write!(f, "the {kind} {}/{name}", self.namespace),
        }
    }
}
