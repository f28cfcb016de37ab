//! Opens the byte stream to a Gitaly server: TCP, TLS over TCP, or a Unix socket. HTTP proxies have no part in it.
//! Before it comes the pool, after it HTTP/2.

use super::address::Address;
use http::Uri;
use hyper_util::rt::TokioIo;
use postern_certs::client::{self, ClientTrust};
use rustls::pki_types::ServerName;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// For the name, the connection and the TLS handshake together.
const DIAL: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("cannot connect: {0}; is the server up, and may this host reach it?")]
    Connect(io::Error),
    #[error("{0}")]
    Tls(String),
    #[error("no connection within {DIAL:?}; is the server up, and may this host reach it?")]
    Slow,
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

type Stream = TokioIo<Pin<Box<dyn Io>>>;

/// Dials the same server again and again.
#[derive(Clone)]
pub(super) struct Dialler {
    pub(super) address: Address,
    pub(super) trust: Arc<ClientTrust>,
}

impl Service<Uri> for Dialler {
    type Response = Stream;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialler = self.clone();
        Box::pin(async move {
            let io = timeout(DIAL, dialler.dial()).await.map_err(|_| DialError::Slow)??;
            Ok(TokioIo::new(io))
        })
    }
}

impl Dialler {
    async fn dial(&self) -> Result<Pin<Box<dyn Io>>, DialError> {
        match &self.address {
            Address::Unix(path) => Ok(Box::pin(UnixStream::connect(path).await.map_err(DialError::Connect)?)),
            Address::Tcp { host, port } => Ok(Box::pin(tcp(host, *port).await?)),
            Address::Tls { host, port } => {
                let name = ServerName::try_from(unbracketed(host).to_owned())
                    .map_err(|_| DialError::Tls(format!("{host} is no name that a certificate can hold")))?;
                let config = self.trust.config(&[b"h2"]);
                let io = tcp(host, *port).await?;
                let io = TlsConnector::from(config).connect(name, io).await.map_err(|error| {
                    let explained = client::explain(&error, self.trust.ca_given());
                    DialError::Tls(explained.unwrap_or_else(|| format!("TLS handshake: {error}")))
                })?;
                Ok(Box::pin(io))
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let io = TcpStream::connect((unbracketed(host), port)).await.map_err(DialError::Connect)?;
    io.set_nodelay(true).map_err(DialError::Connect)?;
    Ok(io)
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
