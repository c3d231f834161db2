//! Connections to a scaler, with the TLS options that KEDA has for one
//! (`getClientForConnectionPool`, `pkg/scalers/external_scaler.go`).

use std::{collections::HashMap, error::Error, fs, io, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, InvalidMessage, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{check::input::InputError, proto::ScaledObjectRef, words::boolean};

/// From resolving the host to the end of the TLS handshake.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Security {
    /// `enableTLS`
    tls: bool,
    /// `unsafeSsl`: any certificate will do.
    any_certificate: bool,
}

impl Security {
    pub(crate) fn of(object: &ScaledObjectRef) -> Self {
        let is_set = |key| {
            let value = object.scaler_metadata.get(key);
            value.and_then(|value| boolean(value.trim())).unwrap_or(false)
        };
        Self { tls: is_set("enableTLS"), any_certificate: is_set("unsafeSsl") }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("no connection to {address}{}: {cause}", if *.tls { " with TLS" } else { "" })]
pub(crate) struct Unconnected {
    address: String,
    tls: bool,
    cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cause {
    #[error("nobody that is trusted vouches for its certificate; give its CA with `--ca-cert`")]
    Untrusted,
    #[error("its certificate has another name; give that with `--server-name`")]
    Misnamed,
    #[error("it does not speak TLS; take `enableTLS` out, and leave `--ca-cert` away")]
    Plaintext,
    #[error("it wants a client certificate; give `--tls-client-cert` and `--tls-client-key`")]
    Nameless,
    #[error("it does not know the CA of the client certificate; give one of a CA that it does")]
    Unknown,
    #[error("no answer within {CONNECT_TIMEOUT:?}")]
    TimedOut,
    #[error("this machine has no CA certificates; give `--ca-cert`")]
    NoRoots,
    #[error("{0}")]
    Other(String),
}

/// One connection for each way to be secure, as KEDA keeps them.
pub(crate) struct Pool {
    /// Host and port.
    address: String,
    /// TLS is used whatever the metadata says, since there are certificates for it.
    has_certificates: bool,
    ca: Option<Certificate>,
    identity: Option<Identity>,
    server_name: Option<String>,
    /// Each is tried once; a channel that failed then connects when it is used.
    channels: HashMap<Security, (Channel, Result<(), Unconnected>)>,
}

impl Pool {
    /// Reads the files. Blocks.
    pub(crate) fn new(address: String, tls: &Tls) -> Result<Self, InputError> {
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|error| InputError::Unreadable {
                file: path.display().to_string(),
                cause: error.to_string(),
            })
        };
        let ca = tls.ca.as_ref().map(read).transpose()?.map(Certificate::from_pem);
        let identity = match &tls.client {
            Some((certificate, key)) => Some(Identity::from_pem(read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Self {
            address,
            has_certificates: ca.is_some() || identity.is_some(),
            ca,
            identity,
            server_name: tls.server_name.clone(),
            channels: HashMap::new(),
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A channel, and whether it could connect.
    pub(crate) async fn channel(
        &mut self,
        security: Security,
    ) -> Result<(Channel, Result<(), Unconnected>), Unconnected> {
        if let Some(known) = self.channels.get(&security) {
            return Ok(known.clone());
        }
        let endpoint = self.endpoint(security)?;
        let connected = match timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| cause(&error)),
            Err(_) => Err(Cause::TimedOut),
        };
        let tried = match connected {
            Ok(channel) => (channel, Ok(())),
            Err(cause) => (endpoint.connect_lazy(), Err(self.unconnected(security, cause))),
        };
        self.channels.insert(security, tried.clone());
        Ok(tried)
    }

    fn endpoint(&self, security: Security) -> Result<Endpoint, Unconnected> {
        let unconnected =
            |error: tonic::transport::Error| self.unconnected(security, cause(&error));
        let uses_tls = self.uses_tls(security);
        let scheme = if uses_tls { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.address))
            .map_err(unconnected)?
            .connect_timeout(CONNECT_TIMEOUT);
        if !uses_tls {
            return Ok(endpoint);
        }
        let mut config = ClientTlsConfig::new();
        if let Some(identity) = &self.identity {
            config = config.identity(identity.clone());
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        let endpoint = if security.any_certificate {
            endpoint.tls_config_with_verifier(config, Arc::new(AnyCertificate::new()))
        } else {
            let has_roots = !rustls_native_certs::load_native_certs().certs.is_empty();
            if has_roots {
                config = config.with_native_roots();
            }
            match &self.ca {
                Some(ca) => config = config.ca_certificate(ca.clone()),
                None if has_roots => {}
                None => return Err(self.unconnected(security, Cause::NoRoots)),
            }
            endpoint.tls_config(config)
        };
        endpoint.map_err(unconnected)
    }

    /// Whether the metadata takes back what the certificates were given for.
    pub(crate) fn is_disarmed(&self, security: Security) -> bool {
        security.any_certificate && self.has_certificates
    }

    pub(crate) fn uses_tls(&self, security: Security) -> bool {
        security.tls || self.has_certificates
    }

    fn unconnected(&self, security: Security, cause: Cause) -> Unconnected {
        Unconnected { address: self.address.clone(), tls: self.uses_tls(security), cause }
    }
}

/// "Connection refused" helps, "transport error" does not.
pub(super) fn cause(error: &(dyn Error + 'static)) -> Cause {
    let mut innermost = error;
    loop {
        if let Some(rustls) = innermost.downcast_ref::<rustls::Error>() {
            match rustls {
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                    return Cause::Untrusted;
                }
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => return Cause::Misnamed,
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                    return Cause::Plaintext;
                }
                _ => {}
            }
        }
        // An I/O error does not give what it holds as its source.
        let held = innermost.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let source = held.map(|held| held as &(dyn Error + 'static)).or(innermost.source());
        match source {
            Some(source) => innermost = source,
            None => break,
        }
    }
    // What the scaler says after the handshake comes through h2, which leaves only the text.
    match innermost.to_string() {
        alert if alert.ends_with("alert: CertificateRequired") => Cause::Nameless,
        alert if alert.ends_with("alert: UnknownCA") => Cause::Unknown,
        other => Cause::Other(other),
    }
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
