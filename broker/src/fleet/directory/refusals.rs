//! Agents that were turned away, on their way into the record of where they were last. Before it: the admission of
//! agents, which knows them. After it: the writer. Bounded: what comes too often or while the queue is full is dropped.

use super::record::REFUSAL_MAX;
use postern_wire::ids::AgentId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

/// Refusals that wait to be written, and agents whose last one is remembered.
pub(super) const REFUSALS: usize = 256;
const REFUSED: usize = 10_000;
/// Between two refusals of one agent.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) agent: AgentId,
    pub(super) why: String,
}

/// What is to be written about agents that were turned away.
#[derive(Debug)]
pub(super) struct Refusals {
    queue: mpsc::Sender<Refusal>,
    recent: Mutex<HashMap<AgentId, Instant>>,
}

impl Refusals {
    pub(super) fn new() -> (Self, mpsc::Receiver<Refusal>) {
        let (queue, refused) = mpsc::channel(REFUSALS);
        (Self { queue, recent: Mutex::default() }, refused)
    }

    pub(super) fn add(&self, agent: AgentId, why: &str, now: Instant) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.get(&agent).is_some_and(|at| now < *at + REFUSED_AGAIN) {
            return;
        }
        if recent.len() >= REFUSED {
            recent.retain(|_, at| now < *at + REFUSED_AGAIN);
        }
        if recent.len() >= REFUSED {
            return;
        }
        let why = why.chars().take(REFUSAL_MAX).collect();
        match self.queue.try_send(Refusal { agent, why }) {
            Ok(()) => drop(recent.insert(agent, now)),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_agent_has_one_a_minute_and_all_of_them_a_bounded_queue() {
        let (refusals, mut queue) = Refusals::new();
        let now = Instant::now();
        let minute = now + REFUSED_AGAIN;
        for (agent, at) in [(1, now), (1, now), (2, now), (1, minute)] {
            refusals.add(AgentId(agent), &"no".repeat(1000), at);
        }
        for wanted in [1, 2, 1] {
            let Refusal { agent, why } = queue.try_recv().unwrap();
            assert_eq!((agent.0, why.len()), (wanted, REFUSAL_MAX));
        }
        for agent in 0..20_000 {
            refusals.add(AgentId(agent), "no", minute);
            let _ = queue.try_recv();
        }
        assert_eq!(refusals.recent.lock().unwrap().len(), REFUSED);
        for agent in 0..20_000 {
            refusals.add(AgentId(agent), "no", minute + REFUSED_AGAIN);
        }
        assert_eq!(queue.len(), REFUSALS);
    }
}
