//! What is read of a peer that is no broker: in turns, counted.
//!
//! Beneath `coalesce`, above TLS and WebSocket. Sends whoever has used up its share to the slow lane, and remembers what
//! its connection is to be ended for; ends nothing itself.

use super::share::Share;
use super::watch::{Flood, Watch};
use crate::lane::Place;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, ReadBuf};

/// What is known of a peer that is no broker.
pub(super) struct Stranger {
    pub(super) watch: Watch,
    pub(super) share: Share,
    place: Place,
    pub(super) flood: Option<Flood>,
    /// What was read cannot be what a WebSocket, or TLS, carries.
    pub(super) garbled: bool,
}

impl Stranger {
    pub(super) fn new(now: Instant) -> Self {
        let (watch, share) = (Watch::new(now), Share::new(now));
        Self { watch, share, place: Place::default(), flood: None, garbled: false }
    }

    /// Reads as much as its share, or its turn, admits, and takes note of it.
    pub(super) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.share.is_left(Instant::now()) {
            ready!(self.place.poll_turn(cx));
            self.share.renew();
        }
        let most = self.share.bytes();
        let read = if most < buf.remaining() {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
            let polled = Pin::new(io).poll_read(cx, &mut part);
            let read = part.filled().len();
            buf.advance(read);
            polled.map_ok(|()| read)
        } else {
            let before = buf.filled().len();
            Pin::new(io).poll_read(cx, buf).map_ok(|()| buf.filled().len() - before)
        };
        let read = match ready!(read) {
            Ok(read) => read,
            Err(error) => {
                self.garbled |= error.kind() == io::ErrorKind::InvalidData;
                return Poll::Ready(Err(error));
            }
        };
        let filled = buf.filled();
        match self.watch.see(&filled[filled.len() - read..], Instant::now()) {
            Ok(cost) => self.share.pay(read, cost),
            Err(flood) => self.flood = Some(flood),
        }
        Poll::Ready(Ok(()))
    }
}
