//! One request and its response, copied between two HTTP/2 streams.
//!
//! Bytes are taken from one side as the other side's window admits them, so a stalled reader costs one window and
//! nobody else. Hand-polled: an idle tunnel is this struct and nothing more.

use super::{Respond, Trailers};
use crate::decide::Purpose;
use crate::drain::StreamGuard;
use crate::reply::Reason;
use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason as Reset, RecvStream, SendStream};
use http::{HeaderMap, Response, StatusCode, header};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Chunks copied before other streams of the thread get their turn.
const TURN: usize = 32;
/// Chunks below this many bytes are joined with what follows them at once, up to [`JOINED`] bytes.
const SMALL: usize = 1024;
const JOINED: usize = 16 * 1024;

/// How a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The broker's response was passed on in full.
    Answered,
    /// The client reset the stream or its connection is gone.
    Left,
    /// The edge answers itself.
    Refused(Reason),
    /// The broker reset the stream; the client shall see the same.
    Reset(Reset),
    /// The connection to the broker failed.
    Broken(&'static str),
}

/// What a failed upstream stream means.
pub(super) fn broken(error: &h2::Error) -> Ended {
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() => Ended::Reset(reason),
        _ if error.is_go_away() => Ended::Broken("connection closing"),
        _ if error.is_io() => Ended::Broken("connection lost"),
        _ => Ended::Broken("HTTP/2 error"),
    }
}

/// A stream on its way.
pub(super) struct Exchange {
    body: RecvStream,
    down: Down,
    up: Half,
    back: Half,
    purpose: Purpose,
    pub(super) guard: StreamGuard,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u16>,
}

/// The way to the client.
enum Down {
    /// No head was sent yet.
    Head(Respond),
    Body(SendStream<Bytes>),
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read, but not yet admitted by the other side.
    chunk: Bytes,
    bytes: usize,
    step: Step,
}

#[derive(Default, PartialEq)]
enum Step {
    #[default]
    Data,
    Trailers,
    Done,
}

/// Which side of a copy failed.
enum Failed {
    Reading(h2::Error),
    Writing,
}

impl Exchange {
    pub(super) fn new(body: RecvStream, respond: Respond, guard: StreamGuard, purpose: Purpose) -> Self {
        Self {
            body,
            down: Down::Head(respond),
            up: Half::default(),
            back: Half::default(),
            purpose,
            guard,
            status: 0,
            grpc_status: None,
        }
    }

    pub(super) fn bytes_in(&self) -> usize {
        self.up.bytes
    }

    pub(super) fn bytes_out(&self) -> usize {
        self.back.bytes
    }

    pub(super) fn has_no_body(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Returns when the client gives the stream up.
    pub(super) async fn client_left(&mut self) {
        poll_fn(|cx| self.down.poll_reset(cx)).await;
    }

    /// Copies both ways until the response ends or either side is gone.
    pub(super) async fn run(&mut self, response: ResponseFuture, mut to_broker: SendStream<Bytes>) -> Ended {
        if self.has_no_body() {
            self.up.step = Step::Done;
        }
        let mut response = Some(response);
        let mut from_broker = None;
        let ended = poll_fn(|cx| self.poll(cx, &mut to_broker, &mut response, &mut from_broker)).await;
        if matches!(ended, Ended::Left) {
            to_broker.send_reset(Reset::CANCEL);
        }
        ended
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to_broker: &mut SendStream<Bytes>,
        response: &mut Option<ResponseFuture>,
        from_broker: &mut Option<RecvStream>,
    ) -> Poll<Ended> {
        if self.down.poll_reset(cx).is_ready() {
            return Poll::Ready(Ended::Left);
        }
        // One each, so that a busy direction does not starve the other.
        let (mut turn, mut turn_back) = (TURN, TURN);
        match self.up.poll_copy(cx, &mut self.body, to_broker, &mut turn) {
            Poll::Ready(Err(Failed::Reading(_))) => return Poll::Ready(Ended::Left),
            // The broker wants no more of it; its response says why.
            Poll::Ready(Err(Failed::Writing)) => {
                self.up.chunk.clear();
                self.up.step = Step::Done;
            }
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
        if let Some(waiting) = response {
            match Pin::new(waiting).poll(cx) {
                Poll::Ready(Ok(head)) => {
                    let (head, body) = head.into_parts();
                    *response = None;
                    if let Err(ended) = self.send_head(Response::from_parts(head, ()), body.is_end_stream()) {
                        return Poll::Ready(ended);
                    }
                    if body.is_end_stream() {
                        return Poll::Ready(Ended::Answered);
                    }
                    *from_broker = Some(body);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(broken(&error)),
                Poll::Pending => return self.again(cx, turn),
            }
        }
        let (Some(from), Down::Body(to)) = (from_broker, &mut self.down) else { return Poll::Pending };
        let before = self.back.bytes;
        let copied = self.back.poll_copy(cx, from, to, &mut turn_back);
        // The first thing a broker sends down a tunnel is a request.
        if before == 0 && self.back.bytes > 0 && self.purpose == Purpose::Tunnel {
            self.guard.wake();
        }
        match copied {
            Poll::Ready(Ok(trailers)) => {
                if let Some(trailers) = trailers {
                    self.note_grpc_status(&trailers);
                }
                Poll::Ready(Ended::Answered)
            }
            Poll::Ready(Err(Failed::Reading(error))) => Poll::Ready(broken(&error)),
            Poll::Ready(Err(Failed::Writing)) => Poll::Ready(Ended::Left),
            Poll::Pending => self.again(cx, turn.min(turn_back)),
        }
    }

    /// Pending; with a wake-up when only the turn was over.
    fn again(&self, cx: &Context<'_>, turn: usize) -> Poll<Ended> {
        if turn == 0 {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn send_head(&mut self, head: Response<()>, end: bool) -> Result<(), Ended> {
        let Down::Head(respond) = &mut self.down else { return Ok(()) };
        self.status = head.status().as_u16();
        let status = head.headers().get("grpc-status").cloned();
        let body = respond.send_response(head, end).map_err(|_| Ended::Left)?;
        self.down = Down::Body(body);
        self.grpc_status = status.and_then(|status| status.to_str().ok()?.parse().ok());
        Ok(())
    }

    pub(super) fn note_grpc_status(&mut self, trailers: &HeaderMap) {
        let status = trailers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
        self.grpc_status = status.or(self.grpc_status);
    }

    /// Ends the response with these trailers: in the head where there was none yet, for then clients of every kind
    /// take them for the status.
    pub(super) fn end_with(&mut self, trailers: Trailers) -> Result<(), h2::Error> {
        match &mut self.down {
            Down::Head(respond) => {
                let mut head = Response::new(());
                *head.headers_mut() = trailers;
                head.headers_mut()
                    .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
                self.status = StatusCode::OK.as_u16();
                respond.send_response(head, true).map(drop)
            }
            Down::Body(body) => body.send_trailers(trailers),
        }
    }

    /// Passes a reset on.
    pub(super) fn reset(&mut self, reason: Reset) {
        match &mut self.down {
            Down::Head(respond) => respond.send_reset(reason),
            Down::Body(body) => body.send_reset(reason),
        }
    }
}

impl Down {
    /// Ready when the client gave the stream up, or is gone.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Head(respond) => respond.poll_reset(cx).map(drop),
            Self::Body(body) => body.poll_reset(cx).map(drop),
        }
    }
}

impl Half {
    /// Ready once all of `from`, trailers included, is with `to`. Pending with `turn` at 0: there may be more to do.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
        turn: &mut usize,
    ) -> Poll<Result<Option<Trailers>, Failed>> {
        loop {
            if !self.chunk.is_empty() {
                match self.poll_send(cx, from, to) {
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(failed)) => return Poll::Ready(Err(failed)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if *turn == 0 {
                return Poll::Pending;
            }
            match self.step {
                Step::Done => return Poll::Ready(Ok(None)),
                Step::Data => match from.poll_data(cx) {
                    Poll::Ready(Some(Ok(chunk))) => {
                        *turn -= 1;
                        self.bytes += chunk.len();
                        self.chunk = chunk;
                        if self.chunk.len() < SMALL {
                            self.join(cx, from, turn)?;
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Failed::Reading(error))),
                    Poll::Ready(None) => self.step = Step::Trailers,
                    Poll::Pending => return Poll::Pending,
                },
                Step::Trailers => match from.poll_trailers(cx) {
                    Poll::Ready(Ok(trailers)) => {
                        self.step = Step::Done;
                        let sent = match &trailers {
                            Some(trailers) => to.send_trailers(trailers.clone()),
                            None => to.send_data(Bytes::new(), true),
                        };
                        return Poll::Ready(sent.map(|()| trailers).map_err(|_| Failed::Writing));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Reading(error))),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Adds what else is ready to a small chunk. The far end bears only so many small frames that nobody has read yet
    /// on a connection that all agents share, and a sender may make each byte a frame of its own.
    fn join(&mut self, cx: &mut Context<'_>, from: &mut RecvStream, turn: &mut usize) -> Result<(), Failed> {
        let mut joined: Option<BytesMut> = None;
        while *turn > 0 && joined.as_ref().map_or(0, BytesMut::len) < JOINED {
            let more = match from.poll_data(cx) {
                Poll::Ready(Some(Ok(more))) => more,
                Poll::Ready(Some(Err(error))) => return Err(Failed::Reading(error)),
                Poll::Ready(None) => {
                    self.step = Step::Trailers;
                    break;
                }
                Poll::Pending => break,
            };
            *turn -= 1;
            self.bytes += more.len();
            joined.get_or_insert_with(|| BytesMut::from(&self.chunk[..])).extend_from_slice(&more);
        }
        if let Some(joined) = joined {
            self.chunk = joined.freeze();
        }
        Ok(())
    }

    /// Hands over as much of the chunk as the window admits, and gives the reader's window back by as much.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Failed>> {
        to.reserve_capacity(self.chunk.len());
        // It tells only what is new since it was last asked, so ask for what there is first.
        while to.capacity() == 0 {
            match to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Failed::Writing)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let part = self.chunk.split_to(to.capacity().min(self.chunk.len()));
        let length = part.len();
        if to.send_data(part, false).is_err() {
            return Poll::Ready(Err(Failed::Writing));
        }
        // Fails only for a stream that is over, whose window does not matter.
        let _ = from.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}
