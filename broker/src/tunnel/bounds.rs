//! What policies say of an idle tunnel, for as long as it is idle: how old it may get, and how many its agent may have. Before it:
//! the policies in force, and each change of them. After it: the tunnel ends, or the registry ends the surplus.

use super::registry::Registry;
use crate::policies::{Policies, Who};
use postern_wire::ids::AgentId;
use rand::Rng;
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Idle tunnels end after this share of the age of connections where no policy is about them, as kas' do.
const SHARE: f64 = 0.3;
/// Tunnels that a change makes too old end over this time, or over the new age where that is shorter.
const OLD_SPREAD: Duration = Duration::from_secs(30);
/// Agents that a change leaves with too many tunnels are looked at over this time.
const SURPLUS_SPREAD: Duration = Duration::from_secs(5);

/// One tunnel's bounds.
#[derive(Debug)]
pub(super) struct Bounds {
    policies: Policies,
    changes: watch::Receiver<u64>,
    agent: AgentId,
    who: Who,
    opened: Instant,
    /// Of the age: a little more or less, so that tunnels opened together do not end together.
    share: f64,
    max_idle: Option<Duration>,
    until: Option<Instant>,
}

impl Bounds {
    /// Of a tunnel that begins now.
    pub(super) fn new(policies: &Policies, agent: AgentId, who: Who, registry: &Registry) -> Self {
        let mut bounds = Self {
            policies: policies.clone(),
            changes: policies.live().changes(),
            agent,
            who,
            opened: Instant::now(),
            share: rand::rng().random_range(0.95..1.05),
            max_idle: None,
            until: None,
        };
        bounds.max_idle = bounds.find_max_idle();
        bounds.until = bounds.end();
        registry.bound(agent, bounds.find_most(), Duration::ZERO);
        bounds
    }

    /// Returns when the tunnel is too old. Cancel safe.
    pub(super) async fn too_old(&mut self, registry: &Registry) {
        loop {
            let until = self.until;
            let old = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = old => return,
                Ok(()) = self.changes.changed() => self.judge(registry),
            }
        }
    }

    fn judge(&mut self, registry: &Registry) {
        registry.bound(self.agent, self.find_most(), SURPLUS_SPREAD);
        let max_idle = self.find_max_idle();
        if max_idle == self.max_idle {
            return;
        }
        let (now, before) = (Instant::now(), self.until);
        self.max_idle = max_idle;
        self.until = self.end().map(|end| {
            let spread = max_idle.unwrap_or_default().min(OLD_SPREAD);
            let soon = now + spread.mul_f64(rand::rng().random_range(0.0..1.0));
            // Who changes it again and again does not keep the old ones for ever.
            if end <= now { before.map_or(soon, |before| before.min(soon)) } else { end }
        });
    }

    fn end(&self) -> Option<Instant> {
        Some(self.opened + self.max_idle?.mul_f64(self.share))
    }

    fn find_max_idle(&self) -> Option<Duration> {
        let subject = self.who.subject();
        let set = self.policies.live().set();
        match set.tunnels.max_idle.find(&subject) {
            Some(ruled) => Some(*ruled.value),
            None => self.policies.max_age(&subject).most.map(|age| age.mul_f64(SHARE)),
        }
    }

    fn find_most(&self) -> Option<u32> {
        let set = self.policies.live().set();
        set.tunnels.idle_per_agent.find(&self.who.subject()).map(|ruled| *ruled.value)
    }
}
