//! How much one token, one address and one agent may use: how often, how many streams and connections at once, how large.
//!
//! After `token`, before a broker is asked; `admit` asks for each request, `accept` for each connection. Bounded: a
//! stranger can neither grow the tables nor, by flooding them with invented tokens, make them forget a token that is over
//! its limit. Knows tokens by their hash only.

mod bucket;
mod connections;
mod fleet;
mod permit;
mod records;
mod report;
mod table;
#[cfg(test)]
mod tests;

use crate::config::limits::Limits as Config;
use crate::decide::{Purpose, Route};
use crate::reply::Reason;
use arc_swap::ArcSwap;
use bucket::{Bucket, Measure, Over, Pays};
use fleet::Fleet;
use permit::{ADDRESS, AGENT, TOKEN};
pub use permit::{ConnectionPermit, Penance, Permit};
use postern_redis::RedisError;
use postern_wire::token::TokenKey;
use records::{Address, Agent, Network, Token};
use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use table::Table;

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
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub client: Option<IpAddr>,
    pub token: Option<TokenKey>,
    /// Whom a caller of the Kubernetes API wants to reach.
    pub agent: Option<u64>,
    /// Whether it counts towards rates; streams are counted in any case.
    pub pays: bool,
}

/// All limits of the process, and what was used of them. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    numbers: ArcSwap<Numbers>,
    tokens: Table<TokenId, Token>,
    addresses: Table<Network, Address>,
    agents: Table<u64, Agent>,
    fleet: Option<Fleet>,
    begin: Instant,
    /// The latest moment until which an address is refused new tokens: mostly past, and then nobody looks for it.
    blocked_until: AtomicU64,
    /// The same for connections that wait.
    wait_until: AtomicU64,
}

/// What is allowed.
#[derive(Debug)]
struct Numbers {
    token: Measure,
    ip: Measure,
    agent: Measure,
    failed: Option<Bucket>,
    /// In nanoseconds.
    remember: u64,
    connections_per_ip: u32,
    connection_rate: Option<Bucket>,
    /// What each offence costs, in nanoseconds. 0: nothing.
    flood_wait: u64,
    header_bytes: u32,
    body_bytes: u64,
}

/// The 32 bytes of a [`TokenKey`].
type TokenId = [u8; 32];

impl Numbers {
    fn new(config: &Config) -> Self {
        Self {
            token: Measure::new(&config.per_token),
            ip: Measure::new(&config.per_ip),
            agent: Measure::new(&config.per_agent),
            failed: config.failed_tokens.per_ip.map(Bucket::new),
            remember: nanos(config.failed_tokens.remember),
            connections_per_ip: config.connections_per_ip,
            connection_rate: config.connection_rate_per_ip.map(Bucket::new),
            flood_wait: nanos(config.flood_wait),
            header_bytes: config.header_bytes,
            body_bytes: config.body_bytes,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Limits {
    /// Buckets that start full at `begin`.
    ///
    /// # Errors
    /// A file that `limits.redis` names cannot be used. Redis itself is not asked yet.
    pub fn new(config: &Config, begin: Instant) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            numbers: ArcSwap::from_pointee(Numbers::new(config)),
            tokens: Table::new(config.per_token.tracked),
            addresses: Table::new(config.per_ip.tracked),
            agents: Table::new(config.per_agent.tracked),
            fleet: Fleet::open(config)?,
            begin,
            blocked_until: AtomicU64::new(0),
            wait_until: AtomicU64::new(0),
        })))
    }

    /// Puts other numbers in force. What was used stays used, what is open stays open; `tracked` and `redis` stay what they
    /// were at the start.
    pub fn set(&self, config: &Config) {
        self.0.numbers.store(Arc::new(Numbers::new(config)));
        if let Some(fleet) = &self.0.fleet {
            fleet.set(config);
        }
    }

    /// Connects to Redis, where there is one. The connection lives on the runtime that this is called on.
    pub async fn connect(&self) {
        if let Some(fleet) = &self.0.fleet {
            fleet.connect().await;
        }
    }

    /// Judges one stream, and counts it if it may go on. Where Redis decides, which is rare, there is something to wait for
    /// first, a second at the most.
    ///
    /// # Errors
    /// Which limit is reached, or that the token is known to be none.
    pub fn admit(&self, call: &Call, now: Instant) -> Result<(Permit, Option<Counting>), Reason> {
        let (permit, known) = self.decide(call, now)?;
        let counting = match &self.0.fleet {
            Some(fleet) if call.pays => fleet.admit(call, known)?,
            _ => None,
        };
        Ok((permit, counting))
    }

    /// As [`Limits::admit`], by what this process has counted alone. Also says whether a broker has served the token before.
    pub fn decide(&self, call: &Call, now: Instant) -> Result<(Permit, bool), Reason> {
        let limits = &self.0;
        let numbers = limits.numbers.load();
        let now = limits.time(now);
        let pays = if call.pays { Pays::Yes } else { Pays::No };
        let mut permit = Permit::free();
        let mut known = false;
        if let Some(token) = &call.token {
            let judge = |token: &mut Token, new: bool| {
                let judged = limits.judge_token(&numbers, token, call, pays, now);
                known = token.good;
                // What is refused at once need not be remembered.
                let keep = judged.is_ok() || !new;
                (judged, keep)
            };
            if let Some((judged, place)) = limits.tokens.with(token.as_bytes(), judge) {
                judged?;
                permit.add(limits, TOKEN, place);
            }
        }
        if numbers.ip.is_set()
            && let Some(client) = call.client
        {
            let judge = |address: &mut Address, _| {
                (numbers.ip.open(&mut address.full_at, &mut address.streams, pays, now), true)
            };
            if let Some((judged, place)) = limits.addresses.with(&Network::of(client), judge) {
                if let Err(over) = judged {
                    limits.give_back(&numbers, &permit, pays);
                    return Err(refusal(over, Limit::IpRate, Limit::IpStreams));
                }
                permit.add(limits, ADDRESS, place);
            }
        }
        if numbers.agent.is_set()
            && let Some(agent) = &call.agent
        {
            // Anybody can invent a token for this agent: what nobody knows yet takes nothing from those who are known.
            let (paid, pays) = (pays, if known { pays } else { Pays::Checked });
            let judge = |agent: &mut Agent, _| {
                (numbers.agent.open(&mut agent.full_at, &mut agent.streams, pays, now), known)
            };
            if let Some((judged, place)) = limits.agents.with(agent, judge) {
                if let Err(over) = judged {
                    limits.give_back(&numbers, &permit, paid);
                    return Err(refusal(over, Limit::AgentRate, Limit::AgentStreams));
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
                    fleet.proven(&token);
                }
            }
            (Some(16), _) | (None, 401) => limits.failed(client, &token, limits.time(now)),
            _ => {}
        }
    }

    /// The most bytes of a request's head.
    pub fn header_bytes(&self) -> u32 {
        self.0.numbers.load().header_bytes
    }

    /// The most bytes of a request's body. `None`: no limit. Tunnels have none, for they carry the bodies of others.
    pub fn body_bytes(&self, route: Route, purpose: Purpose) -> Option<NonZeroU64> {
        match (route, purpose) {
            (Route::Agents, Purpose::Tunnel | Purpose::Subscription) => None,
            _ => NonZeroU64::new(self.0.numbers.load().body_bytes),
        }
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

impl Inner {
    fn time(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.begin))
    }

    fn judge_token(
        &self,
        numbers: &Numbers,
        token: &mut Token,
        call: &Call,
        pays: Pays,
        now: u64,
    ) -> Result<(), Reason> {
        if now < token.failed_until {
            return Err(Reason::FailedToken);
        }
        token.good = token.is_good(now);
        if !token.good
            && let Some(wait) = self.blocked_for(call, now)
        {
            return Err(Reason::TooMany { limit: Limit::FailedTokens, retry_after: wait });
        }
        token.begin(now);
        numbers
            .token
            .open(&mut token.full_at, &mut token.streams, pays, now)
            .map_err(|over| refusal(over, Limit::TokenRate, Limit::TokenStreams))
    }

    fn blocked_for(&self, call: &Call, now: u64) -> Option<Duration> {
        if self.blocked_until.load(Ordering::Relaxed) <= now {
            return None;
        }
        let until = self.addresses.find(&Network::of(call.client?), |address| address.blocked_until)?;
        until.checked_sub(now).filter(|wait| *wait > 0).map(Duration::from_nanos)
    }

    fn failed(&self, client: IpAddr, token: &TokenKey, now: u64) {
        let numbers = self.numbers.load();
        let until = if numbers.remember == 0 { 0 } else { now.saturating_add(numbers.remember) };
        self.tokens.find(token.as_bytes(), |token| {
            token.good = false;
            token.failed_until = until;
        });
        let Some(bucket) = numbers.failed else { return };
        let judged =
            self.addresses.with(&Network::of(client), |address, _| (address.failed(bucket, now), true));
        if let Some((Some(until), _)) = judged {
            self.blocked_until.fetch_max(until, Ordering::Relaxed);
            let seconds = until.saturating_sub(now) / 1_000_000_000;
            tracing::info!(%client, seconds, "too many tokens from here that no broker knows; new ones are refused");
        }
    }

    /// A stream that another limit refused has taken nothing of the token's rate, nor of the address'.
    fn give_back(&self, numbers: &Numbers, permit: &Permit, pays: Pays) {
        if pays != Pays::Yes {
            return;
        }
        if let (Some(place), Some(bucket)) = (permit.place(TOKEN), numbers.token.rate) {
            self.tokens.at(place, |token| bucket.give_back(&mut token.full_at));
        }
        if let (Some(place), Some(bucket)) = (permit.place(ADDRESS), numbers.ip.rate) {
            self.addresses.at(place, |address| bucket.give_back(&mut address.full_at));
        }
    }
}

fn refusal(over: Over, rate: Limit, streams: Limit) -> Reason {
    match over {
        Over::Rate(wait) => Reason::TooMany { limit: rate, retry_after: Duration::from_nanos(wait) },
        Over::Streams => Reason::TooMany { limit: streams, retry_after: LATER },
    }
}
