//! Junk, oversize and malformed input on every port and in every file: a clear error on the side that is wrong, and
//! everything as it was afterwards. What a legitimate client of another maker sends is in `foreign.rs`.

/// Files and flags that no program should start with.
mod start;
/// WebSocket frames and gRPC messages that break rules once a connection is up.
mod streams;

use crate::harness::{
    Field, PATIENCE, Process,
    http::{self, Client},
    until,
};
use futures::future::join_all;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

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
    let long = "m".repeat(200 * 1024);
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

/// What strangers attack, without the field that it is.
#[derive(Clone)]
struct Target {
    ports: [(&'static str, SocketAddr, Speaks); 7],
    tls: TlsConnector,
    bearer: String,
}

impl Target {
    fn of(field: &Field) -> Self {
        let tls = TlsConnector::from(http::tls(field, &[b"http/1.1"]));
        Self { ports: ports(field), tls, bearer: field.bearer() }
    }

    /// What only makes sense behind a good handshake.
    async fn behind_tls(&self) {
        let body = body_request(&self.bearer, "Transfer-Encoding: chunked", "ZZ\r\n");
        let text_frame = [streams::upgrade_request("ws-tunnel"), b"\x81\x05hello".to_vec()].concat();
        for bytes in [long_head(), text_frame, streams::upgrade_request("chat"), body] {
            let io = dial(self.ports[0].1).await;
            let mut io = self.tls.connect("localhost".try_into().expect("a name"), io).await.expect("TLS");
            exchange(&mut io, &bytes).await;
        }
    }
}

/// One of everything, on every port.
async fn round(target: &Target) {
    let mut inputs: Vec<Vec<u8>> = junk().into_iter().map(|(bytes, _)| bytes).collect();
    inputs.extend([
        long_head(),
        many_lines(),
        b"G".to_vec(),
        Vec::new(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ]);
    inputs.push(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand then junk that is long enough for a frame".to_vec());
    inputs.push(streams::upgrade_request("chat"));
    inputs.push([streams::upgrade_request("ws-tunnel"), b"\x81\x05hello".to_vec()].concat());
    for bytes in inputs {
        join_all(target.ports.map(|(_, address, _)| {
            let bytes = bytes.clone();
            async move {
                let mut io = dial(address).await;
                let _ = io.write_all(&bytes).await;
                let _ = io.shutdown().await;
                let mut answer = Vec::new();
                let end = timeout(PATIENCE, (&mut io).take(1 << 20).read_to_end(&mut answer)).await;
                assert!(
                    end.is_ok(),
                    "{address} keeps a connection that said {:?}",
                    text(&bytes[..bytes.len().min(80)])
                );
            }
        }))
        .await;
    }
    target.behind_tls().await;
}

const WORKERS: usize = 6;
const ROUNDS: usize = 50;

#[tokio::test]
async fn hundreds_of_rounds_of_it_leave_descriptors_and_memory_where_they_were() {
    let mut field = Field::start().await;
    let target = Target::of(&field);
    // Warm: pools and caches have what they keep.
    for _ in 0..3 {
        round(&target).await;
    }
    assert_everything_works(&mut field).await;
    let before = usage(&field).await;
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let target = target.clone();
        workers.spawn(async move {
            for _ in 0..ROUNDS {
                round(&target).await;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.expect("every port answers or closes");
    }
    assert_everything_works(&mut field).await;
    for (process, (name, descriptors, resident)) in
        [&field.edge, &field.broker, &field.agent].into_iter().zip(before)
    {
        let now = until(
            &format!("{name}'s descriptors go back to {descriptors}, now {}", process.descriptors()),
            async || {
                let now = process.descriptors();
                (now.abs_diff(descriptors) <= 5).then_some(now)
            },
        )
        .await;
        let after = process.resident();
        println!(
            "{name}: {descriptors} -> {now} descriptors, {resident} -> {after} KiB after {} rounds",
            WORKERS * ROUNDS
        );
        assert!(after < resident + resident / 2 + 48 * 1024, "{name} grew from {resident} to {after} KiB");
    }
}

/// Descriptors and memory of each process, once connections of earlier tests of strength are gone.
async fn usage(field: &Field) -> [(&'static str, usize, u64); 3] {
    let of = async |process: &Process| {
        let (mut last, mut same) = (0, 0);
        let descriptors = until("descriptors stand still", async || {
            let now = process.descriptors();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            (same > 100).then_some(now)
        })
        .await;
        (process.name, descriptors, process.resident())
    };
    [of(&field.edge).await, of(&field.broker).await, of(&field.agent).await]
}

/// A request to the cluster whose head is good.
fn body_request(bearer: &str, header: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /k8s-proxy/sink HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\nConnection: close\r\n{header}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn bodies_that_are_malformed_or_cut_short_reach_no_cluster_as_whole_ones() {
    let mut field = Field::start().await;
    let cases = [
        (false, "no number of a chunk", "Transfer-Encoding: chunked", "ZZ\r\n"),
        (false, "a chunk longer than it says", "Transfer-Encoding: chunked", "2\r\nabc\r\n0\r\n\r\n"),
        (true, "half a chunk", "Transfer-Encoding: chunked", "a\r\nabc"),
        (true, "less than it says", "Content-Length: 10", "abc"),
        (false, "two lengths", "Content-Length: 3\r\nContent-Length: 4", "abcd"),
        (false, "no length", "Content-Length: three", "abc"),
        (
            false,
            "both at once",
            "Content-Length: 30\r\nTransfer-Encoding: chunked",
            "0\r\n\r\nGET /k8s-proxy/smuggled HTTP/1.1\r\n\r\n",
        ),
    ];
    for (leaves, what, header, body) in cases {
        let mut io = http::connect(&field, &[b"http/1.1"]).await;
        io.write_all(&body_request(&field.bearer(), header, body)).await.expect("sent");
        if leaves {
            let _ = io.shutdown().await;
        }
        let answer = text(&exchange(&mut io, b"").await);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        println!("{what}: {:?}", answer.lines().next());
        // The last one may be taken for what its chunks say: no body at all.
        let empty = what == "both at once" && status == "200" && answer.contains("\"length\":0");
        assert!(status == "400" || empty || (leaves && status.is_empty()), "{what}: {answer}");
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
    }
    assert!(field.api().requests().iter().all(|seen| !seen.uri.path().contains("smuggled")));
    until("the cluster has none of them open", async || (field.api().open_of("sink") == 0).then_some(()))
        .await;
    let probes = field.addresses.broker_probes;
    until("no tunnel is held", async || {
        let (_, metrics) = http::text(probes, "/metrics").await?;
        metrics.contains("postern_broker_tunnels_busy 0\n").then_some(())
    })
    .await;
    assert_everything_works(&mut field).await;
}

/// A stranger that is slow with its first bytes is let go.
#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let extra = "timeouts: {head: 1s, handshake: 1s}\n".to_owned();
    let field = Field::with(crate::harness::Options { edge_extra: extra, ..Default::default() }).await;
    let start = tokio::time::Instant::now();
    let said = text(&send(field.addresses.edge_plain, b"GET / HTTP/1.1\r\nHost: h\r\n").await);
    assert!(said.starts_with("HTTP/1.1 408"), "{said:?}");
    send(field.addresses.edge_tls, CLIENT_HELLO).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    let said = text(&send(field.addresses.broker_agents, b"GET / HTTP/1.1\r\nHost: h\r\n").await);
    assert!(said.starts_with("HTTP/1.1 408"), "{said:?}");
}
