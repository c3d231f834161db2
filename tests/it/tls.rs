//! TLS on the gRPC port: who is let in, and certificates that change while it runs.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use keda_datadog_scaler::{serve, tls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore,
        SupportedProtocolVersion,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
        version::{TLS12, TLS13},
    },
};
use tracing::subscriber::DefaultGuard;

use crate::{
    authority::{Authority, Mounted, Pair},
    connections::GREETING,
    harness::{FakeDatadog, Keda, Relay, Reply, Server, config, object, soon},
};

pub(crate) const NAME: &str = "scaler.example";
/// A record of TLS that is an alert (RFC 8446, section 5.1).
const ALERT: u8 = 21;

/// `serve` with the certificates of this Secret.
fn secured(datadog: &FakeDatadog, secret: &Mounted, client_ca: Option<&str>) -> serve::Config {
    let mut config = config(&datadog.url);
    config.tls = Some(tls::Config {
        cert: secret.path("tls.crt"),
        key: secret.path("tls.key"),
        client_ca: client_ca.map(|name| secret.path(name)),
        look_every: Duration::from_millis(5),
    });
    config
}

pub(crate) fn files<'a>(pair: &'a Pair, client_ca: &'a str) -> [(&'a str, &'a str); 3] {
    [("tls.crt", &pair.cert), ("tls.key", &pair.key), ("ca.crt", client_ca)]
}

pub(crate) struct Secured {
    pub(crate) server: Server,
    secret: Mounted,
    _datadog: FakeDatadog,
}

impl Secured {
    /// A server with a certificate of this authority, and who has to vouch for clients.
    pub(crate) async fn start(authority: &Authority, clients: Option<&Authority>) -> Self {
        let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
        let client_ca = clients.map_or_else(String::new, Authority::pem);
        let secret = Mounted::new(&files(&authority.issue(NAME), &client_ca));
        let config = secured(&datadog, &secret, clients.map(|_| "ca.crt"));
        Self { server: Server::start_with(config).await, secret, _datadog: datadog }
    }
}

/// Trusts this authority, and shows this certificate if it is asked for one.
#[derive(Clone, Copy)]
struct Client<'a> {
    trusts: &'a Authority,
    shows: Option<&'a Pair>,
    speaks: &'a [&'static SupportedProtocolVersion],
}

impl<'a> Client<'a> {
    fn new(trusts: &'a Authority) -> Self {
        Self { trusts, shows: None, speaks: rustls::ALL_VERSIONS }
    }

    fn config(self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.trusts.pem().as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(self.speaks);
        let builder = builder.with_root_certificates(roots);
        let mut config = match self.shows.map(Pair::der) {
            Some((cert, key)) => builder.with_client_auth_cert(vec![cert], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    async fn greets(self, server: &Server) -> Result<TlsStream<TcpStream>, AlertDescription> {
        greet(server, Arc::new(self.config())).await
    }
}

/// A connection on which the server has begun HTTP/2, or why it would not.
async fn greet(
    server: &Server,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, AlertDescription> {
    let greeted = async {
        let stream = TcpStream::connect(address(&server.grpc)).await?;
        let name = ServerName::try_from(NAME).unwrap();
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        stream.write_all(GREETING).await?;
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await?;
        assert_eq!(frame[3], 4, "it is no SETTINGS frame");
        Ok(stream)
    };
    soon(greeted).await.map_err(|error: io::Error| {
        let reason = error.get_ref().and_then(|inner| inner.downcast_ref());
        match reason {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            _ => panic!("it is no alert: {error}"),
        }
    })
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

/// What the server shows.
fn shown(stream: &TlsStream<TcpStream>) -> &CertificateDer<'static> {
    &stream.get_ref().1.peer_certificates().unwrap()[0]
}

/// Secures the connections of a plaintext client.
struct Tunnel {
    url: String,
    _running: JoinSet<()>,
}

impl Tunnel {
    async fn start(to: &str, tls: ClientConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (to, tls) = (address(to), TlsConnector::from(Arc::new(tls)));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut tunnelled = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let tls = tls.clone();
                tunnelled.spawn(async move {
                    let server = TcpStream::connect(to).await?;
                    let mut server = tls.connect(NAME.try_into().unwrap(), server).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { url, _running: running }
    }

    async fn client(&self) -> Keda {
        Keda::at(&self.url).await
    }
}

/// What this thread logs.
struct Log {
    text: watch::Receiver<String>,
    _guard: DefaultGuard,
}

struct Writer(watch::Sender<String>);

impl Log {
    fn start() -> Self {
        let (sender, text) = watch::channel(String::new());
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Writer(sender.clone()))
            .finish();
        Self { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// There is one line with both of these; waits for it.
    async fn has_one(&mut self, level: &str, message: &str) {
        let has = |log: &String| log.contains(message);
        let log = soon(self.text.wait_for(has)).await.unwrap();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(message)).collect();
        assert!(lines.len() == 1 && lines[0].contains(level), "{lines:?}");
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_modify(|text| *text += std::str::from_utf8(bytes).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn tls_is_spoken_from_1_2_on_and_only_for_http_2() {
    let authority = Authority::new("servers");
    let Secured { server, .. } = &Secured::start(&authority, None).await;
    for (version, expected) in
        [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)]
    {
        let client = Client { speaks: &[version], ..Client::new(&authority) };
        let stream = client.greets(server).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.protocol_version(), Some(expected));
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));

        let tunnel = Tunnel::start(&server.grpc, client.config()).await;
        assert_eq!(tunnel.client().await.value(&object(&[])).await.unwrap(), 8.0);
    }
    let mut http_1 = Client::new(&authority).config();
    http_1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let refused = greet(server, Arc::new(http_1)).await;
    assert_eq!(refused.unwrap_err(), AlertDescription::NoApplicationProtocol);
}

#[tokio::test]
async fn a_plaintext_client_is_told_so_in_tls_and_harms_nobody() {
    let authority = Authority::new("servers");
    let Secured { server, .. } = &Secured::start(&authority, None).await;
    let mut plain = TcpStream::connect(address(&server.grpc)).await.unwrap();
    plain.write_all(GREETING).await.unwrap();
    let mut answer = Vec::new();
    // The answer may be cut short, since it has not read all that was said.
    let _ = soon(plain.read_to_end(&mut answer)).await;
    assert_eq!(answer.first(), Some(&ALERT), "{answer:?}");

    let tunnel = Tunnel::start(&server.grpc, Client::new(&authority).config()).await;
    assert_eq!(tunnel.client().await.value(&object(&[])).await.unwrap(), 8.0);
}

#[tokio::test]
async fn with_a_client_ca_only_its_clients_are_let_in() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let Secured { server, .. } = &Secured::start(&servers, Some(&clients)).await;
    let (known, unknown) = (clients.issue("keda"), servers.issue("keda"));
    for version in [&TLS13, &TLS12] {
        let client = Client { speaks: &[version], ..Client::new(&servers) };
        let refusal = async |client: Client<'_>| client.greets(server).await.err();
        assert_eq!(refusal(client).await, Some(AlertDescription::CertificateRequired));
        let other = refusal(Client { shows: Some(&unknown), ..client }).await;
        assert_eq!(other, Some(AlertDescription::UnknownCA));
        assert_eq!(refusal(Client { shows: Some(&known), ..client }).await, None);
    }
    let known = Client { shows: Some(&known), ..Client::new(&servers) };
    let tunnel = Tunnel::start(&server.grpc, known.config()).await;
    assert_eq!(tunnel.client().await.value(&object(&[])).await.unwrap(), 8.0);
}

#[tokio::test]
async fn new_connections_see_new_certificates_and_open_ones_live_on() {
    let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
    let Secured { mut server, mut secret, _datadog } =
        Secured::start(&authority, Some(&clients)).await;
    let keda = clients.issue("keda");
    let client = Client { shows: Some(&keda), ..Client::new(&authority) };

    let tunnel = Tunnel::start(&server.grpc, client.config()).await;
    let relay = Relay::start(&tunnel.url).await;
    let mut open = Keda::at(&relay.url).await;
    let mut stream = soon(open.client.stream_is_active(object(&[]))).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().unwrap().result);

    let renewed = authority.issue(NAME);
    assert_ne!(shown(&client.greets(&server).await.unwrap()), &renewed.der().0);
    let mut log = Log::start();
    secret.swap(&files(&renewed, &clients.pem()));
    log.has_one("INFO", "new connections to the gRPC port get the new certificates").await;
    assert_eq!(shown(&client.greets(&server).await.unwrap()), &renewed.der().0);

    // Clients come from elsewhere now; who is connected stays.
    let others = Authority::new("others");
    secret.swap(&files(&renewed, &others.pem()));
    let other = others.issue("keda");
    let other = Client { shows: Some(&other), ..Client::new(&authority) };
    soon(async {
        while let Err(refused) = other.greets(&server).await {
            assert_eq!(refused, AlertDescription::UnknownCA);
        }
    })
    .await;
    assert_eq!(client.greets(&server).await.err(), Some(AlertDescription::UnknownCA));
    assert_eq!(open.value(&object(&[])).await.unwrap(), 8.0);
    server.shutdown.leave.cancel();
    assert!(soon(stream.message()).await.unwrap().is_none(), "the stream ends with OK");
    assert_eq!(*relay.connections.borrow(), 1);
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_set_that_cannot_be_used_leaves_the_last_in_use() {
    let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (pair, ca) = (authority.issue(NAME), clients.pem());
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let mut secret = Mounted::new(&files(&pair, &ca));
    let mut log = Log::start();
    let server = Server::start_with(secured(&datadog, &secret, Some("ca.crt"))).await;
    let keda = clients.issue("keda");
    let client = Client { shows: Some(&keda), ..Client::new(&authority) };
    client.greets(&server).await.unwrap();

    let of_another = Pair { cert: pair.cert.clone(), ..authority.issue(NAME) };
    let no_cert = Pair { cert: "not PEM".into(), ..pair.clone() };
    let no_key = Pair { key: pair.cert.clone(), ..pair.clone() };
    let bad: [(&[(&str, &str)], &str); 5] = [
        (&files(&of_another, &ca), "`--tls-key` is not the key of the certificate in `--tls-cert`"),
        (
            &files(&no_cert, &ca),
            "tls.crt\", which holds no certificate; give a file with one (PEM)",
        ),
        (&files(&no_key, &ca), "tls.key\", which holds no private key that is not encrypted"),
        (&files(&pair, ""), "ca.crt\", which holds no certificate"),
        (&files(&pair, &ca)[1..], "tls.crt\", which cannot be read (No such file or directory"),
    ];
    for (files, message) in bad {
        secret.swap(files);
        log.has_one("WARN", message).await;
        let stream = client.greets(&server).await.unwrap();
        assert_eq!(shown(&stream), &pair.der().0);
    }
    secret.swap(&files(&pair, &ca));
    log.has_one("INFO", "the certificates of the gRPC port can be re-read again").await;
    assert!(!log.text.borrow().contains("PRIVATE KEY"), "a key is logged");
}

#[tokio::test]
async fn no_session_is_resumed_so_that_each_client_is_checked() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let Secured { server, mut secret, .. } = Secured::start(&servers, Some(&clients)).await;
    let keda = clients.issue("keda");
    let remembering = [&TLS13, &TLS12].map(|version| {
        let client = Client { shows: Some(&keda), speaks: &[version], ..Client::new(&servers) };
        Arc::new(client.config())
    });
    for config in &remembering {
        for _ in 0..2 {
            let stream = greet(&server, config.clone()).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
    let others = Authority::new("others");
    secret.swap(&files(&servers.issue(NAME), &others.pem()));
    let other = others.issue("keda");
    let other = Client { shows: Some(&other), ..Client::new(&servers) };
    soon(async { while other.greets(&server).await.is_err() {} }).await;
    for config in remembering {
        assert_eq!(greet(&server, config).await.err(), Some(AlertDescription::UnknownCA));
    }
}

#[tokio::test]
async fn who_does_not_get_through_the_handshake_is_closed_in_time() {
    let authority = Authority::new("servers");
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let secret = Mounted::new(&files(&authority.issue(NAME), ""));
    let mut config = secured(&datadog, &secret, None);
    // A good handshake has that long, too.
    config.limits.silence = Duration::from_secs(1);
    let server = Server::start_with(config).await;

    let mut half = TcpStream::connect(address(&server.grpc)).await.unwrap();
    // What a ClientHello begins with.
    half.write_all(&[22, 3, 1]).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(half.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());

    let silent = TcpStream::connect(address(&server.grpc)).await.unwrap();
    let tls = TlsConnector::from(Arc::new(Client::new(&authority).config()));
    let mut silent = soon(tls.connect(NAME.try_into().unwrap(), silent)).await.unwrap();
    let _ = soon(silent.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_server_with_tls_drains_as_one_without() {
    let datadog =
        FakeDatadog::start(|_| Reply::points(&[3.0]).after(Duration::from_millis(300))).await;
    let authority = Authority::new("servers");
    let secret = Mounted::new(&files(&authority.issue(NAME), ""));
    let mut config = secured(&datadog, &secret, None);
    // The grace is a little longer than the patience.
    config.scaler.patience = Duration::from_hours(1);
    let mut server = Server::start_with(config).await;
    let tunnel = Tunnel::start(&server.grpc, Client::new(&authority).config()).await;
    let mut keda = tunnel.client().await;
    let mut stream = soon(keda.client.stream_is_active(object(&[]))).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    // One that never says anything keeps nobody from ending.
    let _silent = TcpStream::connect(address(&server.grpc)).await.unwrap();

    let mut begun = JoinSet::new();
    begun.spawn(async move { keda.value(&object(&[("query", "sum:shop.mails{*}")])).await });
    datadog.was_asked(2).await;
    server.shutdown.leave.cancel();
    assert!(soon(stream.message()).await.unwrap().is_none(), "the stream ends with OK");
    assert_eq!(soon(begun.join_next()).await.unwrap().unwrap().unwrap(), 3.0);
    server.ended().await.unwrap();
}
