//! One direction of a stream: DATA and trailers, copied as the other side's window admits them.
//!
//! Under `exchange`, which has two of them. Reads on while the other side's window is shut, up to a window of its own, and
//! gives the reader's window back only for what was sent on.

use super::Trailers;
use crate::upstream::STREAM_WINDOW;
use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use std::num::NonZeroU64;
use std::task::{Context, Poll};

/// Chunks below this many bytes are joined with what follows them at once, up to [`JOINED`] bytes.
const SMALL: usize = 1024;
const JOINED: usize = 16 * 1024;

/// One direction.
#[derive(Default)]
pub(super) struct Half {
    /// Read, but not yet admitted by the other side.
    pub(super) chunk: Bytes,
    pub(super) bytes: usize,
    pub(super) step: Step,
}

#[derive(Default, PartialEq)]
pub(super) enum Step {
    #[default]
    Data,
    Trailers,
    Done,
}

/// Which side of a copy failed.
pub(super) enum Failed {
    Reading(h2::Error),
    Writing,
    /// There is more than the so many bytes that may be.
    TooLarge(u64),
}

impl Half {
    /// Ready once all of `from`, trailers included and `most` bytes at the most, is with `to`. Pending with `turn` at 0: there may be more to do.
    pub(super) fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
        turn: &mut usize,
        most: Option<NonZeroU64>,
    ) -> Poll<Result<Option<Trailers>, Failed>> {
        loop {
            if let Some(most) = most
                && self.bytes as u64 > most.get()
            {
                return Poll::Ready(Err(Failed::TooLarge(most.get())));
            }
            if !self.chunk.is_empty() {
                match self.poll_send(cx, from, to) {
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(failed)) => return Poll::Ready(Err(failed)),
                    Poll::Pending => {
                        // What lies unread counts against the connection that it came on. The reader's window, which is
                        // given back as things are sent on, bounds it as before.
                        self.join(cx, from, turn, STREAM_WINDOW as usize);
                        return Poll::Pending;
                    }
                }
            }
            if *turn == 0 {
                return Poll::Pending;
            }
            match self.step {
                Step::Done => return Poll::Ready(Ok(None)),
                Step::Data => match from.poll_data(cx) {
                    Poll::Ready(Some(Ok(chunk))) => {
                        *turn -= 1;
                        self.bytes += chunk.len();
                        self.chunk = chunk;
                        if self.chunk.len() < SMALL {
                            self.join(cx, from, turn, JOINED);
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Failed::Reading(error))),
                    Poll::Ready(None) => self.step = Step::Trailers,
                    Poll::Pending => return Poll::Pending,
                },
                Step::Trailers => match from.poll_trailers(cx) {
                    Poll::Ready(Ok(trailers)) => {
                        self.step = Step::Done;
                        let sent = match &trailers {
                            Some(trailers) => to.send_trailers(trailers.clone()),
                            None => to.send_data(Bytes::new(), true),
                        };
                        return Poll::Ready(sent.map(|()| trailers).map_err(|_| Failed::Writing));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Reading(error))),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Adds what else is ready, up to `most` bytes. A side bears only so many small frames that nobody has read yet
    /// on a connection that all agents share, and a sender may make each byte a frame of its own.
    fn join(&mut self, cx: &mut Context<'_>, from: &mut RecvStream, turn: &mut usize, most: usize) {
        let mut joined: Option<BytesMut> = None;
        while self.step == Step::Data
            && *turn > 0
            && joined.as_ref().map_or(self.chunk.len(), BytesMut::len) < most
        {
            let more = match from.poll_data(cx) {
                Poll::Ready(Some(Ok(more))) => more,
                // Said again once the chunk is through.
                Poll::Ready(Some(Err(_))) => break,
                Poll::Ready(None) => {
                    self.step = Step::Trailers;
                    break;
                }
                Poll::Pending => break,
            };
            *turn -= 1;
            self.bytes += more.len();
            let joined = joined.get_or_insert_with(|| {
                // What was joined before goes on growing in its place.
                let chunk = std::mem::take(&mut self.chunk);
                chunk.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
            });
            joined.extend_from_slice(&more);
        }
        if let Some(joined) = joined {
            self.chunk = joined.freeze();
        }
    }

    /// Hands over as much of the chunk as the window admits, and gives the reader's window back by as much.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Failed>> {
        to.reserve_capacity(self.chunk.len());
        // It tells only what is new since it was last asked, so ask for what there is first.
        while to.capacity() == 0 {
            match to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Failed::Writing)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let length = to.capacity().min(self.chunk.len());
        let part = if length == self.chunk.len() {
            std::mem::take(&mut self.chunk)
        } else {
            // Not a slice of it, so that the rest can grow where it is, however small the parts are that go.
            let part = Bytes::copy_from_slice(&self.chunk[..length]);
            self.chunk.advance(length);
            part
        };
        if to.send_data(part, false).is_err() {
            return Poll::Ready(Err(Failed::Writing));
        }
        // Fails only for a stream that is over, whose window does not matter.
        let _ = from.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use h2::{client, server};
    use http::Request;
    use std::future::poll_fn;
    use tokio::sync::mpsc;

    /// One stream: its sender, its receiver, and a way to change the window that was `window` at first.
    async fn body(window: u32) -> (SendStream<Bytes>, RecvStream, mpsc::Sender<u32>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut builder = server::Builder::new();
        // Here thousands of frames may come before the first is taken.
        builder.initial_window_size(window).data_frame_budget(16 << 20);
        let (client, server) = tokio::join!(client::handshake(near), builder.handshake::<_, Bytes>(far));
        let ((send, connection), mut server) = (client.unwrap(), server.unwrap());
        tokio::spawn(connection);
        let request = Request::get("http://h/").body(()).unwrap();
        let (_, out) = send.ready().await.unwrap().send_request(request, false).unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        let (windows, mut changed) = mpsc::channel(1);
        tokio::spawn(async move {
            let _held = respond;
            loop {
                tokio::select! {
                    Some(window) = changed.recv() => server.set_initial_window_size(window).unwrap(),
                    accepted = server.accept() => if !matches!(accepted, Some(Ok(_))) { break },
                }
            }
        });
        (out, request.into_body(), windows)
    }

    async fn copied(
        half: &mut Half,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
        until: impl Fn(&Half) -> bool,
    ) {
        let copying = poll_fn(|cx| {
            let mut turn = 4;
            let copied = half.poll_copy(cx, from, to, &mut turn, None);
            assert!(!matches!(copied, Poll::Ready(Err(_))));
            if copied.is_ready() || until(half) {
                return Poll::Ready(());
            }
            if turn == 0 {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        tokio::time::timeout(std::time::Duration::from_secs(20), copying).await.expect("it stopped");
    }

    #[tokio::test]
    async fn small_frames_are_read_while_the_other_side_admits_none_of_them() {
        const COUNT: usize = 5000;
        let (mut sender, mut from, _window) = body(STREAM_WINDOW).await;
        let (mut to, mut reader, window) = body(0).await;
        for n in 0..COUNT {
            sender.send_data(Bytes::from(vec![n as u8]), n + 1 == COUNT).unwrap();
        }
        let mut half = Half::default();
        let joined = |half: &Half| half.chunk.len() == COUNT && half.step == Step::Trailers;
        copied(&mut half, &mut from, &mut to, joined).await;
        // None of it was given back to the sender, for none was sent on.
        assert_eq!(from.flow_control().used_capacity(), COUNT);
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            for now in [3000, COUNT] {
                window.send(now as u32).await.unwrap();
                while read.len() < now {
                    read.extend_from_slice(&reader.data().await.unwrap().unwrap());
                }
            }
            // The end is a frame of its own.
            while let Some(end) = reader.data().await {
                assert_eq!(end.unwrap(), "");
            }
            read
        });
        copied(&mut half, &mut from, &mut to, |_| false).await;
        let read = reading.await.unwrap();
        assert!(read.iter().enumerate().all(|(n, byte)| *byte == n as u8) && read.len() == COUNT);
        assert_eq!((half.bytes, from.flow_control().used_capacity()), (COUNT, 0));
    }
}
