//! What a drain means to those who serve: when an agent's idle streams are to end and with what hint, and when requests
//! must. `app/drain.rs` gives the signals in their order; tunnels, long polls and requests heed them. It ends nothing
//! itself.

use futures::future::BoxFuture;
use postern_wire::{ids::AgentId, metadata::set_retry_pushback};
use rand::Rng;
use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Code, Status, metadata::MetadataMap};

/// What running requests are told at the deadline.
pub const SHUTTING_DOWN: &str = "kas is shutting down";

/// So much of the time in which agents are asked to go belongs to each of them.
const EACH: Duration = Duration::from_millis(2);
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long the second half of an agent's idle tunnels waits for the first to stand elsewhere.
const MOVES: Duration = Duration::from_secs(5);
/// Where no other broker is known to be, agents pause for some part of this, so that they do not come in one wave.
const PAUSE: Duration = Duration::from_secs(1);
/// For cut requests to say so to whom they concern.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The other brokers, as far as a drain is concerned.
pub trait Others: Send + Sync {
    /// This broker begins to leave: nobody new is to come here.
    fn begin(&self);
    /// Whether there are any, as far as known.
    fn any(&self) -> bool;
    /// Returns once another broker says that this agent has a tunnel there.
    fn moved(&self, agent: AgentId) -> BoxFuture<'_, ()>;
    /// Makes the others forget this broker; all that it had is gone.
    fn leave(&self) -> BoxFuture<'_, ()>;
}

/// How and when idle streams end. Clones share it.
#[derive(Clone)]
pub struct Departures(Arc<Shared>);

struct Shared {
    plan: watch::Sender<Option<Plan>>,
    /// How many idle tunnels each agent was asked for so far. Only agents whose token was good are here.
    asked: Mutex<HashMap<AgentId, usize>>,
    stays: TaskTracker,
}

#[derive(Clone)]
struct Plan {
    begin: Instant,
    window: Duration,
    deadline: Instant,
    order: RandomState,
    others: Option<Arc<dyn Others>>,
}

impl Plan {
    /// When this agent's turn is: the same whenever it is asked, and unlike at every drain.
    fn slot(&self, agent: AgentId) -> Instant {
        let place = self.order.hash_one(agent.0) >> 11;
        // 53 bits: as many as such a number has.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let share = place as f64 / (1u64 << 53) as f64;
        self.begin + self.window.mul_f64(share)
    }
}

impl fmt::Debug for Departures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Departures").field("begun", &self.0.plan.borrow().is_some()).finish_non_exhaustive()
    }
}

impl Default for Departures {
    fn default() -> Self {
        let (plan, asked, stays) = (watch::Sender::new(None), Mutex::default(), TaskTracker::new());
        stays.close();
        Self(Arc::new(Shared { plan, asked, stays }))
    }
}

impl Departures {
    /// An idle stream of this agent is open while the guard lives.
    pub fn stay(&self, agent: AgentId) -> Stay {
        Stay { departures: self.clone(), agent, second_half: OnceLock::new(), _token: self.0.stays.token() }
    }

    /// From now on agents are asked to go, in random order, over a time that follows from how many they are and never
    /// goes past `deadline`. With other brokers each keeps half of its tunnels until it stands elsewhere.
    pub fn begin(&self, agents: usize, others: Option<Arc<dyn Others>>, deadline: Instant) {
        let begin = Instant::now();
        let each = EACH.saturating_mul(u32::try_from(agents).unwrap_or(u32::MAX));
        let left = deadline.saturating_duration_since(begin).max(SHORTEST);
        let window = each.clamp(SHORTEST, LONGEST).min(left);
        tracing::info!(agents, ?window, "agents are asked to go");
        self.0.plan.send_replace(Some(Plan { begin, window, deadline, order: RandomState::new(), others }));
    }

    /// All that are still here are to go at once.
    pub fn end(&self) {
        let begin = Instant::now();
        let plan =
            Plan { begin, window: Duration::ZERO, deadline: begin, order: RandomState::new(), others: None };
        self.0.plan.send_replace(Some(plan));
    }

    /// Returns when no idle stream is open.
    pub async fn gone(&self) {
        self.0.stays.wait().await;
    }

    /// Whether this tunnel belongs to the half that waits: every second one that is asked.
    fn is_second(&self, agent: AgentId) -> bool {
        let mut asked = self.0.asked.lock().expect("no code under this lock panics");
        let asked = asked.entry(agent).or_default();
        *asked += 1;
        asked.is_multiple_of(2)
    }
}

/// An idle stream, as long as it is idle.
#[derive(Debug)]
pub struct Stay {
    departures: Departures,
    agent: AgentId,
    second_half: OnceLock<bool>,
    _token: TaskTrackerToken,
}

impl Stay {
    /// Returns when this tunnel is to end. Cancel safe.
    pub async fn tunnel_over(&self) -> Goodbye {
        self.over(true).await
    }

    /// Returns when this stream, of which an agent has one, is to end. Cancel safe.
    pub async fn stream_over(&self) -> Goodbye {
        self.over(false).await
    }

    async fn over(&self, halves: bool) -> Goodbye {
        let mut plans = self.departures.0.plan.subscribe();
        loop {
            let plan = plans.borrow_and_update().clone();
            tokio::select! {
                goodbye = self.over_by(plan, halves) => return goodbye,
                Ok(()) = plans.changed() => {}
            }
        }
    }

    async fn over_by(&self, plan: Option<Plan>, halves: bool) -> Goodbye {
        let Some(plan) = plan else { return std::future::pending().await };
        let slot = plan.slot(self.agent);
        sleep_until(slot).await;
        let Some(others) = &plan.others else { return Goodbye::later() };
        if halves && *self.second_half.get_or_init(|| self.departures.is_second(self.agent)) {
            let until = (slot + MOVES).min(plan.deadline);
            let _ = timeout_at(until, others.moved(self.agent)).await;
        }
        Goodbye::now()
    }
}

/// How a stream that a drain ends says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// How long the agent is asked to wait before it opens the next one.
    pub pause: Duration,
}

impl Goodbye {
    /// Others are there, and the turns are spread already.
    fn now() -> Self {
        Self { pause: Duration::ZERO }
    }

    fn later() -> Self {
        Self { pause: PAUSE.mul_f64(rand::rng().random_range(0.0..1.0)) }
    }

    /// OK, with the hint in its trailers; agents that do not know it open the next stream at once.
    pub fn status(self) -> Status {
        let mut metadata = MetadataMap::new();
        set_retry_pushback(&mut metadata, self.pause);
        Status::with_metadata(Code::Ok, "", metadata)
    }
}

/// The requests under way, of callers and of other brokers. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Running {
    tracker: TaskTracker,
    cut: CancellationToken,
}

/// One request, from its head to its end.
#[derive(Debug)]
pub struct UnderWay {
    cut: CancellationToken,
    _token: TaskTrackerToken,
}

impl Running {
    /// Counts one more.
    pub fn enter(&self) -> UnderWay {
        UnderWay { cut: self.cut.clone(), _token: self.tracker.token() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Returns when there is none.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Cuts those that still run, and gives them a moment to say so; returns how many they were.
    pub async fn cut(&self) -> usize {
        let running = self.count();
        self.cut.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, self.wait()).await;
        running
    }
}

impl UnderWay {
    /// Fires when the request must end now: the time for it is over, and the process ends.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

#[cfg(test)]
pub(crate) mod tests;
