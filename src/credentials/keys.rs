//! Texts → keys and sites.

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::demand::Keys;

pub(super) const DEFAULT_SITE: &str = "datadoghq.com";
/// <https://docs.datadoghq.com/getting_started/site/>
const SITES: [&str; 9] = [
    DEFAULT_SITE,
    "us3.datadoghq.com",
    "us5.datadoghq.com",
    "datadoghq.eu",
    "ap1.datadoghq.com",
    "ap2.datadoghq.com",
    "uk1.datadoghq.com",
    "ddog-gov.com",
    "us2.ddog-gov.com",
];
/// Where all of Datadog's sites are, those to come as well.
const DOMAINS: [&str; 3] = ["datadoghq.com", "datadoghq.eu", "ddog-gov.com"];

/// Why there are no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Neither,
    NoApi,
    NoApp,
    /// A character that no key has.
    OddApi,
    OddApp,
}

/// White space around them is no part of keys, and an empty one is none.
pub(super) fn keys(api: Option<&SecretString>, app: Option<&SecretString>) -> Result<Keys, Fault> {
    let api = key(api).map_err(|()| Fault::OddApi)?;
    let app = key(app).map_err(|()| Fault::OddApp)?;
    match (api, app) {
        (Some(api), Some(app)) => Ok(Keys::Pair { api, app }),
        (None, Some(app)) if is_token(&app) => Ok(Keys::Bearer(app)),
        (None, Some(_)) => Err(Fault::NoApi),
        (Some(_), None) => Err(Fault::NoApp),
        (None, None) => Err(Fault::Neither),
    }
}

/// Secrets often end in a line break.
fn key(secret: Option<&SecretString>) -> Result<Option<SecretString>, ()> {
    let Some(text) = secret.map(|secret| secret.expose_secret().trim()) else { return Ok(None) };
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(());
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

fn is_token(app_key: &SecretString) -> bool {
    let key = app_key.expose_secret();
    key.starts_with("ddpat_") || key.starts_with("ddsat_")
}

/// The site that is meant by what people paste: `app.datadoghq.eu`, `https://us5.…/`. The default
/// one if it is empty.
pub(super) fn site(pasted: &str) -> Option<String> {
    let trimmed = pasted.trim().to_lowercase();
    let host = trimmed.split_once("://").map_or(&*trimmed, |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or_default().trim_end_matches('.');
    let host = host.strip_prefix("app.").or_else(|| host.strip_prefix("api.")).unwrap_or(host);
    let host = if host.is_empty() && trimmed.is_empty() { DEFAULT_SITE } else { host };

    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    (host.contains('.') && host.split('.').all(label)).then(|| host.to_owned())
}

/// `https://api.<site>`.
pub(super) fn api_of(site: &str) -> Option<Url> {
    format!("https://api.{site}").parse().ok()
}

/// Whether Datadog documents it.
pub(super) fn is_known(site: &str) -> bool {
    SITES.contains(&site)
}

/// Whether it belongs to Datadog, documented or not.
pub(super) fn is_of_datadog(site: &str) -> bool {
    DOMAINS.iter().any(|domain| {
        site.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_site(pasted: &str, expected: Option<&str>) {
        let url = site(pasted).and_then(|site| api_of(&site)).map(|url| url.to_string());
        assert_eq!(url.as_deref(), expected, "{pasted}");
    }

    #[test]
    fn a_pasted_site_is_understood() {
        check_site("", Some("https://api.datadoghq.com/"));
        check_site(" datadoghq.eu\n", Some("https://api.datadoghq.eu/"));
        check_site("app.datadoghq.eu", Some("https://api.datadoghq.eu/"));
        check_site(
            "https://us5.datadoghq.com/dashboard/lists?x",
            Some("https://api.us5.datadoghq.com/"),
        );
        check_site("https://API.ap2.datadoghq.com", Some("https://api.ap2.datadoghq.com/"));
        check_site("us2.ddog-gov.com", Some("https://api.us2.ddog-gov.com/"));
        for odd in
            ["eu", "https://", "user@evil.com", "a..b", "data dog.com", "evil.com:99", "-a.com"]
        {
            check_site(odd, None);
        }
    }

    #[test]
    fn only_datadogs_own_domains_are_its_own() {
        for own in ["datadoghq.com", "us5.datadoghq.com", "ap9.datadoghq.eu", "x.y.ddog-gov.com"] {
            assert!(is_of_datadog(own), "{own}");
        }
        for other in ["evildatadoghq.com", "datadoghq.com.evil.org", "datadoghq.org", "com"] {
            assert!(!is_of_datadog(other), "{other}");
        }
    }

    fn both(api: &str, app: &str) -> Result<Keys, Fault> {
        keys(Some(&api.into()), Some(&app.into()))
    }

    #[test]
    fn white_space_around_keys_is_no_part_of_them() {
        let Ok(Keys::Pair { api, app }) = both(" a\n", "b\r\n") else { panic!("both are there") };
        assert_eq!((api.expose_secret(), app.expose_secret()), ("a", "b"));
    }

    #[test]
    fn an_access_token_travels_alone() {
        assert!(matches!(both("", "ddpat_x"), Ok(Keys::Bearer(_))));
        assert!(matches!(both("", "ddsat_x"), Ok(Keys::Bearer(_))));
        assert!(matches!(both("a", "ddpat_x"), Ok(Keys::Pair { .. })));
    }

    #[test]
    fn what_is_missing_is_told() {
        assert_eq!(both("", "b").unwrap_err(), Fault::NoApi);
        assert_eq!(both("a", " ").unwrap_err(), Fault::NoApp);
        assert_eq!(both("", "").unwrap_err(), Fault::Neither);
        assert_eq!(both("a b", "c").unwrap_err(), Fault::OddApi);
    }
}
