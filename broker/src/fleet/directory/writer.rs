//! Keeps in Redis what this broker holds. Before it: the registry, which names agents that came or went. After it: Redis
//! and, by its channel, the other brokers. One task; whatever it writes may be written twice, and what failed or was
//! lost is written again. No request waits for it, and it holds no lock while it waits for Redis.

mod rounds;

use super::{
    Directory,
    book::Book,
    census::count,
    refusals::{REFUSALS, Refusal},
};
use crate::redis::RedisError;
use postern_wire::ids::AgentId;
use rand::Rng;
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Agents in one round trip.
const BATCH: usize = 256;
/// For one round trip. What takes longer has the connection given up.
pub(super) const LIMIT: Duration = Duration::from_secs(1);
/// Between two passes, so that a trickle of agents becomes a batch.
const PACE: Duration = Duration::from_millis(2);
/// More often is of no use.
const REFRESH_MIN: Duration = Duration::from_millis(100);
/// Between two batches of a refresh.
const REFRESH_PACE: Duration = Duration::from_millis(10);
/// After a failure; doubled each time, up to half as much again at random.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);
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

pub(super) struct Writer {
    directory: Arc<Directory>,
    book: Book,
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
    pub(super) fn new(directory: Arc<Directory>, refused: mpsc::Receiver<Refusal>) -> Self {
        // Brokers that start together do not refresh together.
        let phase = rand::rng().random_range(0.0..1.0);
        let refresh = directory.options.refresh.max(REFRESH_MIN);
        let mut openings = directory.redis.openings();
        openings.mark_changed();
        Self {
            book: Book::default(),
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
        if !timeout(directory.habits.leave, self.leave()).await.unwrap_or(false) {
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
                self.book.lose(
                    agent,
                    if stage == Stage::Serving { now + self.directory.habits.fade } else { now },
                );
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
            self.directory.world.notice(Instant::now());
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
}
