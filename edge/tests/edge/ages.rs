//! Ages: connections that are told to leave, one after the other.

use crate::clients::{call, echo, grpc, h2, tcp, tls, websocket};
use crate::frames::{END_HEADERS, HEADERS, PREFACE, Road, SETTINGS, frame};
use crate::harness::{DEADLINE, Edge, Setup, get, token, until};
use crate::upstreams::{Agents, KubernetesApi};
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";
/// A whole frame: Close 1001 "Shutting down".
const GOING_AWAY: &[u8] = b"\x88\x0f\x03\xe9Shutting down";

/// Keeps what was read.
pub(crate) struct Tap<S> {
    pub(crate) io: S,
    pub(crate) read: Arc<Mutex<Vec<u8>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.read.lock().unwrap().extend_from_slice(&buf.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

async fn started(agents: &Agents, api: &KubernetesApi, more: &'static str) -> Edge {
    Edge::start(Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more }).await
}

/// Waits for the Close.
async fn closed(read: &Mutex<Vec<u8>>) {
    until("Close 1001", async || read.lock().unwrap().ends_with(GOING_AWAY).then_some(())).await;
}

#[tokio::test]
async fn an_old_websocket_is_told_goes_on_with_what_runs_and_is_closed_with_1001() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let more = "connections: {max_age: 6s, max_age_jitter_percent: 0, grace: 2s}";
    let mut edge = started(&agents, &api, more).await;
    let begin = Instant::now();
    let read = Arc::default();
    let io = Tap { io: tls(&edge, &[]).await, read: Arc::clone(&read) };
    let client = h2(websocket(io).await).await;
    let mut busy = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    edge.line(|line| line["message"] == "told to leave" && line["why"] == "age").await;
    // New streams go elsewhere, this one goes on.
    let refused = async {
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("no GOAWAY");
    busy.send(b"still here").await;
    assert_eq!(busy.read(10).await, b"still here");
    closed(&read).await;
    assert!(begin.elapsed() >= Duration::from_secs(8), "cut before its grace was over");
    // The client did not leave: it was sent away.
    let line = edge.access(|line| line["method"] == "/echo.Echo/Echo").await;
    assert_eq!((line["fault"].as_str(), line["error"].as_str()), (Some("internal"), Some("age")), "{line}");
    edge.assert_alive();
    // Whoever dials again is welcome.
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
    assert!(get(edge.admin, "/metrics").await.1.contains("postern_edge_departures_total{reason=\"age\"} "));
}

#[tokio::test]
async fn a_drain_closes_a_websocket_with_1001_and_does_not_wait_for_its_idle_tunnels() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = started(&agents, &api, "").await;
    let read = Arc::default();
    // A client that is told to leave does so by itself, perhaps before the Close; this one only listens.
    let mut io = websocket(Tap { io: tcp(edge.plain).await, read: Arc::clone(&read) }).await;
    let tunnel = Road::Relay.fields().set(":path", TUNNEL).block();
    let opened = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &tunnel)].concat();
    io.write_all(&opened).await.unwrap();
    io.flush().await.unwrap();
    tokio::spawn(async move { tokio::io::copy(&mut io, &mut tokio::io::sink()).await });
    until("the tunnel is open", async || (!agents.seen.lock().unwrap().is_empty()).then_some(())).await;
    edge.signal("TERM");
    closed(&read).await;
    // Its tunnels would have a minute.
    assert_eq!(edge.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_old_http1_connection_is_closed_between_two_requests() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = started(&agents, &api, "connections: {max_age: 6s, max_age_jitter_percent: 0}").await;
    let begin = Instant::now();
    let mut tcp = tcp(edge.plain).await;
    tcp.write_all(b"GET /nowhere HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer ci:1:x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer)).await;
    ended.expect("the connection stays").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&answer));
    assert!(begin.elapsed() >= Duration::from_millis(5900), "closed at once: {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_drain_tells_connections_at_its_pace() {
    const COUNT: usize = 90;
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let more = "drain: {connections_per_second: 50, grace: 30s}\nworkers: 2";
    let mut edge = started(&agents, &api, more).await;
    let mut clients = Vec::new();
    let mut tunnels = Vec::new();
    for index in 0..COUNT {
        let client = h2(tcp(edge.plain).await).await;
        tunnels.push(call(&client, grpc(TUNNEL, Some(&token(&format!("agent-{index}"))))).await);
        clients.push(client);
    }
    let begin = Instant::now();
    edge.signal("TERM");
    // Every tunnel ends with its connection, half a second after that was told.
    let ends = tunnels.into_iter().map(|mut tunnel| {
        tokio::spawn(async move {
            while let Some(Ok(_)) = tunnel.response.body_mut().data().await {}
            begin.elapsed()
        })
    });
    let mut ended = Vec::new();
    for end in ends.collect::<Vec<_>>() {
        ended.push(tokio::time::timeout(DEADLINE, end).await.expect("a tunnel stays").unwrap());
    }
    assert_eq!(edge.ended().await.code(), Some(0));
    let slots = ended.iter().map(|at| at.as_millis() as usize / 100).max().unwrap() + 1;
    let mut curve = vec![0; slots];
    ended.iter().for_each(|at| curve[at.as_millis() as usize / 100] += 1);
    println!("connections ended in each 100 ms at 50 per second: {curve:?}");
    // What a busy machine delays and bundles is no burst of ours; the exact rate is tested beside the code.
    ended.sort_unstable();
    let early = ended.iter().zip(1..).find(|(at, nth)| **at < Duration::from_millis(nth * 20));
    assert!(early.is_none(), "faster than the rate: {early:?} in {curve:?}");
}

#[tokio::test]
async fn who_says_hello_and_then_nothing_more_is_closed_though_it_confirms_nothing() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = started(&agents, &api, "timeouts: {idle: 300ms}").await;
    let mut tcp = tcp(edge.plain).await;
    tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let mut read = Vec::new();
    tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut read)).await.expect("it stays").unwrap();
    edge.idle().await;
}
