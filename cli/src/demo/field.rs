//! The three programs of the demo in the order in which each needs the address of the one before: broker, edge, agent.
//! Each is waited for twice, until it says where it listens and until its own probe says it is ready. At the end one
//! request has gone all the way to the cluster and back.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;

use super::child::{Child, ChildError};
use super::client::Server;
use super::cluster::Cluster;
use super::gitlab::GitLab;
use super::place::{Place, WriteError};
use super::repository::{self, RepositoryError};

/// For one program to say what it listens on.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// For one program to be ready, and for the agent to reach its cluster. An agent that was refused waits up to 20 s
/// before it tries again.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// Why the demo does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("prepare the repository of the agent's configuration")]
    Repository(#[from] RepositoryError),
}

/// A program of the demo is not installed.
#[derive(Debug, thiserror::Error)]
#[error("there is no {name} beside this program ({}) nor in PATH; build all of them with `cargo build --workspace --bins`", beside.display())]
pub(super) struct Missing {
    name: &'static str,
    beside: PathBuf,
}

/// Where the programs are.
pub(super) struct Programs {
    broker: PathBuf,
    edge: PathBuf,
    agent: PathBuf,
}

impl Programs {
    /// Those beside this program, or else those in PATH.
    pub(super) fn find() -> Result<Programs, Missing> {
        let own = std::env::current_exe().unwrap_or_default();
        let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let find = |name: &'static str| {
            std::iter::once(beside.clone())
                .chain(std::env::split_paths(&path))
                .map(|directory| directory.join(name))
                .find(|program| program.is_file())
                .ok_or_else(|| Missing { name, beside: beside.clone() })
        };
        Ok(Programs { broker: find("kas")?, edge: find("postern-edge")?, agent: find("agentk")? })
    }
}

/// What runs, as far as the user or the tour must know.
pub(super) struct Field {
    pub(super) edge: SocketAddr,
    pub(super) kubeconfig: PathBuf,
    pub(super) repository: PathBuf,
    /// The broker's configuration file.
    pub(super) config: PathBuf,
    /// Name of each program and the address of its probes and metrics.
    pub(super) probes: [(&'static str, SocketAddr); 3],
}

impl Field {
    /// Starts everything. What was started is in `children` however this ends, in the order of a drain: the edge, so
    /// that nothing new comes in; the agent; the broker.
    pub(super) async fn start(
        programs: &Programs,
        place: &Place,
        cluster: &Cluster,
        gitlab: Option<&GitLab>,
        limited: bool,
        children: &mut Vec<Child>,
    ) -> Result<Field, FieldError> {
        let repository =
            gitlab.map_or_else(|| place.path("configuration"), |gitlab| gitlab.repository.clone());
        repository::prepare(&repository)?;
        let log = |name: &str| place.path("logs").join(format!("{name}.log"));

        let broker_config = match gitlab {
            None => place.write_broker(&repository)?,
            Some(gitlab) => place.write_kas(&gitlab.address(), &gitlab.secret())?,
        };
        let config = broker_config.clone();
        let arguments = ["--configuration-file".as_ref(), config.as_os_str()];
        let broker = start(children, 0, Child::start("kas", &programs.broker, &arguments, &[], log("kas"))?);
        let names = ["agents", "kubernetes_api", "observability"];
        let named = |line: &Value| {
            let index = names.iter().position(|name| line["listener"] == *name)?;
            (line["message"] == "listening").then_some(index)
        };
        let [agents, kubernetes_api, broker_probes] = listening(broker, named).await?;
        ready(broker, broker_probes).await?;

        let config = place.write_edge(agents, kubernetes_api, limited)?;
        let arguments = ["--config".as_ref(), config.as_os_str()];
        let edge = Child::start("postern-edge", &programs.edge, &arguments, &[], log("postern-edge"))?;
        let edge = start(children, 0, edge);
        let named =
            |line: &Value| ["listening", "admin listening"].iter().position(|said| line["message"] == *said);
        let [edge_address, edge_probes] = listening(edge, named).await?;
        ready(edge, edge_probes).await?;

        let (token, authority) = (place.write_agent_token()?, place.path("ca.crt"));
        let broker_url = format!("wss://localhost:{}/-/kubernetes-agent/", edge_address.port());
        let arguments: [&OsStr; 10] = [
            "--kas-address".as_ref(),
            broker_url.as_ref(),
            "--token-file".as_ref(),
            token.as_ref(),
            "--ca-cert-file".as_ref(),
            authority.as_ref(),
            "--kubeconfig".as_ref(),
            cluster.kubeconfig.as_ref(),
            "--observability-listen-address".as_ref(),
            "127.0.0.1:0".as_ref(),
        ];
        let agent = Child::start("agentk", &programs.agent, &arguments, &agent_environment(), log("agentk"))?;
        let agent = start(children, 1, agent);
        let named = |line: &Value| (line["message"] == "observability listening").then_some(0);
        let [agent_probes] = listening(agent, named).await?;
        ready(agent, agent_probes).await?;
        reachable(agent, &Server::tls(edge_address, &place.ca.pem()), &place.scout_token()).await?;

        Ok(Field {
            edge: edge_address,
            kubeconfig: place.write_kubeconfig(edge_address)?,
            repository,
            config: broker_config,
            probes: [("postern-edge", edge_probes), ("kas", broker_probes), ("agentk", agent_probes)],
        })
    }
}

/// The agent's pod, which it is not in, and no proxy on the way to the edge. A proxy to the cluster stays.
fn agent_environment() -> Vec<(&'static str, String)> {
    let mut variables =
        vec![("POD_NAMESPACE", "postern-demo".to_owned()), ("POD_NAME", "postern-demo".to_owned())];
    for name in ["NO_PROXY", "no_proxy"] {
        let given = std::env::var(name).unwrap_or_default();
        variables.push((name, format!("{given},localhost,127.0.0.1").trim_start_matches(',').to_owned()));
    }
    variables
}

fn start(children: &mut Vec<Child>, at: usize, child: Child) -> &mut Child {
    children.insert(at, child);
    &mut children[at]
}

/// Reads the addresses of `N` listeners from a program's log; `named` says which of them a line is about.
async fn listening<const N: usize>(
    child: &mut Child,
    named: impl Fn(&Value) -> Option<usize>,
) -> Result<[SocketAddr; N], ChildError> {
    let mut found = [None; N];
    let pick = |line: &Value| {
        if let Some(index) = named(line) {
            found[index] = line["address"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
        }
        let complete: Vec<SocketAddr> = found.iter().flatten().copied().collect();
        complete.try_into().ok()
    };
    child.awaits("listening", START_PATIENCE, pick).await
}

/// Waits for a program's own word that it can serve.
async fn ready(child: &mut Child, probes: SocketAddr) -> Result<(), ChildError> {
    let probe = || async move { asked(&Server::plain(probes), None, "/readiness").await };
    child.answers("ready", READY_PATIENCE, probe).await
}

/// Waits for the first answer of the cluster through edge, broker and agent.
async fn reachable(agent: &mut Child, edge: &Server, token: &str) -> Result<(), ChildError> {
    let probe = || asked(edge, Some(token), "/k8s-proxy/version");
    agent.answers("reaching the cluster", READY_PATIENCE, probe).await
}

async fn asked(server: &Server, token: Option<&str>, path: &str) -> Result<(), String> {
    let answer = async { server.connect(token).await?.ask(Method::GET, path, None).await };
    match answer.await {
        Ok(answer) if answer.status == StatusCode::OK => Ok(()),
        Ok(answer) => Err(answer.summary()),
        Err(error) => Err(error.to_string()),
    }
}
