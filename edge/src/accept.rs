//! One accepted connection: who it is, TLS, first bytes, and the road it takes from there.
//!
//! The first thing that happens to a stranger; afterwards `http2` or `proxy` serve the requests. TLS, sniff and upgrade run in a
//! task that ends, because an idle HTTP/2 connection would otherwise keep their memory for hours. Addresses are judged
//! before a task is made, or as soon as a PROXY header has said them. Every step before the first whole head has a
//! deadline.

mod judge;

use crate::config::Timeouts;
use crate::http2;
use crate::lane;
use crate::life::{Farewell, Life, Roll, Seat};
use crate::limits::{ConnectionPermit, Penance};
use crate::listen::proxy_protocol::{self, ProxyError};
use crate::listen::socket::{Listener, Raw};
use crate::listen::{Arrival, Rules, UNIX_PEER};
use crate::observability::connections::Guard;
use crate::observability::metrics::{ConnectionGuard, Metrics};
use crate::proxy::{Proxy, Shared};
use crate::relay::pool::Pool;
use crate::reply::{self, Reason};
use crate::silence;
use crate::tls::{self, TlsError};
use crate::transport::{Connection, Far, Socket, SocketFacts, Transport};
use crate::upstream::dial::Io;
use crate::websocket::{self, Asked};
use bytes::{Buf, BytesMut};
use pingora::apps::{HttpPersistentSettings, HttpServerApp};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use postern_wire::sniff::{Limits, Opening, Rewound, SniffError, sniff};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Connections that are taken in a row before others come: each costs some system calls and a task.
const IN_A_ROW: u32 = 8;

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
    /// The connections of this thread, and what holds for them.
    pub roll: Arc<Roll>,
    /// Turns to `true` when connections shall finish.
    pub shutdown: ShutdownWatch,
}

/// A connection that outlives its opening.
struct Open {
    io: Io,
    connection: Arc<Connection>,
    socket: SocketFacts,
    _entry: Guard,
    _counted: ConnectionGuard,
    _room: Room,
}

/// What a connection takes as long as it is open.
struct Room {
    _process: OwnedSemaphorePermit,
    /// `None` for a proxy: its clients are counted, not its connections.
    client: Option<ConnectionPermit>,
    /// What it waits for first.
    penance: Option<Penance>,
}

impl Open {
    /// Begins to serve; what counts the connection goes along.
    async fn serve(self, worker: Arc<Worker>) {
        let Self { io, connection, socket, _entry, _counted, _room } = self;
        http2::serve(worker, io, connection, socket, (_entry, _counted, _room)).await;
    }
}

/// Accepts until `stop`. Descriptors running out is survived.
pub async fn run(worker: Arc<Worker>, listener: Listener, rules: Arc<Rules>, stop: CancellationToken) {
    let mut row = 0;
    loop {
        row += 1;
        if row > IN_A_ROW {
            row = 0;
            tokio::task::yield_now().await;
        }
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (raw, peer) = match accepted {
            Ok((raw, peer)) => (raw, peer.unwrap_or(UNIX_PEER)),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Mostly EMFILE: it will not be better at once, and spinning helps nobody.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(process) = worker.room.clone().try_acquire_owned() else {
            worker.metrics().refusal("connections");
            tracing::debug!(client = %peer, "closed: limits.connections is reached");
            continue;
        };
        let mut room = Room { _process: process, client: None, penance: None };
        let arrival = rules.arrival(peer.ip());
        let known = match arrival {
            Arrival::Direct => worker.judge(&rules, peer, false, &mut room),
            Arrival::Header { .. } => Ok(()),
            Arrival::Refused => Err(Reason::Denied),
        };
        if let Err(reason) = known {
            worker.turn_away(peer, &reason);
            continue;
        }
        let worker = worker.clone();
        let rules = rules.clone();
        worker.tasks.clone().spawn(async move {
            if let Some(open) = worker.open(raw, peer, arrival, rules, room).await {
                worker.tasks.clone().spawn(open.serve(worker));
            }
        });
    }
}

impl Worker {
    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Whose connection it is: the peer's, or that of whom its PROXY header names, and whether it names anybody.
    async fn arrive(
        &self,
        raw: &mut Raw,
        read: &mut BytesMut,
        peer: SocketAddr,
        arrival: &Arrival,
        rules: &Rules,
        room: &mut Room,
    ) -> Option<(SocketAddr, bool)> {
        let Arrival::Header { required } = *arrival else { return Some((peer, false)) };
        match proxy_protocol::take(raw, read, required, self.timeouts.head).await {
            Ok(named) => {
                let (client, named) = (named.unwrap_or(peer), named.is_some());
                match self.judge(rules, client, named, room) {
                    Ok(()) => Some((client, named)),
                    Err(reason) => {
                        self.turn_away(client, &reason);
                        None
                    }
                }
            }
            Err(error) => {
                if matches!(error, ProxyError::Missing) {
                    rules.warn_of_missing_header(peer);
                }
                // Health checks of load balancers connect and say nothing.
                if !matches!(error, ProxyError::Silent) {
                    self.metrics().refusal("proxy_protocol");
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::debug!(%peer, %error, cause, "closed");
                }
                None
            }
        }
    }

    /// Finds out what the client speaks. HTTP/1.1 is served right here; HTTP/2 is handed back.
    async fn open(
        &self,
        mut raw: Raw,
        peer: SocketAddr,
        arrival: Arrival,
        rules: Arc<Rules>,
        mut room: Room,
    ) -> Option<Open> {
        raw.tune();
        let mut read = BytesMut::new();
        let (client, named) = self.arrive(&mut raw, &mut read, peer, &arrival, &rules, &mut room).await?;
        if let Some(penance) = room.penance.take() {
            let mut shutdown = self.shutdown.clone();
            tokio::select! {
                () = tokio::time::sleep(penance.wait()) => {}
                // It is better served elsewhere.
                _ = shutdown.wait_for(|over| *over) => return None,
            }
        }
        let entry = self.shared.connections.enter(client, raw.local_addr());
        let facts = SocketFacts::of(&raw, client);
        let mut far =
            Far { client, tls: rules.tls.is_some(), certificate: None, hop: rules.hop(client.ip(), named) };
        let mut socket = match &rules.tls {
            None => Rewound::new(Socket::Plain(raw), read),
            Some(tls) => match tls.accept(Rewound::new(raw, read), self.timeouts.handshake).await {
                Ok(stream) => {
                    entry.note_tls(stream.get_ref().1.protocol_version());
                    far.certificate = tls::client_certificate(&stream);
                    Rewound::new(Socket::Tls(Box::new(stream)), BytesMut::new())
                }
                Err(TlsError::Silent) => return None,
                Err(error) => {
                    self.metrics().refusal("tls");
                    self.metrics().handshake_failure("tls");
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::debug!(%client, %error, cause, "closed");
                    return None;
                }
            },
        };
        let tls = far.tls;
        let mut carried = None;
        let mut counted = None;
        // Of HTTP/1.1.
        let mut life = None;
        let seat = Arc::new(Seat::new(far.hop.is_some()));
        loop {
            let limits =
                Limits { head: self.shared.limits.header_bytes() as usize, deadline: self.timeouts.head };
            match lane::then_in_turns(sniff(&mut socket, limits)).await {
                Ok(Opening::Http2 { read }) => {
                    entry.note_kind("http2");
                    return Some(Open {
                        io: Box::new(put_back(socket, read)),
                        connection: Arc::new(Connection::from(far, None).known_as(entry.entry())),
                        socket: facts,
                        _entry: entry,
                        _counted: self.metrics().connection("http2", tls),
                        _room: room,
                    });
                }
                Ok(Opening::Http1 { head, mut read }) if websocket::asked(&head) == Asked::Tunnel => {
                    let host = head.host().filter(|host| is_authority(host)).unwrap_or("postern").to_owned();
                    let connection = Connection::opened_by(&far, &head.headers, Some(host));
                    if let Err(reason) = self.judge_tunnel(&connection, &head.headers, &mut room) {
                        self.metrics().refusal(reason.name());
                        let (name, rule) = (reason.name(), reason.rule());
                        tracing::debug!(client = %connection.client, reason = name, rule, "WebSocket refused");
                        answer(socket, reply::plain(&reason)).await;
                        return None;
                    }
                    read.advance(head.size());
                    let (socket, rest) = socket.into_inner();
                    read.extend_from_slice(&rest);
                    let tunnel = websocket::accept(socket, &head, read.freeze(), self.websocket_ping).await;
                    let tunnel = match tunnel {
                        Ok(Some(tunnel)) => tunnel,
                        Ok(None) => {
                            self.metrics().refusal("websocket");
                            self.metrics().handshake_failure("websocket");
                            return None;
                        }
                        Err(error) => {
                            self.metrics().handshake_failure("websocket");
                            tracing::debug!(%client, %error, "closed during the WebSocket handshake");
                            return None;
                        }
                    };
                    entry.note_kind("websocket");
                    let connection = Arc::new(connection.known_as(entry.entry()));
                    return Some(Open {
                        io: Box::new(Farewell::new(tunnel, connection.seat.clone(), self.websocket_ping)),
                        connection,
                        socket: facts,
                        _entry: entry,
                        _counted: self.metrics().connection("websocket", tls),
                        _room: room,
                    });
                }
                Ok(Opening::Http1 { head, read }) => {
                    counted.get_or_insert_with(|| self.metrics().connection("http1", tls));
                    entry.note_kind("http1");
                    let connection = Connection::opened_by(&far, &head.headers, None);
                    let connection = connection.known_as(entry.entry()).seated(&seat);
                    let transport = Transport::new(put_back(socket, read), &facts, connection);
                    // Idleness is the keepalive's business.
                    let life =
                        life.get_or_insert_with(|| Life::without_idle(&self.roll, seat.clone(), client.ip()));
                    self.judge_again(&seat);
                    socket = self.http1(transport, &facts, &mut carried, life).await?;
                    // The next request of a proxy may be another client's.
                    seat.note_client(far.hop.is_none().then(|| far.client.ip()));
                    socket = self.next_request(socket, life, client).await?;
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
        facts: &SocketFacts,
        carried: &mut Option<HttpPersistentSettings>,
        life: &mut Life,
    ) -> Option<Rewound<Socket>> {
        let mut session = ServerSession::new_http1(Box::new(transport));
        if let Some(settings) = carried.take() {
            settings.apply_to_session(&mut session);
        }
        // Last, because the settings carry the keepalive of the time before a drain.
        let stays = !*self.shutdown.borrow() && !life.is_leaving();
        session.set_keepalive(stays.then_some(self.timeouts.keepalive.as_secs().max(1)));
        let served = Box::pin(self.proxy.process_new_http(session, &self.shutdown));
        let mut served = std::pin::pin!(silence::unless_silent(served));
        let reused = tokio::select! {
            biased;
            served = &mut served => served,
            () = poll_fn(|cx| life.poll_denied(cx)) => {
                // Whatever runs fails now, and has its line in the log.
                facts.shut();
                served.await
            }
        };
        let reused = reused??;
        let (stream, settings) = reused.consume();
        *carried = settings;
        let transport = stream.into_any().downcast::<Transport<Rewound<Socket>>>().ok()?;
        Some(transport.into_inner())
    }

    /// Waits for the first byte of another request; `None` when none comes in time, or the connection has to leave.
    async fn next_request(
        &self,
        mut socket: Rewound<Socket>,
        life: &mut Life,
        client: SocketAddr,
    ) -> Option<Rewound<Socket>> {
        let mut first = BytesMut::with_capacity(2048);
        tokio::select! {
            biased;
            _ = poll_fn(|cx| life.poll(cx, false, client.ip())) => {
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

    async fn refuse(&self, socket: Rewound<Socket>, client: SocketAddr, error: &SniffError) {
        // Health checks of load balancers connect and say nothing.
        if !matches!(error, SniffError::Silent) {
            self.metrics().refusal("opening");
            self.metrics().handshake_failure("opening");
            let cause = std::error::Error::source(error).map(tracing::field::display);
            tracing::debug!(%client, %error, cause, "closed");
        }
        if let Some(words) = error.answer() {
            answer(socket, words).await;
        }
    }
}

/// Says a last word and closes.
async fn answer(mut socket: Rewound<Socket>, words: Vec<u8>) {
    let told = async {
        socket.write_all(&words).await?;
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
