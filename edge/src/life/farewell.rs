//! Makes the Close of a WebSocket say why: 1008 where a policy denies the client, 1001 where the edge sent it away, 1000
//! otherwise. And has it pinged as often as policies want by now.
//!
//! Between `websocket` and `http2`, which shuts the byte stream down without knowing what it is. Only delegates.

use super::{Rhythm, Seat, Why};
use crate::websocket::Tunnel;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A tunnel that knows its connection's seat.
#[derive(Debug)]
pub struct Farewell<S> {
    tunnel: Tunnel<S>,
    seat: Arc<Seat>,
    /// How often it is pinged where no policy says anything.
    usual: Rhythm,
    heard: Rhythm,
}

impl<S> Farewell<S> {
    /// `ping`: how often the tunnel is pinged; `None`: never.
    pub fn new(tunnel: Tunnel<S>, seat: Arc<Seat>, ping: Option<Duration>) -> Self {
        Self { tunnel, seat, usual: Rhythm::of(ping), heard: Rhythm::default() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Farewell<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rhythm = self.seat.rhythm();
        if self.heard != rhythm {
            self.heard = rhythm;
            let usual = self.usual.or(None);
            self.tunnel.get_mut().set_ping(rhythm.or(usual));
        }
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
