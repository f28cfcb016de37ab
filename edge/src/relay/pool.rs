//! The worker's own HTTP/2 connections to brokers' agent listeners: few, shared by many streams, watched by pings.
//!
//! Under `relay`. Never opens more streams on a connection than its server admits: those would wait for ever behind
//! tunnels that last for hours. However many streams want a connection at once, one is dialled.

use crate::coalesce::{self, Collected, Emptied, Outlet};
use crate::http2::SEND_BUFFER;
use crate::upstream::dial::Io;
use crate::upstream::{Broker, CONNECTION_WINDOW, STREAM_WINDOW};
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// Times the stream window this is the connection's window, and a broker admits 1024.
const STREAMS: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize;
/// kas ends a connection that is pinged more often. What vanished in between is found by the probes, which do not speak
/// on this connection, and then it is pinged at once.
const PING_EVERY: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(5);
const HEADER_LIST: u32 = 64 * 1024;
/// Connections to one broker. A proxy before it may admit 100 streams on each, which makes some 25,000; a server that
/// admits one or two is of no use, and shall not cost us a descriptor for each of our agents' tunnels.
const CONNECTIONS: usize = 256;

const NO_ROOM: &str = "its SETTINGS_MAX_CONCURRENT_STREAMS is 0, so that nothing can be asked of it";

/// Connections by broker's id, since another one may come up at the same address.
type Slots = HashMap<u64, Slot>;

/// Connections by broker.
pub struct Pool {
    slots: Arc<Mutex<Slots>>,
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
    held: Place,
    /// Closed once the connection's task has ended.
    alive: watch::Receiver<()>,
}

/// Why there is no place for a stream.
#[derive(Debug, Clone, Copy)]
pub enum Unopened {
    /// The broker is well, but there is no room for one more: why.
    Crowded(&'static str),
    /// What failed, for people.
    Failed(&'static str),
}

/// Counts as a stream of the connection until it is dropped.
pub type Place = Arc<Common>;

/// What all streams of one connection know of it.
#[derive(Debug, Default)]
pub struct Common {
    lost: AtomicBool,
}

/// What a stream without a place may wait for.
enum Wait {
    /// The outcome of the dial that is under way.
    Dial(watch::Receiver<Option<Dialled>>),
    /// There are as many connections as may be.
    Nothing,
}

/// The right to open one stream.
pub struct Lease {
    send: SendRequest<Bytes>,
    held: Place,
}

/// A stream whose head is on its way to the broker.
pub struct Opened {
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

impl Common {
    /// True for the first stream that says the connection is lost: one loss is no more than that, however many streams
    /// went with it.
    pub fn is_first_to_tell(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }
}

impl Lease {
    /// Sends the head; `end`: there is no body.
    pub fn open(mut self, head: Request<()>, end: bool) -> Result<Opened, h2::Error> {
        let (response, body) = self.send.send_request(head, end)?;
        Ok(Opened { response, body, held: self.held })
    }
}

impl Pool {
    /// `connect` limits one dial, handshake included.
    pub fn new(connect: Duration) -> Self {
        Self { slots: Arc::default(), connect }
    }

    /// Opens a stream where that needs no waiting.
    pub fn open_now(&self, broker: &Broker, head: Request<()>, end: bool) -> Now {
        let mut slots = lock(&self.slots);
        let slot = slots.get_mut(&broker.id);
        let Some(upstream) = slot.and_then(|slot| slot.open.iter_mut().find_map(Upstream::if_ready)) else {
            return Now::Wait(head);
        };
        match upstream.send.send_request(head, end) {
            Ok((response, body)) => Now::Opened(Opened { response, body, held: upstream.held.clone() }),
            Err(error) => Now::Failed(error),
        }
    }

    /// A place on a connection to this broker.
    pub async fn lease(&self, broker: &Arc<Broker>) -> Result<Lease, Unopened> {
        loop {
            let mut outcome = match self.place(broker) {
                Ok(Lease { send, held }) => match send.ready().await {
                    Ok(send) => return Ok(Lease { send, held }),
                    // Going away, as its task will notice soon.
                    Err(_) => {
                        self.forget(broker.id, &held);
                        continue;
                    }
                },
                Err(Wait::Dial(outcome)) => outcome,
                Err(Wait::Nothing) => {
                    return Err(Unopened::Crowded("no connection has room for another stream"));
                }
            };
            let Some(_in_line) = broker.wait_in_line() else {
                return Err(Unopened::Crowded("too many streams wait for a connection"));
            };
            match outcome.wait_for(Option::is_some).await.map(|outcome| *outcome) {
                Ok(Some(Err(what))) => return Err(Unopened::Failed(what)),
                Ok(_) => {}
                Err(_) => return Err(Unopened::Failed("connect failed")),
            }
        }
    }

    /// A connection with room, or the outcome of the dial to wait for.
    fn place(&self, broker: &Arc<Broker>) -> Result<Lease, Wait> {
        let mut slots = lock(&self.slots);
        let slot = slots.entry(broker.id).or_default();
        slot.open.retain(Upstream::is_alive);
        if let Some(upstream) = slot.open.iter().find(|upstream| upstream.has_room()) {
            return Ok(Lease { send: upstream.send.clone(), held: upstream.held.clone() });
        }
        if let Some(dialling) = &slot.dialling {
            return Err(Wait::Dial(dialling.clone()));
        }
        if slot.open.len() >= CONNECTIONS {
            return Err(Wait::Nothing);
        }
        let (outcome, dialling) = watch::channel(None);
        slot.dialling = Some(dialling.clone());
        let slots = self.slots.clone();
        let (limit, broker) = (self.connect, broker.clone());
        // A task of its own: the stream that asked first may leave while others wait.
        tokio::spawn(async move {
            let dialled = timeout(limit, dial(&broker)).await.unwrap_or(Err("connect timed out"));
            // Another one would have none either, so who waits must not go on dialling.
            let dialled = dialled.and_then(|upstream| match upstream.has_room() {
                true => Ok(upstream),
                false => Err(broker.failed("no stream admitted", NO_ROOM.to_owned())),
            });
            let mut slots = lock(&slots);
            let slot = slots.entry(broker.id).or_default();
            slot.dialling = None;
            let dialled = dialled.map(|upstream| slot.open.push(upstream));
            // Brokers come and go; what is left of those that went goes with the next dial.
            slots.retain(|_, slot| {
                slot.open.retain(Upstream::is_alive);
                slot.dialling.is_some() || !slot.open.is_empty()
            });
            outcome.send_replace(Some(dialled));
        });
        Err(Wait::Dial(dialling))
    }

    fn forget(&self, broker: u64, held: &Place) {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get_mut(&broker) {
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

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether HTTP/2 is spoken there, now. Takes as long as it takes.
pub async fn answers(broker: &Broker) -> bool {
    let Ok(io) = broker.dial().await else { return false };
    let Ok((_send, mut connection)) = builder().handshake::<_, Bytes>(io).await else { return false };
    let mut ping = connection.ping_pong().expect("asked for once");
    tokio::select! {
        answered = ping.ping(Ping::opaque()) => answered.is_ok(),
        _ = connection => false,
    }
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

async fn dial(broker: &Broker) -> Result<Upstream, &'static str> {
    let (address, standing) = (broker.address, broker.standing());
    let (io, outlet) = coalesce::collect(broker.dial().await?, false);
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
            let why = unwatched(ping, standing).await;
            // Nobody hears it when the connection is over already.
            let _ = silent.send(why);
        }
    });
    settings.await.map_err(|_| "HTTP/2 handshake failed")?;
    Ok(Upstream { send, held: Place::default(), alive })
}

/// One connection to a broker, until it is over or nobody answers there.
struct Driven {
    connection: Connection<Collected<Io>, Bytes>,
    outlet: Outlet<Io>,
    watched: oneshot::Receiver<Unwatched>,
    address: SocketAddr,
    _ended: watch::Sender<()>,
}

impl Future for Driven {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Poll::Ready(Ok(why)) = Pin::new(&mut this.watched).poll(cx) {
            match why {
                Unwatched::Mute => {
                    tracing::warn!(upstream = %this.address, "closed: the broker does not answer HTTP/2 pings");
                }
                Unwatched::Gone => {
                    tracing::debug!(upstream = %this.address, "closed: nobody has any use for the broker");
                }
            }
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

/// Why a connection is closed from here.
enum Unwatched {
    /// No answer to a ping.
    Mute,
    /// The broker is gone from discovery and has no stream left.
    Gone,
}

/// Pings every now and then, and at once when the broker is no longer reachable otherwise: one that leaves still answers,
/// one that vanished does not. Returns when there is no answer in time, or nobody has any use for the broker.
async fn unwatched(mut ping: PingPong, mut standing: watch::Receiver<bool>) -> Unwatched {
    loop {
        tokio::select! {
            () = sleep(PING_EVERY) => {}
            fell = falls(&mut standing) => if fell.is_err() {
                return Unwatched::Gone;
            }
        }
        if !matches!(timeout(PONG_WITHIN, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return Unwatched::Mute;
        }
    }
}

/// Returns when a broker that was up no longer is; an error if it is not looked after any more.
async fn falls(standing: &mut watch::Receiver<bool>) -> Result<(), watch::error::RecvError> {
    standing.wait_for(|up| *up).await?;
    standing.wait_for(|up| !*up).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_told_once_however_many_streams_it_had() {
        let (lost, other) = (Place::default(), Place::default());
        let streams: Vec<_> = (0..5).map(|_| lost.clone()).collect();
        assert_eq!(streams.iter().filter(|place| place.is_first_to_tell()).count(), 1);
        assert!(other.is_first_to_tell());
    }
}
