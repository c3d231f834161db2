//! Where the keys of a live trigger come from, told as the server would find them. Their values
//! are not told.

use std::sync::Arc;

use super::{
    live::Cluster,
    manifest::Selected,
    reading::fail,
    report::{Credentials, Examined, Level, ParameterSeen, Step},
};
use crate::{
    credentials::{Authentication, CredentialsError, Gap, Parameter, Resolution},
    demand::{Account, Service},
    kubernetes::{ClaimError, DatadogMetric, ReadError, Reference},
    scaler::Failure,
};

/// With whose keys Datadog is to be read, or with whose token the Cluster Agent.
pub(super) enum Keys {
    /// Those of the shell, in place of the server's own.
    OfShell,
    Resolved {
        account: Arc<Account>,
        /// As messages name it.
        of: String,
    },
    /// None are needed: the scaler reads the `DatadogMetric` itself, which is `None` if there is none.
    Unneeded(Option<DatadogMetric>),
    /// There are none, or they cannot be had here.
    None,
}

/// Who is asked for a reading, as far as it matters for the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nobody,
    Datadog,
    /// It finds its keys by itself.
    Scaler,
}

impl Cluster {
    /// Fills in what is known of the trigger's keys.
    pub(super) async fn explain(
        &self,
        selected: &Selected<'_>,
        asked: Asked,
        examined: &mut Examined,
    ) -> Keys {
        let is_ambiguous = selected.has_double();
        if is_ambiguous {
            let error = CredentialsError::Claim { error: ClaimError::Several };
            fail(examined, Step::Credentials, &Failure::Credentials(error));
        }
        let keys = match selected.spec.authentication() {
            Some(reference) => self.resolve(reference, asked, examined).await,
            None => self.explain_own("there is no `authenticationRef`", asked, examined),
        };
        if is_ambiguous { Keys::None } else { keys }
    }

    async fn resolve(&self, reference: Reference, asked: Asked, examined: &mut Examined) -> Keys {
        let service = examined.service;
        let authentication = Authentication {
            service,
            namespace: self.namespace.clone(),
            reference,
            workload: self.workload.clone(),
        };
        let resolution = Resolution {
            kubernetes: &self.kubernetes,
            rules: &self.rules,
            authentication: &authentication,
            since: self.since,
        };
        let specification = resolution.specification().await;
        let is_keda_s =
            specification.as_ref().is_ok_and(|it| !it.concerns(Parameter::names(service)));
        if is_keda_s && (!self.knows_own || self.rules.allow_own(&self.namespace).is_ok()) {
            let what = match service {
                Service::DatadogApi => "keys of Datadog's",
                Service::ClusterAgent => "Cluster Agent",
            };
            let why = format!("{authentication} gives no {what}");
            return self.explain_own(&why, asked, examined);
        }
        let parameters = match specification {
            Ok(specification) => resolution.parameters(&specification).await,
            Err(error) => Err(error),
        };
        let called = authentication.to_string();
        let called = called.trim_start_matches("the ").to_owned();
        let mut seen =
            Credentials { authentication: called, parameters: Vec::new(), site: None, agent: None };
        let parameters = parameters.inspect(|parameters| {
            seen.parameters = self.parameters(service, parameters);
            match service {
                Service::DatadogApi => seen.site = resolution.site_of(parameters).ok(),
                Service::ClusterAgent => {
                    let account = resolution.account_of(parameters).ok();
                    seen.agent = account.map(|account| account.host());
                }
            }
        });
        examined.credentials = Some(seen);
        match parameters {
            Ok(parameters) => self.judge(&resolution, &parameters, asked, examined),
            Err(error) => self.is_missed(error, asked, examined),
        }
    }

    /// `why` it is the server's own account.
    fn explain_own(&self, why: &str, asked: Asked, examined: &mut Examined) -> Keys {
        let (account, stand_in) = match examined.service {
            Service::DatadogApi => ("account", "the keys of your shell stand"),
            Service::ClusterAgent => ("Cluster Agent", "your `--cluster-agent-url` stands"),
        };
        let here = match asked {
            Asked::Datadog => format!("; here, {stand_in} for it"),
            Asked::Nobody | Asked::Scaler => String::new(),
        };
        let namespace = &self.namespace;
        let message = match self.rules.allow_own(namespace) {
            _ if !self.knows_own => format!(
                "{why}; the scaler uses its own {account}, if its \
                 `--own-account-namespaces` allow the namespace {namespace}{here}"
            ),
            Ok(()) => format!(
                "{why}; the scaler uses its own {account}, which \
                 `--own-account-namespaces` allow{here}"
            ),
            Err(error) => {
                fail(examined, Step::Credentials, &Failure::Credentials(error));
                return Keys::None;
            }
        };
        examined.find(Level::Note, Step::Credentials, message);
        Keys::OfShell
    }

    /// Each that there may be; of those that go by another name too, only what there is.
    fn parameters(&self, service: Service, parameters: &[Parameter]) -> Vec<ParameterSeen> {
        let is_given = |name: &str| parameters.iter().any(|it| it.name == name);
        let is_shown = |name: &&'static str| match *name {
            "token" => is_given("token") || !is_given("bearerToken"),
            "bearerToken" | "authMode" | "authModes" => is_given(name),
            _ => true,
        };
        let seen = |name| match parameters.iter().find(|it| it.name == name) {
            None => ParameterSeen { name, from: None, present: Some(false), problem: None },
            Some(Parameter { provenance, value, .. }) => {
                let from = Some(provenance.to_string());
                let (present, problem) = match value {
                    Ok(_) => (Some(true), None),
                    Err(Gap::Forbidden(error)) => (None, Some(self.in_words(error))),
                    Err(gap) => (Some(false), Some(gap.to_string())),
                };
                ParameterSeen { name, from, present, problem }
            }
        };
        Parameter::names(service).iter().copied().filter(is_shown).map(seen).collect()
    }

    /// What the server would make of these, the first fault of which is its answer.
    fn judge(
        &self,
        resolution: &Resolution<'_>,
        parameters: &[Parameter],
        asked: Asked,
        examined: &mut Examined,
    ) -> Keys {
        let account = resolution.account_of(parameters);
        let is_sound = account.is_ok();
        let keys = match account {
            Ok(account) => {
                let of = resolution.authentication.to_string();
                Keys::Resolved { account, of }
            }
            Err(error) => self.is_missed(error, asked, examined),
        };
        for Parameter { name, value, .. } in parameters {
            let Err(gap) = value else { continue };
            match gap {
                // An access token needs no API key.
                gap if is_sound => {
                    let message = format!("`{name}` is missing, but not needed: {gap}");
                    examined.find(Level::Note, Step::Credentials, message);
                }
                gap => {
                    let error = resolution.lacks(name, gap);
                    self.is_missed(error, asked, examined);
                }
            }
        }
        if examined.service == Service::DatadogApi
            && let Err(error) = resolution.site_of(parameters)
        {
            self.is_missed(error, asked, examined);
        }
        keys
    }

    /// Says once why there are no keys. What is only forbidden here may be there for the server.
    fn is_missed(&self, error: CredentialsError, asked: Asked, examined: &mut Examined) -> Keys {
        let unread = match &error {
            CredentialsError::Read { error }
            | CredentialsError::Missing { gap: Gap::Forbidden(error), .. } => Some(error),
            _ => None,
        };
        let (level, message) = match unread {
            Some(error @ ReadError::Forbidden { .. }) if !self.is_servers => {
                // Its answer says more.
                let level = if asked == Asked::Scaler { Level::Note } else { Level::Warning };
                let cause = self.in_words(error);
                (level, format!("{cause}, so that it is not known here what the scaler finds"))
            }
            Some(error) if !self.is_servers => (Level::Error, self.in_words(error)),
            _ => {
                let failure = Failure::Credentials(error);
                if !examined.says(&failure.to_string()) {
                    fail(examined, Step::Credentials, &failure);
                }
                return Keys::None;
            }
        };
        if !examined.says(&message) {
            examined.find(level, Step::Credentials, message);
        }
        Keys::None
    }
}
