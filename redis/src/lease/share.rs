//! One token's minute in this process, say a broker: which of its calls are covered by what Redis has granted, and what
//! Redis must yet be told. It computes; asking is `lease.rs`' business. Its bounds are those of docs/limits.md.

use super::Allowed;
use tokio_util::sync::CancellationToken;

/// Of the limit, what a broker admits before it tells Redis, and the most it leases ahead of need.
const ADVANCE: u64 = 100;
/// Of what is left of the limit, the most that is leased ahead: near the limit leases are small, and the count exact.
const TAIL: u64 = 8;

/// One token's minute.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Calls admitted here.
    used: u64,
    /// Of these, those that Redis was not told of.
    untold: u64,
    /// What Redis was told from here, and said that it knows.
    told: u64,
    /// Granted by Redis and not used.
    left: u64,
    /// Where in the fleet's count the last grant ends.
    end: u64,
    /// The fleet's count by the last answer.
    counted: u64,
    /// What it was last allowed, where names have policies of their own.
    pub(super) judged: Option<Allowed>,
    /// Calls that wait for an answer.
    pub(super) waiting: u64,
    /// Ends with the answer to the command that is under way.
    flight: Option<CancellationToken>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is counted.
    Admitted,
    /// The token has used up its minute.
    Refused,
    /// Redis decides.
    Ask,
}

/// What Redis is told in one command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Calls that were admitted already.
    report: u64,
    /// Calls that are to be admitted.
    batch: u64,
}

impl Ask {
    pub(super) fn sum(self) -> u64 {
        self.report + self.batch
    }
}

/// How many calls a broker admits in each minute before it tells anybody, and the most it leases ahead.
pub(super) fn advance(per_minute: u32) -> u64 {
    (u64::from(per_minute) / ADVANCE).max(1)
}

impl Share {
    /// One call, without asking. `free`: whether the advance may be used.
    pub(super) fn take(&mut self, per_minute: u32, free: bool) -> Turn {
        let limit = u64::from(per_minute);
        if self.has_lease(limit) {
            self.left -= 1;
        } else if self.counted >= limit {
            return Turn::Refused;
        } else if free && self.used < advance(per_minute) {
            self.untold += 1;
        } else {
            return Turn::Ask;
        }
        self.used += 1;
        Turn::Admitted
    }

    /// One call while Redis is away, up to the limit. It is told afterwards.
    pub(super) fn take_alone(&mut self, per_minute: u32) -> bool {
        let admitted = self.used < u64::from(per_minute);
        if admitted {
            self.take_freely();
        }
        admitted
    }

    /// One call while Redis is away, whatever the limit.
    pub(super) fn take_freely(&mut self) {
        self.used += 1;
        self.untold += 1;
    }

    /// Whether [`Share::take`] would refuse, or `take_alone` where this broker is `alone`.
    pub(super) fn is_used_up(&self, per_minute: u32, alone: bool) -> bool {
        let limit = u64::from(per_minute);
        !self.has_lease(limit) && (self.counted >= limit || alone && self.used >= limit)
    }

    /// The command that is under way; its end is to be waited for.
    pub(super) fn flight(&self) -> Option<CancellationToken> {
        self.flight.clone().filter(|flight| !flight.is_cancelled())
    }

    /// What is to be told now: what was not yet, those who wait, and where few wait a little ahead. One at a time.
    pub(super) fn ask(&mut self, per_minute: u32, flight: CancellationToken) -> Ask {
        let room = u64::from(per_minute).saturating_sub(self.counted + self.untold);
        let ahead = advance(per_minute).min(room / TAIL);
        let batch = self.waiting.min(room).max(ahead).max(1);
        let report = std::mem::take(&mut self.untold);
        self.flight = Some(flight);
        Ask { report, batch }
    }

    /// That makes so many in the fleet. What lies within the limit is granted.
    pub(super) fn answered(&mut self, ask: Ask, count: u64, per_minute: u32) {
        self.flight = None;
        let mut before = count.saturating_sub(ask.batch);
        if count.saturating_sub(ask.sum()) < self.counted {
            // Redis has lost its data in this minute. Each broker tells again what it had told.
            before += self.told;
            self.untold += std::mem::take(&mut self.told);
        }
        let granted = u64::from(per_minute).saturating_sub(before).min(ask.batch);
        if granted > 0 {
            self.left += granted;
            self.end = before + granted;
        }
        self.told += ask.sum();
        self.counted = count;
    }

    /// There was no answer. What may have been counted all the same is not told again: that could refuse a token before
    /// its limit.
    pub(super) fn failed(&mut self, ask: Ask, may_have_counted: bool) {
        self.flight = None;
        if !may_have_counted {
            self.untold += ask.report;
        }
    }

    /// A limit that was lowered holds for what was granted before, too.
    fn has_lease(&self, limit: u64) -> bool {
        self.left > 0 && self.end - self.left.min(self.end) < limit
    }
}

#[cfg(test)]
mod tests;
