//! Peers that open properly and then break the rules: of WebSocket, of gRPC, of the tunnel.

use super::{assert_everything_works, dial, exchange, text};
use crate::{
    foreign::tunnel::{Agent, descriptor},
    harness::{Field, http},
};
use postern_wire::proto::gitlab::agent::reverse_tunnel::rpc::{ConnectRequest, Message, connect_request};
use tonic::Code;

/// An upgrade as agentk sends it, to this subprotocol.
pub(super) fn upgrade_request(subprotocol: &str) -> Vec<u8> {
    format!(
        "GET /-/kubernetes-agent/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    .into_bytes()
}

/// The code and words of the Close frame among the frames behind a `101`.
fn close(answer: &[u8]) -> Option<(u16, String)> {
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", text(answer));
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let mut rest = &answer[head..];
    loop {
        let (&[first, length], behind) = rest.split_first_chunk()?;
        let (length, behind) = match length {
            126 => {
                let (bytes, behind) = behind.split_first_chunk()?;
                (usize::from(u16::from_be_bytes(*bytes)), behind)
            }
            length => (usize::from(length), behind),
        };
        let (payload, behind) = behind.split_at_checked(length)?;
        if first == 0x88 {
            let (code, words) = payload.split_first_chunk()?;
            return Some((u16::from_be_bytes(*code), text(words)));
        }
        rest = behind;
    }
}

#[tokio::test]
async fn an_agent_with_another_subprotocol_is_told_which_one_is_wanted() {
    let mut field = Field::start().await;
    let request = upgrade_request("chat");
    for address in [field.addresses.edge_plain, field.addresses.broker_agents] {
        let (code, words) = close(&exchange(&mut dial(address).await, &request).await).expect("a Close");
        assert_eq!(code, 1002);
        assert!(words.contains("ws-tunnel"), "{words}");
    }
    let answer = exchange(&mut http::connect(&field, &[b"http/1.1"]).await, &request).await;
    assert_eq!(close(&answer).expect("a Close").0, 1002);
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn frames_that_a_tunnel_does_not_know_close_it_with_the_reason() {
    let mut field = Field::start().await;
    let masked = |opcode: u8, payload: &[u8]| {
        let mut frame = vec![opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame
    };
    let huge = [&[0x82, 0xff][..], &[0x7f; 8], &[0; 4]].concat();
    let cases = [
        ("text", masked(0x81, b"hello"), 1003),
        ("not masked", b"\x82\x05hello".to_vec(), 1002),
        ("an unknown opcode", masked(0x83, b"x"), 1002),
        ("a reserved bit", masked(0xc2, b"x"), 1002),
        ("a continuation of nothing", masked(0x80, b"x"), 1002),
        ("a ping in two parts", masked(0x09, b"x"), 1002),
        ("more than can be", huge, 1009),
    ];
    for (what, frame, expected) in cases {
        let bytes = [upgrade_request("ws-tunnel"), frame].concat();
        for (name, address) in
            [("edge", field.addresses.edge_plain), ("broker", field.addresses.broker_agents)]
        {
            let answer = exchange(&mut dial(address).await, &bytes).await;
            let found = close(&answer).map(|(code, _)| code);
            // A frame of 2^63 bytes may be one or the other wrong.
            let fits = found == Some(expected) || (expected == 1009 && found == Some(1002));
            assert!(fits, "{name}: {what}: {found:?}, {}", text(&answer));
        }
    }
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn messages_above_four_mebibytes_are_refused_compressed_or_not_and_the_connection_lives() {
    let mut field = Field::start().await;
    let before = field.broker.resident();
    let plain = Agent::connect(&field).await;
    let refused = plain.call(descriptor(&"x".repeat(5 << 20))).await.err().expect("refused");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("too large"), "{refused}");
    // A thousandth of its size on the wire.
    let small = Agent::connect(&field).await.compressing();
    for _ in 0..5 {
        let refused = small.call(descriptor(&"x".repeat(64 << 20))).await.err().expect("refused");
        assert!(matches!(refused.code(), Code::ResourceExhausted | Code::OutOfRange), "{refused}");
    }
    for agent in [&plain, &small] {
        drop(agent.open().await);
        assert_eq!(agent.dials(), 1);
    }
    let after = field.broker.resident();
    println!("320 MiB in compressed messages: broker {before} -> {after} KiB");
    assert!(after < before + 64 * 1024, "the broker grew from {before} to {after} KiB");
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn an_agent_that_breaks_the_order_of_a_tunnel_loses_that_tunnel_only() {
    let mut field = Field::start().await;
    let agent = Agent::connect(&field).await;
    let wrong = ConnectRequest { msg: Some(connect_request::Msg::Message(Message::default())) };
    let refused = agent.call(wrong).await.err().expect("refused");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let refused = agent.call(ConnectRequest::default()).await.err().expect("refused");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    drop(agent.open().await);
    assert_eq!(agent.dials(), 1);
    assert_everything_works(&mut field).await;
}
