//! The round trips of a pass: which commands, in which batches, and what the book is told of their outcome.

use super::{BATCH, RETRY, Writer};
use crate::{
    fleet::directory::{
        Directory,
        record::{self, Record},
        refusals::Refusal,
        schema::{self, News},
    },
    redis::RedisError,
};
use ::redis::Pipeline;
use postern_wire::ids::AgentId;
use std::sync::{Arc, atomic::Ordering::Relaxed};
use tokio::time::Instant;

impl Writer {
    fn entry(&self) -> Vec<u8> {
        let Directory { clock, options, .. } = &*self.directory;
        // The time is learnt before anything is written.
        let until = clock.now().unwrap_or_default().saturating_add(options.ttl);
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
        let outcomes = self.directory.redis.batch(self.directory.habits.limit, pipelines).await;
        if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
            self.fail(error);
        }
        outcomes.iter().map(Result::is_ok).collect()
    }

    pub(super) async fn announce_broker(&mut self) -> Result<(), RedisError> {
        if !self.is_broker_due {
            return Ok(());
        }
        let directory = Arc::clone(&self.directory);
        let key = directory.keys.brokers();
        let mut pipeline = Pipeline::new();
        self.hold_command(&mut pipeline, &key, &self.entry());
        pipeline.cmd("HGETALL").arg(&key);
        let asked = Instant::now();
        let (fields,): (Vec<(Vec<u8>, Vec<u8>)>,) =
            directory.redis.pipeline_in(directory.habits.limit, &pipeline).await?;
        let (live, expired) = directory.live(&fields);
        for (peer, until) in live.iter().filter(|(peer, _)| *peer != directory.options.own) {
            directory.brokers.listed(peer, *until, asked);
        }
        if self.is_broker_news {
            let mut pipeline = Pipeline::new();
            self.tell(&mut pipeline, &News::Broker(directory.options.own.clone()));
            directory.redis.pipeline_in::<()>(directory.habits.limit, &pipeline).await?;
        }
        (self.is_broker_due, self.is_broker_news) = (false, false);
        directory.remove(&key, expired).await;
        Ok(())
    }

    pub(super) async fn remove_broker(&mut self) -> Result<(), RedisError> {
        if self.has_broker_left {
            return Ok(());
        }
        let directory = Arc::clone(&self.directory);
        let mut pipelines = [Pipeline::new(), Pipeline::new()];
        pipelines[0].cmd("HDEL").arg(directory.keys.brokers()).arg(self.own()).ignore();
        self.tell(&mut pipelines[1], &News::BrokerLeaves(directory.options.own.clone()));
        for outcome in directory.redis.batch(directory.habits.limit, &pipelines).await {
            outcome?;
        }
        (self.has_broker_left, self.is_broker_due) = (true, false);
        Ok(())
    }

    pub(super) async fn announce(&mut self, agents: &[AgentId]) {
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

    /// Remembers where these were, and then removes their entries: not at once, as a cluster has both on different nodes,
    /// and an agent without either would never have been seen.
    pub(super) async fn take_back(&mut self, agents: &[AgentId]) {
        if agents.is_empty() {
            return;
        }
        let directory = Arc::clone(&self.directory);
        let record = |agent: &AgentId| {
            let mut record = Pipeline::new();
            put(&mut record, &directory.keys.last_seen(*agent), &self.last_words(*agent));
            record
        };
        let records: Vec<_> = agents.iter().map(record).collect();
        let remembered = self.batch(&records).await;
        let (own, mut news) = (self.own(), Pipeline::new());
        let mut pipelines = Vec::with_capacity(agents.len() + 1);
        let mut leaving = Vec::with_capacity(agents.len());
        for (agent, is_good) in agents.iter().zip(remembered) {
            if !is_good {
                self.remove_later(*agent);
                continue;
            }
            let mut removal = Pipeline::new();
            removal.cmd("HDEL").arg(directory.keys.agent(*agent)).arg(&own).ignore();
            pipelines.push(removal);
            leaving.push(*agent);
            self.tell(&mut news, &News::Left(*agent, directory.options.own.clone()));
        }
        if leaving.is_empty() {
            return;
        }
        pipelines.push(news);
        let outcomes = self.batch(&pipelines).await;
        for (agent, is_good) in leaving.into_iter().zip(outcomes) {
            if is_good {
                self.book.removed(agent);
            } else {
                self.remove_later(agent);
            }
        }
    }

    fn remove_later(&mut self, agent: AgentId) {
        self.book.delay(agent, self.retry.unwrap_or_else(|| Instant::now() + RETRY));
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
    pub(super) async fn refresh_some(&mut self) {
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

    pub(super) async fn write_refusals(&mut self) -> Result<(), RedisError> {
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
        directory.redis.pipeline_in(directory.habits.limit, &pipeline).await
    }

    /// Takes back everything. Whether Redis let it.
    pub(super) async fn leave(&mut self) -> bool {
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
