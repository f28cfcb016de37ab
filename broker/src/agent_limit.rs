//! How many RPCs one agent token may begin in a minute, counted in Redis for the whole fleet under the keys of a kas
//! 14.1, so that both count together. [`AgentLimit::begin`] is asked before authentication: it looks at this process'
//! memory only, so a token that nobody issued never reaches Redis. [`AgentLimit::admit`] is asked after it: calls are
//! taken out of an advance or a lease, and most cost no command. The token itself goes nowhere. See docs/limits.md.

mod ledger;
mod outage;
mod share;
mod table;

use crate::redis::Redis;
use arc_swap::ArcSwap;
use ledger::Ledger;
use outage::Outage;
use postern_wire::{
    metadata,
    token::{AgentToken, TokenKey},
};
use rand::Rng;
use share::{Share, Turn};
use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use table::Table;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Longer than this no RPC waits to be counted.
const PATIENCE: Duration = Duration::from_secs(1);
/// Those who are refused come back within so long, not all at once.
const SPREAD: Duration = Duration::from_secs(10);
/// When those may come back that cannot be counted, at the earliest.
const SOON: Duration = Duration::from_secs(2);

/// What is allowed. It may change at any time: what was counted stays counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Calls with one token in a calendar minute (UTC), over all brokers and kas that share a Redis and a prefix.
    pub per_minute: u32,
    /// What becomes of calls that Redis cannot count.
    pub redis_lost: RedisLost,
}

/// What becomes of calls that Redis cannot count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisLost {
    /// Each broker counts alone, up to the same limit.
    Local,
    /// They are refused with `UNAVAILABLE`.
    Deny,
    /// They are admitted.
    Allow,
}

/// The limit of each token.
pub struct AgentLimit {
    ledger: Ledger,
    policy: ArcSwap<LimitPolicy>,
    table: Mutex<Table>,
    outage: Outage,
    clock: Clock,
}

type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// What a call does next.
enum Step {
    Admitted,
    Refused,
    /// Redis is away, and nobody is admitted without it.
    Denied,
    /// The answer to a command that is under way decides.
    Wait(CancellationToken),
    /// There is no room to count this token here.
    OneByOne,
}

/// A call among those that wait for an answer; leaves them when it is dropped.
struct Waiting<'a> {
    limit: &'a AgentLimit,
    key: TokenKey,
    /// The minute whose answer it waits for.
    minute: Option<u64>,
}

impl AgentLimit {
    /// `prefix` is `redis.key_prefix`.
    pub fn new(redis: Arc<Redis>, prefix: impl Into<String>, policy: LimitPolicy) -> Arc<Self> {
        Self::with(redis, prefix.into(), policy, Table::default(), Box::new(SystemTime::now))
    }

    fn with(redis: Arc<Redis>, prefix: String, policy: LimitPolicy, table: Table, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            ledger: Ledger { redis, prefix },
            policy: ArcSwap::from_pointee(policy),
            table: Mutex::new(table),
            outage: Outage::default(),
            clock,
        })
    }

    /// What is in force.
    pub fn policy(&self) -> LimitPolicy {
        **self.policy.load()
    }

    /// Puts another policy in force, for this minute too: no count begins anew, and a token that is beyond the new limit
    /// is refused at once.
    pub fn set_policy(&self, policy: LimitPolicy) {
        self.policy.store(Arc::new(policy));
    }

    /// Before anybody is asked about the token: counts the call in this process. It waits for nothing and sends nothing.
    ///
    /// # Errors
    /// `ResourceExhausted`: the token has used up this minute, or so many calls with it are under way or were not
    /// authenticated, at this broker alone.
    pub fn begin(self: &Arc<Self>, token: &AgentToken) -> Result<(), Status> {
        let (LimitPolicy { per_minute, redis_lost }, key) = (self.policy(), token.key());
        let alone = redis_lost == RedisLost::Local && self.outage.is_lost();
        let mut table = self.table();
        if table.begin(&key, per_minute, alone) {
            return Ok(());
        }
        let minute = table.minute();
        // Of a good token only, and without waiting: somebody must find out that Redis is back.
        if let Some(share) = table.share_of(minute, &key)
            && alone
        {
            self.try_redis(token, minute, share, per_minute);
        }
        drop(table);
        Err(self.exhausted())
    }

    /// After the token was found good: counts the call for the fleet. Most calls take no command, the others share one;
    /// none waits longer than a second.
    ///
    /// # Errors
    /// `ResourceExhausted`: the token has used up this minute. `Unavailable`: the call cannot be counted, and the policy
    /// admits none of these. Both say when to come again.
    pub async fn admit(self: &Arc<Self>, token: &AgentToken) -> Result<(), Status> {
        let key = token.key();
        self.table().proven(&key);
        let deadline = Instant::now() + PATIENCE;
        let mut waiting = Waiting { limit: self, key, minute: None };
        loop {
            let flight = match self.step(token, &mut waiting, deadline) {
                Step::Admitted => return Ok(()),
                Step::Refused => return Err(self.exhausted()),
                Step::Denied => return Err(denied()),
                Step::OneByOne => return self.one(token).await,
                Step::Wait(flight) => flight,
            };
            tokio::select! {
                () = flight.cancelled() => {}
                () = self.outage.lost() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn step(self: &Arc<Self>, token: &AgentToken, waiting: &mut Waiting<'_>, deadline: Instant) -> Step {
        let LimitPolicy { per_minute, redis_lost } = self.policy();
        let mut table = self.table();
        let minute = table.minute();
        let waited = waiting.minute.take() == Some(minute);
        let Some(share) = table.share(&waiting.key) else { return Step::OneByOne };
        if waited {
            share.waiting = share.waiting.saturating_sub(1);
        }
        let lost = self.outage.is_lost();
        match share.take(per_minute, !(lost && redis_lost == RedisLost::Deny)) {
            Turn::Admitted => Step::Admitted,
            Turn::Refused => Step::Refused,
            Turn::Ask if lost || Instant::now() >= deadline => {
                if lost {
                    self.try_redis(token, minute, share, per_minute);
                }
                self.outage.uncounted();
                match redis_lost {
                    RedisLost::Local if share.take_alone(per_minute) => Step::Admitted,
                    RedisLost::Local => Step::Refused,
                    RedisLost::Allow => {
                        share.take_freely();
                        Step::Admitted
                    }
                    RedisLost::Deny => Step::Denied,
                }
            }
            Turn::Ask => {
                share.waiting += 1;
                waiting.minute = Some(minute);
                let flight = share.flight();
                Step::Wait(flight.unwrap_or_else(|| self.lease(token, minute, share, per_minute)))
            }
        }
    }

    /// Where Redis is lost: asks it now and then, for nobody waits for the answer.
    fn try_redis(self: &Arc<Self>, token: &AgentToken, minute: u64, share: &mut Share, per_minute: u32) {
        if share.flight().is_none() && self.outage.may_try() {
            self.lease(token, minute, share, per_minute);
        }
    }

    /// Asks Redis in a task of its own, which ends within some two seconds: a caller that leaves must not take an answer
    /// with it that others wait for.
    fn lease(
        self: &Arc<Self>,
        token: &AgentToken,
        minute: u64,
        share: &mut Share,
        per_minute: u32,
    ) -> CancellationToken {
        let done = CancellationToken::new();
        let ask = share.ask(per_minute, done.clone());
        let (this, key, half) = (Arc::clone(self), token.key(), token.half_key());
        let landing = done.clone().drop_guard();
        tokio::spawn(async move {
            // Dropped last, whatever happens: the share knows the answer when those who wait go on.
            let _landing = landing;
            let mut answer = pin!(this.ledger.add(PATIENCE, &half, minute, ask.sum()));
            let mut slow = pin!(sleep(PATIENCE));
            let answer = tokio::select! {
                answer = &mut answer => answer,
                () = &mut slow => {
                    this.outage.failed("no answer within a second", this.policy().redis_lost);
                    answer.await
                }
            };
            let per_minute = this.policy().per_minute;
            match answer {
                Ok(count) => {
                    if let Some(share) = this.table().share_of(minute, &key) {
                        share.answered(ask, count, per_minute);
                    }
                    this.outage.over();
                }
                Err(error) => {
                    if let Some(share) = this.table().share_of(minute, &key) {
                        share.failed(ask, ledger::may_have_counted(&error));
                    }
                    this.outage.failed(&crate::error::chain(&error), this.policy().redis_lost);
                }
            }
        });
        done
    }

    /// A token for which the table has no room: each call is a command, as exact as Redis.
    async fn one(&self, token: &AgentToken) -> Result<(), Status> {
        let LimitPolicy { per_minute, redis_lost } = self.policy();
        if !self.outage.is_lost() || self.outage.may_try() {
            let minute = self.table().minute();
            // Opening a connection and the answer may each take so long.
            match self.ledger.add(PATIENCE / 2, &token.half_key(), minute, 1).await {
                Ok(count) => {
                    self.outage.over();
                    let admitted = count <= u64::from(per_minute);
                    return if admitted { Ok(()) } else { Err(self.exhausted()) };
                }
                Err(error) => self.outage.failed(&crate::error::chain(&error), redis_lost),
            }
        }
        self.outage.uncounted();
        if redis_lost == RedisLost::Deny { Err(denied()) } else { Ok(()) }
    }

    /// As of now.
    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.turn((self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60);
        table
    }

    fn exhausted(&self) -> Status {
        let since = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64 % 60_000;
        let text = "new connection rate limit exhausted for this agent, try again later";
        later(Status::resource_exhausted(text), Duration::from_millis(60_000 - since))
    }
}

fn denied() -> Status {
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

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(minute) = self.minute else { return };
        if let Some(share) = self.limit.table().share_of(minute, &self.key) {
            share.waiting = share.waiting.saturating_sub(1);
        }
    }
}

impl fmt::Debug for AgentLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentLimit").field("policy", &self.policy()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
