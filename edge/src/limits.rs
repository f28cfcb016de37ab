//! How much one token, one address and one agent may use: how often, how many streams and connections at once, how large.
//!
//! After `token`, before a broker is asked; `admit` asks for each request, `accept` for each connection. Bounded: a
//! stranger can neither grow the tables nor, by flooding them with invented tokens, make them forget a token that is over
//! its limit. Knows tokens by their hash only.

mod bucket;
mod connections;
mod fleet;
mod judge;
mod numbers;
mod permit;
mod records;
mod report;
mod supposed;
mod table;
#[cfg(test)]
mod tests;

use crate::config::limits::Limits as Config;
use crate::decide::{Purpose, Route};
use crate::reply::Reason;
use arc_swap::ArcSwap;
use bucket::Pays;
use fleet::Fleet;
use judge::{Took, refusal};
pub(crate) use numbers::name_of;
use numbers::{Base, InForce, Whose};
use permit::{ADDRESS, AGENT, TOKEN};
pub use permit::{ConnectionPermit, Penance, Permit};
use postern_policies::{PolicySet, Subject};
use postern_redis::RedisError;
use postern_wire::token::TokenKey;
use records::{Address, Agent, Network, Token};
use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
pub use supposed::Reported;
use supposed::Supposition;
use table::Table;

/// A body that is too large, as it stands in logs and metrics.
pub(crate) const BODY_BYTES: &str = "body_bytes";
/// When to come again for a place that somebody else has to leave.
const LATER: Duration = Duration::from_secs(1);

/// Redis is being asked whether a stream may go on.
pub type Counting = Pin<Box<dyn Future<Output = Result<(), Reason>> + Send>>;

/// What limits a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    TokenRate,
    TokenStreams,
    IpRate,
    IpStreams,
    IpConnections,
    /// New connections of an address, in a while.
    IpConnectionRate,
    /// Connections of an address that wait already, for what others from there did.
    IpPenance,
    AgentRate,
    AgentStreams,
    /// Too many tokens from one address that brokers did not know.
    FailedTokens,
}

/// Who wants what.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    pub client: Option<IpAddr>,
    pub token: Option<TokenKey>,
    /// Whom a caller of the Kubernetes API wants to reach.
    pub agent: Option<u64>,
    /// Of an agent, as it says itself.
    pub version: Option<&'a str>,
    /// Whether it counts towards rates; streams are counted in any case.
    pub pays: bool,
}

/// A request that may go on.
pub struct Admitted {
    pub permit: Permit,
    /// To be awaited first, if there is something to wait for: a second at the most.
    pub counting: Option<Counting>,
    /// Limits of `mode: report` that would have refused it.
    pub reported: Vec<Reported>,
}

/// All limits of the process, and what was used of them. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    in_force: ArcSwap<InForce>,
    /// Policies may come, so that everything is counted that one could limit.
    obeys: bool,
    tokens: Table<TokenId, Token>,
    addresses: Table<Network, Address>,
    agents: Table<u64, Agent>,
    /// Made when the first policy of `mode: report` concerns somebody.
    supposition: OnceLock<Supposition>,
    fleet: Option<Fleet>,
    begin: Instant,
    /// The latest moment until which an address is refused new tokens: mostly past, and then nobody looks for it.
    blocked_until: AtomicU64,
    /// The same for connections that wait.
    wait_until: AtomicU64,
}

/// The 32 bytes of a [`TokenKey`].
type TokenId = [u8; 32];

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Call<'_> {
    /// As policies see it.
    fn subject(&self) -> Subject<'_> {
        Subject {
            agent_id: self.agent,
            project_id: None,
            token_hash: self.token.as_ref().map(TokenKey::as_bytes),
            client: self.client,
            agent_version: self.version,
        }
    }
}

impl Limits {
    /// Buckets that start full at `begin`. `policies`: what they say now; `None` where none will ever say anything.
    ///
    /// # Errors
    /// A file that `limits.redis` names cannot be used. Redis itself is not asked yet.
    pub fn new(
        config: &Config,
        policies: Option<Arc<PolicySet>>,
        begin: Instant,
    ) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            obeys: policies.is_some(),
            in_force: ArcSwap::from_pointee(InForce::new(Base::new(config), policies.unwrap_or_default())),
            tokens: Table::new(config.per_token.tracked),
            addresses: Table::new(config.per_ip.tracked),
            agents: Table::new(config.per_agent.tracked),
            supposition: OnceLock::new(),
            fleet: Fleet::open(config)?,
            begin,
            blocked_until: AtomicU64::new(0),
            wait_until: AtomicU64::new(0),
        })))
    }

    /// Puts other policies in force. What was used stays used, what is open stays open.
    pub fn obey(&self, policies: Arc<PolicySet>) {
        self.obey_at(policies, Instant::now());
    }

    fn obey_at(&self, policies: Arc<PolicySet>, now: Instant) {
        let since = self.0.time(now);
        self.0.in_force.rcu(|in_force| in_force.changed(policies.clone(), since));
    }

    /// Connects to Redis, where there is one. The connection lives on the runtime that this is called on.
    pub async fn connect(&self) {
        if let Some(fleet) = &self.0.fleet {
            fleet.connect().await;
        }
    }

    /// Judges one stream, and counts it if it may go on. Where Redis decides, which is rare, there is something to wait for
    /// first.
    ///
    /// # Errors
    /// Which limit is reached, or that the token is known to be none.
    pub fn admit(&self, call: &Call<'_>, now: Instant) -> Result<Admitted, Reason> {
        let (permit, known) = self.decide(call, now)?;
        let limits = &self.0;
        let in_force = limits.in_force.load();
        let counting = match &limits.fleet {
            Some(fleet) if call.pays => fleet.admit(call, known, &in_force.now)?,
            _ => None,
        };
        let mut reported = Vec::new();
        if in_force.now.is_ruled() {
            limits.suppose(&in_force, call, known, limits.time(now), &mut reported);
        }
        Ok(Admitted { permit, counting, reported })
    }

    /// As [`Limits::admit`], by what this process has counted alone. Also says whether a broker has served the token before.
    pub fn decide(&self, call: &Call<'_>, now: Instant) -> Result<(Permit, bool), Reason> {
        let limits = &self.0;
        let in_force = limits.in_force.load();
        let subject = call.subject();
        let now = limits.time(now);
        let pays = if call.pays { Pays::Yes } else { Pays::No };
        let mut permit = Permit::free();
        let mut took = Took::default();
        let mut known = false;
        if let Some(token) = &call.token {
            let judge = |token: &mut Token, new: bool| {
                let judged = limits.judge_token(&in_force, token, call, pays, now);
                known = token.good;
                // What is refused at once need not be remembered.
                let keep = judged.is_ok() || !new;
                (judged, keep)
            };
            if let Some((judged, place)) = limits.tokens.with(token.as_bytes(), judge) {
                took.token = judged?;
                permit.add(limits, TOKEN, place);
            }
        }
        let by_ip = in_force.now.judged(Whose::Ip, &subject);
        if limits.counts(&by_ip)
            && let Some(client) = call.client
        {
            let judge = |address: &mut Address, _| {
                in_force.catch_up(&mut address.level, Whose::Ip, &subject);
                (by_ip.enforced.open(&mut address.level, &mut address.streams, pays, now), true)
            };
            if let Some((judged, place)) = limits.addresses.with(&Network::of(client), judge) {
                took.address = judged.map_err(|over| {
                    limits.give_back(&permit, took);
                    refusal(over, Limit::IpRate, Limit::IpStreams, &by_ip)
                })?;
                permit.add(limits, ADDRESS, place);
            }
        }
        if let Some(agent) = &call.agent {
            let towards = in_force.now.judged(Whose::Agent, &subject);
            if !limits.counts(&towards) {
                return Ok((permit, known));
            }
            // Anybody can invent a token for this agent: what nobody knows yet takes nothing from those who are known.
            let pays = if known { pays } else { Pays::Checked };
            let judge = |agent: &mut Agent, _| {
                in_force.catch_up(&mut agent.level, Whose::Agent, &subject);
                (towards.enforced.open(&mut agent.level, &mut agent.streams, pays, now), known)
            };
            if let Some((judged, place)) = limits.agents.with(agent, judge) {
                if let Err(over) = judged {
                    limits.give_back(&permit, took);
                    return Err(refusal(over, Limit::AgentRate, Limit::AgentStreams, &towards));
                }
                if known {
                    permit.add(limits, AGENT, place);
                }
            }
        }
        Ok((permit, known))
    }

    /// A broker has answered, or the stream ended early: what is known of the token by that. Not for what the edge answered
    /// itself, nor for what a broker answers to anybody. `http` 401 means that the broker, not the cluster behind it, said so.
    pub fn finished(&self, client: IpAddr, token: Option<TokenKey>, http: u16, grpc: Option<u16>) {
        self.finished_at(client, token, http, grpc, Instant::now());
    }

    fn finished_at(
        &self,
        client: IpAddr,
        token: Option<TokenKey>,
        http: u16,
        grpc: Option<u16>,
        now: Instant,
    ) {
        let Some(token) = token else { return };
        let limits = &self.0;
        match (grpc, http) {
            (Some(0), _) | (None, 101 | 200..=299) => {
                let good = |record: &mut Token| !std::mem::replace(&mut record.good, true);
                let first = limits.tokens.find(token.as_bytes(), good).unwrap_or(false);
                if first && let Some(fleet) = &limits.fleet {
                    let subject = Call { client: Some(client), token: Some(token), ..Call::default() };
                    fleet.proven(&token, &limits.in_force.load().now, &subject);
                }
            }
            (Some(16), _) | (None, 401) => limits.failed(client, &token, limits.time(now)),
            _ => {}
        }
    }

    /// The most bytes of a request's head.
    pub fn header_bytes(&self) -> u32 {
        self.0.in_force.load().now.base.header_bytes
    }

    /// The most bytes of a request's body. `None`: no limit. Tunnels have none, for they carry the bodies of others.
    pub fn body_bytes(&self, route: Route, purpose: Purpose, call: &Call<'_>) -> Option<NonZeroU64> {
        match (route, purpose) {
            (Route::Agents, Purpose::Tunnel | Purpose::Subscription) => None,
            _ => NonZeroU64::new(self.0.in_force.load().now.body_bytes(&call.subject()).value),
        }
    }

    /// Whether any policy says anything of bodies.
    pub fn rule_bodies(&self) -> bool {
        self.0.in_force.load().now.rules_bodies()
    }

    /// Which policy limits a request's body.
    pub fn body_rule(&self, call: &Call<'_>) -> Option<Box<str>> {
        self.0.in_force.load().now.body_bytes(&call.subject()).by.map(name_of)
    }

    /// Whether a policy of `mode: report` would not have let this body pass.
    pub fn supposed_body(&self, call: &Call<'_>, bytes: u64) -> Option<Reported> {
        let in_force = self.0.in_force.load();
        let (most, rule) = in_force.now.body_bytes(&call.subject()).reported?;
        (most > 0 && bytes > most).then(|| Reported::new(BODY_BYTES, rule))
    }

    /// What holds for everybody of whom nothing is known, and which document says so.
    pub fn effective(&self) -> serde_json::Value {
        self.0.in_force.load().now.shown()
    }

    /// How many tokens are remembered.
    pub fn tracked(&self) -> usize {
        self.0.tokens.len()
    }

    /// What is used of the limits, in numbers. Tokens by the first digits of their hash, addresses not at all.
    pub fn report(&self) -> serde_json::Value {
        report::of(&self.0, self.0.time(Instant::now()))
    }
}
