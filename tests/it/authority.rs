//! Certificates, and how Kubernetes mounts them.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// Vouches for others.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// For a server or a client of this name.
    pub(crate) fn issue(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

impl Pair {
    pub(crate) fn der(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let cert = CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap();
        (cert, PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap())
    }
}

/// A Secret as Kubernetes mounts it: each file is a link into `..data`, itself a link, which is
/// swapped.
pub(crate) struct Mounted {
    directory: TempDir,
    version: u32,
}

impl Mounted {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let mut mounted = Self { directory: tempfile::tempdir().unwrap(), version: 0 };
        mounted.swap(files);
        for (name, _) in files {
            symlink(format!("..data/{name}"), mounted.path(name)).unwrap();
        }
        mounted
    }

    pub(crate) fn swap(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let version = format!("..{}", self.version);
        fs::create_dir(self.path(&version)).unwrap();
        for (name, content) in files {
            fs::write(self.path(&version).join(name), content).unwrap();
        }
        symlink(version, self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
