//! The other brokers, as far as anything was heard of them: announced, listed in Redis, or named by an agent's entry.

use crate::fleet::PeerUrl;
use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// No fleet is larger.
const MAX: usize = 64;
/// One that fell silent is still asked for so long after its last entry ended: it may only be cut off from Redis.
const KEPT: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(super) struct Brokers {
    /// Until when each is taken for alive.
    known: Mutex<HashMap<PeerUrl, Instant>>,
}

impl Brokers {
    fn known(&self) -> MutexGuard<'_, HashMap<PeerUrl, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is there, until then at least.
    pub(super) fn saw(&self, peer: &PeerUrl, until: Instant) {
        let mut known = self.known();
        if let Some(alive) = known.get_mut(peer) {
            *alive = until.max(*alive);
            return;
        }
        if known.len() >= MAX
            && let Some(first) = known.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| peer.clone())
        {
            known.remove(&first);
        }
        known.insert(peer.clone(), until);
    }

    pub(super) fn leaves(&self, peer: &PeerUrl) {
        self.known().remove(peer);
    }

    /// All heard of within an hour or so, the latest first; while Redis is away, all: nobody can be heard.
    pub(super) fn list(&self, now: Instant, is_up: bool) -> Vec<PeerUrl> {
        self.until(if is_up { now.checked_sub(KEPT) } else { None })
    }

    /// Those of them whose last entry has not ended.
    pub(super) fn alive(&self, now: Instant, is_up: bool) -> Vec<PeerUrl> {
        self.until(is_up.then_some(now))
    }

    fn until(&self, limit: Option<Instant>) -> Vec<PeerUrl> {
        let known = self.known();
        let mut list: Vec<_> =
            known.iter().filter(|(_, until)| limit.is_none_or(|limit| **until > limit)).collect();
        list.sort_by_key(|(peer, until)| (Reverse(**until), *peer));
        list.into_iter().map(|(peer, _)| peer.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> PeerUrl {
        PeerUrl::Tcp { host: "b".into(), port, tls: false }
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_forgotten_only_while_redis_could_tell() {
        let (brokers, now) = (Brokers::default(), Instant::now());
        for port in 1..=100 {
            brokers.saw(&peer(port), now + Duration::from_secs(port.into()));
        }
        let latest: Vec<_> = (37..=100).rev().map(peer).collect();
        assert_eq!((brokers.alive(now, true), brokers.list(now, true)), (latest.clone(), latest.clone()));
        let later = now + Duration::from_secs(98);
        assert_eq!(brokers.alive(later, true), [peer(100), peer(99)]);
        assert_eq!(brokers.alive(later, false), latest);
        assert_eq!(brokers.list(later, true), latest, "they may be cut off from redis");
        assert_eq!(brokers.list(later + KEPT, true), [peer(100), peer(99)]);
        assert_eq!(brokers.list(later + KEPT, false), latest);
        brokers.saw(&peer(99), now);
        brokers.leaves(&peer(100));
        assert_eq!(brokers.list(later + KEPT, true), [peer(99)]);
    }
}
