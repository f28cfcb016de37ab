//! Which agents are connected to this broker, in memory: one entry for each configuration stream, one for each replica of
//! a newer agent that says so every five minutes, perhaps to another broker than the one that has its streams. Written by
//! the agents' services, read by [`crate::fleet::roster`], for this broker and for others that ask. It knows nothing of
//! other brokers, stores nothing and needs no task but [`Tracker::expire`].

pub mod replicas;
mod state;

use crate::identities::Agent;
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::gitlab::agent::{agent_tracker::ConnectedAgentInfo, modshared::AgentMeta},
};
use prost_types::Timestamp;
use rand::Rng;
use state::{Entry, Key, State};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// A replica registers every five minutes, and again within seconds after a failure; there is no word of leaving.
const REGISTRATION: Duration = Duration::from_secs(360);
/// How long an agent may be without any stream before its replicas count as gone.
const ABSENCE: Duration = Duration::from_secs(15);
/// Registrations of one agent, and streams of it; the one that was heard of least recently makes room for the next.
const CONNECTIONS_MAX: usize = 1000;
/// Of them, those that are listed, the newest: an answer has room for several agents.
pub const LISTED_MAX: usize = 100;
/// Agents that are listed in one go; meanwhile nobody can register.
const AT_A_TIME: usize = 256;
/// Bytes of each text an agent says of itself; names in Kubernetes have 253 at the most.
const TEXT_MAX: usize = 256;

/// An agent came to this broker, or is gone from it altogether. One that only registers here has its streams elsewhere:
/// it neither comes nor goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nobody of this agent was connected before this one.
    Connected(Arc<ConnectedAgentInfo>),
    /// This was the last one of its agent.
    Disconnected(Arc<ConnectedAgentInfo>),
}

/// Who connects, as admission found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Proven by its token.
    pub agent: AgentId,
    /// The one with its configuration.
    pub project: ProjectId,
    /// Of the agent; empty where nobody says it.
    pub name: String,
    /// Where the connection comes from, for people: an address, with a port or without.
    pub address: String,
}

impl Who {
    /// An agent that was admitted, from there.
    pub fn of(agent: &Agent, address: String) -> Self {
        Self { agent: agent.id, project: agent.project_id, name: agent.name.clone(), address }
    }
}

/// What a connection is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A configuration stream; its number is ours.
    Stream,
    /// A replica that registers; its number is its own, at whichever broker it registers.
    Registered,
}

/// A connection as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// What it says of itself, since when it is here, and its number.
    pub info: Arc<ConnectedAgentInfo>,
    /// Of its agent; empty where nobody says it.
    pub name: Arc<str>,
    /// Where it comes from.
    pub address: Arc<str>,
    /// What kind of number it has.
    pub kind: Kind,
    /// Since it was last heard of: since it registered, or its stream began.
    pub heard_ago: Duration,
}

/// Whose connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everybody's.
    All,
    /// Those of any of these agents and of the agents configured in any of these projects.
    Of {
        /// By id.
        agents: BTreeSet<AgentId>,
        /// By id.
        projects: BTreeSet<ProjectId>,
    },
}

type Tell = Box<dyn Fn(Change) + Send + Sync>;

/// Who is connected. Clones share what they know.
#[derive(Clone, Default)]
pub struct Tracker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    tell: Option<Tell>,
}

/// A configuration stream that counts as connected while this lives.
#[must_use = "the connection ends with it"]
pub struct Connection {
    shared: Arc<Shared>,
    agent: AgentId,
    key: Key,
}

impl Tracker {
    /// Tells of every first connection and last disconnection of an agent, in their order. `tell` is called while
    /// the tracker is locked: it must neither wait nor use the tracker.
    pub fn new(tell: impl Fn(Change) + Send + Sync + 'static) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), tell: Some(Box::new(tell)) }) }
    }

    /// A configuration stream began, of an agent that does not register.
    pub fn connected(&self, who: Who, meta: AgentMeta) -> Connection {
        self.stream(who, meta, false)
    }

    /// A configuration stream began, of a replica that registers, here or at another broker. Once the stream is over it
    /// counts as a registration: the next one may take minutes if the configuration was refused. `None` for a pod without
    /// a name, which is listed by its registration alone: nothing tells that the two are one.
    pub fn configured(&self, who: Who, meta: AgentMeta) -> Option<Connection> {
        (!meta.pod_name.is_empty()).then(|| self.stream(who, meta, true))
    }

    fn stream(&self, who: Who, meta: AgentMeta, lingers: bool) -> Connection {
        let id = rand::rng().random_range(0..=i64::MAX);
        let (agent, key) = (who.agent, Key::Stream(id));
        self.shared.insert(key, id, who, meta, lingers);
        Connection { shared: Arc::clone(&self.shared), agent, key }
    }

    /// A replica says that it is there, for the first time or again; it counts as connected for six minutes.
    pub fn registered(&self, who: Who, meta: AgentMeta, pod_id: i64) {
        self.shared.insert(Key::Pod(pod_id), pod_id, who, meta, false);
    }

    /// Forgets replicas that were not heard of for too long, and those of agents of which nothing is `present` any more:
    /// they register every five minutes, and nothing else says that they are gone. `in_fleet`: agents of which nothing
    /// was present since they registered may be at other brokers. To be called every few seconds.
    pub fn expire(&self, now: Instant, in_fleet: bool, present: impl Fn(AgentId) -> bool) {
        let mut state = self.shared.lock();
        let agents: Vec<AgentId> = state.agents.keys().copied().collect();
        for agent in agents {
            let is_present = present(agent);
            let Some(known) = state.agents.get_mut(&agent) else { continue };
            self.shared.tell(known.look(now, is_present, in_fleet));
            self.shared.tell(state.expire(agent, now));
        }
    }

    /// These connections, in the order of their agents' ids, each agent's oldest first and its newest [`LISTED_MAX`]
    /// only: the first `limit` of them, and whether there are more.
    pub fn list(&self, wanted: &Wanted, limit: usize) -> (Vec<Connected>, bool) {
        let now = Instant::now();
        let agents = self.shared.lock().wanted(wanted);
        let mut found = Vec::new();
        for some in agents.chunks(AT_A_TIME) {
            let state = self.shared.lock();
            for agent in some {
                state.list(*agent, now, &mut found);
                if found.len() > limit {
                    found.truncate(limit);
                    return (found, true);
                }
            }
        }
        (found, false)
    }

    /// How many agents are known; one that has just expired may be among them.
    pub fn agents(&self) -> usize {
        self.shared.lock().agents.len()
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("agents", &self.agents()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let change = state.remove(self.agent, self.key);
        self.shared.tell(change);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only with the lock held, so that nobody is told of what came later first.
    fn tell(&self, change: Option<Change>) {
        if let (Some(tell), Some(change)) = (&self.tell, change) {
            tell(change);
        }
    }

    fn insert(&self, key: Key, number: i64, who: Who, meta: AgentMeta, lingers: bool) {
        let heard_at = Instant::now();
        let info = info(&who, meta, number);
        let mut state = self.lock();
        self.tell(state.expire(who.agent, heard_at));
        state.heard += 1;
        let entry = Entry {
            info: Arc::new(info),
            name: who.name.into(),
            address: who.address.into(),
            heard_at,
            until: matches!(key, Key::Pod(_)).then(|| heard_at + REGISTRATION),
            lingers,
            heard: state.heard,
        };
        self.tell(state.insert(key, entry));
    }
}

/// What connections of one agent are ordered by: since when they are there, then by number.
pub fn age(info: &ConnectedAgentInfo) -> (i64, i32, i64) {
    let (seconds, nanos) = info.connected_at.map_or((0, 0), |at| (at.seconds, at.nanos));
    (seconds, nanos, info.connection_id)
}

fn info(who: &Who, meta: AgentMeta, connection_id: i64) -> ConnectedAgentInfo {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    // Below 10^9.
    let nanos = now.subsec_nanos().cast_signed();
    ConnectedAgentInfo {
        agent_meta: Some(clipped(meta)),
        connected_at: Some(Timestamp { seconds, nanos }),
        connection_id,
        agent_id: who.agent.0,
        project_id: who.project.0,
    }
}

/// What an agent says of itself costs no more memory than it may.
fn clipped(mut meta: AgentMeta) -> AgentMeta {
    let kubernetes = meta.kubernetes_version.iter_mut().flat_map(|version| {
        [&mut version.major, &mut version.minor, &mut version.git_version, &mut version.platform]
    });
    let own = [&mut meta.version, &mut meta.commit_id, &mut meta.pod_namespace, &mut meta.pod_name];
    for text in own.into_iter().chain(kubernetes) {
        let end = (0..=TEXT_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or_default());
        text.shrink_to_fit();
    }
    meta
}

#[cfg(test)]
mod tests;
