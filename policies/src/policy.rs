//! Policies as meant: the last step, checked, merged and cheap to ask. A [`Policy`] is a value without
//! counters: who enforces a limit keeps its buckets elsewhere, so that another policy does not refill them.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::load;

/// Everything the policies of one directory say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How many streams and requests one agent token may open; counted in each process for itself. `None`: no
    /// limit.
    pub requests_per_token: Option<Limit>,
}

/// A limit and the document that set it, for the one who is refused to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `metadata.name` of the document.
    pub rule: String,
    pub rate: RateLimit,
}

/// An allowance that refills evenly: one more every [`interval`](Self::interval), up to
/// [`burst`](Self::burst) at once. These are the two numbers that GCRA works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    interval: Duration,
    burst: NonZeroU32,
}

impl RateLimit {
    /// `count` at once, refilled within a minute.
    pub fn per_minute(count: NonZeroU32) -> RateLimit {
        RateLimit { interval: Duration::from_secs(60) / count.get(), burst: count }
    }

    /// `per_second` in the long run, `burst` at once.
    pub fn per_second(per_second: NonZeroU32, burst: NonZeroU32) -> RateLimit {
        // From a billion per second on the quotient would be zero, which divides badly; nobody can tell the
        // difference.
        let interval = (Duration::from_secs(1) / per_second.get()).max(Duration::from_nanos(1));
        RateLimit { interval, burst }
    }

    /// The time after which one more is allowed; at least a nanosecond.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How many are allowed at once, after a pause.
    pub fn burst(&self) -> NonZeroU32 {
        self.burst
    }
}

impl Policy {
    /// The policy that ships with Postern (`policies/default.yaml`), for programs without a policy directory.
    pub fn shipped() -> Policy {
        load::load_text("default.yaml".as_ref(), include_str!("../default.yaml"))
            .expect("the shipped policy is valid; a test reads it")
    }
}
