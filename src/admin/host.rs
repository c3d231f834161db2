//! Whom a request says that it asks. A website that is open in a browser can ask what only this
//! machine is to ask, if the website's name leads here (DNS rebinding); but the browser names the
//! website in `Host`.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::{HeaderMap, header, uri::Authority};

/// The address in `Host`, which `localhost` is too; `None` for any other name.
pub(crate) fn address(headers: &HeaderMap) -> Option<IpAddr> {
    parse(headers.get(header::HOST)?.to_str().ok()?)
}

fn parse(host: &str) -> Option<IpAddr> {
    let authority: Authority = host.parse().ok()?;
    let name = authority.host();
    if name.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    name.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_from_a_name() {
        for (host, address) in [
            ("127.0.0.1:8282", "127.0.0.1"),
            ("127.9.9.9", "127.9.9.9"),
            ("localhost:1", "127.0.0.1"),
            ("LocalHost", "127.0.0.1"),
            ("[::1]:8282", "::1"),
            ("[::1]", "::1"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("0.0.0.0:1", "0.0.0.0"),
        ] {
            assert_eq!(parse(host), Some(address.parse().unwrap()), "{host}");
        }
        for host in
            ["", "example.com", "127.0.0.1.example.com", "localhost.example.com", "a@b@c", "scaler"]
        {
            assert_eq!(parse(host), None, "{host}");
        }
    }
}
