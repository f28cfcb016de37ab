//! What a connection is to pingora: any byte stream of ours, with the facts about who is at its far end.
//!
//! After TLS and sniff, before `proxy`. Only delegates, never reads or writes of its own accord.

mod paid;

use crate::decide::Purpose;
use crate::life::Seat;
use crate::listen::forwarded::{Origin, Trust};
use crate::listen::socket::Raw;
use crate::observability::connections::Entry;
use crate::tls::TlsStream;
use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use paid::Paid;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use postern_certs::mutual::ClientCertificate;
use postern_wire::token::TokenKey;
use std::borrow::Cow;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Who is at the far end of a transport, before anything was asked.
#[derive(Debug, Clone)]
pub struct Far {
    /// Behind a PROXY header, whom it names.
    pub client: SocketAddr,
    pub tls: bool,
    /// What the client showed in its handshake, for the log. It was verified.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The client is a proxy whose word about the real one counts.
    pub hop: Option<Arc<Trust>>,
}

/// Facts about one connection that every stream on it can see.
#[derive(Debug)]
pub struct Connection {
    /// The real client, as far as it is known for the whole connection; a proxy that multiplexes several clients over
    /// HTTP/2 is itself. See [`Connection::origin`].
    pub client: SocketAddr,
    pub tls: bool,
    /// What the WebSocket handshake asked for, when the streams run inside one. The `:authority` of such streams
    /// means nothing.
    pub tunnelled_for: Option<String>,
    /// Its place among the connections that are open.
    pub entry: Option<Arc<Entry>>,
    pub certificate: Option<Arc<ClientCertificate>>,
    origin: Origin,
    /// Its word is to be asked for with each request.
    hop: Option<Arc<Trust>>,
    /// The client behind the proxy may not be served; one without a proxy would not have come this far.
    denied: bool,
    /// It is a trusted proxy that asks for itself.
    own: bool,
    /// The tokens whose tunnels on this connection were already counted once.
    paid: Mutex<Paid>,
    /// An agent is at the far end, which answers pings as long as it lives.
    agent: AtomicBool,
    /// What its streams count in.
    pub seat: Arc<Seat>,
}

impl Connection {
    /// Without proxies in between.
    pub fn new(client: SocketAddr, tls: bool, tunnelled_for: Option<String>) -> Self {
        Self::from(Far { client, tls, certificate: None, hop: None }, tunnelled_for)
    }

    /// A connection whose requests may each come from another client, if the far end is a trusted proxy.
    pub fn from(far: Far, tunnelled_for: Option<String>) -> Self {
        let origin = Origin::direct(far.client, far.tls);
        Self::with(far, origin, false, false, tunnelled_for)
    }

    /// A connection that carries one client's requests, told by the head it began with: one request of HTTP/1.1, or
    /// a tunnel. What its streams say of themselves is not believed any more.
    pub fn opened_by(far: &Far, headers: &HeaderMap, tunnelled_for: Option<String>) -> Self {
        let (origin, denied) = match &far.hop {
            Some(hop) => judged(hop, far.client, hop.origin(far.client, far.tls, headers)),
            None => (Origin::direct(far.client, far.tls), false),
        };
        let own = far.hop.is_some() && origin.client.ip() == far.client.ip();
        Self::with(Far { hop: None, ..far.clone() }, origin, denied, own, tunnelled_for)
    }

    fn with(far: Far, origin: Origin, denied: bool, own: bool, tunnelled_for: Option<String>) -> Self {
        let seat = Arc::new(Seat::new(far.hop.is_some()));
        if far.hop.is_none() && !own {
            seat.note_client(Some(origin.client.ip()));
        }
        Self {
            client: origin.client,
            tls: far.tls,
            tunnelled_for,
            entry: None,
            certificate: far.certificate,
            origin,
            hop: far.hop,
            denied,
            own,
            paid: Mutex::default(),
            agent: AtomicBool::new(false),
            seat,
        }
    }

    /// Where a request on this connection comes from.
    pub fn origin(&self, headers: &HeaderMap) -> Cow<'_, Origin> {
        match &self.hop {
            Some(hop) => Cow::Owned(hop.origin(self.client, self.tls, headers)),
            None => Cow::Borrowed(&self.origin),
        }
    }

    /// Whether its requests come from several clients, through a trusted proxy.
    pub fn is_behind_proxy(&self) -> bool {
        self.hop.is_some()
    }

    /// Whether the client of a request may be served at all.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        match &self.hop {
            Some(hop) => !judged(hop, self.client, hop.origin(self.client, self.tls, headers)).1,
            None => !self.denied,
        }
    }

    /// Whom policies about addresses judge. `None`: a trusted proxy, which asks for itself.
    pub fn judged(&self, headers: &HeaderMap) -> Option<IpAddr> {
        match &self.hop {
            Some(hop) => {
                let client = hop.origin(self.client, self.tls, headers).client.ip();
                (client != self.client.ip()).then_some(client)
            }
            None => (!self.own).then(|| self.client.ip()),
        }
    }

    /// One request of this connection, as a connection of its own.
    pub fn of_request(&self, headers: &HeaderMap) -> Self {
        let certificate = self.certificate.clone();
        let far = Far { client: self.client, tls: self.tls, certificate, hop: self.hop.clone() };
        let request = match self.hop {
            Some(_) => Self::opened_by(&far, headers, None),
            None => Self::with(far, self.origin.clone(), self.denied, self.own, None),
        };
        // Told to leave together: what is cut with the connection is cut by the edge.
        Self { entry: self.entry.clone(), seat: self.seat.clone(), ..request }
    }

    /// On a connection that carries one request after the other, and is known by `seat`.
    pub fn seated(mut self, seat: &Arc<Seat>) -> Self {
        seat.note_client(self.seat.client());
        self.seat = seat.clone();
        self
    }

    /// With its place among the connections that are open.
    pub fn known_as(mut self, entry: &Arc<Entry>) -> Self {
        self.entry = Some(entry.clone());
        self
    }

    /// Finds the facts again from inside an HTTP session.
    pub fn of(digest: Option<&Digest>) -> Option<&Self> {
        digest?.proxy_digest.as_deref()?.user_data.as_deref()?.downcast_ref()
    }

    /// Whether this stream must be paid from the token's bucket: all but further tunnels of a connection that has
    /// paid for one. An agent re-arms its tunnels after every request; that is no new connection.
    pub fn must_pay(&self, purpose: Purpose, token: &TokenKey) -> bool {
        purpose != Purpose::Tunnel || !self.tunnels().have(token)
    }

    /// Remembers that a tunnel of this token was paid for.
    pub fn paid(&self, purpose: Purpose, token: TokenKey) {
        if purpose == Purpose::Tunnel {
            self.tunnels().add(&token);
        }
    }

    /// An agent's stream came.
    pub fn note_agent(&self) {
        self.agent.store(true, Ordering::Relaxed);
    }

    pub fn is_agent(&self) -> bool {
        self.agent.load(Ordering::Relaxed)
    }

    fn tunnels(&self) -> std::sync::MutexGuard<'_, Paid> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the listener of this proxy would not serve that client. One that asks for nobody asks for itself, as its
/// health checks do, and is trusted.
fn judged(hop: &Trust, peer: SocketAddr, origin: Origin) -> (Origin, bool) {
    let denied = origin.client.ip() != peer.ip() && !hop.access.admits(origin.client.ip());
    (origin, denied)
}

/// The transport as accepted.
#[derive(Debug)]
pub enum Socket {
    Plain(Raw),
    Tls(Box<TlsStream>),
}

/// A byte stream in the shape that pingora's HTTP/1.1 server wants.
pub struct Transport<S> {
    io: S,
    facts: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
    id: UniqueIDType,
}

impl<S> Transport<S> {
    /// Wraps `io`, which runs over the connection that `socket` is about.
    pub fn new(io: S, socket: &SocketFacts, connection: Connection) -> Self {
        let response = ResponseHeader::build(StatusCode::OK, Some(0)).expect("200 is a status");
        Self {
            io,
            facts: Arc::new(ProxyDigest::new(Box::new(response), Some(Box::new(connection)))),
            socket: socket.digest.clone(),
            id: socket.id,
        }
    }

    pub fn into_inner(self) -> S {
        self.io
    }
}

/// The addresses and descriptor of a connection, read once.
#[derive(Debug, Clone)]
pub struct SocketFacts {
    digest: Arc<SocketDigest>,
    /// The descriptor: unique among open connections, which is all that pingora asks for.
    id: UniqueIDType,
}

impl SocketFacts {
    pub fn of(raw: &Raw, client: SocketAddr) -> Self {
        let id = raw.as_raw_fd();
        let digest = SocketDigest::from_raw_fd(id);
        // Set now, because pingora would otherwise ask the descriptor later, when it may be somebody else's.
        let _ = digest.peer_addr.set(Some(client.into()));
        let _ = digest.local_addr.set(raw.local_addr().map(Into::into));
        let _ = digest.original_dst.set(None);
        Self { digest: Arc::new(digest), id }
    }

    /// Ends the connection for both sides, whoever reads and writes it. To be called only while it is open: its descriptor
    /// may be another one's afterwards.
    pub fn shut(&self) {
        // The client may be gone already.
        let _ = nix::sys::socket::shutdown(self.id, nix::sys::socket::Shutdown::Both);
    }
}

impl<S> fmt::Debug for Transport<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<S> Ssl for Transport<S> {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H1)
    }
}

impl<S> UniqueID for Transport<S> {
    fn id(&self) -> UniqueIDType {
        self.id
    }
}

impl<S> GetTimingDigest for Transport<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl<S> GetProxyDigest for Transport<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.facts.clone())
    }
}

impl<S> GetSocketDigest for Transport<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

#[async_trait]
impl<S: Send> Peek for Transport<S> {}

#[async_trait]
impl<S: AsyncWrite + Unpin + Send> Shutdown for Transport<S> {
    async fn shutdown(&mut self) {
        // The peer may be gone already; there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(&mut self.io).await;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

macro_rules! on_either {
    ($socket:expr, $io:ident => $call:expr) => {
        match $socket.get_mut() {
            Socket::Plain($io) => $call,
            Socket::Tls($io) => {
                let $io = &mut **$io;
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_either!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
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
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
