//! A real `h2` server behind WebSocket and filter: agents with a URL for an authority are served, and without the
//! filter they are not.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};

use super::{
    super::AuthorityFilter,
    MAPPED, URL,
    blocks::{Rng, Shape, field, headers, literal, shaped},
    opening,
};
use crate::ws::WsStream;

const ENCODED: &[u8] = b"wss:%2F%2Fkas.example.com%2F-%2Fkubernetes-agent%2F";
const ENCODED_MAPPED: &str = "wss--2F-2Fkas.example.com-2F--2Fkubernetes-agent-2F";
/// GET, http, /
const PSEUDO: [u8; 3] = [0x82, 0x86, 0x84];

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Served { authority: String },
    Reset { code: u32 },
}

/// Serves `io` until it closes; answers with the authority it saw.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(io: S) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let authority = request.uri().authority().map_or("", |authority| authority.as_str()).to_owned();
        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
        body.send_data(Bytes::from(authority), true).unwrap();
    }
}

/// Sends `bytes`, which end `count` requests, and returns what became of each.
async fn outcomes(bytes: &[u8], count: usize, mut io: WsStream<DuplexStream>) -> BTreeMap<u32, Outcome> {
    let mut rng = Rng::new(7);
    let mut rest = bytes;
    // Messages of any size: their boundaries mean nothing.
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + rng.below(50)).min(rest.len()));
        io.write_all(now).await.unwrap();
        rest = later;
    }
    io.flush().await.unwrap();
    let mut found = BTreeMap::new();
    while found.len() < count {
        let mut header = [0; 9];
        io.read_exact(&mut header).await.unwrap();
        let [a, b, c, kind, _, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        let stream = u32::from_be_bytes(stream);
        match kind {
            0 => found.insert(stream, Outcome::Served { authority: String::from_utf8(payload).unwrap() }),
            3 => {
                let code = u32::from_be_bytes(payload.try_into().unwrap());
                found.insert(stream, Outcome::Reset { code })
            }
            7 => panic!("GOAWAY {payload:?}"),
            _ => None,
        };
    }
    found
}

/// Every form of the authority in every shape of frames, each as one request: what is sent, and what must be seen.
fn requests() -> Vec<(Vec<u8>, &'static str)> {
    let mapped = std::str::from_utf8(MAPPED).unwrap();
    let mut rng = Rng::new(11);
    let mut requests = Vec::new();
    for (value, seen) in
        [(URL, mapped), (ENCODED, ENCODED_MAPPED), (b"kas.example.com:443", "kas.example.com:443")]
    {
        for huffman in [false, true] {
            for authority in [literal(0x41, value, huffman), field(0x40, b":authority", value, huffman)] {
                let block = [&PSEUDO[..], &authority].concat();
                let fat = [&block[..], &field(0x00, b"x-fat", &[b'f'; 8_000], false)].concat();
                for (block, padding, priority, continuations) in [
                    (&block, None, false, 0),
                    (&block, Some(200), false, 0),
                    (&block, None, true, 0),
                    (&block, Some(0), true, 3),
                    (&fat, Some(9), false, 5),
                ] {
                    let stream = requests.len() as u32 * 2 + 1;
                    let shape = Shape { padding, priority, continuations };
                    requests.push((shaped(stream, block, shape, &mut rng), seen));
                }
                // What was literal before comes from the table now; it holds what h2 was given.
                let stream = requests.len() as u32 * 2 + 1;
                requests.push((headers(stream, &[&PSEUDO[..], &[0xbe]].concat()), seen));
            }
        }
    }
    requests
}

fn joined(requests: &[(Vec<u8>, &'static str)]) -> Vec<u8> {
    opening(&requests.iter().map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>())
}

async fn run(bytes: &[u8], count: usize, filtered: bool) -> BTreeMap<u32, Outcome> {
    let (dialled, accepted) = duplex(64 * 1024);
    let listener = WsStream::listener(accepted, &b""[..], None);
    let client = outcomes(bytes, count, WsStream::dialler(dialled, &b""[..]));
    let both = async {
        if filtered {
            tokio::join!(client, serve(AuthorityFilter::new(listener))).0
        } else {
            tokio::join!(client, serve(listener)).0
        }
    };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("an outcome for each request")
}

#[tokio::test]
async fn every_form_of_a_url_as_authority_is_served() {
    let requests = requests();
    let outcomes = run(&joined(&requests), requests.len(), true).await;
    for (turn, (_, seen)) in requests.iter().enumerate() {
        let outcome = &outcomes[&(turn as u32 * 2 + 1)];
        assert_eq!(*outcome, Outcome::Served { authority: (*seen).to_owned() }, "request {turn}");
    }
}

#[tokio::test]
async fn without_the_filter_all_of_these_are_reset() {
    let requests = requests();
    let outcomes = run(&joined(&requests), requests.len(), false).await;
    for (turn, (_, seen)) in requests.iter().enumerate() {
        let outcome = &outcomes[&(turn as u32 * 2 + 1)];
        if seen.starts_with("kas") {
            assert!(matches!(outcome, Outcome::Served { .. }), "request {turn}");
        } else {
            assert_eq!(*outcome, Outcome::Reset { code: 1 }, "request {turn}");
        }
    }
}
