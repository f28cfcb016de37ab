//! `limits`: how much of the edge one token, one address, one agent and everybody together may use.
//!
//! Zero is "no limit" wherever it is not said otherwise. The Redis of limits that a fleet shares is in `redis`.

mod redis;

use super::Problems;
use postern_redis::lease::RedisLost;
use serde::{Deserialize, Serialize, Serializer};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

/// As kas' own `connections_per_token_per_minute`.
const DEFAULT_REQUESTS_PER_MINUTE: u32 = 40_000;
/// About 7 MB when full.
const DEFAULT_TRACKED_TOKENS: u32 = 100_000;
/// About 5 MB when full, for addresses.
const DEFAULT_TRACKED: u32 = 65_536;
/// A permit names its places in the tables with 21 bits each.
pub(crate) const MOST_TRACKED: u32 = 2_000_000;
/// An idle connection costs some 31 KiB; one whose bodies nobody takes may hold up to its window.
const DEFAULT_CONNECTIONS: u32 = 20_000;
/// Distinct tokens that nobody knows. Agents with a token that was withdrawn show the same one again and again, which
/// counts once in `remember`; so many different ones are guesses.
const DEFAULT_FAILED_PER_MINUTE: u32 = 1_200;
const DEFAULT_FAILED_BURST: u32 = 600;
/// Less than brokers themselves remember: a token that was just made good is known soon.
const DEFAULT_REMEMBER: Duration = Duration::from_secs(10);
/// With sixteen at once the next connections wait four seconds, which agents and kubectl do without a word: and no more
/// than four floods a second can come from an address, each of which costs some milliseconds.
const DEFAULT_FLOOD_WAIT: Duration = Duration::from_millis(250);
/// kubectl sends tokens of several KiB and some proxies add cookies; nobody needs more.
const DEFAULT_HEADER_BYTES: u32 = 64 * 1024;
/// Below this, honest heads would not fit; above it, a broker's HTTP/2 closes the connection that all agents share.
const HEADER_BYTES: std::ops::RangeInclusive<u32> = 4 * 1024..=256 * 1024;

/// All limits of the process. `Limits::set` takes another one while the edge runs; `tracked` and `redis` hold from the start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limits {
    pub per_token: Each,
    /// IPv6 addresses by their /64.
    pub per_ip: Each,
    /// Requests of callers towards one agent.
    pub per_agent: Each,
    pub failed_tokens: FailedTokens,
    /// Connections in this process, of everybody together.
    pub connections: usize,
    /// Connections of one address; 0: no limit.
    pub connections_per_ip: u32,
    /// New connections of one address. `None`: not limited.
    pub connection_rate_per_ip: Option<Rate>,
    /// How much longer the next connections of an address wait for each that was ended for a flood; zero: they do not.
    pub flood_wait: Duration,
    /// A request's head.
    pub header_bytes: u32,
    /// A request's body towards the Kubernetes API; 0: no limit.
    pub body_bytes: u64,
    /// Where limits of scope `fleet` are counted.
    #[serde(serialize_with = "redis::shown")]
    pub redis: Option<postern_redis::Config>,
    #[serde(serialize_with = "lost_shown")]
    pub redis_lost: RedisLost,
}

/// What each token, address or agent may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Each {
    pub rate: Option<Rate>,
    /// Open at the same time; 0: no limit.
    pub streams: u32,
    pub scope: Scope,
    /// How many of them are remembered; the stalest is forgotten first.
    pub tracked: usize,
}

/// A bucket that fills at `per_minute` and holds `burst`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    pub per_minute: NonZeroU32,
    pub burst: NonZeroU32,
}

/// Who counts a rate together. Streams and connections are counted by each process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    #[default]
    Process,
    /// All edges with the same Redis and key prefix, by the calendar minute.
    Fleet,
}

/// Tokens that a broker said are none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FailedTokens {
    /// Of one address. `None`: not limited.
    pub per_ip: Option<Rate>,
    /// How long such a token is answered here; zero: each time by a broker.
    pub remember: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLimits {
    requests_per_token_per_minute: Option<u32>,
    burst: Option<u32>,
    tracked_tokens: Option<u32>,
    #[serde(default)]
    per_token: FileToken,
    #[serde(default)]
    per_ip: FileEach,
    #[serde(default)]
    per_agent: FileEach,
    #[serde(default)]
    failed_tokens: FileFailedTokens,
    connections: Option<u32>,
    connections_per_ip: Option<u32>,
    connections_per_ip_per_minute: Option<u32>,
    connections_per_ip_burst: Option<u32>,
    flood_wait: Option<String>,
    header_bytes: Option<u32>,
    body_bytes: Option<u64>,
    redis: Option<redis::FileRedis>,
    redis_lost: Option<FileRedisLost>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToken {
    streams: Option<u32>,
    scope: Option<Scope>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEach {
    requests_per_minute: Option<u32>,
    burst: Option<u32>,
    streams: Option<u32>,
    scope: Option<Scope>,
    tracked: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFailedTokens {
    per_ip_per_minute: Option<u32>,
    burst: Option<u32>,
    remember: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileRedisLost {
    Local,
    Deny,
    Allow,
}

impl FileLimits {
    pub(super) fn meant(self, base: &Path, found: &mut Problems) -> Limits {
        let per_minute = found.positive(
            "limits.requests_per_token_per_minute",
            self.requests_per_token_per_minute.unwrap_or(DEFAULT_REQUESTS_PER_MINUTE),
        );
        // Without a burst of its own a token may use its minute at once, as under kas' counter per minute.
        let burst = found.positive("limits.burst", self.burst.unwrap_or(per_minute.get()));
        let per_token = Each {
            rate: Some(Rate { per_minute, burst }),
            streams: self.per_token.streams.unwrap_or(0),
            scope: self.per_token.scope.unwrap_or_default(),
            tracked: tracked(found, "limits.tracked_tokens", self.tracked_tokens, DEFAULT_TRACKED_TOKENS),
        };
        let per_ip = self.per_ip.meant("limits.per_ip", found);
        let per_agent = self.per_agent.meant("limits.per_agent", found);
        let failed_tokens = self.failed_tokens.meant(found);
        let connections =
            found.positive("limits.connections", self.connections.unwrap_or(DEFAULT_CONNECTIONS));
        let connection_rate_per_ip = {
            let per_minute = self.connections_per_ip_per_minute.unwrap_or(0);
            let burst = self
                .connections_per_ip_burst
                .map(|burst| found.positive("limits.connections_per_ip_burst", burst));
            NonZeroU32::new(per_minute)
                .map(|per_minute| Rate { per_minute, burst: burst.unwrap_or(per_minute) })
        };
        let flood_wait = found.duration("limits.flood_wait", self.flood_wait, DEFAULT_FLOOD_WAIT);
        let header_bytes = self.header_bytes.unwrap_or(DEFAULT_HEADER_BYTES);
        if !HEADER_BYTES.contains(&header_bytes) {
            let (least, most) = (HEADER_BYTES.start(), HEADER_BYTES.end());
            found.add("limits.header_bytes", format!("is not between {least} and {most}"));
        }
        let given = self.redis.is_some();
        let redis = self.redis.and_then(|redis| redis.meant(base, found));
        let all = [("per_token", per_token.scope), ("per_ip", per_ip.scope), ("per_agent", per_agent.scope)];
        for (name, _) in all.iter().filter(|(_, scope)| *scope == Scope::Fleet && !given) {
            found.add(format!("limits.{name}.scope"), "is `fleet`, and there is no limits.redis to count in");
        }
        Limits {
            per_token,
            per_ip,
            per_agent,
            failed_tokens,
            connections: connections.get() as usize,
            connections_per_ip: self.connections_per_ip.unwrap_or(0),
            connection_rate_per_ip,
            flood_wait,
            header_bytes,
            body_bytes: self.body_bytes.unwrap_or(0),
            redis,
            redis_lost: match self.redis_lost {
                None | Some(FileRedisLost::Local) => RedisLost::Local,
                Some(FileRedisLost::Deny) => RedisLost::Deny,
                Some(FileRedisLost::Allow) => RedisLost::Allow,
            },
        }
    }
}

impl FileEach {
    fn meant(self, at: &str, found: &mut Problems) -> Each {
        let rate = rate(found, at, self.requests_per_minute.unwrap_or(0), self.burst);
        let scope = self.scope.unwrap_or_default();
        if rate.is_none() && scope == Scope::Fleet {
            found.add(format!("{at}.scope"), "is `fleet`, and there is no requests_per_minute to count");
        }
        Each {
            rate,
            streams: self.streams.unwrap_or(0),
            scope,
            tracked: tracked(found, &format!("{at}.tracked"), self.tracked, DEFAULT_TRACKED),
        }
    }
}

impl FileFailedTokens {
    fn meant(self, found: &mut Problems) -> FailedTokens {
        let at = "limits.failed_tokens";
        let per_minute = self.per_ip_per_minute.unwrap_or(DEFAULT_FAILED_PER_MINUTE);
        let burst = self.burst.or((self.per_ip_per_minute.is_none()).then_some(DEFAULT_FAILED_BURST));
        FailedTokens {
            per_ip: rate(found, at, per_minute, burst),
            remember: found.duration(&format!("{at}.remember"), self.remember, DEFAULT_REMEMBER),
        }
    }
}

fn rate(found: &mut Problems, at: &str, per_minute: u32, burst: Option<u32>) -> Option<Rate> {
    let burst = burst.map(|burst| found.positive(&format!("{at}.burst"), burst));
    let per_minute = NonZeroU32::new(per_minute)?;
    Some(Rate { per_minute, burst: burst.unwrap_or(per_minute) })
}

fn tracked(found: &mut Problems, at: &str, value: Option<u32>, default: u32) -> usize {
    let value = found.positive(at, value.unwrap_or(default)).get();
    if value > MOST_TRACKED {
        found.add(at, format!("is more than {MOST_TRACKED}, the most that are told apart"));
    }
    value as usize
}

fn lost_shown<S: Serializer>(lost: &RedisLost, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match lost {
        RedisLost::Local => "local",
        RedisLost::Deny => "deny",
        RedisLost::Allow => "allow",
    })
}
