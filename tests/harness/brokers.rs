//! Brokers that share a Redis, as processes without an edge before them, and callers of their Kubernetes API. Agents are
//! those of `agents.rs` or none.

use super::{
    PATIENCE, Process,
    agents::{Agents, Habits, Identity},
    random,
    redis::Auditor,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use postern_wire::token::{AgentToken, TokenKey};
use rustix::process::{Resource, getrlimit, setrlimit};
use stand_ins::redis::{Options, RedisServer};
use std::{fs, net::SocketAddr};
use tokio::{net::TcpStream, time::timeout};

/// Where callers' paths begin.
const PREFIX: &str = "/k8s-proxy";

/// One of them.
pub(crate) struct Broker {
    _process: Process,
    pub(crate) agents: SocketAddr,
    pub(crate) kubernetes: SocketAddr,
    /// Of the probes, and of what the broker says of itself.
    pub(crate) probes: SocketAddr,
}

/// All of them, and their Redis.
pub(crate) struct Brokers {
    pub(crate) all: Vec<Broker>,
    pub(crate) auditor: Auditor,
    /// Of the agents that may connect, numbered from 1.
    pub(crate) identities: Vec<Identity>,
    caller_token: String,
    folder: tempfile::TempDir,
    _redis: RedisServer,
}

impl Brokers {
    /// So many, with a Redis of their own, for so many agents. `agent_section` is added to that section of kas.yaml, which
    /// otherwise says nothing that it need not say.
    pub(crate) async fn start(count: usize, agents: usize, agent_section: &str) -> Self {
        allow_files();
        let redis = RedisServer::start(Options::default()).await.expect("redis-server starts");
        let auditor = Auditor::connect(&redis).await;
        let folder = tempfile::tempdir().expect("folder");
        let identities: Vec<Identity> = (1..)
            .take(agents)
            .map(|id| Identity {
                id,
                token: AgentToken::new(format!("glagent-{}", random())).expect("a legal token"),
            })
            .collect();
        let caller_token = format!("caller-{}", random());
        let here = folder.path();
        fs::write(here.join("identities.yaml"), file(&identities, &caller_token)).expect("written");
        fs::write(here.join("private.secret"), BASE64_STANDARD.encode(rand::random::<[u8; 32]>()))
            .expect("written");
        let kas = format!(
            "agent:\n  listen: {{address: '127.0.0.1:0'}}\n  kubernetes_api:\n    listen: {{address: '127.0.0.1:0'}}\n    \
             url_path_prefix: {PREFIX}/\n{agent_section}\
             observability: {{listen: {{address: '127.0.0.1:0'}}}}\n\
             redis: {{network: unix, server: {{address: '{}'}}}}\n\
             private_api: {{listen: {{address: '127.0.0.1:0', authentication_secret_file: private.secret}}}}\n\
             embedded: {{identities_file: identities.yaml}}\n",
            redis.socket().display()
        );
        fs::write(here.join("kas.yaml"), kas).expect("written");
        let mut brokers = Self { all: Vec::new(), auditor, identities, caller_token, folder, _redis: redis };
        for _ in 0..count {
            brokers.add().await;
        }
        brokers
    }

    /// One more.
    pub(crate) async fn add(&mut self) {
        let here = self.folder.path();
        let arguments = ["--configuration-file".into(), here.join("kas.yaml").display().to_string()];
        // At `debug` the log of thousands of agents would be what is measured.
        let mut process = Process::start("broker", "kas", here, &arguments, &[("POSTERN_LOG", "info")]);
        let agents = process.address("listening", |line| line["listener"] == "agents").await;
        let kubernetes = process.address("listening", |line| line["listener"] == "kubernetes_api").await;
        let probes = process.address("listening", |line| line["listener"] == "observability").await;
        process.logged("ready", |_| true).await;
        self.all.push(Broker { _process: process, agents, kubernetes, probes });
    }

    /// All agents, evenly spread, each with what [`Agents::stand`] waits for.
    pub(crate) async fn with_agents(&self, habits: Habits) -> Agents {
        let brokers: Vec<SocketAddr> = self.all.iter().map(|broker| broker.agents).collect();
        let agents = Agents::start(&brokers, &self.identities, habits);
        agents.stand().await;
        agents
    }

    /// A connection to the Kubernetes API of one broker.
    pub(crate) async fn caller(&self, broker: usize) -> Caller {
        let (address, token) = self.entrance(broker);
        Caller::connect(address, &token).await
    }

    /// What [`Caller::connect`] wants.
    pub(crate) fn entrance(&self, broker: usize) -> (SocketAddr, String) {
        (self.all[broker].kubernetes, self.caller_token.clone())
    }
}

fn file(identities: &[Identity], caller_token: &str) -> String {
    let mut text = String::from("agents:\n");
    let mut ids = Vec::new();
    for Identity { id, token } in identities {
        text += &format!("- {{id: {id}, name: agent-{id}, token_sha256: [{}]}}\n", token.key().to_hex());
        ids.push(id.to_string());
    }
    let caller = TokenKey::of(caller_token.as_bytes()).to_hex();
    text + &format!("callers:\n- {{name: tester, agents: [{}], token_sha256: [{caller}]}}\n", ids.join(", "))
}

/// An agent is a connection here and one in a broker, which inherits this.
fn allow_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused, whoever runs out of them says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// One connection to the Kubernetes API of a broker.
pub(crate) struct Caller {
    send: http1::SendRequest<Empty<Bytes>>,
    token: String,
}

impl Caller {
    pub(crate) async fn connect(address: SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("the broker accepts");
        stream.set_nodelay(true).expect("nodelay");
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(connection);
        Self { send, token: token.to_owned() }
    }

    /// A GET of a path in an agent's cluster; the whole answer.
    pub(crate) async fn get(&mut self, agent: i64, path: &str) -> (u16, Bytes) {
        let request = Request::get(format!("{PREFIX}{path}"))
            .header("host", "localhost")
            .header("authorization", format!("Bearer postern:{agent}:{}", self.token))
            .body(Empty::new())
            .expect("a request");
        let whole = async {
            self.send.ready().await?;
            let response = self.send.send_request(request).await?;
            let status = response.status().as_u16();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let whole = timeout(PATIENCE, whole).await;
        whole.unwrap_or_else(|_| panic!("no answer of agent {agent} in time")).expect("a whole answer")
    }

    /// As [`Caller::get`]; it must be that agent's answer.
    pub(crate) async fn reach(&mut self, agent: i64) {
        let (status, body) = self.get(agent, "/version").await;
        let text = String::from_utf8_lossy(&body);
        assert_eq!((status, &*text), (200, &*format!("{agent} /version")), "an answer of agent {agent}");
    }
}
