//! One question to Redis: which brokers hold this agent, and if none does, where it was last. One at a time for each
//! agent, in a task of its own, so that the request that began it may leave. Before it: a search whose route knows
//! nothing. After it: the route. Entries that it finds expired it removes, unless they were refreshed meanwhile.

use super::{Directory, LastSeen, census::count, record::Record, route::Begun, schema, slots::Slot};
use crate::{fleet::PeerUrl, redis::RedisError};
use ::redis::{Pipeline, cmd};
use postern_wire::ids::AgentId;
use std::{sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

struct Answer {
    listed: Vec<(PeerUrl, Instant)>,
    last: Option<LastSeen>,
    /// As they were read.
    expired: Fields,
}

impl Directory {
    /// Asks for the agent of this slot, which has noted that it is being asked.
    pub(super) fn look_up(self: &Arc<Self>, slot: &Arc<Slot>, permit: Option<OwnedSemaphorePermit>) {
        let begun = Begun { number: self.world.number(), epoch: self.world.view().epoch };
        let (this, slot) = (Arc::clone(self), Arc::clone(slot));
        self.tasks.spawn(async move {
            let _permit = permit;
            count(&this.counters.lookups);
            let answer = this.ask(slot.agent).await;
            let now = Instant::now();
            let number = || this.world.number();
            let expired = match answer {
                Ok(Answer { listed, last, expired }) => {
                    slot.route().answered(listed, last, begun, (this.options.ttl, now), number);
                    expired
                }
                Err(error) => {
                    count(&this.counters.lookup_failures);
                    tracing::debug!(
                        agent_id = %slot.agent, error = %crate::error::chain(&error),
                        "redis could not be asked who holds an agent"
                    );
                    slot.route().failed(now, number);
                    Fields::new()
                }
            };
            slot.news.notify_waiters();
            this.remove(&this.keys.agent(slot.agent), expired).await;
        });
    }

    async fn ask(&self, agent: AgentId) -> Result<Answer, RedisError> {
        self.know_the_time().await?;
        let fields: Fields = self.redis.command(cmd("HGETALL").arg(self.keys.agent(agent))).await?;
        let (listed, expired) = self.live(&fields);
        // Its own entry is no news, and no reason to ask further.
        let is_here = listed.iter().any(|(peer, _)| *peer == self.options.own);
        let listed: Vec<_> = listed.into_iter().filter(|(peer, _)| *peer != self.options.own).collect();
        for (peer, until) in &listed {
            self.brokers.saw(peer, *until, Instant::now());
        }
        let last = match listed.is_empty() && !is_here {
            true => self.read_last_seen(agent).await?,
            false => None,
        };
        Ok(Answer { listed, last, expired })
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
