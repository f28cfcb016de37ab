//! A rate with a burst: exact (GCRA), in sixteen bytes of memory, across changes of its numbers too.
//!
//! Beneath `limits`, which knows whose bucket it is. Time is in nanoseconds since the process began. What was used is kept
//! as the time in which it refills; where the rate becomes another one, that time is converted, so that as many requests
//! stay used.

use crate::config::limits::Rate;

const MINUTE: u64 = 60_000_000_000;

/// What a bucket holds and how fast it fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    per_minute: u32,
    /// One request pays this much time...
    cost: u64,
    /// ...and may be paid this far ahead.
    burst: u64,
}

/// What is used of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// When nothing is, at the rate below. Where that is past, when it was used last.
    full_at: u64,
    /// The rate at which it refills: that of who used it last. 0: there was no limit.
    per_minute: u32,
    /// Of the numbers that it has seen.
    pub(super) generation: u32,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        let per_minute = rate.per_minute.get();
        let cost = cost(per_minute);
        // More than a century is as good as for ever, and leaves room for sums.
        Self { per_minute, cost, burst: cost.saturating_mul(rate.burst.get().into()).min(u64::MAX / 4) }
    }

    /// As [`Level::take`], of a bucket whose rate never changes: `full_at` is all there is to remember.
    pub(super) fn take(self, full_at: &mut u64, now: u64) -> Result<(), u64> {
        let next = (*full_at).max(now) + self.cost;
        match next.saturating_sub(now + self.burst) {
            0 => {
                *full_at = next;
                Ok(())
            }
            early => Err(early),
        }
    }
}

fn cost(per_minute: u32) -> u64 {
    MINUTE / u64::from(per_minute.max(1))
}

/// The same number of requests, as time to refill at another rate. Rounded so that nothing is given away.
fn converted(left: u64, from: u32, to: u32) -> u64 {
    if from == to {
        return left;
    }
    let wide = (u128::from(left) * u128::from(cost(to))).div_ceil(u128::from(cost(from)));
    u64::try_from(wide).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

impl Level {
    /// Takes one request out of the bucket, or says after how long there will be one. A refused request costs nothing.
    pub(super) fn take(&mut self, bucket: Bucket, now: u64) -> Result<(), u64> {
        let mut full_at = now + self.left(bucket, now);
        bucket.take(&mut full_at, now)?;
        *self = Self { full_at, per_minute: bucket.per_minute, ..*self };
        Ok(())
    }

    /// As [`Level::take`], and takes nothing.
    pub(super) fn check(mut self, bucket: Bucket, now: u64) -> Result<(), u64> {
        self.take(bucket, now)
    }

    /// What was taken for nothing.
    pub(super) fn give_back(&mut self) {
        if self.per_minute > 0 {
            self.full_at = self.full_at.saturating_sub(cost(self.per_minute));
        }
    }

    /// It is used without a limit.
    pub(super) fn touch(&mut self, now: u64) {
        self.full_at = self.full_at.max(now);
    }

    /// From `since` on other numbers are in force, `None`: no limit. Up to then it has refilled at the rate before; what is
    /// still used stays used, but never more than the new burst.
    pub(super) fn change(&mut self, bucket: Option<Bucket>, since: u64, generation: u32) {
        let full_at = match bucket {
            Some(bucket) if self.full_at > since => since + self.left(bucket, since).min(bucket.burst),
            Some(_) => self.full_at,
            None => self.full_at.min(since),
        };
        *self = Self { full_at, per_minute: bucket.map_or(0, |bucket| bucket.per_minute), generation };
    }

    /// How long it takes at this bucket's rate to refill.
    fn left(&self, bucket: Bucket, now: u64) -> u64 {
        match (self.full_at.saturating_sub(now), self.per_minute) {
            (0, _) | (_, 0) => 0,
            (left, before) => converted(left, before, bucket.per_minute),
        }
    }

    /// When nothing is used, or when it was used last.
    pub(super) fn full_at(&self) -> u64 {
        self.full_at
    }
}

/// The limits of one token, address or agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    pub(super) fn is_set(&self) -> bool {
        self.rate.is_some() || self.streams > 0
    }

    /// One more stream, if there may be one; whether it took from the bucket, so that as much can be given back. One that is
    /// only checked leaves no trace.
    pub(super) fn open(
        &self,
        level: &mut Level,
        streams: &mut u32,
        pays: Pays,
        now: u64,
    ) -> Result<bool, Over> {
        if self.is_full(*streams) {
            return Err(Over::Streams);
        }
        let took = match (self.rate, pays) {
            (Some(bucket), Pays::Yes) => {
                level.take(bucket, now).map_err(Over::Rate)?;
                true
            }
            (Some(bucket), Pays::Checked) => {
                return level.check(bucket, now).map(|()| false).map_err(Over::Rate);
            }
            (None, Pays::Checked) => return Ok(false),
            _ => {
                level.touch(now);
                false
            }
        };
        *streams = streams.saturating_add(1);
        Ok(took)
    }

    pub(super) fn is_full(&self, streams: u32) -> bool {
        self.streams > 0 && streams >= self.streams
    }
}

#[cfg(test)]
mod tests;
