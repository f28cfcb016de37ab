//! The worker's own HTTP/2 connections to brokers' agent listeners: few, shared by many streams, watched by pings.
//!
//! Under `relay`. Never opens more streams on a connection than its server admits: those would wait for ever behind
//! tunnels that last for hours. However many streams want a connection at once, one is dialled.

use crate::coalesce::{self, Collected, Emptied, Outlet};
use crate::http2::SEND_BUFFER;
use crate::upstream::{Broker, CONNECTION_WINDOW, STREAM_WINDOW};
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use socket2::{SockRef, TcpKeepalive};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// Times the stream window this is the connection's window, and a broker admits 1024.
const STREAMS: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize;
/// kas ends a connection that is pinged more often. What vanished in between is found by the probes, which do not speak
/// on this connection, and then it is pinged at once.
const PING_EVERY: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(5);
const HEADER_LIST: u32 = 64 * 1024;

/// Connections by broker.
pub struct Pool {
    slots: Arc<Mutex<HashMap<SocketAddr, Slot>>>,
    connect: Duration,
}

#[derive(Default)]
struct Slot {
    open: Vec<Upstream>,
    /// Tells the outcome of the dial that is under way.
    dialling: Option<watch::Receiver<Option<Dialled>>>,
}

type Dialled = Result<(), &'static str>;

struct Upstream {
    send: SendRequest<Bytes>,
    /// One is ours, each stream has one.
    held: Arc<()>,
    /// Closed once the connection's task has ended.
    alive: watch::Receiver<()>,
}

/// Counts as a stream of the connection until it is dropped.
pub type Place = Arc<()>;

/// The right to open one stream.
pub struct Lease {
    send: SendRequest<Bytes>,
    held: Place,
}

/// A stream whose head is on its way to the broker.
pub struct Opened {
    pub address: SocketAddr,
    pub response: ResponseFuture,
    pub body: SendStream<Bytes>,
    pub held: Place,
}

/// What came of opening a stream at once.
pub enum Now {
    Opened(Opened),
    /// It cannot be said in HTTP/2.
    Failed(h2::Error),
    /// No connection has room: here is the head again, for [`Pool::lease`] and [`Lease::open`].
    Wait(Request<()>),
}

impl Lease {
    /// Sends the head; `end`: there is no body.
    pub fn open(mut self, address: SocketAddr, head: Request<()>, end: bool) -> Result<Opened, h2::Error> {
        let (response, body) = self.send.send_request(head, end)?;
        Ok(Opened { address, response, body, held: self.held })
    }
}

impl Pool {
    /// `connect` limits one dial, handshake included.
    pub fn new(connect: Duration) -> Self {
        Self { slots: Arc::default(), connect }
    }

    /// Opens a stream where that needs no waiting.
    pub fn open_now(&self, broker: &Broker, head: Request<()>, end: bool) -> Now {
        let address = broker.address;
        let mut slots = lock(&self.slots);
        let slot = slots.get_mut(&address);
        let Some(upstream) = slot.and_then(|slot| slot.open.iter_mut().find_map(Upstream::if_ready)) else {
            return Now::Wait(head);
        };
        match upstream.send.send_request(head, end) {
            Ok((response, body)) => {
                Now::Opened(Opened { address, response, body, held: upstream.held.clone() })
            }
            Err(error) => Now::Failed(error),
        }
    }

    /// A place on a connection to this broker. The error says what failed, for people.
    pub async fn lease(&self, broker: &Broker) -> Result<Lease, &'static str> {
        let address = broker.address;
        loop {
            let mut outcome = match self.place(broker) {
                Ok(Lease { send, held }) => match send.ready().await {
                    Ok(send) => return Ok(Lease { send, held }),
                    // Going away, as its task will notice soon.
                    Err(_) => {
                        self.forget(address, &held);
                        continue;
                    }
                },
                Err(outcome) => outcome,
            };
            match outcome.wait_for(Option::is_some).await.map(|outcome| *outcome) {
                Ok(Some(Err(what))) => return Err(what),
                Ok(_) => {}
                Err(_) => return Err("connect failed"),
            }
        }
    }

    /// A connection with room, or the outcome of the dial to wait for.
    fn place(&self, broker: &Broker) -> Result<Lease, watch::Receiver<Option<Dialled>>> {
        let address = broker.address;
        let mut slots = lock(&self.slots);
        let slot = slots.entry(address).or_default();
        slot.open.retain(Upstream::is_alive);
        if let Some(upstream) = slot.open.iter().find(|upstream| upstream.has_room()) {
            return Ok(Lease { send: upstream.send.clone(), held: upstream.held.clone() });
        }
        if let Some(dialling) = &slot.dialling {
            return Err(dialling.clone());
        }
        let (outcome, dialling) = watch::channel(None);
        slot.dialling = Some(dialling.clone());
        let slots = self.slots.clone();
        let (limit, standing) = (self.connect, broker.standing());
        // A task of its own: the stream that asked first may leave while others wait.
        tokio::spawn(async move {
            let dialled = timeout(limit, dial(address, standing)).await.unwrap_or(Err("connect timed out"));
            let mut slots = lock(&slots);
            let slot = slots.entry(address).or_default();
            slot.dialling = None;
            let dialled = dialled.map(|upstream| slot.open.push(upstream));
            // Brokers come and go; what is left of those that went goes with the next dial.
            slots.retain(|_, slot| {
                slot.open.retain(Upstream::is_alive);
                slot.dialling.is_some() || !slot.open.is_empty()
            });
            outcome.send_replace(Some(dialled));
        });
        Err(dialling)
    }

    fn forget(&self, address: SocketAddr, held: &Arc<()>) {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get_mut(&address) {
            slot.open.retain(|upstream| !Arc::ptr_eq(&upstream.held, held));
        }
    }
}

impl Upstream {
    fn is_alive(&self) -> bool {
        self.alive.has_changed().is_ok()
    }

    fn has_room(&self) -> bool {
        Arc::strong_count(&self.held) <= STREAMS.min(self.send.current_max_send_streams())
    }

    /// Itself, if it takes a stream right now. Whoever must wait for it does so with a handle of its own.
    fn if_ready(&mut self) -> Option<&mut Self> {
        let mut now = Context::from_waker(Waker::noop());
        let ready = self.is_alive()
            && self.has_room()
            && matches!(self.send.poll_ready(&mut now), Poll::Ready(Ok(())));
        ready.then_some(self)
    }
}

fn lock(slots: &Mutex<HashMap<SocketAddr, Slot>>) -> MutexGuard<'_, HashMap<SocketAddr, Slot>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether HTTP/2 is spoken there, now. Takes as long as it takes.
pub async fn answers(address: SocketAddr) -> bool {
    let Ok(io) = connect(address).await else { return false };
    let Ok((_send, mut connection)) = builder().handshake::<_, Bytes>(io).await else { return false };
    let mut ping = connection.ping_pong().expect("asked for once");
    tokio::select! {
        answered = ping.ping(Ping::opaque()) => answered.is_ok(),
        _ = connection => false,
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, &'static str> {
    let tcp = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused",
        std::io::ErrorKind::TimedOut => "connect timed out",
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => "no route to host",
        _ => "connect failed",
    })?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    // A socket without these options still works.
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    Ok(tcp)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        // Agents leave by the thousand, and each cancels its streams at the broker.
        .max_concurrent_reset_streams(STREAMS)
        .max_local_error_reset_streams(None)
        .enable_push(false);
    builder
}

async fn dial(address: SocketAddr, standing: watch::Receiver<bool>) -> Result<Upstream, &'static str> {
    let (io, outlet) = coalesce::collect(connect(address).await?, false);
    let (send, mut connection) = builder().handshake(io).await.map_err(|_| "HTTP/2 handshake failed")?;
    let mut ping = connection.ping_pong().expect("asked for once");
    let (ended, alive) = watch::channel(());
    let (settled, settings) = oneshot::channel();
    let (silent, watched) = oneshot::channel();
    tokio::spawn(Driven { connection, outlet, watched, address, _ended: ended });
    tokio::spawn(async move {
        // The answer comes behind the server's settings, so afterwards its limit of streams is known; and it proves
        // that HTTP/2 is spoken there at all.
        if ping.ping(Ping::opaque()).await.is_ok() {
            let _ = settled.send(());
            unanswered(ping, standing).await;
            // Nobody hears it when the connection is over already.
            let _ = silent.send(());
        }
    });
    settings.await.map_err(|_| "HTTP/2 handshake failed")?;
    Ok(Upstream { send, held: Arc::new(()), alive })
}

/// One connection to a broker, until it is over or nobody answers there.
struct Driven {
    connection: Connection<Collected<TcpStream>, Bytes>,
    outlet: Outlet<TcpStream>,
    watched: oneshot::Receiver<()>,
    address: SocketAddr,
    _ended: watch::Sender<()>,
}

impl Future for Driven {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Poll::Ready(Ok(())) = Pin::new(&mut this.watched).poll(cx) {
            tracing::warn!(upstream = %this.address, "closed: the broker does not answer HTTP/2 pings");
            return Poll::Ready(());
        }
        loop {
            let polled = Pin::new(&mut this.connection).poll(cx);
            let emptied = this.outlet.poll(cx);
            let error = match (polled, emptied) {
                (Poll::Ready(Ok(())), _) => return Poll::Ready(()),
                (Poll::Ready(Err(error)), _) => error.to_string(),
                (Poll::Pending, Ok(Emptied::Again)) => continue,
                (Poll::Pending, Ok(_)) => return Poll::Pending,
                (Poll::Pending, Err(error)) => error.to_string(),
            };
            tracing::debug!(upstream = %this.address, error, "connection to the broker ended");
            return Poll::Ready(());
        }
    }
}

/// Pings every now and then, and at once when the broker is no longer reachable otherwise: one that leaves still answers,
/// one that vanished does not. Returns when there is no answer in time.
async fn unanswered(mut ping: PingPong, mut standing: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = sleep(PING_EVERY) => {}
            () = falls(&mut standing) => {}
        }
        if !matches!(timeout(PONG_WITHIN, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Returns when a broker that was up no longer is.
async fn falls(standing: &mut watch::Receiver<bool>) {
    let fell = async {
        standing.wait_for(|up| *up).await?;
        standing.wait_for(|up| !*up).await.map(drop)
    };
    if fell.await.is_err() {
        // Nobody looks after it any more.
        std::future::pending().await
    }
}
