//! A request body that is fed piece by piece. One piece waits at most, so the caller goes no faster than the API
//! server reads. A body whose feeder vanishes is an error, never a short body: half an upload must not look whole.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;

/// What is known of a body beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none.
    None,
    /// Bytes.
    Exact(u64),
    /// As many as will come.
    Unknown,
}

/// The caller went away in the middle of the body.
#[derive(Debug, thiserror::Error)]
#[error("the caller went away before the request was complete")]
pub(crate) struct Abandoned;

/// The end that pieces are put into.
pub(super) struct Feed(mpsc::Sender<Option<Bytes>>);

/// The end that the HTTP client reads.
pub(crate) struct RequestBody {
    pieces: mpsc::Receiver<Option<Bytes>>,
    length: Length,
    complete: bool,
}

impl RequestBody {
    /// A body that is there already.
    pub(crate) fn whole(data: Bytes) -> Self {
        if data.is_empty() {
            return Self { pieces: mpsc::channel(1).1, length: Length::None, complete: true };
        }
        let length = Length::Exact(data.len() as u64);
        let (sender, pieces) = mpsc::channel(2);
        for piece in [Some(data), None] {
            sender.try_send(piece).expect("there is room for two");
        }
        Self { pieces, length, complete: false }
    }
}

/// A body and its feed.
pub(super) fn channel(length: Length) -> (Feed, RequestBody) {
    let (sender, pieces) = mpsc::channel(1);
    (Feed(sender), RequestBody { pieces, length, complete: length == Length::None })
}

impl Feed {
    /// Adds a piece, waiting until the one before is taken. Once nobody reads any more, pieces are let go.
    pub(super) async fn data(&self, data: Bytes) {
        if !data.is_empty() {
            let _ = self.0.send(Some(data)).await;
        }
    }

    /// Says that the body is complete.
    pub(super) async fn finish(self) {
        let _ = self.0.send(None).await;
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        if self.complete {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Some(data)) => {
                if let Length::Exact(left) = &mut self.length {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Some(Ok(Frame::data(data)))
            }
            Some(None) => {
                self.complete = true;
                None
            }
            None => {
                self.complete = true;
                Some(Err(Abandoned))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.complete
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Length::None => SizeHint::with_exact(0),
            Length::Exact(left) => SizeHint::with_exact(left),
            Length::Unknown if self.complete => SizeHint::with_exact(0),
            Length::Unknown => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_body_whose_feeder_vanishes_is_an_error_and_not_a_short_body() {
        let (feed, body) = channel(Length::Unknown);
        feed.data(Bytes::from_static(b"half")).await;
        drop(feed);
        assert!(body.collect().await.is_err());
    }

    #[tokio::test]
    async fn a_whole_body_is_whole() {
        for text in ["", "abc"] {
            let body = RequestBody::whole(Bytes::from_static(text.as_bytes()));
            assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
            assert_eq!(body.collect().await.unwrap().to_bytes(), text);
        }
    }

    #[tokio::test]
    async fn a_finished_body_has_all_its_pieces() {
        let (feed, body) = channel(Length::Exact(5));
        assert_eq!(body.size_hint().exact(), Some(5));
        let feeding = tokio::spawn(async move {
            feed.data(Bytes::from_static(b"ab")).await;
            feed.data(Bytes::from_static(b"cde")).await;
            feed.finish().await;
        });
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
        feeding.await.unwrap();
    }
}
