//! Parameters → the account of a Cluster Agent. The names are those of KEDA's built-in scaler
//! (`pkg/scalers/datadog_scaler.go`). Where the token goes is decided by whoever gave it, and stays
//! within this Kubernetes: the address always ends in `.svc`.

use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use crate::{
    demand::{Account, Trust},
    http,
    words::{boolean, is_label},
};

/// Two of them go by two names each; KEDA 2.21 has the second of the last.
pub(super) const NAMES: [&str; 10] = [
    TOKEN,
    BEARER_TOKEN,
    NAMESPACE,
    SERVICE,
    PORT,
    UNSAFE_SSL,
    CA_CERT,
    SERVER_NAME,
    AUTH_MODE,
    AUTH_MODES,
];

const TOKEN: &str = "token";
const BEARER_TOKEN: &str = "bearerToken";
const NAMESPACE: &str = "datadogNamespace";
const SERVICE: &str = "datadogMetricsService";
const PORT: &str = "datadogMetricsServicePort";
const UNSAFE_SSL: &str = "unsafeSsl";
const CA_CERT: &str = "datadogCaCert";
const SERVER_NAME: &str = "datadogServerName";
const AUTH_MODE: &str = "authMode";
const AUTH_MODES: &str = "authModes";

const DEFAULT_PORT: u16 = 8443;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Missing {
        parameter: &'static str,
    },
    /// A character that no token has.
    Odd {
        parameter: &'static str,
    },
    Invalid {
        parameter: &'static str,
        expected: &'static str,
    },
}

/// White space around values is no part of them, and an empty one is none. `ca` vouches for the
/// agent unless another is given.
pub(super) fn account<'a>(
    given: impl Fn(&'static str) -> Option<&'a str>,
    ca: Option<&Arc<str>>,
) -> Result<Account, Fault> {
    let given = |name: &'static str| given(name).map(str::trim).filter(|value| !value.is_empty());
    let invalid = |parameter, expected| Fault::Invalid { parameter, expected };
    for mode in [AUTH_MODE, AUTH_MODES] {
        if given(mode).is_some_and(|modes| modes.split(',').any(|it| it.trim() != "bearer")) {
            return Err(invalid(mode, "`bearer`"));
        }
    }
    let (parameter, token) = [TOKEN, BEARER_TOKEN]
        .into_iter()
        .find_map(|name| given(name).map(|token| (name, token)))
        .ok_or(Fault::Missing { parameter: TOKEN })?;
    let token = self::token(token).ok_or(Fault::Odd { parameter })?;
    let label = |parameter: &'static str, expected| {
        let label = given(parameter).ok_or(Fault::Missing { parameter })?;
        if is_label(label) { Ok(label) } else { Err(invalid(parameter, expected)) }
    };
    let namespace = label(NAMESPACE, "the name of a namespace, such as `datadog`")?;
    let service = label(
        SERVICE,
        "the name of a Service without its namespace, such as `datadog-cluster-agent-metrics-api`",
    )?;
    let no_port = invalid(PORT, "a port such as `8443`");
    let port = match given(PORT) {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0).ok_or(no_port)?
        }
        Some(_) => return Err(no_port),
        None => DEFAULT_PORT,
    };
    let is_unsafe = given(UNSAFE_SSL).map_or(Some(false), boolean);
    let trust = match (is_unsafe, given(CA_CERT), ca) {
        (None, _, _) => return Err(invalid(UNSAFE_SSL, "true or false")),
        (Some(true), _, _) => Trust::Anybody,
        (Some(false), Some(pem), _) if http::has_certificates(pem) => {
            Trust::Authorities(pem.into())
        }
        (Some(false), Some(_), _) => return Err(invalid(CA_CERT, "certificates (PEM)")),
        (Some(false), None, Some(ca)) => Trust::Authorities(ca.clone()),
        (Some(false), None, None) => Trust::System,
    };
    let trust = match (trust, given(SERVER_NAME)) {
        (Trust::Authorities(pem), Some(name)) if http::is_server_name(name) => {
            Trust::AuthoritiesFor { name: name.into(), pem }
        }
        (_, Some(name)) if !http::is_server_name(name) => {
            return Err(invalid(SERVER_NAME, "the name on the Cluster Agent's certificate"));
        }
        // It would not be verified.
        (_, Some(_)) => {
            let expected = "left out, unless there are a `datadogCaCert` and no `unsafeSsl`";
            return Err(invalid(SERVER_NAME, expected));
        }
        (trust, None) => trust,
    };
    let address = format!("https://{service}.{namespace}.svc:{port}");
    let base_url: Url = address.parse().map_err(|_| Fault::Missing { parameter: SERVICE })?;
    Ok(Account::of_agent(base_url, token, trust))
}

/// `None` if it has a character that no token has.
pub(super) fn token(text: &str) -> Option<SecretString> {
    let token = text.trim();
    let is_token = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    is_token.then(|| token.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::demand::Keys;

    const SOUND: [(&str, &str); 3] =
        [(TOKEN, "abc"), (NAMESPACE, "datadog"), (SERVICE, "dd-metrics-api")];

    fn account(extra: &[(&str, &str)]) -> Result<Account, Fault> {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let find = |name: &str| {
            let all = extra.iter().chain(&SOUND);
            all.copied().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        super::account(find, None)
    }

    /// Where it is, with which token, and how it is trusted.
    #[track_caller]
    fn check(extra: &[(&str, &str)], expected: &str) {
        let account = account(extra).unwrap();
        let Keys::Bearer(token) = account.keys() else { panic!("it is a token") };
        let trust = match account.trust() {
            Some(Trust::System) => "system",
            Some(Trust::Authorities(_)) => "its CA",
            Some(Trust::AuthoritiesFor { .. }) => "its CA for a name",
            Some(Trust::Anybody) => "anybody",
            None => "no agent",
        };
        let told = format!("{} {} {trust}", account.base_url(), token.expose_secret());
        assert_eq!(told, expected);
    }

    #[track_caller]
    fn check_fault(extra: &[(&str, &str)], parameter: &str) {
        match account(extra).unwrap_err() {
            Fault::Missing { parameter: it }
            | Fault::Odd { parameter: it }
            | Fault::Invalid { parameter: it, .. } => assert_eq!(it, parameter, "{extra:?}"),
        }
    }

    #[test]
    fn what_kedas_parameters_say_is_understood() {
        let at = "https://dd-metrics-api.datadog.svc:8443/";
        check(&[], &format!("{at} abc system"));
        check(&[(UNSAFE_SSL, "true"), (AUTH_MODE, "bearer")], &format!("{at} abc anybody"));
        check(
            &[(TOKEN, " "), (BEARER_TOKEN, "xyz\n"), (NAMESPACE, "datadog\n"), (UNSAFE_SSL, "0")],
            &format!("{at} xyz system"),
        );
        check(&[(PORT, " 443 ")], "https://dd-metrics-api.datadog.svc/ abc system");
        check(&[(PORT, "9443")], "https://dd-metrics-api.datadog.svc:9443/ abc system");
    }

    #[test]
    fn a_token_goes_nowhere_else() {
        for odd in [
            "evil.com",
            "a/b",
            "a@evil",
            "a:1",
            "a?b",
            "a#b",
            "-a",
            "A",
            "ä",
            "a b",
            "[::1]",
            "a%2e",
            "a\\b",
            "a.svc",
            "..",
            "evil.com/",
        ] {
            check_fault(&[(NAMESPACE, odd)], NAMESPACE);
            check_fault(&[(SERVICE, odd)], SERVICE);
            check_fault(&[(PORT, odd)], PORT);
        }
        for odd in ["0", "65536", "-1", "+8443", "8443/", "1@evil.com", "8 443"] {
            check_fault(&[(PORT, odd)], PORT);
        }
        check_fault(&[(NAMESPACE, &"a".repeat(64))], NAMESPACE);
        // Without `.svc` it would be a public name.
        check(&[(SERVICE, "evil"), (NAMESPACE, "com")], "https://evil.com.svc:8443/ abc system");
    }

    #[test]
    fn a_name_counts_only_where_it_is_verified() {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (ca, name) = ((CA_CERT, &*pair.cert.pem()), (SERVER_NAME, "localhost"));
        let at = "https://dd-metrics-api.datadog.svc:8443/";
        check(&[ca], &format!("{at} abc its CA"));
        check(&[ca, name], &format!("{at} abc its CA for a name"));
        check_fault(&[name], SERVER_NAME);
        check_fault(&[ca, name, (UNSAFE_SSL, "true")], SERVER_NAME);
        check_fault(&[ca, (SERVER_NAME, "local host")], SERVER_NAME);
    }

    #[test]
    fn what_is_missing_or_odd_is_told() {
        check_fault(&[(TOKEN, "")], TOKEN);
        check_fault(&[(TOKEN, "a b")], TOKEN);
        check_fault(&[(TOKEN, "a\nb")], TOKEN);
        check_fault(&[(NAMESPACE, "")], NAMESPACE);
        check_fault(&[(SERVICE, " ")], SERVICE);
        check_fault(&[(UNSAFE_SSL, "yes")], UNSAFE_SSL);
        check_fault(&[(AUTH_MODE, "basic")], AUTH_MODE);
        check_fault(&[(AUTH_MODES, "bearer,tls")], AUTH_MODES);
        check_fault(&[(CA_CERT, "abc")], CA_CERT);
    }

    proptest! {
        #[test]
        fn whatever_is_given_the_host_is_a_service(
            service in any::<String>(), namespace in any::<String>(), port in any::<String>(),
        ) {
            let given = [(SERVICE, &*service), (NAMESPACE, &*namespace), (PORT, &*port)];
            if let Ok(account) = account(&given) {
                let host = account.base_url().host_str().unwrap();
                let labels: Vec<&str> = host.split('.').collect();
                prop_assert!(matches!(&*labels, [_, _, "svc"]));
                prop_assert_eq!(account.base_url().path(), "/");
                prop_assert_eq!(account.base_url().scheme(), "https");
            }
        }
    }
}
