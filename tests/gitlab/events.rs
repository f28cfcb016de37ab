//! What happens to agents, told to Rails' cable on a real Redis and to whoever reads it from the broker itself.

use super::{FILE, received};
use crate::harness::{
    AGENT, PATIENCE,
    gitlab::{GitLabField, Grpcio, OTHER, Setup},
    http::full,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stand_ins::redis::{Options, RedisServer};
use std::{fs, net::SocketAddr};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

const PASSWORD: &str = "redis-password-0123456789";
/// Where the API listener serves them.
const EVENTS: &str = "/api/v1/events";

/// What Rails does: subscribes, in bare RESP, and passes on what it is told.
struct Cable {
    stream: BufReader<TcpStream>,
    /// What came while something else was awaited: channel and message.
    passed: Vec<(String, Value)>,
}

impl Cable {
    async fn subscribe(address: &str, pattern: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let commands = format!("AUTH {PASSWORD}\r\nPSUBSCRIBE {pattern}\r\n");
        stream.write_all(commands.as_bytes()).await.unwrap();
        let mut cable = Self { stream: BufReader::new(stream), passed: Vec::new() };
        assert_eq!(cable.line().await, "+OK");
        assert_eq!(cable.line().await, "*3");
        assert_eq!((cable.text().await, cable.text().await), ("psubscribe".into(), pattern.into()));
        assert_eq!(cable.line().await, ":1");
        cable
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("in time").unwrap();
        line.trim_end().to_owned()
    }

    async fn text(&mut self) -> String {
        let length: usize = self.line().await.strip_prefix('$').unwrap().parse().unwrap();
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes.truncate(length);
        String::from_utf8(bytes).unwrap()
    }

    /// The next message, and on which channel it came.
    async fn message(&mut self) -> (String, Value) {
        assert_eq!(self.line().await, "*4");
        assert_eq!(self.text().await, "pmessage");
        self.text().await;
        let channel = self.text().await;
        (channel, serde_json::from_str(&self.text().await).unwrap())
    }

    /// The next message of this kind on this channel, which nobody was told of yet.
    async fn tells(&mut self, channel: &str, kind: &str) -> Value {
        let wanted = |(on, message): &(String, Value)| on == channel && message["kind"] == kind;
        if let Some(at) = self.passed.iter().position(wanted) {
            return self.passed.remove(at).1;
        }
        loop {
            let told = self.message().await;
            if wanted(&told) {
                return told.1;
            }
            self.passed.push(told);
        }
    }
}

/// A reader of the broker's own stream of events.
struct Reader {
    body: Incoming,
    text: String,
    /// What came while something else was awaited.
    passed: Vec<Value>,
}

async fn read(address: SocketAddr, path: &str, authorization: Option<&str>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::get(path).header("host", "kas").header("accept", "text/event-stream");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let request = request.body(full(Bytes::new())).unwrap();
    timeout(PATIENCE, send.send_request(request)).await.expect("in time").unwrap()
}

impl Reader {
    async fn open(address: SocketAddr, path: &str, authorization: &str) -> Self {
        let response = read(address, path, Some(authorization)).await;
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut reader = Self { body: response.into_body(), text: String::new(), passed: Vec::new() };
        // What it says first, so that nothing is missed from then on.
        reader.piece().await;
        reader
    }

    /// The lines of the next event or comment.
    async fn piece(&mut self) -> String {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let piece = self.text.drain(..end + 2).collect::<String>();
                return piece.trim_end().to_owned();
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("in time").expect("open").unwrap();
            self.text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        }
    }

    /// The next event, whose JSON says what its other lines do.
    async fn event(&mut self) -> Value {
        loop {
            let piece = self.piece().await;
            let line = |name: &str| piece.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let Some(data) = line("data:") else { continue };
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(line("event:"), data["kind"].as_str(), "{piece}");
            assert!(line("id:").is_some_and(|id| id.parse::<u64>().is_ok()), "{piece}");
            return data;
        }
    }

    /// The next event of this kind about this agent, which nobody was told of yet.
    async fn tells(&mut self, kind: &str, agent: i64) -> Value {
        let wanted = |event: &Value| event["kind"] == kind && event["agent_id"] == agent;
        if let Some(at) = self.passed.iter().position(wanted) {
            return self.passed.remove(at);
        }
        loop {
            let event = self.event().await;
            if wanted(&event) {
                return event;
            }
            self.passed.push(event);
        }
    }
}

#[tokio::test]
async fn what_happens_to_agents_reaches_rails_cable_and_readers_of_the_api_listener() {
    let options = Options { password: Some(PASSWORD.into()), tcp: true, ..Options::default() };
    let redis = RedisServer::start(options).await.unwrap();
    let password = redis.directory().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let mut cable = Cable::subscribe(&redis.address(), "*").await;
    let mut field = GitLabField::with(Setup {
        kas_extra: format!(
            "events:\n  action_cable:\n    redis: {{server: {{address: '{}'}}, password_file: '{}'}}\n    \
             channel_prefix: gitlab_test\n  server_sent_events: {{}}\n",
            redis.address(),
            password.display()
        ),
        ..Setup::default()
    })
    .await;
    let (own, project) = ("gitlab_test:kas_agent:7", "gitlab_test:kas_project:1");
    let connected = cable.tells(own, "agent_connected").await;
    assert_eq!((&connected["agent_id"], &connected["project_id"]), (&json!(AGENT), &json!(1)), "{connected}");
    assert!(connected["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{connected}");
    let first = field.head(1);
    received(&mut field.agent, &first).await;

    // Readers say who they are, as Rails does.
    let mut rails = field.grpcio().await;
    let authorization = format!("Bearer {}", rails.sign(Grpcio::claims()).await);
    let expired = json!({"aud": "gitlab-kas", "exp": -1});
    let expired = format!("Bearer {}", rails.sign(expired).await);
    for bad in [None, Some("Bearer nonsense"), Some(expired.as_str())] {
        let refused = read(field.api, EVENTS, bad).await;
        assert_eq!(refused.status(), 401, "{bad:?}: {refused:?}");
    }
    let mut all = Reader::open(field.api, EVENTS, &authorization).await;
    let mut others = Reader::open(field.api, &format!("{EVENTS}?agent_id={OTHER}"), &authorization).await;

    let good = field.commit(1, &[(FILE, Some("observability: {logging: {level: info}}\n"))]);
    received(&mut field.agent, &good).await;
    let event = all.tells("configuration_sent", AGENT).await;
    assert_eq!(event["commit_id"], good, "{event}");
    loop {
        let told = cable.tells(project, "configuration_sent").await;
        if told["commit_id"] == good {
            assert_eq!(told, event);
            break;
        }
    }
    let bad = field.commit(1, &[(FILE, Some("observabilty: {}\n"))]);
    let event = all.tells("configuration_refused", AGENT).await;
    assert_eq!(event["commit_id"], bad, "{event}");
    assert!(event["error"].as_str().unwrap().contains("observabilty"), "{event}");

    // One that registers says nothing when it goes; it is missed a while after its last stream.
    field.agent.kill().await;
    // An agent of 14.1 is there for as long as it asks for its configuration.
    let mut other = field.grpcio().await;
    let configuration = "agent_configuration.rpc.AgentConfiguration/GetConfiguration";
    other.agent_stays(&field.tokens.other, configuration, json!({})).await;
    assert_eq!(all.tells("agent_connected", OTHER).await["project_id"], 2);
    // The first thing that a reader who asked for this agent only is told of.
    let event = others.event().await;
    assert_eq!((&event["kind"], &event["agent_id"]), (&json!("agent_connected"), &json!(OTHER)), "{event}");
    drop(other);
    all.tells("agent_disconnected", OTHER).await;
    cable.tells("gitlab_test:kas_agent:8", "agent_disconnected").await;

    let wanted = json!({"project_id": "group/manifests", "paths": [{"glob": "**/*.yaml"}]});
    let method = "gitops.rpc.Gitops/GetObjectsToSynchronize";
    let answer = rails.agent(&field.tokens.agent, method, &[wanted], json!({})).await;
    assert_eq!(answer["code"], "OK", "{answer}");
    let event = all.tells("gitops_manifests_sent", AGENT).await;
    assert_eq!(event["commit_id"], field.head(3), "{event}");
    assert_eq!(event["manifest_project"], "group/manifests", "{event}");

    let gone = all.tells("agent_disconnected", AGENT).await;
    assert_eq!(cable.tells(own, "agent_disconnected").await, gone);

    for process in [&field.broker, &field.agent] {
        let text = process.text();
        assert!(!text.contains(PASSWORD) && !text.contains(&authorization), "a secret is in a log");
    }
}

#[tokio::test]
async fn events_are_off_unless_they_are_asked_for() {
    let field = GitLabField::start().await;
    let mut rails = field.grpcio().await;
    let authorization = format!("Bearer {}", rails.sign(Grpcio::claims()).await);
    let answer = read(field.api, EVENTS, Some(&authorization)).await;
    assert_ne!(
        answer.headers().get("content-type").map(|value| value.as_bytes()),
        Some(&b"text/event-stream"[..])
    );
}
