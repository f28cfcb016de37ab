//! How long to wait between two dials. A fleet waits for the same Redis: it is never long, and spread at random.

use rand::Rng;
use std::time::Duration;
use tokio::time::sleep;

/// Doubled each time, and up to half as much again at random.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A connection that was good for so long is dialled again at once: servers restart.
const STEADY: Duration = Duration::from_secs(5);

/// None before the first dial after a connection was lost.
#[derive(Default)]
pub(super) struct Backoff {
    wait: Duration,
}

impl Backoff {
    /// A connection ended that was good for so long. Whether it is dialled again at once.
    pub(super) fn lost(&mut self, good: Duration) -> bool {
        if good > STEADY {
            self.wait = Duration::ZERO;
        }
        self.wait.is_zero()
    }

    /// A dial failed.
    pub(super) fn failed(&mut self) {
        self.wait = self.wait.max(RETRY);
    }

    pub(super) async fn pause(&mut self) {
        let jitter = rand::rng().random_range(1.0..1.5);
        sleep(self.wait.mul_f64(jitter)).await;
        self.wait = (self.wait * 2).clamp(RETRY, RETRY_MAX);
    }
}
