//! One HTTP/2 connection to a broker: dialled over TCP, TLS or a Unix socket, proven to speak HTTP/2, and watched until
//! it ends. `pool` decides when; `call` uses the streams. A broker that is there and does not answer is found by pings,
//! a host that is not there any more by the system too.

use super::{Limits, PeerError, Target};
use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, SendRequest},
};
use postern_certs::client::explain;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsConnector;

use crate::fleet::PeerUrl;

/// One stream nobody reads must not stop its siblings, so the connection's window is as large as HTTP/2 allows: what is
/// held unread is bounded by the streams. h2 derives from it how many small unread frames it bears.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Of one stream, admitted by its window and not yet taken by the socket. In bytes.
const SEND_BUFFER: usize = 128 * 1024;
const HEADER_LIST: u32 = 64 * 1024;
/// Beyond what a broker of ours admits; a kas admits any number.
const STREAMS: usize = 1000;
/// Streams that lost a race are remembered while the other end may still send on them; h2 takes frames on forgotten
/// ones for errors and counts those.
const RESETS_REMEMBERED: usize = 4096;
/// The first probe after a silence, and how far apart the others are.
const TCP_KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(5))
    .with_interval(Duration::from_secs(2))
    .with_retries(2);
/// After so long without an acknowledgement of what was sent, the system gives up.
#[cfg(target_os = "linux")]
const TCP_UNACKNOWLEDGED: Duration = Duration::from_secs(9);

/// A connection as the pool keeps it.
#[derive(Debug)]
pub(super) struct Connection {
    send: SendRequest<Bytes>,
    /// One is the pool's, each stream has one.
    held: Arc<()>,
    /// Closed once the connection's task has ended.
    alive: watch::Receiver<()>,
    /// See [`Place::ours`].
    ours: Arc<AtomicBool>,
}

/// The right to open one stream. Counts as a stream of the connection until it is dropped.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) send: SendRequest<Bytes>,
    held: Arc<()>,
    /// Set once an answer showed that this is a broker of ours, which may be pinged often: a kas ends connections that
    /// ping more often than every 20 s.
    pub(super) ours: Arc<AtomicBool>,
}

impl Connection {
    pub(super) fn is_alive(&self) -> bool {
        self.alive.has_changed().is_ok()
    }

    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.held) == 1
    }

    /// A place, if the other end admits one more stream.
    pub(super) fn place(&self) -> Option<Place> {
        let room = STREAMS.min(self.send.current_max_send_streams());
        (Arc::strong_count(&self.held) <= room).then(|| Place {
            send: self.send.clone(),
            held: Arc::clone(&self.held),
            ours: Arc::clone(&self.ours),
        })
    }

    pub(super) fn is_of(&self, place: &Place) -> bool {
        Arc::ptr_eq(&self.held, &place.held)
    }

    pub(super) fn has(&self, held: &Weak<()>) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.held), held.as_ptr())
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Dials. `retire` is asked once nothing has happened for long: whether the pool has let go of the connection.
pub(super) async fn dial(
    target: &Target,
    limits: Limits,
    retire: impl Fn(&Weak<()>) -> bool + Send + 'static,
) -> Result<Connection, PeerError> {
    let dialled = async {
        let io = reach(target).await?;
        greet(io, target.url.clone(), limits, retire).await
    };
    let slow = |_| PeerError::Slow { broker: target.url.clone(), limit: limits.dial };
    timeout(limits.dial, dialled).await.map_err(slow)?
}

async fn reach(target: &Target) -> Result<Pin<Box<dyn Io>>, PeerError> {
    let broker = &target.url;
    let unreachable =
        |source: io::Error| PeerError::Unreachable { broker: broker.clone(), source: Arc::new(source) };
    let (host, port, tls) = match broker {
        PeerUrl::Unix(path) => {
            return Ok(Box::pin(UnixStream::connect(path).await.map_err(unreachable)?));
        }
        PeerUrl::Tcp { host, port, tls } => (host, *port, *tls),
    };
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(unreachable)?;
    // A socket without these options still works.
    let _ = tcp.set_nodelay(true);
    let socket = SockRef::from(&tcp);
    let _ = socket.set_tcp_keepalive(&TCP_KEEPALIVE);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(TCP_UNACKNOWLEDGED));
    if !tls {
        return Ok(Box::pin(tcp));
    }
    let failed = |advice: String| PeerError::Tls { broker: broker.clone(), advice };
    let Some(trust) = &target.trust else {
        return Err(failed("this broker was given nothing to trust".to_owned()));
    };
    let name = target.server_name.as_ref().unwrap_or(host);
    let name = ServerName::try_from(name.clone())
        .map_err(|_| failed(format!("{name:?} is no name that a certificate can have")))?;
    match TlsConnector::from(trust.config(&[b"h2"])).connect(name, tcp).await {
        Ok(io) => Ok(Box::pin(io)),
        Err(error) => Err(match explain(&error, trust.ca_given()) {
            // The words are those of an agent's flag; here it is a key of the configuration file.
            Some(advice) => {
                failed(advice.replace("--ca-cert-file", "private_api.listen.ca_certificate_file"))
            }
            None => unreachable(error),
        }),
    }
}

async fn greet(
    io: Pin<Box<dyn Io>>,
    broker: PeerUrl,
    limits: Limits,
    retire: impl Fn(&Weak<()>) -> bool + Send + 'static,
) -> Result<Connection, PeerError> {
    let (send, mut connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .max_local_error_reset_streams(None)
        .enable_push(false)
        .handshake(io)
        .await
        .map_err(|source| PeerError::Lost { broker: broker.clone(), source: Arc::new(source) })?;
    let mut ping = connection.ping_pong().expect("asked for once");
    let (ended, alive) = watch::channel(());
    let (settled, settings) = oneshot::channel();
    let (held, ours) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
    let watched = Watched { held: Arc::downgrade(&held), ours: Arc::clone(&ours), limits };
    let url = broker.clone();
    tokio::spawn(async move {
        let watching = async {
            // The answer comes behind the server's settings, so afterwards its limit of streams is known; and it
            // proves that HTTP/2 is spoken there at all.
            if ping.ping(Ping::opaque()).await.is_ok() {
                let _ = settled.send(());
                watched.run(ping, retire).await
            } else {
                // The connection says why.
                std::future::pending().await
            }
        };
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    tracing::debug!(broker = %url, %error, "connection to the broker ended");
                }
            }
            why = watching => match why {
                Over::Mute => tracing::warn!(broker = %url, "closed: the broker does not answer HTTP/2 pings"),
                Over::Idle => tracing::debug!(broker = %url, "closed: nothing to do"),
            },
        }
        drop(ended);
    });
    settings.await.map_err(|_| PeerError::NotHttp2 { broker })?;
    Ok(Connection { send, held, alive, ours })
}

/// Why a connection is closed from this end.
enum Over {
    Mute,
    Idle,
}

struct Watched {
    held: Weak<()>,
    ours: Arc<AtomicBool>,
    limits: Limits,
}

impl Watched {
    async fn run(self, mut ping: PingPong, retire: impl Fn(&Weak<()>) -> bool) -> Over {
        let limits = self.limits;
        let mut ticks = interval(limits.ping_busy);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut pinged, mut used) = (Instant::now(), Instant::now());
        loop {
            ticks.tick().await;
            let busy = self.held.strong_count() > 1;
            let often = busy && self.ours.load(Ordering::Relaxed);
            if often || pinged.elapsed() >= limits.ping_idle {
                if !matches!(timeout(limits.pong, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
                    return Over::Mute;
                }
                pinged = Instant::now();
            }
            if busy {
                used = Instant::now();
            } else if used.elapsed() >= limits.idle && retire(&self.held) {
                return Over::Idle;
            }
        }
    }
}
