//! Policies as meant: every field of every kind, ready to be asked.
//!
//! From `written`, checked; to edge and broker. A value without counters, swapped as a whole.

use crate::rules::Cidr;
use crate::{RateLimit, Rules, Subject};
use serde::Serialize;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// Everything the policies of one directory say. Each field is looked up for itself: another document may decide it.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    pub limits: Limits,
    pub polling: Polling,
    pub connections: Connections,
    pub access: Access,
    pub backends: Backends,
    pub tunnels: Tunnels,
}

/// `LimitPolicy`. In all numbers of streams, connections and bytes zero is "no limit".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// `requestsPerToken`: streams and requests with one token; `None`: no limit. Edge.
    pub requests_per_token: Rules<Option<RateLimit>>,
    /// `streamsPerToken`: open at once. Edge.
    pub streams_per_token: Rules<u32>,
    /// `requestsPerIp`. Edge.
    pub requests_per_ip: Rules<Option<RateLimit>>,
    /// `streamsPerIp`. Edge.
    pub streams_per_ip: Rules<u32>,
    /// `connectionsPerIp`. Edge.
    pub connections_per_ip: Rules<u32>,
    /// `requestsPerAgent`: of callers of the Kubernetes API. Edge.
    pub requests_per_agent: Rules<Option<RateLimit>>,
    /// `streamsPerAgent`. Edge.
    pub streams_per_agent: Rules<u32>,
    /// `bodyBytes`. Edge.
    pub body_bytes: Rules<u64>,
    /// `agentCallsPerMinute`: RPCs of one agent token in a calendar minute, over the fleet. Broker.
    pub agent_calls_per_minute: Rules<u32>,
    /// `redisLost`. Broker.
    pub redis_lost: Rules<RedisLost>,
}

/// What becomes of calls that Redis cannot count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisLost {
    Local,
    Deny,
    Allow,
}

/// `PollingPolicy`. Broker.
#[derive(Clone, Debug, Default)]
pub struct Polling {
    /// `configuration.period`: between two looks at an agent's configuration repository.
    pub configuration: Rules<Duration>,
    /// `manifests.period`: the same of manifest repositories.
    pub manifests: Rules<Duration>,
    /// `jitterPercent`: each look is up to this much earlier, at random; 0 to 100.
    pub jitter_percent: Rules<u8>,
}

/// `ConnectionPolicy`. Edge; `max_age` also the broker's, for agents' connections and streams.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connections {
    /// `maxAge`; zero: for ever.
    pub max_age: Rules<Duration>,
    /// `jitterPercent`: up to this much of the age is left out, at random.
    pub jitter_percent: Rules<u8>,
    /// `grace`: how long running streams may finish after a connection was told that it is old.
    pub grace: Rules<Duration>,
    /// `idle`: an HTTP/2 connection without streams is closed after this.
    pub idle: Rules<Duration>,
    /// `ping`: how often WebSockets and HTTP/2 connections are pinged; zero: never.
    pub ping: Rules<Duration>,
    /// `drain.grace`. For everybody only.
    pub drain_grace: Rules<Duration>,
    /// `drain.connectionsPerSecond`: how many are told to leave in a second; 0: all at once. For everybody only.
    pub drain_per_second: Rules<u32>,
}

/// `AccessPolicy`.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `clients`: which addresses may connect. Edge. Looked up without a client's address in the selector.
    pub clients: Rules<Clients>,
    /// `kubernetesApi`: what callers may do at agents' clusters. Broker.
    pub callers: Rules<Callers>,
}

/// Addresses that may connect and may not. `deny` wins; an empty `allow` is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Address and prefix length; IPv4 addresses in IPv6 notation are IPv4 here.
    pub allow: Vec<(IpAddr, u8)>,
    pub deny: Vec<(IpAddr, u8)>,
}

/// Rules for requests to the Kubernetes API; the first that matches decides, and `otherwise` where none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callers {
    pub rules: Vec<CallerRule>,
    pub otherwise: Effect,
}

/// One rule. An empty list is "any".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerRule {
    pub effect: Effect,
    /// `ci`, `pat`, `session`, `postern`, or `*`: see [`Request::access`].
    pub access: Vec<String>,
    pub user_ids: Vec<u64>,
    /// Of CI jobs.
    pub project_ids: Vec<u64>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, for other paths HTTP's in lower case.
    pub verbs: Vec<String>,
    /// `pods`, `pods/log`, `deployments.apps`, `*.apps`, `pods/*`.
    pub resources: Vec<String>,
    /// A trailing `*` stands for any end.
    pub namespaces: Vec<String>,
    /// Of requests that are not about resources: `/healthz`, `/version*`.
    pub paths: Vec<String>,
    /// Where the rule stands.
    pub line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    Allow,
    Deny,
}

/// A request to the Kubernetes API, as access rules see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// How the caller authenticated: `ci`, `pat`, `session` or `postern`.
    pub access: &'a str,
    pub user_id: Option<u64>,
    pub project_id: Option<u64>,
    pub verb: &'a str,
    /// Without version; `None`: the path is not about a resource.
    pub resource: Option<Resource<'a>>,
    /// `None`: the resource has none, or the request is for all of them.
    pub namespace: Option<&'a str>,
    /// As in the path, percent-encoded. `None`: the request is for all of the type.
    pub name: Option<&'a str>,
    /// Without the query.
    pub path: &'a str,
    /// The path may be read in more than one way, so no rule can judge it, and it is denied; see [`Request::of`].
    pub obscure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Empty: the core group.
    pub group: &'a str,
    /// Plural, as in the path.
    pub name: &'a str,
    pub subresource: Option<&'a str>,
}

/// `BackendPolicy`: calls that all of a broker make together. For everybody only. Broker.
#[derive(Clone, Debug, Default)]
pub struct Backends {
    /// `gitaly.rate`: to all servers together.
    pub gitaly: Rules<CallRate>,
    /// `gitaly.perServer`.
    pub gitaly_per_server: Rules<CallRate>,
    /// `gitlab.rate`: to Rails.
    pub gitlab: Rules<CallRate>,
}

/// Calls that wait for their turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CallRate {
    /// Positive.
    pub per_second: f64,
    pub burst: NonZeroU32,
}

/// `TunnelPolicy`. Broker.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    /// `idlePerAgent`: idle tunnels kept of one agent; further ones end at once, the oldest first.
    pub idle_per_agent: Rules<u32>,
    /// `maxIdle`: how long an idle tunnel is kept.
    pub max_idle: Rules<Duration>,
    /// `agentWait`: how long a request waits for an agent that may be reconnecting.
    pub agent_wait: Rules<Duration>,
}

impl Clients {
    /// Whether this address may connect.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let has = |networks: &[(IpAddr, u8)]| {
            networks
                .iter()
                .any(|(address, length)| Cidr::of(address.to_canonical(), *length).contains(client))
        };
        (self.allow.is_empty() || has(&self.allow)) && !has(&self.deny)
    }
}

impl PolicySet {
    /// What a broker or an edge without policies has.
    pub fn empty() -> Self {
        Self::default()
    }

    /// What the policies say of everybody of whom nothing is known.
    pub fn everybody() -> Subject<'static> {
        Subject::default()
    }
}
