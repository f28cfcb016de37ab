//! Roads: every way in, and what arrives at the broker.

use crate::clients::{self, call, echo, echo_with_authority, grpc, h2, tcp, tls, websocket};
use crate::harness::{DEADLINE, Edge, Setup, exchange, status, token};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use bytes::Bytes;
use http::Request;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn grpc_is_served_over_h2c_tls_and_both_websockets() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let token = token("agent");

    echo(&h2(tcp(edge.plain).await).await, &token).await;
    assert_eq!(agents.last().uri().authority().unwrap(), "kas.example.com");
    echo(&h2(tls(&edge, &[b"h2"]).await).await, &token).await;
    echo(&h2(websocket(tcp(edge.plain).await).await).await, &token).await;
    echo(&h2(websocket(tls(&edge, &[b"http/1.1"]).await).await).await, &token).await;

    let line = edge.access(|line| line["method"] == "/echo.Echo/Echo").await;
    assert_eq!(line["grpc_status"], 0);
    assert_eq!(line["fault"], "none");
    assert_eq!(line["bytes_in"], 5);
    let metrics = edge.probe("/metrics", 200).await;
    for kind in ["http2", "websocket"] {
        assert!(
            metrics.contains(&format!("postern_edge_accepted_total{{kind=\"{kind}\",tls=\"true\"}} 1")),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn an_agent_that_sends_its_whole_url_as_authority_is_served() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    for authority in
        ["wss://kas.example.com/-/kubernetes-agent/", "wss:%2F%2Fkas.example.com%2F-%2Fkubernetes-agent%2F"]
    {
        let token = token("agent");
        let ws = websocket(tcp(edge.plain).await).await;
        assert_eq!(echo_with_authority(ws, authority, &token, b"over ws").await, b"over ws");
        let wss = websocket(tls(&edge, &[]).await).await;
        assert_eq!(echo_with_authority(wss, authority, &token, b"over wss").await, b"over wss");
        // The host that the WebSocket was opened to, not what the repaired URL became.
        assert_eq!(agents.last().uri().authority().unwrap(), "kas.example.com");
    }
}

#[tokio::test]
async fn headers_from_outside_are_not_believed() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(tls(&edge, &[b"h2"]).await).await;
    let mut request = grpc("/echo.Echo/Echo", Some(&token("agent")));
    for (name, value) in [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "evil"),
        ("x-postern-agent", "7"),
        ("kas-hop-routing-agent-id", "7"),
        ("x-gitlab-correlation-id", "abc"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut stream = call(&client, request).await;
    stream.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(stream.status().await.0, 0);
    let seen = agents.last();
    let headers = seen.headers();
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-gitlab-correlation-id"], "abc");
    for name in ["x-forwarded-host", "x-postern-agent", "kas-hop-routing-agent-id"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_kubernetes_request_reaches_the_broker_over_http_1_1_from_either_protocol() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;

    let request = Request::get("https://kas.example.com/api/v1/pods?limit=5")
        .header("authorization", token("ci:1"))
        .header("x-forwarded-for", "10.0.0.1")
        .body(())
        .unwrap();
    let mut client = h2(tls(&edge, &[b"h2", b"http/1.1"]).await).await.ready().await.unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let head = response.body_mut().data().await.unwrap().unwrap();
    let head = String::from_utf8(head.to_vec()).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /api/v1/pods?limit=5 http/1.1\r\n"), "{head}");
    assert!(head.contains("host: kas.example.com\r\n"), "{head}");
    assert!(head.contains("x-forwarded-for: 127.0.0.1\r\n") && !head.contains("10.0.0.1"), "{head}");

    // Two requests on one connection.
    let mut io = tls(&edge, &[b"http/1.1"]).await;
    for _ in 0..2 {
        io.write_all(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let (head, mut rest) = read_head(&mut io).await.unwrap();
        assert_eq!(status(&head), 200);
        while !rest.ends_with(b"\r\n\r\n") {
            assert!(io.read_buf(&mut rest).await.unwrap() > 0);
        }
    }
}

#[tokio::test]
async fn upgrades_of_both_kinds_carry_100_kb_there_and_back() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let payload: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    for (protocol, more) in [
        ("SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n"),
        (
            "websocket",
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
        ),
    ] {
        let io = tls(&edge, &[b"http/1.1"]).await;
        let (mut read, mut write) = tokio::io::split(io);
        let method = if protocol == "websocket" { "GET" } else { "POST" };
        let request = format!(
            "{method} /api/v1/namespaces/a/pods/b/exec?stdin=1 HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{more}\r\n",
            token("ci:1")
        );
        write.write_all(request.as_bytes()).await.unwrap();
        let (head, mut echoed) = read_head(&mut read).await.unwrap();
        assert_eq!(status(&head), 101, "{head}");
        let sent = payload.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write
        });
        while echoed.len() < payload.len() {
            let more =
                tokio::time::timeout(DEADLINE, read.read_buf(&mut echoed)).await.expect("stuck").unwrap();
            assert!(more > 0, "{protocol} ended after {}", echoed.len());
        }
        assert!(echoed == payload, "{protocol}");
        drop(writer.await.unwrap());
    }
}

#[tokio::test]
async fn twenty_thousand_small_messages_pass_beside_a_stalled_stream() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(websocket(tls(&edge, &[]).await).await).await;
    let token = token("agent");

    let mut stalled = call(&client, grpc("/stall", Some(&token))).await;
    let stalling = tokio::spawn(async move {
        // More than all the windows on the way together; it never gets through.
        stalled.send(&vec![0; 4 << 20]).await;
    });

    let stream = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    let clients::Call { mut out, response } = stream;
    let sending = tokio::spawn(async move {
        for n in 0..20_000u32 {
            let message = Bytes::copy_from_slice(&[n.to_be_bytes(); 5].concat());
            crate::upstreams::send_all(&mut out, message).await.unwrap();
        }
        out.send_data(Bytes::new(), true).unwrap();
    });
    let mut reading =
        clients::Call { out: call(&client, grpc("/echo.Echo/Echo", Some(&token))).await.out, response };
    let echoed = tokio::time::timeout(Duration::from_secs(60), reading.read(400_000)).await.expect("stuck");
    assert!(echoed.chunks(20).zip(0u32..).all(|(message, n)| message == [n.to_be_bytes(); 5].concat()));
    sending.await.unwrap();
    assert!(!stalling.is_finished());
    echo(&client, &token).await;
    stalling.abort();
}

#[tokio::test]
async fn megabytes_go_both_ways_at_once_on_one_stream() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(websocket(tls(&edge, &[]).await).await).await;
    let payload: Vec<u8> = (0..8_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let clients::Call { mut out, response } =
        call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    let sent = Bytes::from(payload.clone());
    let sending = tokio::spawn(async move {
        crate::upstreams::send_all(&mut out, sent).await.unwrap();
        out
    });
    let mut body = response.into_body();
    let mut echoed = Vec::new();
    while echoed.len() < payload.len() {
        let data = tokio::time::timeout(DEADLINE, body.data()).await.expect("stuck").unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        echoed.extend_from_slice(&data);
    }
    assert!(echoed == payload);
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_burst_of_streams_shares_few_connections_and_respects_the_brokers_limit() {
    for (limit, most) in [(1024, 4), (10, 40)] {
        let agents = Agents::admitting(limit).await;
        let edge = Edge::start(Setup { agents: vec![agents.address], ..Setup::default() }).await;
        let client = h2(tcp(edge.plain).await).await;
        // Each waits for its response's head, so none is parked behind another.
        let calls = (0..300).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await })
        });
        let mut open = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            open.push(call.await.unwrap());
        }
        let connections = agents.connections.load(std::sync::atomic::Ordering::Relaxed);
        assert!(connections <= most, "{connections} connections with a limit of {limit}");
    }
}

#[tokio::test]
async fn a_watch_ends_at_the_broker_when_its_client_leaves() {
    let (agents, mut api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;

    let client = h2(tls(&edge, &[b"h2"]).await).await;
    let request = Request::get("https://kas.example.com/api/v1/pods?watch=1").body(()).unwrap();
    let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "event\n");
    drop(response);
    let closed = tokio::time::timeout(DEADLINE, api.watches_closed.wait_for(|closed| *closed == 1)).await;
    drop(closed.expect("the broker was not told"));

    let mut io = tcp(edge.plain).await;
    io.write_all(b"GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let (head, _) = read_head(&mut io).await.unwrap();
    assert_eq!(status(&head), 200);
    drop(io);
    let closed = tokio::time::timeout(DEADLINE, api.watches_closed.wait_for(|closed| *closed == 2)).await;
    drop(closed.expect("the broker was not told"));
}

#[tokio::test]
async fn three_megabytes_are_uploaded_over_http_2() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(tls(&edge, &[b"h2"]).await).await;
    let request = Request::post("https://kas.example.com/api/v1/secrets")
        .header("content-length", 3_000_000)
        .body(())
        .unwrap();
    let (response, mut out) = client.ready().await.unwrap().send_request(request, false).unwrap();
    crate::upstreams::send_all(&mut out, Bytes::from(vec![7; 3_000_000])).await.unwrap();
    out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(tokio::time::timeout(DEADLINE, response).await.expect("stuck").unwrap().status(), 200);
    let line = edge.access(|line| line["method"] == "POST").await;
    assert_eq!((&line["bytes_in"], &line["fault"]), (&3_000_000.into(), &"none".into()));
}

#[tokio::test]
async fn another_broker_is_asked_when_the_first_cannot_be_reached() {
    let agents = Agents::start().await;
    // Bound and never accepted from would connect; closed refuses.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(Setup { agents: vec![gone, agents.address], ..Setup::default() }).await;
    let client = h2(tcp(edge.plain).await).await;
    for n in 0..8 {
        echo(&client, &token(&format!("agent-{n}"))).await;
    }
}

#[tokio::test]
async fn a_response_without_body_keeps_its_status_in_the_head() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(tcp(edge.plain).await).await;
    let mut stream = call(&client, grpc("/trailers-only", Some(&token("agent")))).await;
    assert_eq!(stream.response.headers()["grpc-status"], "5");
    let _ = stream.out.send_data(Bytes::new(), true);
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_answer_and_the_end() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let answer = exchange(edge.plain, b"GET /version HTTP/1.0\r\nHost: h\r\n\r\n").await;
    assert_eq!(status(&answer), 200, "{answer}");
}
