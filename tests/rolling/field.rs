//! Several brokers behind one edge, with agents of one pretended cluster: brokers that share Redis and reach each other by
//! their private APIs. Each broker comes back where it was.

use super::ready;
use crate::harness::{Process, random};
use postern_wire::token::TokenKey;
use stand_ins::{kube_api, redis};
use std::{fs, net::SocketAddr, path::PathBuf, process::ExitStatus, time::Duration};

/// How long running requests may go on when a broker is asked to end.
pub(super) const GRACE: Duration = Duration::from_secs(4);
/// Callers with tokens of their own, so that the edge chooses different brokers for them.
const CALLERS: usize = 8;

/// How many of what.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) brokers: usize,
    pub(super) agents: usize,
}

/// All of it, running.
pub(super) struct Fleet {
    pub(super) brokers: Vec<Broker>,
    pub(super) agents: Vec<Agent>,
    /// `host:port`, without TLS.
    pub(super) edge_plain: SocketAddr,
    /// What callers say after `postern:AGENT:`.
    pub(super) callers: Vec<String>,
    _edge: Process,
    _api: kube_api::KubeApi,
    _redis: Option<redis::RedisServer>,
    folder: tempfile::TempDir,
}

pub(super) struct Broker {
    pub(super) process: Process,
    file: PathBuf,
    agents: SocketAddr,
    kubernetes: SocketAddr,
    probes: SocketAddr,
}

pub(super) struct Agent {
    pub(super) id: usize,
    probes: SocketAddr,
    _process: Process,
}

impl Broker {
    async fn start(folder: &tempfile::TempDir, file: PathBuf) -> Self {
        let arguments = ["--configuration-file".into(), file.display().to_string()];
        let mut process = Process::start("broker", "kas", folder.path(), &arguments, &[]);
        let mut address =
            async |listener: &str| process.address("listening", |line| line["listener"] == listener).await;
        let (agents, kubernetes) = (address("agents").await, address("kubernetes_api").await);
        let probes = address("observability").await;
        Self { process, file, agents, kubernetes, probes }
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn drain(&mut self) -> ExitStatus {
        self.process.signal("TERM").await;
        self.process.ended().await
    }
}

impl Fleet {
    pub(super) async fn start(shape: Shape) -> Self {
        postern_certs::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_owned();
        let tokens: Vec<_> = (0..shape.agents).map(|_| format!("glagent-{}", random())).collect();
        let callers: Vec<_> = (0..CALLERS).map(|_| format!("caller-{}", random())).collect();
        fs::write(here.join("identities.yaml"), identities(&tokens, &callers)).unwrap();
        fs::write(here.join("private.secret"), "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=").unwrap();
        let redis = match shape.brokers {
            1 => None,
            _ => {
                Some(redis::RedisServer::start(redis::Options::default()).await.expect("redis-server starts"))
            }
        };
        let mut brokers = Vec::new();
        for index in 0..shape.brokers {
            let file = here.join(format!("kas-{index}.yaml"));
            fs::write(&file, kas(redis.as_ref())).unwrap();
            let broker = Broker::start(&folder, file).await;
            broker.pin();
            brokers.push(broker);
        }
        let list = |address: fn(&Broker) -> SocketAddr| {
            let quoted: Vec<_> = brokers.iter().map(|broker| format!("'{}'", address(broker))).collect();
            quoted.join(", ")
        };
        let edge_file = here.join("edge.yaml");
        let edge_text = format!(
            "listen: [{{address: '127.0.0.1:0'}}]\nupstreams:\n  agents: {{addresses: [{}]}}\n  kubernetes_api: \
             {{addresses: [{}]}}\nadmin: {{listen: '127.0.0.1:0'}}\n",
            list(|broker| broker.agents),
            list(|broker| broker.kubernetes)
        );
        fs::write(&edge_file, edge_text).unwrap();
        let arguments = ["--config".into(), edge_file.display().to_string()];
        let mut edge = Process::start("edge", "postern-edge", &here, &arguments, &[]);
        let edge_plain = edge.address("listening", |line| line["tls"] == false).await;

        let cluster_token = random();
        let options = kube_api::Options { token: Some(cluster_token), ..Default::default() };
        let api = kube_api::KubeApi::start(options).await.expect("stand-in starts");
        fs::write(here.join("cluster.kubeconfig"), api.kubeconfig()).unwrap();
        let mut agents = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            let file = here.join(format!("agent-{index}.token"));
            fs::write(&file, token).unwrap();
            let arguments = [
                format!("--kas-address=ws://{edge_plain}/-/kubernetes-agent"),
                format!("--token-file={}", file.display()),
                format!("--kubeconfig={}", here.join("cluster.kubeconfig").display()),
                "--observability-listen-address=127.0.0.1:0".to_owned(),
            ];
            let env = [("POD_NAMESPACE", "postern"), ("POD_NAME", "agent")];
            let mut process = Process::start("agent", "agentk", &here, &arguments, &env);
            let probes = process.address("observability listening", |_| true).await;
            agents.push(Agent { id: index + 1, probes, _process: process });
        }
        for agent in &agents {
            ready("an agent is ready", agent.probes).await;
        }
        Self { brokers, agents, edge_plain, callers, _edge: edge, _api: api, _redis: redis, folder }
    }

    /// Starts a broker that has ended where it was.
    pub(super) async fn restart(&mut self, index: usize) {
        let file = self.brokers[index].file.clone();
        self.brokers[index] = Broker::start(&self.folder, file).await;
        ready("a broker is ready again", self.brokers[index].probes).await;
    }

    pub(super) fn agents_probes(&self) -> Vec<SocketAddr> {
        self.agents.iter().map(|agent| agent.probes).collect()
    }

    /// What this caller says to reach this agent.
    pub(super) fn bearer(&self, caller: usize, agent: usize) -> String {
        let (caller, agent) = (&self.callers[caller % CALLERS], &self.agents[agent % self.agents.len()]);
        format!("Bearer postern:{}:{caller}", agent.id)
    }
}

impl Broker {
    /// From now on it listens where it does now.
    fn pin(&self) {
        let mut text = fs::read_to_string(&self.file).unwrap();
        for address in [self.agents, self.kubernetes, self.probes] {
            text = text.replacen("127.0.0.1:0'", &format!("{address}'"), 1);
        }
        fs::write(&self.file, text).unwrap();
    }
}

fn kas(redis: Option<&redis::RedisServer>) -> String {
    let fleet = redis.map_or_else(String::new, |redis| {
        format!(
            "redis: {{network: unix, server: {{address: {}}}}}\nprivate_api:\n  listen: {{address: '127.0.0.1:0', \
             authentication_secret_file: private.secret}}\n",
            redis.socket().display()
        )
    });
    format!(
        "agent:\n  listen: {{address: '127.0.0.1:0', websocket: true}}\n  kubernetes_api:\n    listen: {{address: \
         '127.0.0.1:0', shutdown_grace_period: {}s}}\n    url_path_prefix: /k8s-proxy/\n    agent_wait: 10s\n\
         observability: {{listen: {{address: '127.0.0.1:0'}}}}\n{fleet}embedded: {{identities_file: identities.yaml}}\n",
        GRACE.as_secs()
    )
}

fn identities(agents: &[String], callers: &[String]) -> String {
    let hash = |token: &String| TokenKey::of(token.as_bytes()).to_hex();
    let mut text = "agents:\n".to_owned();
    for (index, token) in agents.iter().enumerate() {
        text += &format!("- {{id: {}, name: a{index}, token_sha256: [{}]}}\n", index + 1, hash(token));
    }
    let all: Vec<_> = (1..=agents.len()).map(|id| id.to_string()).collect();
    text += "callers:\n";
    for (index, token) in callers.iter().enumerate() {
        text +=
            &format!("- {{name: c{index}, agents: [{}], token_sha256: [{}]}}\n", all.join(", "), hash(token));
    }
    text
}
