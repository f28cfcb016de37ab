//! The worker's own HTTP/2 connections to brokers' agent listeners: few, shared by many streams, watched by pings.
//!
//! Under `relay`. Never opens more streams on a connection than its server admits: those would wait for ever behind
//! tunnels that last for hours. However many streams want a connection at once, one is dialled.

use crate::http2::SEND_BUFFER;
use crate::upstream::dial::Io;
use crate::upstream::{Broker, CONNECTION_WINDOW, STREAM_WINDOW};
use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Times the stream window this is the connection's window, and a broker admits 1024.
const STREAMS: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize;
/// kas ends a connection that is pinged more often. What vanished in between is found by the probes, which do not speak
/// on this connection, and then it is pinged at once.
const PING_EVERY: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(5);
const HEADER_LIST: u32 = 64 * 1024;

/// Connections by broker: by its id, since another one may come up at the same address.
pub struct Pool {
    slots: Arc<Mutex<HashMap<u64, Slot>>>,
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

/// Why there is no place for a stream.
#[derive(Debug, Clone, Copy)]
pub enum Unopened {
    /// As many streams wait for a connection as may.
    Crowded,
    /// What failed, for people.
    Failed(&'static str),
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

    /// A place on a connection to this broker.
    pub async fn open(&self, broker: &Arc<Broker>) -> Result<Lease, Unopened> {
        loop {
            let mut outcome = match self.lease(broker) {
                Ok(Lease { send, held }) => match send.ready().await {
                    Ok(send) => return Ok(Lease { send, held }),
                    // Going away, as its task will notice soon.
                    Err(_) => {
                        self.forget(broker.id, &held);
                        continue;
                    }
                },
                Err(outcome) => outcome,
            };
            let Some(_in_line) = broker.wait_in_line() else {
                return Err(Unopened::Crowded);
            };
            match outcome.wait_for(Option::is_some).await.map(|outcome| *outcome) {
                Ok(Some(Err(what))) => return Err(Unopened::Failed(what)),
                Ok(_) => {}
                Err(_) => return Err(Unopened::Failed("connect failed")),
            }
        }
    }

    /// A connection with room, or the outcome of the dial to wait for.
    fn lease(&self, broker: &Arc<Broker>) -> Result<Lease, watch::Receiver<Option<Dialled>>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(broker.id).or_default();
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
        let (limit, broker) = (self.connect, broker.clone());
        // A task of its own: the stream that asked first may leave while others wait.
        tokio::spawn(async move {
            let dialled = timeout(limit, dial(&broker)).await.unwrap_or(Err("connect timed out"));
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = slots.entry(broker.id).or_default();
            slot.dialling = None;
            let dialled = dialled.map(|upstream| slot.open.push(upstream));
            // Brokers come and go; those that went leave nothing here.
            slots.retain(|_, slot| {
                slot.open.retain(|upstream| upstream.alive.has_changed().is_ok());
                !slot.open.is_empty() || slot.dialling.is_some()
            });
            outcome.send_replace(Some(dialled));
        });
        Err(dialling)
    }

    fn forget(&self, broker: u64, held: &Arc<()>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(&broker) {
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
pub async fn answers(broker: &Broker) -> bool {
    let Ok((_send, mut connection)) = connect(broker).await else { return false };
    let mut ping = connection.ping_pong().expect("asked for once");
    tokio::select! {
        answered = ping.ping(Ping::opaque()) => answered.is_ok(),
        _ = connection => false,
    }
}

async fn connect(broker: &Broker) -> Result<(SendRequest<Bytes>, Connection<Io, Bytes>), &'static str> {
    let io = broker.dial().await?;
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .enable_push(false)
        .handshake(io);
    handshake.await.map_err(|_| "HTTP/2 handshake failed")
}

async fn dial(broker: &Broker) -> Result<Upstream, &'static str> {
    let (address, standing) = (broker.address, broker.standing());
    let (send, mut connection) = connect(broker).await?;
    let mut ping = connection.ping_pong().expect("asked for once");
    let (ended, alive) = watch::channel(());
    let (settled, settings) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let watched = async {
            // The answer comes behind the server's settings, so afterwards its limit of streams is known; and it
            // proves that HTTP/2 is spoken there at all.
            if ping.ping(Ping::opaque()).await.is_ok() {
                let _ = settled.send(());
                return Some(unwatched(ping, standing).await);
            }
            None
        };
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    tracing::debug!(upstream = %address, %error, "connection to the broker ended");
                }
            }
            why = watched => match why {
                Some(Unwatched::Mute) => {
                    tracing::warn!(upstream = %address, "closed: the broker does not answer HTTP/2 pings");
                }
                _ => tracing::debug!(upstream = %address, "closed: nobody has any use for the broker"),
            },
        }
        drop(ended);
    });
    settings.await.map_err(|_| "HTTP/2 handshake failed")?;
    Ok(Upstream { send, held: Arc::new(()), alive })
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
