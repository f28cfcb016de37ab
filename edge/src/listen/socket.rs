//! Sockets that are listened on, TCP and Unix, and the streams that come from them.
//!
//! From `config`, through `server` which shares them between workers, to `accept`. Knows no protocol.

use super::Place;
use crate::handover::{Inherited, Offer};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A storm of agents that all come back at once must not overflow it.
const BACKLOG: i32 = 4096;

/// A socket that is bound and belongs to no runtime yet.
#[derive(Debug)]
pub enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The same, in a worker's runtime.
#[derive(Debug)]
pub enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// One accepted connection.
#[derive(Debug)]
pub enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The file of a Unix socket; removed with this value, unless another process has put its own in the place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Bound {
    /// Binds. A file that nobody listens on any more is replaced; one that somebody does is an error.
    pub fn bind(place: &Place) -> io::Result<(Self, Option<SocketFile>)> {
        match place {
            Place::Ip { address, v6_only } => Ok((Self::Tcp(bind(*address, *v6_only)?), None)),
            Place::Unix { path, mode } => {
                let (listener, file) = bind_file(path, *mode)?;
                Ok((Self::Unix(listener), Some(file)))
            }
        }
    }

    /// The same, unless the socket was inherited, under the name `asked_for` or with this address.
    pub fn open(
        asked_for: &str,
        place: &Place,
        inherited: &mut Inherited,
    ) -> io::Result<(Self, Option<SocketFile>)> {
        let socket = match place {
            Place::Ip { address, .. } => inherited.bound_to(asked_for, *address),
            Place::Unix { .. } => inherited.named(asked_for),
        };
        let Some(socket) = socket else { return Self::bind(place) };
        tracing::info!(name = asked_for, "listening socket inherited");
        match place {
            Place::Ip { .. } => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok((Self::Tcp(listener), None))
            }
            Place::Unix { path, .. } => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                // systemd removes its own; removing it twice does no harm.
                let file = std::fs::metadata(path)
                    .ok()
                    .map(|about| SocketFile { path: path.clone(), id: (about.dev(), about.ino()) });
                Ok((Self::Unix(listener), file))
            }
        }
    }

    /// Offers a duplicate to a successor.
    pub fn offer(&self, asked_for: String, offer: &Offer) -> io::Result<()> {
        let socket = match self.try_clone()? {
            Self::Tcp(listener) => listener.into(),
            Self::Unix(listener) => listener.into(),
        };
        offer.add(asked_for, socket);
        Ok(())
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }

    /// With the port that the system chose, where it was asked to.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Some),
            Self::Unix(_) => Ok(None),
        }
    }
}

fn bind(address: SocketAddr, v6_only: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart must not wait for the connections of the one before.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Said either way, for what the system takes as a default differs.
        socket.set_only_v6(v6_only)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_file(path: &Path, mode: u32) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on this file"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A socket that is alive but full, and a file that is no socket, are not ours to replace.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Made aside and renamed, so that nobody meets it with another mode, nor finds none while it is replaced.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let aside = path.with_file_name(name);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    socket.bind(&socket2::SockAddr::unix(&aside)?)?;
    let placed = (|| {
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        let about = std::fs::metadata(&aside)?;
        std::fs::rename(&aside, path)?;
        Ok(SocketFile { path: path.to_owned(), id: (about.dev(), about.ino()) })
    })();
    if placed.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    placed.map(|file| (socket.into(), file))
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket())
}

impl SocketFile {
    /// Leaves the file where it is: another process serves it from now on.
    pub fn keep(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path);
        if ours.is_ok_and(|about| (about.dev(), about.ino()) == self.id) {
            // A file that stays behind is replaced by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// To be called in the runtime that shall accept.
    pub fn of(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(listener) => Self::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Bound::Unix(listener) => Self::Unix(tokio::net::UnixListener::from_std(listener)?),
        })
    }

    /// The next connection. Peers of a Unix socket have no address.
    pub async fn accept(&self) -> io::Result<(Raw, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (tcp, peer) = listener.accept().await?;
                // A socket for both families shows IPv4 as IPv6.
                Ok((Raw::Tcp(tcp), Some(SocketAddr::new(peer.ip().to_canonical(), peer.port()))))
            }
            Self::Unix(listener) => Ok((Raw::Unix(listener.accept().await?.0), None)),
        }
    }
}

impl Raw {
    /// No delay, and a keepalive that finds a vanished peer within a minute of silence.
    pub fn tune(&self) {
        let Self::Tcp(tcp) = self else { return };
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        // No user timeout: it would also cut a client that is alive but reads nothing, as a suspended kubectl, whose
        // window stays closed for as long as it sleeps.
        let tuned = tcp.set_nodelay(true).and_then(|()| SockRef::from(tcp).set_tcp_keepalive(&keepalive));
        if let Err(error) = tuned {
            tracing::debug!(%error, "socket options were refused");
        }
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(tcp) => tcp.as_raw_fd(),
            Self::Unix(unix) => unix.as_raw_fd(),
        }
    }
}

macro_rules! on_either {
    ($raw:expr, $io:ident => $call:expr) => {
        match $raw.get_mut() {
            Raw::Tcp($io) => $call,
            Raw::Unix($io) => $call,
        }
    };
}

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_either!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_either!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, io => Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn place(path: &Path) -> Place {
        Place::Unix { path: path.to_owned(), mode: 0o600 }
    }

    #[tokio::test]
    async fn a_unix_socket_has_its_mode_and_is_gone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edge.sock");
        let (bound, file) = Bound::bind(&place(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let listener = Listener::of(bound).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let (mut raw, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, None);
        raw.tune();
        client.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        raw.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        drop(file);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edge.sock");
        // Closed without removing its file, as a process does that is killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_bound, file) = Bound::bind(&place(&path)).unwrap();
        assert_eq!(Bound::bind(&place(&path)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The file of a successor stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        drop(file);
        assert!(path.exists());
        // What is no socket is not ours.
        Bound::bind(&place(&path)).unwrap_err();
        assert!(path.exists());
    }

    #[tokio::test]
    async fn both_families_come_to_one_socket_unless_told_otherwise() {
        let place = |v6_only| Place::Ip { address: "[::]:0".parse().unwrap(), v6_only };
        let (bound, _) = Bound::bind(&place(false)).unwrap();
        let port = bound.local_addr().unwrap().unwrap().port();
        let listener = Listener::of(bound).unwrap();
        for (to, seen) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            let _client = TcpStream::connect(SocketAddr::new(to.parse().unwrap(), port)).await.unwrap();
            let peer = listener.accept().await.unwrap().1.unwrap();
            assert_eq!(peer.ip().to_string(), seen);
        }
        let (bound, _) = Bound::bind(&place(true)).unwrap();
        let port = bound.local_addr().unwrap().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    }
}
