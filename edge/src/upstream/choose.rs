//! The brokers of one route, and which of them takes a request.
//!
//! By rendezvous hashing: the same token goes to the same broker while that one is up and has room, so that an agent's
//! tunnels land together, and every edge chooses alike. On the path of every stream: no lock, nothing allocated.

use super::broker::{Broker, Settings, WHOLE};
use super::discover::Found;
use arc_swap::ArcSwap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Streams from which on a broker may have too many. An agent has a dozen or two, and these shall stay together.
const FLOOR: u64 = 256;
/// More than anybody runs; a name that resolves to more is a mistake.
const MOST: usize = 1024;

/// The brokers that serve one route.
#[derive(Debug)]
pub struct Group {
    pub(super) settings: Arc<Settings>,
    pub(super) members: Arc<Members>,
}

/// Those that are known now. Brokers refer to it weakly.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) brokers: ArcSwap<Vec<Arc<Broker>>>,
    /// Known no more; some of them still carry streams.
    gone: Mutex<Vec<Weak<Broker>>>,
    /// Held while somebody decides whether one more may be ejected.
    ejecting: Mutex<()>,
}

impl Group {
    pub(super) fn new(settings: Settings, found: Vec<Found>) -> Self {
        let group = Self { settings: Arc::new(settings), members: Arc::default() };
        group.update(found);
        group
    }

    /// Whether this route is not configured at all. A configured one may have no broker for the time being.
    pub fn is_empty(&self) -> bool {
        self.settings.configured.is_empty()
    }

    /// Whether any broker took a connection lately.
    pub fn any_up(&self) -> bool {
        self.members.brokers.load().iter().any(|broker| broker.is_up())
    }

    /// Those that are known now.
    pub fn brokers(&self) -> Arc<Vec<Arc<Broker>>> {
        self.members.brokers.load_full()
    }

    /// Known no more, but still with streams.
    pub(super) fn gone(&self) -> Vec<Arc<Broker>> {
        let mut gone = self.members.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|broker| broker.strong_count() > 0);
        gone.iter().filter_map(Weak::upgrade).collect()
    }

    /// The broker for `affinity` among those not in `tried`. In this order of preference: one that is up and has
    /// neither too many streams nor just come up; any other that is up; one that is leaving; one that fails requests;
    /// one that is down. Brokers that have all the streams they may have take none, see [`Group::is_full`].
    pub fn choose(&self, affinity: &impl Hash, tried: &[SocketAddr]) -> Option<Arc<Broker>> {
        let brokers = self.members.brokers.load();
        // Without random keys: every edge must choose alike.
        let mut hasher = DefaultHasher::new();
        affinity.hash(&mut hasher);
        let key = hasher.finish();
        let mut clock = None;
        let mut now = |broker: &Broker| {
            if broker.is_timed() { *clock.get_or_insert_with(|| self.settings.now()) } else { 0 }
        };

        let bound = self.settings.configured.load_percent.map(|percent| {
            let (mut streams, mut shares) = (0, 0);
            for broker in brokers.iter() {
                let now = now(broker);
                if broker.is_up() && !broker.is_leaving(now) && !broker.is_ejected(now) {
                    streams += u64::from(broker.streams());
                    shares += broker.share(now);
                }
            }
            Bound { percent, streams, shares: shares.max(1) }
        });
        let mut best: Option<((u8, u64), &Arc<Broker>)> = None;
        for broker in brokers.iter() {
            if broker.is_full() || tried.contains(&broker.address) {
                continue;
            }
            let now = now(broker);
            let score = mix(key ^ broker.hash);
            let rank = if !broker.is_up() {
                0
            } else if broker.is_ejected(now) {
                1
            } else if broker.is_leaving(now) {
                2
            } else {
                let share = broker.share(now);
                let crowded = bound.as_ref().is_some_and(|bound| !bound.admits(broker, share));
                // A part of all tokens, always the same and growing.
                let taken = share == WHOLE || mix(score) % WHOLE < share;
                if crowded || !taken { 3 } else { 4 }
            };
            if best.is_none_or(|(than, _)| (rank, score) > than) {
                best = Some(((rank, score), broker));
            }
        }
        best.map(|(_, broker)| broker.clone())
    }

    /// Whether all that stands in the way of a request is that every broker has all the streams it may have.
    pub fn is_full(&self) -> bool {
        let brokers = self.members.brokers.load();
        let mut up = brokers.iter().filter(|broker| broker.is_up()).peekable();
        up.peek().is_some() && up.all(|broker| broker.is_full())
    }

    /// The broker at this address.
    pub fn find(&self, address: SocketAddr) -> Option<Arc<Broker>> {
        self.members.brokers.load().iter().find(|broker| broker.address == address).cloned()
    }

    /// For people.
    pub fn addresses(&self) -> String {
        let brokers = self.members.brokers.load();
        if brokers.is_empty() {
            return super::discover::describe(&self.settings.configured.source);
        }
        brokers.iter().map(|broker| broker.address.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// From now on these are the brokers. Those that were known stay what they are; those that are found no more finish
    /// what they carry. Returns the new ones.
    pub(super) fn update(&self, mut found: Vec<Found>) -> Vec<Arc<Broker>> {
        // An address that is listed twice is leaving only if both say so.
        found.sort_by_key(|found| (found.address, found.leaving));
        found.dedup_by_key(|found| found.address);
        if found.len() > MOST {
            tracing::error!(found = found.len(), used = MOST, "too many brokers are found");
            found.truncate(MOST);
        }
        let known = self.members.brokers.load_full();
        let mut brokers = Vec::with_capacity(found.len());
        let mut new = Vec::new();
        for Found { address, host, leaving } in found {
            let broker = match known.iter().find(|broker| broker.address == address) {
                Some(broker) => broker.clone(),
                None => {
                    let members = Arc::downgrade(&self.members);
                    let broker = Arc::new(Broker::new(address, host, self.settings.clone(), members));
                    new.push(broker.clone());
                    broker
                }
            };
            broker.set_terminating(leaving);
            brokers.push(broker);
        }
        let route = self.settings.route.name();
        let is_known = |broker: &&Arc<Broker>| brokers.iter().any(|one| one.id == broker.id);
        let lost: Vec<_> = known.iter().filter(|broker| !is_known(broker)).collect();
        for broker in &lost {
            broker.set_gone();
            tracing::info!(upstream = %broker.address, route, streams = broker.streams(), "broker is gone from discovery");
        }
        if !known.is_empty() {
            for broker in &new {
                tracing::info!(upstream = %broker.address, route, "broker is discovered");
            }
        }
        let mut gone = self.members.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|broker| broker.strong_count() > 0);
        gone.extend(lost.into_iter().map(Arc::downgrade));
        self.members.brokers.store(Arc::new(brokers));
        new
    }
}

/// How many streams a broker may have so that others are not idle meanwhile.
struct Bound {
    percent: NonZeroU32,
    streams: u64,
    shares: u64,
}

impl Bound {
    fn admits(&self, broker: &Broker, share: u64) -> bool {
        let fair = (self.streams + 1) * u64::from(self.percent.get()) * share / (100 * self.shares);
        u64::from(broker.streams()) < fair.max(FLOOR * share / WHOLE)
    }
}

impl Members {
    /// Spares this broker, unless it is spared already or half of all would be.
    pub(super) fn eject(&self, broker: &Broker) {
        let _one_at_a_time = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = broker.settings.now();
        let brokers = self.brokers.load();
        let out = brokers.iter().filter(|broker| broker.is_ejected(now)).count();
        if broker.is_ejected(now) {
            // The rest of what was under way fails now; that is no reason to eject it again when it is back.
            broker.forgive();
        } else if (out + 1) * 2 <= brokers.len() {
            broker.eject(now);
        }
    }
}

/// Spreads the bits of a hash (the finalizer of SplitMix64).
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests;
