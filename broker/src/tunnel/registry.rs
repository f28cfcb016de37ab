//! The tunnels in this process: which agents have idle ones, and which requests wait for one. A tunnel is found
//! only under the agent id that its own token proved, so that no request can take another agent's.

mod bounds;

use crate::tunnel::stream::Lease;
use bounds::Bound;
use postern_wire::ids::AgentId;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// Requests that may wait for one agent at a time; the next is told so instead of being queued.
const MAX_WAITING: usize = 1000;
/// After its own start every agent is reconnecting, even those that this process never saw.
const START_GRACE: Duration = Duration::from_secs(3);

/// Why a request got no tunnel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// This broker never saw the agent.
    #[error(
        "agent {agent} has never connected to this broker{}; is agentk installed in the cluster, and do its \
         --kas-address and token belong here?",
        young(*up)
    )]
    NeverSeen {
        /// Whom the request asked for.
        agent: AgentId,
        /// Since the broker's start.
        up: Duration,
    },
    /// It was here, and did not come back within the wait.
    #[error("agent {agent} is not connected: waited {waited:?}, last seen {ago:?} ago from {from}{refusal}; see agentk's log in the cluster", refusal = refusal.as_deref().map(|why| format!(", last refused: {why}")).unwrap_or_default())]
    Gone {
        /// Whom the request asked for.
        agent: AgentId,
        /// How long the request waited.
        waited: Duration,
        /// Since its last tunnel ended.
        ago: Duration,
        /// Address of its last connection.
        from: String,
        /// Why its last attempt was refused, if it was.
        refusal: Option<String>,
    },
    /// It is connected, and all its tunnels are in use.
    #[error("all {busy} tunnels of agent {agent} are in use; none became free within {waited:?}")]
    Busy {
        /// Whom the request asked for.
        agent: AgentId,
        /// Tunnels that carry a request.
        busy: usize,
        /// How long the request waited.
        waited: Duration,
    },
    /// Too many others wait already.
    #[error("{MAX_WAITING} requests are already waiting for agent {agent}")]
    TooManyWaiting {
        /// Whom the request asked for.
        agent: AgentId,
    },
    /// The broker is about to exit.
    #[error("this broker is draining; try again")]
    Draining,
}

/// Agents pause for up to 20 s between two dials, so that this long a missing one may just be on its way back.
const YOUNG: Duration = Duration::from_secs(30);

fn young(up: Duration) -> String {
    if up > YOUNG {
        return String::new();
    }
    format!(", which started {} s ago, so it may still be on its way", up.as_secs())
}

/// All tunnels of this process, by agent.
pub struct Registry {
    slots: Mutex<Slots>,
    started: Instant,
    /// Somebody was added to `Slots::changed`.
    changed: Notify,
    /// Somebody was added to the head of `Slots::crowded`.
    crowd: Notify,
    /// Whoever wants to hear of refusals, too.
    refusals: OnceLock<Refusals>,
}

type Refusals = Box<dyn Fn(AgentId, &str) + Send + Sync>;

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("census", &self.census()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Slots {
    agents: HashMap<AgentId, Slot>,
    next: u64,
    draining: bool,
    /// Agents that got their first tunnel or lost their last one; each is in `agents`.
    changed: HashSet<AgentId>,
    /// Agents with too many idle tunnels, by when that is seen to; each is in `agents`.
    crowded: BTreeSet<(Instant, AgentId)>,
}

/// What is known about one agent. Created only for agents whose token was good, so their number is bounded.
#[derive(Debug, Default)]
struct Slot {
    /// Newest last: the tunnel used last is taken first, so that surplus ones stay idle and are closed.
    idle: BTreeMap<u64, oneshot::Sender<Claim>>,
    waiting: VecDeque<oneshot::Sender<Lease>>,
    open: usize,
    streams: usize,
    last: Option<(Instant, String)>,
    refusal: Option<String>,
    bound: Bound,
}

impl Slot {
    fn claim(&mut self, agent: AgentId, mut claim: Claim) -> Result<Claimed, FindError> {
        while let Some((_, idle)) = self.idle.pop_last() {
            match idle.send(claim) {
                Ok(()) => return Ok(Claimed::Idle),
                Err(returned) => claim = returned,
            }
        }
        self.waiting.retain(|waiting| !waiting.is_closed());
        if self.waiting.len() >= MAX_WAITING {
            return Err(FindError::TooManyWaiting { agent });
        }
        self.waiting.push_back(claim);
        Ok(Claimed::Queued { seen: self.last.is_some() })
    }

    /// Nobody has seen this agent, and nobody waits for it.
    fn is_void(&self) -> bool {
        self.last.is_none() && self.waiting.iter().all(oneshot::Sender::is_closed)
    }
}

/// What one agent has here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Tunnels, idle or carrying a request.
    pub tunnels: usize,
    /// Its other streams.
    pub streams: usize,
    /// When anything of it began or ended last, and from where that came.
    pub last: (SystemTime, String),
    /// Why its last attempt was refused, if it was.
    pub refusal: Option<String>,
}

/// A request's claim on an idle tunnel: the tunnel's task answers it by handing itself over.
pub type Claim = oneshot::Sender<Lease>;

/// Where a fresh tunnel belongs.
#[derive(Debug)]
pub enum Offer {
    /// A request waits for it right now.
    Wanted(Claim),
    /// It is idle under this ticket until the claim comes.
    Idle(Ticket, oneshot::Receiver<Claim>),
}

/// Numbers for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Agents with at least one tunnel or configuration stream.
    pub agents: usize,
    /// Tunnels waiting for a request.
    pub idle: usize,
    /// Tunnels carrying one.
    pub busy: usize,
    /// Requests waiting for a tunnel.
    pub waiting: usize,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            started: Instant::now(),
            changed: Notify::new(),
            crowd: Notify::new(),
            refusals: OnceLock::new(),
        }
    }
}

impl Registry {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().expect("no code under this lock panics")
    }

    /// Counts a stream of an agent (tunnel or configuration) as a sign of life while the guard lives.
    pub fn present(self: &Arc<Self>, agent: AgentId, from: String, tunnel: bool) -> PresenceGuard {
        let mut slots = self.slots();
        let slot = slots.agents.entry(agent).or_default();
        if tunnel {
            slot.open += 1;
        } else {
            slot.streams += 1;
        }
        slot.last = Some((Instant::now(), from.clone()));
        slot.refusal = None;
        if tunnel && slot.open == 1 {
            slots.changed.insert(agent);
            self.changed.notify_one();
        }
        PresenceGuard { registry: Arc::clone(self), agent, from, tunnel }
    }

    /// Whether this agent has a tunnel here, idle or carrying a request.
    pub fn holds(&self, agent: AgentId) -> bool {
        self.slots().agents.get(&agent).is_some_and(|slot| slot.open > 0)
    }

    /// All agents that have one.
    pub fn held(&self) -> Vec<AgentId> {
        self.slots().agents.iter().filter(|(_, slot)| slot.open > 0).map(|(agent, _)| *agent).collect()
    }

    /// Waits for agents to get their first tunnel or lose their last one, and names them all. What is true of them now
    /// [`Registry::holds`] says. For one caller: what it was told nobody else is.
    pub async fn changed(&self) -> Vec<AgentId> {
        loop {
            let changed = std::mem::take(&mut self.slots().changed);
            if !changed.is_empty() {
                return changed.into_iter().collect();
            }
            self.changed.notified().await;
        }
    }

    /// What this agent has here, or had when it was seen last; `None` if it never was.
    pub fn presence(&self, agent: AgentId) -> Option<Presence> {
        let slots = self.slots();
        let slot = slots.agents.get(&agent)?;
        let (at, from) = slot.last.clone()?;
        let at = SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
        let refusal = slot.refusal.clone();
        Some(Presence { tunnels: slot.open, streams: slot.streams, last: (at, from), refusal })
    }

    /// Takes an idle tunnel of this agent, if it has one now.
    pub async fn take(&self, agent: AgentId) -> Option<Lease> {
        loop {
            let (claim, tunnel) = oneshot::channel();
            if !self.claim_idle(agent, claim) {
                return None;
            }
            // One that died meanwhile answers nothing; there may be others.
            if let Ok(tunnel) = tunnel.await {
                return Some(tunnel);
            }
        }
    }

    /// Takes a tunnel of this agent as soon as there is one, whether or not anybody has ever seen it. The caller
    /// says how long: leaving is dropping this.
    ///
    /// # Errors
    /// `Draining`, `TooManyWaiting`.
    pub async fn wait(&self, agent: AgentId) -> Result<Lease, FindError> {
        let _tidy = Tidy { registry: self, agent };
        loop {
            let (claim, tunnel) = oneshot::channel();
            match self.queue(agent, claim)? {
                Claimed::Idle => {
                    if let Ok(tunnel) = tunnel.await {
                        return Ok(tunnel);
                    }
                }
                Claimed::Queued { .. } => return tunnel.await.map_err(|_| FindError::Draining),
            }
        }
    }

    fn claim_idle(&self, agent: AgentId, mut claim: Claim) -> bool {
        let mut slots = self.slots();
        let Some(slot) = slots.agents.get_mut(&agent) else { return false };
        while let Some((_, idle)) = slot.idle.pop_last() {
            match idle.send(claim) {
                Ok(()) => return true,
                Err(returned) => claim = returned,
            }
        }
        false
    }

    /// Gives the claim to an idle tunnel, or puts it in the queue.
    fn queue(&self, agent: AgentId, claim: Claim) -> Result<Claimed, FindError> {
        let mut slots = self.slots();
        if slots.draining {
            return Err(FindError::Draining);
        }
        slots.agents.entry(agent).or_default().claim(agent, claim)
    }

    /// When this process began to serve.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether any stream of this agent is open here.
    pub fn is_present(&self, agent: AgentId) -> bool {
        self.slots().agents.get(&agent).is_some_and(|slot| slot.open + slot.streams > 0)
    }

    /// Also tells `hear` of every refusal, whether or not the agent was ever here. Once; it must not wait.
    pub fn tell_refusals(&self, hear: impl Fn(AgentId, &str) + Send + Sync + 'static) {
        let _ = self.refusals.set(Box::new(hear));
    }

    /// Remembers why a known agent was turned away, for those who ask where it is.
    pub fn refused(&self, agent: AgentId, why: String) {
        if let Some(tell) = self.refusals.get() {
            tell(agent, &why);
        }
        if let Some(slot) = self.slots().agents.get_mut(&agent) {
            slot.refusal = Some(why);
        }
    }

    /// Offers a tunnel: to the request that waits longest, else to the idle ones.
    pub fn offer(self: &Arc<Self>, agent: AgentId) -> Offer {
        let mut slots = self.slots();
        slots.next += 1;
        let number = slots.next;
        let slot = slots.agents.entry(agent).or_default();
        while let Some(claim) = slot.waiting.pop_front() {
            if !claim.is_closed() {
                return Offer::Wanted(claim);
            }
        }
        let (claim, claimed) = oneshot::channel();
        slot.idle.insert(number, claim);
        if slots.look_at(agent, Duration::ZERO) {
            self.crowd.notify_one();
        }
        Offer::Idle(Ticket { registry: Arc::clone(self), agent, number }, claimed)
    }

    /// Takes an idle tunnel of this agent, or waits for one. Never waits for an agent that nobody has seen.
    pub async fn find(&self, agent: AgentId, wait: Duration) -> Result<Lease, FindError> {
        let _tidy = Tidy { registry: self, agent };
        let start = Instant::now();
        let deadline = start + wait;
        loop {
            let (claim, tunnel) = oneshot::channel();
            match self.claim(agent, claim)? {
                // The claim went to an idle tunnel; if it died meanwhile, look again.
                Claimed::Idle => {
                    if let Ok(tunnel) = tunnel.await {
                        return Ok(tunnel);
                    }
                }
                Claimed::Queued { seen } => {
                    let grace = self.started + START_GRACE.min(wait);
                    let until = if seen { deadline } else { grace };
                    if !seen && until <= start {
                        return Err(self.never_seen(agent));
                    }
                    match tokio::time::timeout_at(until, tunnel).await {
                        Ok(Ok(tunnel)) => return Ok(tunnel),
                        Ok(Err(_)) => return Err(FindError::Draining),
                        Err(_) => return Err(self.why_not(agent, start.elapsed())),
                    }
                }
            }
        }
    }

    fn claim(&self, agent: AgentId, claim: Claim) -> Result<Claimed, FindError> {
        let mut slots = self.slots();
        if slots.draining {
            return Err(FindError::Draining);
        }
        let starting = self.started.elapsed() < START_GRACE;
        let slot = match slots.agents.get_mut(&agent) {
            Some(slot) => slot,
            None if starting => slots.agents.entry(agent).or_default(),
            None => return Err(self.never_seen(agent)),
        };
        if slot.last.is_none() && !starting {
            return Err(self.never_seen(agent));
        }
        slot.claim(agent, claim)
    }

    fn never_seen(&self, agent: AgentId) -> FindError {
        FindError::NeverSeen { agent, up: self.started.elapsed() }
    }

    fn why_not(&self, agent: AgentId, waited: Duration) -> FindError {
        let slots = self.slots();
        // Rounded: nobody needs nanoseconds in an error.
        let waited = Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let Some(slot) = slots.agents.get(&agent) else { return self.never_seen(agent) };
        match &slot.last {
            None => self.never_seen(agent),
            Some(_) if slot.open > 0 => FindError::Busy { agent, busy: slot.open, waited },
            Some((at, from)) => FindError::Gone {
                agent,
                waited,
                ago: Duration::from_secs(at.elapsed().as_secs()),
                from: from.clone(),
                refusal: slot.refusal.clone(),
            },
        }
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.slots().draining
    }

    /// Ends every idle tunnel and lets no request wait any more.
    pub fn drain(&self) {
        let mut slots = self.slots();
        slots.draining = true;
        for slot in slots.agents.values_mut() {
            slot.idle.clear();
            slot.waiting.clear();
        }
    }

    /// Counts what is here now.
    pub fn census(&self) -> Census {
        let slots = self.slots();
        let mut census = Census::default();
        for slot in slots.agents.values() {
            census.agents += usize::from(slot.open + slot.streams > 0);
            census.idle += slot.idle.len();
            census.busy += slot.open.saturating_sub(slot.idle.len());
            census.waiting += slot.waiting.iter().filter(|claim| !claim.is_closed()).count();
        }
        census
    }
}

enum Claimed {
    Idle,
    Queued { seen: bool },
}

/// Forgets an agent that nobody has ever seen once the last request for it has left.
struct Tidy<'a> {
    registry: &'a Registry,
    agent: AgentId,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        let mut slots = self.registry.slots();
        if slots.agents.get(&self.agent).is_some_and(Slot::is_void) {
            slots.agents.remove(&self.agent);
        }
    }
}

/// Removes an idle tunnel from the registry when it ends.
#[derive(Debug)]
pub struct Ticket {
    registry: Arc<Registry>,
    agent: AgentId,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.registry.slots().agents.get_mut(&self.agent) {
            slot.idle.remove(&self.number);
        }
    }
}

/// While it lives, its agent counts as connected.
#[derive(Debug)]
pub struct PresenceGuard {
    registry: Arc<Registry>,
    agent: AgentId,
    from: String,
    tunnel: bool,
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        let mut slots = self.registry.slots();
        let Some(slot) = slots.agents.get_mut(&self.agent) else { return };
        if self.tunnel {
            slot.open -= 1;
        } else {
            slot.streams -= 1;
        }
        slot.last = Some((Instant::now(), std::mem::take(&mut self.from)));
        if self.tunnel && slot.open == 0 {
            slots.changed.insert(self.agent);
            self.registry.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
