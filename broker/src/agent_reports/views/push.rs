//! One agent's stream of views, message by message. Before it: gRPC, at the agent's pace. After it: [`super::View`]. A
//! whole view that comes in several messages is put in place at once, when its last one is here, and followers are told
//! only what differs.

use super::{
    super::clean,
    Kind, Limits, State, Views,
    view::{View, size},
};
use postern_wire::{
    ids::AgentId,
    proto::postern::agent::{ViewEntry, ViewUpdate},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tokio::time::Instant;
use tonic::Status;

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An entry without a key, or with one that is too long or has what is no part of a line.
    #[error(
        "view {view}: an entry's key is empty, longer than {limit} bytes, or has control characters in it"
    )]
    Key {
        /// Which.
        view: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// An entry that is too long, or no JSON object.
    #[error("view {view}, entry {key}: a JSON object of at most {limit} bytes is wanted")]
    Value {
        /// Which.
        view: &'static str,
        /// Of the entry.
        key: String,
        /// In bytes.
        limit: usize,
    },
    /// Changes of a view that the stream has not sent.
    #[error("view {view}: changes came before the whole")]
    NoWhole {
        /// Which.
        view: &'static str,
    },
    /// Too many entries.
    #[error("view {view}: more than {limit} entries")]
    Entries {
        /// Which.
        view: &'static str,
        /// In one view.
        limit: usize,
    },
    /// Too much in all views of this agent.
    #[error("view {view}: the views of this agent have more than {limit} bytes together")]
    Agent {
        /// The last straw.
        view: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// Too much in all views of all agents.
    #[error("view {view}: this broker keeps {limit} bytes of views already; try another one, or later")]
    Full {
        /// The one that has no room.
        view: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// Another stream of the agent pushes it now.
    #[error("view {view}: another replica of this agent pushes it now")]
    Superseded {
        /// Which.
        view: &'static str,
    },
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Key { .. } | Refused::Value { .. } | Refused::NoWhole { .. } => {
                Self::invalid_argument(text)
            }
            Refused::Entries { .. } | Refused::Agent { .. } | Refused::Full { .. } => {
                Self::resource_exhausted(text)
            }
            Refused::Superseded { .. } => Self::aborted(text),
        }
    }
}

/// An agent's stream, while it is open. When it is dropped, what it pushed is stale.
#[derive(Debug)]
pub struct Push {
    views: Views,
    agent: AgentId,
    stream: u64,
    /// Views that this stream has sent whole.
    sent: HashSet<Kind>,
    /// Views of which more is to come before they are whole.
    staged: HashMap<Kind, Staged>,
}

#[derive(Debug, Default)]
struct Staged {
    entries: BTreeMap<Arc<str>, Arc<str>>,
    bytes: usize,
}

type Entries = Vec<(Arc<str>, Arc<str>)>;

impl Push {
    pub(super) fn new(views: Views, agent: AgentId, stream: u64) -> Self {
        Self { views, agent, stream, sent: HashSet::new(), staged: HashMap::new() }
    }

    /// Takes one message.
    ///
    /// # Errors
    /// Why the stream has to end.
    pub fn apply(&mut self, update: ViewUpdate) -> Result<(), Refused> {
        // Of a newer agent; nobody could ask for it here.
        let Some(kind) = Kind::of(&update.view) else { return Ok(()) };
        self.views.0.metrics.updates.inc();
        if update.ended {
            self.end(kind);
            return Ok(());
        }
        let ViewUpdate { whole, more, entries, gone, truncated, .. } = update;
        let limits = self.views.0.limits;
        if entries.len() > limits.entries || gone.len() > limits.entries {
            return Err(Refused::Entries { view: kind.name(), limit: limits.entries });
        }
        // Before the lock: the parser may take a while.
        let entries = read(kind, entries, &limits)?;
        if !whole && !self.staged.contains_key(&kind) {
            return self.change(kind, entries, &gone, truncated);
        }
        if whole {
            self.unstage(kind);
        }
        self.stage(kind, entries, &limits)?;
        if more { Ok(()) } else { self.replace(kind, truncated) }
    }

    fn end(&mut self, kind: Kind) {
        self.unstage(kind);
        self.sent.remove(&kind);
        let mut state = self.views.lock();
        let owner = state.agents.get(&self.agent).and_then(|agent| agent.views.get(&kind));
        if owner.is_some_and(|view| view.owner == self.stream) {
            state.remove(self.agent, kind);
        }
        self.views.settle(state);
    }

    fn stage(&mut self, kind: Kind, entries: Entries, limits: &Limits) -> Result<(), Refused> {
        let staged = self.staged.entry(kind).or_default();
        let mut more = 0;
        for (key, json) in entries {
            more += size(&key, &json);
            // Twice the same costs twice; nobody means to do that.
            staged.entries.insert(key, json);
        }
        staged.bytes += more;
        let entries = staged.entries.len();
        let mut state = self.views.lock();
        state.bytes += more;
        let of_agent = state.agents.entry(self.agent).or_default();
        of_agent.staged += more;
        if entries > limits.entries {
            return Err(Refused::Entries { view: kind.name(), limit: limits.entries });
        }
        if of_agent.staged > limits.per_agent {
            return Err(Refused::Agent { view: kind.name(), limit: limits.per_agent });
        }
        self.views.room(state, kind)
    }

    /// Lets go of what was to replace the view.
    fn unstage(&mut self, kind: Kind) -> Option<Staged> {
        let staged = self.staged.remove(&kind)?;
        let mut state = self.views.lock();
        state.bytes -= staged.bytes;
        if let Some(of_agent) = state.agents.get_mut(&self.agent) {
            of_agent.staged -= staged.bytes;
            if of_agent.views.is_empty() && of_agent.staged == 0 {
                state.agents.remove(&self.agent);
            }
        }
        self.views.settle(state);
        Some(staged)
    }

    /// Puts what was staged in the view's place; the newest stream of an agent is the one that counts.
    fn replace(&mut self, kind: Kind, truncated: bool) -> Result<(), Refused> {
        let staged = self.unstage(kind).unwrap_or_default();
        let first = self.sent.insert(kind);
        self.edit(kind, truncated, first, |view, limits| {
            let gone: Vec<_> =
                view.entries.keys().filter(|key| !staged.entries.contains_key(*key)).cloned().collect();
            gone.iter().for_each(|key| view.remove(key, limits.gone));
            staged.entries.into_iter().for_each(|(key, json)| view.put(key, json));
        })
    }

    fn change(
        &mut self,
        kind: Kind,
        entries: Entries,
        gone: &[String],
        truncated: bool,
    ) -> Result<(), Refused> {
        if !self.sent.contains(&kind) {
            return Err(Refused::NoWhole { view: kind.name() });
        }
        self.edit(kind, truncated, false, |view, limits| {
            gone.iter().for_each(|key| view.remove(key, limits.gone));
            entries.into_iter().for_each(|(key, json)| view.put(key, json));
        })
    }

    /// Changes the view, which `takes` it from an older stream or is this one's already.
    fn edit(
        &self,
        kind: Kind,
        truncated: bool,
        takes: bool,
        edit: impl FnOnce(&mut View, &Limits),
    ) -> Result<(), Refused> {
        let limits = &self.views.0.limits;
        let mut guard = self.views.lock();
        let state: &mut State = &mut guard;
        let known = state.agents.get(&self.agent).and_then(|agent| agent.views.get(&kind));
        let superseded = known.map(|view| view.owner).filter(|owner| *owner > self.stream);
        if superseded.is_some() || known.is_none_or(|view| view.owner != self.stream) && !takes {
            return Err(Refused::Superseded { view: kind.name() });
        }
        let view = state.view(self.agent, kind);
        let before = view.bytes();
        edit(view, limits);
        view.owner = self.stream;
        view.truncated = truncated;
        view.stale_since = None;
        view.heard = Instant::now();
        view.wake();
        let (after, entries) = (view.bytes(), view.entries.len());
        state.bytes = state.bytes - before + after;
        let of_agent = state.agents.entry(self.agent).or_default();
        of_agent.bytes = of_agent.bytes - before + after;
        let bytes: usize = of_agent.views.values().map(View::entries_bytes).sum();
        state.mark(self.agent, kind);
        if entries > limits.entries {
            return Err(Refused::Entries { view: kind.name(), limit: limits.entries });
        }
        if bytes > limits.per_agent {
            return Err(Refused::Agent { view: kind.name(), limit: limits.per_agent });
        }
        self.views.room(guard, kind)
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        for kind in Kind::ALL {
            self.unstage(kind);
        }
        let mut guard = self.views.lock();
        let state: &mut State = &mut guard;
        let views = state.agents.get_mut(&self.agent).map(|agent| &mut agent.views);
        let mut stale = Vec::new();
        for (kind, view) in views.into_iter().flatten().filter(|(_, view)| view.owner == self.stream) {
            view.stale_since = Some(Instant::now());
            view.wake();
            stale.push(*kind);
        }
        stale.into_iter().for_each(|kind| state.mark(self.agent, kind));
        self.views.settle(guard);
        self.views.0.metrics.streams.dec();
    }
}

/// Entries as they may be kept.
fn read(kind: Kind, entries: Vec<ViewEntry>, limits: &Limits) -> Result<Entries, Refused> {
    let view = kind.name();
    let entry = |ViewEntry { key, value }: ViewEntry| {
        if key.is_empty() || key.len() > limits.key || !clean::is_clean(&key) {
            return Err(Refused::Key { view, limit: limits.key });
        }
        let limit = limits.value;
        let json = (value.len() <= limit).then(|| clean::object(&value).ok()).flatten();
        // Numbers may be longer when they are written anew.
        match json.filter(|json| json.len() <= limit) {
            Some(json) => Ok((Arc::from(key), Arc::from(json))),
            None => Err(Refused::Value { view, key, limit }),
        }
    };
    entries.into_iter().map(entry).collect()
}
