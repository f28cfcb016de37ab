//! The routes of all agents that somebody asked for lately: a bounded cache, the least recently used out first.

use super::route::Route;
use postern_wire::ids::AgentId;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;

/// Agents whose routes are kept.
const MAX: usize = 10_000;

/// One agent.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) agent: AgentId,
    route: Mutex<Route>,
    /// The route has changed.
    pub(super) news: Notify,
    used: AtomicU64,
}

impl Slot {
    pub(super) fn route(&self) -> MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    all: Mutex<HashMap<AgentId, Arc<Slot>>>,
    uses: AtomicU64,
}

impl Slots {
    fn all(&self) -> MutexGuard<'_, HashMap<AgentId, Arc<Slot>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, agent: AgentId) -> Option<Arc<Slot>> {
        self.all().get(&agent).cloned()
    }

    /// The agent's, made if there is none.
    pub(super) fn enter(&self, agent: AgentId) -> Arc<Slot> {
        let used = self.uses.fetch_add(1, Relaxed);
        let mut all = self.all();
        if let Some(slot) = all.get(&agent) {
            slot.used.store(used, Relaxed);
            return Arc::clone(slot);
        }
        if all.len() >= MAX {
            evict(&mut all);
        }
        let slot = Slot { agent, route: Mutex::default(), news: Notify::new(), used: used.into() };
        let slot = Arc::new(slot);
        all.insert(agent, Arc::clone(&slot));
        slot
    }

    pub(super) fn each(&self) -> Vec<Arc<Slot>> {
        self.all().values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.all().len()
    }
}

/// An eighth of them, so that it is rarely done. Those that a search uses stay: it would miss the news.
fn evict(all: &mut HashMap<AgentId, Arc<Slot>>) {
    let mut uses: Vec<u64> = all.values().map(|slot| slot.used.load(Relaxed)).collect();
    let at = uses.len() / 8;
    let (_, &mut oldest, _) = uses.select_nth_unstable(at);
    all.retain(|_, slot| slot.used.load(Relaxed) > oldest || Arc::strong_count(slot) > 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_go_and_those_in_use_stay() {
        let slots = Slots::default();
        let kept = slots.enter(AgentId(0));
        let many = i64::try_from(MAX).unwrap();
        for agent in 1..many {
            slots.enter(AgentId(agent));
        }
        slots.enter(AgentId(1));
        slots.enter(AgentId(many));
        assert!(slots.len() <= MAX - MAX / 8 + 3);
        assert!(slots.get(AgentId(2)).is_none() && slots.get(AgentId(1)).is_some());
        assert!(Arc::ptr_eq(&kept, &slots.get(AgentId(0)).unwrap()));
    }
}
