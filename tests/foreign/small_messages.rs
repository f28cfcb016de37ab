//! The trap of small messages: HTTP/2 libraries end a connection on which thousands of small frames lie unread, and
//! everybody on it goes down. Here they come by tens of thousands, in both directions, beside a reader that stopped.

use super::tunnel::Agent;
use crate::harness::{
    Field, PATIENCE,
    http::{self, Body, full},
    within,
};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyDataStream, BodyExt, StreamBody};
use hyper::{
    Response,
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const SMALL: usize = 20;
const MANY: usize = 20_000;
/// Samples, 10 ms apart, that must agree before a stream counts as stalled.
const STILL: usize = 50;

/// More than all buffers between an agent and a caller hold together.
const ENOUGH: u64 = 256 * 1024 * 1024;
const LARGE: usize = 32 * 1024;
const SMALL_AFTER_LARGE: usize = 500;
/// More than the HTTP/2 windows between an agent and the broker.
const ROOM: u64 = 2 * 1024 * 1024;
const MIXED: u64 = (LARGE + SMALL_AFTER_LARGE * SMALL) as u64;
/// In an unoptimised build, with all the buffers of four sockets to fill.
const FILLED: Duration = Duration::from_secs(120);

/// A large piece to fill buffers, then small ones, which lie unread between others like it once all stands still.
fn mixed() -> impl Iterator<Item = Bytes> + Clone + Send + Sync {
    let small = std::iter::repeat_n(Bytes::from_static(&[b's'; SMALL]), SMALL_AFTER_LARGE);
    std::iter::once(Bytes::from(vec![b'L'; LARGE])).chain(small)
}

/// Waits until a counter has stopped growing.
async fn until_stalled(what: &str, counter: &AtomicU64) -> u64 {
    let (mut last, mut same) = (0, 0);
    within(FILLED, what, async || {
        let now = counter.load(Ordering::SeqCst);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (now > 0 && same >= STILL).then_some(now)
    })
    .await
}

/// The length of the next piece of an answer's body.
async fn next(body: &mut BodyDataStream<Incoming>) -> Option<u64> {
    let piece = timeout(PATIENCE, body.next()).await.expect("it flows")?;
    Some(piece.expect("no error").len() as u64)
}

async fn length(response: Response<Incoming>) -> u64 {
    let mut body = response.into_body().into_data_stream();
    let mut length = 0;
    while let Some(piece) = next(&mut body).await {
        length += piece;
    }
    length
}

#[tokio::test]
async fn twenty_thousand_small_messages_of_an_agent_pass_beside_a_reader_that_stopped() {
    let field = super::field_without_agent().await;
    let agent = Agent::connect(&field).await;

    // Large messages fill all buffers quickly.
    let mut tunnel = agent.open().await;
    let mut stalled = http::Client::new(&field).await;
    let (sent, smaller, enough) =
        (Arc::new(AtomicU64::new(0)), CancellationToken::new(), CancellationToken::new());
    let (counter, small_now, stop) = (sent.clone(), smaller.clone(), enough.clone());
    let flood = tokio::spawn(async move {
        assert_eq!(tunnel.begin().await, "/stalled");
        let (large, small) = (Bytes::from(vec![b'L'; LARGE]), Bytes::from_static(&[b's'; SMALL]));
        while counter.load(Ordering::SeqCst) < ENOUGH && !stop.is_cancelled() {
            let piece = if small_now.is_cancelled() { &small } else { &large };
            tunnel.data(piece.clone()).await;
            counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        tunnel.finish().await
    });
    let mut unread = stalled.send("GET", "/stalled", full("")).await.into_body().into_data_stream();
    let full_at = until_stalled("the stalled answer fills every buffer", &sent).await;
    // Room for small messages only, which then fill the windows of every hop, unread.
    smaller.cancel();
    let mut read = 0;
    while read < ROOM {
        read += next(&mut unread).await.expect("there is more");
    }
    let waiting = until_stalled("small messages fill it again", &sent).await;
    println!("the answer that nobody reads stopped after {full_at}, then after {waiting} bytes");
    assert!(full_at < waiting && waiting < ENOUGH);

    let start = Instant::now();
    let mut tunnel = agent.open().await;
    let mut caller = http::Client::new(&field).await;
    let serving = tokio::spawn(async move {
        tunnel.begin().await;
        for _ in 0..MANY {
            tunnel.data(Bytes::from_static(&[b'm'; SMALL])).await;
        }
        tunnel.finish().await
    });
    let response = caller.send("GET", "/many", full("")).await;
    assert_eq!(length(response).await, (MANY * SMALL) as u64);
    serving.await.expect("served").expect("the tunnel ends with OK");
    println!("{MANY} messages of {SMALL} bytes took {:?}", start.elapsed());

    // Nobody lost the connection, and the stalled answer is whole as well.
    enough.cancel();
    while let Some(piece) = next(&mut unread).await {
        read += piece;
    }
    flood.await.expect("it was sent").expect("the tunnel ends with OK");
    assert_eq!(read, sent.load(Ordering::SeqCst));
    assert_eq!(agent.dials(), 1, "the connection was lost");
    assert!(field.edge.lines().iter().all(|line| line["fault"] != "upstream"), "{}", field.edge.text());
}

/// A body of these pieces; counts what was taken from it.
fn body_of(pieces: impl Iterator<Item = Bytes> + Send + Sync + 'static, taken: Arc<AtomicU64>) -> Body {
    let pieces = pieces.map(move |piece| {
        taken.fetch_add(piece.len() as u64, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Frame::data(piece))
    });
    BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces)))
}

#[tokio::test]
async fn twenty_thousand_small_messages_to_an_agent_pass_beside_a_cluster_that_stopped_reading() {
    let field = Field::start().await;
    let connections = agent_connections(&field).await;
    let sent = Arc::new(AtomicU64::new(0));
    let pattern = mixed().cycle().take((ENOUGH / MIXED) as usize * (1 + SMALL_AFTER_LARGE));
    let request = http::Client::new(&field).await.request("POST", "/never-reads?seconds=600");
    let request = request.body(body_of(pattern, sent.clone())).expect("a request");
    let io = TokioIo::new(http::connect(&field, &[b"http/1.1"]).await);
    let (mut stalled, connection) = http1::handshake(io).await.expect("handshake");
    let connection = tokio::spawn(connection);
    let stalled = tokio::spawn(async move { stalled.send_request(request).await });
    let waiting = until_stalled("the stalled body fills every buffer", &sent).await;
    println!("the body that nobody reads stopped after {waiting} bytes");
    assert!(waiting < ENOUGH);

    let start = Instant::now();
    let mut caller = http::Client::new(&field).await;
    let pieces = std::iter::repeat_n(Bytes::from_static(&[b'c'; SMALL]), MANY);
    let response = caller.send("POST", "/sink", body_of(pieces, Arc::default())).await;
    assert_eq!(response.status(), 200);
    let answer = response.into_body().collect().await.expect("whole").to_bytes();
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["length"], MANY * SMALL, "{answer}");
    println!("{MANY} chunks of {SMALL} bytes took {:?}", start.elapsed());
    assert_eq!(agent_connections(&field).await, connections, "the agent had to dial again");
    assert!(!stalled.is_finished(), "the stalled request was cut");
    // What lies unread hides that the caller leaves, so nothing is asked about that here.
    stalled.abort();
    connection.abort();
    assert_eq!(http::Client::new(&field).await.get("/version").await.0, 200);
}

/// Connections the agent has made so far.
async fn agent_connections(field: &Field) -> i64 {
    super::metric(field.addresses.agent_probes, "agentk_broker_connections_total").await.expect("a number")
}
