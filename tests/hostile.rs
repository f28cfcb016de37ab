//! Junk, oversize and malformed input on every port and in every file: a clear error on the side that is wrong, and
//! everything as it was afterwards. What a legitimate client of another maker sends is in `foreign.rs`.

/// Request bodies.
mod bodies;
/// All of it for long, and what it leaves behind.
mod leaks;
/// Files and flags that no program should start with.
mod start;
/// WebSocket frames and gRPC messages that break rules once a connection is up.
mod streams;

use crate::harness::{
    Field, Options, PATIENCE,
    http::{self, Client},
    until,
};
use http_body_util::BodyExt;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What a port speaks, as far as a stranger can tell.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    /// TLS, then gRPC, WebSocket or HTTP/1.1.
    Tls,
    /// gRPC, WebSocket or HTTP/1.1, told apart by the first bytes.
    Anything,
    /// HTTP/1.1.
    Http,
}

fn ports(field: &Field) -> [(&'static str, SocketAddr, Speaks); 7] {
    let at = field.addresses;
    [
        ("edge, TLS", at.edge_tls, Speaks::Tls),
        ("edge, plain", at.edge_plain, Speaks::Anything),
        ("edge, admin", at.edge_admin, Speaks::Http),
        ("broker, agents", at.broker_agents, Speaks::Anything),
        ("broker, Kubernetes API", at.broker_kubernetes, Speaks::Http),
        ("broker, probes", at.broker_probes, Speaks::Http),
        ("agent, probes", at.agent_probes, Speaks::Http),
    ]
}

/// Sends bytes, then reads until the other side closes. What cannot be written any more does not matter.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let talk = async {
        if io.write_all(bytes).await.is_ok() {
            let _ = io.flush().await;
        }
        // A reset after the answer is as good an end as any.
        let _ = io.take(1 << 20).read_to_end(&mut answer).await;
    };
    timeout(PATIENCE, talk).await.expect("the other side closes");
    answer
}

async fn dial(address: SocketAddr) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(address)).await.expect("in time").expect("somebody listens")
}

async fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    exchange(&mut dial(address).await, bytes).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The beginning of a real TLS handshake.
const CLIENT_HELLO: &[u8] =
    b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\x5f\x5f\x5f\x5f\x5f\x5f\x5f\x5f\x5f\x5f";

/// Input that no port understands, and what the ports that can tell say about it.
fn junk() -> Vec<(Vec<u8>, &'static str)> {
    let noise: Vec<u8> = (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        (vec![0; 1024], "does not begin with a request line"),
        ([&b"\xff"[..], &noise].concat(), "does not begin with a request line"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n".to_vec(), "neither HTTP/1.x nor HTTP/2"),
        (b"GET / HTTP/1.1\r\nthis is no header\r\n\r\n".to_vec(), "neither HTTP/1.x nor HTTP/2"),
        (b"GET / HTTP/9.9\r\nHost: h\r\n\r\n".to_vec(), "neither HTTP/1.x nor HTTP/2"),
        (CLIENT_HELLO.to_vec(), "TLS handshake on a port without TLS"),
    ]
}

fn long_head() -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: h\r\nX-Long: {}\r\n\r\n", "a".repeat(200 * 1024)).into_bytes()
}

fn many_lines() -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: a\r\n".repeat(5000)).into_bytes()
}

#[tokio::test]
async fn junk_on_every_port_is_answered_and_closed() {
    let mut field = Field::start().await;
    for (name, address, speaks) in ports(&field) {
        for (bytes, words) in junk() {
            // Half a handshake is none: only an end of the stream tells a TLS port that no more comes.
            if speaks == Speaks::Tls && bytes == CLIENT_HELLO {
                continue;
            }
            let answer = send(address, &bytes).await;
            let said = text(&answer);
            match speaks {
                Speaks::Anything => assert!(said.contains(words) && said.contains(" 400 "), "{name}: {said}"),
                Speaks::Http => assert!(
                    said.starts_with("HTTP/1.1 400") || said.starts_with("HTTP/1.0 400"),
                    "{name}: {said:?}"
                ),
                // An alert, or words for those who spoke plain HTTP.
                Speaks::Tls => assert!(
                    answer.first() == Some(&0x15) || said.contains("this port speaks TLS"),
                    "{name}: {answer:?}"
                ),
            }
        }
    }
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn heads_that_are_too_long_are_refused_by_every_port() {
    let mut field = Field::start().await;
    for head in [long_head(), many_lines()] {
        for (name, address, speaks) in ports(&field) {
            let answer = match speaks {
                Speaks::Tls => exchange(&mut http::connect(&field, &[b"http/1.1"]).await, &head).await,
                _ => send(address, &head).await,
            };
            let said = text(&answer);
            assert!(said.starts_with("HTTP/1.1 431"), "{name}: {} bytes of head -> {said:?}", head.len());
        }
    }
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn metadata_that_is_too_long_is_refused_and_the_port_lives() {
    let mut field = Field::start().await;
    let long = "m".repeat(300 * 1024);
    for address in [field.addresses.edge_plain, field.addresses.broker_agents] {
        let (client, connection) = h2::client::handshake(dial(address).await).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.expect("ready");
        let request =
            hyper::Request::post("http://h/gitlab.agent.agent_registrar.rpc.AgentRegistrar/Register")
                .header("content-type", "application/grpc")
                .header("authorization", format!("Bearer {}", field.agent_token))
                .header("x-long", &long)
                .body(())
                .expect("a request");
        let (response, _body) = client.send_request(request, false).expect("sent");
        match timeout(PATIENCE, response).await.expect("an answer in time") {
            Ok(response) => assert_eq!(response.status(), 431, "{address}"),
            Err(error) => {
                assert!(error.is_go_away() || error.is_reset() || error.is_io(), "{address}: {error}")
            }
        }
        drop(client);
        connection.abort();
    }
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn headers_that_grow_when_they_are_encoded_anew_cost_no_agent_its_tunnels() {
    let mut field = Field::start().await;
    let mut watcher = Client::new(&field).await;
    let mut watch = watcher.send("GET", "/stream-forever", http::full("")).await;
    assert!(timeout(PATIENCE, watch.frame()).await.expect("a tick").is_some());
    // Legal bytes whose Huffman code is three and a half times as long as they are.
    let dear = hyper::header::HeaderValue::from_bytes(&[0xf9; 60 * 1024]).expect("a legal value");
    // Each worker of the edge has its own connection to the broker; enough strangers meet all of them.
    for stranger in 0..16 {
        let (client, connection) =
            h2::client::handshake(dial(field.addresses.edge_plain).await).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.expect("ready");
        let request =
            hyper::Request::post("http://h/gitlab.agent.agent_registrar.rpc.AgentRegistrar/Register")
                .header("content-type", "application/grpc")
                .header("authorization", format!("Bearer invented-{stranger}"))
                .header("x-dear", &dear)
                .body(())
                .expect("a request");
        let (response, _body) = client.send_request(request, true).expect("sent");
        let _ = timeout(PATIENCE, response).await.expect("an answer in time");
        connection.abort();
    }
    for _ in 0..3 {
        let tick = timeout(PATIENCE, watch.frame()).await.expect("the watch goes on");
        assert!(tick.expect("the watch is open").is_ok(), "the watch was cut");
    }
    drop((watch, watcher));
    assert_everything_works(&mut field).await;
}

#[tokio::test]
async fn connections_that_send_one_byte_and_wait_keep_nobody_out() {
    let mut field = Field::start().await;
    let mut waiting = Vec::new();
    for (_, address, _) in ports(&field) {
        // Fewer than the probes serve at a time: they are for a handful of neighbours.
        for _ in 0..50 {
            let mut io = dial(address).await;
            io.write_all(b"G").await.expect("sent");
            waiting.push(io);
        }
    }
    assert_everything_works(&mut field).await;
    drop(waiting);
    assert_everything_works(&mut field).await;
}

/// Processes live, probes answer, an agent's tunnel carries a request.
async fn assert_everything_works(field: &mut Field) {
    for process in [&mut field.edge, &mut field.broker, &mut field.agent] {
        assert!(process.alive(), "{} died:\n{}", process.name, process.text());
    }
    let at = field.addresses;
    for (name, address) in [("edge", at.edge_admin), ("broker", at.broker_probes), ("agent", at.agent_probes)]
    {
        for path in ["/liveness", "/readiness"] {
            until(&format!("{name} {path}"), async || {
                (http::probe(address, path).await == Some(200)).then_some(())
            })
            .await;
        }
    }
    let (status, body) = Client::new(field).await.get("/version").await;
    assert_eq!(status, 200, "{}", text(&body));
}

/// A stranger that is slow with its first bytes is let go.
#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let extra = "timeouts: {head: 1s, handshake: 1s}\n".to_owned();
    let field = Field::with(Options { edge_extra: extra, ..Default::default() }).await;
    let start = tokio::time::Instant::now();
    let said = text(&send(field.addresses.edge_plain, b"GET / HTTP/1.1\r\nHost: h\r\n").await);
    assert!(said.starts_with("HTTP/1.1 408"), "{said:?}");
    send(field.addresses.edge_tls, CLIENT_HELLO).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    let said = text(&send(field.addresses.broker_agents, b"GET / HTTP/1.1\r\nHost: h\r\n").await);
    assert!(said.starts_with("HTTP/1.1 408"), "{said:?}");
}
