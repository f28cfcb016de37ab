//! Policies that change under open connections: limits, levels, who may stay, what is only reported.

use crate::ages::Tap;
use crate::clients::{Call, call, echo, grpc, h2, tls, websocket};
use crate::harness::{DEADLINE, Edge, Setup, exchange, get, status, token, until, within_a_minute};
use crate::upstreams::{Agents, KubernetesApi, read_head};
use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::Value;
use stand_ins::redis::{Options, RedisServer};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const ECHO: &str = "/echo.Echo/Echo";
const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";
/// A whole frame: Close 1008 "denied by policy".
const DENIED: &[u8] = b"\x88\x12\x03\xf0denied by policy";

/// An edge with one policy file.
struct Field {
    edge: Edge,
    file: PathBuf,
    _brokers: (Agents, KubernetesApi),
}

impl Field {
    async fn start(more: &'static str, policy: &str) -> Self {
        let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("policies")).unwrap();
        let file = directory.path().join("policies/ours.yaml");
        std::fs::write(&file, policy).unwrap();
        let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
        let edge = Edge::start_in(directory, setup).await;
        Self { edge, file, _brokers: (agents, api) }
    }

    /// Changes the file, and waits until it is in force.
    async fn write(&self, policy: &str) {
        let before = self.page().await["generation"].as_u64().unwrap();
        std::fs::write(&self.file, policy).unwrap();
        let changed = async {
            while self.page().await["generation"].as_u64().unwrap() == before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, changed).await.expect("the policy is not in force");
    }

    /// Changes the file, and waits until this number is the limit of everybody.
    async fn limit(&self, policy: &str, place: &str, number: u64) {
        std::fs::write(&self.file, policy).unwrap();
        limited(&self.edge, place, number).await;
    }

    async fn page(&self) -> Value {
        page(&self.edge).await
    }

    async fn metric(&self, line: &str) {
        let metrics = || get(self.edge.admin, "/metrics");
        until(&format!("metrics say {line}"), async || metrics().await.1.contains(line).then_some(())).await;
    }
}

const POLICIES: &str = "policies: {directory: policies}";

async fn page(edge: &Edge) -> Value {
    serde_json::from_str(&get(edge.admin, "/policies").await.1).unwrap()
}

/// Waits until this number among the edge's limits is so great. The generation and the log tell of documents, which the
/// limits obey a moment later.
async fn limited(edge: &Edge, place: &str, number: u64) {
    let obeyed = async {
        while page(edge).await["limits"].pointer(place) != Some(&Value::from(number)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, obeyed).await.unwrap_or_else(|_| panic!("{place} is never {number}"));
}

fn limits(spec: &str) -> String {
    format!("apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: ours}}\nspec: {{{spec}}}\n")
}

fn clients(list: &str) -> String {
    format!(
        "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: who}}\nspec: {{clients: {{{list}}}}}\n"
    )
}

async fn code(client: &SendRequest<Bytes>, name: &str) -> u32 {
    let mut stream = call(client, grpc(ECHO, Some(&token(name)))).await;
    // Refused streams are over already.
    let _ = stream.out.send_data(Bytes::new(), true);
    stream.status().await.0
}

/// From another address of this host.
async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_policy_is_in_force_at_once_with_streams_open_and_a_bad_one_changes_nothing() {
    let more = "limits: {requests_per_token_per_minute: 2}\npolicies: {directory: policies}";
    let field = Field::start(more, &limits("requestsPerToken: {perMinute: 3}")).await;
    let edge = &field.edge;
    let client = h2(tls(edge, &[b"h2"]).await).await;
    let mut open = call(&client, grpc(ECHO, Some(&token("agent")))).await;
    let codes = [code(&client, "agent").await, code(&client, "agent").await, code(&client, "agent").await];
    assert_eq!(codes, [0, 0, 8]);
    let line = edge.access(|line| line["refused"] == "rate_limit").await;
    assert_eq!(line["rule"], "LimitPolicy/ours");

    let mut took = Vec::new();
    for generation in 2..=6 {
        let begin = Instant::now();
        std::fs::write(
            &field.file,
            limits(&format!("requestsPerToken: {{rate: 1000, burst: {generation}000}}")),
        )
        .unwrap();
        edge.line(|line| {
            line["message"] == "changed policies are in force" && line["generation"] == generation
        })
        .await;
        took.push(begin.elapsed());
        limited(edge, "/requestsPerToken/value/burst", generation * 1_000).await;
    }
    println!("from the change of the file to its being in force: {took:?}");
    // Before, the next would have come after 20 s.
    assert_eq!(code(&client, "agent").await, 0);
    open.send(b"x").await;
    assert_eq!(open.read(1).await, b"x");

    std::fs::write(&field.file, limits("requestsPerToken: {perMinute: none}")).unwrap();
    let line = edge.line(|line| line["level"] == "ERROR").await;
    assert!(line["problem"].as_str().unwrap().contains("ours.yaml:"), "{line}");
    assert_eq!(code(&client, "agent").await, 0);
    let page = field.page().await;
    let problem = page["problems"][0].as_str().unwrap();
    assert!(problem.contains("ours.yaml:") && page["bad_for_seconds"].is_number(), "{page:#}");
    assert_eq!(page["limits"]["requestsPerToken"]["value"]["burst"], 6_000);
    assert_eq!(page["limits"]["requestsPerToken"]["rule"]["name"], "LimitPolicy/ours");
    assert_eq!(page["limits"]["streamsPerIp"], serde_json::json!({ "value": 0, "rule": null }));
    let fingerprint = page["fingerprint"].as_str().unwrap();
    field.metric("postern_edge_policy_generation 6").await;
    field.metric("postern_edge_policy_problems 1").await;
    field.metric(&format!("postern_edge_policy_info{{fingerprint=\"{fingerprint}\"}} 1")).await;
}

#[tokio::test]
async fn what_a_token_has_used_stays_used_whatever_the_numbers_become() {
    let field = Field::start(POLICIES, &limits("requestsPerToken: {perMinute: 5}")).await;
    let client = h2(tls(&field.edge, &[b"h2"]).await).await;
    let passes = async || {
        let mut passed = 0;
        while code(&client, "agent").await == 0 {
            passed += 1;
        }
        passed
    };
    let rate = "/requestsPerToken/value/perMinute";
    let begin = Instant::now();
    let pass = async |wanted: usize| {
        let passed = passes().await;
        // What a minute of eight has given back by now: nothing, but on a very busy machine.
        let given_back = (begin.elapsed().as_secs_f64() * 8.0 / 60.0) as usize;
        assert!((wanted..=wanted + given_back).contains(&passed), "{passed} of {wanted}, {given_back} back");
    };
    pass(5).await;
    field.limit(&limits("requestsPerToken: {perMinute: 8}"), rate, 8).await;
    pass(3).await;
    // An edit that says the same, and one that is taken back.
    let more = "requestsPerToken: {perMinute: 8}, streamsPerIp: 100";
    field.limit(&limits(more), "/streamsPerIp/value", 100).await;
    pass(0).await;
    field.limit(&limits("requestsPerToken: {perMinute: 5}"), rate, 5).await;
    pass(0).await;
    // What exceeded five was forgiven.
    field.limit(&limits("requestsPerToken: {perMinute: 8}"), rate, 8).await;
    pass(3).await;
}

#[tokio::test]
async fn a_client_that_is_denied_from_now_on_is_closed_with_a_reason_and_others_stay() {
    let field = Field::start(POLICIES, &clients("allow: [127.0.0.0/8]")).await;
    let edge = &field.edge;
    let read: Arc<Mutex<Vec<u8>>> = Arc::default();
    let io = Tap { io: from([127, 0, 0, 2], edge.plain).await, read: read.clone() };
    let denied = h2(websocket(io).await).await;
    let mut running = call(&denied, grpc(ECHO, Some(&token("denied")))).await;
    running.send(b"x").await;
    assert_eq!(running.read(1).await, b"x");
    let _tunnel = call(&denied, grpc(TUNNEL, Some(&token("denied")))).await;
    let mut watch = from([127, 0, 0, 2], edge.plain).await;
    let asks = format!("GET /api?watch=1 HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\n\r\n", token("ci:7:a"));
    watch.write_all(asks.as_bytes()).await.unwrap();
    assert_eq!(status(&read_head(&mut watch).await.unwrap().0), 200);
    let idle = from([127, 0, 0, 2], edge.plain).await;
    let other = h2(websocket(from([127, 0, 0, 3], edge.plain).await).await).await;
    let mut stays: Call = call(&other, grpc(ECHO, Some(&token("other")))).await;

    field.write(&clients("allow: [127.0.0.0/8], deny: [127.0.0.2]")).await;
    let closed = async {
        until("Close 1008", async || read.lock().unwrap().ends_with(DENIED).then_some(())).await;
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = watch.read_to_end(&mut rest).await;
    };
    let begin = Instant::now();
    tokio::time::timeout(DEADLINE, closed).await.expect("a denied client's connection stays");
    println!("closed after {:?}", begin.elapsed());
    let reason = "denied by policy";
    let line = edge.access(|line| line["error"] == reason && line["method"] == ECHO).await;
    assert_eq!(line["fault"], "downstream", "{line}");
    edge.access(|line| line["error"] == reason && line["method"] == "GET").await;
    edge.line(|line| line["message"] == "closed connections" && line["reason"] == reason).await;
    field.metric("postern_edge_departures_total{reason=\"denied\"} 2").await;
    // Nobody is let in any more, and who had said nothing yet gets no answer either.
    drop(idle);
    let mut again = from([127, 0, 0, 2], edge.plain).await;
    let mut answer = Vec::new();
    let _ = again.write_all(asks.as_bytes()).await;
    let _ = tokio::time::timeout(DEADLINE, again.read_to_end(&mut answer)).await.expect("it stays");
    assert_eq!(answer, b"");
    field.metric("postern_edge_refusals_total{reason=\"access_policy\"} ").await;
    stays.send(b"still here").await;
    assert_eq!(stays.read(10).await, b"still here");
    echo(&other, &token("other")).await;

    field.write(&clients("allow: [127.0.0.0/8]")).await;
    echo(&h2(from([127, 0, 0, 2], edge.plain).await).await, &token("denied")).await;
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_are_judged_by_their_own_addresses() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let listen = "- {address: '127.0.0.1:0', forwarded: {trusted: [127.0.0.1]}}\n\
                  - {address: '127.0.0.1:0', proxy_protocol: {from: [127.0.0.1]}}";
    let directory = TempDir::new().unwrap();
    let documents = clients("deny: [192.0.2.0/24]");
    std::fs::write(directory.path().join("who.yaml"), documents).unwrap();
    let more = format!("policies: {{directory: '{}'}}", directory.path().display()).leak();
    let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
    let edge = Edge::listening(setup, listen).await;
    let [forwarded, proxied] = [0, 1].map(|at: usize| edge.ports[at].parse::<SocketAddr>().unwrap());
    let asks = |client: &str| {
        format!(
            "GET /api HTTP/1.1\r\nHost: h\r\nAuthorization: {}\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n",
            token("ci:7:a")
        )
    };
    assert_eq!(status(&exchange(forwarded, asks("198.51.100.7").as_bytes()).await), 200);
    let answer = exchange(forwarded, asks("192.0.2.7").as_bytes()).await;
    assert_eq!(status(&answer), 403, "{answer}");
    let line = edge.access(|line| line["refused"] == "access_policy").await;
    assert_eq!(line["rule"], "AccessPolicy/who", "{line}");
    let upgrade = "GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ws-tunnel\r\n\
                   X-Forwarded-For: 192.0.2.7\r\n\r\n";
    assert_eq!(status(&exchange(forwarded, upgrade.as_bytes()).await), 403);
    let client = h2(crate::clients::tcp(forwarded).await).await;
    for (said, wanted) in [("192.0.2.9", 7), ("198.51.100.9", 0)] {
        let mut request = grpc(ECHO, Some(&token("agent")));
        request.headers_mut().insert("x-forwarded-for", said.parse().unwrap());
        let mut stream = call(&client, request).await;
        let _ = stream.out.send_data(Bytes::new(), true);
        assert_eq!(stream.status().await.0, wanted, "{said}");
    }
    let named = |client: &str| format!("PROXY TCP4 {client} 127.0.0.1 4711 443\r\n{}", asks(client));
    assert_eq!(status(&exchange(proxied, named("198.51.100.7").as_bytes()).await), 200);
    assert_eq!(exchange(proxied, named("192.0.2.7").as_bytes()).await, "");
}

#[tokio::test]
async fn what_is_only_reported_is_counted_and_refuses_nobody() {
    let report = |text: String| text.replace("spec:", "mode: report\nspec:");
    let documents = format!(
        "{}---\n{}",
        report(limits("requestsPerToken: {perMinute: 2}, bodyBytes: 3")),
        report(clients("deny: [127.0.0.1]"))
    );
    let field = Field::start(POLICIES, &documents).await;
    let client = h2(tls(&field.edge, &[b"h2"]).await).await;
    for _ in 0..5 {
        assert_eq!(code(&client, "agent").await, 0);
    }
    field.metric("postern_edge_policy_reports_total{kind=\"LimitPolicy\",limit=\"rate_limit\"} 3").await;
    // The connection itself, and each of its requests.
    field.metric("postern_edge_policy_reports_total{kind=\"AccessPolicy\",limit=\"access_policy\"} 6").await;
    let line = field.edge.access(|line| line["reported"].to_string().contains("rate_limit")).await;
    assert_eq!(line["reported"], "access_policy AccessPolicy/who, rate_limit LimitPolicy/ours", "{line}");
    assert_eq!((&line["refused"], &line["grpc_status"]), (&Value::Null, &Value::from(0)));
    echo(&client, &token("other")).await;
    field.metric("postern_edge_policy_reports_total{kind=\"LimitPolicy\",limit=\"body_bytes\"} 1").await;
}

#[tokio::test]
async fn a_limit_of_the_fleet_is_the_policys_and_what_was_counted_stays_counted() {
    let redis = RedisServer::start(Options::default()).await.unwrap();
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("ours.yaml");
    std::fs::write(&file, limits("requestsPerToken: {perMinute: 20}")).unwrap();
    let more = format!(
        "limits: {{requests_per_token_per_minute: 1000, per_token: {{scope: fleet}}, redis: {{address: 'unix:{}'}}}}\n\
         policies: {{directory: '{}'}}",
        redis.socket().display(),
        directory.path().display()
    );
    let more = more.leak();
    let setup = || Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
    let edges = [Edge::start(setup()).await, Edge::start(setup()).await];
    within_a_minute().await;
    let admitted = async |edge: &Edge, calls: usize| {
        let client = h2(crate::clients::tcp(edge.plain).await).await;
        let mut admitted = 0;
        for _ in 0..calls {
            admitted += usize::from(code(&client, "agent").await == 0);
        }
        admitted
    };
    // Each edge has an advance of one.
    let sum = admitted(&edges[0], 15).await + admitted(&edges[1], 25).await;
    assert!((19..=22).contains(&sum), "{sum}");
    let line = edges[1].access(|line| line["refused"] == "rate_limit").await;
    assert_eq!(line["rule"], "LimitPolicy/ours");
    std::fs::write(&file, limits("requestsPerToken: {perMinute: 40}")).unwrap();
    for edge in &edges {
        limited(edge, "/requestsPerToken/value/perMinute", 40).await;
    }
    let sum = sum + admitted(&edges[0], 30).await + admitted(&edges[1], 30).await;
    assert!((39..=43).contains(&sum), "{sum}");
}
