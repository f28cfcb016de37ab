//! Names of headers and gRPC metadata that the programs exchange, and which of them must not travel on.

use std::{fmt, time::Duration};
use tonic::metadata::{MetadataMap, MetadataValue};

/// The agent id that a routing broker asks a gateway broker for; decimal.
pub const ROUTING_AGENT_ID: &str = "kas-hop-routing-agent-id";
/// Metadata with this prefix is between brokers and never reaches an agent.
pub const HOP_PREFIX: &str = "kas-hop-";
/// Headers with this prefix are between our own programs; from outside they are removed.
pub const INTERNAL_PREFIX: &str = "x-postern-";
/// In a broker's answers to callers from the moment that it is about to leave: the edge takes what follows elsewhere.
pub const LEAVING: &str = "x-postern-leaving";
/// One opaque id per RPC, for finding its log lines.
pub const CORRELATION_ID: &str = "x-gitlab-correlation-id";

/// In a status or the trailers of a stream: milliseconds after which the one who asked may come again. gRPC's own name
/// for it; kas' agents do not know it.
pub const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

/// After how long the sender of a status wants to be asked again. `None`: it does not say, or says something else than
/// a number; a negative one is such, by which gRPC means "never", and that is not for a peer to decide.
pub fn retry_pushback(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get(RETRY_PUSHBACK)?.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().map_or(Duration::MAX, Duration::from_millis))
}

/// Says in a status after how long to come again.
pub fn set_retry_pushback(metadata: &mut MetadataMap, after: Duration) {
    let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    metadata.insert(RETRY_PUSHBACK, MetadataValue::from(milliseconds));
}

/// Who speaks: `User-Agent`, `Server` and `Via` values.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// `gitlab-agent` for the agent, `gitlab-kas` for the broker: peers tell generations apart by it.
    pub name: &'static str,
    /// With a leading `v`.
    pub version: &'static str,
    /// Short commit id, or `unknown`.
    pub commit: &'static str,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.name, self.version, self.commit)
    }
}

/// Whether gRPC itself owns this metadata key, so that it must not be copied from one RPC into another.
///
/// Agents and brokers put such keys into `RequestInfo.meta` and `Header.meta`; copying them into real headers
/// would contradict the transport's own.
pub fn is_reserved(key: &str) -> bool {
    key.starts_with(':')
        || key.starts_with("grpc-")
        || matches!(key, "content-type" | "user-agent" | "te" | "host" | "connection" | "content-length")
}

/// Whether this key may go to an agent: neither reserved, nor between brokers, nor a credential.
pub fn may_reach_agent(key: &str) -> bool {
    !is_reserved(key)
        && !key.starts_with(HOP_PREFIX)
        && !key.starts_with(INTERNAL_PREFIX)
        && key != "authorization"
        && key != "cookie"
}

/// The version of a kas-made agent, from its gRPC `user-agent` (`agentk/v14.1.1/abc grpc-go/1.39.0`).
///
/// `None` for programs that do not say one; treat those as old.
pub fn agent_version(user_agent: &str) -> Option<(u32, u32)> {
    let version = agent_version_text(user_agent)?.trim_start_matches('v');
    let mut numbers = version.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The same as it is written there: `v14.1.1`. At most 64 bytes of it.
pub fn agent_version_text(user_agent: &str) -> Option<&str> {
    let (name, rest) = user_agent.split_once('/')?;
    if !matches!(name, "agentk" | "gitlab-agent") {
        return None;
    }
    rest.split(['/', ' ']).next().filter(|version| (1..=64).contains(&version.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_user_agents_of_both_generations() {
        assert_eq!(agent_version("agentk/v14.1.1/7a36596 grpc-go/1.39.0"), Some((14, 1)));
        assert_eq!(agent_version("gitlab-agent/v16.5.0/abc grpc-go/1.58"), Some((16, 5)));
        assert_eq!(agent_version("gitlab-agent/v17.0.0-rc1/abc"), Some((17, 0)));
        assert_eq!(agent_version("grpc-python/1.60"), None);
        assert_eq!(agent_version("agentk/dev"), None);
        assert_eq!(agent_version(""), None);
    }

    #[test]
    fn a_hint_is_a_number_of_milliseconds_and_nothing_else() {
        let mut metadata = MetadataMap::new();
        assert_eq!(retry_pushback(&metadata), None);
        set_retry_pushback(&mut metadata, Duration::from_micros(61_500_900));
        assert_eq!(metadata.get(RETRY_PUSHBACK).unwrap(), "61500");
        assert_eq!(retry_pushback(&metadata), Some(Duration::from_millis(61_500)));
        let most = "18446744073709551616".to_owned();
        for (text, wanted) in [
            ("0", Some(Duration::ZERO)),
            ("-1", None),
            ("+5", None),
            ("", None),
            ("1.5", None),
            (&most, Some(Duration::MAX)),
        ] {
            metadata.insert(RETRY_PUSHBACK, text.parse().unwrap());
            assert_eq!(retry_pushback(&metadata), wanted, "{text}");
        }
    }

    #[test]
    fn no_credential_and_no_internal_key_reaches_an_agent() {
        let refused =
            ["authorization", "cookie", "kas-hop-routing-agent-id", ":authority", "te", "grpc-timeout"];
        assert!(refused.iter().all(|key| !may_reach_agent(key)));
        assert!(may_reach_agent("x-gitlab-correlation-id"));
    }
}
