//! What a tracker knows, behind its lock: agents, their entries, and what a change of these means for the agent. It tells
//! nobody: what is to be told it returns.

use super::{
    ABSENCE, CONNECTIONS_MAX, Change, Connected, Kind, LISTED_MAX, REGISTRATION, Wanted, age, replicas,
};
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::gitlab::agent::agent_tracker::ConnectedAgentInfo,
};
use prost_types::Timestamp;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct State {
    pub(super) agents: HashMap<AgentId, Known>,
    /// Of the agents above.
    pub(super) projects: HashMap<ProjectId, BTreeSet<AgentId>>,
    pub(super) heard: u64,
}

/// An agent with at least one entry.
pub(super) struct Known {
    project: ProjectId,
    /// Since when nobody has seen a stream of it.
    absent: Option<Instant>,
    /// Somebody has seen one, for longer than it takes to refuse a configuration.
    stood: bool,
    /// It was told that it is connected.
    told: bool,
    pub(super) entries: HashMap<Key, Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A configuration stream, by a number of ours.
    Stream(i64),
    /// A replica, by a number of its own.
    Pod(i64),
}

pub(super) struct Entry {
    pub(super) info: Arc<ConnectedAgentInfo>,
    pub(super) name: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) heard_at: Instant,
    /// Absent: as long as its [`super::Connection`] lives.
    pub(super) until: Option<Instant>,
    /// A stream that is like a registration once it is over.
    pub(super) lingers: bool,
    pub(super) heard: u64,
}

impl Entry {
    fn holds(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

impl Known {
    /// What a look at the agent's streams says of its entries.
    pub(super) fn look(&mut self, now: Instant, is_present: bool, in_fleet: bool) -> Option<Change> {
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

impl State {
    pub(super) fn insert(&mut self, key: Key, mut entry: Entry) -> Option<Change> {
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
    pub(super) fn remove(&mut self, agent: AgentId, key: Key) -> Option<Change> {
        let entries = &mut self.agents.get_mut(&agent)?.entries;
        let over = entries.get_mut(&key)?;
        if over.lingers {
            over.until = Some(Instant::now() + REGISTRATION);
            return None;
        }
        let gone = entries.remove(&key)?;
        self.emptied(agent, gone)
    }

    pub(super) fn expire(&mut self, agent: AgentId, now: Instant) -> Option<Change> {
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
    pub(super) fn wanted(&self, wanted: &Wanted) -> Vec<AgentId> {
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
    pub(super) fn list(&self, agent: AgentId, now: Instant, found: &mut Vec<Connected>) {
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
