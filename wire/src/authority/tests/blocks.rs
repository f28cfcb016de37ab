//! Header blocks and frames as a peer may legally write them, at random.

use super::super::huffman;
use crate::sniff::PREFACE;

/// xorshift64*: enough chance for a test, and the same on every machine.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `limit` - 1.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }
}

/// An integer with `prefix` bits; `wasteful` adds an octet that says nothing.
fn integer(first: u8, prefix: u32, value: usize, wasteful: bool) -> Vec<u8> {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | mask as u8];
    let mut rest = value - mask;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    if wasteful && bytes.len() < 4 {
        bytes.extend([rest as u8 | 0x80, 0]);
    } else {
        bytes.push(rest as u8);
    }
    bytes
}

fn string(text: &[u8], huffman: bool, wasteful: bool) -> Vec<u8> {
    let mut bytes;
    if huffman {
        bytes = integer(0x80, 7, huffman::encoded_len(text), wasteful);
        huffman::encode(text, &mut bytes);
    } else {
        bytes = integer(0, 7, text.len(), wasteful);
        bytes.extend_from_slice(text);
    }
    bytes
}

/// A literal whose first byte, kind and static name index, is `first`.
pub(super) fn literal(first: u8, value: &[u8], huffman: bool) -> Vec<u8> {
    [vec![first], string(value, huffman, false)].concat()
}

/// A literal with its name spelled out; `kind` is 0x40, 0x00 or 0x10.
pub(super) fn field(kind: u8, name: &[u8], value: &[u8], huffman: bool) -> Vec<u8> {
    [vec![kind], string(name, huffman, false), string(value, huffman, false)].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A whole request without a body in one HEADERS frame.
pub(super) fn headers(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(1, 0x5, stream, block)
}

pub(super) fn continuation(stream: u32, fragment: &[u8], last: bool) -> Vec<u8> {
    frame(9, if last { 0x4 } else { 0 }, stream, fragment)
}

/// How the frames of a block differ from one plain HEADERS frame.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Shape {
    pub(super) padding: Option<u8>,
    pub(super) priority: bool,
    pub(super) continuations: usize,
}

/// A whole request in frames of this shape, cut at random places, into empty fragments too.
pub(super) fn shaped(stream: u32, block: &[u8], shape: Shape, rng: &mut Rng) -> Vec<u8> {
    let mut cuts: Vec<usize> = (0..shape.continuations).map(|_| rng.below(block.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(block.len());
    let mut flags = 0x1;
    let mut payload = Vec::new();
    if let Some(padding) = shape.padding {
        flags |= 0x8;
        payload.push(padding);
    }
    if shape.priority {
        flags |= 0x20;
        payload.extend([0, 0, 0, 0, 15]);
    }
    payload.extend_from_slice(&block[..cuts[0]]);
    payload.resize(payload.len() + usize::from(shape.padding.unwrap_or(0)), 0);
    if cuts.len() == 1 {
        flags |= 0x4;
    }
    let mut bytes = frame(1, flags, stream, &payload);
    for (turn, pair) in cuts.windows(2).enumerate() {
        bytes.extend(continuation(stream, &block[pair[0]..pair[1]], turn + 2 == cuts.len()));
    }
    bytes
}

const GOOD: &[&[u8]] = &[b"kas.example.com", b"h:8150", b"u@h", b"a_b", b""];
const BAD: &[&[u8]] = &[
    b"wss://kas.example.com/-/kubernetes-agent/",
    b"wss:%2F%2Fkas.example.com%2F-%2Fkubernetes-agent%2F",
    b"http://u:p@h:1/\xc3\xa4?q#f",
    b"/",
];

fn authority(rng: &mut Rng, bad: bool) -> Vec<u8> {
    let value = match rng.below(10) {
        0 if bad => [BAD[0], &rng.bytes(200), b"/"].concat(),
        _ if bad => BAD[rng.below(BAD.len())].to_vec(),
        _ => GOOD[rng.below(GOOD.len())].to_vec(),
    };
    let kind = [0x40, 0x00, 0x10][rng.below(3)];
    let (huffman, wasteful) = (rng.chance(50), rng.chance(10));
    if rng.chance(30) {
        let name = string(b":authority", rng.chance(50), wasteful);
        [vec![kind], name, string(&value, huffman, wasteful)].concat()
    } else {
        [vec![kind | 1], string(&value, huffman, wasteful)].concat()
    }
}

fn block(rng: &mut Rng, bad: bool) -> Vec<u8> {
    let mut block = Vec::new();
    if rng.chance(20) {
        block.extend(integer(0x20, 5, rng.below(4096), rng.chance(20)));
    }
    for _ in 0..rng.below(12) {
        match rng.below(4) {
            0 => block.extend(integer(0x80, 7, 1 + rng.below(300), false)),
            1 => block.extend(authority(rng, bad)),
            2 => {
                let length = if rng.chance(3) { 9_000 } else { rng.below(60) };
                let value = rng.bytes(length);
                block.extend(field(0x40, b"x-random", &value, rng.chance(50)));
            }
            _ => block.push(0x82),
        }
    }
    block
}

/// A client's side of a connection: requests in all shapes with other frames between them.
pub(super) fn stream_of(rng: &mut Rng, bad: bool) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for turn in 0..1 + rng.below(12) as u32 {
        let stream = turn * 2 + 1;
        match rng.below(4) {
            0 => {
                let length = rng.below(400);
                let data = rng.bytes(length);
                bytes.extend(frame(0, 0, stream, &data));
            }
            1 => bytes.extend(frame(6, 0, 0, &[7; 8])),
            _ => {
                let bad = bad && rng.chance(60);
                let block = block(rng, bad);
                let shape = Shape {
                    padding: rng.chance(30).then(|| rng.byte()),
                    priority: rng.chance(30),
                    continuations: if rng.chance(40) { rng.below(6) } else { 0 },
                };
                // Frames above the server's limit pass whole; here all shall be looked at.
                if block.len() < 16_000 {
                    bytes.extend(shaped(stream, &block, shape, rng));
                }
            }
        }
    }
    bytes
}
