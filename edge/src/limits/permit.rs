//! What says that one may, and counts as long as it is held.
//!
//! From `limits`, to whoever serves the stream or the connection. Small, for there is one for each stream: it names its
//! places in the tables instead of its keys.

use super::records::Address;
use super::table::Place;
use super::{Inner, Reported};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Held by a request that may go on, until its stream is over.
#[derive(Default)]
#[must_use = "a stream counts as long as its permit is held"]
pub struct Permit {
    limits: Option<Arc<Inner>>,
    places: Places,
}

/// Held by a connection until it is closed.
#[derive(Debug, Default)]
#[must_use = "a connection counts as long as its permit is held"]
pub struct ConnectionPermit {
    limits: Option<Arc<Inner>>,
    place: Place,
    /// A policy of `mode: report` that would have refused it.
    pub reported: Option<Reported>,
}

/// What a new connection waits for before anything else, because others from its address broke the rules a moment ago.
#[derive(Debug)]
#[must_use = "a connection counts among those that wait as long as this is held"]
pub struct Penance {
    limits: Arc<Inner>,
    place: Place,
    wait: Duration,
}

/// Up to three places, of a token, an address and an agent; one more than the place, 0 for none.
#[derive(Clone, Copy, Default)]
pub(super) struct Places(u64);

pub(super) const TOKEN: u32 = 0;
pub(super) const ADDRESS: u32 = 1;
pub(super) const AGENT: u32 = 2;
pub(super) const BITS: u32 = 21;

impl Places {
    pub(super) fn set(&mut self, which: u32, place: Place) {
        self.0 |= u64::from(place + 1) << (which * BITS);
    }

    pub(super) fn get(self, which: u32) -> Option<Place> {
        let place = (self.0 >> (which * BITS)) & ((1 << BITS) - 1);
        (place as Place).checked_sub(1)
    }
}

impl Permit {
    /// For what is not limited.
    pub fn free() -> Self {
        Self::default()
    }

    pub(super) fn add(&mut self, limits: &Arc<Inner>, which: u32, place: Place) {
        self.limits.get_or_insert_with(|| limits.clone());
        self.places.set(which, place);
    }

    pub(super) fn place(&self, which: u32) -> Option<Place> {
        self.places.get(which)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(limits) = self.limits.take() else { return };
        if let Some(place) = self.places.get(TOKEN) {
            limits.tokens.at(place, |token| token.streams = token.streams.saturating_sub(1));
        }
        if let Some(place) = self.places.get(ADDRESS) {
            limits.addresses.at(place, |address| address.streams = address.streams.saturating_sub(1));
        }
        if let Some(place) = self.places.get(AGENT) {
            limits.agents.at(place, |agent| agent.streams = agent.streams.saturating_sub(1));
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("counted", &self.limits.is_some()).finish()
    }
}

impl ConnectionPermit {
    pub(super) fn new(limits: &Arc<Inner>, place: Place, reported: Option<Reported>) -> Self {
        Self { limits: Some(limits.clone()), place, reported }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Some(limits) = self.limits.take() else { return };
        let less = |address: &mut Address| address.connections = address.connections.saturating_sub(1);
        limits.addresses.at(self.place, less);
    }
}

impl Penance {
    pub(super) fn new(limits: &Arc<Inner>, place: Place, wait: Duration) -> Self {
        Self { limits: limits.clone(), place, wait }
    }

    /// How long that is.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

impl Drop for Penance {
    fn drop(&mut self) {
        let less = |address: &mut Address| address.waiting = address.waiting.saturating_sub(1);
        self.limits.addresses.at(self.place, less);
    }
}
