//! Policies as written: the keys of every kind of document and the kinds of their values. What is not declared here is
//! unknown.
//!
//! From `load`, which has the YAML; to `validate`, which knows what goes with what. It judges each value for itself only.

mod access;
mod numbers;
mod rate;
mod selector;
mod time;

pub(crate) use access::{AccessSpec, CallerRuleSpec, ClientsSpec, KubernetesApiSpec};
pub(crate) use numbers::{Canary, Id, PerSecond, Several, Whole};
pub(crate) use rate::{CallRateSpec, Rate};
pub(crate) use selector::{Match, Network};
pub(crate) use time::Time;

use crate::rules::Mode;
use crate::{Kind, RedisLost};
use postern_yaml::{Cursor, Node, Read, Value, Words, WordsOf, section};

/// The only version of the documents so far.
pub(crate) const API_VERSION: &str = "postern/v1";
/// The keys of a document, whatever its kind.
pub(crate) const HEAD: &[&str] = &["apiVersion", "kind", "metadata", "mode", "canary", "match", "spec"];

/// [`API_VERSION`].
#[derive(Debug)]
pub(crate) struct ApiVersion;

impl Read for ApiVersion {
    const BLANK: bool = true;

    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        match &node.value {
            Value::Text(text) if text == API_VERSION => Some(Self),
            _ => cursor.mismatch(node, API_VERSION),
        }
    }
}

impl Words for Kind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("LimitPolicy", Self::LimitPolicy),
        ("PollingPolicy", Self::PollingPolicy),
        ("ConnectionPolicy", Self::ConnectionPolicy),
        ("AccessPolicy", Self::AccessPolicy),
        ("BackendPolicy", Self::BackendPolicy),
        ("TunnelPolicy", Self::TunnelPolicy),
    ];
}

impl Words for RedisLost {
    const WORDS: &'static [(&'static str, Self)] =
        &[("local", Self::Local), ("deny", Self::Deny), ("allow", Self::Allow)];
}

impl Words for Mode {
    const WORDS: &'static [(&'static str, Self)] = &[("enforce", Self::Enforce), ("report", Self::Report)];
}

section!(Metadata { name: Name });

/// A DNS label, as Kubernetes wants most names.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

impl Read for Name {
    const BLANK: bool = true;

    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let name = String::read(node, cursor)?;
        if !is_label(&name) {
            let wanted = "1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit, are wanted";
            cursor.problem(node.at, node.shown(), wanted);
            return None;
        }
        Some(Self(name))
    }
}

/// Whether a text is a DNS label in lower case.
pub(crate) fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Streams and connections; zero: no limit.
pub(crate) type Count = Whole<0, { u32::MAX as u64 }>;
pub(crate) type Percent = Whole<0, 100>;

section!(
    /// `match` is here for documents of the first version.
    LimitSpec {
        selector = "match": Match,
        requests_per_token = "requestsPerToken": Rate,
        streams_per_token = "streamsPerToken": Count,
        requests_per_ip = "requestsPerIp": Rate,
        streams_per_ip = "streamsPerIp": Count,
        connections_per_ip = "connectionsPerIp": Count,
        requests_per_agent = "requestsPerAgent": Rate,
        streams_per_agent = "streamsPerAgent": Count,
        body_bytes = "bodyBytes": Whole<0, { i64::MAX as u64 }>,
        agent_calls_per_minute = "agentCallsPerMinute": Whole<1, { u32::MAX as u64 }>,
        redis_lost = "redisLost": WordsOf<RedisLost>,
    }
);
section!(PollingSpec {
    selector = "match": Match,
    configuration: Period,
    manifests: Period,
    jitter_percent = "jitterPercent": Percent,
});
section!(Period { period: Time<1, 86_400> });
section!(ConnectionSpec {
    selector = "match": Match,
    max_age = "maxAge": Time<0, YEAR>,
    jitter_percent = "jitterPercent": Percent,
    grace: Time<0, YEAR>,
    idle: Time<1, YEAR>,
    ping: Time<0, YEAR>,
    drain: DrainSpec,
});
section!(DrainSpec { grace: Time<0, YEAR>, per_second = "connectionsPerSecond": Count });
section!(BackendSpec { selector = "match": Match, gitaly: GitalySpec, gitlab: GitlabSpec });
section!(GitalySpec { rate: CallRateSpec, per_server = "perServer": CallRateSpec });
section!(GitlabSpec { rate: CallRateSpec });
section!(TunnelSpec {
    selector = "match": Match,
    idle_per_agent = "idlePerAgent": Whole<1, 1_000>,
    max_idle = "maxIdle": Time<1, YEAR>,
    agent_wait = "agentWait": Time<0, 3_600>,
});

/// In seconds: more than any of these settings can mean, and deadlines stay computable.
pub(crate) const YEAR: u64 = 365 * 86_400;
