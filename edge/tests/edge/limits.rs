//! Limits: each in both languages with its hints, tokens that nobody knows, several edges with one Redis.

use crate::clients::{Call, call, echo, grpc, h2, tcp};
use crate::harness::{Edge, Setup, exchange, status, token, within_a_minute};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use base64::Engine;
use bytes::Bytes;
use h2::client::SendRequest;
use http::Response;
use postern_wire::proto::google::rpc::Status;
use prost::Message;
use stand_ins::redis::{Options, RedisServer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const ECHO: &str = "/echo.Echo/Echo";
const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";

async fn edge(agents: SocketAddr, api: SocketAddr, limits: String) -> Edge {
    let more = format!("limits: {limits}").leak();
    Edge::start(Setup { agents: vec![agents], kubernetes_api: vec![api], more }).await
}

/// A refusal in gRPC: what is in it beside the status agrees with itself.
fn hints(call: &Call) -> Duration {
    let headers = call.response.headers();
    assert_eq!(headers["grpc-status"], "8", "{headers:?}");
    let pushback: u64 = headers["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    let details =
        base64::engine::general_purpose::STANDARD_NO_PAD.decode(&headers["grpc-status-details-bin"]);
    let status = Status::decode(&details.unwrap()[..]).unwrap();
    assert_eq!(status.code, 8);
    assert_eq!(status.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    assert!(pushback > 0);
    Duration::from_millis(pushback)
}

fn get(token: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n")
}

async fn asks(edge: &Edge, token: &str) -> String {
    exchange(edge.plain, get(token, "/api").as_bytes()).await
}

fn retry_after(answer: &str) -> u64 {
    assert_eq!(status(answer), 429, "{answer}");
    assert!(answer.contains("\"kind\":\"Status\"") && answer.contains("TooManyRequests"), "{answer}");
    let lower = answer.to_ascii_lowercase();
    lower.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_limit_of_agents_streams_is_resource_exhausted_and_says_when_to_come_again() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    for (limits, refused, most) in [
        ("{requests_per_token_per_minute: 2}", "rate_limit", 30),
        ("{per_ip: {requests_per_minute: 2}}", "rate_limit_ip", 30),
        ("{per_token: {streams: 2}}", "streams_per_token", 1),
        ("{per_ip: {streams: 2}}", "streams_per_ip", 1),
    ] {
        let edge = edge(agents.address, api.address, limits.to_owned()).await;
        let client = h2(tcp(edge.plain).await).await;
        let stream = || call(&client, grpc(ECHO, Some(&token("agent"))));
        let held = [stream().await, stream().await];
        let third = stream().await;
        assert!(hints(&third) <= Duration::from_secs(most), "{limits}");
        edge.access(|line| line["refused"] == refused && line["grpc_status"] == 8).await;
        let other = call(&client, grpc(ECHO, Some(&token("other")))).await;
        let of_ip = refused.ends_with("_ip");
        assert_eq!(other.response.headers().contains_key("grpc-status"), of_ip, "{limits}");
        if most == 1 {
            // A place is free when its stream is over.
            drop((held, other));
            let free = async {
                while stream().await.response.headers().contains_key("grpc-status") {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(crate::harness::DEADLINE, free).await.expect("streams end");
        }
    }
}

#[tokio::test]
async fn each_limit_of_kubernetes_callers_is_429_and_says_when_to_come_again() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let caller = |agent: &str, name: &str| token(&format!("ci:{agent}:{name}"));
    for (limits, refused, passes) in [
        ("{requests_per_token_per_minute: 2}", "rate_limit", 2),
        ("{per_ip: {requests_per_minute: 2}}", "rate_limit_ip", 2),
        // The first request of a token that nobody knows yet is not counted there.
        ("{per_agent: {requests_per_minute: 2}}", "rate_limit_agent", 3),
    ] {
        let edge = edge(agents.address, api.address, limits.to_owned()).await;
        for _ in 0..passes {
            assert_eq!(status(&asks(&edge, &caller("7", "a")).await), 200, "{limits}");
        }
        assert!((1..=30).contains(&retry_after(&asks(&edge, &caller("7", "a")).await)), "{limits}");
        edge.access(|line| line["refused"] == refused).await;
    }
    for (limits, refused) in [
        ("{per_token: {streams: 2}}", "streams_per_token"),
        ("{per_ip: {streams: 2}}", "streams_per_ip"),
        ("{per_agent: {streams: 2}}", "streams_per_agent"),
    ] {
        let edge = edge(agents.address, api.address, limits.to_owned()).await;
        // What nobody knows takes no place at an agent.
        assert_eq!(status(&asks(&edge, &caller("7", "a")).await), 200);
        let mut watches = Vec::new();
        for _ in 0..2 {
            let mut watch = tcp(edge.plain).await;
            watch.write_all(get(&caller("7", "a"), "/api?watch=1").as_bytes()).await.unwrap();
            assert_eq!(status(&read_head(&mut watch).await.unwrap().0), 200);
            watches.push(watch);
        }
        assert_eq!(retry_after(&asks(&edge, &caller("7", "a")).await), 1, "{limits}");
        edge.access(|line| line["refused"] == refused).await;
        let other = status(&asks(&edge, &caller("8", "b")).await);
        assert_eq!(other, if refused == "streams_per_ip" { 429 } else { 200 }, "{limits}");
    }
}

#[tokio::test]
async fn heads_and_bodies_are_as_large_as_configured() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = edge(agents.address, api.address, "{header_bytes: 8192, body_bytes: 1000}".to_owned()).await;
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(9_000));
    assert_eq!(status(&exchange(edge.plain, long.as_bytes()).await), 431);
    let announced = |length: usize| {
        format!(
            "POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{}",
            "a".repeat(length)
        )
    };
    assert_eq!(status(&exchange(edge.plain, announced(1_000).as_bytes()).await), 200);
    let answer = exchange(edge.plain, announced(1_001).as_bytes()).await;
    assert_eq!(status(&answer), 413, "{answer}");
    assert!(answer.contains("RequestEntityTooLarge") && answer.contains("1000 bytes"), "{answer}");
    let chunks = "1f4\r\n".to_owned() + &"a".repeat(500) + "\r\n";
    let chunked =
        format!("POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunks.repeat(3));
    let answer = exchange(edge.plain, chunked.as_bytes()).await;
    assert_eq!(status(&answer), 413, "{answer}");
    edge.access(|line| line["refused"] == "body_bytes").await;

    let client = h2(tcp(edge.plain).await).await;
    for sizes in [&[1_001][..], &[1_000, 1], &[20_000]] {
        let mut over = call(&client, grpc(ECHO, Some(&token("agent")))).await;
        for size in sizes {
            over.send(&vec![7; *size]).await;
        }
        let (code, message) = over.status().await;
        assert!(code == 8 && message.contains("larger than 1000 bytes"), "{sizes:?} {code} {message}");
    }
    edge.access(|line| line["refused"] == "body_bytes" && line["grpc_status"] == 8).await;
    for (method, size) in [(ECHO, 1_000), (TUNNEL, 5_000)] {
        let mut fits = call(&client, grpc(method, Some(&token("agent")))).await;
        fits.send(&vec![7; size]).await;
        assert_eq!(fits.read(size).await, vec![7; size]);
    }
}

/// A broker that knows no token with `guess` in it, and how often it was asked.
struct Strict {
    agents: SocketAddr,
    api: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Strict {
    async fn start() -> Self {
        let [agents, api] = [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await]
            .map(Result::unwrap);
        let asked = Arc::new(AtomicUsize::new(0));
        let strict = Self {
            agents: agents.local_addr().unwrap(),
            api: api.local_addr().unwrap(),
            asked: asked.clone(),
        };
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = agents.accept().await {
                tokio::spawn(Self::grpc(tcp, count.clone()));
            }
        });
        tokio::spawn(async move {
            while let Ok((tcp, _)) = api.accept().await {
                tokio::spawn(Self::http(tcp, asked.clone()));
            }
        });
        strict
    }

    async fn grpc(tcp: TcpStream, asked: Arc<AtomicUsize>) -> Option<()> {
        let mut connection = h2::server::handshake(tcp).await.ok()?;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            asked.fetch_add(1, Ordering::Relaxed);
            let known = !request.headers()["authorization"].to_str().unwrap().contains("guess");
            let response = Response::builder().header("content-type", "application/grpc");
            let response = response.header("grpc-status", if known { "0" } else { "16" }).body(()).unwrap();
            respond.send_response(response, true).ok()?;
        }
        None
    }

    async fn http(mut tcp: TcpStream, asked: Arc<AtomicUsize>) -> Option<()> {
        loop {
            let (head, _) = read_head(&mut tcp).await?;
            asked.fetch_add(1, Ordering::Relaxed);
            let answer = if head.starts_with("OPTIONS") {
                // As a broker does, before it looks at any credential.
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            } else if head.contains("guess") {
                "HTTP/1.1 401 Unauthorized\r\nGitlab-Unauthorized: true\r\nContent-Length: 0\r\n\r\n"
            } else if head.contains("cluster") {
                "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            };
            tcp.write_all(answer.as_bytes()).await.ok()?;
        }
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

async fn code(client: &SendRequest<Bytes>, name: &str) -> u32 {
    call(client, grpc(ECHO, Some(&token(name)))).await.status().await.0
}

#[tokio::test]
async fn a_token_that_a_broker_does_not_know_is_not_asked_about_again() {
    let broker = Strict::start().await;
    let edge = edge(broker.agents, broker.api, "{failed_tokens: {remember: 1h}}".to_owned()).await;
    let client = h2(tcp(edge.plain).await).await;
    for _ in 0..5 {
        assert_eq!(code(&client, "guess").await, 16);
    }
    // Nor by further tunnels, which cost nothing otherwise.
    for _ in 0..5 {
        assert_eq!(call(&client, grpc(TUNNEL, Some(&token("guess")))).await.status().await.0, 16);
    }
    assert_eq!(broker.asked(), 1);
    edge.access(|line| line["refused"] == "failed_token").await;
    for _ in 0..5 {
        let answer = asks(&edge, &token("ci:1:guess")).await;
        assert_eq!(status(&answer), 401);
        assert!(answer.to_ascii_lowercase().contains("gitlab-unauthorized: true"), "{answer}");
    }
    assert_eq!(broker.asked(), 1);
    // What a cluster does not know is no matter of the token's.
    for _ in 0..5 {
        assert_eq!(status(&asks(&edge, &token("ci:1:cluster")).await), 401);
    }
    assert_eq!(broker.asked(), 5);
}

#[tokio::test]
async fn guesses_from_an_address_stop_at_the_edge_and_known_tokens_from_there_go_on() {
    let broker = Strict::start().await;
    let limits = "{failed_tokens: {per_ip_per_minute: 60, burst: 20}}".to_owned();
    let edge = edge(broker.agents, broker.api, limits).await;
    let client = h2(tcp(edge.plain).await).await;
    assert_eq!(code(&client, "agent").await, 0);
    assert_eq!(status(&asks(&edge, &token("ci:1:job")).await), 200);
    broker.asked();
    let mut refused = 0;
    for n in 0..200 {
        match code(&client, &format!("guess{n}")).await {
            16 => {}
            8 => refused += 1,
            code => panic!("{code}"),
        }
        assert_eq!(code(&client, "agent").await, 0, "after {n}");
    }
    let asked = broker.asked() - 200;
    println!("of 200 guesses {asked} reached the broker, {refused} were refused");
    assert!((21..60).contains(&asked) && asked + refused == 200, "{asked} {refused}");
    let third = call(&client, grpc(ECHO, Some(&token("guess again")))).await;
    if third.response.headers()["grpc-status"] == "8" {
        assert!(hints(&third) <= Duration::from_secs(60));
    }
    assert_eq!(status(&asks(&edge, &token("ci:1:job")).await), 200);
    edge.access(|line| line["refused"] == "failed_tokens").await;
    edge.line(|line| line["message"].as_str().is_some_and(|text| text.contains("that no broker knows")))
        .await;
}

#[tokio::test]
async fn a_preflight_makes_no_invented_token_a_known_one() {
    let broker = Strict::start().await;
    let limits = "{failed_tokens: {per_ip_per_minute: 60, burst: 5}}".to_owned();
    let edge = edge(broker.agents, broker.api, limits).await;
    let guesses: Vec<_> = (0..50).map(|n| token(&format!("ci:1:guess{n}"))).collect();
    for guess in &guesses {
        let preflight = get(guess, "/api").replacen("GET", "OPTIONS", 1);
        assert_eq!(status(&exchange(edge.plain, preflight.as_bytes()).await), 200);
    }
    let mut refused = 0;
    for guess in &guesses {
        match status(&asks(&edge, guess).await) {
            401 => {}
            429 => refused += 1,
            status => panic!("{status}"),
        }
    }
    assert!(refused > 20, "{refused} of 50 guesses were refused");
}

fn fleet(redis: &RedisServer, more: &str) -> String {
    let socket = redis.socket();
    format!(
        "{{requests_per_token_per_minute: 100, per_token: {{scope: fleet}}, redis: {{address: 'unix:{}'}}{more}}}",
        socket.display()
    )
}

async fn admitted(edge: &Edge, calls: usize) -> usize {
    let client = h2(tcp(edge.plain).await).await;
    let mut admitted = 0;
    for _ in 0..calls {
        match code(&client, "agent").await {
            0 => admitted += 1,
            8 => {}
            code => panic!("{code}"),
        }
    }
    admitted
}

#[tokio::test]
async fn two_edges_with_one_redis_share_a_limit() {
    let redis = RedisServer::start(Options::default()).await.unwrap();
    let broker = Strict::start().await;
    let edges = [
        edge(broker.agents, broker.api, fleet(&redis, "")).await,
        edge(broker.agents, broker.api, fleet(&redis, "")).await,
    ];
    within_a_minute().await;
    let sum = admitted(&edges[0], 70).await + admitted(&edges[1], 150).await;
    println!("{sum} of 220 at two edges, limit 100");
    // The advance of each edge is one.
    assert!((99..=102).contains(&sum), "{sum}");
    let client = h2(tcp(edges[0].plain).await).await;
    let mut last = call(&client, grpc(ECHO, Some(&token("agent")))).await;
    while last.response.headers()["grpc-status"] != "8" {
        last = call(&client, grpc(ECHO, Some(&token("agent")))).await;
    }
    assert!(hints(&last) <= Duration::from_secs(60), "until the minute is over");
    // Guesses make no key, and no key has a token in it.
    for n in 0..20 {
        assert_eq!(code(&client, &format!("guess{n}")).await, 16);
    }
    let keys = redis.ask(&["KEYS", "*"]).await.unwrap();
    assert!(keys.contains("gitlab-kas:edge_limit:token:") && keys.starts_with("*1"), "{keys:?}");
}

#[tokio::test]
async fn an_edge_whose_redis_is_lost_does_as_it_was_told() {
    let broker = Strict::start().await;
    for (lost, passes) in [("local", 20), ("allow", 20), ("deny", 1)] {
        let mut redis = RedisServer::start(Options::default()).await.unwrap();
        let edge = edge(broker.agents, broker.api, fleet(&redis, &format!(", redis_lost: {lost}"))).await;
        let client = h2(tcp(edge.plain).await).await;
        // It is the first one that tells that the token is good, and the second the advance.
        assert_eq!([code(&client, "agent").await, code(&client, "agent").await], [0, 0]);
        redis.stop().await;
        let mut passed = 0;
        for _ in 0..20 {
            match code(&client, "agent").await {
                0 => passed += 1,
                14 if lost == "deny" => {}
                code => panic!("{lost}: {code}"),
            }
        }
        if lost == "deny" {
            // A lease may be left.
            assert!(passed <= passes, "{passed}");
            let denied = call(&client, grpc(ECHO, Some(&token("agent")))).await;
            assert!(denied.response.headers().contains_key("grpc-retry-pushback-ms"));
            edge.access(|line| line["refused"] == "redis_away").await;
        } else {
            assert_eq!(passed, passes, "{lost}");
        }
        // Strangers are limited all the same, and nothing hangs.
        assert_eq!(code(&client, "guess").await, 16);
        edge.line(|line| {
            line["message"].as_str().is_some_and(|text| text.contains("redis cannot count tokens' calls"))
        })
        .await;
    }
}

#[tokio::test]
async fn a_fleet_whose_redis_never_was_there_serves() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let limits = "{per_token: {scope: fleet}, per_ip: {requests_per_minute: 6000, scope: fleet}, redis: {address: '127.0.0.1:1'}}";
    let edge = edge(agents.address, api.address, limits.to_owned()).await;
    let client = h2(tcp(edge.plain).await).await;
    for _ in 0..200 {
        echo(&client, &token("agent")).await;
    }
    edge.line(|line| line["message"] == "limits of the fleet begin without redis").await;
}

#[tokio::test]
async fn a_tunnel_that_redis_refuses_has_paid_for_no_other() {
    let redis = RedisServer::start(Options::default()).await.unwrap();
    let broker = Strict::start().await;
    let edges = [
        edge(broker.agents, broker.api, fleet(&redis, "")).await,
        edge(broker.agents, broker.api, fleet(&redis, "")).await,
    ];
    within_a_minute().await;
    assert!(admitted(&edges[0], 150).await < 150);
    // The other edge learns the token, and has to ask whether there is more.
    assert_eq!(admitted(&edges[1], 1).await, 1);
    let client = h2(tcp(edges[1].plain).await).await;
    for n in 0..3 {
        assert_eq!(call(&client, grpc(TUNNEL, Some(&token("agent")))).await.status().await.0, 8, "{n}");
    }
}
