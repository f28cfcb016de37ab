//! How much of one thing may run for one agent at a time. Before it: a service that has a new call. After it: the call,
//! which holds a [`Slot`] to its end. What is not in use takes no memory, so strangers cannot grow it.

use postern_wire::ids::AgentId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of all agents. Clones share them.
#[derive(Clone, Debug)]
pub struct PerAgent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    each: usize,
    agents: Mutex<HashMap<AgentId, Weak<Semaphore>>>,
}

/// Room for one; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _slot: OwnedSemaphorePermit,
}

impl PerAgent {
    /// So many for each agent.
    pub fn new(each: usize) -> Self {
        Self(Arc::new(Inner { each, agents: Mutex::default() }))
    }

    /// How many each agent has.
    pub fn each(&self) -> usize {
        self.0.each
    }

    /// A slot of this agent, unless all are taken.
    pub fn try_enter(&self, agent: AgentId) -> Option<Slot> {
        let slot = self.of(agent).try_acquire_owned().ok()?;
        Some(Slot { _slot: slot })
    }

    /// A slot of this agent, as soon as there is one.
    pub async fn enter(&self, agent: AgentId) -> Slot {
        let slot = self.of(agent).acquire_owned().await.expect("these semaphores are never closed");
        Slot { _slot: slot }
    }

    fn of(&self, agent: AgentId) -> Arc<Semaphore> {
        let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = agents.get(&agent).and_then(Weak::upgrade) {
            return known;
        }
        // Whoever comes anew sweeps, but not over all of them each time.
        if agents.len() == agents.capacity() {
            agents.retain(|_, slots| slots.strong_count() > 0);
        }
        let slots = Arc::new(Semaphore::new(self.0.each));
        agents.insert(agent, Arc::downgrade(&slots));
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_agent_has_its_own_slots_and_gets_them_back() {
        let slots = PerAgent::new(2);
        let (one, two) = (slots.try_enter(AgentId(1)), slots.try_enter(AgentId(1)));
        assert!(one.is_some() && two.is_some());
        assert!(slots.try_enter(AgentId(1)).is_none());
        assert!(slots.try_enter(AgentId(2)).is_some(), "another agent is not touched");
        let waiting = slots.enter(AgentId(1));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(one);
        waiting.await;
        drop(two);
        for agent in 0..10_000 {
            assert!(slots.try_enter(AgentId(agent)).is_some());
        }
        assert!(slots.0.agents.lock().unwrap().capacity() < 1_000, "idle agents take no room");
    }
}
