//! A caller's requests through edge, broker, tunnel and agent to the stand-in: streaming, upgrades, cancellation.

use crate::harness::{
    Field, PATIENCE,
    http::{Client, full},
    until,
};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

async fn counters(client: &mut Client) -> Value {
    serde_json::from_slice(&client.get("/debug/counters").await.1).expect("JSON")
}

#[tokio::test]
async fn objects_are_made_listed_and_deleted_through_the_tunnel() {
    let field = Field::start().await;
    let mut client = Client::new(&field).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let path = "/api/v1/namespaces/default/configmaps";
    let mut request = client.request("POST", path).body(full(map.to_string())).unwrap();
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let created = client.raw(request).await.unwrap();
    assert_eq!(created.status(), 201);
    created.into_body().collect().await.unwrap();
    let (status, body) = client.get(&format!("{path}/a")).await;
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["data"]["k"], "v");
    let deleted = client.send("DELETE", &format!("{path}/a"), full("")).await;
    assert_eq!(deleted.status(), 200);
    deleted.into_body().collect().await.unwrap();
    assert_eq!(client.get(&format!("{path}/a")).await.0, 404);
}

#[tokio::test]
async fn a_large_answer_arrives_whole_and_a_large_body_too() {
    let field = Field::start().await;
    let mut client = Client::new(&field).await;
    let (status, body) = client.get("/slow?bytes=3000000&chunk=65536").await;
    assert_eq!((status, body.len()), (200, 3_000_000));
    let pieces = (0..100).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![7u8; 30_000]))));
    let body = StreamBody::new(futures::stream::iter(pieces));
    let response = client.send("POST", "/sink", BodyExt::boxed(body)).await;
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["length"], 3_000_000);
}

#[tokio::test]
async fn a_watch_streams_and_ends_at_the_cluster_when_the_caller_leaves() {
    let field = Field::start().await;
    let mut client = Client::new(&field).await;
    let mut other = Client::new(&field).await;
    let mut response = client.send("GET", "/stream-forever", full("")).await;
    for _ in 0..3 {
        let frame =
            timeout(PATIENCE, response.frame()).await.expect("a tick").expect("open").expect("no error");
        assert!(frame.is_data());
    }
    assert!(field.api().open() >= 1);
    drop((response, client));
    until("the cluster sees the caller leave", async || {
        let _ = &mut other;
        (field.api().open_of("stream-forever") == 0).then_some(())
    })
    .await;
    let _ = counters(&mut other).await;
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let field = Field::start().await;
    let mut client = Client::new(&field).await;
    let request = client
        .request("GET", "/echo")
        .header("connection", "Upgrade")
        .header("upgrade", "postern-echo")
        .body(full(""))
        .unwrap();
    let response = client.raw(request).await.unwrap();
    assert_eq!(response.status(), 101, "{response:?}");
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    let sent: Vec<u8> = (0..1_000_000u32).map(|byte| byte as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut received = vec![0; expected.len()];
    timeout(PATIENCE, read.read_exact(&mut received)).await.expect("in time").unwrap();
    assert!(received == expected, "the echo differs");
    drop((writer.await.unwrap(), read));
}

#[tokio::test]
async fn fifty_at_a_time_for_ten_thousand_requests_without_an_error_beside_a_reader_that_stopped() {
    let field = Field::start().await;
    let mut stalled = Client::new(&field).await;
    let stalled_answer = stalled.send("GET", "/slow?bytes=50000000&chunk=65536", full("")).await;
    let start = tokio::time::Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut client = Client::new(&field).await;
        workers.spawn(async move {
            for _ in 0..200 {
                let (status, body) = client.get("/version").await;
                assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.expect("no request failed");
    }
    println!("10000 requests, 50 at a time, took {:?}", start.elapsed());
    drop(stalled_answer);
}

#[tokio::test]
async fn an_answer_that_stops_flowing_resumes_where_it_stopped() {
    let field = Field::start().await;
    let mut client = Client::new(&field).await;
    let response = client.send("GET", "/slow?bytes=8000000&chunk=65536", full("")).await;
    // Long enough for every buffer on the way to fill.
    let mut body = response.into_body().into_data_stream();
    let first = timeout(PATIENCE, body.next()).await.unwrap().unwrap().unwrap();
    let mut other = Client::new(&field).await;
    for _ in 0..20 {
        assert_eq!(other.get("/version").await.0, 200);
    }
    let mut length = first.len();
    while let Some(piece) = timeout(PATIENCE, body.next()).await.expect("flows again") {
        length += piece.expect("no error").len();
    }
    assert_eq!(length, 8_000_000);
}

#[tokio::test]
async fn an_agent_that_was_never_seen_is_reported_within_a_bounded_wait() {
    let field = Field::start().await;
    let mut client = Client::new(&field).await;
    let mut request = client.request("GET", "/version").body(full("")).unwrap();
    let bearer = field.bearer().replace("postern:7:", "postern:8:");
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    let start = tokio::time::Instant::now();
    let response = client.raw(request).await.unwrap();
    assert_eq!(response.status(), 503);
    // The three seconds after the broker's start count; after them the answer is immediate, and not after the twenty that an
    // agent is waited for which was there before.
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["kind"], "Status");
    assert!(status["message"].as_str().unwrap().contains("agent 8 has never connected"), "{status}");
}
