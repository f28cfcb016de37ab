//! Frames by their heads, and how many of each kind a client may send in a while.
//!
//! A leaky bucket for what costs the edge work and the client nothing. Rates are what honest clients stay far below:
//! window updates come at most once per DATA frame of ours, and everything else here comes a few times a minute.

use std::time::{Duration, Instant};

const PREFACE: usize = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Control frames a second in the long run, and at once. A gRPC client measures its bandwidth with a ping per round trip,
/// which is a few thousand in a second inside one data centre.
const CONTROL: Rate = Rate { per_second: 10_000, burst: 10_000 };
/// At 16 KiB a frame this admits more than a gigabyte a second towards the client.
const WINDOW_UPDATES: Rate = Rate { per_second: 65_000, burst: 200_000 };
/// A block of 64 KiB, as many as a head may have, is four frames of the usual size.
const CONTINUATIONS: u32 = 64;

struct Rate {
    per_second: u32,
    burst: u32,
}

/// What a client does too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// PING, SETTINGS, PRIORITY, RST_STREAM, frames of unknown kinds, and DATA without a byte.
    Control,
    WindowUpdates,
    /// A header block in too many pieces.
    Continuations,
}

impl Flood {
    /// As it stands in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control_frames",
            Self::WindowUpdates => "window_updates",
            Self::Continuations => "continuations",
        }
    }
}

/// What was seen of one connection.
#[derive(Debug)]
pub(super) struct Watch {
    /// Bytes to pass before the next head, the preface first.
    skip: u32,
    /// The part of a head that came so far.
    head: [u8; HEAD],
    have: u8,
    /// A header block goes on; how many pieces it has had.
    block: Option<u32>,
    /// The bytes to skip are the end of a header block or of the preface.
    last_of_head: bool,
    since: Option<Instant>,
    control: u32,
    updates: u32,
    drained: Instant,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE as u32,
            head: [0; HEAD],
            have: 0,
            block: None,
            last_of_head: true,
            since: Some(now),
            control: 0,
            updates: 0,
            drained: now,
        }
    }

    /// Since when the rest of a header block, or of the preface, is awaited.
    pub(super) fn owes_head_since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes note of what was read.
    pub(super) fn see(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        self.drain(now);
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = bytes.len().min(self.skip as usize);
                self.skip -= passed as u32;
                bytes = &bytes[passed..];
            } else {
                let missing = HEAD - usize::from(self.have);
                let taken = bytes.len().min(missing);
                let have = usize::from(self.have);
                self.head[have..have + taken].copy_from_slice(&bytes[..taken]);
                self.have += taken as u8;
                bytes = &bytes[taken..];
                if usize::from(self.have) == HEAD {
                    self.have = 0;
                    self.frame(now)?;
                }
            }
            if self.skip == 0 && std::mem::take(&mut self.last_of_head) {
                self.since = None;
            }
        }
        Ok(())
    }

    /// One whole head has come.
    fn frame(&mut self, now: Instant) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]);
        match kind {
            HEADERS | CONTINUATION => {
                let pieces = self.block.map_or(0, |pieces| pieces + 1);
                self.since.get_or_insert(now);
                if flags & END_HEADERS != 0 {
                    self.block = None;
                    self.last_of_head = true;
                } else {
                    self.block = Some(pieces);
                }
                if pieces > CONTINUATIONS {
                    return Err(Flood::Continuations);
                }
            }
            DATA if self.skip > 0 => {}
            WINDOW_UPDATE => {
                self.updates += 1;
                if self.updates > WINDOW_UPDATES.burst {
                    return Err(Flood::WindowUpdates);
                }
            }
            // DATA without a byte, too; the last one of a stream comes with its HEADERS, which have a price elsewhere.
            DATA if flags & 1 != 0 => {}
            _ => {
                self.control += 1;
                if self.control > CONTROL.burst {
                    return Err(Flood::Control);
                }
            }
        }
        Ok(())
    }

    /// Forgets as many frames as the time since then admits.
    fn drain(&mut self, now: Instant) {
        if self.control == 0 && self.updates == 0 {
            self.drained = now;
            return;
        }
        let passed = now.saturating_duration_since(self.drained);
        // In steps, so that the rest of a division is not lost over and over.
        if passed < Duration::from_millis(10) {
            return;
        }
        let millis = passed.as_millis().min(60_000) as u64;
        let leaked = |rate: &Rate| (u64::from(rate.per_second) * millis / 1000) as u32;
        self.control = self.control.saturating_sub(leaked(&CONTROL));
        self.updates = self.updates.saturating_sub(leaked(&WINDOW_UPDATES));
        self.drained = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD + payload, 0xff);
        bytes
    }

    fn begun(now: Instant) -> Watch {
        let mut watch = Watch::new(now);
        watch.see(&[0; PREFACE], now).unwrap();
        watch
    }

    /// How many of these frames pass when they all come at once.
    fn passes(bytes: &[u8]) -> usize {
        let now = Instant::now();
        let mut watch = begun(now);
        (0..1_000_000).take_while(|_| watch.see(bytes, now).is_ok()).count()
    }

    #[test]
    fn frames_that_cost_their_sender_nothing_are_counted_by_kind() {
        for (kind, flags, payload, admitted) in [
            (6, 0, 8, 10_000),
            (4, 0, 6, 10_000),
            (2, 0, 5, 10_000),
            (3, 0, 4, 10_000),
            (0xfa, 0, 3, 10_000),
            (DATA, 0, 0, 10_000),
            (WINDOW_UPDATE, 0, 4, 200_000),
            (HEADERS, END_HEADERS, 30, 1_000_000),
            (DATA, 0, 1, 1_000_000),
        ] {
            assert_eq!(passes(&frame(kind, flags, payload)), admitted, "frames of kind {kind}");
        }
    }

    #[test]
    fn where_the_bytes_are_cut_makes_no_difference() {
        let now = Instant::now();
        let mut stream = vec![0; PREFACE];
        for (kind, flags, payload) in [(4, 0, 6), (HEADERS, END_HEADERS, 300), (DATA, 0, 1000), (6, 0, 8)] {
            stream.extend(frame(kind, flags, payload));
        }
        for size in [1, 2, 7, 8, 9, 10, 24, 33, 5000] {
            let mut watch = Watch::new(now);
            for part in stream.chunks(size) {
                watch.see(part, now).unwrap();
            }
            assert_eq!((watch.control, watch.skip, watch.have), (2, 0, 0), "cut every {size} bytes");
            assert_eq!(watch.owes_head_since(), None);
        }
    }

    #[test]
    fn a_rate_that_is_kept_never_ends_a_connection() {
        let begin = Instant::now();
        let mut watch = begun(begin);
        let ping = frame(6, 0, 8);
        for millis in (0..60_000).step_by(10) {
            let now = begin + Duration::from_millis(millis);
            for _ in 0..100 {
                watch.see(&ping, now).unwrap();
            }
        }
    }

    #[test]
    fn a_header_block_is_owed_from_its_first_byte_to_its_last() {
        let begin = Instant::now();
        let later = begin + Duration::from_secs(5);
        let mut watch = Watch::new(begin);
        assert_eq!(watch.owes_head_since(), Some(begin));
        watch.see(&[0; PREFACE], begin).unwrap();
        assert_eq!(watch.owes_head_since(), None);
        watch.see(&frame(HEADERS, 0, 10), later).unwrap();
        assert_eq!(watch.owes_head_since(), Some(later));
        let last = frame(CONTINUATION, END_HEADERS, 10);
        watch.see(&last[..15], later + Duration::from_secs(1)).unwrap();
        assert_eq!(watch.owes_head_since(), Some(later));
        watch.see(&last[15..], later).unwrap();
        assert_eq!(watch.owes_head_since(), None);
        // Slow bodies are slow bodies.
        watch.see(&frame(DATA, 0, 1000)[..20], later).unwrap();
        assert_eq!(watch.owes_head_since(), None);
    }

    #[test]
    fn a_block_in_too_many_pieces_is_a_flood() {
        let now = Instant::now();
        let mut watch = begun(now);
        watch.see(&frame(HEADERS, 0, 1), now).unwrap();
        let piece = frame(CONTINUATION, 0, 1);
        let passed = (0..1000).take_while(|_| watch.see(&piece, now).is_ok()).count();
        assert_eq!(passed, CONTINUATIONS as usize);
    }
}
