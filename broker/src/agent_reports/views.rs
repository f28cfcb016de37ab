//! What agents' clusters hold, as far as agents are asked to keep views of them: in memory, one copy of each view, read
//! by any number of followers at their own pace. Before it: messages of an agent's stream ([`push`]). After it:
//! [`follow`], and so JSON, server-sent events, Rails' cable and other brokers. It never asks an agent for anything.
//!
//! Every change of a view has a number, and a view remembers of each entry when it changed last. So a follower needs no
//! more than the number it has seen: nothing is queued for anybody, and who is slow skips what is out of date.

mod follow;
mod push;
#[cfg(test)]
mod tests;
mod view;

pub use follow::{Ended, Follower, PAGE, Page};
pub use push::{Push, Refused};

use crate::observability::KnownMetrics;
use postern_wire::ids::AgentId;
use rand::Rng;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use view::View;

/// A view that an agent may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nodes and their readiness.
    Nodes,
    /// Deployments and the like.
    Workloads,
    /// Recent warnings.
    Events,
    /// Of the control plane and the nodes.
    Versions,
    /// What is left of it.
    Capacity,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nodes, Self::Workloads, Self::Events, Self::Versions, Self::Capacity];

    /// As agents, URLs and configurations name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Workloads => "workloads",
            Self::Events => "events",
            Self::Versions => "versions",
            Self::Capacity => "capacity",
        }
    }

    /// The view of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of a view.
    pub entries: usize,
    /// Bytes of an entry's key.
    pub key: usize,
    /// Bytes of an entry's JSON, as it comes and as it is written anew.
    pub value: usize,
    /// Bytes of all views of an agent; as many again may be on their way to replace them.
    pub per_agent: usize,
    /// Bytes of all views of all agents; beyond it, agents that have less than their share push out those that have most.
    pub in_all: usize,
    /// How long a view is kept whose stream has ended.
    pub stale: Duration,
    /// Entries of a view that are gone and of which that is remembered; followers that are further behind begin anew.
    pub gone: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 5_000,
            key: 512,
            value: 8 << 10,
            per_agent: 16 << 20,
            in_all: 256 << 20,
            stale: Duration::from_secs(60),
            gone: 2_000,
        }
    }
}

/// A view, without what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Which.
    pub kind: Kind,
    /// The stream that it came over has ended.
    pub stale: bool,
    /// There is more in the cluster than it holds.
    pub truncated: bool,
    /// How many.
    pub entries: usize,
    /// Since anything was heard of it.
    pub heard_ago: Duration,
}

/// The views of all agents that push them here. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Views(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    limits: Limits,
    metrics: KnownMetrics,
    state: Mutex<State>,
    /// Something is in `State::marked`.
    noticed: Notify,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<AgentId, Agent>,
    /// Of all views, and of what is on its way to replace them.
    bytes: usize,
    /// How many views there are.
    views: usize,
    /// Of the last stream.
    stream: u64,
    /// Streams that are open.
    streams: HashMap<u64, Stream>,
    /// Views that changed, if anybody wants to know of all.
    marked: Option<HashSet<(AgentId, Kind)>>,
}

#[derive(Debug, Default)]
struct Agent {
    views: BTreeMap<Kind, View>,
    /// Of its views.
    bytes: usize,
    /// Of what is on its way to replace them.
    staged: usize,
}

/// An agent's, while it is open.
#[derive(Debug)]
struct Stream {
    agent: AgentId,
    /// Of what it sent to replace views.
    staged: usize,
    /// The agent had to make room. What is staged is on its way out.
    evicted: CancellationToken,
}

impl State {
    fn mark(&mut self, agent: AgentId, kind: Kind) {
        if let Some(marked) = &mut self.marked {
            marked.insert((agent, kind));
        }
    }

    /// Of an agent that may be new.
    fn view(&mut self, agent: AgentId, kind: Kind) -> &mut View {
        let Self { agents, views: count, .. } = self;
        let views = &mut agents.entry(agent).or_default().views;
        views.entry(kind).or_insert_with(|| {
            *count += 1;
            // Random: copies of two brokers, or of one before and after, are never taken for the same. JavaScript has
            // numbers of 53 bits.
            View::new(rand::rng().random_range(1..1 << 53))
        })
    }

    fn remove(&mut self, agent: AgentId, kind: Kind) {
        let Some(of_agent) = self.agents.get_mut(&agent) else { return };
        let Some(view) = of_agent.views.remove(&kind) else { return };
        of_agent.bytes -= view.bytes();
        self.bytes -= view.bytes();
        self.views -= 1;
        if of_agent.views.is_empty() && of_agent.staged == 0 {
            self.agents.remove(&agent);
        }
        self.mark(agent, kind);
    }

    /// Bytes of each agent, and of all, without what is on its way out.
    fn held(&self) -> (HashMap<AgentId, usize>, usize) {
        let mut held: HashMap<_, _> =
            self.agents.iter().map(|(id, agent)| (*id, agent.bytes + agent.staged)).collect();
        let mut all = self.bytes;
        for stream in self.streams.values().filter(|stream| stream.evicted.is_cancelled()) {
            all -= stream.staged;
            if let Some(held) = held.get_mut(&stream.agent) {
                *held -= stream.staged;
            }
        }
        (held, all)
    }

    /// Makes room for `agent`, as long as it has no more than its fair share. Who then has to go are those who have most,
    /// and so more than theirs; their streams end. Whether there is room.
    fn make_room(&mut self, agent: AgentId, limit: usize) -> bool {
        loop {
            let (held, all) = self.held();
            if all <= limit {
                return true;
            }
            let share = limit / held.len().max(1);
            if held.get(&agent).is_none_or(|held| *held > share) {
                return false;
            }
            let Some((largest, bytes)) = held.into_iter().max_by_key(|(_, bytes)| *bytes) else {
                return false;
            };
            tracing::warn!(agent_id = %largest, bytes, limit, "views of the agent that has most of them make room");
            for stream in self.streams.values().filter(|stream| stream.agent == largest) {
                stream.evicted.cancel();
            }
            for kind in Kind::ALL {
                self.remove(largest, kind);
            }
        }
    }

    /// Removes all whose stream ended and that `matches`.
    fn remove_stale(&mut self, matches: impl Fn(Instant) -> bool) {
        let of_agent = |(agent, known): (&AgentId, &Agent)| {
            let stale = |view: &View| view.stale_since.is_some_and(&matches);
            let kinds = known.views.iter().filter(|(_, view)| stale(view));
            kinds.map(|(kind, _)| (*agent, *kind)).collect::<Vec<_>>()
        };
        let stale: Vec<_> = self.agents.iter().flat_map(of_agent).collect();
        for (agent, kind) in stale {
            self.remove(agent, kind);
        }
    }
}

impl Views {
    /// With other limits, counted in `metrics`.
    pub fn new(limits: Limits, metrics: KnownMetrics) -> Self {
        Self(Arc::new(Inner { limits, metrics, ..Inner::default() }))
    }

    /// A stream of this agent's begins.
    pub fn begin(&self, agent: AgentId) -> Push {
        let mut state = self.lock();
        state.stream += 1;
        let (stream, evicted) = (state.stream, CancellationToken::new());
        state.streams.insert(stream, Stream { agent, staged: 0, evicted: evicted.clone() });
        drop(state);
        self.0.metrics.streams.inc();
        Push::new(self.clone(), agent, stream, evicted)
    }

    /// Follows a view from what it holds now; `None`: it is not kept here.
    pub fn follow(&self, agent: AgentId, kind: Kind) -> Option<Follower> {
        let state = self.lock();
        let view = state.agents.get(&agent)?.views.get(&kind)?;
        Some(Follower::new(self.clone(), (agent, kind), view))
    }

    /// Which views of an agent are kept here.
    pub fn summaries(&self, agent: AgentId) -> Vec<Summary> {
        let state = self.lock();
        let views = state.agents.get(&agent).map(|agent| &agent.views);
        views.into_iter().flatten().map(|(kind, view)| view.summary(*kind)).collect()
    }

    /// Forgets views whose streams ended too long ago; to be called every few seconds.
    pub fn expire(&self) {
        let kept = self.0.limits.stale;
        let mut state = self.lock();
        state.remove_stale(|since| since.elapsed() >= kept);
        self.settle(state);
    }

    /// From now on [`Views::changed`] says which views change.
    pub fn mark_changes(&self) {
        let mut state = self.lock();
        let views = |(agent, known): (&AgentId, &Agent)| {
            known.views.keys().map(|kind| (*agent, *kind)).collect::<Vec<_>>()
        };
        state.marked = Some(state.agents.iter().flat_map(views).collect());
        self.settle(state);
    }

    /// [`Views::changed`] says this one again.
    pub fn mark(&self, agent: AgentId, kind: Kind) {
        let mut state = self.lock();
        state.mark(agent, kind);
        self.settle(state);
    }

    /// Waits for changes; of which views, each once however much changed in it.
    pub async fn changed(&self) -> Vec<(AgentId, Kind)> {
        loop {
            let noticed = self.0.noticed.notified();
            let marked: Vec<_> = self.lock().marked.iter_mut().flat_map(HashSet::drain).collect();
            if !marked.is_empty() {
                return marked;
            }
            noticed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// If there is too much in all, forgets what is stale, and then what is not `agent`'s to fill.
    fn room(&self, mut state: MutexGuard<'_, State>, agent: AgentId, kind: Kind) -> Result<(), Refused> {
        let limit = self.0.limits.in_all;
        if state.bytes > limit {
            state.remove_stale(|_| true);
        }
        let has_room = state.bytes <= limit || state.make_room(agent, limit);
        self.settle(state);
        if has_room { Ok(()) } else { Err(Refused::Full { view: kind.name(), limit }) }
    }

    /// Tells metrics, and whoever waits for any change, what is there now.
    fn settle(&self, state: MutexGuard<'_, State>) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.metrics.bytes.set(number(state.bytes));
        self.0.metrics.views.set(number(state.views));
        let marked = state.marked.as_ref().is_some_and(|marked| !marked.is_empty());
        drop(state);
        if marked {
            self.0.noticed.notify_one();
        }
    }
}
