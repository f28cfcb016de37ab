//! Floods: who sends one is ended, and waits before it is served again; who has a connection already, or another
//! address, does not.

use crate::clients::{Wire, tcp, websocket};
use crate::frames::{Client, GOAWAY, PING, frame};
use crate::harness::{DEADLINE, Edge, Setup, exchange, get, until};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// ENHANCE_YOUR_CALM.
const CALM: u32 = 11;

async fn edge(agents: SocketAddr, api: SocketAddr, more: &'static str) -> Edge {
    Edge::start(Setup { agents: vec![agents], kubernetes_api: vec![api], more }).await
}

async fn from(address: Ipv4Addr, edge: &Edge) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(edge.plain).await.unwrap()
}

/// Connections that wait for what others of their address did.
async fn waiting(edge: &Edge) -> u64 {
    let stats: serde_json::Value = serde_json::from_str(&get(edge.admin, "/stats").await.1).unwrap();
    stats["limits"]["addresses"]["waiting"].as_u64().unwrap()
}

/// Pings until it is ended.
async fn flood(io: impl Wire) -> u32 {
    let mut client = Client::new(io);
    client.greet().await.unwrap();
    client.send(&frame(PING, 0, 0, b"flooding").repeat(1_500)).await;
    let code = client.find("GOAWAY", |frame| frame.kind == GOAWAY).await.unwrap().code();
    client.close().await.unwrap();
    code
}

#[tokio::test]
async fn an_address_that_flooded_waits_before_it_is_served_again_and_nobody_else_does() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = edge(agents.address, api.address, "limits: {flood_wait: 3s}").await;
    let mut open = Client::new(from(FLOODER, &edge).await);
    open.greet().await.unwrap();
    let begin = Instant::now();
    assert_eq!(flood(from(FLOODER, &edge).await).await, CALM);
    let mut again = Client::new(from(FLOODER, &edge).await);
    let mut other = Client::new(tcp(edge.plain).await);
    tokio::select! {
        biased;
        _ = again.greet() => assert!(begin.elapsed() >= Duration::from_secs(3), "it did not wait"),
        greeted = other.greet() => greeted.unwrap(),
    }
    // It was taken in, perhaps by a slower worker.
    until("it waits", async || {
        (waiting(&edge).await == 1 || begin.elapsed() >= Duration::from_secs(3)).then_some(())
    })
    .await;
    open.alive().await.unwrap();
    again = Client::new(from(FLOODER, &edge).await);
    again.greet().await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn where_addresses_are_hidden_nobody_need_wait() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = edge(agents.address, api.address, "limits: {flood_wait: 0s}").await;
    let begin = Instant::now();
    for _ in 0..40 {
        // Ten seconds and more with the default.
        assert_eq!(flood(tcp(edge.plain).await).await, CALM);
    }
    assert_eq!(flood(websocket(tcp(edge.plain).await).await).await, CALM);
    assert!(begin.elapsed() < DEADLINE);
    assert_eq!(waiting(&edge).await, 0);
}

#[tokio::test]
async fn websocket_frames_that_carry_next_to_nothing_are_ended_with_1008() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = edge(agents.address, api.address, "limits: {flood_wait: 0s}").await;
    let (ping, empty) = ([0x89, 0x80, 0, 0, 0, 0], [0x00, 0x80, 0, 0, 0, 0]);
    for (begin, one, least) in [
        (Vec::new(), ping.to_vec(), 1_000),
        // A message without end.
        (vec![0x02, 0x80, 0, 0, 0, 0], [empty, ping].concat(), 499),
    ] {
        let mut io = tcp(edge.plain).await;
        let upgrade = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Protocol: ws-tunnel\r\n\r\n";
        io.write_all(upgrade.as_bytes()).await.unwrap();
        let (_, ahead) = read_head(&mut io).await.expect("an answer");
        let (read, mut write) = io.into_split();
        let mut read = std::io::Cursor::new(ahead).chain(read);
        let closed = tokio::time::timeout(DEADLINE, async {
            let mut pongs = 0;
            write.write_all(&[begin, one.clone()].concat()).await.unwrap();
            loop {
                let [first, length] = read.read_u16().await.unwrap().to_be_bytes();
                let mut payload = vec![0; length.into()];
                read.read_exact(&mut payload).await.unwrap();
                match first {
                    0x88 => return (u16::from_be_bytes([payload[0], payload[1]]), pongs),
                    0x8a => pongs += 1,
                    // SETTINGS.
                    _ => continue,
                }
                // One after the other, so that nothing is on its way when the edge closes.
                write.write_all(&one).await.unwrap();
            }
        });
        let (code, pongs) = closed.await.expect("not closed");
        assert_eq!(code, 1008);
        assert!((least..10 * least).contains(&pongs), "{pongs}");
    }
}

#[tokio::test]
async fn an_address_opens_so_many_connections_a_minute() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let limits = "limits: {connections_per_ip_per_minute: 1, connections_per_ip_burst: 2}";
    let edge = edge(agents.address, api.address, limits).await;
    let ask = b"GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    assert!(exchange(edge.plain, ask).await.starts_with("HTTP/1.1"));
    assert!(exchange(edge.plain, ask).await.starts_with("HTTP/1.1"));
    let mut third = tcp(edge.plain).await;
    // Perhaps it is closed before that.
    let _ = third.write_all(ask).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, third.read_to_end(&mut answer)).await.expect("not closed");
    assert!(answer.is_empty(), "{answer:?}");
    let metrics = get(edge.admin, "/metrics").await.1;
    assert!(metrics.contains("reason=\"connection_rate_ip\"} 1"), "{metrics}");
    let mut other = Client::new(from(FLOODER, &edge).await);
    other.greet().await.unwrap();
}
