//! One listener of one broker: what is known of it, and what it has to carry.
//!
//! `choose` reads it for every stream, so that everything it needs is an atomic; `health`, requests and `discover` write
//! it. Opens no connection itself (`dial` does).

use super::choose::Members;
use super::eject::Window;
use super::secure::Secure;
use super::{LEAVES_WITHIN, POOL_IDLE, SILENCE, UNACKNOWLEDGED};
use crate::config;
use crate::decide::{Decision, Route, Upgrade};
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A whole share of the load, for brokers that are neither new nor back.
pub(super) const WHOLE: u64 = 1000;
/// What a broker gets in its first moment; with nothing at all it would never be known to work.
const FIRST: u64 = WHOLE / 10;

/// What all brokers of a route have in common.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) route: Route,
    pub(super) configured: config::Upstream,
    /// One dial at most.
    pub(super) connect: Duration,
    pub(super) secure: Option<Secure>,
    /// Moments are counted from here, in milliseconds and from 1, so that 0 says none.
    epoch: Instant,
}

impl Settings {
    pub(super) fn new(
        route: Route,
        configured: config::Upstream,
        connect: Duration,
        secure: Option<Secure>,
    ) -> Self {
        Self { route, configured, connect, secure, epoch: Instant::now() }
    }

    pub(super) fn now(&self) -> u64 {
        millis(self.epoch.elapsed()) + 1
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

/// One listener of one broker. Lives as long as it is discovered, probed, or has streams.
#[derive(Debug)]
pub struct Broker {
    pub address: SocketAddr,
    /// Of this broker alone: what comes later at the same address has another one.
    pub id: u64,
    pub(super) settings: Arc<Settings>,
    pub(super) members: Weak<Members>,
    /// The host as configured: the name in its certificate unless another one is configured.
    pub(super) host: String,
    pub(super) hash: u64,
    peer: HttpPeer,
    up: watch::Sender<bool>,
    /// The same, without a lock.
    is_up: AtomicBool,
    /// Probes in a row that got no answer at all.
    unanswered: watch::Sender<u32>,
    /// Until then it is about to leave: it said so.
    leaving_until: AtomicU64,
    /// Discovery says that it is about to leave.
    terminating: AtomicBool,
    /// Discovery does not know it any more.
    gone: AtomicBool,
    pub(super) ejected_until: AtomicU64,
    /// It has just come up, then.
    pub(super) cold_since: AtomicU64,
    streams: AtomicU32,
    pending: AtomicU32,
    pub(super) failures: AtomicU32,
    pub(super) window: Window,
    record: Mutex<Record>,
}

/// What only reports and rare events need.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) up_changed: u64,
    pub(super) last_error: Option<String>,
    /// How long the next ejection lasts, in times of the first; calm makes it less again.
    pub(super) ejections: u32,
    /// All there ever were.
    pub(super) ejected: u64,
}

impl Broker {
    pub(super) fn new(
        address: SocketAddr,
        host: String,
        settings: Arc<Settings>,
        members: Weak<Members>,
    ) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        // Without random keys: every edge must choose alike.
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
        // Until the first probe says otherwise, a broker is not known to be there.
        Self {
            address,
            id: IDS.fetch_add(1, Relaxed),
            hash: hasher.finish(),
            peer: peer(address, settings.connect),
            settings,
            members,
            host,
            up: watch::Sender::new(false),
            is_up: AtomicBool::new(false),
            unanswered: watch::Sender::new(0),
            leaving_until: AtomicU64::new(0),
            terminating: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            ejected_until: AtomicU64::new(0),
            cold_since: AtomicU64::new(0),
            streams: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            window: Window::default(),
            record: Mutex::default(),
        }
    }

    /// How pingora shall connect for this HTTP/1.1 request, of which `bare` ones send nothing but a head.
    pub fn peer(&self, decision: Decision, bare: bool) -> Box<HttpPeer> {
        let mut peer = Box::new(self.peer.clone());
        if bare && let Some(keepalive) = &mut peer.options.tcp_keepalive {
            // A head is acknowledged by a host that is there, whatever its broker does with it. Connections of their own:
            // a body may rightly wait for as long as the cluster does not read it.
            keepalive.user_timeout = UNACKNOWLEDGED;
            peer.group_key = 1;
        }
        if decision.upgrade == Upgrade::Other {
            // The default lets WebSockets through only; kubectl before 1.31 speaks SPDY/3.1.
            peer.options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Preserve;
        }
        if let Some(secure) = &self.settings.secure {
            secure.dress(&mut peer, self.server_name());
        }
        peer
    }

    /// The name its certificate must have.
    pub(super) fn server_name(&self) -> &str {
        self.settings.configured.tls.server_name.as_deref().unwrap_or(&self.host)
    }

    /// Takes one more stream; `None` when it has all it may have.
    pub fn enter(self: &Arc<Self>) -> Option<Load> {
        take(&self.streams, self.settings.configured.max_streams).then(|| Load(self.clone()))
    }

    /// Takes one more stream that waits for a connection; `None` when as many wait as may.
    pub fn wait_in_line(self: &Arc<Self>) -> Option<Pending> {
        take(&self.pending, self.settings.configured.max_pending).then(|| Pending(self.clone()))
    }

    pub(super) fn streams(&self) -> u32 {
        self.streams.load(Relaxed)
    }

    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Relaxed)
    }

    /// Whether it has all the streams that it may have.
    pub(super) fn is_full(&self) -> bool {
        self.settings.configured.max_streams.is_some_and(|most| self.streams() >= most.get())
    }

    pub fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    /// Tells whether it is up, now and later. Ends when nobody has any use for the broker any more.
    pub fn standing(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Whether it does not even refuse connections, time and again.
    pub fn is_silent(&self) -> bool {
        *self.unanswered.borrow() >= SILENCE
    }

    /// Returns its address once it does not even refuse connections, time and again.
    pub async fn silent(&self) -> SocketAddr {
        let mut unanswered = self.unanswered.subscribe();
        // The sender is a field of this.
        let _ = unanswered.wait_for(|count| *count >= SILENCE).await;
        self.address
    }

    /// Whether anything depends on the time of day; if not, `now` may be anything for the functions below.
    pub(super) fn is_timed(&self) -> bool {
        self.leaving_until.load(Relaxed) | self.ejected_until.load(Relaxed) | self.cold_since.load(Relaxed)
            != 0
    }

    pub(super) fn is_leaving(&self, now: u64) -> bool {
        self.terminating.load(Relaxed) || now < self.leaving_until.load(Relaxed)
    }

    pub(super) fn is_ejected(&self, now: u64) -> bool {
        now < self.ejected_until.load(Relaxed)
    }

    /// Its part of the load, of [`WHOLE`].
    pub(super) fn share(&self, now: u64) -> u64 {
        let since = self.cold_since.load(Relaxed);
        if since == 0 {
            return WHOLE;
        }
        let (warm, full) = (now.saturating_sub(since), millis(self.settings.configured.slow_start));
        if warm >= full {
            self.cold_since.store(0, Relaxed);
            return WHOLE;
        }
        (WHOLE * warm / full).max(FIRST)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Relaxed);
    }

    pub(super) fn set_terminating(&self, terminating: bool) {
        if self.terminating.swap(terminating, Relaxed) != terminating && terminating {
            tracing::info!(upstream = %self.address, "broker is about to leave");
        }
    }

    /// This broker has said that it is about to leave.
    pub fn mark_leaving(&self) {
        let now = self.settings.now();
        if self.leaving_until.swap(now + millis(LEAVES_WITHIN), Relaxed) == 0 {
            tracing::info!(upstream = %self.address, "broker is about to leave");
        }
    }

    /// The connection to it failed.
    pub fn mark_down(&self) {
        self.set_up(false);
    }

    pub(super) fn set_up(&self, up: bool) {
        if !up {
            // Gone: what comes up there is another process.
            self.leaving_until.store(0, Relaxed);
        }
        let changed = self.up.send_if_modified(|was| std::mem::replace(was, up) != up);
        if !changed {
            return;
        }
        let now = self.settings.now();
        let slow = millis(self.settings.configured.slow_start);
        // What comes up in the edge's own first moments was there before.
        if up && now > slow && slow > 0 {
            self.cold_since.store(now, Relaxed);
        }
        self.is_up.store(up, Relaxed);
        let route = self.settings.route.name();
        let mut record = self.record();
        record.up_changed = now;
        if up {
            tracing::info!(upstream = %self.address, route, "broker is reachable");
        } else {
            let error = record.last_error.as_deref();
            tracing::warn!(upstream = %self.address, route, error, "broker is not reachable");
        }
    }

    /// A probe got an answer of whatever kind, or none at all.
    pub(super) fn set_answering(&self, answering: bool) {
        self.unanswered.send_if_modified(|count| {
            let now = if answering { 0 } else { count.saturating_add(1) };
            std::mem::replace(count, now) != now
        });
    }

    /// How often it was spared because it failed requests, since it was found.
    pub fn ejections(&self) -> u64 {
        self.record().ejected
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what failed last, for the operator; never anything of a request.
    pub(super) fn note_error(&self, what: impl Into<String>) {
        self.record().last_error = Some(what.into());
    }
}

/// Counts one more unless there are as many as may be.
fn take(count: &AtomicU32, most: Option<NonZeroU32>) -> bool {
    let before = count.fetch_add(1, Relaxed);
    let room = most.is_none_or(|most| before < most.get());
    if !room {
        count.fetch_sub(1, Relaxed);
    }
    room
}

/// One stream that its broker carries, until this is dropped.
#[derive(Debug)]
pub struct Load(Arc<Broker>);

impl Load {
    pub fn broker(&self) -> &Arc<Broker> {
        &self.0
    }
}

impl Deref for Load {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.0
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

/// One stream that waits for a connection, until this is dropped.
#[derive(Debug)]
pub struct Pending(Arc<Broker>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

fn peer(address: SocketAddr, connect: Duration) -> HttpPeer {
    let mut peer = HttpPeer::new(address, false, String::new());
    let options = &mut peer.options;
    options.connection_timeout = Some(connect);
    options.total_connection_timeout = Some(connect);
    // No timers on what is under way: a watch, a tunnel or an exec may be silent for hours.
    options.read_timeout = None;
    options.write_timeout = None;
    options.idle_timeout = Some(POOL_IDLE);
    options.tcp_keepalive = Some(TcpKeepalive {
        // A broker's host that vanished answers neither: within 10 s that is known to who waits for an answer.
        idle: Duration::from_secs(5),
        interval: Duration::from_secs(2),
        count: 2,
        // The system's: a broker may let an upload wait for as long as the cluster does.
        user_timeout: Duration::ZERO,
    });
    peer
}
