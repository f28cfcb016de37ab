//! The worker's own HTTP/2 connections to brokers' agent listeners: few, shared by many streams, watched by pings.
//!
//! Under `relay`. Never opens more streams on a connection than its server admits: those would wait for ever behind
//! tunnels that last for hours. However many streams want a connection at once, one is dialled.

use crate::http2::SEND_BUFFER;
use crate::upstream::{Broker, CONNECTION_WINDOW, STREAM_WINDOW};
use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use socket2::{SockRef, TcpKeepalive};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
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

/// The right to open one stream.
pub struct Lease {
    pub send: SendRequest<Bytes>,
    /// Counts as a stream of the connection until it is dropped.
    pub held: Arc<()>,
}

impl Pool {
    /// `connect` limits one dial, handshake included.
    pub fn new(connect: Duration) -> Self {
        Self { slots: Arc::default(), connect }
    }

    /// A place on a connection to this broker. The error says what failed, for people.
    pub async fn open(&self, broker: &Broker) -> Result<Lease, &'static str> {
        let address = broker.address;
        loop {
            let mut outcome = match self.lease(broker) {
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
    fn lease(&self, broker: &Broker) -> Result<Lease, watch::Receiver<Option<Dialled>>> {
        let address = broker.address;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(address).or_default();
        slot.open.retain(|upstream| upstream.alive.has_changed().is_ok());
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
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = slots.entry(address).or_default();
            slot.dialling = None;
            let dialled = dialled.map(|upstream| slot.open.push(upstream));
            outcome.send_replace(Some(dialled));
        });
        Err(dialling)
    }

    fn forget(&self, address: SocketAddr, held: &Arc<()>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(&address) {
            slot.open.retain(|upstream| !Arc::ptr_eq(&upstream.held, held));
        }
    }
}

impl Upstream {
    fn has_room(&self) -> bool {
        Arc::strong_count(&self.held) <= STREAMS.min(self.send.current_max_send_streams())
    }
}

/// Whether HTTP/2 is spoken there, now. Takes as long as it takes.
pub async fn answers(address: SocketAddr) -> bool {
    let Ok((_send, mut connection)) = connect(address).await else { return false };
    let mut ping = connection.ping_pong().expect("asked for once");
    tokio::select! {
        answered = ping.ping(Ping::opaque()) => answered.is_ok(),
        _ = connection => false,
    }
}

async fn connect(
    address: SocketAddr,
) -> Result<(SendRequest<Bytes>, Connection<TcpStream, Bytes>), &'static str> {
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
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .enable_push(false)
        .handshake(tcp);
    handshake.await.map_err(|_| "HTTP/2 handshake failed")
}

async fn dial(address: SocketAddr, standing: watch::Receiver<bool>) -> Result<Upstream, &'static str> {
    let (send, mut connection) = connect(address).await?;
    let mut ping = connection.ping_pong().expect("asked for once");
    let (ended, alive) = watch::channel(());
    let (settled, settings) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let watched = async {
            // The answer comes behind the server's settings, so afterwards its limit of streams is known; and it
            // proves that HTTP/2 is spoken there at all.
            if ping.ping(Ping::opaque()).await.is_ok() {
                let _ = settled.send(());
                unanswered(ping, standing).await;
            }
        };
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    tracing::debug!(upstream = %address, %error, "connection to the broker ended");
                }
            }
            () = watched => tracing::warn!(upstream = %address, "closed: the broker does not answer HTTP/2 pings"),
        }
        drop(ended);
    });
    settings.await.map_err(|_| "HTTP/2 handshake failed")?;
    Ok(Upstream { send, held: Arc::new(()), alive })
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
