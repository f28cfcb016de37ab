//! Which agents are connected to this broker, in memory: one entry for each configuration stream, one for each replica of
//! a newer agent that says so every five minutes, perhaps to another broker than the one that has its streams. Written by
//! the agents' services, read by [`crate::fleet::roster`], for this broker and for others that ask. It knows nothing of
//! other brokers, stores nothing and needs no task but [`Tracker::expire`].

pub mod replicas;

use crate::identities::Agent;
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
    /// Somebody has seen one, for longer than it takes to refuse a configuration.
    stood: bool,
    /// It was told that it is connected.
    told: bool,
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
    info: Arc<ConnectedAgentInfo>,
    name: Arc<str>,
    address: Arc<str>,
    heard_at: Instant,
    /// Absent: as long as its [`Connection`] lives.
    until: Option<Instant>,
    /// A stream that is like a registration once it is over.
    lingers: bool,
    heard: u64,
}

impl Entry {
    fn holds(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

impl Known {
    /// What a look at the agent's streams says of its entries.
    fn look(&mut self, now: Instant, is_present: bool, in_fleet: bool) -> Option<Change> {
        self.stood |= is_present;
        self.absent = if is_present { None } else { self.absent.or(Some(now)) };
        if is_present {
            self.keep_one(now);
            return self.tell(now);
        }
        // A replica registers before its first stream is open, and its streams may be between two connections. In a fleet
        // they may all be at another broker: an edge moves streams one by one, and a registration is a call of its own.
        let may_be_elsewhere = in_fleet && !self.stood;
        if !may_be_elsewhere && self.absent.is_some_and(|since| now >= since + ABSENCE) {
            self.entries.values_mut().for_each(|entry| entry.until = entry.until.map(|_| now));
        }
        None
    }

    /// An agent that is here is listed, even if its registrations go elsewhere and its configuration is refused.
    fn keep_one(&mut self, now: Instant) {
        let holding = self.entries.values_mut().filter(|entry| entry.holds(now));
        let longest = holding.max_by_key(|entry| (entry.until.is_none(), entry.until));
        if let Some(longest) = longest {
            longest.until = longest.until.map(|until| until.max(now + 2 * ABSENCE));
        }
    }

    fn tell(&mut self, now: Instant) -> Option<Change> {
        let holding = self.entries.values().filter(|entry| !self.told && entry.holds(now));
        let info = Arc::clone(&holding.max_by_key(|entry| entry.heard)?.info);
        self.told = true;
        Some(Change::Connected(info))
    }

    /// The next stream of this pod replaces the one before; since when the pod is connected.
    fn replace(&mut self, info: &ConnectedAgentInfo) -> Option<Timestamp> {
        let pod = replicas::pod(info);
        let over = |_: &Key, entry: &mut Entry| {
            entry.lingers && entry.until.is_some() && replicas::pod(&entry.info) == pod
        };
        let over = self.entries.extract_if(over).map(|(_, entry)| entry);
        over.min_by_key(|entry| age(&entry.info)).and_then(|entry| entry.info.connected_at)
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

impl State {
    fn insert(&mut self, key: Key, mut entry: Entry) -> Option<Change> {
        let (agent, project) = (AgentId(entry.info.agent_id), ProjectId(entry.info.project_id));
        let known = self.agents.entry(agent).or_insert_with(|| Known {
            project,
            absent: None,
            stood: false,
            told: false,
            entries: HashMap::new(),
        });
        let before = std::mem::replace(&mut known.project, project);
        let since = match known.entries.get(&key) {
            Some(old) => old.info.connected_at,
            None if entry.lingers => known.replace(&entry.info),
            None => None,
        };
        if since.is_some() {
            // Nobody else has it yet, so nothing is copied.
            Arc::make_mut(&mut entry.info).connected_at = since;
        }
        let alike = |other: &Key| std::mem::discriminant(other) == std::mem::discriminant(&key);
        let others = || known.entries.iter().filter(|(other, _)| alike(other) && **other != key);
        if others().count() >= CONNECTIONS_MAX {
            let oldest = others().min_by_key(|(_, entry)| entry.heard).map(|(key, _)| *key);
            oldest.and_then(|oldest| known.entries.remove(&oldest));
        }
        let (is_stream, now) = (entry.until.is_none(), entry.heard_at);
        known.entries.insert(key, entry);
        let change = if is_stream {
            known.absent = None;
            known.tell(now)
        } else {
            None
        };
        if before != project {
            self.leave(before, agent);
        }
        self.projects.entry(project).or_default().insert(agent);
        change
    }

    /// The stream of this key is over.
    fn remove(&mut self, agent: AgentId, key: Key) -> Option<Change> {
        let entries = &mut self.agents.get_mut(&agent)?.entries;
        let over = entries.get_mut(&key)?;
        if over.lingers {
            over.until = Some(Instant::now() + REGISTRATION);
            return None;
        }
        let gone = entries.remove(&key)?;
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
        let (project, told) = (known.project, known.told);
        self.leave(project, agent);
        self.agents.remove(&agent);
        told.then_some(Change::Disconnected(last.info))
    }

    fn leave(&mut self, project: ProjectId, agent: AgentId) {
        if let Some(agents) = self.projects.get_mut(&project) {
            agents.remove(&agent);
            if agents.is_empty() {
                self.projects.remove(&project);
            }
        }
    }

    /// Agents that may have connections, in the order of their ids.
    fn wanted(&self, wanted: &Wanted) -> Vec<AgentId> {
        let mut agents: Vec<AgentId> = match wanted {
            Wanted::All => self.agents.keys().copied().collect(),
            Wanted::Of { agents, projects } => {
                let agents = agents.iter().filter(|agent| self.agents.contains_key(agent));
                let projects = projects.iter().filter_map(|project| self.projects.get(project));
                agents.chain(projects.flatten()).copied().collect()
            }
        };
        agents.sort_unstable();
        agents.dedup();
        agents
    }

    /// Adds the connections of one agent.
    fn list(&self, agent: AgentId, now: Instant, found: &mut Vec<Connected>) {
        let Some(known) = self.agents.get(&agent) else { return };
        let entries = known.entries.iter().filter(|(_, entry)| entry.holds(now));
        let connected = entries.map(|(key, entry)| Connected {
            info: Arc::clone(&entry.info),
            name: Arc::clone(&entry.name),
            address: Arc::clone(&entry.address),
            kind: match key {
                Key::Stream(_) => Kind::Stream,
                Key::Pod(_) => Kind::Registered,
            },
            heard_ago: now.saturating_duration_since(entry.heard_at),
        });
        let mut once = replicas::once(connected.map(|connected| (connected, ())));
        once.sort_by_key(|(connected, ())| age(&connected.info));
        let surplus = once.len().saturating_sub(LISTED_MAX);
        found.extend(once.into_iter().skip(surplus).map(|(connected, ())| connected));
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
