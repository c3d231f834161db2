//! What the values of flags may be. An error continues a sentence: "must be …".

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use jiff::SignedDuration;
use url::Url;

use crate::{
    http::{self, Forward},
    words::is_label,
};

/// No time limit makes sense beyond it, and clocks do not overflow below.
const LONGEST: Duration = Duration::from_hours(24);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    text.trim()
        .parse::<SignedDuration>()
        .ok()
        .and_then(|duration| duration.try_into().ok())
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| {
            "must be a duration such as `500ms`, `15s` or `1m30s`, at most `24h`".to_owned()
        })
}

pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// More often than each second would be a flood for Datadog.
pub(super) fn a_second_or_more(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        duration if duration < Duration::from_secs(1) => Err("must be `1s` or more".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number, at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be a number above 0 and at most 1, such as `0.8`".to_owned()),
    }
}

/// A namespace's name (RFC 1123 label).
pub(super) fn namespace(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !is_label(text) {
        return Err("must be the name of a namespace".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn server_name(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !http::is_server_name(text) {
        return Err("must be a name such as `localhost`, or an address".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "must be an address such as `127.0.0.1:9090` or `[::]:9090`".to_owned())
}

pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = address(text)?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("must be a loopback address: the sandbox answers everybody who reaches it".to_owned())
    }
}

/// As KEDA's `scalerAddress`.
pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let text = text.trim();
    let address = text.strip_prefix("dns:///").unwrap_or(text);
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_host = match v6 {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(is_of_name),
    };
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if is_host && is_port {
        Ok(address.to_owned())
    } else {
        Err("must be a host and a port, such as `127.0.0.1:9090`".to_owned())
    }
}

pub(super) fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().into(), value.into())),
        _ => Err("must be a key and a value, such as `queryValue=5`".to_owned()),
    }
}

pub(super) fn base_url(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let with_scheme =
        if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url: Url = with_scheme
        .parse()
        .map_err(|_| "must be a URL such as `https://api.datadoghq.eu`".to_owned())?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !plain {
        return Err(
            "must be a URL such as `https://api.datadoghq.eu`, without user, query or fragment"
                .to_owned(),
        );
    }
    Ok(url)
}

/// A token is not sent in the clear.
pub(super) fn agent_url(text: &str) -> Result<Url, String> {
    let url = base_url(text).ok().filter(|url| url.scheme() == "https");
    url.ok_or_else(|| {
        "must be an `https` URL such as \
         `https://datadog-cluster-agent-metrics-api.datadog.svc:8443`, without user, query or fragment"
            .to_owned()
    })
}

/// `dd.datadog.svc:8443=127.0.0.1:8443`
pub(super) fn forward(text: &str) -> Result<Forward, String> {
    let error = || {
        "must be an agent and the address to reach it at, such as \
         `datadog-cluster-agent-metrics-api.datadog.svc:8443=127.0.0.1:8443`"
            .to_owned()
    };
    let (agent, to) = text.split_once('=').ok_or_else(error)?;
    let agent = agent_url(agent).map_err(|_| error())?;
    let host = agent.domain().filter(|_| agent.path() == "/").ok_or_else(error)?;
    let to = to.trim().replace("localhost:", "127.0.0.1:").parse().map_err(|_| error())?;
    Ok(Forward { host: host.to_owned(), port: agent.port_or_known_default().unwrap_or(443), to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_has_an_agent_and_an_address() {
        let forwarded = forward("https://DD.datadog.svc=[::1]:8443").unwrap();
        assert_eq!((&*forwarded.host, forwarded.port), ("dd.datadog.svc", 443));
        assert_eq!(forwarded.to, "[::1]:8443".parse().unwrap());
        for odd in [
            "dd.datadog.svc:8443",
            "dd.datadog.svc:8443=",
            "dd.datadog.svc:8443=8443",
            "dd.datadog.svc:8443=evil.com:8443",
            "=127.0.0.1:8443",
            "10.0.0.1:8443=127.0.0.1:8443",
            "http://dd.datadog.svc=127.0.0.1:8443",
            "dd.datadog.svc/apis=127.0.0.1:8443",
        ] {
            assert!(forward(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("2.5s"), Ok(Duration::from_millis(2_500)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for odd in ["15", "-1s", "soon", "", "25h", "9999999999h"] {
            assert!(duration(odd).is_err(), "{odd}");
        }
        assert!(share("0.5").is_ok() && share("1").is_ok());
        for odd in ["0", "1.1", "-1", "NaN", ""] {
            assert!(share(odd).is_err(), "{odd}");
        }
        assert!(positive("0s").is_err());
        assert!(a_second_or_more("999ms").is_err() && a_second_or_more("1s").is_ok());
    }

    #[test]
    fn a_base_url_needs_no_scheme_and_carries_no_password() {
        assert_eq!(base_url("api.datadoghq.eu").unwrap().as_str(), "https://api.datadoghq.eu/");
        assert_eq!(base_url("http://127.0.0.1:8126").unwrap().as_str(), "http://127.0.0.1:8126/");
        for odd in ["", "ftp://x.y", "https://a:b@c.d", "https://a.b/?c", "https://"] {
            assert!(base_url(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_scaler_is_a_host_and_a_port() {
        for (text, address) in [
            ("localhost:9090", "localhost:9090"),
            (" scaler.keda:9090 ", "scaler.keda:9090"),
            ("dns:///scaler.keda:9090", "scaler.keda:9090"),
            ("[::1]:9090", "[::1]:9090"),
        ] {
            assert_eq!(host_and_port(text).as_deref(), Ok(address));
        }
        for odd in
            ["", "scaler", "::1", "http://scaler:9090", ":9090", "scaler:port", "a b:1", "a:+1"]
        {
            assert!(host_and_port(odd).is_err(), "{odd}");
        }
        // What a URI would take for something else than a host.
        for odd in ["u@a:1", "a?b:1", "a#b:1", "a%zz:1", "a\\b:1", "[x]:1", "[]:1", "a:b]:1"] {
            assert!(host_and_port(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_entry_is_a_key_and_a_value_which_may_hold_anything() {
        assert_eq!(entry(" a =b=c "), Ok(("a".into(), "b=c ".into())));
        assert!(entry("a").is_err() && entry(" =b").is_err());
    }

    #[test]
    fn the_sandbox_stays_on_this_machine() {
        assert!(loopback("127.0.0.1:1").is_ok());
        assert!(loopback("[::1]:1").is_ok());
        assert!(loopback("0.0.0.0:1").is_err());
    }
}
