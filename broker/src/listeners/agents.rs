//! The agent listener: gRPC over cleartext or TLS, and with `websocket: true` also inside a `ws-tunnel` WebSocket on
//! the same port, told apart by the first bytes. After it come the services; it authenticates nobody.

use crate::listeners::socket::{Accepted, Listener, Peer};
use futures::Stream;
use http::HeaderMap;
use postern_wire::{
    authority::AuthorityFilter,
    sniff::{self, Opening, Rewound},
    ws::{self, WsStream},
};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, transport::server::Connected};

/// For the TLS handshake, and again for the first bytes.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Less than the idle time-outs of common load balancers (60 s).
const WEBSOCKET_PING: Duration = Duration::from_secs(30);
/// Connections whose handshake is done and that nobody has taken yet.
const HANDED_OVER: usize = 64;

/// A byte stream that carries HTTP/2, whatever it is wrapped in.
pub struct AgentIo {
    io: Pin<Box<dyn Io>>,
    peer: Peer,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl AgentIo {
    fn new(io: impl Io + 'static, peer: Peer) -> Self {
        Self { io: Box::pin(io), peer }
    }
}

/// What becomes of a connection that begins with HTTP/1.x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http1 {
    Refused,
    /// `ws-tunnel` upgrades only, with HTTP/2 inside.
    Upgraded,
    /// Handed on as it is.
    Served,
}

impl Http1 {
    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Refused => &[b"h2"],
            Self::Upgraded | Self::Served => &[b"h2", b"http/1.1"],
        }
    }
}

/// Accepts until `stop` fires; what it yields is ready for HTTP/2. It ends only when `closing` fires, for its end
/// makes the server say GOAWAY on every connection.
pub fn accept(
    listener: Arc<Listener>,
    websocket: bool,
    server: HeaderMap,
    stop: CancellationToken,
    closing: CancellationToken,
    tasks: &TaskTracker,
) -> Connections {
    let http1 = if websocket { Http1::Upgraded } else { Http1::Refused };
    accept_as(listener, http1, server, (stop, closing), tasks)
}

/// Like [`accept`], for a listener that no agent connects to; with `http1` it yields HTTP/1.1 beside HTTP/2.
pub(crate) fn accept_http(
    listener: Arc<Listener>,
    http1: bool,
    stop: CancellationToken,
    closing: CancellationToken,
    tasks: &TaskTracker,
) -> Connections {
    let http1 = if http1 { Http1::Served } else { Http1::Refused };
    accept_as(listener, http1, HeaderMap::new(), (stop, closing), tasks)
}

fn accept_as(
    listener: Arc<Listener>,
    http1: Http1,
    server: HeaderMap,
    (stop, closing): (CancellationToken, CancellationToken),
    tasks: &TaskTracker,
) -> Connections {
    let (ready, connections) = mpsc::channel(HANDED_OVER);
    let handshakes = tasks.clone();
    let server = Arc::new(server);
    tasks.spawn(async move {
        while let Some(accepted) = listener.accept(&stop).await {
            let (ready, listener, server) = (ready.clone(), Arc::clone(&listener), Arc::clone(&server));
            handshakes.spawn(async move {
                let peer = accepted.peer;
                match open(accepted, &listener, http1, &server).await {
                    Ok(io) => drop(ready.send(io).await),
                    Err(error) => {
                        tracing::debug!(%peer, error = %crate::error::chain(&error), "connection not taken");
                    }
                }
            });
        }
        drop(listener);
        closing.cancelled().await;
        drop(ready);
    });
    Connections(connections)
}

/// Why a connection never got as far as HTTP/2.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("TLS handshake")]
    Tls(#[source] io::Error),
    #[error("no TLS handshake within {HANDSHAKE:?}")]
    Slow,
    #[error("first bytes")]
    Sniff(#[from] sniff::SniffError),
    #[error("WebSocket upgrade")]
    Refused(#[source] ws::Refused),
    #[error(
        "HTTP/1.1 where only gRPC is served; for agents with ws:// and wss:// set agent.listen.websocket: true"
    )]
    NotGrpc,
    #[error("write")]
    Write(#[from] io::Error),
}

async fn open(
    accepted: Accepted,
    listener: &Listener,
    http1: Http1,
    server: &HeaderMap,
) -> Result<AgentIo, OpenError> {
    let peer = accepted.peer;
    let Some(identity) = &listener.identity else {
        return unwrap(accepted, peer, http1, server).await;
    };
    let acceptor = TlsAcceptor::from(identity.config(http1.alpn()));
    let handshake = timeout(HANDSHAKE, acceptor.accept(accepted)).await.map_err(|_| OpenError::Slow)?;
    unwrap(handshake.map_err(OpenError::Tls)?, peer, http1, server).await
}

async fn unwrap<S>(mut io: S, peer: Peer, http1: Http1, server: &HeaderMap) -> Result<AgentIo, OpenError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match sniff::sniff(&mut io, sniff::Limits::default()).await {
        Ok(Opening::Http2 { read }) => Ok(AgentIo::new(Rewound::new(io, read), peer)),
        Ok(Opening::Http1 { read, .. }) if http1 == Http1::Served => {
            Ok(AgentIo::new(Rewound::new(io, read), peer))
        }
        Ok(Opening::Http1 { .. }) if http1 == Http1::Refused => {
            let answer =
                b"HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\nContent-Length: 37\r\n\
                           Content-Type: text/plain\r\n\r\nonly gRPC over HTTP/2 is served here\n";
            io.write_all(answer).await?;
            io.shutdown().await?;
            Err(OpenError::NotGrpc)
        }
        Ok(Opening::Http1 { head, mut read }) => match ws::accept(&head, server) {
            Ok(accepted) => {
                io.write_all(&accepted.response).await?;
                io.flush().await?;
                let stream = WsStream::listener(io, read.split_off(head.size()), Some(WEBSOCKET_PING));
                // An agent says its whole URL where HTTP/2 wants host and port.
                Ok(AgentIo::new(AuthorityFilter::new(stream), peer))
            }
            Err(refused) => {
                io.write_all(&refused.response()).await?;
                io.shutdown().await?;
                Err(OpenError::Refused(refused))
            }
        },
        Err(error) => {
            if let Some(answer) = error.answer() {
                let _ = io.write_all(&answer).await;
                let _ = io.shutdown().await;
            }
            Err(error.into())
        }
    }
}

/// Connections that are ready for HTTP/2, as tonic wants them.
#[derive(Debug)]
pub struct Connections(mpsc::Receiver<AgentIo>);

impl Stream for Connections {
    type Item = io::Result<AgentIo>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|io| io.map(Ok))
    }
}

/// Where a connection came from, for logs and for "last seen".
#[derive(Clone, Copy, Debug)]
pub struct PeerInfo(pub Peer);

impl Connected for AgentIo {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        PeerInfo(self.peer)
    }
}

/// The address behind a request: what the edge says it is, else the transport's. For people, never for decisions.
pub fn peer_address<T>(request: &Request<T>) -> String {
    let forwarded = request.metadata().get("x-forwarded-for").and_then(|value| value.to_str().ok());
    let first = forwarded.and_then(|list| list.split(',').next()).map(str::trim);
    let sane = |text: &&str| text.parse::<std::net::IpAddr>().is_ok();
    let transport = || request.extensions().get::<PeerInfo>().map(|info| info.0.to_string());
    first.filter(sane).map(str::to_owned).or_else(transport).unwrap_or_else(|| "unknown".to_owned())
}

impl AsyncRead for AgentIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for AgentIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
