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
    all: Mutex<HashMap<PeerUrl, Known>>,
}

#[derive(Debug)]
struct Known {
    /// Until when it is taken for alive.
    until: Instant,
    /// When it said that it leaves. Entries of agents that name it are older, or were not taken back.
    left: Option<Instant>,
    /// It speaks for itself, so that agents' entries say nothing of it; a kas does not.
    speaks: bool,
}

impl Known {
    fn new(until: Instant) -> Self {
        Self { until, left: None, speaks: false }
    }

    fn spoke(&mut self, until: Instant) {
        self.until = until.max(self.until);
        self.speaks = true;
    }
}

impl Brokers {
    fn all(&self) -> MutexGuard<'_, HashMap<PeerUrl, Known>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It says itself that it is there.
    pub(super) fn came(&self, peer: &PeerUrl, until: Instant) {
        let mut all = self.all();
        let known = enter(&mut all, peer, until);
        known.left = None;
        known.spoke(until);
    }

    /// It told of an agent. That does not bring back one that left.
    pub(super) fn told(&self, peer: &PeerUrl, until: Instant) {
        let mut all = self.all();
        let known = enter(&mut all, peer, until);
        if known.left.is_none() {
            known.spoke(until);
        }
    }

    /// It stood in the hash of all brokers, which was asked for then.
    pub(super) fn listed(&self, peer: &PeerUrl, until: Instant, asked: Instant) {
        let mut all = self.all();
        let known = enter(&mut all, peer, until);
        // The answer may be older than its leave.
        if known.left.is_none_or(|at| at < asked) {
            known.left = None;
            known.spoke(until);
        }
    }

    /// An agent's entry named it. That does not bring back one that left, nor is one alive for that whose own entry has
    /// ended.
    pub(super) fn saw(&self, peer: &PeerUrl, until: Instant, now: Instant) {
        let mut all = self.all();
        let known = enter(&mut all, peer, until);
        if known.until + KEPT <= now {
            *known = Known::new(until);
        } else if known.left.is_none() && !known.speaks {
            known.until = until.max(known.until);
        }
    }

    pub(super) fn leaves(&self, peer: &PeerUrl, now: Instant) {
        let mut all = self.all();
        if all.len() < MAX || all.contains_key(peer) {
            let known = enter(&mut all, peer, now);
            (known.until, known.left) = (now, Some(now));
        }
    }

    /// All heard of within an hour or so, the latest first; while Redis is away, all: nobody can be heard.
    pub(super) fn list(&self, now: Instant, is_up: bool) -> Vec<PeerUrl> {
        self.until(if is_up { now.checked_sub(KEPT) } else { None })
    }

    /// Those of them whose last entry has not ended.
    pub(super) fn alive(&self, now: Instant, is_up: bool) -> Vec<PeerUrl> {
        self.until(is_up.then_some(now))
    }

    /// Whether it is one of these.
    pub(super) fn is_alive(&self, peer: &PeerUrl, now: Instant, is_up: bool) -> bool {
        self.all().get(peer).is_some_and(|known| known.left.is_none() && (!is_up || known.until > now))
    }

    fn until(&self, limit: Option<Instant>) -> Vec<PeerUrl> {
        let all = self.all();
        let is_wanted = |known: &Known| known.left.is_none() && limit.is_none_or(|limit| known.until > limit);
        let mut list: Vec<_> = all.iter().filter(|(_, known)| is_wanted(known)).collect();
        list.sort_by_key(|(peer, known)| (Reverse(known.until), *peer));
        list.into_iter().map(|(peer, _)| peer.clone()).collect()
    }
}

/// This broker's; for a new one, another makes room: one that left, or the one that was not heard of for longest.
fn enter<'a>(all: &'a mut HashMap<PeerUrl, Known>, peer: &PeerUrl, until: Instant) -> &'a mut Known {
    if all.len() >= MAX
        && !all.contains_key(peer)
        && let Some((first, _)) = all.iter().min_by_key(|(_, known)| (known.left.is_none(), known.until))
    {
        let first = first.clone();
        all.remove(&first);
    }
    all.entry(peer.clone()).or_insert_with(|| Known::new(until))
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
            brokers.saw(&peer(port), now + Duration::from_secs(port.into()), now);
        }
        let latest: Vec<_> = (37..=100).rev().map(peer).collect();
        assert_eq!((brokers.alive(now, true), brokers.list(now, true)), (latest.clone(), latest.clone()));
        let later = now + Duration::from_secs(98);
        assert_eq!(brokers.alive(later, true), [peer(100), peer(99)]);
        assert_eq!(brokers.alive(later, false), latest);
        assert_eq!(brokers.list(later, true), latest, "they may be cut off from redis");
        assert_eq!(brokers.list(later + KEPT, true), [peer(100), peer(99)]);
        assert_eq!(brokers.list(later + KEPT, false), latest);
        brokers.saw(&peer(99), now, now);
        brokers.leaves(&peer(100), later);
        assert_eq!(brokers.list(later + KEPT, true), [peer(99)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_left_is_back_when_it_says_so_and_not_because_agents_entries_name_it() {
        let (brokers, begin) = (Brokers::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let is_known = |port| brokers.list(at(100), true).contains(&peer(port));
        brokers.came(&peer(1), at(200));
        for port in [1, 2] {
            brokers.leaves(&peer(port), at(10));
            brokers.told(&peer(port), at(300));
            brokers.saw(&peer(port), at(300), at(11));
            brokers.listed(&peer(port), at(300), at(9));
            assert!(!is_known(port) && !brokers.list(at(100), false).contains(&peer(port)), "{port}");
        }
        brokers.came(&peer(1), at(300));
        brokers.listed(&peer(2), at(300), at(11));
        assert!(is_known(1) && is_known(2));
        // Its place may be another program's by then.
        brokers.leaves(&peer(1), at(12));
        brokers.saw(&peer(1), at(9000), at(13) + KEPT);
        assert!(is_known(1));
    }

    #[tokio::test(start_paused = true)]
    async fn agents_entries_keep_nobody_alive_who_speaks_for_itself() {
        let (brokers, begin) = (Brokers::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        brokers.saw(&peer(1), at(10), begin);
        brokers.told(&peer(2), at(10));
        for port in [1, 2] {
            brokers.saw(&peer(port), at(20), begin);
        }
        let alive = |now, is_up| [1, 2].map(|port| brokers.is_alive(&peer(port), now, is_up));
        assert_eq!(alive(at(9), true), [true, true]);
        assert_eq!(alive(at(11), true), [true, false], "a kas is known by agents' entries only");
        assert_eq!(alive(at(21), true), [false, false]);
        assert_eq!(alive(at(21), false), [true, true], "nobody can tell");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_left_make_room_and_take_none() {
        let (brokers, now) = (Brokers::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        for port in 1..=64 {
            brokers.came(&peer(port), later);
        }
        brokers.leaves(&peer(65), now);
        assert_eq!(brokers.list(now, true).len(), MAX);
        brokers.leaves(&peer(7), now);
        brokers.came(&peer(66), later);
        let list = brokers.list(now, true);
        assert!(list.len() == MAX && !list.contains(&peer(7)) && list.contains(&peer(66)));
    }
}
