//! The reading half of a WebSocket without IO: raw bytes are turned into payload inside the caller's own buffer.
//!
//! [`super::WsStream`] reads from the transport straight into its reader's buffer and lets this take the framing out
//! of it. No message is ever put together; only a control frame cut in two is kept, for as long as it is incomplete.

use super::frame::{self, Header, MAX_CONTROL, Opcode, PartialHeader, Violation};
use std::time::Instant;

/// The longest message, all fragments together, that GitLab's programs take too.
pub(super) const MAX_MESSAGE: u64 = 10 * 1024 * 1024;

/// Data frames shorter than this are crumbs: what is carried is HTTP/2, whose own frames have a head of nine bytes, and
/// who writes one of them at a time sends no WebSocket frame that is shorter.
const CRUMB: u64 = 9;
/// Crumbs and control frames of a dialler at once, and a second in the long run. Programs send some pings a minute, and
/// no crumbs but where a buffer of theirs ends within a head.
const CRUMBS: u32 = 1_000;
const CRUMBS_PER_SECOND: u64 = 100;

pub(super) struct Decoder {
    /// Does the peer dial? Then it must mask, else it must not.
    peer_masks: bool,
    header: PartialHeader,
    /// What is still to come of the current frame, and its mask.
    left: u64,
    key: Option<[u8; 4]>,
    /// The current frame is this control frame, else data.
    control: Option<Box<Control>>,
    /// Between the first and the last fragment of a message: bytes of it so far.
    message: Option<u64>,
    /// Frames that cost more than they carry, and since when they were counted.
    crumbs: u32,
    since: Option<Instant>,
}

/// A control frame's payload.
pub(super) struct Control {
    opcode: Opcode,
    length: u8,
    bytes: [u8; MAX_CONTROL],
}

impl Control {
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// How reading ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The peer sent Close; no code when it gave none.
    Closed { code: Option<u16>, reason: String },
    /// The peer broke the rules.
    Violated(Violation),
}

/// What one call of [`Decoder::decode`] found.
#[derive(Default)]
pub(super) struct Decoded {
    /// Payload bytes, now at the front of the buffer.
    pub(super) payload: usize,
    /// The newest ping; older ones need no answer (RFC 6455, 5.5.3).
    pub(super) ping: Option<Box<Control>>,
    /// What followed it in the buffer is ignored.
    pub(super) end: Option<End>,
}

impl Decoder {
    pub(super) fn new(peer_masks: bool) -> Self {
        Self {
            peer_masks,
            header: PartialHeader::default(),
            left: 0,
            key: None,
            control: None,
            message: None,
            crumbs: 0,
            since: None,
        }
    }

    /// Takes all of `raw` and leaves the payload that was in it at its front.
    pub(super) fn decode(&mut self, raw: &mut [u8]) -> Decoded {
        let mut found = Decoded::default();
        let mut at = 0;
        while at < raw.len() {
            if self.left == 0 {
                let (taken, header) = self.header.take(&raw[at..]);
                at += taken;
                match header {
                    None => break,
                    Some(header) => {
                        if let Err(violation) = header.and_then(|header| self.open(&header)) {
                            found.end = Some(End::Violated(violation));
                            return found;
                        }
                    }
                }
            } else {
                let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(raw.len() - at);
                let to = if self.control.is_some() { at } else { found.payload };
                raw.copy_within(at..at + now, to);
                let piece = &mut raw[to..to + now];
                if let Some(key) = &mut self.key {
                    frame::mask(piece, key);
                }
                match &mut self.control {
                    Some(control) => control.push(piece),
                    None => found.payload += now,
                }
                self.left -= now as u64;
                at += now;
            }
            if self.left == 0
                && let Some(control) = self.control.take()
            {
                self.control_complete(control, &mut found);
                if found.end.is_some() {
                    return found;
                }
            }
        }
        found
    }

    /// A frame begins.
    fn open(&mut self, header: &Header) -> Result<(), Violation> {
        match (self.peer_masks, header.key) {
            (true, None) => return Err(Violation::protocol("frame from the dialler is not masked")),
            (false, Some(_)) => return Err(Violation::protocol("frame from the listener is masked")),
            _ => {}
        }
        if header.opcode.is_control() || header.length < CRUMB {
            self.crumb()?;
        }
        if header.opcode.is_control() {
            self.control =
                Some(Box::new(Control { opcode: header.opcode, length: 0, bytes: [0; MAX_CONTROL] }));
        } else {
            let before = match (header.opcode, self.message) {
                (Opcode::Continuation, Some(before)) => before,
                (Opcode::Continuation, None) => {
                    return Err(Violation::protocol("continuation without a message to continue"));
                }
                (_, Some(_)) => return Err(Violation::protocol("new message inside a fragmented one")),
                (Opcode::Text, None) => {
                    return Err(Violation {
                        code: frame::UNSUPPORTED,
                        reason: "only binary messages are taken",
                    });
                }
                (_, None) => 0,
            };
            let message = before.saturating_add(header.length);
            if message > MAX_MESSAGE {
                return Err(Violation { code: frame::TOO_BIG, reason: "message is longer than 10 MiB" });
            }
            self.message = (!header.last).then_some(message);
        }
        self.left = header.length;
        self.key = header.key;
        Ok(())
    }

    /// One more frame that costs more than it carries. The clock is asked only when there were many.
    fn crumb(&mut self) -> Result<(), Violation> {
        if !self.peer_masks {
            return Ok(());
        }
        self.crumbs += 1;
        if self.crumbs <= CRUMBS && self.since.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        if let Some(since) = self.since.replace(now) {
            let passed = now.saturating_duration_since(since).as_millis().min(1_000_000) as u64;
            let forgotten = u32::try_from(passed * CRUMBS_PER_SECOND / 1000).unwrap_or(u32::MAX);
            self.crumbs = self.crumbs.saturating_sub(forgotten);
        }
        if self.crumbs > CRUMBS {
            return Err(Violation {
                code: frame::POLICY,
                reason: "too many frames that carry next to nothing",
            });
        }
        Ok(())
    }

    fn control_complete(&mut self, control: Box<Control>, found: &mut Decoded) {
        match control.opcode {
            Opcode::Ping => found.ping = Some(control),
            Opcode::Close => found.end = Some(closed(control.payload())),
            _ => {}
        }
    }
}

impl Control {
    /// A header that promises more than fits was refused before.
    fn push(&mut self, piece: &[u8]) {
        let from = usize::from(self.length);
        self.bytes[from..from + piece.len()].copy_from_slice(piece);
        self.length += piece.len() as u8;
    }
}

fn closed(payload: &[u8]) -> End {
    match payload {
        [] => End::Closed { code: None, reason: String::new() },
        [_] => End::Violated(Violation::protocol("Close with half a code")),
        [high, low, reason @ ..] => match (u16::from_be_bytes([*high, *low]), std::str::from_utf8(reason)) {
            (_, Err(_)) => End::Violated(Violation::protocol("Close with a reason that is not UTF-8")),
            // 1004 to 1006 and 1015 are for use inside a program only.
            (code @ (1000..=1003 | 1007..=1014 | 3000..=4999), Ok(reason)) => {
                End::Closed { code: Some(code), reason: reason.to_owned() }
            }
            _ => End::Violated(Violation::protocol("Close with a code that may not be sent")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All payload of `wire`, decoded in pieces, and how it ended.
    fn decoded(wire: &[u8], mut piece: impl FnMut() -> usize) -> (Vec<u8>, Option<End>) {
        let mut decoder = Decoder::new(true);
        let mut payload = Vec::new();
        let mut rest = wire.to_vec();
        while !rest.is_empty() {
            let mut now = rest;
            rest = now.split_off(piece().clamp(1, now.len()));
            let found = decoder.decode(&mut now);
            payload.extend_from_slice(&now[..found.payload]);
            if found.end.is_some() {
                return (payload, found.end);
            }
        }
        (payload, None)
    }

    #[test]
    fn a_dialler_that_sends_crumbs_without_end_is_told_so_and_one_that_sends_heads_is_not() {
        for (first, payload, admitted) in [
            (0x89, 0, CRUMBS as usize),
            (0x89, 125, CRUMBS as usize),
            (0x8a, 0, CRUMBS as usize),
            (0x82, 0, CRUMBS as usize),
            (0x82, 8, CRUMBS as usize),
            (0x82, 9, 50_000),
        ] {
            let (mut header, size) = frame::header(Opcode::Binary, payload, Some([0; 4]));
            header[0] = first;
            let mut one = header[..size].to_vec();
            one.resize(size + payload, 0);
            let mut decoder = Decoder::new(true);
            let passed = (0..50_000).take_while(|_| decoder.decode(&mut one.clone()).end.is_none()).count();
            // It takes a while, in which some more are admitted.
            assert!((admitted..=admitted + 200).contains(&passed), "{first:x} of {payload}: {passed}");
        }
        let mut listener = Decoder::new(false);
        assert!((0..50_000).all(|_| listener.decode(&mut [0x89, 0]).end.is_none()), "dialled on purpose");
    }

    #[test]
    fn crumbs_are_forgotten_at_the_rate_that_is_kept() {
        let mut decoder = Decoder::new(true);
        let mut ping = [0x89, 0x80, 0, 0, 0, 0];
        for _ in 0..CRUMBS {
            assert!(decoder.decode(&mut ping).end.is_none());
        }
        decoder.since = decoder.since.and_then(|since| since.checked_sub(std::time::Duration::from_secs(5)));
        let passed = (0..10_000).take_while(|_| decoder.decode(&mut ping).end.is_none()).count();
        assert!((500..520).contains(&passed), "{passed}");
    }

    #[test]
    fn random_frames_sound_or_not_decode_the_same_however_they_are_cut() {
        let mut state = rand::random::<u64>() | 1;
        // Shown only when the test fails.
        println!("state {state}");
        let mut below = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % limit
        };
        let (mut sound, mut broken) = (0, 0);
        for _ in 0..2_000 {
            let mut wire = Vec::new();
            for _ in 0..1 + below(12) {
                let opcode = [0x82, 0x82, 0x82, 0x89, 0x8a, 0x02, 0x00, 0x80, 0x88][below(9)];
                let key = [1, 2, 3, 4].map(|_: u8| below(256) as u8);
                let length =
                    if opcode & 0x8 != 0 { below(126) } else { [below(126), below(500), 70_000][below(3)] };
                let (mut header, size) = frame::header(Opcode::Binary, length, Some(key));
                header[0] = if below(40) == 0 { below(256) as u8 } else { opcode };
                wire.extend_from_slice(&header[..size]);
                wire.extend((0..length).map(|at| at as u8));
            }
            let whole = decoded(&wire, || usize::MAX);
            assert!(whole.0.len() <= wire.len());
            let largest = 1 + below(3_000);
            assert!(decoded(&wire, || below(largest)) == whole);
            if whole.1.is_none() { sound += 1 } else { broken += 1 }
        }
        assert!(sound > 50 && broken > 50, "{sound} sound, {broken} broken");
    }
}
