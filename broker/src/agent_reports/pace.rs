//! How often one agent may tell something. Before it: a message that is there. After it: whatever is done with it. Only
//! agents that told something lately take room.

use postern_wire::ids::AgentId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// So many turns at once for each agent, and one in each interval in the long run.
#[derive(Debug)]
pub(super) struct Paces {
    interval: Duration,
    ahead: Duration,
    /// When each has all its turns again.
    full_at: Mutex<HashMap<AgentId, Instant>>,
}

impl Paces {
    pub(super) fn new((burst, interval): (u32, Duration)) -> Self {
        let ahead = interval * burst.saturating_sub(1);
        Self { interval, ahead, full_at: Mutex::default() }
    }

    /// A turn, if there is one; else how long until then.
    pub(super) fn take(&self, agent: AgentId) -> Result<(), Duration> {
        self.add(agent, 1, self.ahead)
    }

    /// More turns, of which only now is known how many; whether there are so many or not, the next one waits for them.
    pub(super) fn spend(&self, agent: AgentId, turns: u32) {
        // Nobody owes as much as that.
        let _ = self.add(agent, turns, Duration::MAX);
    }

    /// If no more than `most` is owed; else how much more that is.
    fn add(&self, agent: AgentId, turns: u32, most: Duration) -> Result<(), Duration> {
        let now = Instant::now();
        let mut agents = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever comes anew sweeps, but not over all of them each time.
        if agents.len() == agents.capacity() && !agents.contains_key(&agent) {
            agents.retain(|_, full_at| *full_at > now);
        }
        let full_at = agents.entry(agent).or_insert(now);
        let owed = full_at.saturating_duration_since(now);
        if owed > most {
            return Err(owed - most);
        }
        *full_at = now + owed + self.interval * turns;
        Ok(())
    }

    /// A turn, as soon as there is one. What waits meanwhile fills the agent's own window only.
    pub(super) async fn turn(&self, agent: AgentId) {
        while let Err(wait) = self.take(agent) {
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_has_its_turns_and_others_have_theirs() {
        let paces = Paces::new((3, Duration::from_millis(100)));
        let (a, b) = (AgentId(1), AgentId(2));
        for _ in 0..3 {
            assert_eq!(paces.take(a), Ok(()));
        }
        assert_eq!((paces.take(a), paces.take(b)), (Err(Duration::from_millis(100)), Ok(())));
        let begin = Instant::now();
        for _ in 0..10 {
            paces.turn(a).await;
        }
        assert_eq!(begin.elapsed(), Duration::from_secs(1));
        paces.spend(a, 20);
        paces.turn(a).await;
        assert_eq!(begin.elapsed(), Duration::from_millis(3_100), "what was spent is waited for");
        assert_eq!(paces.take(b), Ok(()));
        tokio::time::advance(Duration::from_secs(10)).await;
        for agent in 0..10_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(paces.take(AgentId(agent)), Ok(()));
        }
        assert!(paces.full_at.lock().unwrap().capacity() < 100, "quiet agents take no room");
    }
}
