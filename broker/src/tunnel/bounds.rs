//! What policies say of an idle tunnel, for as long as it is idle: how old it may get, and how many its agent may have. Before it:
//! the policies in force, and each change of them. After it: the tunnel ends, or the registry ends the surplus.

use super::registry::Registry;
use crate::policies::{Age, Ages, Lifetime, Policies, STREAM_SHARE, Who};
use postern_policies::Subject;
use postern_wire::ids::AgentId;
use std::time::Duration;
use tokio::sync::watch;

/// Agents that a change leaves with too many tunnels are looked at over this time.
const SURPLUS_SPREAD: Duration = Duration::from_secs(5);

/// The bounds of all tunnels. Clones are the same.
#[derive(Clone, Debug)]
pub struct Bounds {
    policies: Policies,
    ages: Ages,
}

/// One tunnel's.
#[derive(Debug)]
pub(super) struct Bounded {
    life: Lifetime,
    policies: Policies,
    changes: watch::Receiver<u64>,
    agent: AgentId,
    who: Who,
}

impl Bounds {
    /// `maxIdle` of policies about tunnels, else a share of the age of connections; `idlePerAgent`, else any number.
    pub fn of(policies: &Policies) -> Self {
        let of = policies.clone();
        let judge = move |who: &Subject<'_>| {
            let set = of.live().set();
            if let Some(ruled) = set.tunnels.max_idle.find(who) {
                return Age { most: Some(*ruled.value), jitter_percent: None };
            }
            let age = of.max_age(who);
            Age { most: age.most.map(|most| most.mul_f64(STREAM_SHARE)), ..age }
        };
        Self { policies: policies.clone(), ages: Ages::by(judge, policies.live().changes()) }
    }

    /// Those of a tunnel that begins now.
    pub(super) fn begin(&self, agent: AgentId, who: Who, registry: &Registry) -> Bounded {
        let (policies, changes) = (self.policies.clone(), self.policies.live().changes());
        let bounded = Bounded { life: self.ages.begin(who.clone()), policies, changes, agent, who };
        registry.bound(agent, bounded.most(), Duration::ZERO);
        bounded
    }
}

impl Bounded {
    /// Returns when the tunnel is too old; tells the registry of each change until then. Dropped and called again, it goes on.
    pub(super) async fn too_old(&mut self, registry: &Registry) {
        loop {
            tokio::select! {
                () = self.life.over() => return,
                Ok(()) = self.changes.changed() => {}
            }
            registry.bound(self.agent, self.most(), SURPLUS_SPREAD);
        }
    }

    fn most(&self) -> u32 {
        let set = self.policies.live().set();
        set.tunnels.idle_per_agent.find(&self.who.subject()).map_or(u32::MAX, |ruled| *ruled.value)
    }
}
