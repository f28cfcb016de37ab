//! Which agents are connected to this broker, in memory: one entry for each configuration stream of an older agent, one
//! for each replica of a newer one that says so every five minutes. Written by the agents' services, read by whoever
//! asks for GitLab Rails. It knows nothing of other brokers, stores nothing and needs no task but [`Tracker::expire`].

use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::gitlab::agent::{agent_tracker::ConnectedAgentInfo, modshared::AgentMeta},
};
use prost_types::Timestamp;
use rand::Rng;
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// A replica registers every five minutes, and again within seconds after a failure; there is no word of leaving.
const REGISTRATION: Duration = Duration::from_secs(360);
/// How long an agent may be without any stream before its replicas count as gone.
const ABSENCE: Duration = Duration::from_secs(15);
/// Entries of one agent; the one that was heard of least recently makes room for the next.
const CONNECTIONS_MAX: usize = 1000;
/// Of them, those that are listed, the newest: an answer has room for several agents.
const LISTED_MAX: usize = 100;
/// Bytes of each text an agent says of itself; names in Kubernetes have 253 at the most.
const TEXT_MAX: usize = 256;

/// An agent came, or is gone altogether.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nobody of this agent was connected before this one.
    Connected(ConnectedAgentInfo),
    /// This was the last one of its agent.
    Disconnected(ConnectedAgentInfo),
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

#[derive(Default)]
struct State {
    agents: HashMap<AgentId, Known>,
    /// Of the agents above.
    projects: HashMap<ProjectId, BTreeSet<AgentId>>,
    heard: u64,
}

/// An agent with at least one entry.
struct Known {
    project: ProjectId,
    /// Since when nobody has seen a stream of it.
    absent: Option<Instant>,
    entries: HashMap<Key, Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// A configuration stream, by a number of ours.
    Stream(i64),
    /// A replica, by a number of its own.
    Pod(i64),
}

struct Entry {
    info: ConnectedAgentInfo,
    /// Absent: as long as its [`Connection`] lives.
    until: Option<Instant>,
    heard: u64,
}

impl Entry {
    fn holds(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }
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
    pub fn connected(&self, agent: AgentId, project: ProjectId, meta: AgentMeta) -> Connection {
        let id = rand::rng().random_range(0..=i64::MAX);
        let key = Key::Stream(id);
        self.shared.insert(key, info(agent, project, meta, id), None);
        Connection { shared: Arc::clone(&self.shared), agent, key }
    }

    /// A replica says that it is there, for the first time or again; it counts as connected for six minutes.
    pub fn registered(&self, agent: AgentId, project: ProjectId, meta: AgentMeta, pod_id: i64) {
        let until = Instant::now() + REGISTRATION;
        self.shared.insert(Key::Pod(pod_id), info(agent, project, meta, pod_id), Some(until));
    }

    /// Forgets replicas that were not heard of for too long, and those of agents of which nothing is `present` any more:
    /// they register every five minutes, and nothing else says that they are gone. To be called every few seconds.
    pub fn expire(&self, now: Instant, present: impl Fn(AgentId) -> bool) {
        let mut state = self.shared.lock();
        let agents: Vec<AgentId> = state.agents.keys().copied().collect();
        for agent in agents {
            let is_present = present(agent);
            let Some(known) = state.agents.get_mut(&agent) else { continue };
            // A replica registers before its first stream is open, and its streams may be between two connections.
            known.absent = if is_present { None } else { known.absent.or(Some(now)) };
            if known.absent.is_some_and(|since| now >= since + ABSENCE) {
                known.entries.values_mut().for_each(|entry| entry.until = entry.until.map(|_| now));
            }
            self.shared.tell(state.expire(agent, now));
        }
    }

    /// The connections of these agents, each agent's oldest first.
    pub fn by_agents(&self, agents: impl IntoIterator<Item = AgentId>) -> Vec<ConnectedAgentInfo> {
        let agents: BTreeSet<AgentId> = agents.into_iter().collect();
        let now = Instant::now();
        let state = self.shared.lock();
        agents.into_iter().flat_map(|agent| state.connections(agent, now)).collect()
    }

    /// The connections of all agents that are configured in these projects, each agent's oldest first.
    pub fn by_projects(&self, projects: impl IntoIterator<Item = ProjectId>) -> Vec<ConnectedAgentInfo> {
        let now = Instant::now();
        let state = self.shared.lock();
        let agents: BTreeSet<AgentId> = projects
            .into_iter()
            .filter_map(|project| state.projects.get(&project))
            .flatten()
            .copied()
            .collect();
        agents.into_iter().flat_map(|agent| state.connections(agent, now)).collect()
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

    fn insert(&self, key: Key, info: ConnectedAgentInfo, until: Option<Instant>) {
        let (agent, project) = (AgentId(info.agent_id), ProjectId(info.project_id));
        let mut state = self.lock();
        self.tell(state.expire(agent, Instant::now()));
        self.tell(state.insert(agent, project, key, info, until));
    }
}

impl State {
    fn insert(
        &mut self,
        agent: AgentId,
        project: ProjectId,
        key: Key,
        mut info: ConnectedAgentInfo,
        until: Option<Instant>,
    ) -> Option<Change> {
        self.heard += 1;
        let heard = self.heard;
        let first = !self.agents.contains_key(&agent);
        let known = self.agents.entry(agent).or_insert_with(|| Known {
            project,
            absent: None,
            entries: HashMap::new(),
        });
        let before = std::mem::replace(&mut known.project, project);
        if let Some(old) = known.entries.get(&key) {
            info.connected_at = old.info.connected_at;
        } else if known.entries.len() >= CONNECTIONS_MAX {
            let oldest = known.entries.iter().min_by_key(|(_, entry)| entry.heard).map(|(key, _)| *key);
            oldest.and_then(|oldest| known.entries.remove(&oldest));
        }
        let change = first.then(|| Change::Connected(info.clone()));
        known.entries.insert(key, Entry { info, until, heard });
        if before != project {
            self.leave(before, agent);
        }
        self.projects.entry(project).or_default().insert(agent);
        change
    }

    fn remove(&mut self, agent: AgentId, key: Key) -> Option<Change> {
        let gone = self.agents.get_mut(&agent)?.entries.remove(&key)?;
        self.emptied(agent, gone)
    }

    fn expire(&mut self, agent: AgentId, now: Instant) -> Option<Change> {
        let known = self.agents.get_mut(&agent)?;
        let gone = known.entries.extract_if(|_, entry| !entry.holds(now));
        let last = gone.map(|(_, entry)| entry).max_by_key(|entry| entry.heard)?;
        self.emptied(agent, last)
    }

    /// Forgets the agent if `last` was the last of it.
    fn emptied(&mut self, agent: AgentId, last: Entry) -> Option<Change> {
        let known = self.agents.get(&agent).filter(|known| known.entries.is_empty())?;
        self.leave(known.project, agent);
        self.agents.remove(&agent);
        Some(Change::Disconnected(last.info))
    }

    fn leave(&mut self, project: ProjectId, agent: AgentId) {
        if let Some(agents) = self.projects.get_mut(&project) {
            agents.remove(&agent);
            if agents.is_empty() {
                self.projects.remove(&project);
            }
        }
    }

    fn connections(&self, agent: AgentId, now: Instant) -> Vec<ConnectedAgentInfo> {
        let entries = self.agents.get(&agent).into_iter().flat_map(|known| known.entries.values());
        let mut found: Vec<_> =
            entries.filter(|entry| entry.holds(now)).map(|entry| entry.info.clone()).collect();
        let age = |info: &ConnectedAgentInfo| {
            info.connected_at.map_or((0, 0), |connected| (connected.seconds, connected.nanos))
        };
        found.sort_by_key(|info| (age(info), info.connection_id));
        found.split_off(found.len().saturating_sub(LISTED_MAX))
    }
}

fn info(agent: AgentId, project: ProjectId, meta: AgentMeta, connection_id: i64) -> ConnectedAgentInfo {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    // Below 10^9.
    let nanos = now.subsec_nanos().cast_signed();
    ConnectedAgentInfo {
        agent_meta: Some(clipped(meta)),
        connected_at: Some(Timestamp { seconds, nanos }),
        connection_id,
        agent_id: agent.0,
        project_id: project.0,
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
