//! How often one token may open a stream, counted in this process.
//!
//! After `token`, before `proxy`. Exact (GCRA), and bounded: a stranger can neither grow the table nor, by flooding it
//! with invented tokens, make it forget a token that is over its limit. A limit of the whole fleet will join here.

use crate::config;
use arc_swap::ArcSwap;
use postern_wire::token::TokenKey;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Enough that two workers rarely want the same lock.
const SHARDS: usize = 16;

/// The buckets of all tokens.
#[derive(Debug)]
pub struct Limits {
    shards: Vec<Mutex<Shard>>,
    rate: ArcSwap<Rate>,
    begin: Instant,
}

#[derive(Debug)]
struct Rate {
    /// One request pays this much time...
    cost: Duration,
    /// ...and may be paid this far ahead.
    burst: Duration,
}

/// Held by a request that may go on.
#[derive(Debug, PartialEq)]
pub struct Permit(());

/// The token is over its limit.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    /// After this long one request will be allowed, if none is tried before.
    pub retry_after: Duration,
}

/// Tokens by the moment their bucket is full again, which is all that GCRA has to know.
#[derive(Debug, Default)]
struct Shard {
    full_at: HashMap<TokenKey, Duration>,
    order: BTreeSet<(Duration, TokenKey)>,
    capacity: usize,
}

impl Permit {
    /// For what is not limited.
    pub fn free() -> Self {
        Self(())
    }
}

impl Limits {
    /// Buckets that start full at `begin`.
    pub fn new(config: &config::Limits, begin: Instant) -> Self {
        let capacity = config.tracked_tokens.div_ceil(SHARDS);
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard { capacity, ..Shard::default() })).collect(),
            rate: ArcSwap::from_pointee(Rate::new(config)),
            begin,
        }
    }

    /// From the next request on other numbers hold. No bucket is refilled.
    pub fn set(&self, config: &config::Limits) {
        self.rate.store(Arc::new(Rate::new(config)));
    }

    /// Takes one request from the token's bucket, or says when there will be one. A refused request costs nothing.
    pub fn decide(&self, token: &TokenKey, now: Instant) -> Result<Permit, Refusal> {
        let now = now.saturating_duration_since(self.begin);
        let shard = &self.shards[token.as_bytes()[0] as usize % SHARDS];
        // A poisoned shard is still consistent enough to count with.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = self.rate.load();
        let mut full_at = shard.full_at.get(token).copied().unwrap_or(now).max(now);
        // Emptied under numbers that were tighter: it fills from now on as the present ones say.
        let fullest = now + rate.burst;
        if full_at > fullest {
            full_at = fullest;
            shard.set(*token, full_at);
        }
        let next = full_at + rate.cost;
        match next.checked_sub(now + rate.burst) {
            Some(early) if !early.is_zero() => Err(Refusal { retry_after: early }),
            _ => {
                shard.set(*token, next);
                Ok(Permit(()))
            }
        }
    }

    /// How many tokens are remembered.
    pub fn tracked(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).full_at.len()).sum()
    }
}

impl Rate {
    fn new(config: &config::Limits) -> Self {
        let cost = Duration::from_secs(60) / config.per_minute.get();
        Self { cost, burst: cost * config.burst.get() }
    }
}

impl Shard {
    fn set(&mut self, token: TokenKey, full_at: Duration) {
        if let Some(old) = self.full_at.insert(token, full_at) {
            self.order.remove(&(old, token));
        }
        self.order.insert((full_at, token));
        // The stalest bucket is the fullest: a full one is the same as none, so in the usual case nothing is lost.
        while self.full_at.len() > self.capacity {
            let Some((_, stalest)) = self.order.pop_first() else { break };
            self.full_at.remove(&stalest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn limits(per_minute: u32, burst: u32, tracked_tokens: usize) -> (Limits, Instant) {
        let begin = Instant::now();
        let config = config::Limits {
            per_minute: NonZeroU32::new(per_minute).unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
            tracked_tokens,
            connections: 1,
        };
        (Limits::new(&config, begin), begin)
    }

    fn key(name: &str) -> TokenKey {
        TokenKey::of(name.as_bytes())
    }

    #[test]
    fn exactly_the_burst_passes_at_once_and_then_one_per_interval() {
        let (limits, begin) = limits(60, 5, 100);
        let token = key("a");
        assert_eq!((0..20).filter(|_| limits.decide(&token, begin).is_ok()).count(), 5);
        let refusal = limits.decide(&token, begin).unwrap_err();
        assert_eq!(refusal.retry_after, Duration::from_secs(1));
        assert!(limits.decide(&token, begin + Duration::from_millis(999)).is_err());
        assert!(limits.decide(&token, begin + Duration::from_millis(1000)).is_ok());
        assert!(limits.decide(&token, begin + Duration::from_millis(1999)).is_err());
    }

    #[test]
    fn over_ten_minutes_the_rate_is_exact() {
        let (limits, begin) = limits(40_000, 100, 10);
        let passed = (0..600_000)
            .filter(|i| limits.decide(&key("a"), begin + Duration::from_millis(*i)).is_ok())
            .count();
        // 599.999 s at 40000 per minute, and the burst on top.
        assert!((400_098..=400_101).contains(&passed), "{passed}");
    }

    #[test]
    fn other_numbers_hold_at_once_and_refill_nothing() {
        let (limits, begin) = limits(60, 60, 100);
        let token = key("a");
        (0..60).for_each(|_| assert!(limits.decide(&token, begin).is_ok()));
        let more = |value| NonZeroU32::new(value).unwrap();
        limits.set(&config::Limits {
            per_minute: more(6000),
            burst: more(100),
            tracked_tokens: 100,
            connections: 1,
        });
        let refusal = limits.decide(&token, begin).unwrap_err();
        assert_eq!(refusal.retry_after, Duration::from_millis(10));
        assert!(limits.decide(&token, begin + refusal.retry_after).is_ok());
    }

    #[test]
    fn tokens_do_not_share_a_bucket() {
        let (limits, begin) = limits(60, 1, 100);
        assert!(limits.decide(&key("a"), begin).is_ok());
        assert!(limits.decide(&key("b"), begin).is_ok());
        assert!(limits.decide(&key("a"), begin).is_err());
    }

    #[test]
    fn a_flood_of_invented_tokens_neither_grows_the_table_nor_refills_a_busy_bucket() {
        let (limits, begin) = limits(60, 5, 160);
        let busy = key("busy");
        for _ in 0..5 {
            limits.decide(&busy, begin).unwrap();
        }
        for i in 0..10_000 {
            limits.decide(&key(&format!("invented {i}")), begin + Duration::from_millis(100)).unwrap();
        }
        assert!(limits.tracked() <= 160, "{}", limits.tracked());
        assert!(limits.decide(&busy, begin + Duration::from_millis(200)).is_err());
    }
}
