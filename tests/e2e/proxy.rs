//! A CONNECT proxy that leads names to ports of this machine, so that no hosts file is touched.
//! What is not listed is refused: nothing leaves the machine.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(crate) struct Proxy {
    address: SocketAddr,
    routes: Routes,
    _server: JoinSet<()>,
}

/// From `host:port`.
type Routes = Arc<Mutex<HashMap<String, SocketAddr>>>;

impl Proxy {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let routes = Routes::default();
        let mut server = JoinSet::new();
        server.spawn(accept(listener, routes.clone()));
        Ok(Self { address, routes, _server: server })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, `host:port` is there.
    pub(crate) fn lead(&self, name: &str, to: SocketAddr) {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), to);
    }
}

async fn accept(listener: TcpListener, routes: Routes) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let routes = routes.clone();
        // Who hangs up has its reasons, which the logs of both ends tell.
        connections.spawn(async move { drop(serve(stream, &routes).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, routes: &Routes) -> anyhow::Result<()> {
    let mut client = BufReader::new(stream);
    let mut first = String::new();
    client.read_line(&mut first).await?;
    let mut line = String::from("headers");
    while !line.trim().is_empty() {
        line.clear();
        ensure!(client.read_line(&mut line).await? > 0, "it ended");
    }
    let name = first.strip_prefix("CONNECT ").context("it is no CONNECT")?;
    let name = name.split_whitespace().next().unwrap_or_default();
    let to = routes.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
    let server = match to {
        Some(to) => TcpStream::connect(to).await.ok(),
        None => None,
    };
    let Some(mut server) = server else {
        client.get_mut().write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await?;
        return Ok(());
    };
    client.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
