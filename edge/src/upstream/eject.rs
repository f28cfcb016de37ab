//! Brokers that take connections and then fail what they take: noticed by what comes of requests, and spared for a while.
//!
//! After a request. How many may be spared at once is for `choose::Members` to say; nothing here touches what runs.

use super::broker::{Broker, millis};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Requests of a window below which a share of failures says nothing.
const ENOUGH: u32 = 20;
/// An ejection lasts at most this many times its base.
const LONGEST: u32 = 10;

/// What a request that was sent to a broker says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, whatever the answer was. A reset of one stream is an answer.
    Answered,
    /// No connection to it came about.
    Unreached,
    /// The connection broke under the request.
    Broken,
}

/// Requests of the last while.
#[derive(Debug, Default)]
pub(super) struct Window {
    since: AtomicU64,
    all: AtomicU32,
    failed: AtomicU32,
}

impl Broker {
    /// What came of a request.
    pub fn note(&self, outcome: Outcome) {
        let failed = outcome != Outcome::Answered;
        let ejection = &self.settings.configured.ejection;
        let in_a_row = if failed {
            self.failures.fetch_add(1, Relaxed).saturating_add(1)
        } else {
            if self.failures.load(Relaxed) != 0 {
                self.failures.store(0, Relaxed);
            }
            0
        };
        let mut too_many = ejection.failures.is_some_and(|most| in_a_row >= most.get());
        if let Some(share) = ejection.share {
            let (all, bad) = self.window.count(self.settings.now(), millis(ejection.window), failed);
            too_many |= all >= ENOUGH && u64::from(bad) * 100 >= u64::from(share.get()) * u64::from(all);
        }
        if failed
            && too_many
            && let Some(members) = self.members.upgrade()
        {
            members.eject(self);
        }
    }

    /// Spares it for a while, which grows with every time.
    pub(super) fn eject(&self, now: u64) {
        let ejection = &self.settings.configured.ejection;
        let mut record = self.record();
        // A window without trouble makes up for one ejection.
        let calm = now.saturating_sub(self.ejected_until.load(Relaxed)) / millis(ejection.window).max(1);
        let before = record.ejections.saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX));
        record.ejections = (before + 1).min(LONGEST);
        record.ejected += 1;
        let until = now + millis(ejection.base) * u64::from(record.ejections);
        self.ejected_until.store(until, Relaxed);
        if !self.settings.configured.slow_start.is_zero() {
            self.cold_since.store(until, Relaxed);
        }
        self.forgive();
        tracing::warn!(
            upstream = %self.address,
            route = self.settings.route.name(),
            for_seconds = (until - now) / 1000,
            "broker fails requests and is spared for a while"
        );
    }

    /// Counts failures anew.
    pub(super) fn forgive(&self) {
        self.failures.store(0, Relaxed);
        self.window.since.store(0, Relaxed);
    }
}

impl Window {
    /// Requests of this window so far, and how many of them failed.
    fn count(&self, now: u64, length: u64, failed: bool) -> (u32, u32) {
        let since = self.since.load(Relaxed);
        if since == 0 || now.saturating_sub(since) > length {
            // Two that do this at once lose a count or two.
            self.since.store(now, Relaxed);
            self.all.store(0, Relaxed);
            self.failed.store(0, Relaxed);
        }
        let bad = self.failed.fetch_add(u32::from(failed), Relaxed) + u32::from(failed);
        (self.all.fetch_add(1, Relaxed) + 1, bad)
    }
}
