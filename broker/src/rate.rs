//! How often a neighbour (GitLab, Gitaly) may be asked: a token bucket in which callers wait for their turn, in order. Before it: a call. After
//! it: the request. A turn that a caller's deadline cannot wait for is refused at once, and one that its caller gave up
//! goes back.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How much a bucket gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Turns per second in the long run; positive.
    pub per_second: f64,
    /// Turns at once after a quiet time; at least 1.
    pub burst: u32,
}

impl Default for Rate {
    /// What a kas of 14.1 does towards GitLab unless its configuration says otherwise.
    fn default() -> Self {
        Self { per_second: 10.0, burst: 50 }
    }
}

/// There are too many before this caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    /// How long the wait would have been.
    pub(crate) wait: Duration,
}

#[derive(Debug)]
pub(crate) struct Bucket {
    interval: Duration,
    /// What may be taken ahead of time.
    ahead: Duration,
    /// Nobody waits longer than this, and so no more than fit into it wait at all.
    patience: Duration,
    /// When the bucket is full again.
    full_at: Mutex<Instant>,
}

/// A turn that was given and not used yet.
struct Turn<'a>(Option<&'a Bucket>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(bucket) = self.0 {
            let mut full_at = bucket.lock();
            *full_at = full_at.checked_sub(bucket.interval).unwrap_or(*full_at);
        }
    }
}

impl Bucket {
    pub(crate) fn new(rate: Rate, patience: Duration) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate.per_second.clamp(0.001, 1e6));
        Self {
            interval,
            ahead: interval.saturating_mul(rate.burst.saturating_sub(1)),
            patience,
            full_at: Mutex::new(Instant::now()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this caller's turn. Dropping the future gives the turn back.
    pub(crate) async fn wait(&self, deadline: Option<Instant>) -> Result<(), TooLong> {
        let (mut turn, at) = self.reserve(deadline)?;
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
        turn.0 = None;
        Ok(())
    }

    fn reserve(&self, deadline: Option<Instant>) -> Result<(Turn<'_>, Option<Instant>), TooLong> {
        let now = Instant::now();
        let mut full_at = self.lock();
        let from = (*full_at).max(now);
        let wait = (from - now).saturating_sub(self.ahead);
        if wait > self.patience || deadline.is_some_and(|deadline| now + wait > deadline) {
            return Err(TooLong { wait });
        }
        *full_at = from + self.interval;
        Ok((Turn(Some(self)), (!wait.is_zero()).then(|| now + wait)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn bucket() -> Bucket {
        Bucket::new(Rate { per_second: 10.0, burst: 3 }, PATIENCE)
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let (bucket, begin) = (bucket(), Instant::now());
        let mut times = Vec::new();
        for _ in 0..5 {
            bucket.wait(None).await.unwrap();
            times.push(begin.elapsed().as_millis() / 10);
        }
        assert_eq!(times, [0, 0, 0, 10, 20]);
        tokio::time::advance(Duration::from_secs(60)).await;
        let begin = Instant::now();
        for _ in 0..4 {
            bucket.wait(None).await.unwrap();
        }
        assert_eq!(begin.elapsed().as_millis() / 10, 10, "a quiet minute fills the bucket, not more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_before_the_turn_is_refused_at_once_and_costs_nobody_a_turn() {
        let bucket = bucket();
        for _ in 0..3 {
            bucket.wait(None).await.unwrap();
        }
        let begin = Instant::now();
        let refused = bucket.wait(Some(begin + Duration::from_millis(50))).await;
        assert_eq!(refused, Err(TooLong { wait: Duration::from_millis(100) }));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(bucket.wait(Some(begin + Duration::from_millis(150))).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_gives_its_turn_back() {
        let bucket = bucket();
        for _ in 0..3 {
            bucket.wait(None).await.unwrap();
        }
        let begin = Instant::now();
        {
            let mut leaving = pin!(bucket.wait(None));
            assert!(futures::poll!(&mut leaving).is_pending());
        }
        bucket.wait(None).await.unwrap();
        assert!(begin.elapsed() < Duration::from_millis(150));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_patience() {
        let bucket = Bucket::new(Rate { per_second: 1.0, burst: 1 }, Duration::from_secs(2));
        let turns: Vec<_> = (0..5).map(|_| bucket.reserve(None)).collect();
        assert_eq!(turns.iter().filter(|turn| turn.is_ok()).count(), 3);
    }
}
