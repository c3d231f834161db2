//! The gRPC port's certificates, re-read when they change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// Largest file that is read. A chain has some 10 KB, all public CAs together 200 KB.
const MAX_FILE: u64 = 1 << 20;
/// As messages name the files.
const CERT: &str = "--tls-cert";
const KEY: &str = "--tls-key";
const CLIENT_CA: &str = "--tls-client-ca";

/// Files with PEM.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's own certificate, then those that lead to its CA.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Who may vouch for clients. Without it, they need no certificate.
    pub client_ca: Option<PathBuf>,
    /// How often the files are looked at.
    pub look_every: Duration,
}

/// What new connections are secured with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates {
    current: watch::Receiver<Arc<ServerConfig>>,
}

/// Looks after the files.
pub struct Keeper {
    config: Config,
    in_use: Files,
    current: watch::Sender<Arc<ServerConfig>>,
    /// What the last look has seen.
    last: Result<Files, TlsError>,
    /// What was said of files that cannot be used, until they can.
    complaint: Option<TlsError>,
}

/// As they were read. Not for logs: the key is among them.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Adopted,
    /// They are again what is in use.
    Mended,
    Unusable(TlsError),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("`{flag}` is \"{path}\", which cannot be read ({cause}); give a file with PEM")]
    Unreadable { flag: &'static str, path: String, cause: String },
    #[error("`{flag}` is \"{path}\", which holds no {what}; give a file with one (PEM)")]
    Missing { flag: &'static str, path: String, what: &'static str },
    #[error("`{flag}` is \"{path}\", which is not understood: {cause}")]
    NotUnderstood { flag: &'static str, path: String, cause: String },
    #[error("`{KEY}` is not the key of the certificate in `{CERT}`; give two that belong together")]
    Mismatched,
}

/// Reads the certificates once; the `Keeper` is to be run. A process-wide rustls provider must be
/// installed.
pub async fn load(config: Config) -> Result<(Certificates, Keeper), TlsError> {
    let files = config.read().await?;
    let (sender, current) = watch::channel(Arc::new(config.server_config(&files)?));
    Ok((Certificates { current }, Keeper::new(config, files, sender)))
}

impl Certificates {
    /// Shakes hands with a client. Takes as long as the client does.
    pub async fn accept(&self, client: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let current = self.current.borrow().clone();
        TlsAcceptor::from(current).accept(client).await
    }
}

impl Keeper {
    fn new(config: Config, files: Files, current: watch::Sender<Arc<ServerConfig>>) -> Self {
        Self { config, in_use: files.clone(), current, last: Ok(files), complaint: None }
    }

    /// Re-reads the files until `shutdown`, and goes by what two looks in a row agree on: files may
    /// be written one after the other. Those that cannot be used leave the last ones in use.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut look = interval(self.config.look_every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
            }
            match self.settle(self.config.read().await) {
                None => {}
                Some(News::Adopted) => {
                    tracing::info!("new connections to the gRPC port get the new certificates");
                }
                Some(News::Mended) => {
                    tracing::info!("the certificates of the gRPC port can be re-read again");
                }
                Some(News::Unusable(error)) => tracing::warn!(
                    %error,
                    "the certificates of the gRPC port cannot be re-read; the last ones stay in use"
                ),
            }
        }
    }

    /// What there is to say after a look at the files.
    fn settle(&mut self, seen: Result<Files, TlsError>) -> Option<News> {
        if seen != self.last {
            self.last = seen;
            return None;
        }
        let usable = match &seen {
            Ok(files) if *files == self.in_use => Ok(None),
            Ok(files) => self.config.server_config(files).map(|new| Some((files, new))),
            Err(error) => Err(error.clone()),
        };
        match usable {
            Ok(None) => self.complaint.take().map(|_| News::Mended),
            Ok(Some((files, new))) => {
                self.complaint = None;
                self.in_use = files.clone();
                drop(self.current.send_replace(Arc::new(new)));
                Some(News::Adopted)
            }
            Err(error) if self.complaint.as_ref() == Some(&error) => None,
            Err(error) => {
                self.complaint = Some(error.clone());
                Some(News::Unusable(error))
            }
        }
    }
}

impl Config {
    async fn read(&self) -> Result<Files, TlsError> {
        let file = async |flag, path: &Path| {
            read_file(path).await.map_err(|error| TlsError::Unreadable {
                flag,
                path: path.display().to_string(),
                cause: error.to_string(),
            })
        };
        Ok(Files {
            cert: file(CERT, &self.cert).await?,
            key: file(KEY, &self.key).await?,
            client_ca: match &self.client_ca {
                Some(path) => Some(file(CLIENT_CA, path).await?),
                None => None,
            },
        })
    }

    fn server_config(&self, files: &Files) -> Result<ServerConfig, TlsError> {
        let chain = certificates(CERT, &self.cert, &files.cert)?;
        let path = self.key.display().to_string();
        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|_| TlsError::Missing {
            flag: KEY,
            path: path.clone(),
            what: "private key that is not encrypted",
        })?;
        let builder = ServerConfig::builder();
        let builder = match self.client_ca.as_ref().zip(files.client_ca.as_ref()) {
            Some((path, pem)) => {
                let not_understood = |cause: String| TlsError::NotUnderstood {
                    flag: CLIENT_CA,
                    path: path.display().to_string(),
                    cause,
                };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(CLIENT_CA, path, pem)? {
                    roots.add(certificate).map_err(|error| not_understood(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder(roots.into()).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| not_understood(error.to_string()))?,
                )
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatched,
            rustls::Error::InvalidCertificate(cause) => TlsError::NotUnderstood {
                flag: CERT,
                path: self.cert.display().to_string(),
                cause: cause.to_string(),
            },
            other => TlsError::NotUnderstood { flag: KEY, path, cause: other.to_string() },
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session is one whose client is not checked anew: not against a client CA that
        // has changed, nor for a certificate that has expired. KEDA resumes none (grpc-go has no
        // session cache).
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// At least one.
fn certificates(
    flag: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = path.display().to_string();
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if found.is_empty() => Err(TlsError::Missing { flag, path, what: "certificate" }),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::NotUnderstood { flag, path, cause: error.to_string() }),
    }
}

/// Never waits: a pipe in its place is refused.
async fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = tokio::fs::metadata(path).await?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is not a file, or larger than 1 MiB"));
    }
    tokio::fs::read(path).await
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::default().self_signed(&key).unwrap();
        (cert.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    #[test]
    fn each_thing_is_said_once() {
        // Another test may have done so.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config {
            cert: "a.crt".into(),
            key: "a.key".into(),
            client_ca: None,
            look_every: Duration::ZERO,
        };
        let files = |(cert, key)| Files { cert, key, client_ca: None };
        let (first, second) = (pair(), pair());
        let mixed = Ok(files((first.0.clone(), second.1.clone())));
        let (first, second) = (files(first), files(second));
        let (sender, current) = watch::channel(Arc::new(config.server_config(&first).unwrap()));
        let mut keeper = Keeper::new(config, first.clone(), sender);
        let (first, second) = (Ok(first), Ok(second));
        let error = TlsError::Unreadable { flag: CERT, path: String::new(), cause: String::new() };
        let unreadable = Err(error.clone());

        let mut check = |seen: &Result<Files, TlsError>, news: Option<News>| {
            let has_new = matches!(news, Some(News::Adopted));
            let before = current.borrow().clone();
            assert_eq!(keeper.settle(seen.clone()), news);
            assert_eq!(!Arc::ptr_eq(&before, &current.borrow()), has_new);
        };
        check(&first, None);
        // Files may be written one after the other: the first look says nothing.
        check(&mixed, None);
        check(&second, None);
        check(&second, Some(News::Adopted));
        check(&second, None);
        check(&mixed, None);
        check(&mixed, Some(News::Unusable(TlsError::Mismatched)));
        check(&mixed, None);
        check(&unreadable, None);
        check(&unreadable, Some(News::Unusable(error)));
        check(&unreadable, None);
        check(&second, None);
        check(&second, Some(News::Mended));
        check(&second, None);
        check(&mixed, None);
        check(&mixed, Some(News::Unusable(TlsError::Mismatched)));
        check(&first, None);
        check(&first, Some(News::Adopted));
    }
}
