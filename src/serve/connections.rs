//! What connects to the gRPC port, up to where HTTP/2 begins. Who does not get so far in time, or
//! finds no place, is closed: nobody holds up others, or uses up the file descriptors.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::{
    places::{Limits, Place, Places},
    requests::Peer,
};
use crate::tls::Certificates;

/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client that speaks HTTP/2, or something else that the server has to turn down.
pub(super) struct Connection {
    client: Client,
    /// What it has said and the server has yet to read.
    said: Said,
    /// When it is cut.
    end: Pin<Box<Sleep>>,
    place: Place,
}

type Client = Either<TcpStream, TlsStream<TcpStream>>;

struct Said {
    bytes: [u8; PREFACE.len()],
    /// What of them is there to read.
    from: usize,
    to: usize,
}

/// Lets clients in.
struct Door {
    listener: TcpListener,
    certificates: Option<Certificates>,
    silence: Duration,
    /// How long a connection may last.
    lifetime: Duration,
    places: Places,
    /// Those that have yet to say what they speak.
    silent: JoinSet<(SocketAddr, io::Result<Connection>)>,
    waiting: Waiting,
    is_failing: bool,
}

/// The silent ones, the oldest first.
struct Waiting {
    most: usize,
    clients: Vec<(IpAddr, AbortHandle)>,
}

/// Clients that speak HTTP/2, over TLS if there are certificates. Each is cut after its `lifetime`,
/// which is longer than one that behaves needs.
pub(super) fn connections(
    listener: TcpListener,
    certificates: Option<Certificates>,
    limits: Limits,
    lifetime: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let door = Door {
        listener,
        certificates,
        silence: limits.silence,
        lifetime,
        places: Places::new(limits.connections, limits.connections_of_an_address),
        silent: JoinSet::new(),
        waiting: Waiting { most: limits.silent, clients: Vec::new() },
        is_failing: false,
    };
    stream::unfold(door, |mut door| async move { Some((Ok(door.next().await), door)) })
}

impl Door {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.silent.join_next() => match done {
                    Ok((_, Ok(connection))) => return connection,
                    Ok((client, Err(error))) => {
                        tracing::debug!(%client, %error, "a client did not get as far as HTTP/2");
                    }
                    // It gave way to others.
                    Err(_) => {}
                },
                (client, address) = accept(&self.listener, &mut self.is_failing) => {
                    self.admit(client, address);
                }
            }
        }
    }

    fn admit(&mut self, client: TcpStream, address: SocketAddr) {
        // As an IPv4 client is called on an IPv6 socket.
        let ip = address.ip().to_canonical();
        let place = match self.places.take(ip) {
            Ok(place) => place,
            // At once: KEDA fails fast and tries again, in place of waiting for an answer.
            Err(full) => {
                return full.tell(
                    "there are too many connections to the gRPC port; further ones are closed",
                );
            }
        };
        // Without it an answer may wait for the next one; no reason to refuse it.
        let _ = client.set_nodelay(true);
        let (certificates, lifetime) = (self.certificates.clone(), self.lifetime);
        let silence = self.silence;
        let greeted = async move {
            let connection = timeout(silence, greet(client, certificates)).await;
            let connection = connection.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let connection = connection.map(|(client, said)| {
                let end = Box::pin(sleep(lifetime));
                Connection { client, said, end, place }
            });
            (address, connection)
        };
        self.waiting.make_room();
        self.waiting.clients.push((ip, self.silent.spawn(greeted)));
    }
}

impl Waiting {
    /// If there are too many, the oldest of the address with the most of them goes: who needs no
    /// more than an honest client's moment is let in, however many others come and say nothing.
    fn make_room(&mut self) {
        if self.clients.len() < self.most {
            return;
        }
        self.clients.retain(|(_, client)| !client.is_finished());
        if self.clients.len() < self.most {
            return;
        }
        let of = |ip: IpAddr| self.clients.iter().filter(|(other, _)| *other == ip).count();
        let most = self.clients.iter().map(|(ip, _)| of(*ip)).max();
        if let Some(at) = self.clients.iter().position(|(ip, _)| Some(of(*ip)) == most) {
            self.clients.remove(at).1.abort();
        }
    }
}

/// Until the client has said that it speaks HTTP/2, or something else: the server answers that.
async fn greet(
    client: TcpStream,
    certificates: Option<Certificates>,
) -> io::Result<(Client, Said)> {
    let mut client = match certificates {
        Some(certificates) => Either::Right(certificates.accept(client).await?),
        None => Either::Left(client),
    };
    let mut said = Said { bytes: [0; PREFACE.len()], from: 0, to: 0 };
    while said.to < PREFACE.len() && PREFACE.starts_with(&said.bytes[..said.to]) {
        match client.read(&mut said.bytes[said.to..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => said.to += bytes,
        }
    }
    Ok((client, said))
}

/// tonic would try again at once when accepting fails for want of file descriptors, and keep a core
/// busy with it.
async fn accept(listener: &TcpListener, is_failing: &mut bool) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                *is_failing = false;
                return accepted;
            }
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                if !*is_failing {
                    tracing::error!(%error, "connections cannot be accepted");
                }
                *is_failing = true;
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Connection {
    fn client(&mut self) -> Pin<&mut Client> {
        Pin::new(&mut self.client)
    }

    fn check_age(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_age(cx)?;
        let said = &mut self.said;
        if said.from < said.to {
            let to = said.to.min(said.from + into.remaining());
            into.put_slice(&said.bytes[said.from..to]);
            said.from = to;
            return Poll::Ready(Ok(()));
        }
        self.client().poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_age(cx)?;
        self.client().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_age(cx)?;
        self.client().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_age(cx)?;
        self.client().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_age(cx)?;
        self.client().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.client.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.place.of)
    }
}
