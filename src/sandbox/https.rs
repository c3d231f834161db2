//! How the simulated Cluster Agent listens: HTTPS with a certificate of its own making.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::serve::Listener;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer, version::TLS13};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Who has not shaken hands by then is no client.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(super) struct Https {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// Those that have yet to shake hands.
    greeted: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl Https {
    /// And the CA (PEM) that vouches for it. As with a real agent, both are made anew each time, and
    /// TLS is 1.3.
    pub(super) fn new(listener: TcpListener) -> anyhow::Result<(Self, String)> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "localhost-ca");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let names = vec!["localhost".to_owned(), listener.local_addr()?.ip().to_string()];
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "localhost");
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;

        let chain = vec![certificate.der().clone(), authority.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut tls = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        Ok((Self { listener, acceptor, greeted: JoinSet::new() }, authority.pem()))
    }
}

impl Listener for Https {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                Some(greeted) = self.greeted.join_next() => {
                    // Who does not trust the certificate hangs up.
                    if let Ok(Some(client)) = greeted {
                        return client;
                    }
                }
                (client, address) = Listener::accept(&mut self.listener) => {
                    let handshake = timeout(HANDSHAKE, self.acceptor.accept(client));
                    self.greeted.spawn(async move { Some((handshake.await.ok()?.ok()?, address)) });
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
