//! A fleet, running: three brokers, an edge, fifty agents and Redis, each on a host of its own, and one more host for
//! those who ask. Behind each agent a cluster of its own that says whose it is. What a test does to them is in
//! `fleet.rs`, how it asks in `callers.rs`.

use super::{
    callers::{Callers, Entrance, asked_for},
    hosts::{Host, Hosts},
    redis::Redis,
};
use crate::harness::{PATIENCE, Process, random, within};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::{StreamExt, future::select_ok, stream::FuturesUnordered};
use postern_certs::dev::{Ca, Issued};
use postern_wire::token::TokenKey;
use serde_json::json;
use stand_ins::kube_api::{self, KubeApi};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

pub(crate) const BROKERS: usize = 3;
pub(crate) const AGENTS: usize = 50;
/// The last ones dial a broker, one after the other; the rest dials the edge.
const STRAIGHT: usize = 10;
/// How long a broker lets a request wait for its agent.
pub(crate) const AGENT_WAIT: Duration = Duration::from_secs(5);
/// The first agent's id; the others follow.
const FIRST: i64 = 101;
/// More than brokers: the edge sends each caller's requests to the same one.
const CALLERS: usize = 9;
/// Of each log, where a test fails.
const LAST_LINES: usize = 40;
/// Until all agents are there.
const START: Duration = Duration::from_secs(120);

/// Every host has its ports to itself.
const AGENT_PORT: u16 = 8150;
const PROBE_PORT: u16 = 8151;
const KUBERNETES_PORT: u16 = 8154;
const PRIVATE_PORT: u16 = 8155;
const EDGE_TLS: u16 = 443;
const EDGE_PLAIN: u16 = 80;

/// A broker on its host.
pub(crate) struct Broker {
    pub(crate) host: Host,
    pub(crate) process: Process,
}

impl Broker {
    /// As it is written into Redis.
    pub(crate) fn url(&self) -> String {
        url(&self.host)
    }

    /// As the edge calls it, where agents are concerned.
    pub(crate) fn agents(&self) -> String {
        format!("{}:{AGENT_PORT}", self.host.address)
    }

    fn start(number: usize, host: &Host, folder: &Path) -> Process {
        let arguments = ["--configuration-file".into(), kas_yaml(number, folder)];
        let env = [("OWN_PRIVATE_API_URL", &*url(host)), ("POSTERN_LOG", &level())];
        host.spawn(&format!("broker-{number}"), "kas", folder, &arguments, &env)
    }

    async fn listens(&mut self) {
        self.process.logged("listening", |line| line["listener"] == "kubernetes_api").await;
    }
}

fn url(host: &Host) -> String {
    format!("grpc://{}:{PRIVATE_PORT}", host.address)
}

fn kas_yaml(number: usize, folder: &Path) -> String {
    folder.join(format!("kas-{number}.yaml")).display().to_string()
}

/// Fifty times `debug` is more than two cores want to write.
fn level() -> String {
    std::env::var("POSTERN_LOG").unwrap_or_else(|_| "info,access=off".to_owned())
}

/// An agent on its host, and its cluster.
pub(crate) struct Agent {
    pub(crate) id: i64,
    /// The broker that it dials itself.
    pub(crate) straight: Option<usize>,
    cluster: KubeApi,
    _process: Process,
}

/// Everything, running. Processes end before their hosts do.
pub(crate) struct Fleet {
    pub(crate) brokers: Vec<Broker>,
    pub(crate) edge: Process,
    pub(crate) agents: Vec<Agent>,
    pub(crate) redis: Redis,
    pub(crate) callers: Arc<Callers>,
    pub(crate) hosts: Hosts,
    folder: tempfile::TempDir,
}

/// Which Redis a fleet has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Single,
    Sentinel,
}

impl Fleet {
    /// Starts everything and waits until every agent is reachable somewhere.
    pub(crate) async fn start(kind: Kind) -> Self {
        let start = Instant::now();
        postern_certs::install_provider();
        let folder = tempfile::tempdir().expect("folder");
        let here = folder.path().to_owned();
        let mut hosts = Hosts::new();
        let redis = match kind {
            Kind::Single => Redis::single(&mut hosts, &here).await,
            Kind::Sentinel => Redis::watched(&mut hosts, &here).await,
        };
        let (tokens, callers) = identities(&here);
        fs::write(here.join("private.secret"), BASE64_STANDARD.encode(rand::random::<[u8; 32]>()))
            .expect("written");

        let mut brokers = Vec::new();
        for number in 0..BROKERS {
            let host = hosts.add(&format!("broker-{number}"));
            fs::write(kas_yaml(number, &here), configuration(&host, &redis)).expect("written");
            let process = Broker::start(number, &host, &here);
            brokers.push(Broker { host, process });
        }
        for broker in &mut brokers {
            broker.listens().await;
        }
        let edge_host = hosts.add("edge");
        let edge = start_edge(&edge_host, &brokers, &here).await;
        let mut agents = Vec::new();
        for (number, (id, token)) in tokens.into_iter().enumerate() {
            let straight = (number >= AGENTS - STRAIGHT).then_some(number % BROKERS);
            let kas = match (straight.map(|broker| brokers[broker].agents()), number % 4) {
                (Some(broker), 0 | 2) => format!("ws://{broker}"),
                (Some(broker), _) => format!("grpc://{broker}"),
                (None, 0) => format!("wss://{}/-/kubernetes-agent/", edge_host.address),
                (None, 1) => format!("ws://{}/-/kubernetes-agent/", edge_host.address),
                (None, 2) => format!("grpcs://{}:{EDGE_TLS}", edge_host.address),
                (None, _) => format!("grpc://{}:{EDGE_PLAIN}", edge_host.address),
            };
            let host = hosts.add(&format!("agent-{id}"));
            let cluster = cluster(&host, id).await;
            let process = start_agent(&host, id, &token, &kas, &cluster, &here);
            agents.push(Agent { id, straight, cluster, _process: process });
        }
        let started = start.elapsed();

        let callers = Callers::new(
            hosts.add("callers"),
            (edge_host.address, EDGE_PLAIN).into(),
            brokers.iter().map(|broker| (broker.host.address, KUBERNETES_PORT).into()).collect(),
            callers,
            AGENT_WAIT + Duration::from_secs(10),
        );
        let fleet = Self { brokers, edge, agents, redis, callers: Arc::new(callers), hosts, folder };
        fleet.arrival().await;
        println!("{AGENTS} agents, started within {started:?}, were reachable after {:?}", start.elapsed());
        fleet
    }

    /// Every agent answers through some broker. The first broker is left alone if that may be: a test may want one
    /// that knows no routes yet.
    async fn arrival(&self) {
        let mut arrivals: FuturesUnordered<_> = self
            .agents
            .iter()
            .map(async |agent| {
                within(START, &format!("agent {} is reachable", agent.id), async || {
                    let ask = |broker| Box::pin(self.callers.ask(Entrance::Broker(broker), agent.id));
                    match select_ok((1..BROKERS).map(ask)).await {
                        Ok(_) => Some(()),
                        Err(_) => ask(0).await.ok(),
                    }
                })
                .await;
            })
            .collect();
        while arrivals.next().await.is_some() {}
    }

    /// All ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = i64> {
        self.agents.iter().map(|agent| agent.id)
    }

    /// Which brokers hold which agent, as soon as Redis knows of all agents. It is one each, unless an agent is moving.
    pub(crate) async fn homes(&self) -> BTreeMap<i64, BTreeSet<usize>> {
        let homes = within(PATIENCE, "Redis names a broker for each agent", async || {
            let directory = self.redis.master.directory().await.ok()?;
            let number = |url: &String| self.brokers.iter().position(|broker| broker.url() == *url);
            let homes =
                directory.into_iter().map(|(id, urls)| (id, urls.iter().filter_map(number).collect()));
            let homes: BTreeMap<_, BTreeSet<_>> = homes.collect();
            self.ids().all(|id| homes.get(&id).is_some_and(|home| !home.is_empty())).then_some(homes)
        })
        .await;
        let held = (0..BROKERS).map(|broker| homes.values().filter(|home| home.contains(&broker)).count());
        println!("agents by broker: {:?}", held.collect::<Vec<_>>());
        homes
    }

    /// Starts a broker again where it was.
    pub(crate) async fn restart_broker(&mut self, number: usize) {
        let broker = &mut self.brokers[number];
        broker.process = Broker::start(number, &broker.host, self.folder.path());
        broker.listens().await;
    }

    /// What must hold after whatever happened: no answer was another agent's, none came too late, and no cluster has
    /// seen a request for another one.
    pub(crate) fn check(&self) {
        let mut wrongs = self.callers.wrongs();
        for agent in &self.agents {
            let own = asked_for(agent.id);
            let strange = agent.cluster.requests().into_iter().filter(|seen| {
                seen.uri.query().is_some_and(|query| query.contains("asked=") && !query.contains(&own))
            });
            wrongs.extend(strange.map(|seen| format!("agent {}'s cluster has seen {}", agent.id, seen.uri)));
        }
        assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
        println!("{} requests, none late or astray", self.callers.asked());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in self.brokers.iter().map(|broker| &broker.process).chain([&self.edge]) {
                let text = process.text();
                // Fifty agents say the same when they arrive.
                let telling = |line: &&str| !line.contains("postern_broker::agent_configuration");
                let lines: Vec<_> = text.lines().filter(telling).collect();
                println!(
                    "--- {}\n{}",
                    process.name,
                    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
                );
            }
        }
    }
}

/// Writes who may connect and who may call; returns the agents with their tokens, and callers' tokens.
fn identities(folder: &Path) -> (Vec<(i64, String)>, Vec<String>) {
    let agents: Vec<_> =
        (FIRST..).take(AGENTS).map(|id| (id, format!("glagent-{id}-{}", random()))).collect();
    let callers: Vec<_> = (0..CALLERS).map(|number| format!("caller-{number}-{}", random())).collect();
    let hash = |token: &String| TokenKey::of(token.as_bytes()).to_hex();
    let mut text = "agents:\n".to_owned();
    for (id, token) in &agents {
        let _ = writeln!(text, "- {{id: {id}, name: agent-{id}, token_sha256: [{}]}}", hash(token));
    }
    text += "callers:\n";
    let ids: Vec<_> = agents.iter().map(|(id, _)| id.to_string()).collect();
    for (number, token) in callers.iter().enumerate() {
        let (all, hash) = (ids.join(", "), hash(token));
        let _ = writeln!(text, "- {{name: caller-{number}, agents: [{all}], token_sha256: [{hash}]}}");
    }
    fs::write(folder.join("identities.yaml"), text).expect("written");
    (agents, callers)
}

/// A broker's kas.yaml.
fn configuration(host: &Host, redis: &Redis) -> String {
    let at = |port: u16| format!("address: '{}:{port}'", host.address);
    format!(
        "agent:\n  listen: {{{}, websocket: true}}\n  kubernetes_api:\n    listen: {{{}}}\n    \
         url_path_prefix: /k8s-proxy/\n    agent_wait: {}s\n\
         private_api: {{listen: {{{}, authentication_secret_file: private.secret}}}}\n\
         observability: {{listen: {{{}}}}}\nredis: {}\nembedded: {{identities_file: identities.yaml}}\n",
        at(AGENT_PORT),
        at(KUBERNETES_PORT),
        AGENT_WAIT.as_secs(),
        at(PRIVATE_PORT),
        at(PROBE_PORT),
        redis.section(),
    )
}

/// The edge in front of all brokers, with a certificate for its address.
async fn start_edge(host: &Host, brokers: &[Broker], folder: &Path) -> Process {
    let ca = Ca::new();
    let Issued { certificate_pem, key_pem } = ca.issue(&[&host.address.to_string()]);
    for (file, text) in [("ca.crt", ca.pem()), ("tls.crt", certificate_pem), ("tls.key", key_pem)] {
        fs::write(folder.join(file), text).expect("written");
    }
    let all = |port: u16| {
        let each = brokers.iter().map(|broker| format!("'{}:{port}'", broker.host.address));
        each.collect::<Vec<_>>().join(", ")
    };
    let text = format!(
        "listen:\n- {{address: '{0}:{EDGE_TLS}', tls: {{certificates: [{{certificate_file: tls.crt, key_file: tls.key}}]}}}}\n\
         - {{address: '{0}:{EDGE_PLAIN}'}}\nupstreams:\n  agents: {{addresses: [{1}]}}\n  \
         kubernetes_api: {{addresses: [{2}]}}\nadmin: {{listen: '127.0.0.1:0'}}\n",
        host.address,
        all(AGENT_PORT),
        all(KUBERNETES_PORT),
    );
    fs::write(folder.join("edge.yaml"), text).expect("written");
    let arguments = ["--config".into(), folder.join("edge.yaml").display().to_string()];
    let mut edge = host.spawn("edge", "postern-edge", folder, &arguments, &[("POSTERN_LOG", &level())]);
    edge.logged("admin listening", |_| true).await;
    edge
}

fn start_agent(host: &Host, id: i64, token: &str, kas: &str, cluster: &KubeApi, folder: &Path) -> Process {
    let name = format!("agent-{id}");
    let file = |what: &str, text: &str| {
        let file = folder.join(format!("{name}.{what}"));
        fs::write(&file, text).expect("written");
        file.display().to_string()
    };
    let arguments = [
        format!("--kas-address={kas}"),
        format!("--token-file={}", file("token", token)),
        format!("--kubeconfig={}", file("kubeconfig", &cluster.kubeconfig())),
        format!("--ca-cert-file={}", folder.join("ca.crt").display()),
        "--observability-listen-address=127.0.0.1:0".to_owned(),
    ];
    let env = [("POD_NAMESPACE", "postern"), ("POD_NAME", &*name), ("POSTERN_LOG", &level())];
    host.spawn(&name, "agentk", folder, &arguments, &env)
}

/// The cluster of one agent, on the agent's own loopback: it wants a token of its own and says whose it is.
async fn cluster(host: &Host, id: i64) -> KubeApi {
    let token = Some(format!("cluster-{id}-{}", random()));
    let started = host.inside(KubeApi::start(kube_api::Options { token, ..Default::default() })).await;
    let cluster = started.expect("stand-in starts");
    let whose = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "whose"}, "data": {"agent": id.to_string()}
    });
    cluster.create(whose).expect("it is valid");
    cluster
}
