//! Clients of other makers against a whole field: grpcio, grpc-js and websockets know the wire from libraries that are
//! not ours. Here are agents that they play; the traps of the wire are in the modules below. Programs: `clients/`.

/// `:authority` as no library of ours would send it, in frames of our own.
mod authority;
/// Tens of thousands of small messages on one stream, beside a reader that stopped.
mod small_messages;
/// A tunnel as tonic sees it: an agent that does what a test says.
pub(crate) mod tunnel;

use crate::harness::{
    AGENT, Field, Options, PATIENCE, Process,
    http::{self, full},
    program::Program,
    until,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::timeout;

const REGISTER: &str = "/gitlab.agent.agent_registrar.rpc.AgentRegistrar/Register";
const MAKE_REQUEST: &str = "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest";
/// As long as no message should be, and easily compressed.
const LONG: usize = 5000;

/// gRPC's numbers for how a call ended.
mod code {
    pub(super) const OK: u32 = 0;
    pub(super) const CANCELLED: u32 = 1;
    pub(super) const INVALID_ARGUMENT: u32 = 3;
    pub(super) const UNIMPLEMENTED: u32 = 12;
    pub(super) const UNAUTHENTICATED: u32 = 16;
}

/// Everything but an agent of ours.
async fn field_without_agent() -> Field {
    let options = Options {
        ready: false,
        agent_token: Some("glagent-nobody-knows-this-one".into()),
        ..Options::default()
    };
    let mut field = Field::with(options).await;
    field.agent.kill().await;
    field
}

/// A number among a process' metrics; absent while it was never set.
async fn metric(address: std::net::SocketAddr, name: &str) -> Option<i64> {
    let (_, text) = http::text(address, "/metrics").await?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

async fn until_idle(field: &Field, count: i64) {
    let probes = field.addresses.broker_probes;
    until(&format!("{count} idle tunnels"), async || {
        (metric(probes, "postern_broker_tunnels_idle").await == Some(count)).then_some(())
    })
    .await;
}

#[derive(Clone, Copy, Debug)]
enum Maker {
    Grpcio,
    GrpcJs,
}

/// An agent of another maker.
fn agent(maker: Maker, setup: &Value) -> Program {
    match maker {
        Maker::Grpcio => Program::python("grpcio_agent.py", &[&setup.to_string()]),
        Maker::GrpcJs => Program::start(Path::new("node"), "grpc_js_agent.cjs", &[&setup.to_string()]),
    }
}

/// A `ws-tunnel` by the websockets library; returns what to dial.
async fn bridge(url: &str, ca: Option<&str>) -> (Program, String) {
    let arguments: Vec<&str> = [Some(url), ca].into_iter().flatten().collect();
    let mut program = Program::python("bridge.py", &arguments);
    let port = program.line().await;
    (program, format!("127.0.0.1:{port}"))
}

/// What the edge counted of the last call of this method.
async fn bytes_in(edge: &mut Process, method: &str, call: usize) -> u64 {
    let name = method.to_owned();
    until("the call in the edge's access log", async || {
        let lines = edge.lines();
        let mut calls =
            lines.iter().filter(|line| line["method"] == *name && line["message"] == "stream finished");
        calls.nth(call).map(|line| line["bytes_in"].as_u64().expect("a number"))
    })
    .await
}

/// Everything an agent does, done by a stranger.
async fn plays_an_agent(field: &Field, agent: &mut Program, pieces: usize) {
    let registered = agent.expect_code(json!({"do": "register"}), code::OK).await;
    assert_eq!(registered["bytes"], 0);
    agent.expect_code(json!({"do": "unknown"}), code::UNIMPLEMENTED).await;

    // Errors without any message, from the broker and from the edge, which remembers what the broker said.
    static TRIED: AtomicUsize = AtomicUsize::new(0);
    let wrong = format!("wrong-{}", TRIED.fetch_add(1, Ordering::Relaxed));
    for words in ["token is not known", "refused a moment ago"] {
        let refused =
            agent.expect_code(json!({"do": "register", "token": wrong}), code::UNAUTHENTICATED).await;
        assert!(refused["details"].as_str().expect("text").contains(words), "{refused}");
    }
    let refused = agent.expect_code(json!({"do": "register", "token": null}), code::UNAUTHENTICATED).await;
    assert!(refused["details"].as_str().expect("text").contains("no agent token"), "{refused}");
    for token in [json!(wrong), json!(null)] {
        agent.expect_code(json!({"do": "configuration", "token": token}), code::UNAUTHENTICATED).await;
        agent
            .expect_code(json!({"do": "connect", "token": token, "refused": true}), code::UNAUTHENTICATED)
            .await;
    }

    let configuration = agent.expect_code(json!({"do": "configuration"}), code::CANCELLED).await;
    assert_eq!(configuration["open"], true, "{configuration}");
    assert_eq!(configuration["agent"], AGENT, "{configuration}");
    assert_eq!(configuration["commit"].as_str().map(str::len), Some(40), "{configuration}");

    // An agent that begins with a trailer, field 4, instead of its descriptor.
    agent
        .expect_code(json!({"do": "connect", "first": "2200", "refused": true}), code::INVALID_ARGUMENT)
        .await;

    for (piece, times) in [("pong", 1), ("nineteen characters\n", pieces)] {
        assert_eq!(agent.tell(json!({"do": "connect"})).await, json!({"open": true}));
        until_idle(field, 1).await;
        agent.order(json!({"do": "serve", "piece": piece, "times": times})).await;
        let mut caller = http::Client::new(field).await;
        let path = "/api/v1/namespaces/default/configmaps";
        let response = caller.send("POST", path, full("ping")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/plain");
        let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect("whole");
        assert!(body.to_bytes() == piece.repeat(times).as_bytes());
        let served = agent.answer().await;
        let expected = json!({
            "method": MAKE_REQUEST, "verb": "POST", "path": path, "body": "ping", "rest": 0, "code": code::OK,
        });
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(served[key], *value, "{key} of {served}");
        }
    }

    assert_eq!(agent.tell(json!({"do": "connect"})).await, json!({"open": true}));
    until_idle(field, 1).await;
    agent.expect_code(json!({"do": "cancel"}), code::CANCELLED).await;
    until_idle(field, 0).await;
    assert_eq!(metric(field.addresses.broker_probes, "postern_broker_tunnels_busy").await, Some(0));
}

fn setup(field: &Field, gzip: bool) -> Value {
    json!({
        "target": format!("localhost:{}", field.addresses.edge_tls.port()),
        "ca": field.folder.path().join("ca.crt"),
        "token": field.agent_token,
        "gzip": gzip,
    })
}

/// Through the TLS port; plain first, then every message compressed.
async fn is_served(maker: Maker) {
    let mut field = field_without_agent().await;
    let mut sizes = Vec::new();
    for gzip in [false, true] {
        let mut agent = agent(maker, &setup(&field, gzip));
        let calls = field.edge.lines().iter().filter(|line| line["method"] == REGISTER).count();
        agent.expect_code(json!({"do": "register", "pod": "p".repeat(LONG)}), code::OK).await;
        sizes.push(bytes_in(&mut field.edge, REGISTER, calls).await);
        plays_an_agent(&field, &mut agent, 20_000).await;
    }
    assert!(sizes[0] > LONG as u64 && sizes[1] < 1000, "compressed on the wire: {sizes:?}");
}

#[tokio::test]
async fn grpcio_is_served_as_an_agent_with_and_without_gzip() {
    is_served(Maker::Grpcio).await;
}

#[tokio::test]
async fn grpc_js_is_served_as_an_agent_with_and_without_gzip() {
    is_served(Maker::GrpcJs).await;
}

/// What agentk of either generation puts into `:authority` when it dials a WebSocket.
const URLS: [&str; 2] =
    ["wss://kas.example.com/-/kubernetes-agent/", "wss:%2F%2Fkas.example.com%2F-%2Fkubernetes-agent%2F"];

#[tokio::test]
async fn grpcio_with_a_url_as_authority_is_served_through_websockets_in_odd_sizes() {
    let field = field_without_agent().await;
    let ca = field.folder.path().join("ca.crt").display().to_string();
    let ports = field.addresses;
    let ws = format!("ws://127.0.0.1:{}/-/kubernetes-agent/", ports.edge_plain.port());
    let wss = format!("wss://localhost:{}/-/kubernetes-agent/", ports.edge_tls.port());
    let straight = format!("ws://{}/", ports.broker_agents);
    for (url, ca, gzip) in [(&ws, None, false), (&wss, Some(ca.as_str()), true)] {
        let (_bridge, target) = bridge(url, ca).await;
        for authority in URLS {
            let setup =
                json!({"target": target, "token": field.agent_token, "gzip": gzip, "authority": authority});
            let mut agent = agent(Maker::Grpcio, &setup);
            plays_an_agent(&field, &mut agent, 500).await;
        }
    }
    // The broker repairs it too where there is no edge; only the edge refuses calls without a token by itself.
    let (_bridge, target) = bridge(&straight, None).await;
    for authority in URLS {
        let setup = json!({"target": target, "token": field.agent_token, "authority": authority});
        let mut agent = agent(Maker::Grpcio, &setup);
        agent.expect_code(json!({"do": "register"}), code::OK).await;
        agent.expect_code(json!({"do": "register", "token": null}), code::UNAUTHENTICATED).await;
    }
}
