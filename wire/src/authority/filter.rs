//! The repair without any IO: HTTP/2 bytes in, HTTP/2 bytes out.
//!
//! [`super::AuthorityFilter`] feeds it. Only HEADERS blocks are ever held, up to a cap; everything else is counted and
//! let through. What is not understood passes as it came, so that the HTTP/2 server behind gives its own verdict.
//! Keeps nothing from one block to the next.

use std::fmt;

use super::hpack;
use crate::sniff::PREFACE;

/// What an HTTP/2 server admits unless it says otherwise.
pub(super) const DEFAULT_MAX_FRAME: u32 = 16_384;
/// A block that takes more bytes or frames passes unread. The frame cap keeps a flood of CONTINUATIONs visible to
/// the server behind, which counts them too.
const MAX_BLOCK: usize = 64 * 1024;
const MAX_FRAMES: u8 = 16;

const FRAME_HEADER: usize = 9;
const PRIORITY_SIZE: usize = 5;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The repair of one direction of one HTTP/2 connection: from the client, beginning at its preface.
pub struct Filter {
    state: State,
    /// The frames of an unfinished block, or a part of a frame header.
    hold: Vec<u8>,
    max_frame: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many bytes of the client preface came.
    Preface(usize),
    /// `hold` has less than a frame header.
    Between,
    /// So many bytes of a frame's payload are still to pass.
    Passing(usize),
    /// `hold` has a block from its HEADERS frame on.
    Block(Block),
    /// Not HTTP/2, or broken beyond use: everything passes from here on.
    Transparent,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    frames: u8,
    /// Where the header of the newest frame starts in `hold`.
    newest: usize,
    /// Where that frame ends, or, while its header is incomplete, where the header does.
    until: usize,
}

/// A held block may hold a token: counted, never shown.
impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("state", &self.state)
            .field("hold", &self.hold.len())
            .finish_non_exhaustive()
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_FRAME)
    }
}

impl Filter {
    /// `max_frame` must be what the server behind advertises as SETTINGS_MAX_FRAME_SIZE.
    pub fn new(max_frame: u32) -> Self {
        Self { state: State::Preface(0), hold: Vec::new(), max_frame: max_frame.max(DEFAULT_MAX_FRAME) }
    }

    /// Takes the next bytes from the client and appends what may go on to `out`; over all calls never more than came.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        loop {
            let passable = self.pass(input);
            out.extend_from_slice(&input[..passable]);
            input = &input[passable..];
            if input.is_empty() {
                return;
            }
            input = &input[self.take(input, out)..];
        }
    }

    /// The client sends no more: what is held goes on as it came.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(out);
        self.state = State::Transparent;
    }

    /// How many bytes at the start of `input` may go on as they are; these are accounted for, the rest must be pushed.
    pub(super) fn pass(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match self.state {
                State::Transparent => return input.len(),
                State::Preface(seen) => {
                    let compared = rest.len().min(PREFACE.len() - seen);
                    if rest[..compared] != PREFACE[seen..seen + compared] {
                        self.state = State::Transparent;
                        return input.len();
                    }
                    at += compared;
                    self.state = match seen + compared {
                        seen if seen < PREFACE.len() => State::Preface(seen),
                        _ => State::Between,
                    };
                }
                State::Passing(left) => {
                    let passed = left.min(rest.len());
                    at += passed;
                    self.state = if passed == left { State::Between } else { State::Passing(left - passed) };
                }
                State::Between => {
                    let Some(header) = FrameHeader::parse(rest).filter(|_| self.hold.is_empty()) else {
                        break;
                    };
                    if header.kind == HEADERS && header.length <= self.max_frame as usize {
                        // Mostly the whole block is here and fine, and need not be held at all.
                        let frame = rest.get(..FRAME_HEADER + header.length);
                        let fine = frame.is_some_and(|frame| {
                            header.flags & END_HEADERS != 0
                                && fragment(frame).is_none_or(|fragment| !hpack::needs_repair(fragment))
                        });
                        if !fine {
                            break;
                        }
                    }
                    at += FRAME_HEADER;
                    self.state =
                        if header.length == 0 { State::Between } else { State::Passing(header.length) };
                }
                State::Block(_) => break,
            }
        }
        at
    }

    /// Takes at least one byte of `input` into `hold` and acts when a header, a frame or a block is complete.
    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let until = match self.state {
            State::Block(block) => block.until,
            _ => FRAME_HEADER,
        };
        let taken = input.len().min(until.saturating_sub(self.hold.len()));
        self.hold.extend_from_slice(&input[..taken]);
        if self.hold.len() < until {
            return taken;
        }
        match self.state {
            State::Block(block) if until == block.newest + FRAME_HEADER => self.continued(block, out),
            State::Block(block) => self.frame_complete(block, out),
            _ => self.opened(out),
        }
        taken
    }

    /// A frame header between two blocks is complete.
    fn opened(&mut self, out: &mut Vec<u8>) {
        let Some(header) = FrameHeader::parse(&self.hold) else { return };
        if header.kind == HEADERS && header.length <= self.max_frame as usize && header.length < MAX_BLOCK {
            self.await_payload(Block { frames: 1, newest: 0, until: 0 }, header.length, out);
        } else {
            self.give_up(header.length, out);
        }
    }

    /// The header of a frame that must continue the block is complete.
    fn continued(&mut self, block: Block, out: &mut Vec<u8>) {
        let (Some(first), Some(header)) =
            (FrameHeader::parse(&self.hold), FrameHeader::parse(&self.hold[block.newest..]))
        else {
            return;
        };
        if header.kind != CONTINUATION || header.stream != first.stream {
            // The server behind ends the connection over this; nothing after it matters.
            self.release(out);
            self.state = State::Transparent;
        } else if header.length > self.max_frame as usize
            || self.hold.len() + header.length > MAX_BLOCK
            || block.frames >= MAX_FRAMES
        {
            self.give_up(header.length, out);
        } else {
            self.await_payload(Block { frames: block.frames + 1, ..block }, header.length, out);
        }
    }

    fn await_payload(&mut self, block: Block, length: usize, out: &mut Vec<u8>) {
        let block = Block { until: block.newest + FRAME_HEADER + length, ..block };
        if length == 0 {
            self.frame_complete(block, out);
        } else {
            self.state = State::Block(block);
        }
    }

    fn frame_complete(&mut self, block: Block, out: &mut Vec<u8>) {
        let complete = self.hold[block.newest + 4] & END_HEADERS != 0;
        if !complete {
            let newest = self.hold.len();
            self.state = State::Block(Block { newest, until: newest + FRAME_HEADER, ..block });
            return;
        }
        if !repair_frames(&self.hold, self.max_frame as usize, out) {
            out.extend_from_slice(&self.hold);
        }
        self.hold = Vec::new();
        self.state = State::Between;
    }

    /// Lets go of what is held and of the `left` bytes of payload that belong to it.
    fn give_up(&mut self, left: usize, out: &mut Vec<u8>) {
        self.release(out);
        self.state = if left == 0 { State::Between } else { State::Passing(left) };
    }

    /// Frees the buffer too: a connection that waits keeps none.
    fn release(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hold);
        self.hold = Vec::new();
    }
}

struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<FRAME_HEADER>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            // The highest bit is reserved and ignored.
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        })
    }
}

/// The header block fragment of one whole HEADERS frame; `None` when padding or priority do not fit in it.
fn fragment(frame: &[u8]) -> Option<&[u8]> {
    let header = FrameHeader::parse(frame)?;
    let mut payload = &frame[FRAME_HEADER..];
    let mut padding = 0;
    if header.flags & PADDED != 0 {
        let (&length, rest) = payload.split_first()?;
        padding = usize::from(length);
        payload = rest;
    }
    if header.flags & PRIORITY != 0 {
        payload = payload.get(PRIORITY_SIZE..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

/// Appends the frames of one block with its authority repaired; `false`, and nothing appended, when they may stay.
fn repair_frames(frames: &[u8], max_frame: usize, out: &mut Vec<u8>) -> bool {
    let Some(header) = FrameHeader::parse(frames) else { return false };
    let first_end = FRAME_HEADER + header.length;
    let Some(first) = fragment(&frames[..first_end]) else { return false };
    let joined;
    let block = if first_end == frames.len() {
        first
    } else {
        joined = join(first, &frames[first_end..]);
        &joined
    };
    let mut repaired = Vec::new();
    if !hpack::repair(block, &mut repaired) {
        return false;
    }

    let priority: &[u8] = if header.flags & PRIORITY != 0 {
        let from = FRAME_HEADER + usize::from(header.flags & PADDED != 0);
        &frames[from..from + PRIORITY_SIZE]
    } else {
        &[]
    };
    let (mut part, mut rest) = repaired.split_at(repaired.len().min(max_frame - priority.len()));
    let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
    let flags = header.flags & !(PADDED | END_HEADERS) | end(rest);
    put_header(priority.len() + part.len(), HEADERS, flags, header.stream, out);
    out.extend_from_slice(priority);
    out.extend_from_slice(part);
    while !rest.is_empty() {
        (part, rest) = rest.split_at(rest.len().min(max_frame));
        put_header(part.len(), CONTINUATION, end(rest), header.stream, out);
        out.extend_from_slice(part);
    }
    true
}

/// One block from its first fragment and the CONTINUATION frames behind it.
fn join(first: &[u8], mut continuations: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(first.len() + continuations.len());
    block.extend_from_slice(first);
    while let Some(header) = FrameHeader::parse(continuations) {
        let (frame, rest) = continuations.split_at(FRAME_HEADER + header.length);
        block.extend_from_slice(&frame[FRAME_HEADER..]);
        continuations = rest;
    }
    block
}

fn put_header(length: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}
