//! Listeners: who may come, on whose behalf, and what their connections begin with.

use crate::clients::{call, echo, grpc, h2, tcp, websocket};
use crate::harness::{DEADLINE, Edge, Setup, exchange, get, status, token};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use bytes::Bytes;
use http::Request;
use postern_certs::CertFiles;
use postern_certs::client::{ClientIdentity, ClientTrust};
use postern_certs::dev::Ca;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const TLS: &str = "tls: {certificates: [{certificate_file: tls.crt, key_file: tls.key}]";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 49153 443\r\n";

/// Version 2: for 192.0.2.9, with a TLV behind the addresses.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10\xc0\x00\x02\x09\x0a\x00\x00\x01\xc0\x01\x01\xbb\x04\x00\x01\x00";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

struct Field {
    edge: Edge,
    agents: Agents,
    _api: KubernetesApi,
}

async fn field(listen: &str) -> Field {
    field_with(listen, "").await
}

async fn field_with(listen: &str, more: &'static str) -> Field {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
    let edge = Edge::listening(setup, listen).await;
    Field { edge, agents, _api: api }
}

impl Field {
    fn port(&self, index: usize) -> SocketAddr {
        self.edge.ports[index].parse().unwrap()
    }
}

/// A client that trusts the edge's CA, shows `identity`, and says `before` first.
async fn tls_after(
    edge: &Edge,
    address: SocketAddr,
    before: &[u8],
    identity: Option<&CertFiles>,
) -> io::Result<TlsStream<TcpStream>> {
    let trust = ClientTrust::load(Some(edge.directory.path().join("ca.crt"))).unwrap();
    let config = match identity {
        Some(files) => trust.config_as(&ClientIdentity::load(files).unwrap(), &[]),
        None => trust.config(&[]),
    };
    let mut tcp = tcp(address).await;
    tcp.write_all(before).await?;
    TlsConnector::from(config).connect("localhost".try_into().unwrap(), tcp).await
}

/// What the broker sees of a request to the Kubernetes API, and the answer's status.
async fn asks(mut io: impl crate::clients::Wire, headers: &str) -> (u16, String) {
    let request = format!(
        "GET /api HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\nConnection: close\r\n{headers}\r\n",
        token("ci:1")
    );
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = io.read_to_end(&mut answer);
    // A peer that does not say goodbye in TLS is a peer all the same.
    let _ = tokio::time::timeout(DEADLINE, read).await.expect("no end of the answer");
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    if answer.is_empty() { (0, answer) } else { (status(&answer), answer) }
}

/// Sends nothing more after `bytes`; whether the edge closes without a word.
async fn is_closed(address: SocketAddr, bytes: &[u8]) -> bool {
    let mut io = tcp(address).await;
    let _ = io.write_all(bytes).await;
    let mut read = Vec::new();
    let end = tokio::time::timeout(DEADLINE, io.read_to_end(&mut read)).await.expect("it is left open");
    // A reset, where bytes lay unread, is a close.
    drop(end);
    read.is_empty()
}

fn issue(ca: &Ca, directory: &Path, name: &str) -> CertFiles {
    let directory = directory.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    ca.issue(&["client.example"]).write(&directory).unwrap()
}

#[tokio::test]
async fn the_client_that_a_load_balancer_names_is_the_client_in_the_clear_and_in_tls() {
    let proxy = "proxy_protocol: {from: [127.0.0.1]}";
    let field = field(&format!(
        "- {{address: '127.0.0.1:0', {proxy}}}\n- {{address: '127.0.0.1:0', {proxy}, {TLS}}}}}"
    ))
    .await;
    for (header, client) in [(V1, "192.0.2.7"), (V2, "192.0.2.9"), (V2_LOCAL, "127.0.0.1")] {
        let mut io = tcp(field.port(0)).await;
        io.write_all(header).await.unwrap();
        let (status, answer) = asks(io, "X-Forwarded-For: 10.0.0.1\r\n").await;
        assert_eq!(status, 200);
        assert!(answer.contains(&format!("x-forwarded-for: {client}\r\n")), "{answer}");
        let io = tls_after(&field.edge, field.port(1), header, None).await.unwrap();
        let (_, answer) = asks(io, "").await;
        assert!(answer.contains(&format!("x-forwarded-for: {client}\r\n")), "{answer}");
        assert!(answer.contains("x-forwarded-proto: https\r\n"), "{answer}");
        let ws = websocket(tls_after(&field.edge, field.port(1), header, None).await.unwrap()).await;
        echo(&h2(ws).await, &token("agent")).await;
        assert_eq!(field.agents.last().headers()["x-forwarded-for"], client);
        field.edge.access(|line| line["client"].as_str().is_some_and(|text| text.starts_with(client))).await;
    }
    // One byte at a time, and an HTTP/2 preface right behind.
    let mut io = tcp(field.port(0)).await;
    for byte in V2 {
        io.write_all(&[*byte]).await.unwrap();
    }
    echo(&h2(io).await, &token("agent")).await;
    assert_eq!(field.agents.last().headers()["x-forwarded-for"], "192.0.2.9");
    // What must begin with a header does not, or begins with half of one.
    assert!(is_closed(field.port(0), b"GET / HTTP/1.1\r\n\r\n").await);
    assert!(is_closed(field.port(0), b"PROXY TCP4 192.0.2.7\r\n").await);
    let metrics = field.edge.probe("/metrics", 200).await;
    assert!(metrics.contains("postern_edge_refusals_total{reason=\"proxy_protocol\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_header_from_anybody_else_is_refused() {
    let proxy = "proxy_protocol: {from: [10.0.0.0/8]";
    let field = field(&format!(
        "- {{address: '127.0.0.1:0', {proxy}, mode: optional}}}}\n- {{address: '127.0.0.1:0', {proxy}, mode: optional}}, {TLS}}}}}\n\
         - {{address: '127.0.0.1:0', {proxy}}}}}\n- {{address: '127.0.0.1:0', proxy_protocol: {{from: [127.0.0.1], mode: optional}}}}"
    ))
    .await;
    let with_request = |header: &[u8]| [header, b"GET /api HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    for header in [V1, V2] {
        let answer = exchange(field.port(0), &with_request(header)).await;
        assert_eq!(status(&answer), 400, "{answer}");
        let answer = exchange(field.port(1), header).await;
        assert!(answer.contains("this port speaks TLS"), "{answer}");
    }
    // Others are clients themselves, unless a header is required of everybody.
    assert_eq!(asks(tcp(field.port(0)).await, "").await.0, 200);
    assert!(is_closed(field.port(2), &with_request(V1)).await);
    assert!(is_closed(field.port(2), b"GET / HTTP/1.1\r\n\r\n").await);
    // A balancer that may send one need not.
    let (status, answer) = asks(tcp(field.port(3)).await, "").await;
    assert!(status == 200 && answer.contains("x-forwarded-for: 127.0.0.1\r\n"), "{answer}");
}

#[tokio::test]
async fn trusted_proxies_say_who_asks_and_are_added_to_the_chain() {
    let field = field(
        "- {address: '127.0.0.1:0', forwarded: {trusted: [127.0.0.1, 10.0.0.0/8]}, access: {allow: [192.0.0.0/8]}}\n\
         - {address: '127.0.0.1:0', forwarded: {trusted: [127.0.0.1], header: forwarded}}",
    )
    .await;
    let sent = "X-Forwarded-For: 1.2.3.4, 192.0.2.7\r\nX-Forwarded-For: 10.1.1.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=8.8.8.8\r\n";
    let chain = "192.0.2.7, 10.1.1.1, 127.0.0.1";
    let (_, answer) = asks(tcp(field.port(0)).await, sent).await;
    assert!(answer.contains(&format!("x-forwarded-for: {chain}\r\n")), "{answer}");
    assert!(answer.contains("x-forwarded-proto: https\r\n") && !answer.contains("8.8.8.8"), "{answer}");
    field.edge.access(|line| line["client"] == "192.0.2.7:0").await;

    // HTTP/2, where each stream may be another client's.
    let client = h2(tcp(field.port(0)).await).await;
    for (said, seen) in [("192.0.2.7, 10.1.1.1", chain), ("192.0.2.8", "192.0.2.8, 127.0.0.1")] {
        let mut request = grpc("/echo.Echo/Echo", Some(&token("agent")));
        request.headers_mut().insert("x-forwarded-for", said.parse().unwrap());
        let mut stream = call(&client, request).await;
        stream.out.send_data(Bytes::new(), true).unwrap();
        assert_eq!(stream.status().await.0, 0);
        assert_eq!(field.agents.last().headers()["x-forwarded-for"], seen);
    }
    let request = Request::get("https://h/api").header("x-forwarded-for", "192.0.2.8").body(()).unwrap();
    let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
    let head = response.await.unwrap().body_mut().data().await.unwrap().unwrap();
    let head = String::from_utf8(head.to_vec()).unwrap().to_ascii_lowercase();
    assert!(head.contains("x-forwarded-for: 192.0.2.8, 127.0.0.1\r\n"), "{head}");

    // A tunnel is one client's for all its life; what its streams say does not count.
    let mut io = tcp(field.port(0)).await;
    let upgrade = "GET /any/path HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ws-tunnel\r\n";
    io.write_all(format!("{upgrade}X-Forwarded-For: 192.0.2.7\r\n\r\n").as_bytes()).await.unwrap();
    let (head, rest) = read_head(&mut io).await.unwrap();
    assert_eq!(status(&head), 101, "{head}");
    let client = h2(postern_wire::ws::WsStream::dialler(io, rest)).await;
    let mut request = grpc("/echo.Echo/Echo", Some(&token("agent")));
    request.headers_mut().insert("x-forwarded-for", "8.8.8.8".parse().unwrap());
    let mut stream = call(&client, request).await;
    stream.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(stream.status().await.0, 0);
    assert_eq!(field.agents.last().headers()["x-forwarded-for"], "192.0.2.7, 127.0.0.1");

    // A proxy that asks for itself, as its health checks do, is not judged as a client.
    assert_eq!(asks(tcp(field.port(0)).await, "").await.0, 200);
    // Whom the listener does not serve, it does not serve behind a proxy either.
    let denied = "X-Forwarded-For: 198.51.100.7\r\n";
    assert_eq!(asks(tcp(field.port(0)).await, denied).await.0, 403);
    let answer = exchange(field.port(0), format!("{upgrade}{denied}\r\n").as_bytes()).await;
    assert_eq!(status(&answer), 403, "{answer}");
    let mut request = grpc("/echo.Echo/Echo", Some(&token("agent")));
    request.headers_mut().insert("x-forwarded-for", "198.51.100.7".parse().unwrap());
    assert_eq!(call(&h2(tcp(field.port(0)).await).await, request).await.status().await.0, 7);

    let sent = "Forwarded: for=\"[2001:db8::7]:80\";proto=https\r\nX-Forwarded-For: 8.8.8.8\r\n";
    let (_, answer) = asks(tcp(field.port(1)).await, sent).await;
    assert!(answer.contains("x-forwarded-for: 2001:db8::7, 127.0.0.1\r\n"), "{answer}");
    assert!(answer.contains("forwarded: for=\"[2001:db8::7]\";proto=https, for=127.0.0.1\r\n"), "{answer}");
}

#[tokio::test]
async fn a_denied_address_is_closed_before_tls() {
    let field = field(&format!(
        "- {{address: '127.0.0.1:0', {TLS}}}, access: {{deny: [127.0.0.0/8]}}}}\n\
         - {{address: '127.0.0.1:0', {TLS}}}, access: {{allow: [10.0.0.0/8]}}}}\n\
         - {{address: '127.0.0.1:0', {TLS}}}, proxy_protocol: {{from: [127.0.0.1]}}, access: {{allow: [192.0.2.0/29]}}}}"
    ))
    .await;
    for port in [0, 1] {
        assert!(is_closed(field.port(port), b"").await);
        tls_after(&field.edge, field.port(port), b"", None).await.unwrap_err();
    }
    // Behind a PROXY header it is the client that counts, not the balancer.
    tls_after(&field.edge, field.port(2), V1, None).await.unwrap();
    assert!(is_closed(field.port(2), V2).await);
    assert!(is_closed(field.port(2), V2_LOCAL).await);
    let metrics = field.edge.probe("/metrics", 200).await;
    assert!(metrics.contains("postern_edge_refusals_total{reason=\"access\"} 6"), "{metrics}");
}

#[tokio::test]
async fn a_unix_socket_is_served_and_removed_at_the_end() {
    let mut field = field(
        "- {address: 'unix:edge.sock', mode: 0600}\n- {address: 'unix:proxied.sock', proxy_protocol: {}, forwarded: {}}",
    )
    .await;
    let path = field.edge.directory.path().join("edge.sock");
    assert_eq!(field.edge.ports[0], format!("unix:{}", path.display()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let connect = || async { UnixStream::connect(&path).await.unwrap() };
    let (status, answer) = asks(connect().await, "X-Forwarded-For: 10.0.0.1\r\n").await;
    assert!(status == 200 && answer.contains("x-forwarded-for: 127.0.0.1\r\n"), "{answer}");
    echo(&h2(connect().await).await, &token("agent")).await;
    echo(&h2(websocket(connect().await).await).await, &token("agent")).await;

    let proxied = field.edge.directory.path().join("proxied.sock");
    let mut io = UnixStream::connect(&proxied).await.unwrap();
    io.write_all(V2).await.unwrap();
    let (_, answer) = asks(io, "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(
        answer.contains("x-forwarded-for: 192.0.2.9\r\n"),
        "whom the header names is no proxy of ours: {answer}"
    );
    // The peer itself is.
    let mut io = UnixStream::connect(&proxied).await.unwrap();
    io.write_all(V2_LOCAL).await.unwrap();
    let (_, answer) = asks(io, "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(answer.contains("x-forwarded-for: 192.0.2.1, 127.0.0.1\r\n"), "{answer}");

    field.edge.signal("TERM");
    field.edge.ended().await;
    assert!(!path.exists() && !proxied.exists());
}

#[tokio::test]
async fn client_certificates_are_asked_for_and_a_new_ca_is_believed_at_once() {
    let field = field(&format!(
        "- {{address: '127.0.0.1:0', {TLS}, client_ca_file: ca.crt}}}}\n\
         - {{address: '127.0.0.1:0', {TLS}, client_ca_file: ca.crt, client_auth: optional}}}}"
    ))
    .await;
    let directory = field.edge.directory.path();
    let other = Ca::new();
    let good = issue(&field.edge.ca, directory, "good");
    let bad = issue(&other, directory, "bad");
    let served = |port: usize, files: Option<CertFiles>| {
        let field = &field;
        async move {
            // Under TLS 1.3 a refusal comes after the client believes that it is connected.
            let Ok(io) = tls_after(&field.edge, field.port(port), b"", files.as_ref()).await else {
                return false;
            };
            asks(io, "").await.0 == 200
        }
    };
    assert!(served(0, Some(good.clone())).await);
    assert!(!served(0, None).await && !served(0, Some(bad.clone())).await);
    assert!(
        served(1, None).await && served(1, Some(good.clone())).await && !served(1, Some(bad.clone())).await
    );

    let io = tls_after(&field.edge, field.port(0), b"", Some(&good)).await.unwrap();
    let client = h2(io).await;
    let mut open = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    // The server's own certificate is of the first CA; clients shall be of the other one.
    let server_ca = std::fs::read(directory.join("ca.crt")).unwrap();
    other.write(directory).unwrap();
    field.edge.line(|line| line["message"] == "reloaded from changed files").await;
    std::fs::write(directory.join("server-ca.crt"), server_ca).unwrap();
    let shows = |files: CertFiles| {
        let address = field.port(0);
        async move {
            let trust = ClientTrust::load(Some(directory.join("server-ca.crt"))).unwrap();
            let config = trust.config_as(&ClientIdentity::load(&files).unwrap(), &[]);
            let name = "localhost".try_into().unwrap();
            let Ok(io) = TlsConnector::from(config).connect(name, tcp(address).await).await else {
                return false;
            };
            asks(io, "").await.0 == 200
        }
    };
    // Both listeners have their own watch.
    let both = tokio::time::timeout(DEADLINE, async {
        while !shows(bad.clone()).await {
            tokio::task::yield_now().await;
        }
    });
    both.await.expect("the new CA is not believed");
    assert!(!shows(good).await);
    open.send(b"still").await;
    assert_eq!(open.read(5).await, b"still");
}

#[tokio::test]
async fn a_new_certificate_is_shown_within_100_ms_while_streams_go_on() {
    let field = field(&format!("- {{address: '127.0.0.1:0', {TLS}}}}}")).await;
    let shown = || async {
        let io = tls_after(&field.edge, field.port(0), b"", None).await.unwrap();
        io.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let client = h2(tls_after(&field.edge, field.port(0), b"", None).await.unwrap()).await;
    let mut open = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    let mut quickest = Duration::MAX;
    // The machine may be busy with other things; at least one must be in time.
    let begin = Instant::now();
    while quickest >= Duration::from_millis(100) && begin.elapsed() < 2 * DEADLINE {
        let old = shown().await;
        field.edge.ca.issue(&["localhost"]).write(field.edge.directory.path()).unwrap();
        let changed = Instant::now();
        let renewed = async {
            while shown().await == old {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, renewed).await.expect("the old certificate is still shown");
        quickest = quickest.min(changed.elapsed());
        open.send(b"x").await;
        assert_eq!(open.read(1).await, b"x");
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
}

#[tokio::test]
async fn both_families_are_served_and_seen_as_what_they_are() {
    let field = field("- address: '[::1]:0'\n- address: '[::]:0'").await;
    let (_, answer) = asks(tcp(field.port(0)).await, "").await;
    assert!(answer.contains("x-forwarded-for: ::1\r\n"), "{answer}");
    let port = field.port(1).port();
    for (to, seen) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let io = tcp(SocketAddr::new(to.parse().unwrap(), port)).await;
        let (_, answer) = asks(io, "").await;
        assert!(answer.contains(&format!("x-forwarded-for: {seen}\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn visitors_read_what_this_is() {
    let field = field("- address: '127.0.0.1:0'").await;
    let page = exchange(
        field.port(0),
        b"GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html,*/*\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(status(&page), 200);
    assert!(
        page.to_ascii_lowercase().contains("content-type: text/html") && page.contains("This is Postern"),
        "{page}"
    );
    let (code, json) = get(field.port(0), "/").await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["service"]), (200, &"postern".into()));
    let head = exchange(field.port(0), b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(status(&head) == 200 && head.ends_with("\r\n\r\n"), "{head}");

    let client = h2(tcp(field.port(0)).await).await;
    let request = Request::get("http://h/nowhere").header("accept", "text/html").body(()).unwrap();
    let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_tunnel_declines_compression() {
    let field = field("- address: '127.0.0.1:0'").await;
    let mut io = tcp(field.port(0)).await;
    io.write_all(
        b"GET /somewhere/else HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ws-tunnel\r\n\
          Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
    )
    .await
    .unwrap();
    let (head, _) = read_head(&mut io).await.unwrap();
    assert_eq!(status(&head), 101);
    assert!(!head.to_ascii_lowercase().contains("sec-websocket-extensions"), "{head}");
}

#[tokio::test]
async fn byte_by_byte_is_no_way_around_a_deadline() {
    let field = field_with(
        &format!(
            "- address: '127.0.0.1:0'\n- {{address: '127.0.0.1:0', {TLS}}}}}\n\
             - {{address: '127.0.0.1:0', proxy_protocol: {{from: [127.0.0.1]}}}}"
        ),
        "timeouts: {head: 600ms, handshake: 600ms}",
    )
    .await;
    let mut hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    hello.resize(500, 0);
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "a".repeat(1000)).into_bytes();
    // Addresses, and a kilobyte of what follows them.
    let mut proxied = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x04\x00".to_vec();
    proxied.resize(1000, 0);
    for (port, bytes) in [(0, head), (1, hello), (2, proxied)] {
        let begin = Instant::now();
        let io = tcp(field.port(port)).await;
        let (mut read, mut write) = io.into_split();
        let drip = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            for byte in bytes {
                ticks.tick().await;
                if write.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let closed = async {
            let mut answer = Vec::new();
            let _ = read.read_to_end(&mut answer).await;
        };
        tokio::select! {
            () = drip => {}
            closed = tokio::time::timeout(DEADLINE, closed) => closed.expect("left open"),
        }
        // 500 bytes would take 25 s.
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(500) && took < DEADLINE, "{port}: {took:?}");
    }
}
