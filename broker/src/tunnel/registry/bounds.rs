//! No agent keeps more idle tunnels than its bound: the oldest of the surplus end, half of them at a time. Agents of GitLab open
//! each tunnel anew at once, and there are such that have ten and never fewer; so after each time the agent is left alone for
//! a while, longer and longer up to a minute, until its surplus is gone. Tunnels that carry a request are not looked at.

use super::{Registry, Slot, Slots};
use postern_wire::ids::AgentId;
use rand::Rng;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// After the first time that surplus was ended.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Then doubled, up to this.
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// An agent that was within its bound for so many pauses begins anew.
const FORGOTTEN: u32 = 4;

/// The bound on one agent's idle tunnels.
#[derive(Debug, Default)]
pub(super) struct Bound {
    /// `None`: nobody has said.
    most: Option<u32>,
    /// When surplus is ended next; the agent is in `Slots::crowded` then.
    due: Option<Instant>,
    /// When it was last, and how long the agent is left alone since.
    relieved: Option<(Instant, Duration)>,
}

impl Slot {
    fn surplus(&self) -> usize {
        let most = self.bound.most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        self.idle.len().saturating_sub(most)
    }
}

impl Slots {
    /// Puts an agent with a surplus on the list; whether the one who waits for its head must look at it again.
    pub(super) fn look_at(&mut self, agent: AgentId, spread: Duration) -> bool {
        let Some(slot) = self.agents.get_mut(&agent) else { return false };
        if slot.bound.due.is_some() || slot.surplus() == 0 {
            return false;
        }
        let now = Instant::now();
        let alone = slot.bound.relieved.map_or(now, |(at, pause)| at + pause);
        let due = alone.max(now) + spread.mul_f64(rand::rng().random_range(0.0..1.0));
        slot.bound.due = Some(due);
        self.crowded.insert((due, agent));
        self.crowded.first() == Some(&(due, agent))
    }

    /// Ends what is due; returns when to come again.
    fn relieve(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(&(due, agent)) = self.crowded.first() {
            if due > now {
                return Some(due);
            }
            self.crowded.pop_first();
            let Some(slot) = self.agents.get_mut(&agent) else { continue };
            slot.bound.due = None;
            let ends = slot.surplus().div_ceil(2);
            for _ in 0..ends {
                slot.idle.pop_first();
            }
            if ends > 0 {
                let pause = match slot.bound.relieved {
                    Some((at, pause)) if now <= at + pause * FORGOTTEN => (pause * 2).min(LAST_PAUSE),
                    _ => FIRST_PAUSE,
                };
                slot.bound.relieved = Some((now, pause));
            }
            self.look_at(agent, Duration::ZERO);
        }
        None
    }
}

impl Registry {
    /// So many idle tunnels of this agent are kept from now on. What is too many already begins to end within `spread`.
    pub fn bound(&self, agent: AgentId, most: u32, spread: Duration) {
        let mut slots = self.slots();
        let Some(slot) = slots.agents.get_mut(&agent) else { return };
        slot.bound.most = Some(most);
        if slots.look_at(agent, spread) {
            self.crowd.notify_one();
        }
    }

    /// Ends surplus idle tunnels until `stop`. For one caller.
    pub async fn keep_bounds(&self, stop: CancellationToken) {
        loop {
            let next = self.slots().relieve();
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.crowd.notified() => {}
                () = due => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::registry::{Claim, Offer, PresenceGuard, Ticket};
    use std::sync::Arc;
    use tokio::sync::oneshot;

    const AGENT: AgentId = AgentId(1);

    struct Idle {
        claimed: oneshot::Receiver<Claim>,
        _ticket: Ticket,
        _guard: PresenceGuard,
    }

    fn idle(registry: &Arc<Registry>) -> Idle {
        let guard = registry.present(AGENT, "here".into(), true);
        let Offer::Idle(ticket, claimed) = registry.offer(AGENT) else { panic!("nobody waits") };
        Idle { claimed, _ticket: ticket, _guard: guard }
    }

    /// Which of them the registry has let go of.
    fn ended(tunnels: &mut [Idle]) -> Vec<usize> {
        let gone = |tunnel: &mut Idle| {
            matches!(tunnel.claimed.try_recv(), Err(oneshot::error::TryRecvError::Closed))
        };
        tunnels.iter_mut().enumerate().filter_map(|(number, tunnel)| gone(tunnel).then_some(number)).collect()
    }

    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    fn kept(registry: &Arc<Registry>) -> tokio_util::sync::DropGuard {
        let (registry, stop) = (Arc::clone(registry), CancellationToken::new());
        let guard = stop.clone().drop_guard();
        tokio::spawn(async move { registry.keep_bounds(stop).await });
        guard
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_too_many_ends_the_oldest_at_once() {
        let registry = Arc::new(Registry::default());
        let _kept = kept(&registry);
        let mut tunnels = vec![idle(&registry), idle(&registry)];
        registry.bound(AGENT, 2, Duration::ZERO);
        settle().await;
        assert!(ended(&mut tunnels).is_empty());
        tunnels.push(idle(&registry));
        settle().await;
        assert_eq!(ended(&mut tunnels), [0]);
        assert_eq!(registry.census().idle, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_bound_ends_the_surplus_by_halves() {
        let registry = Arc::new(Registry::default());
        let _kept = kept(&registry);
        let mut tunnels: Vec<_> = (0..10).map(|_| idle(&registry)).collect();
        settle().await;
        assert_eq!(registry.census().idle, 10, "nothing is bounded without a word");
        registry.bound(AGENT, 3, Duration::ZERO);
        for (after, left) in [(0, 6), (1, 4), (2, 3), (100, 3)] {
            tokio::time::advance(Duration::from_secs(after)).await;
            settle().await;
            assert_eq!(registry.census().idle, left, "after {after} more seconds");
        }
        assert_eq!(ended(&mut tunnels), [0, 1, 2, 3, 4, 5, 6]);
        registry.bound(AGENT, 1, Duration::ZERO);
        registry.bound(AGENT, 4, Duration::ZERO);
        settle().await;
        assert_eq!(registry.census().idle, 3, "what is no longer too many stays");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_opens_each_anew_at_once_is_left_alone_for_longer_and_longer() {
        let registry = Arc::new(Registry::default());
        let _kept = kept(&registry);
        let mut tunnels: Vec<_> = (0..10).map(|_| idle(&registry)).collect();
        registry.bound(AGENT, 9, Duration::ZERO);
        let begin = Instant::now();
        let mut ends = 0;
        while begin.elapsed() < Duration::from_secs(3600) {
            settle().await;
            for number in ended(&mut tunnels).into_iter().rev() {
                ends += 1;
                tunnels.remove(number);
                tunnels.push(idle(&registry));
            }
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        // 1, 2, 4, ... 32 s, then one a minute.
        assert!((60..=70).contains(&ends), "{ends} in an hour");
        assert_eq!(registry.census().idle, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn many_agents_whose_bound_is_lowered_do_not_end_tunnels_all_at_once() {
        let registry = Arc::new(Registry::default());
        let _kept = kept(&registry);
        let mut all = Vec::new();
        for agent in 1..=100 {
            for _ in 0..2 {
                all.push(registry.present(AgentId(agent), "here".into(), true));
                let Offer::Idle(ticket, claimed) = registry.offer(AgentId(agent)) else {
                    panic!("nobody waits")
                };
                Box::leak(Box::new((ticket, claimed)));
            }
        }
        for agent in 1..=100 {
            registry.bound(AgentId(agent), 1, Duration::from_secs(10));
        }
        settle().await;
        let mut before = 200;
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            settle().await;
            let now = registry.census().idle;
            assert!(before - now < 40, "{before} to {now} in a second");
            before = now;
        }
        assert_eq!(before, 100);
    }
}
