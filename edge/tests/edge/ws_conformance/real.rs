//! The same through the real edge, where HTTP/2 is what the tunnel carries: one case of each kind.

use super::{BINARY, CONTINUATION, FIN, PING, TEXT, close, frame, read_frame};
use crate::clients::{Wire, tcp, tls};
use crate::frames::{self, PREFACE, SETTINGS};
use crate::harness::{DEADLINE, Edge, status};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is sent, and what comes back.
struct Smoke {
    number: &'static str,
    wire: Vec<u8>,
    pong: &'static [u8],
    code: u16,
    /// Whether HTTP/2 inside says its SETTINGS.
    answered: bool,
}

/// Upgrades; returns what was read behind the answer as well: HTTP/2's server speaks at once.
async fn upgraded<S: Wire>(mut io: S) -> (S, Vec<u8>) {
    let request = "GET / HTTP/1.1\r\nHost: kas.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ws-tunnel\r\n\
                   Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    io.write_all(request.as_bytes()).await.unwrap();
    let (head, rest) = read_head(&mut io).await.expect("an answer");
    assert_eq!(status(&head), 101, "{head}");
    assert!(!head.to_lowercase().contains("extensions"), "compression is declined: {head}");
    (io, rest)
}

/// Sends HTTP/2's hello in this case's frames; returns pongs, the codes of Close, and whether HTTP/2 answered.
async fn tell(
    (mut io, rest): (impl Wire, Vec<u8>),
    wire: &[u8],
    piece: usize,
) -> (Vec<Vec<u8>>, Vec<u16>, bool) {
    for piece in wire.chunks(piece) {
        if io.write_all(piece).await.is_err() || io.flush().await.is_err() {
            break;
        }
    }
    let (mut pongs, mut closes, mut carried) = (Vec::new(), Vec::new(), Vec::new());
    let mut io = rest.as_slice().chain(io);
    let read = async {
        while let Some((first, payload)) = read_frame(&mut io).await {
            match first {
                0x82 => carried.extend(payload),
                0x8a => pongs.push(payload),
                0x88 => closes.push(u16::from_be_bytes([payload[0], payload[1]])),
                first => panic!("a frame that begins with {first:#x}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("it does not end");
    (pongs, closes, carried.get(3) == Some(&SETTINGS))
}

#[tokio::test]
async fn the_edge_answers_as_the_table_says() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let hello = [PREFACE, &frames::frame(SETTINGS, 0, 0, &[])].concat();
    let (head, tail) = hello.split_at(11);
    let sound = frame(FIN | BINARY, &hello);
    let fragments =
        [frame(BINARY, head), frame(FIN | PING, b"between"), frame(FIN | CONTINUATION, tail)].concat();
    let mut unmasked = vec![FIN | BINARY, hello.len() as u8];
    unmasked.extend(&hello);
    let then_close = |frames: &[u8], code| [frames, &close(code, b"")].concat();
    let sound_case =
        |number, wire, pong: &'static [u8], code| Smoke { number, wire, pong, code, answered: true };
    let broken = |number, wire, code| Smoke { number, wire, pong: b"", code, answered: false };
    let full = frame(FIN | PING, &[b'*'; 125]);
    let cases = [
        broken("1.1.2", frame(FIN | TEXT, &[b'*'; 125]), 1003),
        sound_case("1.2", then_close(&sound, 1000), b"", 1000),
        sound_case("2.4", then_close(&[sound.clone(), full].concat(), 1000), &[b'*'; 125], 1000),
        broken("2.5", frame(FIN | PING, &[b'*'; 126]), 1002),
        broken("3.1", frame(FIN | 0x10 | BINARY, &hello), 1002),
        broken("4.1.1", frame(FIN | 0x3, b""), 1002),
        sound_case("5.8", then_close(&fragments, 1000), b"between", 1000),
        broken("5.12", frame(CONTINUATION, &hello), 1002),
        sound_case("7.7.2", then_close(&sound, 1001), b"", 1001),
        broken("not masked", unmasked, 1002),
    ];
    for Smoke { number, wire, pong, code, answered } in cases {
        for secure in [false, true] {
            // Small pieces, so that no frame comes whole; a broken rule at once, as the edge reads nothing behind it.
            let piece = if answered { 7 } else { wire.len() };
            let (pongs, closes, settings) = if secure {
                tell(upgraded(tls(&edge, &[b"http/1.1"]).await).await, &wire, piece).await
            } else {
                tell(upgraded(tcp(edge.plain).await).await, &wire, piece).await
            };
            let expected: Vec<&[u8]> = if pong.is_empty() { Vec::new() } else { vec![pong] };
            assert!(pongs == expected, "{number}, over TLS: {secure}: {pongs:?}");
            assert_eq!(closes, [code], "{number}, over TLS: {secure}");
            // What HTTP/2 says may come too late for a client that breaks a rule at once.
            assert!(settings || !answered, "{number}: no SETTINGS");
        }
    }
}
