//! Keeps in Redis what this broker holds. Before it: the registry, which names agents that came or went. After it: Redis
//! and, by its channel, the other brokers. One task; whatever it writes may be written twice, and what failed or was
//! lost is written again. No request waits for it, and it holds no lock while it waits for Redis.

use super::{
    Directory,
    book::Book,
    census::count,
    record::{self, Record},
    schema::{self, News},
};
use crate::redis::RedisError;
use ::redis::Pipeline;
use postern_wire::ids::AgentId;
use rand::Rng;
use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Agents in one round trip.
const BATCH: usize = 256;
/// For one round trip. What takes longer has the connection given up.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two passes, so that a trickle of agents becomes a batch.
const PACE: Duration = Duration::from_millis(2);
/// More often is of no use.
const REFRESH_MIN: Duration = Duration::from_millis(100);
/// Between two batches of a refresh.
const REFRESH_PACE: Duration = Duration::from_millis(10);
/// After a failure; doubled each time, up to half as much again at random.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Refusals that wait to be written, and agents whose last one is remembered.
const REFUSALS: usize = 256;
const REFUSED: usize = 10_000;
/// Between two refusals of one agent.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Serving,
    /// Nothing new is announced.
    Leaving,
    /// Nothing is left in Redis.
    Gone,
}

impl Stage {
    /// There is no way back. Whether anything changed.
    pub(super) fn reach(&mut self, next: Self) -> bool {
        let is_next = *self < next;
        *self = next.max(*self);
        is_next
    }
}

#[derive(Debug)]
pub(super) struct Refusal {
    agent: AgentId,
    why: String,
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
        let why = why.chars().take(record::REFUSAL_MAX).collect();
        match self.queue.try_send(Refusal { agent, why }) {
            Ok(()) => drop(recent.insert(agent, now)),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
        }
    }
}

pub(super) struct Writer {
    directory: Arc<Directory>,
    book: Book,
    fade: Duration,
    stage: watch::Receiver<Stage>,
    openings: watch::Receiver<u64>,
    refused: mpsc::Receiver<Refusal>,
    refusals: VecDeque<Refusal>,
    /// What is due besides the agents.
    is_time_due: bool,
    is_broker_due: bool,
    is_broker_news: bool,
    /// A drain has begun.
    is_leaving: bool,
    has_broker_left: bool,
    next_refresh: Instant,
    refresh_every: Duration,
    refresh: VecDeque<AgentId>,
    refresh_began: Option<Instant>,
    retry: Option<Instant>,
    backoff: Duration,
}

impl Writer {
    pub(super) fn new(directory: Arc<Directory>, refused: mpsc::Receiver<Refusal>, fade: Duration) -> Self {
        // Brokers that start together do not refresh together.
        let phase = rand::rng().random_range(0.0..1.0);
        let refresh = directory.options.refresh.max(REFRESH_MIN);
        let mut openings = directory.redis.openings();
        openings.mark_changed();
        Self {
            book: Book::default(),
            fade,
            stage: directory.stage.subscribe(),
            openings,
            refused,
            refusals: VecDeque::new(),
            is_time_due: true,
            is_broker_due: true,
            is_broker_news: true,
            is_leaving: false,
            has_broker_left: false,
            next_refresh: Instant::now() + refresh.mul_f64(phase),
            refresh_every: refresh,
            refresh: VecDeque::new(),
            refresh_began: None,
            retry: None,
            backoff: RETRY,
            directory,
        }
    }

    /// Until `stop`, or the end of a drain.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let directory = Arc::clone(&self.directory);
        for agent in directory.registry.held() {
            self.book.hold(agent);
        }
        loop {
            let begin = Instant::now();
            let Some(has_written) = stop.run_until_cancelled(self.pass()).await else { break };
            if *self.stage.borrow() == Stage::Gone {
                break;
            }
            let wake = self.wake();
            tokio::select! {
                () = stop.cancelled() => break,
                agents = directory.registry.changed() => self.note(agents),
                _ = self.stage.changed() => {}
                _ = self.openings.changed() => self.openings.mark_changed(),
                () = directory.brokers_wanted.notified() => self.is_broker_due = true,
                Some(refusal) = self.refused.recv(), if self.refusals.len() < REFUSALS => {
                    self.refusals.push_back(refusal);
                }
                () = sleep_until(wake) => {}
            }
            if has_written {
                sleep_until(begin + PACE).await;
            }
        }
        self.book.hasten(Instant::now());
        if !timeout(super::LEAVE, self.leave()).await.unwrap_or(false) {
            tracing::warn!(
                agents = self.book.len(),
                "redis did not let this broker leave; its entries expire"
            );
        }
        directory.counters.announced.store(0, Relaxed);
        directory.is_gone.send_replace(true);
    }

    fn note(&mut self, agents: Vec<AgentId>) {
        let (now, stage) = (Instant::now(), *self.stage.borrow());
        for agent in agents {
            if !self.directory.registry.holds(agent) {
                self.book.lose(agent, if stage == Stage::Serving { now + self.fade } else { now });
            } else if stage == Stage::Serving || self.book.knows(agent) {
                self.book.hold(agent);
            }
        }
    }

    /// When there is something to do although nothing happened.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        match self.retry {
            Some(at) if self.is_hopeless() => at,
            waits => {
                let refresh = (!self.refresh.is_empty()).then(|| now + REFRESH_PACE);
                let unwritten = (self.book.is_anything_unwritten() && waits.is_none()).then_some(now);
                let others = [refresh, unwritten, waits, self.book.next_removal()];
                others.into_iter().flatten().fold(self.next_refresh, Instant::min)
            }
        }
    }

    /// Nothing gets through before the next try.
    fn is_hopeless(&self) -> bool {
        self.retry.is_some() && (self.is_time_due || !self.directory.redis.is_up())
    }

    /// Writes all that is due, as far as Redis answers. Whether there was anything to do.
    async fn pass(&mut self) -> bool {
        let now = Instant::now();
        self.check_openings();
        if now >= self.next_refresh {
            while self.next_refresh <= now {
                self.next_refresh += self.refresh_every;
            }
            self.refresh = self.book.all_written().into();
            self.refresh_began = Some(now);
            (self.is_time_due, self.is_broker_due) = (true, true);
        }
        match self.retry {
            Some(at) if at <= now => {
                self.retry = None;
                self.book.retry();
            }
            _ if self.is_hopeless() => return false,
            _ => {}
        }
        if *self.stage.borrow() != Stage::Serving && !mem::replace(&mut self.is_leaving, true) {
            self.book.hasten(now);
        }
        let is_busy = self.is_time_due
            || self.is_broker_due
            || self.is_leaving && !self.has_broker_left
            || self.book.is_anything_unwritten()
            || self.book.next_removal().is_some_and(|at| at <= now)
            || !self.refresh.is_empty();
        if !is_busy && self.refusals.is_empty() {
            return false;
        }
        count(&self.directory.counters.passes);
        match self.write().await {
            Ok(()) if self.retry.is_none() => {
                if mem::replace(&mut self.backoff, RETRY) > RETRY {
                    tracing::info!(agents = self.book.len(), "redis holds this broker's agents again");
                }
            }
            Ok(()) => {}
            Err(error) => self.fail(&error),
        }
        self.directory.counters.announced.store(self.book.len() as u64, Relaxed);
        true
    }

    fn check_openings(&mut self) {
        if self.openings.has_changed().unwrap_or(false) {
            let count = *self.openings.borrow_and_update();
            if count > 0 {
                self.book.doubt();
                self.refresh.clear();
                self.retry = None;
            }
            (self.is_time_due, self.is_broker_due, self.is_broker_news) = (true, true, true);
        }
    }

    fn fail(&mut self, error: &RedisError) {
        count(&self.directory.counters.pass_failures);
        if self.backoff == RETRY {
            tracing::warn!(
                error = %crate::error::chain(error),
                "redis does not hold all of this broker's agents; tried again until it does"
            );
        }
        if self.retry.is_none() {
            let jitter = rand::rng().random_range(1.0..1.5);
            self.retry = Some(Instant::now() + self.backoff.mul_f64(jitter));
            self.backoff = (self.backoff * 2).min(RETRY_MAX);
        }
    }

    async fn write(&mut self) -> Result<(), RedisError> {
        if self.is_time_due {
            self.directory.learn_the_time().await?;
            // That may have opened the connection.
            self.check_openings();
            self.is_time_due = false;
        }
        while !self.is_over() {
            let agents = self.book.write(BATCH);
            if agents.is_empty() {
                break;
            }
            self.announce(&agents).await;
        }
        while !self.is_over() {
            let agents = self.book.remove(BATCH, Instant::now());
            if agents.is_empty() {
                break;
            }
            let is_back = |agent: &AgentId| self.directory.registry.holds(*agent);
            let (back, gone): (Vec<_>, Vec<_>) = agents.into_iter().partition(is_back);
            back.into_iter().for_each(|agent| self.book.hold(agent));
            self.take_back(&gone).await;
        }
        self.refresh_some().await;
        if self.is_leaving {
            self.remove_broker().await?;
        } else {
            self.announce_broker().await?;
        }
        self.write_refusals().await
    }

    /// Whether this pass need not go on.
    fn is_over(&self) -> bool {
        *self.stage.borrow() == Stage::Gone || self.is_hopeless()
    }

    fn entry(&self) -> Vec<u8> {
        let Directory { clock, options, .. } = &*self.directory;
        // The time is learnt before anything is written.
        let until = clock.now().unwrap_or_default() + options.ttl;
        schema::entry(until.as_secs().try_into().unwrap_or(i64::MAX))
    }

    fn own(&self) -> String {
        self.directory.options.own.to_string()
    }

    fn hold_command(&self, pipeline: &mut Pipeline, key: &[u8], entry: &[u8]) {
        let ttl = u64::try_from(self.directory.options.ttl.as_millis()).unwrap_or(u64::MAX);
        pipeline.cmd("HSET").arg(key).arg(self.own()).arg(entry).ignore();
        pipeline.cmd("PEXPIRE").arg(key).arg(ttl).ignore();
    }

    fn tell(&self, pipeline: &mut Pipeline, news: &News) {
        pipeline.cmd("PUBLISH").arg(self.directory.keys.news()).arg(news.encode()).ignore();
    }

    /// One round trip. How each went; the last of them are news, which are not repeated: a slow poll is behind them.
    async fn batch(&mut self, pipelines: &[Pipeline]) -> Vec<bool> {
        let outcomes = self.directory.redis.batch(LIMIT, pipelines).await;
        if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
            self.fail(error);
        }
        outcomes.iter().map(Result::is_ok).collect()
    }

    async fn announce_broker(&mut self) -> Result<(), RedisError> {
        if !self.is_broker_due {
            return Ok(());
        }
        let directory = Arc::clone(&self.directory);
        let key = directory.keys.brokers();
        let mut pipeline = Pipeline::new();
        self.hold_command(&mut pipeline, &key, &self.entry());
        pipeline.cmd("HGETALL").arg(&key);
        let (fields,): (Vec<(Vec<u8>, Vec<u8>)>,) = directory.redis.pipeline_in(LIMIT, &pipeline).await?;
        let (live, expired) = directory.live(&fields);
        for (peer, until) in live.iter().filter(|(peer, _)| *peer != directory.options.own) {
            directory.brokers.saw(peer, *until);
        }
        if self.is_broker_news {
            let mut pipeline = Pipeline::new();
            self.tell(&mut pipeline, &News::Broker(directory.options.own.clone()));
            directory.redis.pipeline_in::<()>(LIMIT, &pipeline).await?;
        }
        (self.is_broker_due, self.is_broker_news) = (false, false);
        directory.remove(&key, expired).await;
        Ok(())
    }

    async fn remove_broker(&mut self) -> Result<(), RedisError> {
        if self.has_broker_left {
            return Ok(());
        }
        let directory = Arc::clone(&self.directory);
        let mut pipelines = [Pipeline::new(), Pipeline::new()];
        pipelines[0].cmd("HDEL").arg(directory.keys.brokers()).arg(self.own()).ignore();
        self.tell(&mut pipelines[1], &News::BrokerLeaves(directory.options.own.clone()));
        for outcome in directory.redis.batch(LIMIT, &pipelines).await {
            outcome?;
        }
        (self.has_broker_left, self.is_broker_due) = (true, false);
        Ok(())
    }

    async fn announce(&mut self, agents: &[AgentId]) {
        let (entry, mut news) = (self.entry(), Pipeline::new());
        let mut pipelines = Vec::with_capacity(agents.len() + 1);
        for agent in agents {
            let mut pipeline = Pipeline::new();
            // Together, or a crash in between would leave an entry that nothing removes.
            pipeline.atomic();
            self.hold_command(&mut pipeline, &self.directory.keys.agent(*agent), &entry);
            pipelines.push(pipeline);
            self.tell(&mut news, &News::Came(*agent, self.directory.options.own.clone()));
        }
        pipelines.push(news);
        let outcomes = self.batch(&pipelines).await;
        for (agent, is_good) in agents.iter().zip(outcomes) {
            self.book.written(*agent, is_good);
        }
    }

    /// Removes the entries of these and remembers where they were.
    async fn take_back(&mut self, agents: &[AgentId]) {
        if agents.is_empty() {
            return;
        }
        let directory = Arc::clone(&self.directory);
        let (own, mut news) = (self.own(), Pipeline::new());
        let mut pipelines = Vec::with_capacity(2 * agents.len() + 1);
        for agent in agents {
            let mut removal = Pipeline::new();
            removal.cmd("HDEL").arg(directory.keys.agent(*agent)).arg(&own).ignore();
            let mut record = Pipeline::new();
            put(&mut record, &directory.keys.last_seen(*agent), &self.last_words(*agent));
            pipelines.extend([removal, record]);
            self.tell(&mut news, &News::Left(*agent, directory.options.own.clone()));
        }
        pipelines.push(news);
        let outcomes = self.batch(&pipelines).await;
        for (agent, outcome) in agents.iter().zip(outcomes.chunks(2)) {
            if outcome.iter().all(|is_good| *is_good) {
                self.book.removed(*agent);
            } else {
                self.book.delay(*agent, self.retry.unwrap_or_else(|| Instant::now() + RETRY));
            }
        }
    }

    fn last_words(&self, agent: AgentId) -> Record {
        let Directory { clock, registry, .. } = &*self.directory;
        let now = clock.now().unwrap_or_default();
        match registry.presence(agent) {
            // Whoever still has a tunnel is seen right now.
            Some(presence) => {
                let (at, from) = &presence.last;
                let at = if presence.tunnels > 0 { now } else { clock.there(*at).unwrap_or(now) };
                Record::new(at, from, &self.own(), presence.refusal.as_deref())
            }
            None => Record::new(now, "", &self.own(), None),
        }
    }

    /// One batch of the refresh that is under way.
    async fn refresh_some(&mut self) {
        if self.refresh.is_empty() && self.refresh_began.is_none() {
            return;
        }
        let some = self.refresh.len().min(BATCH);
        let agents: Vec<_> =
            self.refresh.drain(..some).filter(|agent| self.book.is_written(*agent)).collect();
        if !agents.is_empty() {
            let entry = self.entry();
            // No transactions: these keys are there and expire, whatever becomes of this.
            let one = |agent: &AgentId| {
                let mut pipeline = Pipeline::new();
                self.hold_command(&mut pipeline, &self.directory.keys.agent(*agent), &entry);
                pipeline
            };
            let pipelines: Vec<_> = agents.iter().map(one).collect();
            let outcomes = self.batch(&pipelines).await;
            for (agent, is_good) in agents.iter().zip(outcomes) {
                self.book.refreshed(*agent, is_good);
            }
        }
        if self.refresh.is_empty()
            && let Some(began) = self.refresh_began.take()
        {
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.directory.counters.refresh_micros.store(took, Relaxed);
        }
    }

    async fn write_refusals(&mut self) -> Result<(), RedisError> {
        while let Some(refusal) = self.refusals.pop_front() {
            let Err(error) = self.write_refusal(&refusal).await else { continue };
            if !self.directory.redis.is_up() {
                self.refusals.push_front(refusal);
                return Err(error);
            }
            tracing::debug!(error = %crate::error::chain(&error), "a refusal was not written to redis");
        }
        Ok(())
    }

    async fn write_refusal(&self, Refusal { agent, why }: &Refusal) -> Result<(), RedisError> {
        let directory = &self.directory;
        let known = match directory.registry.presence(*agent) {
            Some(_) => Some(self.last_words(*agent)),
            None => directory.read_record(*agent).await?,
        };
        let fresh = || Record::new(directory.clock.now().unwrap_or_default(), "", &self.own(), None);
        let record = known.unwrap_or_else(fresh).refused(why);
        let mut pipeline = Pipeline::new();
        put(&mut pipeline, &directory.keys.last_seen(*agent), &record);
        directory.redis.pipeline_in(LIMIT, &pipeline).await
    }

    /// Takes back everything. Whether Redis let it.
    async fn leave(&mut self) -> bool {
        self.retry = None;
        let agents = self.book.all();
        if self.directory.clock.now().is_none() {
            // Nothing was ever written.
            return agents.is_empty();
        }
        if self.remove_broker().await.is_err() {
            return false;
        }
        for agents in agents.chunks(BATCH) {
            self.take_back(agents).await;
            if self.retry.is_some() {
                return false;
            }
        }
        true
    }
}

fn put(pipeline: &mut Pipeline, key: &[u8], record: &Record) {
    let kept = u64::try_from(record::KEPT.as_millis()).unwrap_or(u64::MAX);
    pipeline.cmd("SET").arg(key).arg(record.encode()).arg("PX").arg(kept).ignore();
}
