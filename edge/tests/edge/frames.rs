//! An HTTP/2 client without an HTTP/2 library: frames and header blocks written by hand, sound or not, and what comes back.

use crate::clients::Wire;
use crate::harness::{DEADLINE, token};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// A type that nobody has given a meaning.
pub(crate) const UNKNOWN: u8 = 0x16;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const DEPENDS: u8 = 0x20;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The payload of the ping that asks whether a connection still lives.
const ALIVE: &[u8] = b"alive?!\n";

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of GOAWAY and RST_STREAM.
    pub(crate) fn code(&self) -> u32 {
        let from = if self.kind == GOAWAY { 4 } else { 0 };
        self.payload[from..from + 4].try_into().map(u32::from_be_bytes).unwrap()
    }

    pub(crate) fn ends(&self, stream: u32) -> bool {
        self.stream == stream && matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    fn in_short(&self) -> String {
        let code = match self.kind {
            GOAWAY | RST_STREAM => format!(" code {}", self.code()),
            _ => String::new(),
        };
        format!("type {} flags {} stream {}{code}", self.kind, self.flags, self.stream)
    }
}

/// One frame as it stands on the wire, its length true.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The payload of SETTINGS.
pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
}

/// Header fields in the order they are sent.
#[derive(Clone)]
pub(crate) struct Fields(pub(crate) Vec<(String, String)>);

impl Fields {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.retain(|(found, _)| found != name);
        self
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        let field = self.0.iter_mut().find(|(found, _)| found == name).expect("a field of every request");
        value.clone_into(&mut field.1);
        self
    }

    /// A pseudo-header field: before the others.
    pub(crate) fn first(mut self, name: &str, value: &str) -> Self {
        self.0.insert(0, (name.to_owned(), value.to_owned()));
        self
    }

    /// All as literals that are not indexed, nothing Huffman-coded.
    pub(crate) fn block(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(name, value)| literal(0x00, name, value)).collect()
    }
}

/// A literal with a new name. `kind` is 0x40 to have it indexed, 0x00 not, 0x10 never.
pub(crate) fn literal(kind: u8, name: &str, value: &str) -> Vec<u8> {
    [vec![kind], string(name.as_bytes(), false), string(value.as_bytes(), false)].concat()
}

/// A string of a header block.
pub(crate) fn string(bytes: &[u8], huffman: bool) -> Vec<u8> {
    let mut out = integer(if huffman { 0x80 } else { 0 }, 7, bytes.len());
    out.extend(bytes);
    out
}

/// An integer behind `bits` low bits of a byte whose others are those of `first`.
pub(crate) fn integer(first: u8, bits: u8, value: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let mut out = vec![first | most as u8];
    let mut rest = value - most;
    while rest >= 128 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out
}

/// Where a request goes behind the edge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Road {
    Relay,
    KubernetesApi,
}

impl Road {
    /// A sound request.
    pub(crate) fn fields(self) -> Fields {
        let (method, path) = match self {
            Self::Relay => ("POST", "/echo.Echo/Echo"),
            Self::KubernetesApi => ("GET", "/api/v1/pods"),
        };
        let fields = Fields(Vec::new())
            .with(":method", method)
            .with(":scheme", "http")
            .with(":path", path)
            .with(":authority", "kas.example.com")
            .with("authorization", &token("agent"));
        match self {
            Self::Relay => fields.with("content-type", "application/grpc").with("te", "trailers"),
            Self::KubernetesApi => fields,
        }
    }
}

/// The connection: what was sent is forgotten, what came is kept.
pub(crate) struct Client {
    io: Box<dyn Wire>,
    read: BytesMut,
    pub(crate) seen: Vec<Frame>,
    closed: bool,
    /// As the peer's SETTINGS say.
    pub(crate) streams: u32,
}

impl Client {
    pub(crate) fn new(io: impl Wire) -> Self {
        Self { io: Box::new(io), read: BytesMut::new(), seen: Vec::new(), closed: false, streams: u32::MAX }
    }

    /// Says hello and hears the same.
    pub(crate) async fn greet(&mut self) -> Result<(), String> {
        self.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        self.find("SETTINGS", |frame| frame.kind == SETTINGS && frame.flags & ACK == 0).await?;
        self.find("SETTINGS ACK", |frame| frame.kind == SETTINGS && frame.flags & ACK != 0).await?;
        // The next one is found by those who look for it.
        self.seen.clear();
        Ok(())
    }

    /// A peer that closed already is found out by reading.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        if self.io.write_all(bytes).await.is_ok() {
            let _ = self.io.flush().await;
        }
    }

    /// The first frame that fits, of those that came and those to come.
    pub(crate) async fn find(&mut self, what: &str, fits: impl Fn(&Frame) -> bool) -> Result<&Frame, String> {
        let at = self.find_from(0, what, fits).await?;
        Ok(&self.seen[at])
    }

    /// Where the first frame that fits is, not looking at those before `at`.
    pub(crate) async fn find_from(
        &mut self,
        mut at: usize,
        what: &str,
        fits: impl Fn(&Frame) -> bool,
    ) -> Result<usize, String> {
        loop {
            if at == self.seen.len() && !self.more().await? {
                return Err(format!("closed instead of {what}, after {}", self.history()));
            }
            if fits(&self.seen[at]) {
                return Ok(at);
            }
            at += 1;
        }
    }

    /// Whether the peer closes; frames before that are welcome.
    pub(crate) async fn close(&mut self) -> Result<(), String> {
        while self.more().await? {}
        Ok(())
    }

    /// Whatever comes until the end, frames or not.
    pub(crate) async fn end(&mut self) -> Result<(), String> {
        let ended = tokio::time::timeout(DEADLINE, async {
            while self.io.read_buf(&mut self.read).await.is_ok_and(|read| read > 0) {}
        });
        ended.await.map_err(|_| "not closed".to_owned())
    }

    /// Whether the connection still answers.
    pub(crate) async fn alive(&mut self) -> Result<(), String> {
        self.send(&frame(PING, 0, 0, ALIVE)).await;
        self.find("a pong", |frame| frame.kind == PING && frame.payload == ALIVE).await?;
        match self.seen.iter().find(|frame| frame.kind == GOAWAY) {
            Some(goaway) => Err(format!("GOAWAY with code {}", goaway.code())),
            None => Ok(()),
        }
    }

    /// Reads one more frame; false at the end.
    async fn more(&mut self) -> Result<bool, String> {
        if self.closed {
            return Ok(false);
        }
        let read = tokio::time::timeout(DEADLINE, self.whole_frame()).await;
        let Some(frame) = read.map_err(|_| format!("nothing more after {}", self.history()))? else {
            self.closed = true;
            return Ok(false);
        };
        if frame.flags & ACK == 0 && frame.kind == SETTINGS {
            for value in frame.payload.chunks_exact(6).filter(|value| value[..2] == [0, 3]) {
                self.streams = value[2..].try_into().map(u32::from_be_bytes).unwrap();
            }
            self.send(&self::frame(SETTINGS, ACK, 0, &[])).await;
        }
        self.seen.push(frame);
        Ok(true)
    }

    async fn whole_frame(&mut self) -> Option<Frame> {
        loop {
            if self.read.len() >= 9 {
                let length = u32::from_be_bytes([0, self.read[0], self.read[1], self.read[2]]) as usize;
                if self.read.len() >= 9 + length {
                    let mut whole = self.read.split_to(9 + length);
                    whole.advance(3);
                    let (kind, flags, stream) = (whole.get_u8(), whole.get_u8(), whole.get_u32());
                    return Some(Frame { kind, flags, stream, payload: whole.to_vec() });
                }
            }
            if !self.io.read_buf(&mut self.read).await.is_ok_and(|read| read > 0) {
                return None;
            }
        }
    }

    pub(crate) fn history(&self) -> String {
        let frames: Vec<String> = self.seen.iter().rev().take(6).rev().map(Frame::in_short).collect();
        format!("[{}]", frames.join("; "))
    }
}
