//! Accounts: access lines, ids that travel, traces, and the pages of the admin listener.

use crate::clients::{call, echo, grpc, h2, tcp, tls, websocket};
use crate::harness::{DEADLINE, Edge, Setup, exchange, get, status, token};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use bytes::Bytes;
use serde_json::Value;
use stand_ins::otlp::{Collector, Span};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn page(edge: &Edge, path: &str) -> Value {
    let (status, body) = get(edge.admin, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path} is not JSON: {body}"))
}

/// The head that the stand-in of the broker saw, in lower case; it answers with it.
async fn seen(edge: SocketAddr, headers: &str) -> String {
    let request = format!(
        "GET /api HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\n{headers}Connection: close\r\n\r\n",
        token("ci:1")
    );
    let answer = exchange(edge, request.as_bytes()).await;
    answer.split_once("\r\n\r\n").unwrap().1.to_ascii_lowercase()
}

async fn collected(collector: &Collector, fits: impl Fn(&Span) -> bool) -> Span {
    let found = tokio::time::timeout(DEADLINE, collector.span(fits)).await;
    found.unwrap_or_else(|_| panic!("no such span among {:#?}", collector.spans()))
}

#[tokio::test]
async fn a_line_says_what_came_on_which_connection_and_how_it_ended() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;

    let client = h2(websocket(tls(&edge, &[]).await).await).await;
    let mut request = grpc("/echo.Echo/Echo", Some(&token("agent")));
    request.headers_mut().insert("x-gitlab-correlation-id", "agent-call-1".parse().unwrap());
    let mut stream = call(&client, request).await;
    stream.send(b"hello").await;
    stream.read(5).await;
    stream.out.send_data(Bytes::new(), true).unwrap();
    stream.status().await;
    let line = edge.access(|line| line["request_id"] == "agent-call-1").await;
    assert_eq!(line["transport"], "websocket", "{line}");
    assert_eq!(line["tls"], "1.3");
    assert_eq!(line["listener"], edge.tls.to_string());
    assert_eq!(line["upstream"], agents.address.to_string());
    for (key, wanted) in [("bytes_in", 5), ("bytes_out", 5), ("status", 200), ("grpc_status", 0)] {
        assert_eq!(line[key], wanted, "{key} in {line}");
    }
    assert_eq!(line["fault"], "none");
    assert!(line["token"].is_string() && line["client"].is_string() && line["duration_ms"].is_u64());
    assert!(line["trace_id"].is_null());
    let first = line["connection"].as_u64().unwrap();
    echo(&client, &token("agent")).await;
    let again = edge.access(|line| line["connection"] == first && line["request_id"] != "agent-call-1").await;
    assert_eq!(again["request_id"].as_str().unwrap().len(), 16);

    let head = seen(edge.plain, "X-Request-Id: from-lb-7\r\n").await;
    assert!(head.contains("x-request-id: from-lb-7\r\n"), "{head}");
    let line = edge.access(|line| line["request_id"] == "from-lb-7").await;
    assert_eq!(line["transport"], "http1");
    assert_eq!(line["route"], "kubernetes_api");
    assert!(line["tls"].is_null() && line["connection"].as_u64().unwrap() > first);

    let mut io = tls(&edge, &[b"http/1.1"]).await;
    let exec = format!(
        "GET /exec HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\nX-Request-Id: exec-1\r\nConnection: Upgrade\r\n\
         Upgrade: SPDY/3.1\r\n\r\n",
        token("ci:1")
    );
    io.write_all(exec.as_bytes()).await.unwrap();
    let (head, _) = read_head(&mut io).await.unwrap();
    assert_eq!(status(&head), 101);
    io.write_all(b"ping").await.unwrap();
    io.read_exact(&mut [0; 4]).await.unwrap();
    io.shutdown().await.unwrap();
    drop(io);
    let line = edge.access(|line| line["request_id"] == "exec-1").await;
    assert_eq!(line["status"], 101, "{line}");
    assert_eq!(line["method"], "GET");
}

#[tokio::test]
async fn junk_in_an_id_reaches_neither_the_log_nor_the_broker() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let head = seen(
        edge.plain,
        "X-Request-Id: \"},{\"level\":\"ERROR\r\nX-Gitlab-Correlation-Id: a b\r\nTraceparent: 00-junk\r\nTracestate: v=1\r\n",
    )
    .await;
    for gone in ["level", "a b", "traceparent", "tracestate"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned();
    edge.access(|line| line["request_id"] == id.as_str()).await;
    // Whoever sits behind the edge would believe it.
    let head = seen(edge.plain, &format!("Traceparent: {PARENT}\r\n")).await;
    assert!(head.contains(&format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-00\r\n")), "{head}");
}

#[tokio::test]
async fn the_collector_gets_a_span_below_the_callers_and_the_broker_one_to_go_on_with() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    for protocol in ["grpc", "http"] {
        let collector = Collector::start().await.unwrap();
        let url = if protocol == "grpc" { collector.grpc_url() } else { collector.http_url() };
        let more = format!("telemetry: {{otlp: {{endpoint: '{url}', protocol: {protocol}, sample: 1}}}}");
        let mut edge = Edge::start(Setup {
            agents: vec![agents.address],
            kubernetes_api: vec![api.address],
            more: Box::leak(more.into_boxed_str()),
        })
        .await;

        let head = seen(edge.plain, &format!("Traceparent: {PARENT}\r\nX-Request-Id: traced\r\n")).await;
        let told = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap().to_owned();
        let span = collected(&collector, |span| span.attributes["postern.request_id"] == "traced").await;
        assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, "00f067aa0ba902b7"));
        assert_eq!(told, format!("00-{TRACE}-{}-01", span.id));
        assert_eq!((span.service.as_str(), span.name.as_str()), ("postern-edge", "edge GET"));
        assert_eq!(span.attributes["http.response.status_code"], "200");
        assert_eq!(span.attributes["postern.upstream"], api.address.to_string());
        assert!(!format!("{span:?}").contains(crate::harness::SECRET));
        let line = edge.access(|line| line["request_id"] == "traced").await;
        assert_eq!(line["trace_id"], TRACE);

        // What is in the queue at the end is sent.
        let client = h2(tcp(edge.plain).await).await;
        let mut request = grpc("/echo.Echo/Echo", Some(&token("agent")));
        request.headers_mut().insert("x-gitlab-correlation-id", "last".parse().unwrap());
        let mut stream = call(&client, request).await;
        stream.out.send_data(Bytes::new(), true).unwrap();
        stream.status().await;
        let stats = page(&edge, "/stats").await;
        assert_eq!(stats["spans"]["dropped"], 0, "{stats}");
        drop(client);
        edge.signal("TERM");
        assert_eq!(edge.ended().await.code(), Some(0));
        let span = collected(&collector, |span| span.attributes["postern.request_id"] == "last").await;
        assert_eq!((span.name.as_str(), span.parent.as_str()), ("edge agents", ""));
        let context = agents.last().headers()["traceparent"].to_str().unwrap().to_owned();
        assert_eq!(context, format!("00-{}-{}-01", span.trace, span.id));
    }
}

#[tokio::test]
async fn the_admin_pages_tell_what_is_configured_and_who_is_connected() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    edge.probe("/readiness", 200).await;
    let client = h2(websocket(tls(&edge, &[]).await).await).await;
    let mut busy = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    busy.send(b"x").await;
    busy.read(1).await;

    let index = get(edge.admin, "/").await;
    assert_eq!(index.0, 200);
    for path in ["/config", "/policies", "/clusters", "/connections", "/drain", "/stats", "/metrics"] {
        assert!(index.1.contains(path), "{path} is not in the index");
    }
    let config = page(&edge, "/config").await;
    assert_eq!(config["timeouts"]["head"], "15s", "{config}");
    assert_eq!(config["listen"][0]["access"]["deny"], Value::Array(vec![]), "{config}");
    assert_eq!(page(&edge, "/policies").await["generation"], 1);
    let clusters = page(&edge, "/clusters").await;
    assert!(clusters.to_string().contains(&agents.address.to_string()), "{clusters}");

    let connections = page(&edge, "/connections").await;
    let mut all = connections["connections"].as_array().unwrap().iter();
    let ours = all.find(|connection| connection["transport"] == "websocket").unwrap();
    assert_eq!(ours["grpc_streams"], 1, "{ours}");
    assert_eq!(ours["tls"], "1.3");
    assert_eq!(page(&edge, "/connections?limit=0").await["connections"], Value::Array(vec![]));
    assert_eq!(get(edge.admin, "/connections?limit=x").await.0, 400);

    let stats = page(&edge, "/stats").await;
    assert_eq!(stats["streams"]["busy"], 1, "{stats}");
    assert_eq!(stats["limits"]["tokens"]["tracked"], 1, "{stats}");
    assert!(stats["memory_kib"].as_u64().unwrap() > 1000);
    drop((busy, client));
    edge.idle().await;
    assert_eq!(page(&edge, "/connections").await["open"], 0);
    // A stream's account may come after its connection's end.
    let counted = tokio::time::timeout(DEADLINE, async {
        loop {
            let metrics = edge.probe("/metrics", 200).await;
            if metrics.contains("postern_edge_stream_duration_seconds_count{route=\"agents\"} 1\n") {
                return metrics;
            }
        }
    });
    let metrics = counted.await.expect("the stream was never counted");
    for line in [
        "postern_edge_bytes_total{route=\"agents\",direction=\"in\"} 1".to_owned(),
        "postern_edge_stream_duration_seconds_count{route=\"agents\"} 1".to_owned(),
        format!("postern_edge_upstream_up{{route=\"agents\",upstream=\"{}\"}} 1", agents.address),
        format!(
            "postern_edge_upstream_ejections_total{{route=\"agents\",upstream=\"{}\"}} 0",
            agents.address
        ),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_drain_is_asked_for_by_post_and_not_by_a_web_page() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::before(agents.address, api.address).await;
    assert_eq!(get(edge.admin, "/drain").await.0, 405);
    let ask = |query: &str, origin: &str| {
        format!(
            "POST /drain{query} HTTP/1.1\r\nHost: a\r\n{origin}Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    let refused = exchange(edge.admin, ask("", "Origin: https://evil.example\r\n").as_bytes()).await;
    assert_eq!(status(&refused), 403);
    edge.assert_alive();
    assert_eq!(status(&exchange(edge.admin, ask("?exit=perhaps", "").as_bytes()).await), 400);
    edge.probe("/readiness", 200).await;
    assert_eq!(status(&exchange(edge.admin, ask("?exit=false", "").as_bytes()).await), 202);
    edge.probe("/readiness", 503).await;
    edge.line(|line| line["message"] == "drained; the process stays until it is told to exit").await;
    edge.assert_alive();
    assert_eq!(status(&exchange(edge.admin, ask("", "").as_bytes()).await), 202);
    assert_eq!(edge.ended().await.code(), Some(0));
    edge.line(|line| line["message"] == "draining" && line["asked"] == "Stay").await;
}

#[tokio::test]
async fn a_probe_is_answered_beside_a_hundred_connections_that_say_nothing() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(edge.admin).await.unwrap());
    }
    edge.probe("/liveness", 200).await;
    // The oldest had to go.
    let mut byte = [0];
    let closed = tokio::time::timeout(DEADLINE, silent[0].read(&mut byte)).await.expect("it stays");
    assert_eq!(closed.unwrap_or(0), 0);
}
