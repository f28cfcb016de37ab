//! Makes the Close of a WebSocket say why: 1008 where a policy denies the client, 1001 where the edge sent it away, 1000
//! otherwise.
//!
//! Between `websocket` and `http2`, which shuts the byte stream down without knowing what it is. Only delegates.

use super::{Seat, Why};
use crate::websocket::Tunnel;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A tunnel that knows its connection's seat.
#[derive(Debug)]
pub struct Farewell<S> {
    tunnel: Tunnel<S>,
    seat: Arc<Seat>,
}

impl<S> Farewell<S> {
    pub fn new(tunnel: Tunnel<S>, seat: Arc<Seat>) -> Self {
        Self { tunnel, seat }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Farewell<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Farewell<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tunnel).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tunnel).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tunnel.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tunnel).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seat.cut() == Some(Why::Denied) {
            self.tunnel.get_mut().set_refused(Why::Denied.name());
        } else if self.seat.is_told() {
            self.tunnel.get_mut().set_going_away();
        }
        Pin::new(&mut self.tunnel).poll_shutdown(cx)
    }
}
