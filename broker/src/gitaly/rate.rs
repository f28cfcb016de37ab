//! A token bucket that makes its callers wait, in their order, and turns away whoever cannot wait long enough. It
//! keeps no queue: each caller takes the next free moment and sleeps until then.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How many calls, and how many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; at least 1.
    pub per_second: u32,
    /// At once; at least 1.
    pub burst: u32,
}

#[derive(Debug)]
pub(super) struct Bucket {
    interval: Duration,
    tolerance: Duration,
    /// When the bucket is full again.
    full_at: Mutex<Instant>,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        let interval = Duration::from_secs(1) / rate.per_second.max(1);
        let tolerance = interval * (rate.burst.max(1) - 1);
        Self { interval, tolerance, full_at: Mutex::new(Instant::now()) }
    }

    /// Waits for its turn.
    ///
    /// # Errors
    /// At once, with the time that it would have taken, if that is past `deadline`.
    pub(super) async fn take(&self, deadline: Instant) -> Result<(), Duration> {
        let now = Instant::now();
        let wait = {
            let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
            let from = (*full_at).max(now);
            let wait = (from - now).saturating_sub(self.tolerance);
            if now + wait > deadline {
                return Err(wait);
            }
            *full_at = from + self.interval;
            wait
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 5, burst: 3 };

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_waits() {
        let (bucket, start) = (Bucket::new(RATE), Instant::now());
        let deadline = start + Duration::from_secs(10);
        for expected in [0, 0, 0, 200, 400, 600] {
            bucket.take(deadline).await.unwrap();
            assert_eq!(start.elapsed().as_millis().div_ceil(10) / 20 * 200, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_wait_long_enough_is_told_at_once_and_takes_nothing() {
        let (bucket, start) = (Bucket::new(RATE), Instant::now());
        for _ in 0..3 {
            bucket.take(start).await.unwrap();
        }
        for _ in 0..100 {
            assert_eq!(bucket.take(start).await, Err(Duration::from_millis(200)));
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        bucket.take(start + Duration::from_millis(200)).await.unwrap();
    }
}
