//! Watches the HTTP/2 frames that come in, without changing a byte: the first one proves that a broker is there, a
//! GOAWAY tells that it wants the agent to move on. hyper keeps both to itself until the next request.
//! Sits between the transport and HTTP/2; never buffers more than a frame head and the text of a GOAWAY.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
/// What is kept of a GOAWAY: last stream id, error code, and as much of its text as fits.
const GOAWAY_KEPT: usize = 8 + 120;

/// What has been seen so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// No complete frame yet.
    Nothing,
    /// The server's first SETTINGS frame: it speaks HTTP/2.
    Settings,
    /// The first bytes are not HTTP/2; here they are, at most nine.
    NotHttp2(Vec<u8>),
    /// The server asks to open new streams elsewhere.
    GoAway {
        /// HTTP/2 error code; 0 is a polite goodbye.
        code: u32,
        /// What the server added, printable characters only.
        text: Arc<str>,
    },
}

/// A byte stream whose incoming frames are watched.
pub struct Watched<S> {
    io: S,
    seen: watch::Sender<Seen>,
    state: State,
}

enum State {
    /// Collecting a frame head.
    Head { have: usize, head: [u8; FRAME_HEAD] },
    /// Passing over a payload; a GOAWAY's is kept.
    Payload { left: usize, kept: Option<Vec<u8>> },
    /// Not HTTP/2: nothing more to learn.
    Blind,
}

impl<S> Watched<S> {
    /// Wraps a stream on which HTTP/2 is about to be spoken, as the client.
    pub fn new(io: S) -> (Self, watch::Receiver<Seen>) {
        let (seen, receiver) = watch::channel(Seen::Nothing);
        (Self { io, seen, state: State::Head { have: 0, head: [0; FRAME_HEAD] } }, receiver)
    }

    fn look(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Blind => return,
                State::Head { have, head } => {
                    let take = bytes.len().min(FRAME_HEAD - *have);
                    head[*have..*have + take].copy_from_slice(&bytes[..take]);
                    *have += take;
                    bytes = &bytes[take..];
                    let have = *have;
                    let head = *head;
                    self.head(&head[..have]);
                }
                State::Payload { left, kept } => {
                    let take = bytes.len().min(*left);
                    if let Some(kept) = kept {
                        let room = GOAWAY_KEPT.saturating_sub(kept.len()).min(take);
                        kept.extend_from_slice(&bytes[..room]);
                    }
                    *left -= take;
                    bytes = &bytes[take..];
                    if *left == 0 {
                        let kept = kept.take();
                        self.state = State::Head { have: 0, head: [0; FRAME_HEAD] };
                        if let Some(kept) = kept {
                            self.goaway(&kept);
                        }
                    }
                }
            }
        }
    }

    fn head(&mut self, head: &[u8]) {
        let first = matches!(*self.seen.borrow(), Seen::Nothing);
        // Told from the fourth byte already: a TLS alert is shorter than a frame head.
        if first && head.get(3).is_some_and(|kind| *kind != SETTINGS) {
            self.seen.send_replace(Seen::NotHttp2(head.to_vec()));
            self.state = State::Blind;
            return;
        }
        let Ok(head) = <&[u8; FRAME_HEAD]>::try_from(head) else {
            return;
        };
        let kind = head[3];
        if first {
            self.seen.send_replace(Seen::Settings);
        }
        let left = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let kept = (kind == GOAWAY).then(Vec::new);
        self.state = match left {
            0 => State::Head { have: 0, head: [0; FRAME_HEAD] },
            left => State::Payload { left, kept },
        };
    }

    fn goaway(&mut self, payload: &[u8]) {
        let Some(code) = payload.get(4..8).and_then(|code| <[u8; 4]>::try_from(code).ok()) else {
            return;
        };
        let text: String =
            String::from_utf8_lossy(&payload[8..]).chars().filter(|c| !c.is_control()).collect();
        self.seen.send_replace(Seen::GoAway { code: u32::from_be_bytes(code), text: text.into() });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.look(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

    fn watch_in_pieces(bytes: &[u8], piece: usize) -> Seen {
        let (mut watched, seen) = Watched::new(tokio::io::empty());
        for piece in bytes.chunks(piece) {
            watched.look(piece);
        }
        seen.borrow().clone()
    }

    #[test]
    fn a_goaway_is_seen_however_the_bytes_are_cut() {
        let mut bytes = OPENING.to_vec();
        bytes.extend_from_slice(&[0, 0, 3, 0, 0, 0, 0, 0, 1, 7, 7, 7]); // DATA that looks like nothing
        bytes.extend_from_slice(&[0, 0, 22, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11]);
        bytes.extend_from_slice(b"too_many_pings");
        for piece in 1..bytes.len() {
            let seen = watch_in_pieces(&bytes, piece);
            assert_eq!(seen, Seen::GoAway { code: 11, text: "too_many_pings".into() }, "pieces of {piece}");
        }
    }

    #[test]
    fn an_http_1_server_is_told_from_a_broker() {
        assert_eq!(watch_in_pieces(OPENING, 4), Seen::Settings);
        let Seen::NotHttp2(first) = watch_in_pieces(b"HTTP/1.1 400 Bad Request\r\n", 5) else {
            panic!("not HTTP/2");
        };
        assert!(b"HTTP/1.1 ".starts_with(&first) && first.len() >= 4);
    }

    #[test]
    fn a_goaway_without_end_is_kept_in_part_only() {
        let mut bytes = OPENING.to_vec();
        bytes.extend_from_slice(&[0, 0x10, 0, GOAWAY, 0, 0, 0, 0, 0]);
        bytes.extend(std::iter::repeat_n(b'a', 4096));
        let Seen::GoAway { text, .. } = watch_in_pieces(&bytes, 100) else { panic!("a goaway") };
        assert_eq!(text.len(), GOAWAY_KEPT - 8);
    }
}
