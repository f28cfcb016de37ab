//! A rate with a burst: exact (GCRA), and one number of memory.
//!
//! Beneath `limits`, which knows whose bucket it is. Time is in nanoseconds since the process began.

use crate::config::limits::{Each, Rate};

const MINUTE: u64 = 60_000_000_000;

/// What a bucket holds and how fast it fills.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    /// One request pays this much time...
    cost: u64,
    /// ...and may be paid this far ahead.
    burst: u64,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        let cost = MINUTE / u64::from(rate.per_minute.get());
        // More than a century is as good as for ever, and leaves room for sums.
        Self { cost, burst: cost.saturating_mul(rate.burst.get().into()).min(u64::MAX / 4) }
    }

    /// Takes one request out of the bucket that is full at `full_at`, or says after how long there will be one. A refused
    /// request costs nothing.
    pub(super) fn take(self, full_at: &mut u64, now: u64) -> Result<(), u64> {
        // Emptied under a tighter rate: it is empty now, and fills as the present rate says.
        *full_at = (*full_at).min(now + self.burst);
        let next = (*full_at).max(now) + self.cost;
        match next.saturating_sub(now + self.burst) {
            0 => {
                *full_at = next;
                Ok(())
            }
            early => Err(early),
        }
    }

    /// As [`Bucket::take`], and takes nothing.
    pub(super) fn check(self, mut full_at: u64, now: u64) -> Result<(), u64> {
        self.take(&mut full_at, now)
    }

    /// What was taken for nothing.
    pub(super) fn give_back(self, full_at: &mut u64) {
        *full_at = full_at.saturating_sub(self.cost);
    }
}

/// The limits of each token, address or agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measure {
    pub(super) rate: Option<Bucket>,
    /// 0: no limit.
    pub(super) streams: u32,
}

/// Which part of a measure is used up, and for how long, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Over {
    Rate(u64),
    Streams,
}

/// Whether a stream takes from the bucket, is only compared with all there is and counts nowhere, or does not concern the
/// bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pays {
    Yes,
    Checked,
    No,
}

impl Measure {
    pub(super) fn new(each: &Each) -> Self {
        Self { rate: each.rate.map(Bucket::new), streams: each.streams }
    }

    pub(super) fn is_set(&self) -> bool {
        self.rate.is_some() || self.streams > 0
    }

    /// One more stream, if there may be one. One that is only checked leaves no trace.
    pub(super) fn open(
        &self,
        full_at: &mut u64,
        streams: &mut u32,
        pays: Pays,
        now: u64,
    ) -> Result<(), Over> {
        if self.streams > 0 && *streams >= self.streams {
            return Err(Over::Streams);
        }
        match (self.rate, pays) {
            (Some(bucket), Pays::Yes) => bucket.take(full_at, now).map_err(Over::Rate)?,
            (Some(bucket), Pays::Checked) => return bucket.check(*full_at, now).map_err(Over::Rate),
            (None, Pays::Checked) => return Ok(()),
            // When it was used last.
            _ => *full_at = (*full_at).max(now),
        }
        *streams = streams.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    const SECOND: u64 = 1_000_000_000;

    fn bucket(per_minute: u32, burst: u32) -> Bucket {
        let of = |number| NonZeroU32::new(number).unwrap();
        Bucket::new(Rate { per_minute: of(per_minute), burst: of(burst) })
    }

    #[test]
    fn exactly_the_burst_passes_at_once_and_then_one_per_interval() {
        let (bucket, mut full_at) = (bucket(60, 5), 0);
        assert_eq!((0..20).filter(|_| bucket.take(&mut full_at, 0).is_ok()).count(), 5);
        assert_eq!(bucket.take(&mut full_at, 0), Err(SECOND));
        assert_eq!(bucket.check(full_at, SECOND), Ok(()));
        for (at, passes) in [(999, false), (1_000, true), (1_999, false), (2_000, true)] {
            assert_eq!(bucket.take(&mut full_at, at * 1_000_000).is_ok(), passes, "{at}");
        }
        bucket.give_back(&mut full_at);
        assert_eq!(bucket.take(&mut full_at, 2 * SECOND), Ok(()));
    }

    #[test]
    fn a_bucket_that_was_emptied_under_a_tighter_rate_fills_at_the_present_one() {
        let (tight, wide, mut full_at) = (bucket(1, 5), bucket(6000, 10), 0);
        (0..5).for_each(|_| tight.take(&mut full_at, 0).unwrap());
        assert_eq!(wide.take(&mut full_at, 0), Err(SECOND / 100));
        assert_eq!(wide.take(&mut full_at, SECOND / 100), Ok(()));
    }

    #[test]
    fn over_ten_minutes_the_rate_is_exact() {
        for (per_minute, burst) in [(40_000, 100), (60, 1), (1, 7), (239_999, 3)] {
            let (bucket, mut full_at) = (bucket(per_minute, burst), 0);
            // Four times in a millisecond, so that no rate is bounded by the one who asks.
            let passed =
                (0..2_400_000).filter(|n| bucket.take(&mut full_at, n * 250_000).is_ok()).count() as u64;
            let exact = u64::from(per_minute) * 10 + u64::from(burst);
            assert!((exact - 2..=exact + 1).contains(&passed), "{per_minute} {burst}: {passed}");
        }
    }

    #[test]
    fn a_burst_without_end_is_one() {
        let (bucket, mut full_at) = (bucket(1, u32::MAX), 0);
        assert!((0..100_000).all(|_| bucket.take(&mut full_at, 0).is_ok()));
    }

    #[test]
    fn streams_are_refused_beyond_the_limit_without_a_payment() {
        let measure = Measure { rate: Some(bucket(60, 5)), streams: 2 };
        let (mut full_at, mut streams) = (0, 0);
        let mut open = |pays| measure.open(&mut full_at, &mut streams, pays, 0);
        assert_eq!([open(Pays::Yes), open(Pays::No), open(Pays::Yes)], [Ok(()), Ok(()), Err(Over::Streams)]);
        assert_eq!((full_at, streams), (SECOND, 2));
    }
}
