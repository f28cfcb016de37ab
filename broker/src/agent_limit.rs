//! How many RPCs one agent token may begin in a minute, counted in Redis for the whole fleet under the keys of a kas
//! 14.1, so that both count together. Before it: a token was presented, and nobody knows yet whether it is good. After
//! it: authentication. Redis being away refuses nobody, and the token itself goes nowhere.

use crate::{
    error::chain,
    redis::{Redis, RedisError},
};
use postern_wire::token::AgentToken;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;
use tonic::Status;

/// Less than the hour after which a key's minute comes again, as a kas has it.
const LIFE_SECONDS: i64 = 59;
/// Longer than this no RPC waits for a connection, nor to be counted on it; Redis is dialled anew then.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two warnings that nothing is counted.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The limit of each token, for all brokers and kas that share a Redis and a prefix.
pub struct AgentLimit {
    redis: Arc<Redis>,
    prefix: String,
    per_minute: u32,
    uncounted: Mutex<Uncounted>,
}

/// RPCs that Redis could not count.
#[derive(Default)]
struct Uncounted {
    since_warning: u64,
    warned: Option<Instant>,
}

impl AgentLimit {
    /// `prefix` is `redis.key_prefix`; `per_minute` is `agent.listen.connections_per_token_per_minute`.
    pub fn new(redis: Arc<Redis>, prefix: impl Into<String>, per_minute: u32) -> Self {
        Self { redis, prefix: prefix.into(), per_minute, uncounted: Mutex::default() }
    }

    /// Counts one RPC of this token. It takes one round trip, a second at most, and a
    /// second more while a connection is being opened; where Redis fails, the answer is yes.
    ///
    /// # Errors
    /// `ResourceExhausted`: the token has used up this minute, by the clock of this process in UTC.
    pub async fn admit(&self, token: &AgentToken) -> Result<(), Status> {
        self.admit_at(token, SystemTime::now()).await
    }

    async fn admit_at(&self, token: &AgentToken, now: SystemTime) -> Result<(), Status> {
        let key = key(&self.prefix, &token.half_key(), minute(now));
        match self.count(&key).await {
            Ok(count) if count > u64::from(self.per_minute) => Err(Status::resource_exhausted(
                "new connection rate limit exhausted for this agent, try again later",
            )),
            Ok(_) => Ok(()),
            Err(error) => {
                self.warn(&chain(&error));
                Ok(())
            }
        }
    }

    /// One more, and how many that makes. Together with its time to live, or a crash in between would leave a key for ever.
    async fn count(&self, key: &[u8]) -> Result<u64, RedisError> {
        let mut both = ::redis::pipe();
        both.atomic();
        both.cmd("INCR").arg(key);
        both.cmd("EXPIRE").arg(key).arg(LIFE_SECONDS).ignore();
        let (count,) = self.redis.pipeline_in(PATIENCE, &both).await?;
        Ok(count)
    }

    fn warn(&self, error: &str) {
        let mut uncounted = self.uncounted.lock().unwrap_or_else(PoisonError::into_inner);
        uncounted.since_warning += 1;
        if uncounted.warned.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        let admitted = std::mem::take(&mut uncounted.since_warning);
        uncounted.warned = Some(Instant::now());
        drop(uncounted);
        tracing::warn!(
            admitted,
            error,
            "agents' RPCs are admitted without a limit while redis cannot count them"
        );
    }
}

impl fmt::Debug for AgentLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentLimit").field("per_minute", &self.per_minute).finish_non_exhaustive()
    }
}

/// Of the hour, in UTC.
fn minute(now: SystemTime) -> u16 {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    (seconds / 60 % 60) as u16
}

/// As a kas 14.1 writes it. A modern kas gives the minute one byte, and so counts apart.
fn key(prefix: &str, token: &[u8; 32], minute: u16) -> Vec<u8> {
    let mut key = format!("{prefix}:agent_limit:").into_bytes();
    key.extend_from_slice(token);
    key.push(b':');
    key.extend_from_slice(&minute.to_le_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{Config, Servers};
    use futures::future::join_all;
    use stand_ins::redis::{Options, RedisServer};
    use tokio::time::timeout;
    use tonic::Code;

    const NOW: SystemTime = UNIX_EPOCH;

    fn token() -> AgentToken {
        AgentToken::new("abcdefghijABCDEFGHIJ0123456789_-abcdefghijABCDEFGH").unwrap()
    }

    fn limit(server: &RedisServer, per_minute: u32) -> AgentLimit {
        let config = Config::new(Servers::Unix(server.socket()));
        AgentLimit::new(Redis::open(config).unwrap(), "gitlab-kas", per_minute)
    }

    #[test]
    fn a_key_is_the_one_of_the_contract() {
        let wanted = "6769746c61622d6b61733a6167656e745f6c696d69743a\
                      d3584a2f708d3dc0bed6642bc8446cb8ac34c1f5c6236b4fae4a4a7bc5731ee1\
                      3a0700";
        assert_eq!(hex::encode(key("gitlab-kas", &token().half_key(), 7)), wanted);
    }

    #[test]
    fn a_minute_is_one_of_the_hour() {
        let at = |seconds| minute(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!([at(0), at(59), at(60), at(3599), at(3600), at(1_700_000_000)], [0, 0, 1, 59, 0, 13]);
    }

    #[tokio::test]
    async fn exactly_as_many_are_admitted_as_the_limit_says_however_many_brokers_ask_at_once() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        let brokers = [limit(&server, 50), limit(&server, 50)];
        let token = token();
        let all = (0..200).map(|n| brokers[n % 2].admit_at(&token, NOW));
        let refused: Vec<_> = join_all(all).await.into_iter().filter_map(Result::err).collect();
        assert_eq!(refused.len(), 150);
        assert!(refused.iter().all(|status| {
            status.code() == Code::ResourceExhausted
                && status.message() == "new connection rate limit exhausted for this agent, try again later"
        }));
        brokers[0].admit_at(&AgentToken::new("another-token").unwrap(), NOW).await.unwrap();
        brokers[0].admit_at(&token, NOW + Duration::from_secs(60)).await.unwrap();
        let life: i64 = brokers[0]
            .redis
            .command(::redis::cmd("TTL").arg(key("gitlab-kas", &token.half_key(), 0)))
            .await
            .unwrap();
        assert!((50..=59).contains(&life), "{life}");
    }

    #[tokio::test]
    async fn nobody_is_refused_while_redis_is_away_and_the_count_goes_on_when_it_is_back() {
        let mut server = RedisServer::start(Options::default()).await.unwrap();
        let (limit, token) = (limit(&server, 1), token());
        limit.admit_at(&token, NOW).await.unwrap();
        limit.admit_at(&token, NOW).await.unwrap_err();
        server.stop().await;
        let begin = Instant::now();
        for _ in 0..20 {
            limit.admit_at(&token, NOW).await.unwrap();
        }
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        assert_eq!(limit.uncounted.lock().unwrap().since_warning, 19, "the first was said, the others wait");
        server.restart().await.unwrap();
        let back = async {
            // One more than the limit, for the restarted server has forgotten the minute.
            while limit.admit_at(&token, NOW).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), back).await.expect("it counts again");
    }

    #[tokio::test]
    async fn a_redis_that_hangs_costs_an_rpc_no_more_than_the_patience() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        let (limit, token) = (limit(&server, 1), token());
        limit.admit_at(&token, NOW).await.unwrap();
        server.pause();
        let begin = Instant::now();
        limit.admit_at(&token, NOW).await.unwrap();
        assert!(begin.elapsed() < PATIENCE * 2, "{:?}", begin.elapsed());
        server.resume();
        let back = async {
            while limit.admit_at(&token, NOW).await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        timeout(Duration::from_secs(10), back).await.expect("it counts again");
    }

    #[tokio::test]
    async fn a_redis_that_stays_silent_is_given_up_and_costs_the_first_rpcs_only() {
        let server = RedisServer::start(Options::default()).await.unwrap();
        let dial_timeout = Duration::from_millis(200);
        let config = Config { dial_timeout, ..Config::new(Servers::Unix(server.socket())) };
        let limit = AgentLimit::new(Redis::open(config).unwrap(), "gitlab-kas", 1);
        limit.admit_at(&token(), NOW).await.unwrap();
        server.pause();
        let begin = Instant::now();
        for _ in 0..20 {
            limit.admit_at(&token(), NOW).await.unwrap();
        }
        assert!(begin.elapsed() < PATIENCE * 3, "{:?}", begin.elapsed());
        server.resume();
        let back = async {
            while limit.admit_at(&token(), NOW).await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        timeout(Duration::from_secs(10), back).await.expect("it counts again");
    }
}
