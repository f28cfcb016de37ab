//! WebSocket frames (RFC 6455, section 5) as bytes: headers, masks, close codes.
//!
//! Used by [`super::decode`] to read and by [`super::WsStream`] to write; knows nothing of connections.

/// The longest header: two bytes, a 64-bit length, a mask.
pub(super) const MAX_HEADER: usize = 14;
/// The most a control frame may carry.
pub(super) const MAX_CONTROL: usize = 125;

/// End of the conversation as planned.
pub(super) const NORMAL: u16 = 1000;
/// The endpoint goes away: a listener that stops.
pub(super) const GOING_AWAY: u16 = 1001;
pub(super) const POLICY_VIOLATION: u16 = 1008;
pub(super) const PROTOCOL_ERROR: u16 = 1002;
pub(super) const UNSUPPORTED: u16 = 1003;
/// Nothing is wrong with any one frame.
pub(super) const POLICY: u16 = 1008;
pub(super) const TOO_BIG: u16 = 1009;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    pub(super) fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Why the peer's frames are refused: the code and reason of the Close it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

impl Violation {
    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self { code: PROTOCOL_ERROR, reason }
    }
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) last: bool,
    pub(super) opcode: Opcode,
    pub(super) key: Option<[u8; 4]>,
    pub(super) length: u64,
}

/// A header as it comes in, in however many pieces.
#[derive(Default)]
pub(super) struct PartialHeader {
    bytes: [u8; MAX_HEADER],
    have: u8,
}

impl PartialHeader {
    /// Takes what it needs from `input` and returns how much that was, and the header once it is whole.
    pub(super) fn take(&mut self, input: &[u8]) -> (usize, Option<Result<Header, Violation>>) {
        let mut taken = 0;
        loop {
            let have = usize::from(self.have);
            let missing = self.size() - have;
            if missing == 0 {
                self.have = 0;
                return (taken, Some(parse(&self.bytes[..have])));
            }
            let now = missing.min(input.len() - taken);
            if now == 0 {
                return (taken, None);
            }
            self.bytes[have..have + now].copy_from_slice(&input[taken..taken + now]);
            self.have += now as u8;
            taken += now;
        }
    }

    /// How long the header is, as far as its first bytes tell.
    fn size(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let length = match self.bytes[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.bytes[1] & 0x80 != 0 { 4 } else { 0 }
    }
}

fn parse(bytes: &[u8]) -> Result<Header, Violation> {
    if bytes[0] & 0x70 != 0 {
        return Err(Violation::protocol("reserved bits are set; no extension was agreed"));
    }
    let opcode = match bytes[0] & 0x0f {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xa => Opcode::Pong,
        _ => return Err(Violation::protocol("unknown opcode")),
    };
    let (mut extended, key) = match bytes[1] & 0x80 {
        0 => (&bytes[2..], None),
        _ => {
            let (length, key) = bytes[2..].split_at(bytes.len() - 6);
            (length, Some([key[0], key[1], key[2], key[3]]))
        }
    };
    let length = if extended.is_empty() {
        u64::from(bytes[1] & 0x7f)
    } else {
        let mut length = 0;
        while let Some((&byte, rest)) = extended.split_first() {
            length = length << 8 | u64::from(byte);
            extended = rest;
        }
        length
    };
    let last = bytes[0] & 0x80 != 0;
    if length > i64::MAX as u64 {
        return Err(Violation::protocol("frame length has its highest bit set"));
    }
    if opcode.is_control() && (length > MAX_CONTROL as u64 || !last) {
        return Err(Violation::protocol("control frame is fragmented or longer than 125 bytes"));
    }
    Ok(Header { last, opcode, key, length })
}

/// A final frame's header; the bytes in use are the first so many.
pub(super) fn header(opcode: Opcode, length: usize, key: Option<[u8; 4]>) -> ([u8; MAX_HEADER], usize) {
    let mut bytes = [0; MAX_HEADER];
    bytes[0] = 0x80 | opcode as u8;
    let mut size = 2;
    match length {
        0..=125 => bytes[1] = length as u8,
        126..=0xffff => {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            size = 4;
        }
        _ => {
            bytes[1] = 127;
            bytes[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            size = 10;
        }
    }
    if let Some(key) = key {
        bytes[1] |= 0x80;
        bytes[size..size + 4].copy_from_slice(&key);
        size += 4;
    }
    (bytes, size)
}

/// Masks or unmasks `bytes` and turns `key` so that it fits the byte after them.
pub(super) fn mask(bytes: &mut [u8], key: &mut [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
    key.rotate_left(tail.len() % 4);
}
