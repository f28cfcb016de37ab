//! One accepted connection: TLS, first bytes, and the road it takes from there.
//!
//! The first thing that happens to a stranger; afterwards `http2` or `proxy` serve the requests. TLS, sniff and upgrade run in a
//! task that ends, because an idle HTTP/2 connection would otherwise keep their memory for hours. Every step before
//! the first whole head has a deadline.

use crate::config::Timeouts;
use crate::http2;
use crate::observability::metrics::{ConnectionGuard, Metrics};
use crate::proxy::{Proxy, Shared};
use crate::relay::pool::Pool;
use crate::silence;
use crate::tls::Terminator;
use crate::transport::{Connection, Socket, SocketFacts, Transport};
use crate::websocket::{self, Asked};
use bytes::{Buf, BytesMut};
use pingora::apps::{HttpPersistentSettings, HttpServerApp};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use postern_wire::sniff::{Limits, Opening, Rewound, SniffError, sniff};
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// kubectl sends tokens of several KiB and some proxies add cookies; nobody needs more.
const HEAD_BYTES: usize = 64 * 1024;
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// One thread's share of the data plane.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub proxy: Arc<Proxy>,
    pub pool: Pool,
    pub timeouts: Timeouts,
    pub websocket_ping: Option<Duration>,
    /// Room for connections, in the whole process.
    pub room: Arc<Semaphore>,
    pub tasks: TaskTracker,
    /// Turns to `true` when connections shall finish.
    pub shutdown: ShutdownWatch,
}

/// A transport that HTTP/2 runs on.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

/// A connection that outlives its opening.
struct Open {
    io: Box<dyn Wire>,
    connection: Arc<Connection>,
    socket: SocketFacts,
    _counted: ConnectionGuard,
    _room: OwnedSemaphorePermit,
}

impl Open {
    /// Begins to serve; what counts the connection goes along.
    async fn serve(self, worker: Arc<Worker>) {
        let Self { io, connection, socket, _counted, _room } = self;
        http2::serve(worker, io, connection, socket, (_counted, _room)).await;
    }
}

/// Accepts until `stop`. Descriptors running out is survived.
pub async fn run(
    worker: Arc<Worker>,
    listener: TcpListener,
    tls: Option<Terminator>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Mostly EMFILE: it will not be better at once, and spinning helps nobody.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(room) = worker.room.clone().try_acquire_owned() else {
            worker.metrics().refusal("connections");
            tracing::debug!(%client, "closed: limits.connections is reached");
            continue;
        };
        let worker = worker.clone();
        let tls = tls.clone();
        worker.tasks.clone().spawn(async move {
            if let Some(open) = worker.open(tcp, client, tls, room).await {
                worker.tasks.clone().spawn(open.serve(worker));
            }
        });
    }
}

impl Worker {
    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Finds out what the client speaks. HTTP/1.1 is served right here; HTTP/2 is handed back.
    async fn open(
        &self,
        tcp: TcpStream,
        client: SocketAddr,
        tls: Option<Terminator>,
        room: OwnedSemaphorePermit,
    ) -> Option<Open> {
        tune(&tcp);
        let facts = SocketFacts::of(&tcp, client);
        let socket = match tls {
            None => Socket::Plain(tcp),
            Some(tls) => match tls.accept(tcp, self.timeouts.handshake).await {
                Ok(stream) => Socket::Tls(Box::new(stream)),
                Err(error) => {
                    self.metrics().refusal("tls");
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::debug!(%client, %error, cause, "closed");
                    return None;
                }
            },
        };
        let tls = socket.is_tls();
        let mut socket = Rewound::new(socket, BytesMut::new());
        let mut carried = None;
        let mut counted = None;
        loop {
            let limits = Limits { head: HEAD_BYTES, deadline: self.timeouts.head };
            match sniff(&mut socket, limits).await {
                Ok(Opening::Http2 { read }) => {
                    return Some(Open {
                        io: Box::new(put_back(socket, read)),
                        connection: Arc::new(Connection::new(client, tls, None)),
                        socket: facts,
                        _counted: self.metrics().connection("http2", tls),
                        _room: room,
                    });
                }
                Ok(Opening::Http1 { head, mut read }) if websocket::asked(&head) == Asked::Tunnel => {
                    read.advance(head.size());
                    let (socket, rest) = socket.into_inner();
                    read.extend_from_slice(&rest);
                    let tunnel = websocket::accept(socket, &head, read.freeze(), self.websocket_ping).await;
                    let tunnel = match tunnel {
                        Ok(Some(tunnel)) => tunnel,
                        Ok(None) => {
                            self.metrics().refusal("websocket");
                            return None;
                        }
                        Err(error) => {
                            tracing::debug!(%client, %error, "closed during the WebSocket handshake");
                            return None;
                        }
                    };
                    let host = head.host().filter(|host| is_authority(host)).unwrap_or("postern").to_owned();
                    return Some(Open {
                        io: Box::new(tunnel),
                        connection: Arc::new(Connection::new(client, tls, Some(host))),
                        socket: facts,
                        _counted: self.metrics().connection("websocket", tls),
                        _room: room,
                    });
                }
                Ok(Opening::Http1 { read, .. }) => {
                    counted.get_or_insert_with(|| self.metrics().connection("http1", tls));
                    let connection = Connection::new(client, tls, None);
                    let transport = Transport::new(put_back(socket, read), &facts, connection);
                    socket = self.http1(transport, &mut carried).await?;
                    socket = self.next_request(socket).await?;
                }
                Err(error) => {
                    self.refuse(socket, client, &error).await;
                    return None;
                }
            }
        }
    }

    /// Serves one request; the connection comes back when it may carry another one.
    async fn http1(
        &self,
        transport: Transport<Rewound<Socket>>,
        carried: &mut Option<HttpPersistentSettings>,
    ) -> Option<Rewound<Socket>> {
        let mut session = ServerSession::new_http1(Box::new(transport));
        if let Some(settings) = carried.take() {
            settings.apply_to_session(&mut session);
        }
        // Last, because the settings carry the keepalive of the time before a drain.
        session.set_keepalive((!*self.shutdown.borrow()).then_some(self.timeouts.keepalive.as_secs().max(1)));
        let served = Box::pin(self.proxy.process_new_http(session, &self.shutdown));
        let reused = silence::unless_silent(&self.shared.upstreams, served).await??;
        let (stream, settings) = reused.consume();
        *carried = settings;
        let transport = stream.into_any().downcast::<Transport<Rewound<Socket>>>().ok()?;
        Some(transport.into_inner())
    }

    /// Waits for the first byte of another request; `None` when none comes in time, or the edge drains.
    async fn next_request(&self, mut socket: Rewound<Socket>) -> Option<Rewound<Socket>> {
        let mut first = BytesMut::with_capacity(2048);
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = async { shutdown.wait_for(|shutting| *shutting).await.map(drop).unwrap_or(()) } => {
                // The client sees an orderly end and dials again elsewhere.
                let _ = socket.shutdown().await;
                return None;
            }
            read = tokio::time::timeout(self.timeouts.keepalive, socket.read_buf(&mut first)) => {
                if read.ok()?.ok()? == 0 {
                    return None;
                }
            }
        }
        Some(put_back(socket, first))
    }

    async fn refuse(&self, mut socket: Rewound<Socket>, client: SocketAddr, error: &SniffError) {
        // Health checks of load balancers connect and say nothing.
        if !matches!(error, SniffError::Silent) {
            self.metrics().refusal("opening");
            let cause = std::error::Error::source(error).map(tracing::field::display);
            tracing::debug!(%client, %error, cause, "closed");
        }
        let Some(answer) = error.answer() else { return };
        let told = async {
            socket.write_all(&answer).await?;
            socket.shutdown().await?;
            // Closing while the client's bytes lie unread would reset the connection before it has read the answer.
            let mut rest = [0; 4096];
            let mut left: usize = 256 * 1024;
            while left > 0 {
                let read = socket.read(&mut rest).await?;
                if read == 0 {
                    break;
                }
                left = left.saturating_sub(read);
            }
            std::io::Result::Ok(())
        };
        // It does not matter how far that came.
        let _ = tokio::time::timeout(LINGER, told).await;
    }
}

/// Puts bytes in front of what the socket still holds itself.
fn put_back(socket: Rewound<Socket>, mut read: BytesMut) -> Rewound<Socket> {
    let (socket, rest) = socket.into_inner();
    read.extend_from_slice(&rest);
    Rewound::new(socket, read)
}

/// pingora refuses what h2 would, and user names too.
fn is_authority(host: &str) -> bool {
    !host.contains('@') && host.parse::<http::uri::Authority>().is_ok()
}

fn tune(tcp: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    // No user timeout: it would also cut a client that is alive but reads nothing, as a suspended kubectl.
    let tuned = tcp.set_nodelay(true).and_then(|()| SockRef::from(tcp).set_tcp_keepalive(&keepalive));
    if let Err(error) = tuned {
        tracing::debug!(%error, "socket options were refused");
    }
}
