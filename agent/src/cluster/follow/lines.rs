//! A watch's body as lines, one event each. Holds one line at most, and no line without end.

use super::super::client::MOST_BYTES;
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

/// Why there is no further line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The body is over, or broke off: for a watch that is the same.
    Over,
    /// Longer than any answer may be.
    TooLarge,
}

pub(super) struct Lines<B> {
    body: B,
    buffer: BytesMut,
    /// There is no line end before this.
    searched: usize,
}

impl<B: Body<Data = Bytes> + Unpin> Lines<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Bytes, Ending> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.searched > MOST_BYTES {
                return Err(Ending::TooLarge);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(_)) | None => return Err(Ending::Over),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    fn body(pieces: Vec<&'static [u8]>) -> impl Body<Data = Bytes> + Unpin {
        let frames =
            pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(piece))));
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn lines_are_whole_however_they_come_in_pieces() {
        let mut lines = Lines::new(body(vec![b"{\"a\"", b":1}\n{}\n{\"b", b"\":2}\n{\"half"]));
        for expected in ["{\"a\":1}\n", "{}\n", "{\"b\":2}\n"] {
            assert_eq!(lines.next().await.unwrap(), expected);
        }
        assert_eq!(lines.next().await, Err(Ending::Over));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_collected_for_ever() {
        static PIECE: [u8; 1 << 20] = [b'x'; 1 << 20];
        let mut lines = Lines::new(body(vec![&PIECE; 64]));
        assert_eq!(lines.next().await, Err(Ending::TooLarge));
        assert!(lines.buffer.len() <= MOST_BYTES + PIECE.len());
    }
}
