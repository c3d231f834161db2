//! The flags of `serve` that secure the gRPC port.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::tls;

/// How often the files are looked at. Kubernetes takes a minute to project a changed Secret.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Tls {
    /// File with the certificate of the gRPC port, and those that lead to its CA (PEM); without it,
    /// the port speaks plaintext. This and the next two are re-read when they change
    #[arg(long = "tls-cert", env = "SCALER_TLS_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// File with its key (PEM)
    #[arg(long = "tls-key", env = "SCALER_TLS_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// File with the CA certificates (PEM) of those who may connect; without it, everybody may
    #[arg(
        long = "tls-client-ca",
        env = "SCALER_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "cert"
    )]
    client_ca: Option<PathBuf>,
}

impl Tls {
    pub(super) fn config(&self) -> Option<tls::Config> {
        let (cert, key) = self.cert.clone().zip(self.key.clone())?;
        let client_ca = self.client_ca.clone();
        Some(tls::Config { cert, key, client_ca, look_every: LOOK_EVERY })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser as _, error::ErrorKind};

    use crate::cli::{Cli, Command};

    const FILES: [[&str; 2]; 3] =
        [["--tls-cert", "a.pem"], ["--tls-key", "a.key"], ["--tls-client-ca", "ca.pem"]];

    fn parse(files: &[[&str; 2]]) -> Result<Option<super::tls::Config>, ErrorKind> {
        let command = [&["keda-datadog-scaler", "serve"], files.as_flattened()].concat();
        let cli = Cli::try_parse_from(command).map_err(|error| error.kind())?;
        let Command::Serve(serve) = cli.command else { panic!("it is `serve`") };
        Ok(serve.tls.config())
    }

    #[test]
    fn a_certificate_and_a_key_need_each_other_and_a_client_ca_both() {
        let [cert, key, client_ca] = FILES;
        assert!(parse(&[]).unwrap().is_none());
        assert!(parse(&[cert, key]).unwrap().unwrap().client_ca.is_none());
        let all = parse(&FILES).unwrap().unwrap();
        assert_eq!(all.client_ca.unwrap().to_str(), Some("ca.pem"));
        for incomplete in [&[cert][..], &[key], &[client_ca], &[cert, client_ca], &[key, client_ca]]
        {
            assert_eq!(parse(incomplete).unwrap_err(), ErrorKind::MissingRequiredArgument);
        }
    }
}
