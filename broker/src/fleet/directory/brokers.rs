//! The other brokers, as far as anything was heard of them: announced, listed in Redis, or named by an agent's entry.

use crate::fleet::PeerUrl;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// No fleet is larger.
const MAX: usize = 64;

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

    /// Those alive; while Redis is away, all: nobody can say that they are alive.
    pub(super) fn list(&self, now: Instant, is_up: bool) -> Vec<PeerUrl> {
        let known = self.known();
        let mut list: Vec<_> =
            known.iter().filter(|(_, until)| !is_up || **until > now).map(|(peer, _)| peer.clone()).collect();
        list.sort();
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_forgotten_only_while_redis_could_tell() {
        let (brokers, now) = (Brokers::default(), Instant::now());
        let peer = |port: u16| PeerUrl::Tcp { host: "b".into(), port, tls: false };
        for port in 1..=100 {
            brokers.saw(&peer(port), now + Duration::from_secs(port.into()));
        }
        assert_eq!(brokers.list(now, true).len(), MAX);
        let later = now + Duration::from_secs(98);
        assert_eq!(brokers.list(later, true), [peer(99), peer(100)]);
        assert_eq!(brokers.list(later, false).len(), MAX);
        brokers.saw(&peer(99), now);
        brokers.leaves(&peer(100));
        assert_eq!(brokers.list(later, true), [peer(99)]);
    }
}
