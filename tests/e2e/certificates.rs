//! One authority for everything in a run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// For a server of these names or addresses, which may be a client too.
    pub(crate) fn server(&self, names: &[&str]) -> anyhow::Result<Pair> {
        self.issue("server", None, names)
    }

    /// For a client that Kubernetes knows by this name, in this group.
    pub(crate) fn client(&self, name: &str, group: Option<&str>) -> anyhow::Result<Pair> {
        self.issue(name, group, &[])
    }

    fn issue(&self, name: &str, group: Option<&str>, names: &[&str]) -> anyhow::Result<Pair> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

/// A key that signs tokens, and what tells that it has.
pub(crate) fn signing_key() -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

impl Pair {
    /// Writes `tls.crt` and `tls.key`, as a Secret of that type has them.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        fs::create_dir_all(directory)?;
        let (cert, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        fs::write(&cert, &self.cert)?;
        fs::write(&key, &self.key)?;
        Ok((cert, key))
    }
}
