//! Rates that several edges count together, in Redis.
//!
//! Beneath `limits`, after this process' own buckets. The counting is `postern_redis::lease`'; here is who is counted
//! where. What goes to Redis are hashes; a token nobody knows makes no key.

use super::records::Network;
use super::{Call, Counting, Limit};
use crate::config::limits::{Each, Limits as Config, Scope};
use crate::reply::Reason;
use postern_redis::lease::{Denied, Leases, LimitPolicy, Name, RedisLost, Room};
use postern_redis::{Redis, RedisError};
use postern_wire::token::TokenKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// When those may come again that cannot be counted.
const SOON: Duration = Duration::from_secs(2);
/// About 10 MB when full, in minutes in which so many are counted.
const ROOM: Room = Room { good: 65_536, strangers: 16, shards: 16 };

#[derive(Debug)]
pub(super) struct Fleet {
    redis: Arc<Redis>,
    token: Counted,
    ip: Counted,
    agent: Counted,
}

#[derive(Debug, Clone)]
struct Counted {
    leases: Arc<Leases>,
    /// `scope: fleet`.
    on: Arc<AtomicBool>,
    limit: Limit,
}

impl Fleet {
    /// Reads the files that Redis' configuration names; connects to nothing yet.
    pub(super) fn open(config: &Config) -> Result<Option<Self>, RedisError> {
        let Some(redis) = &config.redis else { return Ok(None) };
        let redis = Redis::open(redis.clone())?;
        let counted = |kind: &str, whose, limit| {
            let space = format!("{}:edge_limit:{kind}", redis.key_prefix());
            // In force are the numbers of `set`, which follows.
            let policy = LimitPolicy { per_minute: u32::MAX, redis_lost: RedisLost::Local };
            let leases = Leases::new(redis.clone(), space, whose, policy, ROOM);
            Counted { leases, on: Arc::default(), limit }
        };
        let fleet = Self {
            token: counted("token", "tokens'", Limit::TokenRate),
            ip: counted("ip", "addresses'", Limit::IpRate),
            agent: counted("agent", "agents'", Limit::AgentRate),
            redis,
        };
        fleet.set(config);
        Ok(Some(fleet))
    }

    pub(super) fn set(&self, config: &Config) {
        self.token.set(&config.per_token, config.redis_lost);
        self.ip.set(&config.per_ip, config.redis_lost);
        self.agent.set(&config.per_agent, config.redis_lost);
    }

    /// Connects, so that the first request need not, and on the caller's runtime.
    pub(super) async fn connect(&self) {
        if let Err(error) = self.redis.ping().await {
            let cause = std::error::Error::source(&error).map(tracing::field::display);
            tracing::warn!(%error, cause, "limits of the fleet begin without redis");
        }
    }

    /// Counts a stream. `known`: a broker has served this token before. What it returns is to be awaited before the stream
    /// goes on; mostly there is nothing to wait for.
    pub(super) fn admit(&self, call: &Call, known: bool) -> Result<Option<Counting>, Reason> {
        let token = call.token.filter(|_| known && self.token.is_on());
        let ip = call.client.filter(|_| self.ip.is_on());
        let agent = call.agent.filter(|_| known && self.agent.is_on());
        let names = [
            token.map(|token| (&self.token, token_name(&token))),
            ip.map(|ip| (&self.ip, hashed(Network::of(ip).as_bytes()))),
            agent.map(|agent| (&self.agent, hashed(&agent.to_be_bytes()))),
        ];
        let mut counting: Option<Counting> = None;
        for (counted, name) in names.into_iter().flatten() {
            if counted.admit_now(name)? {
                continue;
            }
            let (before, counted) = (counting.take(), counted.clone());
            counting = Some(Box::pin(async move {
                if let Some(before) = before {
                    before.await?;
                }
                counted.admit(name).await
            }));
        }
        Ok(counting)
    }

    /// Counts the stream after all by which a broker came to know the token.
    pub(super) fn proven(&self, token: &TokenKey) {
        if self.token.is_on() {
            self.token.leases.count(token_name(token));
        }
    }

    pub(super) fn report(&self) -> serde_json::Value {
        let of = |counted: &Counted| {
            serde_json::json!({
                "on": counted.is_on(), "counted": counted.leases.sizes().0, "redis_lost": counted.leases.is_lost(),
            })
        };
        serde_json::json!({ "tokens": of(&self.token), "addresses": of(&self.ip), "agents": of(&self.agent) })
    }
}

impl Counted {
    fn set(&self, each: &Each, redis_lost: RedisLost) {
        if let Some(rate) = each.rate {
            self.leases.set_policy(LimitPolicy { per_minute: rate.per_minute.get(), redis_lost });
        }
        self.on.store(each.scope == Scope::Fleet && each.rate.is_some(), Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// `false`: Redis decides.
    fn admit_now(&self, name: Name) -> Result<bool, Reason> {
        match self.leases.admit_now(name) {
            Some(admitted) => admitted.map(|()| true).map_err(|denied| self.reason(denied)),
            None => Ok(false),
        }
    }

    async fn admit(&self, name: Name) -> Result<(), Reason> {
        self.leases.admit(name).await.map_err(|denied| self.reason(denied))
    }

    fn reason(&self, denied: Denied) -> Reason {
        match denied {
            Denied::Exhausted => {
                Reason::TooMany { limit: self.limit, retry_after: self.leases.left_of_minute() }
            }
            Denied::Away => Reason::RedisAway { retry_after: SOON },
        }
    }
}

fn token_name(token: &TokenKey) -> Name {
    // Hashed once more: what stands in Redis compares with nothing that is in a log or an identities file.
    hashed(token.as_bytes())
}

fn hashed(bytes: &[u8]) -> Name {
    Name::of(*TokenKey::of(bytes).as_bytes())
}
