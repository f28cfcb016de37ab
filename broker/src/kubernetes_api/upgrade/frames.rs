//! Where the frames of a WebSocket end, in the bytes that a cluster sends: only between two of them can one of ours be put in.
//! Under `upgrade`. It looks at heads only and changes nothing.

/// Of a close frame, after its two bytes of code.
const MAX_REASON: usize = 123;
/// RFC 6455: policy violation.
const POLICY: u16 = 1008;

/// How far into a frame the stream is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The head so far: two bytes, up to eight of length, up to four of a mask.
    head: [u8; 14],
    seen: usize,
    /// Of the payload.
    left: u64,
    /// A piece is being written; how much of it went out nobody knows.
    writing: bool,
}

impl Frames {
    /// Before a piece is written.
    pub(super) fn begins(&mut self) {
        self.writing = true;
    }

    /// After it was.
    pub(super) fn passed(&mut self, mut piece: &[u8]) {
        self.writing = false;
        while let Some((first, rest)) = piece.split_first() {
            if self.left > 0 {
                let skip = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
                self.left -= skip as u64;
                piece = &piece[skip..];
                continue;
            }
            self.head[self.seen] = *first;
            self.seen += 1;
            piece = rest;
            if self.seen < 2 {
                continue;
            }
            let short = self.head[1] & 0x7f;
            let length = match short {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
            if self.seen == 2 + length + mask {
                let long = self.head[2..2 + length].iter().fold(0, |long, byte| long << 8 | u64::from(*byte));
                self.left = if length == 0 { u64::from(short) } else { long };
                self.seen = 0;
            }
        }
    }

    /// A frame that closes the connection and says why. `None`: in the middle of another one it would not be understood.
    pub(super) fn close(&self, reason: &str) -> Option<Vec<u8>> {
        if self.writing || self.seen > 0 || self.left > 0 {
            return None;
        }
        let most = reason.len().min(MAX_REASON);
        let end = (0..=most).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
        let reason = &reason[..end];
        let length = u8::try_from(2 + reason.len()).ok()?;
        let mut frame = vec![0x88, length];
        frame.extend(POLICY.to_be_bytes());
        frame.extend(reason.as_bytes());
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0x82];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if short < 126 => frame.push(short),
            (_, Ok(long)) => {
                frame.push(126);
                frame.extend(long.to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + length, b'x');
        frame
    }

    #[test]
    fn the_end_of_a_frame_is_found_however_it_is_cut() {
        let bytes: Vec<u8> = [0, 1, 125, 126, 65_535, 65_536].into_iter().flat_map(frame).collect();
        for size in [1, 2, 3, 7, 1000, bytes.len()] {
            let mut frames = Frames::default();
            for (number, piece) in bytes.chunks(size).enumerate() {
                frames.begins();
                assert!(frames.close("why").is_none());
                frames.passed(piece);
                let gone = (number + 1) * size;
                if gone == 1 || gone == 3 {
                    assert!(frames.close("why").is_none(), "{gone} of {size}");
                }
            }
            assert!(frames.close("why").is_some(), "{size}");
        }
        let mut masked = Frames::default();
        masked.passed(&[0x81, 0x81, 1, 2, 3, 4]);
        assert!(masked.close("why").is_none());
        masked.passed(b"x");
        assert_eq!(masked.close("why").unwrap(), [&[0x88, 5, 0x03, 0xf0][..], b"why"].concat());
    }

    #[test]
    fn a_reason_fits_into_a_control_frame() {
        let close = Frames::default().close(&"\u{e4}".repeat(100)).unwrap();
        assert_eq!((close.len(), close[1]), (126, 124));
        assert!(std::str::from_utf8(&close[4..]).is_ok());
    }
}
