//! Repairs the `:authority` of agents that dialled `ws` or `wss`, so that the `h2` crate serves them.
//!
//! Real agentk puts its whole URL there (`wss://kas.example.com/-/kubernetes-agent/`, or percent-encoded), which h2
//! answers with RST_STREAM(PROTOCOL_ERROR), every call. Stands between [`crate::ws::WsStream`] and the HTTP/2 server;
//! changes nothing but such values, byte for byte at equal length. The value that comes out means nothing: route and
//! log by the WebSocket's own Host and path.

mod filter;
mod hpack;
mod huffman;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use filter::Filter;

/// `S` as an HTTP/2 server should read it; writing goes straight through.
pub struct AuthorityFilter<S> {
    io: S,
    filter: Filter,
    /// Passed by the filter, not yet read; empty, and without a buffer, nearly always.
    ready: Bytes,
    ended: bool,
}

impl<S> AuthorityFilter<S> {
    /// For an HTTP/2 server with the usual largest frame of 16 384 bytes. `io` must be at the client preface.
    pub fn new(io: S) -> Self {
        Self::with_filter(io, Filter::default())
    }

    /// For a server that advertises another SETTINGS_MAX_FRAME_SIZE.
    pub fn with_max_frame(io: S, max_frame: u32) -> Self {
        Self::with_filter(io, Filter::new(max_frame))
    }

    fn with_filter(io: S, filter: Filter) -> Self {
        Self { io, filter, ready: Bytes::new(), ended: false }
    }

    pub fn get_ref(&self) -> &S {
        &self.io
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// The transport; bytes held or ready are lost.
    pub fn into_inner(self) -> S {
        self.io
    }

    fn give_ready(&mut self, buf: &mut ReadBuf<'_>) {
        let given = self.ready.len().min(buf.remaining());
        buf.put_slice(&self.ready[..given]);
        self.ready.advance(given);
        if self.ready.is_empty() {
            self.ready = Bytes::new();
        }
    }
}

/// What passes holds tokens: nothing of it is shown.
impl<S: fmt::Debug> fmt::Debug for AuthorityFilter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityFilter").field("io", &self.io).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFilter<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        loop {
            this.give_ready(buf);
            if buf.filled().len() > start || this.ended {
                return Poll::Ready(Ok(()));
            }
            std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let read = &buf.filled()[start..];
            let mut out = Vec::new();
            if read.is_empty() {
                this.ended = true;
                this.filter.finish(&mut out);
            } else {
                // Read into the caller's buffer, and left there as far as nothing has to be held or changed.
                let passable = this.filter.pass(read);
                if passable < read.len() {
                    this.filter.push(&read[passable..], &mut out);
                    buf.set_filled(start + passable);
                }
            }
            this.ready = Bytes::from(out);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityFilter<S> {
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
