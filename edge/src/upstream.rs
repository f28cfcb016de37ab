//! Which broker takes a request, and how the edge connects to it.
//!
//! After `limits`. The same token goes to the same broker while that one is up, so that an agent's tunnels land
//! together. Health is what the last connect said, a probe's or a request's, and what the broker itself says when it
//! is about to leave.

use crate::config::{Address, Config};
use crate::decide::{Decision, Route, Upgrade};
use crate::relay::pool;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes of one HTTP/2 stream that nobody has read yet. Times the streams of a connection this stays within the
/// connection's window, so that one reader who stops reading cannot starve the others.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// See [`STREAM_WINDOW`]. Half of it is also h2's allowance for small DATA frames.
pub const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Idle pooled connections leave before any usual server closes them, so that a request seldom meets a closed one.
const POOL_IDLE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Probes without an answer, in a row, until what waits for an answer there is given up.
const SILENCE: u32 = 3;
/// A head that the broker's host has not acknowledged by then goes to another one.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);
/// A broker that takes longer is not one to send anything to.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// A broker that says it leaves closes its listener a second later; until a probe has noticed, others are preferred.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Why no broker is known at start.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist, or the resolver does not answer.
    #[error("resolve upstream {address}")]
    Lookup {
        address: String,
        #[source]
        source: std::io::Error,
    },
    /// The name exists but has no address.
    #[error("upstream {address} resolves to nothing")]
    Nothing { address: String },
}

/// All brokers, by what they serve.
#[derive(Debug)]
pub struct Upstreams {
    agents: Group,
    kubernetes_api: Group,
}

/// The brokers that serve one route.
#[derive(Debug)]
pub struct Group {
    brokers: Vec<Broker>,
}

/// One listener of one broker.
#[derive(Debug)]
pub struct Broker {
    pub address: SocketAddr,
    peer: HttpPeer,
    up: watch::Sender<bool>,
    /// Probes in a row that got no answer at all.
    unanswered: watch::Sender<u32>,
    /// Until then it is about to leave.
    leaving: Mutex<Option<Instant>>,
}

impl Upstreams {
    /// Resolves every address, once.
    pub fn resolve(config: &Config) -> Result<Self, ResolveError> {
        let group = |addresses: &[Address]| {
            let mut brokers = Vec::new();
            for address in addresses {
                let name = address.to_string();
                let found = name
                    .to_socket_addrs()
                    .map_err(|source| ResolveError::Lookup { address: name.clone(), source })?;
                let before = brokers.len();
                brokers.extend(found.map(|address| Broker::new(address, config.timeouts.connect)));
                if brokers.len() == before {
                    return Err(ResolveError::Nothing { address: name });
                }
            }
            brokers.sort_by_key(|broker| broker.address);
            brokers.dedup_by_key(|broker| broker.address);
            Ok(Group { brokers })
        };
        Ok(Self {
            agents: group(&config.agents.addresses)?,
            kubernetes_api: group(&config.kubernetes_api.addresses)?,
        })
    }

    pub fn of(&self, route: Route) -> &Group {
        match route {
            Route::Agents => &self.agents,
            Route::KubernetesApi => &self.kubernetes_api,
        }
    }

    /// Every broker with its route, for metrics.
    pub fn all(&self) -> impl Iterator<Item = (Route, &Broker)> {
        let agents = self.agents.brokers.iter().map(|broker| (Route::Agents, broker));
        agents.chain(self.kubernetes_api.brokers.iter().map(|broker| (Route::KubernetesApi, broker)))
    }

    /// What is known about every broker, for the admin listener.
    pub fn report(&self) -> serde_json::Value {
        let shown = |group: &Group| -> serde_json::Value {
            let brokers = group.brokers.iter().map(|broker| {
                serde_json::json!({
                    "address": broker.address.to_string(), "up": broker.is_up(), "leaving": broker.is_leaving(),
                })
            });
            brokers.collect()
        };
        serde_json::json!({ "agents": shown(&self.agents), "kubernetes_api": shown(&self.kubernetes_api) })
    }

    /// Asks every broker over and over whether it is there, and remembers what came of it. None waits for another.
    /// Never returns.
    pub async fn probe(self: Arc<Self>, limit: Duration) {
        let mut probes = JoinSet::new();
        for route in [Route::Agents, Route::KubernetesApi] {
            for index in 0..self.of(route).brokers.len() {
                let all = self.clone();
                probes.spawn(async move { all.of(route).brokers[index].probe(route, limit).await });
            }
        }
        // They never end.
        while probes.join_next().await.is_some() {}
    }
}

impl Group {
    pub fn is_empty(&self) -> bool {
        self.brokers.is_empty()
    }

    /// Whether any broker took a connection lately.
    pub fn any_up(&self) -> bool {
        self.brokers.iter().any(Broker::is_up)
    }

    /// The broker for `affinity` among those not in `tried`: by rendezvous hashing, those that are up first.
    pub fn choose(&self, affinity: &impl Hash, tried: &[SocketAddr]) -> Option<&Broker> {
        let candidates = self.brokers.iter().filter(|broker| !tried.contains(&broker.address));
        candidates.max_by_key(|broker| {
            // Without random keys: every edge must choose alike.
            let mut hasher = DefaultHasher::new();
            affinity.hash(&mut hasher);
            broker.address.hash(&mut hasher);
            (broker.is_up() && !broker.is_leaving(), broker.is_up(), hasher.finish())
        })
    }

    /// The broker at this address.
    pub fn find(&self, address: SocketAddr) -> Option<&Broker> {
        self.brokers.iter().find(|broker| broker.address == address)
    }

    /// The connection to this address failed.
    pub fn mark_down(&self, route: Route, address: SocketAddr) {
        if let Some(broker) = self.brokers.iter().find(|broker| broker.address == address) {
            broker.set_up(route, false);
        }
    }

    /// This broker has said that it is about to leave.
    pub fn mark_leaving(&self, address: SocketAddr) {
        if let Some(broker) = self.brokers.iter().find(|broker| broker.address == address) {
            broker.leaves();
        }
    }

    pub fn addresses(&self) -> String {
        self.brokers.iter().map(|broker| broker.address.to_string()).collect::<Vec<_>>().join(", ")
    }
}

impl Broker {
    fn new(address: SocketAddr, connect: Duration) -> Self {
        let mut peer = HttpPeer::new(address, false, String::new());
        let options = &mut peer.options;
        options.connection_timeout = Some(connect);
        options.total_connection_timeout = Some(connect);
        // No timers on what is under way: a watch, a tunnel or an exec may be silent for hours.
        options.read_timeout = None;
        options.write_timeout = None;
        options.idle_timeout = Some(POOL_IDLE);
        options.tcp_keepalive = Some(TcpKeepalive {
            // A broker's host that vanished answers neither: within 10 s that is known to who waits for an answer.
            idle: Duration::from_secs(5),
            interval: Duration::from_secs(2),
            count: 2,
            // The system's: a broker may let an upload wait for as long as the cluster does.
            user_timeout: Duration::ZERO,
        });
        // Until the first probe says otherwise, a broker is not known to be there.
        Self {
            address,
            peer,
            up: watch::Sender::new(false),
            unanswered: watch::Sender::new(0),
            leaving: Mutex::default(),
        }
    }

    /// How pingora shall connect for this HTTP/1.1 request, of which `bare` ones send nothing but a head.
    pub fn peer(&self, decision: Decision, bare: bool) -> Box<HttpPeer> {
        let mut peer = Box::new(self.peer.clone());
        if bare && let Some(keepalive) = &mut peer.options.tcp_keepalive {
            // A head is acknowledged by a host that is there, whatever its broker does with it. Connections of their own:
            // a body may rightly wait for as long as the cluster does not read it.
            keepalive.user_timeout = UNACKNOWLEDGED;
            peer.group_key = 1;
        }
        if decision.upgrade == Upgrade::Other {
            // The default lets WebSockets through only; kubectl before 1.31 speaks SPDY/3.1.
            peer.options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Preserve;
        }
        peer
    }

    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Tells whether it is up, now and later.
    pub fn standing(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Returns its address once it does not even refuse connections, time and again.
    pub async fn silent(&self) -> SocketAddr {
        let mut unanswered = self.unanswered.subscribe();
        // The sender is a field of this.
        let _ = unanswered.wait_for(|count| *count >= SILENCE).await;
        self.address
    }

    fn is_leaving(&self) -> bool {
        self.leaving().is_some_and(|until| Instant::now() < until)
    }

    fn leaving(&self) -> MutexGuard<'_, Option<Instant>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaves(&self) {
        let until = Instant::now() + LEAVES_WITHIN;
        if self.leaving().replace(until).is_none() {
            tracing::info!(upstream = %self.address, "broker is about to leave");
        }
    }

    /// Never returns.
    async fn probe(&self, route: Route, limit: Duration) {
        let mut every = tokio::time::interval(PROBE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let answers = async {
                match route {
                    // A process that hangs takes connections, too; HTTP/2 it does not speak.
                    Route::Agents => pool::answers(self.address).await,
                    Route::KubernetesApi => TcpStream::connect(self.address).await.is_ok(),
                }
            };
            let answered = tokio::time::timeout(limit.min(PROBE_WITHIN), answers).await;
            let unanswered = answered.is_err();
            self.unanswered.send_if_modified(|count| {
                let now = if unanswered { count.saturating_add(1) } else { 0 };
                std::mem::replace(count, now) != now
            });
            self.set_up(route, answered == Ok(true));
        }
    }

    fn set_up(&self, route: Route, up: bool) {
        if !up {
            // Gone: what comes up there is another process.
            *self.leaving() = None;
        }
        if self.up.send_if_modified(|now| std::mem::replace(now, up) != up) {
            if up {
                tracing::info!(upstream = %self.address, route = route.name(), "broker is reachable");
            } else {
                tracing::warn!(upstream = %self.address, route = route.name(), "broker is not reachable");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn group(ports: std::ops::Range<u16>) -> Group {
        let broker = |port| {
            let broker = Broker::new(([127, 0, 0, 1], port).into(), Duration::from_secs(1));
            broker.up.send_replace(true);
            broker
        };
        Group { brokers: ports.map(broker).collect() }
    }

    #[test]
    fn a_token_keeps_its_broker_when_another_one_joins() {
        let (four, five) = (group(1..5), group(1..6));
        let mut moved = 0;
        let mut share = HashMap::new();
        for token in 0..2000 {
            let before = four.choose(&token, &[]).unwrap().address;
            let after = five.choose(&token, &[]).unwrap().address;
            assert!(before == after || after.port() == 5);
            moved += usize::from(before != after);
            *share.entry(after).or_insert(0) += 1;
        }
        assert!((300..500).contains(&moved), "{moved}");
        assert!(share.values().all(|n| (320..480).contains(n)), "{share:?}");
    }

    #[test]
    fn a_broker_that_leaves_is_spared_unless_it_is_all_there_is() {
        let group = group(1..4);
        let first = group.choose(&"token", &[]).unwrap().address;
        group.mark_leaving(first);
        let second = group.choose(&"token", &[]).unwrap().address;
        assert_ne!(first, second);
        group.mark_leaving(second);
        let third = group.choose(&"token", &[]).unwrap().address;
        assert!(third != first && third != second);
        // Of two that are in trouble, the one that still serves.
        group.mark_down(Route::KubernetesApi, third);
        assert_eq!(group.choose(&"token", &[]).unwrap().address, first);
        // It went, and another process is there now.
        group.mark_down(Route::KubernetesApi, first);
        group
            .brokers
            .iter()
            .find(|broker| broker.address == first)
            .unwrap()
            .set_up(Route::KubernetesApi, true);
        assert_eq!(group.choose(&"token", &[]).unwrap().address, first);
        assert_eq!(group.choose(&"token", &[first]).unwrap().address, second);
    }

    #[test]
    fn a_broker_that_is_down_is_the_last_resort_and_one_that_failed_is_none() {
        let group = group(1..4);
        let first = group.choose(&"token", &[]).unwrap().address;
        group.mark_down(Route::Agents, first);
        let second = group.choose(&"token", &[]).unwrap().address;
        assert_ne!(first, second);
        for port in 1..4 {
            group.mark_down(Route::Agents, ([127, 0, 0, 1], port).into());
        }
        assert_eq!(group.choose(&"token", &[]).unwrap().address, first);
        assert_ne!(group.choose(&"token", &[first]).unwrap().address, first);
        let all: Vec<_> = group.brokers.iter().map(|broker| broker.address).collect();
        assert!(group.choose(&"token", &all).is_none());
    }
}
