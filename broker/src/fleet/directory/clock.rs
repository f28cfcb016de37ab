//! What time it is at Redis. All brokers compare stamps with that one clock, learnt now and then and counted on with
//! the monotonic clock, so that the clocks of their hosts have no say.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Clock {
    /// When it was asked, and what it was there: since 1970.
    learnt: Mutex<Option<(Instant, Duration)>>,
    /// This host's.
    wall: fn() -> SystemTime,
}

impl Clock {
    pub(super) fn new(wall: fn() -> SystemTime) -> Self {
        Self { learnt: Mutex::default(), wall }
    }

    /// What `TIME` answered just now.
    pub(super) fn learn(&self, (seconds, microseconds): (u64, u32)) {
        let time = Duration::from_secs(seconds).saturating_add(Duration::from_micros(microseconds.into()));
        *self.learnt.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), time));
    }

    /// Since 1970, once it was learnt.
    pub(super) fn now(&self) -> Option<Duration> {
        let learnt = *self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        learnt.map(|(at, time)| time.saturating_add(at.elapsed()))
    }

    /// A moment of this host's clock, at Redis.
    pub(super) fn there(&self, at: SystemTime) -> Option<Duration> {
        let ago = (self.wall)().duration_since(at).unwrap_or_default();
        Some(self.now()?.saturating_sub(ago))
    }

    /// A moment at Redis, by this host's clock.
    pub(super) fn here(&self, at: Duration) -> Option<SystemTime> {
        let ago = self.now()?.saturating_sub(at);
        (self.wall)().checked_sub(ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_by_itself_and_the_hosts_clock_only_measures_how_long_ago() {
        let clock = Clock::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(500));
        assert_eq!(clock.now(), None);
        clock.learn((1_700_000_000, 250_000));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(clock.now(), Some(Duration::from_millis(1_700_000_003_250)));
        let host = SystemTime::UNIX_EPOCH + Duration::from_secs(490);
        let there = clock.there(host).unwrap();
        assert_eq!(there, Duration::from_millis(1_699_999_993_250));
        assert_eq!(clock.here(there), Some(host));
    }
}
