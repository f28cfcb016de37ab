//! What something costs the thread that does it, for tests that bound it. The turns that others of a busy machine have
//! do not count, nor does the time in which the machine stands still.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Counts from its beginning, for the thread that asks.
pub(crate) struct Cost(Duration);

impl Cost {
    pub(crate) fn begin() -> Self {
        Self(worked())
    }

    pub(crate) fn so_far(&self) -> Duration {
        worked() - self.0
    }
}

/// For how long this thread has had a core.
fn worked() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("it is not negative")
}
