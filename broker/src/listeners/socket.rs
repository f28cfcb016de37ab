//! A bound socket of any kind kas' `network` names, and one accepted connection as a byte stream. It comes before
//! every protocol; it knows none of them.

use crate::config::{ListenAddress, ListenConfig};
use postern_certs::{CertError, server::ServerIdentity};
use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// Connections one listener holds at a time; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 20_000;
/// A peer that vanished is noticed within about a minute even if nothing is sent.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);
/// After a failed accept (no file descriptors left, mostly) the system gets this long to recover.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address} for {listener}")]
    Bind {
        /// Which listener.
        listener: &'static str,
        /// As configured.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its certificate cannot be used.
    #[error("certificate of the {listener} listener")]
    Certificate {
        /// Which listener.
        listener: &'static str,
        /// Names the file.
        #[source]
        source: CertError,
    },
}

/// A socket that is bound, with the identity to show on it.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    /// The address that was really bound.
    pub address: ListenAddress,
    /// Absent: cleartext.
    pub identity: Option<Arc<ServerIdentity>>,
    connections: Arc<Semaphore>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix { socket: UnixListener, _unlink: Unlink },
}

/// Removes the socket file once nobody listens there.
#[derive(Debug)]
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds the socket and loads its certificate. `listener` names it in errors and logs.
    pub async fn bind(config: &ListenConfig, listener: &'static str) -> Result<Self, BindError> {
        let failed = |source| BindError::Bind { listener, address: config.address.to_string(), source };
        let identity = match &config.tls {
            None => None,
            Some(files) => Some(
                ServerIdentity::load(vec![files.clone()])
                    .map_err(|source| BindError::Certificate { listener, source })?,
            ),
        };
        let (kind, address) = match &config.address {
            ListenAddress::Tcp(address) => {
                let socket = TcpListener::bind(address).await.map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                (Kind::Tcp(socket), ListenAddress::Tcp(bound))
            }
            ListenAddress::Unix(path) => {
                // A file left by a killed process would keep the next one from starting.
                if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
                    && UnixStream::connect(path).await.is_err()
                {
                    let _ = std::fs::remove_file(path);
                }
                let socket = UnixListener::bind(path).map_err(failed)?;
                (Kind::Unix { socket, _unlink: Unlink(path.clone()) }, config.address.clone())
            }
        };
        tracing::info!(listener, %address, tls = identity.is_some(), "listening");
        Ok(Self { kind, address, identity, connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)) })
    }

    /// The next connection; `None` once `stop` fires. It waits while too many are open.
    pub async fn accept(&self, stop: &CancellationToken) -> Option<Accepted> {
        loop {
            let permit = Arc::clone(&self.connections).acquire_owned();
            let permit = stop.run_until_cancelled(permit).await?.ok()?;
            let accepted = match &self.kind {
                Kind::Tcp(socket) => {
                    stop.run_until_cancelled(socket.accept()).await?.map(|(stream, peer)| {
                        let socket = SockRef::from(&stream);
                        let _ = socket.set_tcp_nodelay(true);
                        let _ = socket.set_tcp_keepalive(&KEEPALIVE);
                        Accepted { stream: Stream::Tcp(stream), peer: Peer::Tcp(peer), _permit: permit }
                    })
                }
                Kind::Unix { socket, .. } => {
                    stop.run_until_cancelled(socket.accept()).await?.map(|(stream, _)| Accepted {
                        stream: Stream::Unix(stream),
                        peer: Peer::Unix,
                        _permit: permit,
                    })
                }
            };
            match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    tracing::warn!(address = %self.address, %error, "accept failed");
                    stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await?;
                }
            }
        }
    }
}

/// Who is at the other end of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Its address.
    Tcp(SocketAddr),
    /// A process on this machine.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// One accepted connection, before TLS. While it lives it counts against the listener's bound.
#[derive(Debug)]
pub struct Accepted {
    stream: Stream,
    /// Who it is.
    pub peer: Peer,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
