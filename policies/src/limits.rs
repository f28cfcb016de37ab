//! A rate with a burst, as two numbers.

use serde::Serialize;
use std::num::NonZeroU32;
use std::time::Duration;

/// An allowance that refills evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RateLimit {
    /// In the long run.
    pub per_minute: NonZeroU32,
    /// At once, after a pause.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// The time after which one more is allowed; at least a nanosecond.
    pub fn interval(&self) -> Duration {
        (Duration::from_secs(60) / self.per_minute.get()).max(Duration::from_nanos(1))
    }
}
