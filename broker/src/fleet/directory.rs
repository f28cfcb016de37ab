//! Who holds which agent, fleet-wide, on Redis. Before it: the registry, whose agents it announces, and the router, which
//! looks for others'. After it: Redis, which holds one small entry per agent and broker, and the other brokers, which
//! are told of every change. Nothing on a request's way waits for more than one command, and no agent that is known is
//! lost because Redis is. It dials no broker and carries no request.

mod book;
mod brokers;
mod census;
mod clock;
mod events;
mod listener;
mod lookup;
mod record;
mod refusals;
mod route;
mod schema;
mod search;
mod slots;
mod world;
mod writer;

#[cfg(test)]
mod tests;

pub use census::Census;
pub use search::{Found, Search};

use crate::{fleet::PeerUrl, redis::Redis, tunnel::registry::Registry};
use postern_wire::{ids::AgentId, proto::gitlab::agent::event::GitPushEvent};
use refusals::Refusals;
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Notify, Semaphore, broadcast, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use writer::{Stage, Writer};

/// How long a drain may wait for Redis.
const LEAVE: Duration = Duration::from_secs(2);
/// Agents that a drain asks Redis about at the same time.
const MOVES: usize = 16;

/// What a broker says about itself, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// This broker's private API, as the others are to dial it.
    pub own: PeerUrl,
    /// How long an entry is good for (`agent.redis_conn_info_ttl`).
    pub ttl: Duration,
    /// How often it is written again (`agent.redis_conn_info_refresh`); well below `ttl`.
    pub refresh: Duration,
}

/// What only tests change.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// This host's clock.
    wall: fn() -> SystemTime,
    /// From the end of an agent's last tunnel to the removal of its entry: it may be about to open the next.
    fade: Duration,
    /// After Redis was (re)connected the brokers may not have announced everything again yet for so long.
    young: Duration,
    /// A search does not wait longer for Redis before it says that it knows nothing.
    patience: Duration,
    /// Between two questions to Redis for a search that waits in vain; a fifth more or less at random.
    poll: Duration,
    /// For one round trip of the writer. What takes longer has the connection given up.
    limit: Duration,
    /// How long a drain may wait for Redis.
    leave: Duration,
    /// How long Redis may take to give back this broker's own publication.
    echo: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            wall: SystemTime::now,
            fade: Duration::from_secs(5),
            young: Duration::from_secs(10),
            patience: route::PATIENCE,
            poll: search::POLL,
            limit: writer::LIMIT,
            leave: LEAVE,
            echo: events::ECHO,
        }
    }
}

/// Who holds which agent.
pub struct Directory {
    redis: Arc<Redis>,
    registry: Arc<Registry>,
    options: Options,
    habits: Habits,
    keys: schema::Keys,
    clock: clock::Clock,
    world: world::World,
    slots: slots::Slots,
    brokers: brokers::Brokers,
    events: events::Events,
    counters: census::Counters,
    refusals: Refusals,
    stage: watch::Sender<Stage>,
    /// When a drain began.
    leaving: OnceLock<Instant>,
    /// The writer has left.
    is_gone: watch::Sender<bool>,
    /// The brokers' hash is to be read soon.
    brokers_wanted: Notify,
    moves: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// Where an agent that is gone was last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSeen {
    /// When, by this host's clock.
    pub at: SystemTime,
    /// Address of its last connection; empty if it never had one.
    pub from: String,
    /// The broker that it was connected to, or that refused it; empty where there is one only.
    pub broker: String,
    /// Why it was refused since, if it was.
    pub refusal: Option<String>,
}

impl Directory {
    /// Starts to announce what `registry` holds and to listen to the others, until `stop`; then it takes back what it
    /// announced, as far as Redis answers within 2 s.
    pub fn start(
        redis: Arc<Redis>,
        registry: Arc<Registry>,
        options: Options,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        Self::start_with(Habits::default(), redis, registry, options, stop, tasks)
    }

    fn start_with(
        habits: Habits,
        redis: Arc<Redis>,
        registry: Arc<Registry>,
        options: Options,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let (refusals, refused) = Refusals::new();
        let directory = Arc::new(Self {
            keys: schema::Keys::new(redis.key_prefix()),
            clock: clock::Clock::new(habits.wall),
            world: world::World::new(redis.openings(), habits.young),
            slots: slots::Slots::default(),
            brokers: brokers::Brokers::default(),
            events: events::Events::new(habits.echo),
            counters: census::Counters::default(),
            refusals,
            stage: watch::Sender::new(Stage::Serving),
            leaving: OnceLock::new(),
            is_gone: watch::Sender::new(false),
            brokers_wanted: Notify::new(),
            moves: Arc::new(Semaphore::new(MOVES)),
            tasks: tasks.clone(),
            redis,
            registry,
            options,
            habits,
        });
        tasks.spawn(Writer::new(Arc::clone(&directory), refused).run(stop.clone()));
        tasks.spawn(listener::run(Arc::clone(&directory), stop.clone()));
        directory
    }

    /// This broker, as it is announced.
    pub fn own(&self) -> &PeerUrl {
        &self.options.own
    }

    /// Begins to look for brokers that hold this agent, without asking anybody yet.
    pub fn search(self: &Arc<Self>, agent: AgentId) -> Search {
        Search::new(Arc::clone(self), self.slots.enter(agent))
    }

    /// This broker has none of it, or cannot be reached: it is named last until it announces the agent anew, or Redis
    /// still has it after a while.
    pub fn forget(&self, agent: AgentId, peer: &PeerUrl) {
        if let Some(slot) = self.slots.get(agent) {
            slot.route().forget(peer, Instant::now());
            slot.news.notify_waiters();
        }
    }

    /// Other brokers heard of within an hour or so that have not left, 64 at the most, the latest first. Some of them may
    /// be gone, and some only cut off from Redis.
    pub fn peers(&self) -> Vec<PeerUrl> {
        self.brokers.list(Instant::now(), self.redis.is_up())
    }

    /// Those of them that are alive, as far as Redis or their news tell.
    pub fn alive(&self) -> Vec<PeerUrl> {
        self.brokers.alive(Instant::now(), self.redis.is_up())
    }

    /// This broker turned away an agent that it knows, and why: told to those who ask where the agent is. Once a
    /// minute for each agent; the rest is dropped.
    pub fn refused(&self, agent: AgentId, why: &str) {
        self.refusals.add(agent, why, Instant::now());
    }

    /// What is remembered of an agent that is gone; nothing while Redis is away.
    pub async fn last_seen(&self, agent: AgentId) -> Option<LastSeen> {
        self.read_last_seen(agent).await.ok().flatten()
    }

    /// Whether another broker has it, as far as this one knows: one that is alive, or that announced it since a drain
    /// began here. Entries that a dead one left in Redis do not count.
    pub fn elsewhere(&self, agent: AgentId) -> bool {
        let (now, is_up) = (Instant::now(), self.redis.is_up());
        let is_alive = |peer: &PeerUrl| self.brokers.is_alive(peer, now, is_up);
        let since = self.leaving.get().copied();
        self.slots.get(agent).is_some_and(|slot| slot.route().is_elsewhere(now, since, is_alive))
    }

    /// Waits until it stands elsewhere. Asks Redis once where nothing was heard, a few agents at a time.
    pub async fn moved(self: &Arc<Self>, agent: AgentId) {
        let slot = self.slots.enter(agent);
        loop {
            let news = slot.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if self.elsewhere(agent) {
                return;
            }
            let permit = tokio::select! {
                permit = Arc::clone(&self.moves).acquire_owned() => permit.ok(),
                () = &mut news => continue,
            };
            let look = slot.route().look(self.world.view());
            // Whoever does not ask now must not keep others from it while it waits.
            match look {
                true => self.look_up(&slot, permit),
                false => drop(permit),
            }
            news.await;
        }
    }

    /// A drain begins: nothing new is announced from now on, this broker is no peer for new ones, and its agents are
    /// taken back as they leave, without delay.
    pub fn begin_leave(&self) {
        self.leaving.get_or_init(Instant::now);
        self.stage.send_if_modified(|stage| stage.reach(Stage::Leaving));
    }

    /// A drain ends: takes back everything. Returns after 2 s at the most.
    pub async fn finish_leave(&self) {
        self.stage.send_if_modified(|stage| stage.reach(Stage::Gone));
        let mut is_gone = self.is_gone.subscribe();
        let _ = timeout(self.habits.leave, is_gone.wait_for(|gone| *gone)).await;
    }

    /// Whether Redis answers, as far as is known.
    pub fn is_up(&self) -> bool {
        self.redis.is_up()
    }

    /// Tells all brokers, this one too, of a push to a project. While Redis is away only this one hears of it.
    pub async fn push(&self, event: GitPushEvent) {
        self.events.publish(&self.redis, event).await;
    }

    /// All pushes from now on, whichever broker was told of them. A receiver that lags misses some.
    pub fn pushes(&self) -> broadcast::Receiver<GitPushEvent> {
        self.events.subscribe()
    }

    /// What it did so far.
    pub fn census(&self) -> Census {
        self.counters.census(self.slots.len(), self.alive().len(), self.is_up())
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("options", &self.options).finish_non_exhaustive()
    }
}
