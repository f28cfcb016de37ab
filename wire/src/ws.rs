//! `ws-tunnel`: a plain byte stream inside the binary messages of a WebSocket, for both ends.
//!
//! Follows [`handshake`](accept) on a transport (TLS already off); what is read and written here is HTTP/2. Message
//! boundaries mean nothing. Keeps no buffer while idle, assembles no message, never compresses, and does not wait for
//! the peer's Close: whoever shuts down and wants to hear it reads on.

mod decode;
mod frame;
mod handshake;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use decode::{Control, Decoder, End};
use frame::Opcode;
pub use handshake::{Accepted, DialError, Handshake, Refused, SUBPROTOCOL, accept, dial, offers_tunnel};

/// Payload of one frame at most; a peer has to read a whole frame's worth before the next can interleave.
const MAX_PAYLOAD: usize = 32 * 1024;
/// Unsent bytes from which on no more are taken.
const HIGH_WATER: usize = 64 * 1024;
/// How long a peer may be silent at least before it is given up, however often it is pinged.
const PATIENCE: Duration = Duration::from_secs(15);
/// Slices of a vectored write that are gathered in one frame.
const MAX_SLICES: usize = 16;

/// A byte stream over a WebSocket on `S`.
///
/// Reading: Close 1000 or 1001 from the peer is the end of the stream; any other code, a transport that ends without
/// Close ([`io::ErrorKind::UnexpectedEof`]), a broken rule ([`io::ErrorKind::InvalidData`]) and a silent peer
/// ([`io::ErrorKind::TimedOut`]) are errors. Writing after either side closed is [`io::ErrorKind::BrokenPipe`].
pub struct WsStream<S> {
    io: S,
    /// Read behind the handshake, not yet decoded.
    leftover: Bytes,
    decoder: Decoder,
    /// Set once: what every read says from then on.
    end: Option<ReadEnd>,
    /// Whole frames that are promised to the peer; without a buffer when empty.
    out: BytesMut,
    masks: bool,
    replies: Replies,
    keepalive: Option<Box<Keepalive>>,
    /// A write, flush or shutdown waits for the transport. Its waker must stay registered there, so reading leaves
    /// the writing side alone.
    writer_waits: bool,
    /// Reading wrote something that the transport may still hold back.
    unflushed: bool,
}

#[derive(Debug)]
enum ReadEnd {
    Clean,
    Failed { kind: io::ErrorKind, what: String },
}

/// Control frames to be sent, one of each at most however many are due.
#[derive(Default)]
struct Replies {
    ping: bool,
    pong: Option<Box<Control>>,
    close: Option<Close>,
    close_sent: bool,
    /// What the Close of a shutdown says.
    parting: Option<(u16, &'static str)>,
}

struct Close {
    code: Option<u16>,
    reason: &'static str,
}

struct Keepalive {
    interval: Duration,
    sleep: Pin<Box<Sleep>>,
    /// Pings that are out; nothing came since.
    unanswered: u32,
}

impl<S> WsStream<S> {
    /// The end that dialled, after a `101`. `leftover` is what was read behind the answer's head.
    pub fn dialler(io: S, leftover: impl Into<Bytes>) -> Self {
        Self::new(io, leftover.into(), true, None)
    }

    /// The end that listened, after it sent its `101`. `leftover` is what was read behind the request's head.
    ///
    /// With a `ping` interval the peer is pinged that often, and reading fails with [`io::ErrorKind::TimedOut`] when
    /// no byte came from one ping to the next, or for 15 s, whichever is longer. Needs a tokio timer then.
    pub fn listener(io: S, leftover: impl Into<Bytes>, ping: Option<Duration>) -> Self {
        Self::new(io, leftover.into(), false, ping)
    }

    fn new(io: S, leftover: Bytes, masks: bool, ping: Option<Duration>) -> Self {
        // Empty bytes may still hold the buffer that the head was read into, for as long as the stream lives.
        let leftover = if leftover.is_empty() { Bytes::new() } else { leftover };
        Self {
            io,
            leftover,
            decoder: Decoder::new(!masks),
            end: None,
            out: BytesMut::new(),
            masks,
            replies: Replies::default(),
            keepalive: ping.map(|interval| Box::new(Keepalive::new(interval))),
            writer_waits: false,
            unflushed: false,
        }
    }

    /// Makes the Close that shutdown sends say 1001 "Shutting down": the process stops, dial again elsewhere.
    pub fn set_going_away(&mut self) {
        self.replies.parting = Some((frame::GOING_AWAY, "Shutting down"));
    }

    /// Makes the Close that shutdown sends say 1008 and why: whoever is at the other end need not dial again.
    pub fn set_refused(&mut self, reason: &'static str) {
        self.replies.parting = Some((frame::POLICY_VIOLATION, reason));
    }

    /// Pings that often from now on; `None`: never. The first ping comes at any moment within the interval, so that many
    /// streams that are told together do not ping together. Heard at the next read.
    pub fn set_ping(&mut self, interval: Option<Duration>) {
        let Some(interval) = interval else {
            self.keepalive = None;
            return;
        };
        let keepalive = self.keepalive.get_or_insert_with(|| Box::new(Keepalive::new(interval)));
        keepalive.interval = interval;
        keepalive.unanswered = 0;
        keepalive.sleep.as_mut().reset(Instant::now() + interval.mul_f64(rand::random()));
    }

    pub fn get_ref(&self) -> &S {
        &self.io
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// The transport; frames not yet sent or read are lost.
    pub fn into_inner(self) -> S {
        self.io
    }

    /// Takes note of how reading ended, and of the Close to answer with.
    fn finish(&mut self, end: End) {
        let (end, close) = match end {
            End::Closed { code: code @ Some(frame::NORMAL | frame::GOING_AWAY), .. } => {
                (ReadEnd::Clean, Close { code, reason: "" })
            }
            End::Closed { code, reason } => {
                let what = match code {
                    Some(code) => format!("peer closed the WebSocket with code {code}: {reason:?}"),
                    None => "peer closed the WebSocket without a code".to_owned(),
                };
                (ReadEnd::Failed { kind: io::ErrorKind::ConnectionAborted, what }, Close { code, reason: "" })
            }
            End::Violated(violation) => (
                ReadEnd::Failed {
                    kind: io::ErrorKind::InvalidData,
                    what: format!("peer broke the WebSocket protocol: {}", violation.reason),
                },
                Close { code: Some(violation.code), reason: violation.reason },
            ),
        };
        self.end = Some(end);
        self.replies.close.get_or_insert(close);
    }

    /// Puts the control frames that are due behind what is to be sent.
    fn queue_replies(&mut self) {
        if self.replies.close_sent {
            return;
        }
        if std::mem::take(&mut self.replies.ping) {
            self.queue(Opcode::Ping, &[]);
        }
        if let Some(ping) = self.replies.pong.take() {
            self.queue(Opcode::Pong, &[IoSlice::new(ping.payload())]);
        }
        if let Some(close) = self.replies.close.take() {
            let code = close.code.map(u16::to_be_bytes);
            let code = code.as_ref().map_or(&[][..], <[u8; 2]>::as_slice);
            self.queue(Opcode::Close, &[IoSlice::new(code), IoSlice::new(close.reason.as_bytes())]);
            self.replies.close_sent = true;
        }
    }

    /// Appends one whole frame to what is to be sent.
    fn queue(&mut self, opcode: Opcode, payload: &[IoSlice<'_>]) {
        let length = payload.iter().map(|slice| slice.len()).sum();
        let mut key = self.masks.then(rand::random::<[u8; 4]>);
        let (header, size) = frame::header(opcode, length, key);
        self.out.reserve(size + length);
        self.out.extend_from_slice(&header[..size]);
        let from = self.out.len();
        for slice in payload {
            self.out.extend_from_slice(slice);
        }
        if let Some(key) = &mut key {
            frame::mask(&mut self.out[from..], key);
        }
    }
}

/// What passes holds tokens: nothing of it is shown.
impl<S: fmt::Debug> fmt::Debug for WsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsStream")
            .field("io", &self.io)
            .field("dialler", &self.masks)
            .field("unsent", &self.out.len())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Keepalive {
    fn new(interval: Duration) -> Self {
        Self { interval, sleep: Box::pin(tokio::time::sleep(interval)), unanswered: 0 }
    }
}

impl<S: AsyncWrite + Unpin> WsStream<S> {
    /// Ready once all promised frames are with the transport.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(sent);
        }
        if self.out.capacity() > 0 {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Replies, then everything promised, through the transport's own buffer too.
    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue_replies();
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Sends replies as far as that goes without a writer's help. A failure shows at the next read or write.
    fn poll_replies(&mut self, cx: &mut Context<'_>) {
        if self.writer_waits {
            return;
        }
        loop {
            // Behind unsent frames only the newest pong waits, in its place.
            if self.out.is_empty() {
                self.queue_replies();
            }
            if self.out.is_empty() {
                break;
            }
            self.unflushed = true;
            if !matches!(self.poll_drain(cx), Poll::Ready(Ok(()))) {
                return;
            }
        }
        if self.unflushed && Pin::new(&mut self.io).poll_flush(cx).is_ready() {
            self.unflushed = false;
        }
    }

    /// Ready, with `end` set, when the peer is silent for too long; pings it when it is time.
    fn poll_keepalive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(keepalive) = &mut self.keepalive else { return Poll::Pending };
        while keepalive.sleep.as_mut().poll(cx).is_ready() {
            let waited = keepalive.interval.saturating_mul(keepalive.unanswered);
            if keepalive.unanswered > 0 && waited >= PATIENCE {
                let what = format!("no answer to a WebSocket ping within {waited:?}");
                self.end = Some(ReadEnd::Failed { kind: io::ErrorKind::TimedOut, what });
                return Poll::Ready(());
            }
            keepalive.unanswered += 1;
            keepalive.sleep.as_mut().reset(Instant::now() + keepalive.interval);
            self.replies.ping = true;
        }
        self.poll_replies(cx);
        Poll::Pending
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.end.is_some() || self.replies.close_sent || self.replies.close.is_some() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the WebSocket is closed")));
        }
        let mut frame = [IoSlice::new(&[]); MAX_SLICES + 1];
        let (used, length) = gather(slices, &mut frame);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        self.queue_replies();
        if self.poll_drain(cx)?.is_pending() && self.out.len() >= HIGH_WATER {
            return Poll::Pending;
        }
        // Unmasked bytes need no copy of ours. A frame that is begun is promised whole, so what the transport did
        // not take is kept.
        if self.out.is_empty() && !self.masks && self.io.is_write_vectored() {
            let (header, size) = frame::header(Opcode::Binary, length, None);
            frame[0] = IoSlice::new(&header[..size]);
            let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &frame[..used]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let mut rest = &mut frame[..used];
            if sent < size + length {
                IoSlice::advance_slices(&mut rest, sent);
                for slice in rest {
                    self.out.extend_from_slice(slice);
                }
            }
        } else {
            self.queue(Opcode::Binary, &frame[1..used]);
            // Whether it goes now or at the flush, the bytes are taken.
            let _ = self.poll_drain(cx)?;
        }
        Poll::Ready(Ok(length))
    }
}

/// Comes back when everybody else has run and, in a runtime, its sockets were looked at.
fn yield_once(cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let polled = pin!(tokio::task::yield_now()).poll(cx);
    debug_assert!(polled.is_pending(), "it yields when it is polled first");
    Poll::Pending
}

/// Puts the slices of one frame's payload behind the place of its header; returns the places used, and its length.
fn gather<'a>(slices: &'a [IoSlice<'a>], frame: &mut [IoSlice<'a>; MAX_SLICES + 1]) -> (usize, usize) {
    let mut used = 1;
    let mut length = 0;
    for slice in slices {
        if used > MAX_SLICES || length == MAX_PAYLOAD {
            break;
        }
        let taken = slice.len().min(MAX_PAYLOAD - length);
        if taken > 0 {
            frame[used] = IoSlice::new(&slice[..taken]);
            used += 1;
            length += taken;
        }
    }
    (used, length)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        loop {
            match &this.end {
                None => {}
                Some(ReadEnd::Clean) => {
                    this.poll_replies(cx);
                    return Poll::Ready(Ok(()));
                }
                Some(ReadEnd::Failed { kind, what }) => {
                    let error = io::Error::new(*kind, what.clone());
                    this.poll_replies(cx);
                    return Poll::Ready(Err(error));
                }
            }
            if this.leftover.is_empty() {
                match Pin::new(&mut this.io).poll_read(cx, buf) {
                    Poll::Ready(read) => read?,
                    Poll::Pending => {
                        this.poll_replies(cx);
                        ready!(this.poll_keepalive(cx));
                        continue;
                    }
                }
            } else {
                let given = this.leftover.len().min(buf.remaining());
                buf.put_slice(&this.leftover[..given]);
                this.leftover.advance(given);
                if this.leftover.is_empty() {
                    this.leftover = Bytes::new();
                }
            }
            let raw = &mut buf.filled_mut()[start..];
            if raw.is_empty() {
                this.end = Some(if this.replies.close_sent {
                    ReadEnd::Clean
                } else {
                    let what = "the transport ended without a WebSocket Close".to_owned();
                    ReadEnd::Failed { kind: io::ErrorKind::UnexpectedEof, what }
                });
                continue;
            }
            if let Some(keepalive) = &mut this.keepalive {
                keepalive.unanswered = 0;
            }
            let decoded = this.decoder.decode(raw);
            buf.set_filled(start + decoded.payload);
            if decoded.ping.is_some() {
                this.replies.pong = decoded.ping;
            }
            if let Some(end) = decoded.end {
                this.finish(end);
            }
            if decoded.payload > 0 {
                this.poll_replies(cx);
                return Poll::Ready(Ok(()));
            }
            if this.end.is_none() && this.leftover.is_empty() {
                // There may be more that carries nothing, without end: others come first.
                this.poll_replies(cx);
                return yield_once(cx);
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = this.poll_send(cx, slices);
        this.writer_waits = sent.is_pending();
        sent
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = this.poll_flush_all(cx);
        this.writer_waits = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.replies.close_sent && this.replies.close.is_none() {
            let (code, reason) = this.replies.parting.unwrap_or((frame::NORMAL, ""));
            this.replies.close = Some(Close { code: Some(code), reason });
        }
        let flushed = this.poll_flush_all(cx);
        this.writer_waits = flushed.is_pending();
        match (ready!(flushed), &this.end) {
            (Ok(()), _) => {}
            // The peer said Close and is gone; it needs no answer.
            (Err(_), Some(ReadEnd::Clean)) => this.out = BytesMut::new(),
            (Err(error), _) => return Poll::Ready(Err(error)),
        }
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.writer_waits = shut.is_pending();
        shut
    }
}
