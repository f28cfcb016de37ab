//! Serves one HTTP/2 connection, direct or inside a WebSocket, and parts its streams.
//!
//! After `accept`. gRPC goes to `relay`, which copies frames; the rest goes through `bridge` to `proxy`. Nothing about
//! a single request is decided here. The handshake is a future that ends; what stays for months is [`Task`], polled by
//! hand, for an idle connection shall keep nothing that it does not need.

use crate::accept::Worker;
use crate::coalesce::{Collected, Emptied, Flood, Outlet, collect};
use crate::decide::{self, Route};
use crate::life::{Life, Rhythm, Sentence};
use crate::transport::{Connection, SocketFacts};
use crate::upstream::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::{bridge, relay};
use bytes::Bytes;
use h2::server::{self, Builder, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Request;
use http::uri::Authority;
use postern_wire::token::TokenKey;
use slab::Slab;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// Streams that one connection may have open: an agent's pool grows to hundreds.
const STREAMS: u32 = 1000;
/// Streams to the Kubernetes API that run at once on a connection whose token no broker has accepted yet. An answer that
/// its client does not take is held, and whoever comes without a token is answered, too. An old kubectl asks for some
/// hundred API groups at once, but only once the list of them was answered; a program whose first burst is larger is told
/// REFUSED_STREAM, after which HTTP/2 libraries send a request again. Agents are not meant: without a token
/// their calls are over at once, and all that a stranger with one gets is a status, which waits for no window.
const STRANGERS_STREAMS: usize = 100;
/// Unread bytes of a connection whose token no broker has accepted yet: room for the first calls of an agent, and
/// little enough that thousands of strangers cannot fill the memory. Afterwards [`CONNECTION_WINDOW`].
const STRANGERS_WINDOW: u32 = 1024 * 1024;
/// What h2 allows for DATA frames below 256 bytes that nobody has read yet. Its default ends the connection of an
/// agent that sends a few thousand small messages in one go. This is some 65,000 of them, or 8 MiB of bookkeeping.
const SMALL_FRAMES: usize = 16 * 1024 * 1024;
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// Streams that a client reset before they were even taken up, at one time: a program that opens a batch and cancels it
/// in the same breath is served, who goes on like that (CVE-2023-44487) is not. h2's own limit of 20 is hit by the former.
const RESET_UNSEEN: usize = 200;
/// Streams reset by us whose late frames are still expected and ignored, and for how long: a round trip around the world.
const RESET_BY_US: usize = 100;
const RESET_REMEMBERED: Duration = Duration::from_secs(1);
/// Streams that broke the protocol, in a connection's whole life, each of which cost us a reset (CVE-2025-8671).
const BROKEN_STREAMS: usize = 1024;
/// Calls that a client gave up before their response began, within [`ABANDONED_WITHIN`]: each cost a broker something.
const ABANDONED: u32 = 2000;
/// The same where no broker has accepted a token yet.
const STRANGERS_ABANDONED: u32 = 800;
/// As how many counts what was given up before it was even taken up. It has cost no broker anything, but nobody has reason
/// to send hundreds of them: those of a batch that is cancelled are part of [`RESET_UNSEEN`] as well.
const UNSEEN: u32 = 4;
const ABANDONED_WITHIN: Duration = Duration::from_secs(10);
/// Below the 60 s after which load balancers drop a silent connection; and a client that vanished is found within less
/// than a minute. A WebSocket has a ping of its own beneath. A policy may say otherwise.
const PING_EVERY: Duration = Duration::from_secs(40);
const PONG_WITHIN: Duration = Duration::from_secs(15);
/// How long waiting streams may take to end with a status.
const HOMEWARD: Duration = Duration::from_millis(500);
/// How long GOAWAY and Close may take on their way to a client that is cut.
const FAREWELL: Duration = Duration::from_secs(1);
/// Never, as far as a connection is concerned.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What all streams of one connection share. Each stream holds it once: that is how they are counted.
pub struct Peer {
    pub worker: Arc<Worker>,
    pub connection: Arc<Connection>,
    pub socket: SocketFacts,
    /// Of streams inside a WebSocket, whose own `:authority` means nothing: what its handshake asked for.
    pub authority: Option<Authority>,
    abandoned: AtomicU32,
    waiting: Waiting,
}

/// Streams that only wait for their request, to be sent home when their connection ends.
#[derive(Default)]
struct Waiting {
    over: AtomicBool,
    wakers: Mutex<Slab<Waker>>,
}

/// One stream, as the HTTP/2 server hands it out.
pub struct Stream {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
    pub peer: Arc<Peer>,
}

impl Peer {
    /// A broker served a call, so it accepts the token.
    pub fn trust(&self, token: Option<TokenKey>) {
        self.connection.seat.trust(token);
    }

    /// Whether it has as many streams already as somebody may have at the Kubernetes API whom no broker knows. A proxy that
    /// the operator trusts comes for many.
    fn is_busy_stranger(&self, streams: usize) -> bool {
        streams >= STRANGERS_STREAMS
            && !self.connection.seat.is_trusted()
            && !self.connection.is_behind_proxy()
    }

    /// A stream that only waits can be woken by this. Returns its number, for [`Peer::wait_no_more`].
    pub fn wait(&self, waker: &Waker) -> usize {
        self.waiting.wakers().insert(waker.clone())
    }

    pub fn wait_no_more(&self, number: usize) {
        self.waiting.wakers().try_remove(number);
    }

    /// Whether streams that only wait shall end now.
    pub fn sends_home(&self) -> bool {
        self.waiting.over.load(Ordering::SeqCst)
    }

    fn send_home(&self) {
        self.waiting.over.store(true, Ordering::SeqCst);
        self.waiting.wakers().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// The client gave up a call that had no answer yet.
    pub fn note_abandoned(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }
}

impl Waiting {
    fn wakers(&self) -> MutexGuard<'_, Slab<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the handshake, and then serves in a task of its own until the connection closes. When [`Life`] says so it sends
/// GOAWAY and finishes what runs. `held` is dropped when the connection is over.
pub async fn serve<S, H>(
    worker: Arc<Worker>,
    io: S,
    connection: Arc<Connection>,
    socket: SocketFacts,
    held: H,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Send + Unpin + 'static,
{
    let (io, outlet) = collect(io, true);
    let header_bytes = worker.shared.limits.header_bytes();
    let server = match handshake(io, &outlet, header_bytes, worker.timeouts.handshake).await {
        Ok(server) => server,
        Err(error) => {
            worker.shared.metrics.handshake_failure("http2");
            if outlet.is_garbled() {
                worker.offended(&connection);
            }
            tracing::debug!(client = %connection.client, error, "closed during the HTTP/2 handshake");
            return;
        }
    };
    let seat = connection.seat.clone();
    let task = Task::new(worker.clone(), server, outlet, connection, socket, held);
    worker.judge_again(&seat);
    worker.tasks.spawn(task);
}

async fn handshake<S>(
    io: Collected<S>,
    outlet: &Outlet<S>,
    header_bytes: u32,
    limit: Duration,
) -> Result<server::Connection<Collected<S>, Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = Builder::new()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(header_bytes)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STRANGERS_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        .max_concurrent_reset_streams(RESET_BY_US)
        .reset_stream_duration(RESET_REMEMBERED)
        .max_local_error_reset_streams(Some(BROKEN_STREAMS))
        .handshake(io);
    let handshake = std::future::poll_fn(|cx| {
        let done = Pin::new(&mut handshake).poll(cx);
        // Our SETTINGS; the client may wait for them before it says anything.
        match outlet.poll(cx) {
            Ok(_) => done.map_err(|error| error.to_string()),
            Err(error) => Poll::Ready(Err(error.to_string())),
        }
    });
    // Inside a WebSocket nobody has looked for the preface yet.
    timeout(limit, handshake).await.unwrap_or_else(|_| Err(format!("no preface within {limit:?}")))
}

/// One connection. Nobody waits for it; it ends when the connection does.
struct Task<S, H> {
    server: server::Connection<Collected<S>, Bytes>,
    outlet: Outlet<S>,
    peer: Arc<Peer>,
    life: Life,
    /// It is being cut, and why.
    cut: Option<&'static str>,
    /// All that is left is to say so.
    farewell: bool,
    /// Rings at the earliest of the times below.
    alarm: Pin<Box<Sleep>>,
    /// When to ping, or until when a pong must come.
    ping_at: Instant,
    /// Until when the header block that is under way must be complete.
    head_at: Option<Instant>,
    /// `None` once a client that need not answer did not.
    ping: Option<PingPong>,
    pinged: bool,
    trusted: bool,
    /// How often policies want pings, when it looked last.
    rhythm: Rhythm,
    abandoned_since: Instant,
    /// It broke the protocol.
    offends: bool,
    _held: H,
}

fn ping_every(rhythm: Rhythm) -> Duration {
    rhythm.or(Some(PING_EVERY)).unwrap_or(FAR)
}

/// The connection is over, and why if that is our doing.
struct Over(Option<&'static str>);

impl<S, H> Task<S, H>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    fn new(
        worker: Arc<Worker>,
        mut server: server::Connection<Collected<S>, Bytes>,
        outlet: Outlet<S>,
        connection: Arc<Connection>,
        socket: SocketFacts,
        held: H,
    ) -> Self {
        let now = Instant::now();
        let life = Life::new(&worker.roll, connection.seat.clone(), connection.client.ip());
        let rhythm = connection.seat.rhythm();
        let ping_at = now + ping_every(rhythm);
        let authority = connection.tunnelled_for.as_deref().and_then(|host| host.parse().ok());
        let peer = Peer {
            worker,
            connection,
            socket,
            authority,
            abandoned: AtomicU32::new(0),
            waiting: Waiting::default(),
        };
        Self {
            ping: server.ping_pong(),
            server,
            outlet,
            peer: Arc::new(peer),
            life,
            cut: None,
            farewell: false,
            alarm: Box::pin(sleep_until(ping_at)),
            ping_at,
            head_at: None,
            pinged: false,
            trusted: false,
            rhythm,
            abandoned_since: now,
            offends: false,
            _held: held,
        }
    }

    /// Takes up the streams that came, and writes what there is to write.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            if self.cut.is_some() {
                return self.part(cx);
            }
            let client = self.peer.connection.client.ip();
            match self.life.poll(cx, self.server.has_streams(), client) {
                Poll::Ready(Sentence::Leave(why)) => {
                    tracing::debug!(client = %self.peer.connection.client, why = why.name(), "told to leave");
                    self.peer.worker.shared.metrics.departure(why.name());
                    self.server.graceful_shutdown();
                    // Asked again, so that it can be woken for what comes after.
                    continue;
                }
                Poll::Ready(Sentence::Cut(why)) => {
                    self.cut = Some(why.name());
                    self.peer.send_home();
                    self.alarm.as_mut().reset(Instant::now() + HOMEWARD);
                    continue;
                }
                Poll::Pending => {}
            }
            self.mind_rhythm();
            while self.alarm.as_mut().poll(cx).is_ready() {
                if let Some(why) = self.ring() {
                    return Poll::Ready(Over(Some(why)));
                }
            }
            let had_streams = self.server.has_streams();
            let ended = self.accept(cx);
            self.hear_pong(cx);
            if !self.trusted && self.peer.connection.seat.is_trusted() {
                self.trusted = true;
                self.outlet.trust();
                self.server.set_target_window_size(CONNECTION_WINDOW);
                continue;
            }
            let emptied = match self.outlet.poll(cx) {
                Ok(emptied) => emptied,
                Err(error) => {
                    tracing::debug!(client = %self.peer.connection.client, %error, "connection ended");
                    return Poll::Ready(Over(None));
                }
            };
            if ended {
                return Poll::Ready(Over(None));
            }
            if let Some(why) = self.flood(emptied) {
                // Before it can know, and dial again.
                self.peer.worker.offended(&self.peer.connection);
                // Said as far as it goes in one turn: whoever floods need not be waited for.
                self.server.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                let _ = self.server.poll_closed(cx);
                let _ = self.outlet.poll(cx);
                self.peer.worker.shared.metrics.refusal("flood");
                return Poll::Ready(Over(Some(why)));
            }
            // The last stream may have ended just now.
            let calm = self.server.has_streams() == had_streams;
            if emptied == Emptied::Rest && calm && !self.mind_head(cx) {
                return Poll::Pending;
            }
        }
    }

    fn flood(&mut self, emptied: Emptied) -> Option<&'static str> {
        match emptied {
            Emptied::Flooded(Flood::Control) => Some("a flood of control frames"),
            Emptied::Flooded(Flood::WindowUpdates) => Some("a flood of window updates"),
            Emptied::Flooded(Flood::Continuations) => Some("a header block in too many pieces"),
            _ if self.abandons_too_much() => Some("a flood of abandoned calls"),
            _ => None,
        }
    }

    /// Sets the alarm for the rest of a header block that is under way. True: it is to be looked after at once.
    fn mind_head(&mut self, cx: &mut Context<'_>) -> bool {
        let owed = self.outlet.owes_head_since().map(Instant::from_std);
        let head_at = owed.map(|since| since + self.peer.worker.timeouts.head);
        if head_at == self.head_at {
            return false;
        }
        self.head_at = head_at;
        self.wind();
        self.alarm.as_mut().poll(cx).is_ready()
    }

    /// Whether the connection is over.
    fn accept(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.server.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    if respond.poll_reset(cx).is_ready() {
                        self.peer.abandoned.fetch_add(UNSEEN, Ordering::Relaxed);
                    } else {
                        self.begin(request, respond);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.offends |= error.is_library() || self.outlet.is_garbled();
                    tracing::debug!(client = %self.peer.connection.client, %error, "connection ended");
                    return true;
                }
                Poll::Ready(None) => return true,
                Poll::Pending => return false,
            }
        }
    }

    fn begin(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        // h2 frees a stream's slot when the client resets it; what serves it may take longer to notice.
        if Arc::strong_count(&self.peer) > STREAMS as usize {
            respond.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        let decision = decide::decide(request.version(), request.uri().path(), request.headers());
        let mut stream = Stream { request, respond, peer: self.peer.clone() };
        match decision.route {
            Route::Agents => {
                self.peer.connection.note_agent();
                relay::begin(decision, stream);
            }
            // The stream itself is one of them.
            Route::KubernetesApi if self.peer.is_busy_stranger(Arc::strong_count(&self.peer) - 2) => {
                stream.respond.send_reset(Reason::REFUSED_STREAM);
            }
            Route::KubernetesApi => {
                let busy = self.peer.connection.seat.busy();
                tokio::spawn(async move {
                    bridge::serve(stream).await;
                    drop(busy);
                });
            }
        }
    }

    /// Streams that only wait end with OK, which agents take for a reason to open the next one at once; a connection that
    /// breaks would be one to rest first. What somebody still waits for ends with the connection.
    fn part(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        while !self.farewell {
            let ended = self.accept(cx);
            let emptied = self.outlet.poll(cx);
            if ended || emptied.is_err() {
                return Poll::Ready(Over(self.cut));
            }
            if !self.server.has_streams() || self.alarm.as_mut().poll(cx).is_ready() {
                self.farewell = true;
                self.server.abrupt_shutdown(Reason::NO_ERROR);
                self.alarm.as_mut().reset(Instant::now() + FAREWELL);
            } else if emptied.is_ok_and(|emptied| emptied != Emptied::Again) {
                return Poll::Pending;
            }
        }
        self.say_farewell(cx)
    }

    /// GOAWAY and Close, as far as the client takes them.
    fn say_farewell(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            let closed = self.server.poll_closed(cx).is_ready();
            let emptied = self.outlet.poll(cx);
            if closed || emptied.is_err() || self.alarm.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Over(self.cut));
            }
            if emptied.is_ok_and(|emptied| emptied != Emptied::Again) {
                return Poll::Pending;
            }
        }
    }

    fn wind(&mut self) {
        let ping_at = self.ping.is_some().then_some(self.ping_at);
        let next = ping_at.into_iter().chain(self.head_at).min();
        self.alarm.as_mut().reset(next.unwrap_or_else(|| Instant::now() + FAR));
    }

    /// Pings as often as policies want by now.
    fn mind_rhythm(&mut self) {
        let rhythm = self.peer.connection.seat.rhythm();
        if self.rhythm == rhythm {
            return;
        }
        self.rhythm = rhythm;
        // Who owes a pong owes it still. All connections learn this together, and shall not ping together.
        if !self.pinged {
            self.ping_at = Instant::now() + ping_every(rhythm).mul_f64(rand::random());
            self.wind();
        }
    }

    /// The alarm rang. Says why the connection is to be closed, if it is.
    fn ring(&mut self) -> Option<&'static str> {
        let now = Instant::now();
        if self.head_at.is_some_and(|head_at| now >= head_at) {
            return Some("no complete head in time");
        }
        if now >= self.ping_at
            && let Some(ping) = &mut self.ping
        {
            if !self.pinged {
                // Fails only when one is under way already.
                self.pinged = ping.send_ping(Ping::opaque()).is_ok();
                self.ping_at = now + PONG_WITHIN;
            } else if self.peer.connection.is_agent() {
                return Some("no answer to an HTTP/2 ping");
            } else {
                // A kubectl that was suspended answers nothing, and may go on later.
                self.ping = None;
            }
        }
        self.wind();
        None
    }

    fn hear_pong(&mut self, cx: &mut Context<'_>) {
        if self.pinged
            && let Some(ping) = &mut self.ping
            && let Poll::Ready(Ok(_)) = ping.poll_pong(cx)
        {
            self.pinged = false;
            self.ping_at = Instant::now() + ping_every(self.rhythm);
            if self.ping_at < self.alarm.deadline() {
                self.wind();
                // To be woken by it. It is not due yet.
                let _ = self.alarm.as_mut().poll(cx);
            }
        }
    }

    fn abandons_too_much(&mut self) -> bool {
        let most = if self.trusted { ABANDONED } else { STRANGERS_ABANDONED };
        if self.peer.abandoned.load(Ordering::Relaxed) <= most {
            return false;
        }
        self.peer.abandoned.store(0, Ordering::Relaxed);
        let now = Instant::now();
        now - std::mem::replace(&mut self.abandoned_since, now) < ABANDONED_WITHIN
    }
}

impl<S, H> Future for Task<S, H>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.turn(cx).map(|Over(why)| {
            if this.offends {
                this.peer.worker.offended(&this.peer.connection);
            }
            if let Some(why) = why {
                tracing::debug!(client = %this.peer.connection.client, why, "closed");
            }
        })
    }
}
