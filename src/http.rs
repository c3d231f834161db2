//! The one way to build an HTTP client: time limits, proxy, private CA, no redirects, and
//! a bound on what is read. Nothing else names `reqwest`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Certificate, ClientBuilder, redirect, tls};
pub use reqwest::{
    StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use rustls::pki_types::ServerName;
use tokio::time::Instant;
use url::Url;

use crate::demand::Trust;

mod name;

/// Most of a body that is read, after decompression. Datadog sends some 25 bytes a point.
const BODY_LIMIT: usize = 8 << 20;
/// The same, of an answer whose status is no success; the rest is not waited for.
const ERROR_LIMIT: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A pool of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    inner: reqwest::Client,
    request_timeout: Duration,
    forwards: Vec<Forward>,
}

/// Where connections to a host's port go instead, such as to a `kubectl port-forward`. Its
/// certificate still has to bear the host's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// A name, in lower case.
    pub host: String,
    pub port: u16,
    pub to: SocketAddr,
}

impl Forward {
    pub fn concerns(&self, url: &Url) -> bool {
        url.host_str() == Some(&*self.host) && url.port_or_known_default() == Some(self.port)
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    /// From resolving the host to the last byte read.
    pub request_timeout: Duration,
    /// Certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` count.
    pub proxy_from_environment: bool,
}

/// An answer that came in whole, or one whose status alone says what is wrong.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// When `headers` had come in; the body takes its time.
    pub answered_at: Instant,
    /// Decompressed. Cut short, or empty if it broke off, where `status` is not a success.
    pub body: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("no complete answer within {after:?}")]
    TimedOut { after: Duration },
    #[error("{cause}")]
    Failed { cause: String },
    /// Nobody that is trusted vouches for the certificate.
    #[error("{cause}")]
    Untrusted { cause: String },
    /// The URL is longer than HTTP allows (64 KiB).
    #[error("the URL is too long")]
    Unsendable,
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the CA file {} cannot be read", path.display())]
    CaUnreadable { path: PathBuf, source: std::io::Error },
    #[error("the CA file {} holds no PEM certificate", path.display())]
    CaInvalid { path: PathBuf },
    #[error("the CA certificates are not PEM")]
    AuthoritiesInvalid,
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

impl Client {
    /// A process-wide rustls provider must be installed.
    pub fn new(config: &Config) -> Result<Self, BuildError> {
        let mut builder = builder(config.request_timeout);
        if let Some(path) = &config.ca_file {
            builder = builder.tls_certs_merge(read_certificates(path)?);
        }
        if !config.proxy_from_environment {
            builder = builder.no_proxy();
        }
        Self::build(builder, config.request_timeout, &[])
    }

    /// For Cluster Agents, which are in the same network: proxies do not count, and TLS is 1.3, as
    /// they themselves demand (`cluster_agent.allow_legacy_tls`).
    pub fn for_agents(
        request_timeout: Duration,
        trust: &Trust,
        forwards: &[Forward],
    ) -> Result<Self, BuildError> {
        let builder = builder(request_timeout).no_proxy().tls_version_min(tls::Version::TLS_1_3);
        let builder = match trust {
            Trust::System => builder,
            Trust::Authorities(pem) => {
                let trusted = certificates(pem.as_bytes()).ok_or(BuildError::AuthoritiesInvalid)?;
                builder.tls_certs_only(trusted)
            }
            Trust::AuthoritiesFor { name, pem } => {
                let tls = name::tls(pem.as_bytes(), name).ok_or(BuildError::AuthoritiesInvalid)?;
                builder.tls_backend_preconfigured(tls)
            }
            Trust::Anybody => builder.tls_danger_accept_invalid_certs(true),
        };
        Self::build(builder, request_timeout, forwards)
    }

    fn build(
        builder: ClientBuilder,
        request_timeout: Duration,
        forwards: &[Forward],
    ) -> Result<Self, BuildError> {
        let resolve = |builder: ClientBuilder, it: &Forward| builder.resolve(&it.host, it.to);
        let inner = forwards.iter().fold(builder, resolve).build().map_err(BuildError::Client)?;
        Ok(Self { inner, request_timeout, forwards: forwards.to_vec() })
    }

    /// One GET, never repeated and never redirected.
    pub async fn get(&self, mut url: Url, headers: HeaderMap) -> Result<Response, HttpError> {
        // A name that is resolved to an address keeps the URL's port.
        if let Some(forward) = self.forwards.iter().find(|forward| forward.concerns(&url)) {
            let _ = url.set_port(Some(forward.to.port()));
        }
        let mut response =
            self.inner.get(url).headers(headers).send().await.map_err(|e| self.failed(e))?;
        let answered_at = Instant::now();
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = match self.read(response).await {
            Ok(body) => body,
            Err(_) if !status.is_success() => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Response { status, headers, answered_at, body })
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, HttpError> {
        let is_success = response.status().is_success();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.failed(e))? {
            body.extend_from_slice(&chunk);
            if body.len() > BODY_LIMIT {
                return Err(HttpError::TooLarge { limit: BODY_LIMIT });
            }
            // There is a sentence in it at most.
            if !is_success && body.len() > ERROR_LIMIT {
                break;
            }
        }
        Ok(body)
    }

    fn failed(&self, error: reqwest::Error) -> HttpError {
        if error.is_builder() {
            return HttpError::Unsendable;
        }
        if error.is_timeout() && error.is_connect() {
            let after = CONNECT_TIMEOUT.min(self.request_timeout);
            return HttpError::Failed { cause: format!("no connection within {after:?}") };
        }
        if error.is_timeout() {
            return HttpError::TimedOut { after: self.request_timeout };
        }
        let is_connect = error.is_connect();
        // The innermost cause is the one that helps: "Connection refused", not "error sending
        // request". The URL would repeat the query.
        let error = error.without_url();
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        let cause = innermost.to_string();
        // rustls' name for it.
        if cause.contains("UnknownIssuer") {
            HttpError::Untrusted { cause }
        } else if is_connect {
            HttpError::Failed { cause }
        } else {
            HttpError::Failed { cause: format!("the connection broke off ({cause})") }
        }
    }
}

fn builder(request_timeout: Duration) -> ClientBuilder {
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .timeout(request_timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(request_timeout))
        .tcp_keepalive(Duration::from_secs(30))
        // A connection that a firewall forgot costs one request, not all that follow on it.
        .http2_keep_alive_interval(Duration::from_secs(4))
        .http2_keep_alive_timeout(Duration::from_secs(4))
}

/// Whether there are certificates (PEM) in it, and nothing that only looks like one.
pub fn has_certificates(pem: &str) -> bool {
    certificates(pem.as_bytes()).is_some_and(|found| {
        // That they can be trusted shows only when they are.
        builder(CONNECT_TIMEOUT).tls_certs_only(found).build().is_ok()
    })
}

/// Whether it can be the name on a certificate.
pub fn is_server_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

fn certificates(pem: &[u8]) -> Option<Vec<Certificate>> {
    Certificate::from_pem_bundle(pem).ok().filter(|found| !found.is_empty())
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, BuildError> {
    let pem = std::fs::read(path)
        .map_err(|source| BuildError::CaUnreadable { path: path.to_owned(), source })?;
    certificates(&pem).ok_or_else(|| BuildError::CaInvalid { path: path.to_owned() })
}
