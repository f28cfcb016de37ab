//! What the directory did, as numbers for the metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Numbers for the metrics. Counters since the start, but for the first three and the last two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Agents of this broker that stand in Redis, or are about to.
    pub announced: u64,
    /// Agents whose routes are remembered.
    pub routes: usize,
    /// Other brokers that are alive, as far as known.
    pub peers: usize,
    /// Times Redis was asked for an agent's brokers.
    pub lookups: u64,
    /// Times it could not answer.
    pub lookup_failures: u64,
    /// Searches answered from memory.
    pub hits: u64,
    /// News of other brokers that were heard.
    pub news: u64,
    /// Rounds of writing that had anything to write.
    pub passes: u64,
    /// Those of them that failed, in part at least.
    pub pass_failures: u64,
    /// How long the last complete refresh took.
    pub refresh: Duration,
    /// Whether Redis answers.
    pub is_up: bool,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) announced: AtomicU64,
    pub(super) lookups: AtomicU64,
    pub(super) lookup_failures: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) news: AtomicU64,
    pub(super) passes: AtomicU64,
    pub(super) pass_failures: AtomicU64,
    pub(super) refresh_micros: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    pub(super) fn census(&self, routes: usize, peers: usize, is_up: bool) -> Census {
        Census {
            announced: self.announced.load(Relaxed),
            routes,
            peers,
            lookups: self.lookups.load(Relaxed),
            lookup_failures: self.lookup_failures.load(Relaxed),
            hits: self.hits.load(Relaxed),
            news: self.news.load(Relaxed),
            passes: self.passes.load(Relaxed),
            pass_failures: self.pass_failures.load(Relaxed),
            refresh: Duration::from_micros(self.refresh_micros.load(Relaxed)),
            is_up,
        }
    }
}
