//! The byte stream that an HTTP/2 connection writes to: it collects, and is emptied once per turn of its task.
//!
//! Under `http2` and `relay::pool`, above TLS and WebSocket. h2 flushes after every larger DATA frame, which would make
//! each message a TLS record and a system call of its own. Also counts the frames that cost a peer nothing to send, and
//! how much of its thread the peer takes: beyond a share it goes on in the slow lane. Never reorders, never looks into a
//! payload.

mod share;
mod stranger;
mod watch;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use stranger::Stranger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use watch::Flood;

/// Collected bytes from which on a flush is one: a TLS record's worth gains nothing by waiting.
const FLUSH: usize = 16 * 1024;
/// Collected bytes from which on no more are taken until the transport took some.
const FULL: usize = 64 * 1024;
/// Bytes read from a broker in one turn. Its streams shall take what came before more of it is read.
const TURN: usize = 64 * 1024;
thread_local! {
    /// A warm buffer for whichever connection of the thread writes next; those at rest have none.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What HTTP/2 reads and writes.
pub struct Collected<S>(Arc<Mutex<Inner<S>>>);

/// What the connection's task keeps, to empty the other half.
pub struct Outlet<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    io: S,
    out: Vec<u8>,
    /// Bytes of `out` that the transport already took.
    sent: usize,
    /// The transport took bytes since it was last flushed.
    unflushed: bool,
    /// A write was turned away, and nobody but [`Outlet::poll`] would say when to come back.
    refused: bool,
    /// What may still be read in this turn.
    turn: usize,
    stranger: Option<Box<Stranger>>,
}

/// What there is to do after the transport was emptied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Emptied {
    /// Nothing until the next wake-up.
    Rest,
    /// HTTP/2 has more to write or to read, and must be polled again.
    Again,
    /// The peer sends frames that carry nothing, faster than any program has reason to.
    Flooded(Flood),
}

/// Both ends of a collecting stream on `io`. `strangers`: count the peer's frames.
pub fn collect<S>(io: S, strangers: bool) -> (Collected<S>, Outlet<S>) {
    let stranger = strangers.then(|| Box::new(Stranger::new(Instant::now())));
    let inner =
        Inner { io, out: Vec::new(), sent: 0, unflushed: false, refused: false, turn: TURN, stranger };
    let shared = Arc::new(Mutex::new(inner));
    (Collected(shared.clone()), Outlet(shared))
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Hands what was collected to the transport, as far as that goes, and begins a new turn.
    ///
    /// # Errors
    /// The transport's. HTTP/2 would meet it at its next write only, which may never come.
    pub fn poll(&self, cx: &mut Context<'_>) -> io::Result<Emptied> {
        let mut inner = lock(&self.0);
        if let Poll::Ready(Err(error)) = inner.poll_empty(cx) {
            return Err(error);
        }
        if let Some(flood) = inner.stranger.as_ref().and_then(|stranger| stranger.flood) {
            return Ok(Emptied::Flooded(flood));
        }
        inner.turn = TURN;
        let again = inner.refused && inner.waiting() < FULL;
        inner.refused &= !again;
        Ok(if again { Emptied::Again } else { Emptied::Rest })
    }
}

impl<S> Outlet<S> {
    /// Since when the peer owes the rest of a header block, or of its preface.
    pub fn owes_head_since(&self) -> Option<Instant> {
        lock(&self.0).stranger.as_ref()?.watch.owes_head_since()
    }

    /// A broker has accepted a token of the peer: it may take more of its thread.
    pub fn trust(&self) {
        if let Some(stranger) = &mut lock(&self.0).stranger {
            stranger.share.trust();
        }
    }

    /// Whether what was read cannot be what a WebSocket, or TLS, carries.
    pub fn is_garbled(&self) -> bool {
        lock(&self.0).stranger.as_ref().is_some_and(|stranger| stranger.garbled)
    }
}

fn lock<S>(inner: &Mutex<Inner<S>>) -> MutexGuard<'_, Inner<S>> {
    // Only ever held while the transport is polled; a transport that panicked is not used again.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> Inner<S> {
    fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    fn note_sent(&mut self, bytes: usize) {
        if let Some(stranger) = &mut self.stranger {
            stranger.watch.sent(bytes);
        }
    }

    fn take_buffer(&mut self) {
        if self.out.capacity() == 0 {
            self.out = SPARE.take();
        }
    }

    /// Gives the buffer back as soon as nothing is in it.
    fn release(&mut self) {
        self.sent = 0;
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        if out.capacity() <= 2 * FULL {
            SPARE.with_borrow_mut(|spare| {
                if spare.capacity() < out.capacity() {
                    *spare = out;
                }
            });
        }
    }

    /// What a slow reader leaves is kept in a buffer of its own size.
    fn shrink(&mut self) {
        if self.sent > 0 {
            let rest = self.out[self.sent..].to_vec();
            self.release();
            self.out = rest;
        }
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Ready once the transport has taken, and flushed, everything.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match Pin::new(&mut self.io).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => {
                    self.sent += sent;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => {
                    self.release();
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    self.shrink();
                    return Poll::Pending;
                }
            }
        }
        if self.out.capacity() > 0 {
            self.release();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when there is room for more.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting() >= FULL {
            let emptied = self.poll_empty(cx)?;
            if emptied.is_pending() && self.waiting() >= FULL {
                self.refused = true;
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Collected<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        let inner = &mut *inner;
        if let Some(stranger) = &mut inner.stranger {
            return stranger.poll_read(&mut inner.io, cx, buf);
        }
        if inner.turn == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.io).poll_read(cx, buf))?;
        inner.turn = inner.turn.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Collected<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_room(cx))?;
        inner.take_buffer();
        inner.note_sent(bytes.len());
        inner.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_room(cx))?;
        inner.take_buffer();
        let mut taken = 0;
        for slice in slices {
            inner.out.extend_from_slice(slice);
            taken += slice.len();
        }
        inner.note_sent(taken);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done at once: [`Outlet::poll`] does it when the turn is over.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.waiting() >= FLUSH {
            // Whether all of it went does not matter: writes are turned away when it is too much.
            let _ = inner.poll_empty(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_empty(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn empty<S: AsyncWrite + Unpin>(outlet: &Outlet<S>) -> io::Result<Emptied> {
        poll_fn(|cx| Poll::Ready(outlet.poll(cx))).await
    }

    #[tokio::test]
    async fn small_writes_leave_together_when_the_turn_is_over() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut collected, outlet) = collect(near, false);
        for piece in [&b"one "[..], b"two ", b"three"] {
            collected.write_all(piece).await.unwrap();
            collected.flush().await.unwrap();
        }
        let mut read = [0; 64];
        let early = poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut far).poll_read(cx, &mut ReadBuf::new(&mut read)).is_pending())
        });
        assert!(early.await, "something left before the turn was over");
        assert_eq!(empty(&outlet).await.unwrap(), Emptied::Rest);
        let read = far.read(&mut read).await.unwrap();
        assert_eq!(read, 13);
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_written_to_up_to_the_limit_and_the_writer_is_called_back() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut collected, outlet) = collect(near, false);
        let mut taken = 0;
        let chunk = [7; 10_000];
        while let Poll::Ready(written) =
            poll_fn(|cx| Poll::Ready(Pin::new(&mut collected).poll_write(cx, &chunk))).await
        {
            taken += written.unwrap();
            assert!(taken <= FULL + chunk.len() + 1024, "{taken} bytes taken");
        }
        let mut sink = vec![0; taken];
        let reading = tokio::spawn(async move { far.read_exact(&mut sink).await.map(|read| (read, sink)) });
        poll_fn(|cx| match outlet.poll(cx).unwrap() {
            Emptied::Again => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
        while lock(&outlet.0).waiting() > 0 {
            empty(&outlet).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (read, sink) = reading.await.unwrap().unwrap();
        assert!(read == taken && sink.iter().all(|byte| *byte == 7));
        assert_eq!(lock(&outlet.0).out.capacity(), 0, "an idle stream keeps no buffer");
    }

    #[tokio::test]
    async fn shutdown_comes_after_all_that_was_collected() {
        let (near, mut far) = tokio::io::duplex(16);
        let (mut collected, _outlet) = collect(near, false);
        collected.write_all(&[1; 100]).await.unwrap();
        let shut = tokio::spawn(async move { collected.shutdown().await });
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        shut.await.unwrap().unwrap();
        assert_eq!(all, [1; 100]);
    }

    #[tokio::test]
    async fn one_turn_reads_only_so_much() {
        let (near, mut far) = tokio::io::duplex(4 * TURN);
        let (mut collected, outlet) = collect(near, false);
        far.write_all(&vec![0; 2 * TURN]).await.unwrap();
        let mut buffer = vec![0; 3 * TURN / 2];
        let mut pending = 0;
        let mut read = 0;
        while read < 2 * TURN {
            let polled = poll_fn(|cx| {
                let mut buf = ReadBuf::new(&mut buffer);
                Poll::Ready(Pin::new(&mut collected).poll_read(cx, &mut buf).map(|_| buf.filled().len()))
            });
            match polled.await {
                Poll::Ready(more) => read += more,
                Poll::Pending => {
                    pending += 1;
                    empty(&outlet).await.unwrap();
                }
            }
        }
        assert!(pending >= 1);
    }
    /// What reading goes on with, poll by poll, of a stranger that has sent `sent`.
    async fn turns(sent: &[u8]) -> Vec<usize> {
        let (near, mut far) = tokio::io::duplex(sent.len());
        let (mut collected, _outlet) = collect(near, true);
        far.write_all(sent).await.unwrap();
        let (mut turns, mut left) = (vec![0], sent.len());
        let mut buffer = vec![0; 16 * 1024];
        while left > 0 {
            let polled = poll_fn(|cx| {
                let mut buf = ReadBuf::new(&mut buffer);
                let polled = Pin::new(&mut collected).poll_read(cx, &mut buf);
                Poll::Ready(polled.map(|read| read.map(|()| buf.filled().len()).unwrap()))
            });
            match polled.await {
                Poll::Ready(read) => {
                    left -= read;
                    *turns.last_mut().unwrap() += read;
                }
                Poll::Pending => {
                    tokio::task::yield_now().await;
                    if *turns.last().unwrap() > 0 {
                        turns.push(0);
                    }
                }
            }
        }
        turns
    }

    #[tokio::test]
    async fn crumbs_are_read_in_short_turns_and_bodies_in_long_ones() {
        let preface = [0; 24];
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let crumbs = turns(&[&preface[..], &ping.repeat(900)].concat()).await;
        assert!(crumbs.iter().all(|turn| *turn <= 8 * 1024), "{crumbs:?}");
        let mut data = vec![0, 0x40, 0, 0, 0, 0, 0, 0, 1];
        data.resize(9 + 0x4000, 7);
        let bodies = turns(&[&preface[..], &data.repeat(40)].concat()).await;
        assert!(bodies[1..bodies.len() - 1].iter().all(|turn| *turn >= 32 * 1024), "{bodies:?}");
    }
}
