//! Connections to a scaler, with the TLS options that KEDA has for one
//! (`getClientForConnectionPool`, `pkg/scalers/external_scaler.go`).

use std::{collections::HashMap, error::Error, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::trigger::boolean;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What KEDA reads from a TriggerAuthentication: files with PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// `caCert`, trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// `tlsClientCert` and `tlsClientKey`.
    pub client: Option<(PathBuf, PathBuf)>,
    /// In place of the host of the address, as through a port-forward.
    pub server_name: Option<String>,
}

/// What the trigger's metadata says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Security {
    /// `enableTLS`
    pub(crate) tls: bool,
    /// `unsafeSsl`: any certificate will do.
    pub(crate) any_certificate: bool,
}

impl Security {
    pub(crate) fn of(metadata: &HashMap<String, String>) -> Self {
        let is_set = |key| metadata.get(key).and_then(|value| boolean(value.trim()));
        Self {
            tls: is_set("enableTLS").unwrap_or(false),
            any_certificate: is_set("unsafeSsl").unwrap_or(false),
        }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unconnected {
    #[error("{} cannot be read: {cause}", .path.display())]
    File { path: PathBuf, cause: String },
    #[error("the address \"{address}\" is not understood: {cause}")]
    Address { address: String, cause: String },
    #[error("no connection to {address}{}: {cause}{}", if *.tls { " with TLS" } else { "" }, hint(*.tls, .cause))]
    Unreachable { address: String, tls: bool, cause: String },
}

fn hint(tls: bool, cause: &str) -> &'static str {
    if tls && cause.contains("UnknownIssuer") {
        "; give its CA with `--ca-cert`"
    } else if tls && cause.contains("InvalidContentType") {
        "; it does not speak TLS: take `enableTLS` out"
    } else if tls && cause.contains("not valid for name") {
        "; give the name of its certificate with `--server-name`"
    } else {
        ""
    }
}

/// One connection for each way to be secure, as KEDA keeps them.
pub(crate) struct Pool {
    /// Host and port.
    address: String,
    tls: Tls,
    channels: HashMap<Security, Channel>,
}

impl Pool {
    pub(crate) fn new(address: String, tls: Tls) -> Self {
        Self { address, tls, channels: HashMap::new() }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// KEDA uses TLS where it is told to, and where it was given certificates.
    pub(crate) fn uses_tls(&self, security: Security) -> bool {
        security.tls || self.tls.ca.is_some() || self.tls.client.is_some()
    }

    pub(crate) async fn connect(&mut self, security: Security) -> Result<Channel, Unconnected> {
        if let Some(channel) = self.channels.get(&security) {
            return Ok(channel.clone());
        }
        let tls = self.uses_tls(security);
        let unreachable = |error: tonic::transport::Error| Unconnected::Unreachable {
            address: self.address.clone(),
            tls,
            cause: innermost(&error),
        };
        let scheme = if tls { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.address));
        let mut endpoint = endpoint
            .map_err(|error| Unconnected::Address {
                address: self.address.clone(),
                cause: innermost(&error),
            })?
            .connect_timeout(CONNECT_TIMEOUT);
        if tls {
            let config = self.tls.config(security)?;
            endpoint = if security.any_certificate {
                endpoint.tls_config_with_verifier(config, Arc::new(AnyCertificate::new()))
            } else {
                endpoint.tls_config(config)
            }
            .map_err(unreachable)?;
        }
        let channel = endpoint.connect().await.map_err(unreachable)?;
        self.channels.insert(security, channel.clone());
        Ok(channel)
    }
}

impl Tls {
    fn config(&self, security: Security) -> Result<ClientTlsConfig, Unconnected> {
        let mut config = ClientTlsConfig::new();
        if !security.any_certificate {
            config = config.with_native_roots();
            if let Some(path) = &self.ca {
                config = config.ca_certificate(Certificate::from_pem(read(path)?));
            }
        }
        if let Some((certificate, key)) = &self.client {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        Ok(config)
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Unconnected> {
    std::fs::read(path)
        .map_err(|error| Unconnected::File { path: path.clone(), cause: error.to_string() })
}

/// "Connection refused" helps, "transport error" does not.
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// `unsafeSsl`: who holds the certificate's key is proven, who that is does not matter.
#[derive(Debug)]
struct AnyCertificate(CryptoProvider);

impl AnyCertificate {
    fn new() -> Self {
        Self(rustls::crypto::ring::default_provider())
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
