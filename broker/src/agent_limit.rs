//! How many RPCs one agent token may begin in a minute, counted in Redis for the whole fleet under the keys of a kas
//! 14.1, so that both count together. [`AgentLimit::begin`] is asked before authentication: it looks at this process'
//! memory only, so a token that nobody issued never reaches Redis. [`AgentLimit::admit`] is asked after it. How calls are
//! counted is `postern_redis::lease`' business; the token itself goes nowhere. See docs/limits.md.

use crate::{
    policies::Policies,
    redis::{
        Redis,
        lease::{Allowed, Clock, Denied, Leases, Name, PATIENCE, Room},
    },
};
use postern_policies::{PolicySet, Subject};
use postern_wire::{metadata, token::AgentToken};
use rand::Rng;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tonic::Status;

pub use crate::redis::lease::{LimitPolicy, RedisLost};

/// Those who are refused come back within so long, not all at once.
const SPREAD: Duration = Duration::from_secs(10);
/// When those may come back that cannot be counted, at the earliest.
const SOON: Duration = Duration::from_secs(2);
/// Good tokens, and tokens that were not found good: about 10 MB and 1 MB.
const ROOM: Room = Room { good: 65_536, strangers: 16_384, shards: 1 };

/// The limit of each token.
#[derive(Debug)]
pub struct AgentLimit {
    leases: Arc<Leases>,
    /// Absent: every token has the same limit.
    policies: Option<Policies>,
}

impl AgentLimit {
    /// `prefix` is `redis.key_prefix`.
    pub fn new(redis: Arc<Redis>, prefix: impl Into<String>, policy: LimitPolicy) -> Arc<Self> {
        Self::with(redis, prefix.into(), policy, ROOM, (Box::new(SystemTime::now), PATIENCE))
    }

    /// Each call is judged by the policies that are in force for its token at that moment. No count begins anew.
    pub fn under(redis: Arc<Redis>, prefix: &str, policies: Policies) -> Arc<Self> {
        Self::under_with(redis, prefix, policies, (Box::new(SystemTime::now), PATIENCE))
    }

    fn under_with(
        redis: Arc<Redis>,
        prefix: &str,
        policies: Policies,
        times: (Clock, Duration),
    ) -> Arc<Self> {
        let everybody = policies.agent_calls(&PolicySet::everybody());
        let leases = leases(redis, prefix, everybody, ROOM, times);
        Arc::new(Self { leases, policies: Some(policies) })
    }

    fn with(
        redis: Arc<Redis>,
        prefix: String,
        policy: LimitPolicy,
        room: Room,
        times: (Clock, Duration),
    ) -> Arc<Self> {
        Arc::new(Self { leases: leases(redis, &prefix, policy, room, times), policies: None })
    }

    /// What is allowed to one of whom so much is known.
    fn allowed(&self, who: &Subject<'_>) -> Option<Allowed> {
        let policies = self.policies.as_ref()?;
        // First, so that what is looked up is at least as new.
        let generation = policies.generation();
        Some(Allowed { policy: policies.agent_calls(who), generation })
    }

    /// What is in force.
    pub fn policy(&self) -> LimitPolicy {
        self.leases.policy()
    }

    /// Puts another policy in force, for this minute too: no count begins anew, and a token that is beyond the new limit
    /// is refused at once.
    pub fn set_policy(&self, policy: LimitPolicy) {
        self.leases.set_policy(policy);
    }

    /// Before anybody is asked about the token: counts the call in this process. It waits for nothing and sends nothing.
    ///
    /// # Errors
    /// `ResourceExhausted`: the token has used up this minute, or so many calls with it are under way or were not
    /// authenticated, at this broker alone.
    pub fn begin(&self, token: &AgentToken) -> Result<(), Status> {
        let key = token.key();
        let who = Subject { token_hash: Some(key.as_bytes()), ..Subject::default() };
        let begun = match self.allowed(&who) {
            Some(allowed) => self.leases.begin_as(name(token), allowed),
            None => self.leases.begin(name(token)),
        };
        if begun { Ok(()) } else { Err(self.exhausted()) }
    }

    /// After the token was found good: counts the call for the fleet. Most calls take no command, the others share one;
    /// none waits longer than a second.
    ///
    /// # Errors
    /// `ResourceExhausted`: the token has used up this minute. `Unavailable`: the call cannot be counted, and the policy
    /// admits none of these. Both say when to come again.
    pub async fn admit(&self, token: &AgentToken, who: &Subject<'_>) -> Result<(), Status> {
        let name = name(token);
        self.leases.proven(name);
        let admitted = match self.allowed(who) {
            Some(allowed) => self.leases.admit_as(name, allowed).await,
            None => self.leases.admit(name).await,
        };
        admitted.map_err(|denied| match denied {
            Denied::Exhausted => self.exhausted(),
            Denied::Away => away(),
        })
    }

    fn exhausted(&self) -> Status {
        let text = "new connection rate limit exhausted for this agent, try again later";
        later(Status::resource_exhausted(text), self.leases.left_of_minute())
    }
}

fn leases(
    redis: Arc<Redis>,
    prefix: &str,
    policy: LimitPolicy,
    room: Room,
    times: (Clock, Duration),
) -> Arc<Leases> {
    Leases::with_times(redis, format!("{prefix}:agent_limit"), "agents'", policy, room, times)
}

/// Redis counts under the hash of half the token, as a kas does.
fn name(token: &AgentToken) -> Name {
    Name { id: *token.key().as_bytes(), shared: token.half_key() }
}

fn away() -> Status {
    later(
        Status::unavailable("unavailable: Redis is away, and calls that it does not count are refused"),
        SOON,
    )
}

/// Says when to come again: then or a little later.
fn later(mut status: Status, after: Duration) -> Status {
    let after = after + SPREAD.mul_f64(rand::rng().random());
    metadata::set_retry_pushback(status.metadata_mut(), after);
    status
}

#[cfg(test)]
mod tests;
