//! How many events one agent may make. Before it: whatever happens to agents. After it: those who watch, who are shown the
//! events of all agents in one line: an agent that reconnects in a loop must not push the others' out of it.

use postern_wire::ids::AgentId;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Events of one agent at once: it comes, gets its configuration and the manifests of its projects.
pub(super) const BURST: u32 = 64;
/// Between two of its events in the long run.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Agents that are remembered; past that, those that were quiet are forgotten, or else all of them.
const AGENTS: usize = 16_384;

/// What each agent has left.
#[derive(Debug, Default)]
pub(super) struct Allowances(HashMap<AgentId, Allowance>);

#[derive(Debug)]
struct Allowance {
    /// When it may make [`BURST`] events again.
    full_at: Instant,
    dropped: u64,
}

impl Allowances {
    /// Whether the agent may make an event now, and then how many it was not allowed since the last one.
    pub(super) fn take(&mut self, agent: AgentId, now: Instant) -> Option<u64> {
        if self.0.len() >= AGENTS && !self.0.contains_key(&agent) {
            self.0.retain(|_, known| known.full_at > now || known.dropped > 0);
            // Looking through nearly all of them at every event would cost more than a few events too many.
            if self.0.len() > AGENTS / 2 {
                self.0.clear();
            }
        }
        let known = self.0.entry(agent).or_insert(Allowance { full_at: now, dropped: 0 });
        let full_at = known.full_at.max(now);
        if full_at > now + INTERVAL * (BURST - 1) {
            known.dropped = known.dropped.saturating_add(1);
            return None;
        }
        known.full_at = full_at + INTERVAL;
        Some(std::mem::take(&mut known.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AgentId = AgentId(1);
    const B: AgentId = AgentId(2);

    #[test]
    fn an_agent_may_make_some_events_at_once_and_then_one_a_second() {
        let (mut allowances, begin) = (Allowances::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(allowances.take(A, begin), Some(0));
        }
        assert_eq!((allowances.take(A, begin), allowances.take(A, begin)), (None, None));
        assert_eq!(allowances.take(B, begin), Some(0), "the other has its own");
        let later = begin + INTERVAL;
        assert_eq!((allowances.take(A, later), allowances.take(A, later)), (Some(2), None));
        let later = begin + INTERVAL * BURST * 2;
        assert_eq!(allowances.take(A, later), Some(1));
        for _ in 1..BURST {
            assert_eq!(allowances.take(A, later), Some(0));
        }
        assert_eq!(allowances.take(A, later), None);
    }

    #[test]
    fn so_many_agents_are_remembered_and_no_more() {
        let (mut allowances, begin) = (Allowances::default(), Instant::now());
        for agent in 0..3 * i64::try_from(AGENTS).unwrap() {
            assert_eq!(allowances.take(AgentId(agent), begin), Some(0));
            assert!(allowances.0.len() <= AGENTS);
        }
    }
}
