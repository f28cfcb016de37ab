//! One request and its response, copied between two HTTP/2 streams.
//!
//! Bytes are taken from one side as the other side's window admits them, so a stalled reader costs one window and
//! nobody else. Hand-polled: an idle tunnel is this struct and nothing more.

mod half;

use super::pool::{Opened, Place};
use super::{Respond, Trailers};
use crate::decide::Purpose;
use crate::drain::StreamGuard;
use crate::reply::Reason;
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason as Reset, RecvStream, SendStream};
use half::{Failed, Half, Step};
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// As a name, for a text would be parsed at every look.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// How long a broker may take to see a stream.
const UNSEEN: Duration = Duration::from_secs(1);
/// Chunks copied before other streams of the thread get their turn.
const TURN: usize = 32;

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
    /// The broker's connection closes, and it never looked at this stream.
    Unprocessed,
    /// The connection to the broker failed.
    Broken(&'static str),
    /// The caller's deadline passed, and a while.
    Late,
    /// It only waited, and its connection ends.
    SentHome,
}

/// A stream whose client left before the broker said anything.
pub(super) struct Abandoned {
    response: ResponseFuture,
    to_broker: SendStream<Bytes>,
    _held: Option<Place>,
}

impl Abandoned {
    /// Tells the broker that nobody waits, once it has taken the stream up, or after a moment. An HTTP/2 server ends the
    /// connection, with the streams of all agents on it, when some dozens of streams are reset that it has not even seen.
    pub(super) async fn settle(mut self) {
        // Whatever it answered, and whether: nobody reads it.
        let _ = tokio::time::timeout(UNSEEN, &mut self.response).await;
        self.to_broker.send_reset(Reset::CANCEL);
    }
}

/// What a failed upstream stream means.
pub(super) fn broken(error: &h2::Error) -> Ended {
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() => Ended::Reset(reason),
        // h2 tells this to streams above the last one that the GOAWAY names, and to no others.
        _ if error.is_go_away() && error.is_remote() => Ended::Unprocessed,
        _ if error.is_go_away() => Ended::Broken("connection closing"),
        _ if error.is_io() => Ended::Broken("connection lost"),
        _ => Ended::Broken("HTTP/2 error"),
    }
}

fn too_large(most: u64) -> Ended {
    Ended::Refused(Reason::TooLarge { most })
}

/// A stream on its way.
pub(super) struct Exchange {
    /// Of bytes from the client.
    most: Option<NonZeroU64>,
    body: RecvStream,
    down: Down,
    to_broker: Option<SendStream<Bytes>>,
    from_broker: Source,
    up: Half,
    back: Half,
    pub(super) purpose: Purpose,
    pub(super) guard: StreamGuard,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u16>,
    /// The place on the connection to the broker.
    held: Option<Place>,
}

/// The way from the broker.
enum Source {
    /// Not asked yet, or over.
    None,
    Head(ResponseFuture),
    Body(RecvStream),
}

/// The way to the client.
enum Down {
    /// No head was sent yet.
    Head(Respond),
    Body(SendStream<Bytes>),
}

impl Exchange {
    /// `most`: bytes from the client.
    pub(super) fn new(
        body: RecvStream,
        respond: Respond,
        guard: StreamGuard,
        purpose: Purpose,
        most: Option<NonZeroU64>,
    ) -> Self {
        Self {
            most,
            body,
            down: Down::Head(respond),
            to_broker: None,
            from_broker: Source::None,
            up: Half::default(),
            back: Half::default(),
            purpose,
            guard,
            status: 0,
            grpc_status: None,
            held: None,
        }
    }

    /// The broker has the head; from now on [`Exchange::poll`] copies.
    pub(super) fn forward(&mut self, opened: Opened) {
        if self.has_no_body() {
            self.up.step = Step::Done;
        }
        self.to_broker = Some(opened.body);
        self.from_broker = Source::Head(opened.response);
        self.held = Some(opened.held);
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

    pub(super) fn is_call(&self) -> bool {
        self.purpose == Purpose::Call
    }

    /// Whether the connection to its broker is lost, and no other stream of it has said so yet.
    pub(super) fn tells_of_loss(&self) -> bool {
        self.held.as_ref().is_none_or(|held| held.is_first_to_tell())
    }

    /// Whether a broker let the caller in: it sent something that is no refusal.
    pub(super) fn was_served(&self) -> bool {
        self.status == 200 && self.back.bytes > 0
    }

    /// Ready when the client gave the stream up.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.down.poll_reset(cx)
    }

    /// Copies both ways. Ready when the response ended, either side is gone, or the client sent more than it may.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.down.poll_reset(cx).is_ready() {
            return Poll::Ready(Ended::Left);
        }
        // One each, so that a busy direction does not starve the other.
        let (mut turn, mut turn_back) = (TURN, TURN);
        if self.up.step != Step::Done
            && let Some(to_broker) = &mut self.to_broker
        {
            match self.up.poll_copy(cx, &mut self.body, to_broker, &mut turn, self.most) {
                Poll::Ready(Err(Failed::Reading(_))) => return Poll::Ready(Ended::Left),
                Poll::Ready(Err(Failed::TooLarge(most))) => return Poll::Ready(too_large(most)),
                // The broker wants no more of it; its response says why.
                Poll::Ready(Err(Failed::Writing)) => {
                    self.up.chunk.clear();
                    self.up.step = Step::Done;
                }
                Poll::Ready(Ok(_)) | Poll::Pending => {}
            }
        }
        if let Source::Head(waiting) = &mut self.from_broker {
            match Pin::new(waiting).poll(cx) {
                Poll::Ready(Ok(head)) => {
                    let (head, body) = head.into_parts();
                    let end = body.is_end_stream();
                    self.from_broker = if end { Source::None } else { Source::Body(body) };
                    if let Err(ended) = self.send_head(Response::from_parts(head, ()), end) {
                        return Poll::Ready(ended);
                    }
                    if end {
                        return Poll::Ready(Ended::Answered);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(broken(&error)),
                Poll::Pending => return self.again(cx, turn),
            }
        }
        let (Source::Body(from), Down::Body(to)) = (&mut self.from_broker, &mut self.down) else {
            return Poll::Pending;
        };
        let before = self.back.bytes;
        let copied = self.back.poll_copy(cx, from, to, &mut turn_back, None);
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
            Poll::Ready(Err(Failed::TooLarge(most))) => Poll::Ready(too_large(most)),
            Poll::Pending => self.again(cx, turn.min(turn_back)),
        }
    }

    /// As [`Exchange::cancel`]; where the broker said nothing yet, that is left for the caller to settle.
    pub(super) fn abandon(&mut self) -> Option<Abandoned> {
        if !matches!(self.from_broker, Source::Head(_)) {
            self.cancel();
            return None;
        }
        let Source::Head(response) = std::mem::replace(&mut self.from_broker, Source::None) else {
            return None;
        };
        Some(Abandoned { response, to_broker: self.to_broker.take()?, _held: self.held.take() })
    }

    /// Tells the broker, if it still works on this, that nobody waits for it. The stream is over.
    pub(super) fn cancel(&mut self) {
        if let Some(mut to_broker) = self.to_broker.take() {
            to_broker.send_reset(Reset::CANCEL);
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
        let status = head.headers().get(&GRPC_STATUS).cloned();
        let body = respond.send_response(head, end).map_err(|_| Ended::Left)?;
        self.down = Down::Body(body);
        self.grpc_status = status.and_then(|status| status.to_str().ok()?.parse().ok());
        Ok(())
    }

    pub(super) fn note_grpc_status(&mut self, trailers: &HeaderMap) {
        let status = trailers.get(&GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
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
