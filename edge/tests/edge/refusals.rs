//! Refusals: tokens, limits, bad input, brokers that are gone.

use crate::clients::{call, echo, grpc, h2, tcp, tls, websocket};
use crate::harness::{Edge, Setup, exchange, status, token};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn grpc_without_a_token_is_unauthenticated_and_never_reaches_a_broker() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(websocket(tcp(edge.plain).await).await).await;
    let (code, message) = call(&client, grpc(TUNNEL, None)).await.status().await;
    assert_eq!(code, 16, "{message}");
    assert!(message.contains("no agent token"), "{message}");
    assert!(agents.seen.lock().unwrap().is_empty());
    let line = edge.access(|line| line["refused"] == "no_token").await;
    assert_eq!((&line["grpc_status"], &line["fault"]), (&16.into(), &"downstream".into()));
}

#[tokio::test]
async fn a_token_over_its_limit_is_refused_in_the_callers_language() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::start(Setup {
        agents: vec![agents.address],
        kubernetes_api: vec![api.address],
        more: "limits: {requests_per_token_per_minute: 3}",
    })
    .await;
    let client = h2(tcp(edge.plain).await).await;
    for _ in 0..3 {
        echo(&client, &token("agent")).await;
    }
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await.status().await;
    assert_eq!(code, 8);
    assert_eq!(message, "new connection rate limit exhausted for this agent, try again later");
    echo(&client, &token("another")).await;

    let get = format!(
        "GET /api HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        token("ci:1")
    );
    for _ in 0..3 {
        assert_eq!(status(&exchange(edge.plain, get.as_bytes()).await), 200);
    }
    let answer = exchange(edge.plain, get.as_bytes()).await;
    assert_eq!(status(&answer), 429, "{answer}");
    let lower = answer.to_ascii_lowercase();
    let retry: u64 =
        lower.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap().parse().unwrap();
    assert!((1..=20).contains(&retry), "{retry}");
    assert!(answer.contains("\"kind\":\"Status\"") && answer.contains("TooManyRequests"), "{answer}");
    let metrics = edge.probe("/metrics", 200).await;
    assert!(metrics.contains("postern_edge_refusals_total{reason=\"rate_limit\"} 2"), "{metrics}");
}

#[tokio::test]
async fn re_arming_tunnels_costs_nothing_once_the_connection_is_paid_for() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::start(Setup {
        agents: vec![agents.address],
        kubernetes_api: vec![api.address],
        more: "limits: {requests_per_token_per_minute: 1, burst: 1}",
    })
    .await;
    let token = token("agent");
    let client = h2(tcp(edge.plain).await).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut tunnel = call(&client, grpc(TUNNEL, Some(&token))).await;
        tunnel.send(b"descriptor").await;
        assert_eq!(tunnel.read(10).await, b"descriptor");
        open.push(tunnel);
    }
    // Another call of the same token, and another connection, do cost.
    assert_eq!(call(&client, grpc("/echo.Echo/Echo", Some(&token))).await.status().await.0, 8);
    let second = h2(tcp(edge.plain).await).await;
    assert_eq!(call(&second, grpc(TUNNEL, Some(&token))).await.status().await.0, 8);
}

#[tokio::test]
async fn a_broker_that_dies_mid_stream_is_unavailable_and_the_next_one_is_not() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(websocket(tls(&edge, &[]).await).await).await;
    let mut stream = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    stream.send(b"x").await;
    stream.read(1).await;
    agents.kill();
    let (code, message) = stream.status().await;
    assert_eq!(code, 14, "{message}");
    let line = edge.access(|line| line["fault"] == "upstream").await;
    assert_eq!(line["grpc_status"], 14);

    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await.status().await;
    assert_eq!(code, 14);
    assert!(
        message.contains(&agents.address.to_string()) && message.contains("upstreams.agents"),
        "{message}"
    );
    edge.probe("/readiness", 503).await;
}

#[tokio::test]
async fn a_kubernetes_caller_is_told_which_broker_is_gone() {
    let gone = nobody();
    let edge = Edge::start(Setup { agents: vec![nobody()], kubernetes_api: vec![gone], more: "" }).await;
    let answer = exchange(edge.plain, b"GET /api HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("\"reason\":\"ServiceUnavailable\"") && answer.contains(&gone.to_string()),
        "{answer}"
    );
    assert!(answer.contains("upstreams.kubernetes_api"), "{answer}");
}

#[tokio::test]
async fn an_edge_without_kubernetes_upstream_says_so() {
    let agents = Agents::start().await;
    let edge = Edge::start(Setup { agents: vec![agents.address], ..Setup::default() }).await;
    let answer = exchange(edge.plain, b"GET /api HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(status(&answer), 404, "{answer}");
    assert!(answer.contains("upstreams.kubernetes_api is not configured"), "{answer}");
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer_and_the_process_lives() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::start(Setup {
        agents: vec![agents.address],
        kubernetes_api: vec![api.address],
        more: "timeouts: {head: 300ms, handshake: 300ms}",
    })
    .await;

    let answer = exchange(edge.plain, b"\x00\x01\x02 what is this\r\n\r\n").await;
    assert_eq!(status(&answer), 400, "{answer}");
    let answer = exchange(edge.plain, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    assert!(answer.contains("TLS handshake on a port without TLS"), "{answer}");
    let answer = exchange(edge.tls, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(answer.contains("this port speaks TLS"), "{answer}");
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(70_000));
    assert_eq!(status(&exchange(edge.plain, long.as_bytes()).await), 431);
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: a\r\n".repeat(200));
    assert_eq!(status(&exchange(edge.plain, many.as_bytes()).await), 431);
    // The deadline is for the whole head.
    assert_eq!(status(&exchange(edge.plain, b"GET / HTTP/1.1\r\nHost: h\r\n").await), 408);
    // TLS that stops in the middle of its handshake.
    assert_eq!(exchange(edge.tls, b"\x16\x03\x01\x02\x00\x01").await, "");
    let two_hosts = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    assert_eq!(status(&exchange(edge.plain, two_hosts).await), 400);
    // gRPC that lost its HTTP/2 on the way.
    let downgraded =
        b"POST /a.B/C HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(status(&exchange(edge.plain, downgraded).await), 426);
    // A preface, and then no HTTP/2.
    exchange(edge.plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand then junk that is long enough for a frame")
        .await;

    edge.line(|line| line["level"] == "DEBUG" && line["error"].as_str().is_some_and(|e| e.contains("TLS")))
        .await;
    edge.assert_alive();
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
}

#[tokio::test]
async fn an_agent_with_the_wrong_subprotocol_is_told_inside_the_websocket() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let mut io = tcp(edge.plain).await;
    io.write_all(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
    )
    .await
    .unwrap();
    let (head, mut rest) = read_head(&mut io).await.unwrap();
    assert_eq!(status(&head), 101);
    io.read_to_end(&mut rest).await.unwrap();
    // Close, code 1002.
    assert_eq!((rest[0], &rest[2..4]), (0x88, &1002u16.to_be_bytes()[..]));
    assert!(String::from_utf8_lossy(&rest).contains("ws-tunnel"));
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_and_is_its_own_fault() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(tcp(edge.plain).await).await;
    let mut stream = call(&client, grpc("/left.Left/Left", Some(&token("agent")))).await;
    stream.send(b"x").await;
    stream.read(1).await;
    stream.out.send_reset(h2::Reason::CANCEL);
    let line = edge.access(|line| line["method"] == "/left.Left/Left").await;
    assert_eq!(line["fault"], "downstream");
    echo(&client, &token("agent")).await;
}
