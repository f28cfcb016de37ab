//! The `:authority` trap with frames of our own through the real edge: every form that a value may have on the wire,
//! however it is cut into frames and WebSocket messages. Responses are read by their frames only.

use super::{REGISTER, URLS};
use crate::harness::{Field, PATIENCE, http};
use ::http::HeaderMap;
use bytes::{BufMut, BytesMut};
use postern_wire::ws::{self, Handshake, WsStream};
use std::collections::BTreeMap;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// RFC 7541, appendix B, as far as URLs need it: code and its length in bits.
fn code(byte: u8) -> (u64, u32) {
    match byte {
        b'0' => (0x0, 5),
        b'1' => (0x1, 5),
        b'2' => (0x2, 5),
        b'a' => (0x3, 5),
        b'c' => (0x4, 5),
        b'e' => (0x5, 5),
        b'i' => (0x6, 5),
        b'o' => (0x7, 5),
        b's' => (0x8, 5),
        b't' => (0x9, 5),
        b'%' => (0x15, 6),
        b'-' => (0x16, 6),
        b'.' => (0x17, 6),
        b'/' => (0x18, 6),
        b'b' => (0x23, 6),
        b'd' => (0x24, 6),
        b'f' => (0x25, 6),
        b'g' => (0x26, 6),
        b'h' => (0x27, 6),
        b'l' => (0x28, 6),
        b'm' => (0x29, 6),
        b'n' => (0x2a, 6),
        b'p' => (0x2b, 6),
        b'r' => (0x2c, 6),
        b'u' => (0x2d, 6),
        b':' => (0x5c, 7),
        b'F' => (0x61, 7),
        b'k' => (0x75, 7),
        b'w' => (0x78, 7),
        b'x' => (0x79, 7),
        b'y' => (0x7a, 7),
        other => panic!("no code for {:?}", char::from(other)),
    }
}

fn huffman(text: &[u8]) -> Vec<u8> {
    let (mut bits, mut count, mut out) = (0u64, 0u32, Vec::new());
    for byte in text {
        let (code, length) = code(*byte);
        bits = bits << length | code;
        count += length;
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        // Filled up with ones.
        out.push((bits << (8 - count)) as u8 | (0xff >> count));
    }
    out
}

fn string(out: &mut Vec<u8>, text: &[u8], in_huffman: bool) {
    let (flag, bytes) = if in_huffman { (0x80, huffman(text)) } else { (0, text.to_vec()) };
    let mut length = bytes.len();
    if length < 127 {
        out.push(flag | length as u8);
    } else {
        out.push(flag | 127);
        length -= 127;
        while length >= 128 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
    }
    out.extend(bytes);
}

/// How one request says its authority.
#[derive(Clone, Copy, Debug)]
struct Form {
    authority: &'static str,
    huffman: bool,
    /// Spells the name, as grpcio does, instead of using its number, as grpc-go does.
    named: bool,
    /// Adds it to the dynamic table.
    indexed: bool,
    /// CONTINUATION frames after HEADERS.
    continuations: usize,
    /// More metadata than one frame holds comfortably.
    fat: bool,
}

fn block(form: Form, token: &str) -> Vec<u8> {
    // :method POST, :scheme http
    let mut block = vec![0x83, 0x86];
    let mut literal = |kind: u8, name: &str, value: &[u8], huffman: bool| {
        block.push(kind);
        string(&mut block, name.as_bytes(), false);
        string(&mut block, value, huffman);
    };
    let kind = if form.indexed { 0x40 } else { 0x00 };
    if form.named {
        literal(kind, ":authority", form.authority.as_bytes(), form.huffman);
    }
    literal(0, ":path", REGISTER.as_bytes(), false);
    if !form.named {
        block.push(kind | 1);
        string(&mut block, form.authority.as_bytes(), form.huffman);
    }
    let mut literal = |name: &str, value: &[u8]| {
        block.push(0);
        string(&mut block, name.as_bytes(), false);
        string(&mut block, value, false);
    };
    literal("content-type", b"application/grpc");
    literal("te", b"trailers");
    literal("authorization", format!("Bearer {token}").as_bytes());
    if form.fat {
        literal("x-fat", &[b'f'; 6000]);
    }
    block
}

fn frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// A whole unary call with an empty message.
fn call(out: &mut BytesMut, stream: u32, form: Form, token: &str) {
    let block = block(form, token);
    let pieces: Vec<&[u8]> = block.chunks(block.len().div_ceil(form.continuations + 1)).collect();
    for (turn, piece) in pieces.iter().enumerate() {
        let last = if turn + 1 == pieces.len() { END_HEADERS } else { 0 };
        frame(out, if turn == 0 { HEADERS } else { CONTINUATION }, last, stream, piece);
    }
    frame(out, DATA, END_STREAM, stream, &[0; 5]);
}

fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for authority in URLS.into_iter().chain(["kas.example.com:443"]) {
        for huffman in [false, true] {
            // `443` has digits the table above does without.
            if huffman && authority.ends_with("443") {
                continue;
            }
            for (named, indexed) in [(false, true), (true, true), (false, false), (true, false)] {
                for (continuations, fat) in [(0, false), (1, false), (4, true)] {
                    forms.push(Form { authority, huffman, named, indexed, continuations, fat });
                }
            }
        }
    }
    forms
}

/// Writes in messages of these sizes by turns: every write is a message of its own.
async fn write_in_pieces<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut WsStream<S>,
    bytes: &[u8],
    sizes: &[usize],
) {
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return;
        }
        let (now, later) = rest.split_at((*size).min(rest.len()));
        io.write_all(now).await.expect("the tunnel takes it");
        io.flush().await.expect("the tunnel takes it");
        rest = later;
    }
}

/// Makes every call on one connection; returns those that got no message back, which is all a served one gets.
async fn unserved<S>(io: S, token: &str, forms: &[Form], sizes: &[usize]) -> Vec<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let headers = HeaderMap::new();
    let handshake = Handshake {
        host: "kas.example.com",
        path_and_query: "/-/kubernetes-agent/",
        user_agent: "test",
        headers: &headers,
    };
    let mut io = ws::dial(io, handshake).await.expect("upgraded");
    let mut bytes = BytesMut::from(PREFACE);
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let mut served: BTreeMap<u32, bool> = BTreeMap::new();
    let mut ended = 0;
    for (turn, form) in forms.iter().enumerate() {
        call(&mut bytes, turn as u32 * 2 + 1, *form, token);
        write_in_pieces(&mut io, &bytes.split(), sizes).await;
        // One at a time: the edge may hold as many streams as it likes, this client reads no windows.
        while ended <= turn {
            let mut header = [0; 9];
            timeout(PATIENCE, io.read_exact(&mut header)).await.expect("a frame in time").expect("a frame");
            let [a, b, c, kind, flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            io.read_exact(&mut payload).await.expect("a whole frame");
            let stream = u32::from_be_bytes(stream);
            match kind {
                GOAWAY => panic!("the connection was given up: {}", String::from_utf8_lossy(&payload)),
                DATA => drop(served.insert(stream, true)),
                RST_STREAM if !served.contains_key(&stream) => drop(served.insert(stream, false)),
                _ => {}
            }
            if kind == RST_STREAM || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0) {
                ended += 1;
            }
        }
    }
    let is_served = |turn: usize| served.get(&(turn as u32 * 2 + 1)) == Some(&true);
    forms
        .iter()
        .enumerate()
        .filter(|(turn, _)| !is_served(*turn))
        .map(|(_, form)| format!("{form:?}"))
        .collect()
}

#[test]
fn the_huffman_code_of_these_tests_is_the_standards_own() {
    // RFC 7541, C.4.1 and C.6.1.
    let expected = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    assert_eq!(huffman(b"www.example.com"), expected);
    let location = [
        0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae, 0x82, 0xae, 0x43, 0xd3,
    ];
    assert_eq!(huffman(b"https://www.example.com"), location);
}

#[tokio::test]
async fn every_form_of_a_url_as_authority_is_served_through_the_edge() {
    let field = super::field_without_agent().await;
    let (token, forms) = (field.agent_token.as_str(), forms());
    for sizes in [&[1, 7, 1000][..], &[usize::MAX]] {
        let plain = TcpStream::connect(field.addresses.edge_plain).await.expect("edge accepts");
        assert_eq!(unserved(plain, token, &forms, sizes).await, [""; 0], "ws, messages of {sizes:?}");
        let tls = http::connect(&field, &[b"http/1.1"]).await;
        assert_eq!(unserved(tls, token, &forms, sizes).await, [""; 0], "wss, messages of {sizes:?}");
        let broker = TcpStream::connect(field.addresses.broker_agents).await.expect("broker accepts");
        assert_eq!(unserved(broker, token, &forms, sizes).await, [""; 0], "straight, messages of {sizes:?}");
    }
}

/// What the other test asserts is worth nothing if a wrong token is served as well.
#[tokio::test]
async fn none_of_these_calls_is_served_with_a_wrong_token() {
    let field: Field = super::field_without_agent().await;
    let forms = forms();
    let plain = TcpStream::connect(field.addresses.edge_plain).await.expect("edge accepts");
    assert_eq!(unserved(plain, "wrong", &forms, &[50]).await.len(), forms.len());
}
