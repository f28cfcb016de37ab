//! Between a client's bytes and the HTTP/2 server: reads in turns, and sees floods that the server would carry out.
//!
//! Above TLS and WebSocket, beneath `h2`. Counts frames by their heads; never changes, holds or copies a byte. What it
//! found is asked by the connection's task, which ends the connection.

mod watch;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use watch::{Flood, Watch};

/// Bytes that one connection may have read before others of the thread get their turn. A frame may be as small as 9
/// bytes, so more would let one client's pings keep everybody waiting for milliseconds.
const TURN: usize = 64 * 1024;

/// A transport under guard.
#[derive(Debug)]
pub struct Guarded<S> {
    io: S,
    watch: Watch,
    /// Bytes that may still be read in this turn.
    left: usize,
    flood: Option<Flood>,
}

impl<S> Guarded<S> {
    pub fn new(io: S) -> Self {
        Self { io, watch: Watch::new(Instant::now()), left: TURN, flood: None }
    }

    /// Before each poll of the server.
    pub fn begin_turn(&mut self) {
        self.left = TURN;
    }

    /// What the client floods the connection with, once it does. Nothing is read from then on.
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// Since when the client owes the rest of a header block, or of its preface.
    pub fn owes_head_since(&self) -> Option<Instant> {
        self.watch.owes_head_since()
    }

    pub fn get_ref(&self) -> &S {
        &self.io
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flood.is_some() {
            // The connection's task looks after every poll, so it needs no waking.
            return Poll::Pending;
        }
        if this.left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        this.left = this.left.saturating_sub(read.len());
        if let Err(flood) = this.watch.see(read, Instant::now()) {
            this.flood = Some(flood);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_test::io::Builder;

    #[tokio::test]
    async fn a_turn_ends_after_its_bytes_and_the_task_is_woken_for_the_next() {
        let mut guarded = Guarded::new(Builder::new().read(&vec![0; TURN]).read(b"more").build());
        let mut all = vec![0; TURN];
        guarded.read_exact(&mut all).await.unwrap();
        let mut more = [0; 4];
        let mut reading = tokio_test::task::spawn(guarded.read_exact(&mut more));
        assert!(reading.poll().is_pending());
        assert!(reading.is_woken());
        drop(reading);
        guarded.begin_turn();
        guarded.read_exact(&mut more).await.unwrap();
        assert_eq!(&more, b"more");
    }

    #[tokio::test]
    async fn bytes_pass_as_they_are_both_ways() {
        let mut guarded = Guarded::new(Builder::new().read(b"in").write(b"out").build());
        let mut read = [0; 2];
        guarded.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"in");
        guarded.write_all(b"out").await.unwrap();
        guarded.flush().await.unwrap();
        assert_eq!(guarded.flood(), None);
    }
}
