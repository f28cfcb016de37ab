//! Serves one HTTP/2 connection, direct or inside a WebSocket, and parts its streams.
//!
//! After `accept`. gRPC goes to `relay`, which copies frames; the rest goes through `bridge` to `proxy`. Nothing about
//! a single request is decided here.

use crate::accept::Worker;
use crate::decide::{self, Route};
use crate::life::{Life, Sentence};
use crate::transport::{Connection, SocketFacts};
use crate::upstream::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::{bridge, relay};
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Request;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Streams that one connection may have open: an agent's pool grows to hundreds.
const STREAMS: u32 = 1000;
/// What h2 allows for DATA frames below 256 bytes that nobody has read yet. Its default ends the connection of an
/// agent that sends a few thousand small messages in one go.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// Below the 60 s after which load balancers drop a silent connection, so that a peer that vanished is found in less
/// than a minute. A WebSocket has a ping of its own beneath.
const PING_EVERY: Duration = Duration::from_secs(40);
const PONG_WITHIN: Duration = Duration::from_secs(15);
/// How long GOAWAY and Close may take on their way to a client that is cut.
const FAREWELL: Duration = Duration::from_secs(1);

/// One stream, as the HTTP/2 server hands it out.
pub struct Stream {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<bytes::Bytes>,
    pub connection: Arc<Connection>,
    pub socket: SocketFacts,
}

/// Serves until the connection closes. When [`Life`] says so it sends GOAWAY, and finishes what runs.
pub async fn serve<S>(worker: Arc<Worker>, io: S, connection: Arc<Connection>, socket: SocketFacts)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut server = match handshake(io, worker.timeouts.handshake, worker.shared.limits.header_bytes()).await
    {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(client = %connection.client, error, "closed during the HTTP/2 handshake");
            return;
        }
    };
    let ping = server.ping_pong().expect("asked for once");
    let alive = keepalive(ping, PING_EVERY, PONG_WITHIN);
    let mut life = Life::new(&worker.life, connection.seat.clone());
    tokio::pin!(alive);
    // h2 frees a stream's slot when the client resets it; what serves it may take longer to notice.
    let slots = Arc::new(Semaphore::new(STREAMS as usize));
    let mut mute = false;
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready(sentence) = life.poll(cx, server.has_streams()) {
                return Poll::Ready(Event::Sentence(sentence));
            }
            if let Poll::Ready(accepted) = server.poll_accept(cx) {
                return Poll::Ready(Event::Accepted(accepted));
            }
            if !mute && alive.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Silent);
            }
            // The last stream may have ended just now.
            life.poll(cx, server.has_streams()).map(Event::Sentence)
        });
        match event.await {
            Event::Accepted(Some(Ok((request, mut respond)))) => {
                let Ok(slot) = slots.clone().try_acquire_owned() else {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    continue;
                };
                let stream =
                    Stream { request, respond, connection: connection.clone(), socket: socket.clone() };
                let served = part(worker.clone(), stream);
                tokio::spawn(async move {
                    served.await;
                    drop(slot);
                });
            }
            Event::Accepted(Some(Err(error))) => {
                tracing::debug!(client = %connection.client, %error, "connection ended");
                return;
            }
            Event::Accepted(None) => return,
            Event::Sentence(Sentence::Leave(why)) => {
                tracing::debug!(client = %connection.client, why = why.name(), "told to leave");
                worker.shared.metrics.departure(why.name());
                server.graceful_shutdown();
            }
            Event::Sentence(Sentence::Cut(why)) => {
                tracing::debug!(client = %connection.client, why = why.name(), "closed");
                server.abrupt_shutdown(Reason::NO_ERROR);
                let _ = timeout(FAREWELL, poll_fn(|cx| server.poll_closed(cx))).await;
                return;
            }
            Event::Silent if connection.is_agent() => {
                tracing::debug!(client = %connection.client, "closed: no answer to an HTTP/2 ping");
                return;
            }
            // A kubectl that was suspended answers nothing, and may go on later.
            Event::Silent => mute = true,
        }
    }
}

/// What happens to a connection.
#[allow(clippy::large_enum_variant, reason = "it lives for a moment, on the stack")]
enum Event {
    Accepted(Option<Result<(Request<RecvStream>, SendResponse<bytes::Bytes>), h2::Error>>),
    Sentence(Sentence),
    /// It does not answer pings.
    Silent,
}

async fn handshake<S>(
    io: S,
    limit: Duration,
    header_bytes: u32,
) -> Result<h2::server::Connection<S, bytes::Bytes>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(header_bytes)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .handshake(io);
    // Inside a WebSocket nobody has looked for the preface yet.
    match timeout(limit, handshake).await {
        Ok(Ok(server)) => Ok(server),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no preface within {limit:?}")),
    }
}

async fn part(worker: Arc<Worker>, stream: Stream) {
    let head = &stream.request;
    let decision = decide::decide(head.version(), head.uri().path(), head.headers());
    match decision.route {
        Route::Agents => {
            stream.connection.note_agent();
            relay::serve(&worker.shared, &worker.pool, decision, stream).await;
        }
        Route::KubernetesApi => {
            let _busy = stream.connection.seat.busy();
            bridge::serve(&worker, stream).await;
        }
    }
}

/// Pings the peer; returns when it does not answer in time, or the connection is over.
pub(crate) async fn keepalive(mut ping: PingPong, every: Duration, within: Duration) {
    loop {
        sleep(every).await;
        if !matches!(timeout(within, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
