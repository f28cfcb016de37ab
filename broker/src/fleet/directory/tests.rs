//! Directories of several brokers in one process, on a real Redis server of their own. Agents are presence guards.

mod drain;
mod outage;
mod reading;
mod writing;

use super::*;
use crate::{
    redis::{Config, Servers},
    tunnel::registry::PresenceGuard,
};
use ::redis::cmd;
use stand_ins::redis::{Options as ServerOptions, RedisServer};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};
use tokio::time::{MissedTickBehavior, interval};

const SOON: Duration = Duration::from_secs(60);
const AGENT: AgentId = AgentId(42);
/// Nothing is young, and agents that leave are taken back soon. A machine that stands still for a while gives up nothing.
const QUICK: Habits = Habits {
    wall: SystemTime::now,
    fade: Duration::from_millis(20),
    young: Duration::ZERO,
    patience: SOON,
    poll: search::POLL,
    limit: SOON,
    leave: SOON,
    echo: SOON,
};
/// No refresh begins by chance while a test counts commands: the first one is at a random time of its period.
const NEVER: Duration = Duration::from_secs(30_000_000);

struct Broker {
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Broker {
    fn start(server: &RedisServer, port: u16, habits: Habits) -> Self {
        let options = Options { own: peer(port), ttl: Duration::from_secs(300), refresh: NEVER };
        Self::start_with(server, options, habits)
    }

    fn start_with(server: &RedisServer, options: Options, habits: Habits) -> Self {
        let (registry, stop, tasks) = (Arc::default(), CancellationToken::new(), TaskTracker::new());
        let redis = open(server);
        let directory = Directory::start_with(habits, redis, Arc::clone(&registry), options, &stop, &tasks);
        Self { directory, registry, stop, tasks }
    }

    /// Started, and listening.
    async fn ready(server: &RedisServer, port: u16, habits: Habits) -> Self {
        let broker = Self::start(server, port, habits);
        broker.listens().await;
        broker
    }

    async fn listens(&self) {
        let directory = &self.directory;
        let ready = || async {
            directory.world.view().is_listening && directory.clock.now().is_some() && directory.is_up()
        };
        eventually("the broker listens", ready).await;
    }

    fn hold(&self, agent: AgentId) -> PresenceGuard {
        self.registry.present(agent, "192.0.2.1:5".into(), true)
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(SOON, self.tasks.wait()).await.expect("all tasks end");
    }
}

fn peer(port: u16) -> PeerUrl {
    PeerUrl::Tcp { host: "10.0.0.1".into(), port, tls: false }
}

fn found(port: u16) -> Found {
    Found::Peer(peer(port))
}

async fn server() -> RedisServer {
    RedisServer::start(ServerOptions::default()).await.unwrap()
}

fn open(server: &RedisServer) -> Arc<Redis> {
    let patient = Config::new(Servers::Unix(server.socket()));
    Redis::open(Config { dial_timeout: SOON, read_timeout: SOON, ..patient }).unwrap()
}

async fn next(search: &mut Search) -> Found {
    timeout(SOON, search.next()).await.expect("news")
}

/// Looks again and again until it is so.
async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begin = Instant::now();
    let mut tick = interval(Duration::from_millis(2));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !is_so().await {
        assert!(begin.elapsed() < SOON, "in vain: {what}");
        tick.tick().await;
    }
}

/// What stands in Redis, seen from outside.
struct Outside {
    redis: Arc<Redis>,
    keys: schema::Keys,
}

impl Outside {
    fn new(server: &RedisServer) -> Self {
        Self { redis: open(server), keys: schema::Keys::new("gitlab-kas") }
    }

    async fn fields(&self, key: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.redis.command(cmd("HGETALL").arg(key)).await.unwrap_or_default()
    }

    async fn put(&self, agent: AgentId, field: &[u8], value: &[u8]) {
        let key = self.keys.agent(agent);
        self.redis.command::<()>(cmd("HSET").arg(key).arg(field).arg(value)).await.unwrap();
    }

    async fn now(&self) -> i64 {
        let (seconds, _): (i64, i64) = self.redis.command(&cmd("TIME")).await.unwrap();
        seconds
    }

    /// The brokers that hold it, as far as Redis says.
    async fn holders(&self, agent: AgentId) -> BTreeSet<String> {
        let fields = self.fields(&self.keys.agent(agent)).await;
        fields.into_keys().map(|field| String::from_utf8_lossy(&field).into_owned()).collect()
    }

    async fn is_held_by(&self, agent: AgentId, ports: &[u16]) -> bool {
        self.holders(agent).await == ports.iter().map(|port| peer(*port).to_string()).collect()
    }

    async fn forget_commands(&self) {
        self.redis.command::<()>(cmd("CONFIG").arg("RESETSTAT")).await.unwrap();
    }

    /// How often each command was called since, without those of this program's tests.
    async fn commands(&self) -> BTreeMap<String, u64> {
        let text: String = self.redis.command(cmd("INFO").arg("commandstats")).await.unwrap();
        let line = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        let is_ours = |name: &str| !name.starts_with("config") && name != "info";
        text.lines().filter_map(line).filter(|(name, _)| is_ours(name)).collect()
    }

    /// Waits until no broker has anything to say any more.
    async fn is_quiet(&self) {
        let begin = Instant::now();
        let mut tick = interval(Duration::from_millis(100));
        loop {
            assert!(begin.elapsed() < SOON, "there is always something to say");
            self.forget_commands().await;
            tick.reset();
            tick.tick().await;
            if self.commands().await.is_empty() {
                return;
            }
        }
    }
}
