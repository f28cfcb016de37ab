//! A bucket whose level goes on when its rate changes: in requests, not in time.
//!
//! Beneath `simulate`; edges count with a bucket of their own. What limits tell apart by a moment in time (GCRA) is here a
//! number of requests in parts so small that every refill is a whole number of them. Knows no names and no clock.

use crate::RateLimit;
use std::time::Duration;

/// One request. In a nanosecond a rate of one per minute gives back one of these parts.
const REQUEST: u64 = 60_000_000_000;

/// A burst beyond this many requests is this one.
const MOST: u64 = u64::MAX / REQUEST - 1;

/// What was used of an allowance, and when that was so. Starts full.
///
/// Exact as long as [`Gcra::refill`] is called with the old rate when a rate ends. Whoever does not loses or gains at most
/// what the new rate instead of the old one gives back between the last look and the change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gcra {
    /// In parts of requests.
    used: u64,
    /// In nanoseconds.
    at: u64,
}

impl Gcra {
    /// Takes one request at `now`, a time since any fixed moment.
    ///
    /// # Errors
    /// The time after which there will be one at this rate. Nothing was taken.
    pub fn take(&mut self, rate: RateLimit, now: Duration) -> Result<(), Duration> {
        self.refill(rate, now);
        let (next, full) = (self.used + REQUEST, full(rate));
        match next.checked_sub(full).filter(|over| *over > 0) {
            Some(over) => Err(Duration::from_nanos(over.div_ceil(rate.per_minute.get().into()))),
            None => {
                self.used = next;
                Ok(())
            }
        }
    }

    /// Gives back what `rate` has given back since the last look. To be called with the old rate when it ends; with the new
    /// one it is part of [`Gcra::take`]. Never more is used than the burst: under a smaller one the bucket is empty at most.
    pub fn refill(&mut self, rate: RateLimit, now: Duration) {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let given = now.saturating_sub(self.at).saturating_mul(rate.per_minute.get().into());
        self.used = self.used.saturating_sub(given).min(full(rate));
        self.at = self.at.max(now);
    }

    /// Whole requests that are used at the moment of the last look, rounded up.
    pub fn used(&self) -> u64 {
        self.used.div_ceil(REQUEST)
    }

    /// One request that was taken for nothing.
    pub fn give_back(&mut self) {
        self.used = self.used.saturating_sub(REQUEST);
    }
}

fn full(rate: RateLimit) -> u64 {
    u64::from(rate.burst.get()).min(MOST) * REQUEST
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::num::NonZeroU32;

    fn rate(per_minute: u32, burst: u32) -> RateLimit {
        let of = |number| NonZeroU32::new(number).unwrap();
        RateLimit { per_minute: of(per_minute), burst: of(burst) }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Water in a vessel: what is used runs off all the time, at the rate of the time. In requests, with rounding errors.
    #[derive(Default)]
    struct Fluid {
        used: f64,
        at: Duration,
    }

    impl Fluid {
        /// In many small steps, as water would.
        fn flow(&mut self, rate: RateLimit, now: Duration) {
            let step = (now - self.at) / 7;
            for _ in 0..7 {
                let gone = step.as_secs_f64() / 60.0 * f64::from(rate.per_minute.get());
                self.used = (self.used - gone).max(0.0);
            }
            self.at = now;
            self.used = self.used.min(rate.burst.get().into());
        }
    }

    #[test]
    fn over_random_edits_the_level_goes_on_as_that_of_water_does() {
        for _ in 0..200 {
            let seed: u64 = rand::random();
            println!("seed {seed}");
            let mut random = StdRng::seed_from_u64(seed);
            let (mut bucket, mut fluid, mut now) = (Gcra::default(), Fluid::default(), Duration::ZERO);
            let mut present = rate(600, 10);
            for _ in 0..500 {
                now += Duration::from_nanos(
                    random.random_range(0..3_000_000_000_u64) >> random.random_range(0..24),
                );
                if random.random_ratio(1, 8) {
                    fluid.flow(present, now);
                    bucket.refill(present, now);
                    present = rate(random.random_range(1..100_000), random.random_range(1..1_000));
                    // The level is the same at once, but for a smaller burst.
                    let level = fluid.used.min(present.burst.get().into());
                    bucket.refill(present, now);
                    assert!((bucket.used as f64 / REQUEST as f64 - level).abs() < 1e-3);
                }
                fluid.flow(present, now);
                let room = f64::from(present.burst.get()) - fluid.used;
                let taken = bucket.take(present, now);
                if (room - 1.0).abs() > 1e-3 {
                    assert_eq!(taken.is_ok(), room > 1.0, "{room} at {now:?} with {present:?}");
                }
                match taken {
                    Ok(()) => fluid.used += 1.0,
                    Err(wait) => {
                        let exact = (1.0 - room) * 60.0 / f64::from(present.per_minute.get());
                        assert!((wait.as_secs_f64() - exact).abs() < 1e-3 * 60.0, "{wait:?}, {exact}");
                        let (mut early, mut late) = (bucket, bucket);
                        assert_eq!(late.take(present, now + wait), Ok(()));
                        assert!(early.take(present, now + wait - Duration::from_nanos(1)).is_err());
                    }
                }
                assert!((bucket.used as f64 / REQUEST as f64 - fluid.used).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn over_an_hour_the_rate_is_exact_to_the_request() {
        for (per_minute, burst) in [(40_000, 100), (7, 1), (1, 7), (59_999, 3)] {
            let (present, mut bucket) = (rate(per_minute, burst), Gcra::default());
            // The steps and the interval have nothing to do with each other.
            let step = present.interval() / 3 + Duration::from_nanos(17);
            let hour = Duration::from_secs(3600);
            let mut passed = 0;
            let mut now = Duration::ZERO;
            while now <= hour {
                passed += u64::from(bucket.take(present, now).is_ok());
                now += step;
            }
            let exact = u64::from(per_minute) * 60 + u64::from(burst);
            assert!((exact - 1..=exact).contains(&passed), "{per_minute} {burst}: {passed}");
        }
    }

    #[test]
    fn what_was_used_stays_used_when_the_rate_changes() {
        let mut bucket = Gcra::default();
        let take = |bucket: &mut Gcra, rate, at: f64| {
            let before = bucket.used();
            bucket.take(rate, seconds(at)).map(|()| before)
        };
        for used in 0..60 {
            assert_eq!(take(&mut bucket, rate(60, 100), 0.0), Ok(used));
        }
        // A tenth of the rate: still 60 used, and a wait ten times as long for each of them.
        assert_eq!(take(&mut bucket, rate(6, 61), 0.0), Ok(60));
        assert_eq!(take(&mut bucket, rate(6, 61), 0.0), Err(seconds(10.0)));
        // A smaller burst: none left, none owed.
        assert_eq!(take(&mut bucket, rate(6, 5), 0.0), Err(seconds(10.0)));
        assert_eq!(bucket.used(), 5);
        // A larger one fills at its rate, not at once.
        assert_eq!(take(&mut bucket, rate(60, 7), 0.0), Ok(5));
        assert_eq!(take(&mut bucket, rate(60, 7), 0.0), Ok(6));
        assert_eq!(take(&mut bucket, rate(60, 7), 0.0), Err(seconds(1.0)));
    }

    #[test]
    fn numbers_without_end_and_clocks_that_step_back_do_no_harm() {
        let endless = rate(u32::MAX, u32::MAX);
        let mut bucket = Gcra::default();
        assert!((0..100_000).all(|_| bucket.take(endless, Duration::MAX).is_ok()));
        let mut bucket = Gcra::default();
        assert_eq!(bucket.take(rate(60, 1), seconds(10.0)), Ok(()));
        assert_eq!(bucket.take(rate(60, 1), seconds(5.0)), Err(seconds(1.0)));
        assert_eq!(bucket.take(rate(60, 1), seconds(11.0)), Ok(()));
        bucket.give_back();
        assert_eq!(bucket.take(rate(60, 1), seconds(11.0)), Ok(()));
    }
}
