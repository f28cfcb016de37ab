//! How long to wait before trying again: exponential with jitter, so that a fleet does not come back in step.
//! Used by everything that dials or opens a stream. It computes; it never sleeps.

use rand::Rng;
use std::time::Duration;

/// One sequence of growing delays.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    factor: f64,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` to `most`, each `factor` times the one before, give or take a fifth.
    pub fn new(first: Duration, most: Duration, factor: f64) -> Self {
        Self { first, most, factor, next: first }
    }

    /// The next delay.
    pub fn step(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.mul_f64(self.factor).min(self.most);
        let jittered = delay.mul_f64(rand::rng().random_range(0.8..=1.2)).min(self.most);
        // Delays are logged; nobody needs their nanoseconds.
        jittered.saturating_sub(Duration::from_nanos(u64::from(jittered.subsec_nanos() % 1_000_000)))
    }

    /// Begins anew, after things have gone well for a while.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_limit_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20), 1.3);
        let first = backoff.step();
        assert!((160..=240).contains(&first.as_millis()), "{first:?}");
        let last = (0..50).map(|_| backoff.step()).last().unwrap();
        assert!((16..=20).contains(&last.as_secs()), "{last:?}");
        backoff.reset();
        assert!(backoff.step() < Duration::from_millis(250));
    }
}
