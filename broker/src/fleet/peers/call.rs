//! One gRPC call to a broker, message by message, on an HTTP/2 stream of its connection. `pool` comes before it,
//! `remote` knows what the messages mean. Each direction waits for the other end: what is sent for its window, what is
//! received until somebody asks for it. No task and no queue stands in between.

use super::connection::Place;
use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, ready},
};
use tonic::{Code, Status};

/// Before each message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;
/// What a kas takes and a little more, for what is wrapped around a message. In bytes.
pub(in crate::fleet) const MAX_MESSAGE: usize = 4 * 1024 * 1024 + 64 * 1024;
/// A broker of ours says in its answers' heads that it is one.
pub(in crate::fleet) const BROKER: &str = "x-postern-broker";

/// Why a call ended without the other end's saying that all is well.
#[derive(Debug, thiserror::Error)]
pub(in crate::fleet) enum CallError {
    /// The other end's word.
    #[error("{} ({:?})", .0.message(), .0.code())]
    Status(Status),
    /// The stream was reset, or the connection is gone.
    #[error("the stream broke")]
    Lost(#[source] h2::Error),
    /// The other end is not what it should be.
    #[error("{0}")]
    Rules(&'static str),
}

/// Both directions of a call. Dropping [`Receiving`] before the end cancels the call.
#[derive(Debug)]
pub(in crate::fleet) struct Call {
    pub(in crate::fleet) sending: Sending,
    pub(in crate::fleet) receiving: Receiving,
}

/// What the two directions share.
struct Stream {
    send: Mutex<SendStream<Bytes>>,
    /// The stream's place on its connection.
    place: Place,
}

impl Stream {
    fn send(&self) -> MutexGuard<'_, SendStream<Bytes>> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    pub(super) fn new(response: ResponseFuture, send: SendStream<Bytes>, place: Place) -> Self {
        let stream = Arc::new(Stream { send: Mutex::new(send), place });
        let sending = Sending { stream: Arc::clone(&stream), unsent: tokio::sync::Mutex::default() };
        let receiving = Receiving {
            stream,
            state: State::Head(Box::new(response)),
            unread: BytesMut::new(),
            over: false,
        };
        Self { sending, receiving }
    }
}

/// The direction to the other broker.
pub(in crate::fleet) struct Sending {
    stream: Arc<Stream>,
    /// The rest of a message whose sender left in the middle of it; what comes next may not come before it.
    unsent: tokio::sync::Mutex<Bytes>,
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sending")
    }
}

/// The stream takes nothing more; what is received says why.
#[derive(Debug)]
pub(in crate::fleet) struct Ended;

impl Sending {
    /// Returns once all of the message is within the other end's window.
    pub(in crate::fleet) async fn message(&self, data: &[u8]) -> Result<(), Ended> {
        let mut unsent = self.unsent.lock().await;
        self.flush(&mut unsent).await?;
        let mut framed = BytesMut::with_capacity(PREFIX + data.len());
        framed.put_u8(0);
        framed.put_u32(u32::try_from(data.len()).map_err(|_| Ended)?);
        framed.extend_from_slice(data);
        *unsent = framed.freeze();
        self.flush(&mut unsent).await
    }

    /// Says that nothing more comes.
    pub(in crate::fleet) async fn close(&self) -> Result<(), Ended> {
        let mut unsent = self.unsent.lock().await;
        self.flush(&mut unsent).await?;
        self.stream.send().send_data(Bytes::new(), true).map_err(|_| Ended)
    }

    async fn flush(&self, unsent: &mut Bytes) -> Result<(), Ended> {
        while !unsent.is_empty() {
            poll_fn(|cx| self.poll_put(cx, unsent)).await?;
        }
        Ok(())
    }

    /// Puts as much as the window admits.
    fn poll_put(&self, cx: &mut Context<'_>, unsent: &mut Bytes) -> Poll<Result<(), Ended>> {
        let mut send = self.stream.send();
        send.reserve_capacity(unsent.len());
        // What was admitted before is not told again.
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Ended)),
            }
        }
        let part = unsent.split_to(send.capacity().min(unsent.len()));
        Poll::Ready(send.send_data(part, false).map_err(|_| Ended))
    }
}

/// The direction from the other broker.
pub(in crate::fleet) struct Receiving {
    stream: Arc<Stream>,
    state: State,
    /// Never more than one message and one frame.
    unread: BytesMut,
    over: bool,
}

enum State {
    Head(Box<ResponseFuture>),
    Body(RecvStream),
}

impl fmt::Debug for Receiving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiving").field("over", &self.over).finish_non_exhaustive()
    }
}

impl Receiving {
    /// The next message, `None` after the last one. Cancel safe. After an error there is nothing more.
    pub(in crate::fleet) async fn message(&mut self) -> Result<Option<Bytes>, CallError> {
        let message = poll_fn(|cx| self.poll_message(cx)).await;
        if !matches!(message, Ok(Some(_))) {
            self.over = true;
        }
        if matches!(message, Err(CallError::Rules(_))) {
            self.stream.send().send_reset(Reason::PROTOCOL_ERROR);
        }
        message
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CallError>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        loop {
            if let Some(message) = split_message(&mut self.unread)? {
                return Poll::Ready(Ok(Some(message)));
            }
            match &mut self.state {
                State::Head(response) => {
                    let (head, body) =
                        ready!(Pin::new(response).poll(cx)).map_err(CallError::Lost)?.into_parts();
                    if head.headers.contains_key(BROKER) {
                        self.stream.place.ours.store(true, Ordering::Relaxed);
                    }
                    if check(head.status, head.headers)? {
                        return Poll::Ready(Ok(None));
                    }
                    self.state = State::Body(body);
                }
                State::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(data) => {
                        let data = data.map_err(CallError::Lost)?;
                        // Fails only for a stream that is over, whose window does not matter.
                        let _ = body.flow_control().release_capacity(data.len());
                        self.unread.extend_from_slice(&data);
                    }
                    None if !self.unread.is_empty() => {
                        return Poll::Ready(Err(CallError::Rules("a message is not whole")));
                    }
                    None => {
                        let trailers = ready!(body.poll_trailers(cx)).map_err(CallError::Lost)?;
                        return Poll::Ready(match status(trailers.unwrap_or_default()) {
                            Some(status) if status.code() == Code::Ok => Ok(None),
                            Some(status) => Err(CallError::Status(status)),
                            None => Err(CallError::Rules("it ended without a gRPC status")),
                        });
                    }
                },
            }
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.over {
            self.stream.send().send_reset(Reason::CANCEL);
        }
    }
}

/// Takes a message from the front if it is there whole.
fn split_message(unread: &mut BytesMut) -> Result<Option<Bytes>, CallError> {
    let Some(([compressed, length @ ..], _)) = unread.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if *compressed != 0 {
        return Err(CallError::Rules("a message is compressed, which nobody asked for"));
    }
    if length > MAX_MESSAGE {
        return Err(CallError::Rules("a message is larger than 4 MiB"));
    }
    if unread.len() < PREFIX + length {
        return Ok(None);
    }
    let mut message = unread.split_to(PREFIX + length);
    Ok(Some(message.split_off(PREFIX).freeze()))
}

/// Whether the head of an answer is the end of it already.
fn check(code: StatusCode, headers: HeaderMap) -> Result<bool, CallError> {
    let grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    let is_grpc = headers.get(header::CONTENT_TYPE).is_some_and(grpc);
    match status(headers) {
        Some(status) if status.code() != Code::Ok => Err(CallError::Status(status)),
        Some(_) => Ok(true),
        None if code == StatusCode::OK && is_grpc => Ok(false),
        None => Err(CallError::Rules("it does not speak gRPC")),
    }
}

/// The gRPC status among these headers.
pub(super) fn status(mut headers: HeaderMap) -> Option<Status> {
    strip_details(&mut headers);
    Status::from_header_map(&headers)
}

/// What tonic cannot decode it panics about, and nobody reads it.
pub(super) fn strip_details(headers: &mut HeaderMap) {
    headers.remove("grpc-status-details-bin");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parted_where_their_prefixes_say() {
        let mut unread = BytesMut::new();
        let bytes = [&[0, 0, 0, 0, 0][..], &[0, 0, 0, 0, 3], b"abc", &[0, 0, 0, 0, 1], b"d"].concat();
        let mut messages = Vec::new();
        for byte in bytes {
            unread.put_u8(byte);
            messages.extend(split_message(&mut unread).unwrap());
        }
        assert_eq!(messages, ["", "abc", "d"]);
        assert!(unread.is_empty());
    }

    #[test]
    fn what_is_compressed_or_too_large_is_refused_before_it_is_there() {
        let compressed = split_message(&mut BytesMut::from(&[1, 0, 0, 0, 9][..]));
        assert!(matches!(compressed, Err(CallError::Rules(what)) if what.contains("compressed")));
        let large = split_message(&mut BytesMut::from(&[0, 0xff, 0xff, 0xff, 0xff][..]));
        assert!(matches!(large, Err(CallError::Rules(what)) if what.contains("larger")));
    }

    #[test]
    fn a_head_is_the_beginning_or_the_end() {
        let head = |entries: &[(&'static str, &'static str)]| {
            let entries = entries
                .iter()
                .map(|(key, value)| (http::HeaderName::from_static(key), HeaderValue::from_static(value)));
            check(StatusCode::OK, entries.collect())
        };
        assert!(!head(&[("content-type", "application/grpc+proto")]).unwrap());
        assert!(head(&[("content-type", "application/grpc"), ("grpc-status", "0")]).unwrap());
        let refused = head(&[("content-type", "application/grpc"), ("grpc-status", "16")]);
        assert!(matches!(refused, Err(CallError::Status(status)) if status.code() == Code::Unauthenticated));
        // Not base64.
        let details = head(&[("grpc-status", "5"), ("grpc-status-details-bin", "!")]);
        assert!(matches!(details, Err(CallError::Status(status)) if status.code() == Code::NotFound));
        assert!(matches!(head(&[("content-type", "text/html")]), Err(CallError::Rules(_))));
        assert!(matches!(check(StatusCode::NOT_FOUND, HeaderMap::new()), Err(CallError::Rules(_))));
    }
}
