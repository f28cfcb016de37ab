//! Frames by their heads: what they cost to serve, and how many of each kind a client may send in a while.
//!
//! A leaky bucket for what costs the edge work and the client nothing. Honest clients stay far below its rates, for what
//! they answer our bytes with is set against those bytes: window updates and pings come at most once per DATA frame of
//! ours, and everything else here comes a few times a minute.

use std::time::{Duration, Instant};

const PREFACE: usize = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Control frames a second in the long run, and at once, of a client that is sent nothing: keepalives, settings, streams
/// that it no longer wants. A gRPC client that measures its bandwidth also sends a ping per round trip, a few thousand
/// a second inside one data centre, but only while it is sent data.
const CONTROL: Rate = Rate { per_second: 200, burst: 1_000, bytes: 64, stream: 2 };
/// At most one for the stream and one for the connection come for a DATA frame of ours. A message of 64 bytes with its
/// heads is 78; and a library may announce a window for each stream that it opens.
const WINDOW_UPDATES: Rate = Rate { per_second: 4_000, burst: 10_000, bytes: 32, stream: 2 };
/// What may be saved up for bytes that were sent while the client was busy.
const SAVED: i64 = 20_000;
/// A block of 64 KiB, as many as a head may have, is four frames of the usual size.
const CONTINUATIONS: u32 = 64;

/// What a frame costs to serve, in frames that only have to be looked at. A stream has to be admitted, given to a broker
/// and answered; each byte of its head may name a header of kilobytes.
const STREAM_COST: u32 = 16;
const HEAD_BYTES_PER_UNIT: u32 = 16;
const DATA_COST: u32 = 2;

struct Rate {
    per_second: u32,
    burst: u32,
    /// One more for so many bytes that were sent to the client.
    bytes: u32,
    /// So many more for a stream that it opens.
    stream: i64,
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
    /// Counted, less than nothing where some were saved up.
    control: i64,
    updates: i64,
    drained: Instant,
    /// Bytes sent to the client that nothing was set against yet.
    sent: usize,
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
            sent: 0,
        }
    }

    /// Takes note of bytes that go to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    /// Since when the rest of a header block, or of the preface, is awaited.
    pub(super) fn owes_head_since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes note of what was read. Returns what it costs to serve, in frames that only have to be looked at.
    pub(super) fn see(&mut self, mut bytes: &[u8], now: Instant) -> Result<u32, Flood> {
        self.drain(now);
        let mut cost = 0;
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
                    cost += self.frame(now)?;
                }
            }
            if self.skip == 0 && std::mem::take(&mut self.last_of_head) {
                self.since = None;
            }
        }
        Ok(cost)
    }

    /// One whole head has come.
    fn frame(&mut self, now: Instant) -> Result<u32, Flood> {
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
                if kind == CONTINUATION {
                    return Ok(1 + self.skip / HEAD_BYTES_PER_UNIT);
                }
                self.control = (self.control - CONTROL.stream).max(-SAVED);
                self.updates = (self.updates - WINDOW_UPDATES.stream).max(-SAVED);
                return Ok(STREAM_COST + self.skip / HEAD_BYTES_PER_UNIT);
            }
            DATA if self.skip > 0 => return Ok(DATA_COST),
            WINDOW_UPDATE => {
                self.updates += 1;
                if self.updates > i64::from(WINDOW_UPDATES.burst) {
                    return Err(Flood::WindowUpdates);
                }
            }
            // DATA without a byte, too; the last one of a stream comes with its HEADERS, which have a price elsewhere.
            DATA if flags & 1 != 0 => {}
            _ => {
                self.control += 1;
                if self.control > i64::from(CONTROL.burst) {
                    return Err(Flood::Control);
                }
            }
        }
        Ok(1)
    }

    /// Forgets as many frames as the time since then, and the bytes that were sent, admit.
    fn drain(&mut self, now: Instant) {
        // Bytes only now and then, so that the rest of a division is not lost over and over.
        if self.sent >= 4096 {
            let sent = std::mem::take(&mut self.sent) as i64;
            self.forget(|rate| sent / i64::from(rate.bytes), -SAVED);
        }
        let passed = now.saturating_duration_since(self.drained);
        if self.control <= 0 && self.updates <= 0 {
            self.drained = now;
        } else if passed >= Duration::from_millis(10) {
            let millis = passed.as_millis().min(60_000) as i64;
            self.forget(|rate| i64::from(rate.per_second) * millis / 1000, 0);
            self.drained = now;
        }
    }

    /// Not below `least`, unless it is there already.
    fn forget(&mut self, frames: impl Fn(&Rate) -> i64, least: i64) {
        self.control = (self.control - frames(&CONTROL)).max(least.min(self.control));
        self.updates = (self.updates - frames(&WINDOW_UPDATES)).max(least.min(self.updates));
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
            (6, 0, 8, 1_000),
            (4, 0, 6, 1_000),
            (2, 0, 5, 1_000),
            (3, 0, 4, 1_000),
            (0xfa, 0, 3, 1_000),
            (DATA, 0, 0, 1_000),
            (WINDOW_UPDATE, 0, 4, 10_000),
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
            assert_eq!((watch.control, watch.skip, watch.have), (0, 0, 0), "cut every {size} bytes");
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
            watch.see(&ping, now).unwrap();
            watch.see(&ping, now).unwrap();
        }
    }

    #[test]
    fn a_client_that_answers_each_small_message_with_a_ping_and_two_window_updates_is_no_flood() {
        let now = Instant::now();
        let mut watch = begun(now);
        let (ping, update) = (frame(6, 0, 8), frame(WINDOW_UPDATE, 0, 4));
        // All in one moment, so that time forgives nothing: 64 bytes of gRPC in a DATA frame.
        for burst in 0..10 {
            watch.sent(10_000 * (9 + 5 + 64));
            for _ in 0..10_000 {
                watch.see(&ping, now).unwrap_or_else(|flood| panic!("{flood:?} in burst {burst}"));
                watch.see(&update, now).unwrap_or_else(|flood| panic!("{flood:?} in burst {burst}"));
                watch.see(&update, now).unwrap_or_else(|flood| panic!("{flood:?} in burst {burst}"));
            }
        }
        // And who cancels each call that it makes is judged by the calls.
        let (head, reset) = (frame(HEADERS, END_HEADERS, 30), frame(3, 0, 4));
        for _ in 0..100_000 {
            watch.see(&head, now).unwrap();
            watch.see(&reset, now).unwrap();
        }
    }

    #[test]
    fn what_was_sent_long_ago_saves_up_no_flood_without_end() {
        let now = Instant::now();
        let mut watch = begun(now);
        watch.sent(1 << 40);
        let ping = frame(6, 0, 8);
        let passed = (0..1_000_000).take_while(|_| watch.see(&ping, now).is_ok()).count();
        assert_eq!(passed, SAVED as usize + 1_000);
    }

    #[test]
    fn streams_and_their_heads_cost_more_than_bytes_of_a_body() {
        let now = Instant::now();
        for (kind, payload, cost) in [
            (6, 8, 1),
            (DATA, 1, 2),
            (DATA, 16_384, 2),
            (HEADERS, 32, 18),
            (HEADERS, 8_000, 516),
            (CONTINUATION, 8_000, 501),
        ] {
            let mut watch = begun(now);
            assert_eq!(watch.see(&frame(kind, END_HEADERS, payload), now), Ok(cost), "{kind} of {payload}");
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
