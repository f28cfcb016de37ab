//! Upstreams of every kind. Here: readiness, brokers that were stopped, limits of streams.

/// TLS and WebSockets towards brokers.
mod protocol;
/// DNS and EndpointSlices.
mod source;

use crate::clients::{call, echo, grpc, h2, tcp};
use crate::harness::{DEADLINE, Edge, exchange, token, until};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use bytes::Bytes;
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// What a broker's readiness says: a status, or nothing at all.
type Ready = watch::Sender<Option<u16>>;

async fn readiness(at: SocketAddr) -> (SocketAddr, Ready) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ready, now) = watch::channel(Some(200));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let now = now.clone();
            tokio::spawn(async move {
                let (head, _) = read_head(&mut tcp).await?;
                assert!(head.starts_with("GET /readiness HTTP/1.1\r\n"), "{head}");
                let status = *now.borrow();
                let Some(status) = status else { return std::future::pending().await };
                let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n");
                tcp.write_all(answer.as_bytes()).await.ok()
            });
        }
    });
    (address, ready)
}

async fn told(edge: &Edge, message: &str, upstream: SocketAddr) {
    edge.line(|line| line["message"] == message && line["upstream"] == upstream.to_string()).await;
}

#[tokio::test]
async fn a_broker_that_calls_itself_unready_is_spared_though_its_listener_is_well() {
    let broker = Agents::start().await;
    let (health, ready) = readiness(([127, 0, 0, 1], 0).into()).await;
    let upstreams = format!(
        "agents: {{addresses: ['{}'], health: {{port: {}, every: 100ms}}}}",
        broker.address,
        health.port()
    );
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    ready.send_replace(Some(503));
    edge.probe("/readiness", 503).await;
    told(&edge, "broker is not reachable", broker.address).await;
    // It is all there is, so it is tried.
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
    ready.send_replace(Some(200));
    edge.probe("/readiness", 200).await;
}

/// Takes connections and requests, and answers none: a process that was stopped.
async fn stopped(at: SocketAddr, heard: watch::Sender<usize>) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            if read_head(&mut tcp).await.is_some() {
                heard.send_modify(|count| *count += 1);
                held.push(tcp);
            }
        }
    });
    address
}

#[tokio::test]
async fn a_callers_request_at_a_broker_that_stopped_goes_elsewhere_or_gets_an_answer() {
    let agents = Agents::start().await;
    let (heard, mut hears) = watch::channel(0);
    let hung = stopped(([127, 0, 0, 1], 0).into(), heard).await;
    let (health, ready) = readiness(([127, 0, 0, 1], 0).into()).await;
    let upstreams = |more: &str| {
        format!(
            "agents: {{addresses: ['{}']}}\n  kubernetes_api: {{addresses: ['{hung}'{more}], \
             health: {{port: {}, every: 100ms, within: 100ms}}}}",
            agents.address,
            health.port()
        )
    };
    let ask = |method: &str, edge: &Edge| {
        let request = format!(
            "{method} /api/v1/pods HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {}\r\n\
             Content-Length: 2\r\n\r\n{{}}",
            token("caller")
        );
        let address = edge.plain;
        tokio::spawn(async move { exchange(address, request.as_bytes()).await })
    };
    let edge = Edge::start_with(&upstreams(""), "", &[]).await;
    told(&edge, "broker is reachable", hung).await;
    let asked = ask("POST", &edge);
    tokio::time::timeout(DEADLINE, hears.wait_for(|count| *count == 1)).await.unwrap().unwrap();
    ready.send_replace(None);
    let answer = asked.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("fell silent") && answer.contains("\"kind\":\"Status\""), "{answer}");
    edge.access(|line| line["status"] == 504 && line["refused"] == "upstream_silent").await;
    drop(edge);

    // With another one, which is asked what may be asked twice.
    ready.send_replace(Some(200));
    let well = KubernetesApi::start().await;
    let (other, _ready) = readiness(SocketAddr::new([127, 0, 0, 2].into(), health.port())).await;
    let relayed = relay_to(SocketAddr::new(other.ip(), 0), well.address).await;
    let edge = Edge::start_with(&upstreams(&format!(", '{relayed}'")), "", &[]).await;
    told(&edge, "broker is reachable", hung).await;
    told(&edge, "broker is reachable", relayed).await;
    // Some tokens have this broker, some that.
    let before = *hears.borrow();
    let mut asked = Vec::new();
    for n in 0..16 {
        let request = format!(
            "GET /api/v1/pods HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {}\r\n\r\n",
            token(&format!("caller-{n}"))
        );
        let address = edge.plain;
        asked.push(tokio::spawn(async move { exchange(address, request.as_bytes()).await }));
    }
    tokio::time::timeout(DEADLINE, hears.wait_for(|count| *count > before)).await.unwrap().unwrap();
    ready.send_replace(None);
    for asked in asked {
        let answer = asked.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// The same server at another address.
async fn relay_to(at: SocketAddr, to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut tcp, &mut server).await
            });
        }
    });
    address
}

#[tokio::test]
async fn streams_beyond_what_a_broker_may_have_are_refused_with_a_hint() {
    let broker = Agents::start().await;
    let upstreams = format!("agents: {{addresses: ['{}'], max_streams: 2}}", broker.address);
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(call(&client, grpc("/echo.Echo/Echo", Some(&token))).await);
    }
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await.status().await;
    assert_eq!(code, 14);
    assert!(message.contains("upstreams.agents.max_streams"), "{message}");
    edge.access(|line| line["refused"] == "upstream_busy").await;
    let mut done = held.remove(0);
    done.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(done.status().await.0, 0);
    edge.access(|line| line["grpc_status"] == 0).await;
    until("a place is free", async || {
        let stream = call(&client, grpc("/trailers-only", Some(&token))).await;
        (stream.status().await.0 == 5).then_some(())
    })
    .await;
}
