//! What a TriggerAuthentication gives: parameters, in KEDA's order and with its override rule
//! (`resolveAuthRef`, `pkg/scaling/resolver/scale_resolvers.go`), and the account they make.
//! Only what concerns Datadog is read. Where KEDA takes something missing for empty, it is told.

use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::{
    Authentication, CredentialsError, Own, Rules, agent,
    environment::{self, Sources},
    keys::{self, Fault},
};
use crate::{
    demand::{Account, Service},
    kubernetes::{AuthenticationKind, AuthenticationSpec, DataKind, Kubernetes, ReadError},
    words::shorten,
};

const API_KEY: &str = "apiKey";
const APP_KEY: &str = "appKey";
const SITE: &str = "datadogSite";
/// Most Secrets and ConfigMaps that are read for the environment of one container.
const MAX_SOURCES: usize = 50;
/// Most characters of a name that a message repeats.
const MAX_SHOWN: usize = 253;

/// One reading of a TriggerAuthentication and all it refers to.
pub struct Resolution<'a> {
    pub kubernetes: &'a Kubernetes,
    pub rules: &'a Rules,
    pub authentication: &'a Authentication,
    /// Secrets and the like are to be no older.
    pub since: Instant,
}

/// A parameter of a TriggerAuthentication.
#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub provenance: Provenance,
    /// Not empty.
    pub value: Result<SecretString, Gap>,
}

/// Where a parameter is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    Data { kind: DataKind, namespace: Arc<str>, name: Box<str>, key: Box<str> },
    Variable { name: Box<str>, container: Option<Box<str>> },
}

/// Why a parameter has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    #[error("the {kind} {namespace}/{name} does not exist")]
    NoObject { kind: DataKind, namespace: Arc<str>, name: String },
    #[error("the {kind} {namespace}/{name} has no key `{key}`, or nothing in it")]
    NoKey { kind: DataKind, namespace: Arc<str>, name: Box<str>, key: Box<str> },
    #[error("there is no {kind} {name}, or it has no containers")]
    NoWorkload { kind: Box<str>, name: Box<str> },
    #[error("the {kind} {name} has no container `{container}`")]
    NoContainer { kind: Box<str>, name: Box<str>, container: Box<str> },
    #[error("the container has no variable `{name}`, or nothing in it")]
    NoVariable { name: Box<str> },
    #[error(
        "the container has its variables from more than {most} Secrets and ConfigMaps, the most \
         that are read; use `secretTargetRef`"
    )]
    TooManySources { most: usize },
    #[error("{0}")]
    Forbidden(ReadError),
}

impl Parameter {
    /// Those that make an account of this service.
    pub fn names(service: Service) -> &'static [&'static str] {
        match service {
            Service::DatadogApi => &[API_KEY, APP_KEY, SITE],
            Service::ClusterAgent => &agent::NAMES,
        }
    }
}

impl Resolution<'_> {
    /// The account, and what it was resolved by. The errors that pass are those that come of a
    /// `ReadError`.
    pub(super) async fn account(&self) -> (Option<Arc<AuthenticationSpec>>, Own) {
        match self.specification().await {
            Ok(spec) => {
                let account = self.account_by(&spec).await;
                (Some(spec), account)
            }
            Err(error) => (None, Err(error)),
        }
    }

    /// The TriggerAuthentication, if there is one, and all of it can be resolved.
    pub async fn specification(&self) -> Result<Arc<AuthenticationSpec>, CredentialsError> {
        let Authentication { namespace, reference, .. } = self.authentication;
        if let AuthenticationKind::Other(kind) = &reference.kind {
            return Err(CredentialsError::NoSuchKind { kind: shorten(kind, MAX_SHOWN) });
        }
        let read = self.kubernetes.authentication(namespace, reference).await;
        let spec = read.map_err(|error| CredentialsError::Read { error })?;
        spec.ok_or_else(|| CredentialsError::NoAuthentication { authentication: self.called() })
    }

    async fn account_by(&self, spec: &AuthenticationSpec) -> Own {
        let parameters = self.parameters(spec).await?;
        self.account_of(&parameters)
    }

    /// What makes an account of these parameters.
    pub fn account_of(&self, parameters: &[Parameter]) -> Own {
        match self.authentication.service {
            Service::DatadogApi => self.account_of_api(parameters),
            Service::ClusterAgent => self.account_of_agent(parameters),
        }
    }

    fn account_of_agent(&self, parameters: &[Parameter]) -> Own {
        use agent::Fault;
        // What is named but missing is no reason to do without it.
        if let Some((name, gap)) = parameters.iter().find_map(|it| {
            let gap = it.value.as_ref().err()?;
            Some((it.name, gap))
        }) {
            return Err(self.lacks(name, gap));
        }
        let given = |name| {
            let parameter = parameters.iter().find(|it| it.name == name)?;
            parameter.value.as_ref().ok().map(ExposeSecret::expose_secret)
        };
        let authentication = self.called();
        let account = agent::account(given, self.rules.agent_ca.now().as_ref());
        account.map(Arc::new).map_err(|fault| match fault {
            Fault::Missing { parameter } => {
                CredentialsError::NotGiven { authentication, parameter }
            }
            Fault::Odd { parameter } => {
                CredentialsError::NoParameterKey { authentication, parameter }
            }
            Fault::Invalid { parameter, expected } => {
                CredentialsError::AgentParameter { authentication, parameter, expected }
            }
        })
    }

    fn account_of_api(&self, parameters: &[Parameter]) -> Own {
        let value = |name| parameters.iter().find(|it| it.name == name);
        let given = |name| value(name).and_then(|it| it.value.as_ref().ok());
        let lacks = |parameter| match value(parameter) {
            Some(Parameter { value: Err(gap), .. }) => self.lacks(parameter, gap),
            _ => CredentialsError::NotGiven { authentication: self.called(), parameter },
        };
        let odd = |parameter| CredentialsError::NoParameterKey {
            authentication: self.called(),
            parameter,
        };
        let keys = keys::keys(given(API_KEY), given(APP_KEY)).map_err(|fault| match fault {
            Fault::Neither | Fault::NoApi => lacks(API_KEY),
            Fault::NoApp => lacks(APP_KEY),
            Fault::OddApi => odd(API_KEY),
            Fault::OddApp => odd(APP_KEY),
        })?;
        let site = self.site_of(parameters)?;
        let base_url = keys::api_of(&site).ok_or_else(|| self.site_refused())?;
        Ok(Arc::new(Account::new(base_url, keys)))
    }

    /// The site that these parameters name, or Datadog's default, if keys may be sent there.
    pub fn site_of(&self, parameters: &[Parameter]) -> Result<String, CredentialsError> {
        let site = parameters.iter().find(|it| it.name == SITE).map(|it| &it.value);
        // A site that is named but missing is no reason to send the keys somewhere else.
        let pasted = site.map_or(Ok(""), |site| site.as_ref().map(ExposeSecret::expose_secret));
        let pasted = pasted.map_err(|gap| self.lacks(SITE, gap))?;
        let site = keys::site(pasted).ok_or_else(|| self.site_refused())?;
        let is_allowed = self.rules.sites.iter().any(|allowed| allowed.matches(&site));
        if !keys::is_of_datadog(&site) && !is_allowed {
            return Err(self.site_refused());
        }
        Ok(site)
    }

    /// That a parameter is named, but missing.
    pub fn lacks(&self, parameter: &'static str, gap: &Gap) -> CredentialsError {
        let (authentication, gap) = (self.called(), gap.clone());
        CredentialsError::Missing { authentication, parameter, gap }
    }

    fn site_refused(&self) -> CredentialsError {
        CredentialsError::SiteNotAllowed { authentication: self.called() }
    }

    /// Those that concern Datadog. A gap is told in its place; an error is one that passes, or one
    /// of the TriggerAuthentication as a whole.
    pub async fn parameters(
        &self,
        spec: &AuthenticationSpec,
    ) -> Result<Vec<Parameter>, CredentialsError> {
        if let Some(source_name) = spec.unresolved() {
            let authentication = self.called();
            return Err(CredentialsError::Unresolved { authentication, source_name });
        }
        let mut parameters = Vec::new();
        for &name in Parameter::names(self.authentication.service) {
            let Some(provenance) = self.provenance(spec, name) else { continue };
            let value = match &provenance {
                Provenance::Data { kind, namespace, name, key } => {
                    self.value(*kind, namespace, name, key).await
                }
                Provenance::Variable { name, container } => {
                    self.variable(name, container.as_deref()).await
                }
            };
            let value = match value {
                Ok(value) => Ok(value),
                Err(Trouble::Gap(gap)) => Err(gap),
                Err(Trouble::Read(error @ ReadError::Forbidden { .. })) => {
                    Err(Gap::Forbidden(error))
                }
                Err(Trouble::Read(error)) => return Err(CredentialsError::Read { error }),
            };
            parameters.push(Parameter { name, provenance, value });
        }
        Ok(parameters)
    }

    /// The last one wins.
    fn provenance(&self, spec: &AuthenticationSpec, parameter: &str) -> Option<Provenance> {
        let lists = [
            (DataKind::Secret, &spec.secret_target_ref),
            (DataKind::ConfigMap, &spec.config_map_target_ref),
        ];
        for (kind, entries) in lists {
            let found = entries.iter().flatten().rfind(|entry| *entry.parameter == *parameter);
            if let Some(entry) = found {
                let namespace = self.namespace_of(kind);
                let (name, key) = (entry.name.clone(), entry.key.clone());
                return Some(Provenance::Data { kind, namespace, name, key });
            }
        }
        let variable = spec.env.iter().flatten().rfind(|it| *it.parameter == *parameter)?;
        let container = variable.container_name.clone().filter(|name| !name.is_empty());
        Some(Provenance::Variable { name: variable.name.clone(), container })
    }

    /// Where the TriggerAuthentication's own Secrets and ConfigMaps are.
    fn namespace_of(&self, kind: DataKind) -> Arc<str> {
        let Authentication { namespace, reference, .. } = self.authentication;
        let is_cluster = reference.kind == AuthenticationKind::ClusterTriggerAuthentication;
        if is_cluster || (kind == DataKind::Secret && self.rules.restricts_secrets) {
            self.rules.keda_namespace.clone()
        } else {
            namespace.clone()
        }
    }

    async fn value(
        &self,
        kind: DataKind,
        namespace: &Arc<str>,
        name: &str,
        key: &str,
    ) -> Result<SecretString, Trouble> {
        let Some(data) = self.kubernetes.data(kind, namespace, name, self.since).await? else {
            let (namespace, name) = (namespace.clone(), name.to_owned());
            return Err(Gap::NoObject { kind, namespace, name }.into());
        };
        let value = data.get(key).filter(|value| !value.expose_secret().trim().is_empty());
        let no_key = || Gap::NoKey {
            kind,
            namespace: namespace.clone(),
            name: name.into(),
            key: key.into(),
        };
        value.cloned().ok_or_else(|| no_key().into())
    }

    async fn variable(&self, name: &str, container: Option<&str>) -> Result<SecretString, Trouble> {
        let Authentication { namespace, workload, .. } = self.authentication;
        let no_variable = || Gap::NoVariable { name: name.into() };
        // Known from the TriggerAuthentication before it changed; the next round has it.
        let workload = workload.as_ref().ok_or_else(no_variable)?;
        let containers = self.kubernetes.containers(namespace, workload, self.since).await?;
        let containers = containers.filter(|containers| !containers.is_empty());
        let (kind, target) = (workload.kind.clone(), workload.name.clone());
        let containers = containers
            .ok_or_else(|| Gap::NoWorkload { kind: kind.clone(), name: target.clone() })?;
        let found = environment::container(&containers, container).ok_or_else(|| {
            let container = container.unwrap_or_default().into();
            Gap::NoContainer { kind: kind.clone(), name: target.clone(), container }
        })?;
        // KEDA restricts Secrets by the namespace that they would be read in.
        let reads_secrets =
            !self.rules.restricts_secrets || **namespace == *self.rules.keda_namespace;
        let needed = environment::needs(found, reads_secrets);
        if needed.len() > MAX_SOURCES {
            return Err(Gap::TooManySources { most: MAX_SOURCES }.into());
        }
        let mut sources = Sources::new();
        for (kind, name) in needed {
            let data = self.kubernetes.data(kind, namespace, &name, self.since).await?;
            sources.insert((kind, name), data);
        }
        let variables = environment::variables(found, &sources, namespace)?;
        let value = variables.get(name).filter(|value| !value.expose_secret().trim().is_empty());
        value.cloned().ok_or_else(|| no_variable().into())
    }

    fn called(&self) -> String {
        shorten(&self.authentication.to_string(), MAX_SHOWN)
    }
}

/// Why a value could not be had.
enum Trouble {
    Gap(Gap),
    Read(ReadError),
}

impl From<Gap> for Trouble {
    fn from(gap: Gap) -> Self {
        Self::Gap(gap)
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { kind, namespace, name, key } => {
                write!(f, "`{key}` of the {kind} {namespace}/{name}")
            }
            Self::Variable { name, container: None } => write!(f, "the variable `{name}`"),
            Self::Variable { name, container: Some(container) } => {
                write!(f, "the variable `{name}` of the container `{container}`")
            }
        }
    }
}
