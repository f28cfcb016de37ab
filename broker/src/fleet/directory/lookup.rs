//! One question to Redis: which brokers hold this agent, and if none does, where it was last. One at a time for each
//! agent, in a task of its own, so that the request that began it may leave. Before it: a search whose route knows
//! nothing. After it: the route. Entries that it finds expired it removes, unless they were refreshed meanwhile. What they
//! tell of an agent that nobody else remembers, as its broker was killed, is written down before.

use super::{
    Directory, LastSeen,
    census::count,
    record::{self, Record},
    route::Begun,
    schema,
    slots::Slot,
};
use crate::{fleet::PeerUrl, redis::RedisError};
use ::redis::{Pipeline, cmd};
use postern_wire::ids::AgentId;
use std::{sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

struct Answer {
    listed: Vec<(PeerUrl, Instant)>,
    last: Option<LastSeen>,
    /// What the entries say of where the agent was, if there is no record or none was looked for.
    trace: Option<Record>,
    /// As they were read.
    expired: Fields,
}

/// A question that nobody will answer any more once this is dropped.
struct Unanswered(Option<(Arc<Directory>, Arc<Slot>)>);

impl Unanswered {
    fn settled(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some((directory, slot)) = self.0.take() {
            slot.route().failed(Instant::now(), || directory.world.number());
        }
    }
}

impl Directory {
    /// Asks for the agent of this slot, which has noted that it is being asked.
    pub(super) fn look_up(self: &Arc<Self>, slot: &Arc<Slot>, permit: Option<OwnedSemaphorePermit>) {
        let begun = Begun { number: self.world.number(), epoch: self.world.view().epoch };
        let (this, slot) = (Arc::clone(self), Arc::clone(slot));
        self.tasks.spawn(async move {
            let _permit = permit;
            // However this ends, somebody may ask again.
            let unanswered = Unanswered(Some((Arc::clone(&this), Arc::clone(&slot))));
            count(&this.counters.lookups);
            let answer = this.ask(slot.agent).await;
            let now = Instant::now();
            let number = || this.world.number();
            let (trace, expired) = match answer {
                Ok(Answer { listed, last, trace, expired }) => {
                    let is_anyone = !listed.is_empty();
                    let mut route = slot.route();
                    route.answered(listed, last, begun, (this.options.ttl, now), number);
                    // Entries that are about to go: those removed below, and those of brokers that do not have it.
                    let is_last = if is_anyone { route.is_doubtful() } else { !expired.is_empty() };
                    (trace.filter(|_| is_last), expired)
                }
                Err(error) => {
                    count(&this.counters.lookup_failures);
                    tracing::debug!(
                        agent_id = %slot.agent, error = %crate::error::chain(&error),
                        "redis could not be asked who holds an agent"
                    );
                    slot.route().failed(now, number);
                    (None, Fields::new())
                }
            };
            unanswered.settled();
            slot.news.notify_waiters();
            if let Some(record) = trace
                && let Err(error) = this.remember(slot.agent, &record).await
            {
                tracing::debug!(
                    agent_id = %slot.agent, error = %crate::error::chain(&error),
                    "redis did not take down where an agent was"
                );
                return;
            }
            this.remove(&this.keys.agent(slot.agent), expired).await;
        });
    }

    async fn ask(&self, agent: AgentId) -> Result<Answer, RedisError> {
        self.know_the_time().await?;
        let fields: Fields = self.redis.command(cmd("HGETALL").arg(self.keys.agent(agent))).await?;
        let (listed, expired) = self.live(&fields);
        // Its own entry is no news.
        let listed: Vec<_> = listed.into_iter().filter(|(peer, _)| *peer != self.options.own).collect();
        for (peer, until) in &listed {
            self.brokers.saw(peer, *until, Instant::now());
        }
        let mut trace = self.trace(&fields);
        let mut last = None;
        if listed.is_empty() {
            match self.read_last_seen(agent).await? {
                Some(known) => (last, trace) = (Some(known), None),
                None => last = trace.clone().and_then(|record| record.read(&self.clock)),
            }
        }
        Ok(Answer { listed, last, trace, expired })
    }

    /// The broker that wrote its entry last, whether it is in force or not, and when that was.
    fn trace(&self, fields: &Fields) -> Option<Record> {
        let now = self.clock.now()?;
        let written = |(field, value): &(Vec<u8>, Vec<u8>)| {
            let (peer, expires_at) = schema::parse_entry(field, value)?;
            let at = expires_at.map_or(now, |at| Duration::from_secs(at.try_into().unwrap_or(0)));
            Some((at.saturating_sub(self.options.ttl).min(now), peer))
        };
        let (at, peer) = fields.iter().filter_map(written).max()?;
        (now.saturating_sub(at) < record::KEPT).then(|| Record::new(at, "", &peer.to_string(), None))
    }

    /// Writes this unless something is remembered already.
    async fn remember(&self, agent: AgentId, record: &Record) -> Result<(), RedisError> {
        let mut set = cmd("SET");
        let kept = u64::try_from(record::KEPT.as_millis()).unwrap_or(u64::MAX);
        set.arg(self.keys.last_seen(agent)).arg(record.encode()).arg("PX").arg(kept).arg("NX");
        self.redis.command::<::redis::Value>(&set).await.map(drop)
    }

    /// The entries in force and until when, and those that have expired. What is no entry is neither.
    pub(super) fn live(&self, fields: &Fields) -> (Vec<(PeerUrl, Instant)>, Fields) {
        let (now, here) = (self.clock.now().unwrap_or_default(), Instant::now());
        let (mut live, mut expired) = (Vec::new(), Fields::new());
        for (field, value) in fields {
            let Some((peer, expires_at)) = schema::parse_entry(field, value) else { continue };
            let left = match expires_at {
                Some(at) => Duration::from_secs(at.try_into().unwrap_or(0)).saturating_sub(now),
                None => self.options.ttl,
            };
            if left.is_zero() {
                expired.push((field.clone(), value.clone()));
            } else if live.len() < schema::BROKERS_MAX {
                live.push((peer, here + left.min(self.options.ttl)));
            }
        }
        expired.truncate(schema::BROKERS_MAX);
        (live, expired)
    }

    /// Removes those fields of a hash that still have these values.
    pub(super) async fn remove(&self, key: &[u8], expired: Fields) {
        if expired.is_empty() {
            return;
        }
        let mut pipeline = Pipeline::new();
        for (field, value) in expired {
            pipeline.cmd("EVAL").arg(schema::REMOVE).arg(1).arg(key).arg(field).arg(value).ignore();
        }
        if let Err(error) = self.redis.pipeline::<()>(&pipeline).await {
            tracing::debug!(error = %crate::error::chain(&error), "expired entries were not removed from redis");
        }
    }

    pub(super) async fn read_last_seen(&self, agent: AgentId) -> Result<Option<LastSeen>, RedisError> {
        self.know_the_time().await?;
        let record = self.read_record(agent).await?;
        Ok(record.and_then(|record| record.read(&self.clock)))
    }

    pub(super) async fn read_record(&self, agent: AgentId) -> Result<Option<Record>, RedisError> {
        let text: Option<Vec<u8>> = self.redis.command(cmd("GET").arg(self.keys.last_seen(agent))).await?;
        Ok(text.and_then(|text| Record::parse(&text)))
    }

    async fn know_the_time(&self) -> Result<(), RedisError> {
        if self.clock.now().is_none() {
            self.learn_the_time().await?;
        }
        Ok(())
    }

    pub(super) async fn learn_the_time(&self) -> Result<(), RedisError> {
        self.clock.learn(self.redis.command(&cmd("TIME")).await?);
        Ok(())
    }
}
