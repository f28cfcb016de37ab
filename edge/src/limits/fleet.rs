//! Rates that several edges count together, in Redis.
//!
//! Beneath `limits`, after this process' own buckets. The counting is `postern_redis::lease`'; here is who is counted
//! where. What goes to Redis are hashes; a token nobody knows makes no key.

use super::numbers::{Numbers, Whose, name_of};
use super::records::Network;
use super::{Call, Counting, Limit};
use crate::config::limits::{Limits as Config, Scope};
use crate::reply::Reason;
use postern_redis::lease::{Denied, Leases, LimitPolicy, Name, RedisLost, Room};
use postern_redis::{Redis, RedisError};
use postern_wire::token::TokenKey;
use std::sync::Arc;
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
    on: bool,
    redis_lost: RedisLost,
    limit: Limit,
    whose: Whose,
}

/// A name's minute.
struct Minute {
    name: Name,
    policy: LimitPolicy,
    /// Who set the limit, if it was a policy.
    rule: Option<Box<str>>,
}

impl Fleet {
    /// Reads the files that Redis' configuration names; connects to nothing yet.
    pub(super) fn open(config: &Config) -> Result<Option<Self>, RedisError> {
        let Some(redis) = &config.redis else { return Ok(None) };
        let redis = Redis::open(redis.clone())?;
        let counted = |kind: &str, names, scope, limit, whose| {
            let space = format!("{}:edge_limit:{kind}", redis.key_prefix());
            let redis_lost = config.redis_lost;
            // Each call brings the numbers of its own.
            let policy = LimitPolicy { per_minute: u32::MAX, redis_lost };
            let leases = Leases::new(redis.clone(), space, names, policy, ROOM);
            Counted { leases, on: scope == Scope::Fleet, redis_lost, limit, whose }
        };
        Ok(Some(Self {
            token: counted("token", "tokens'", config.per_token.scope, Limit::TokenRate, Whose::Token),
            ip: counted("ip", "addresses'", config.per_ip.scope, Limit::IpRate, Whose::Ip),
            agent: counted("agent", "agents'", config.per_agent.scope, Limit::AgentRate, Whose::Agent),
            redis,
        }))
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
    pub(super) fn admit(
        &self,
        call: &Call<'_>,
        known: bool,
        numbers: &Numbers,
    ) -> Result<Option<Counting>, Reason> {
        let token = call.token.filter(|_| known && self.token.on);
        let ip = call.client.filter(|_| self.ip.on);
        let agent = call.agent.filter(|_| known && self.agent.on);
        let names = [
            token.map(|token| (&self.token, token_name(&token))),
            ip.map(|ip| (&self.ip, hashed(Network::of(ip).as_bytes()))),
            agent.map(|agent| (&self.agent, hashed(&agent.to_be_bytes()))),
        ];
        let mut counting: Option<Counting> = None;
        for (counted, name) in names.into_iter().flatten() {
            let Some(minute) = counted.minute(name, call, numbers) else { continue };
            if counted.admit_now(&minute)? {
                continue;
            }
            let (before, counted) = (counting.take(), counted.clone());
            counting = Some(Box::pin(async move {
                if let Some(before) = before {
                    before.await?;
                }
                counted.admit(minute).await
            }));
        }
        Ok(counting)
    }

    /// Counts the stream after all by which a broker came to know the token.
    pub(super) fn proven(&self, token: &TokenKey, numbers: &Numbers, call: &Call<'_>) {
        if self.token.on
            && let Some(minute) = self.token.minute(token_name(token), call, numbers)
        {
            self.token.leases.count_by(minute.name, minute.policy);
        }
    }

    pub(super) fn report(&self) -> serde_json::Value {
        let of = |counted: &Counted| {
            serde_json::json!({
                "on": counted.on, "counted": counted.leases.sizes().0, "redis_lost": counted.leases.is_lost(),
            })
        };
        serde_json::json!({ "tokens": of(&self.token), "addresses": of(&self.ip), "agents": of(&self.agent) })
    }
}

impl Counted {
    /// `None`: there is no limit to count towards.
    fn minute(&self, name: Name, call: &Call<'_>, numbers: &Numbers) -> Option<Minute> {
        let (per_minute, rule) = numbers.per_minute(self.whose, &call.subject())?;
        let policy = LimitPolicy { per_minute: per_minute.get(), redis_lost: self.redis_lost };
        Some(Minute { name, policy, rule: rule.map(name_of) })
    }

    /// `false`: Redis decides.
    fn admit_now(&self, minute: &Minute) -> Result<bool, Reason> {
        match self.leases.admit_now_by(minute.name, minute.policy) {
            Some(admitted) => admitted.map(|()| true).map_err(|denied| self.reason(denied, &minute.rule)),
            None => Ok(false),
        }
    }

    async fn admit(&self, minute: Minute) -> Result<(), Reason> {
        let admitted = self.leases.admit_by(minute.name, minute.policy).await;
        admitted.map_err(|denied| self.reason(denied, &minute.rule))
    }

    fn reason(&self, denied: Denied, rule: &Option<Box<str>>) -> Reason {
        match denied {
            Denied::Exhausted => Reason::TooMany {
                limit: self.limit,
                retry_after: self.leases.left_of_minute(),
                rule: rule.clone(),
            },
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
