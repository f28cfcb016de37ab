//! The trap of small messages: HTTP/2 libraries end a connection on which thousands of small frames lie unread, and
//! everybody on it goes down. Here they come by tens of thousands, in both directions, beside a reader that stopped.

use super::tunnel::Agent;
use crate::harness::{
    Field, PATIENCE,
    http::{self, Body, full},
    until,
};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Response, body::Frame, body::Incoming};
use serde_json::Value;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::time::{Instant, timeout};

const SMALL: usize = 20;
const MANY: usize = 20_000;
/// Samples, 10 ms apart, that must agree before a stream counts as stalled.
const STILL: usize = 50;

/// More than all buffers between an agent and a caller hold together.
const ENOUGH: u64 = 256 * 1024 * 1024;

/// Waits until a counter has stopped growing.
async fn until_stalled(what: &str, counter: &AtomicU64) -> u64 {
    let (mut last, mut same) = (0, 0);
    until(what, async || {
        let now = counter.load(Ordering::SeqCst);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (now > 0 && same >= STILL).then_some(now)
    })
    .await
}

async fn length(response: Response<Incoming>) -> u64 {
    let mut body = response.into_body().into_data_stream();
    let mut length = 0;
    while let Some(piece) = timeout(PATIENCE, body.next()).await.expect("it flows") {
        length += piece.expect("no error").len() as u64;
    }
    length
}

#[tokio::test]
async fn twenty_thousand_small_messages_of_an_agent_pass_beside_a_reader_that_stopped() {
    let field = super::field_without_agent().await;
    let agent = Agent::connect(&field).await;

    // Large messages to fill every buffer, and between them small ones that then lie there unread.
    let mut tunnel = agent.open().await;
    let mut stalled = http::Client::new(&field).await;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let flood = tokio::spawn(async move {
        assert_eq!(tunnel.begin().await, "/stalled");
        let (large, small) = (Bytes::from(vec![b'L'; 32 * 1024]), Bytes::from_static(&[b's'; SMALL]));
        let mut total = 0;
        while total < ENOUGH && counter.load(Ordering::SeqCst) != u64::MAX {
            for piece in [&large].into_iter().chain(std::iter::repeat_n(&small, 200)) {
                tunnel.data(piece.clone()).await;
                total += piece.len() as u64;
                // `u64::MAX` asks for an end.
                let _ = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
                    (now != u64::MAX).then_some(total)
                });
            }
        }
        tunnel.finish().await.expect("OK");
        total
    });
    let unread = stalled.send("GET", "/stalled", full("")).await;
    let waiting = until_stalled("the stalled answer fills every buffer", &sent).await;
    println!("the answer that nobody reads stopped after {waiting} bytes");
    assert!(waiting < ENOUGH);

    let start = Instant::now();
    for round in 0..3 {
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
        assert_eq!(length(response).await, (MANY * SMALL) as u64, "round {round}");
        serving.await.expect("served").expect("the tunnel ends with OK");
    }
    println!("3 times {MANY} messages of {SMALL} bytes took {:?}", start.elapsed());

    // Nobody lost the connection, and the stalled answer is whole as well.
    sent.store(u64::MAX, Ordering::SeqCst);
    let read = length(unread).await;
    assert_eq!(read, flood.await.expect("it was sent"));
    assert_eq!(agent.dials(), 1, "the connection was lost");
    assert!(field.edge.lines().iter().all(|line| line["fault"] != "upstream"), "{}", field.edge.text());
}

fn small_chunks(count: usize, sent: Arc<AtomicU64>) -> Body {
    let pieces = (0..count).map(move |_| {
        sent.fetch_add(SMALL as u64, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[b'c'; SMALL])))
    });
    BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces)))
}

#[tokio::test]
async fn twenty_thousand_small_messages_to_an_agent_pass_beside_a_cluster_that_stopped_reading() {
    let field = Field::start().await;
    let connections = agent_connections(&field).await;
    // Small chunks until nothing moves any more: all of them lie unread in the agent.
    let sent = Arc::new(AtomicU64::new(0));
    let mut stalled = http::Client::new(&field).await;
    let request = stalled.request("POST", "/never-reads?seconds=120");
    let request = request.body(small_chunks(ENOUGH as usize / SMALL, sent.clone())).expect("a request");
    let stalled = tokio::spawn(async move { stalled.raw_for_long(request).await });
    let waiting = until_stalled("the stalled body fills every buffer", &sent).await;
    println!("the body that nobody reads stopped after {waiting} bytes in chunks of {SMALL}");
    assert!(waiting < ENOUGH);

    let start = Instant::now();
    for _ in 0..3 {
        let mut caller = http::Client::new(&field).await;
        let body = small_chunks(MANY, Arc::default());
        let response = caller.send("POST", "/sink", body).await;
        assert_eq!(response.status(), 200);
        let answer = response.into_body().collect().await.expect("whole").to_bytes();
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["length"], MANY * SMALL, "{answer}");
    }
    println!("3 times {MANY} chunks of {SMALL} bytes took {:?}", start.elapsed());
    assert_eq!(agent_connections(&field).await, connections, "the agent had to dial again");
    assert!(!stalled.is_finished(), "the stalled request was cut");
    stalled.abort();
    until("the cluster sees the caller leave", async || (field.api().open_of("never-reads") == 0).then_some(())).await;
}

/// Connections the agent has made so far.
async fn agent_connections(field: &Field) -> i64 {
    super::metric(field.addresses.agent_probes, "agentk_broker_connections_total").await.expect("a number")
}
