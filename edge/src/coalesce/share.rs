//! How much of its thread a connection has had of late, and how much it may read at once.
//!
//! Beneath `coalesce`, which sends those that have none left to the slow lane. Knows costs, no frames.

use std::time::{Duration, Instant};

/// What may be used at once, in frames that only have to be looked at: a turn. Some 60 to 300 microseconds of work, and
/// 64 KiB of a body.
const TURN: i64 = 256;
/// What comes back in a millisecond. An agent or a kubectl uses less, and never meets the lane; a thousand of those who
/// use it up are a thread's work.
const PER_MILLISECOND: i64 = 32;
/// The same as long as no broker has accepted a token of it. It is served when nobody else has anything to do, which on a
/// thread that is not under attack is at once.
const STRANGERS_PER_MILLISECOND: i64 = 2;
/// Bytes of whatever kind that cost as much as one frame.
const BYTES_PER_UNIT: usize = 256;
/// What a read costs, whatever it brings.
const READ: usize = 8;
/// What is read at once at the least, else the system calls would be most of the work.
const LEAST: usize = 512;
/// Costs of 1,024 bytes, as long as nothing is known: a first read of 4 KiB.
const FIRST: usize = 64;

/// One connection's share.
#[derive(Debug)]
pub(super) struct Share {
    left: i64,
    /// When it was last added to.
    at: Instant,
    /// What 1,024 bytes have cost of late.
    density: usize,
    per_millisecond: i64,
}

impl Share {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: TURN, at: now, density: FIRST, per_millisecond: STRANGERS_PER_MILLISECOND }
    }

    /// A broker has accepted a token of this connection.
    pub(super) fn trust(&mut self) {
        self.per_millisecond = PER_MILLISECOND;
    }

    /// Whether anything is left, with what time gave back.
    pub(super) fn is_left(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        if passed >= Duration::from_millis(1) {
            let millis = passed.as_millis().min(1_000_000) as i64;
            self.left = (self.left + millis * self.per_millisecond).min(TURN);
            self.at = now;
        }
        self.left > 0
    }

    /// Its turn has come.
    pub(super) fn renew(&mut self) {
        self.left = TURN;
    }

    /// How many bytes may be read now, so that they cost about what is left. A little that is left is not worth a read.
    pub(super) fn bytes(&self) -> usize {
        let left = self.left.max(TURN / 4) as usize;
        (left * 1024 / self.density.max(1)).max(LEAST)
    }

    /// These bytes were read, and had frames of this cost in them.
    pub(super) fn pay(&mut self, bytes: usize, frames: u32) {
        if bytes == 0 {
            return;
        }
        let cost = bytes.div_ceil(BYTES_PER_UNIT) + frames as usize;
        // What was overdrawn is not owed for ever: nobody knew before it was read.
        self.left = (self.left - (READ + cost) as i64).max(-TURN);
        let density = cost * 1024 / bytes;
        self.density = if density > self.density { density } else { (3 * self.density + density) / 4 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_crumbs_reads_little_at_once_and_who_sends_bodies_reads_a_lot() {
        let mut share = Share::new(Instant::now());
        assert_eq!(share.bytes(), 4096);
        share.pay(4096, 4096 / 9);
        assert!(!share.is_left(share.at));
        share.renew();
        assert!((2048..2560).contains(&share.bytes()), "{}", share.bytes());
        for _ in 0..20 {
            share.renew();
            share.pay(16_393, 2);
        }
        share.renew();
        assert!(share.bytes() > 50 * 1024, "{}", share.bytes());
        share.pay(16_393, 1_800);
        share.renew();
        assert!(share.bytes() < 2560, "one read of crumbs is enough");
    }

    #[test]
    fn time_gives_a_turn_back_and_never_more() {
        let begin = Instant::now();
        let mut share = Share::new(begin);
        share.pay(1_000, 100_000);
        assert!(!share.is_left(begin + Duration::from_millis(100)));
        share = Share::new(begin);
        share.trust();
        share.pay(1_000, 100_000);
        assert!(!share.is_left(begin + Duration::from_millis(7)));
        assert!(share.is_left(begin + Duration::from_millis(9)));
        assert!(share.is_left(begin + Duration::from_secs(3600)));
        assert_eq!(share.left, TURN);
    }
}
