//! How soon a project's stream is opened again: at once after good ends, later and later after bad ones. It computes;
//! `project.rs` sleeps.

use crate::backoff::Backoff;
use std::time::Duration;
use tonic::Code;

/// A stream that ends well sooner than this is not to be reopened at once, or the two would spin.
const SHORTEST: Duration = Duration::from_secs(1);
/// A stream that lived this long shows that the trouble before it is over.
const LIVED: Duration = Duration::from_secs(60);

/// The delays of one project.
#[derive(Debug)]
pub(crate) struct Pace {
    /// For what passes by itself. Each try counts against the token's limit, which all projects share.
    quick: Backoff,
    /// For commits that come one upon the other: the newest of them must not wait for long.
    news: Backoff,
    /// For what somebody must repair.
    slow: Backoff,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quick: Backoff::new(Duration::from_millis(200), Duration::from_secs(60), 2.0),
            news: Backoff::new(Duration::from_millis(200), Duration::from_secs(5), 2.0),
            slow: Backoff::new(Duration::from_secs(10), Duration::from_secs(300), 2.0),
        }
    }
}

impl Pace {
    /// After a new commit. The broker sends the first one as soon as it is asked, so that one says nothing.
    pub(crate) fn news(&mut self, lived: Duration, first: bool) -> Option<Duration> {
        self.slow.reset();
        self.quick.reset();
        if first || lived >= SHORTEST {
            self.news.reset();
            return None;
        }
        Some(self.news.step())
    }

    /// After an end with OK and without a commit.
    pub(crate) fn quiet(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= LIVED {
            self.slow.reset();
        }
        if lived >= SHORTEST {
            self.quick.reset();
            self.news.reset();
            return None;
        }
        Some(self.quick.step())
    }

    /// After a commit that was known: this broker does not look at what it is asked, and would send it for ever.
    pub(crate) fn repeated(&mut self) -> Duration {
        self.quick.step()
    }

    /// After an error of the broker, with the code it gave.
    pub(crate) fn failed(&mut self, lived: Duration, code: Code) -> Duration {
        if lived >= LIVED {
            *self = Self::default();
        }
        match code {
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => self.quick.step(),
            _ => self.slow.step(),
        }
    }

    /// After a stream whose messages made no sense or too many.
    pub(crate) fn broken(&mut self) -> Duration {
        self.slow.step()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);
    const POLL: Duration = Duration::from_secs(20);

    #[test]
    fn good_ends_are_followed_at_once_unless_they_come_in_a_row_without_pause() {
        let mut pace = Pace::default();
        assert_eq!(pace.news(MOMENT, true), None);
        assert_eq!(pace.news(POLL, false), None);
        assert_eq!(pace.quiet(POLL), None);
        let delays: Vec<_> = (0..12).map(|_| pace.news(MOMENT, false).unwrap()).collect();
        assert!(delays[0] < Duration::from_millis(300), "{delays:?}");
        assert!((Duration::from_secs(4)..=Duration::from_secs(5)).contains(&delays[11]), "{delays:?}");
        let last = (0..12).map(|_| pace.quiet(MOMENT).unwrap()).last().unwrap();
        assert!(last > Duration::from_secs(40), "{last:?}");
        assert_eq!(pace.quiet(POLL), None);
        assert!(pace.quiet(MOMENT).unwrap() < Duration::from_millis(300));
        let last = (0..12).map(|_| pace.repeated()).last().unwrap();
        assert!(last > Duration::from_secs(40), "{last:?}");
    }

    #[test]
    fn what_passes_is_tried_again_soon_and_what_needs_repair_is_not() {
        let mut pace = Pace::default();
        for code in [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded] {
            assert!(pace.failed(MOMENT, code) < Duration::from_secs(2), "{code:?}");
        }
        let first = pace.failed(MOMENT, Code::FailedPrecondition);
        assert!(first >= Duration::from_secs(8), "{first:?}");
        let last = (0..9).map(|_| pace.failed(MOMENT, Code::InvalidArgument)).last().unwrap();
        assert!(last >= Duration::from_secs(240), "{last:?}");
        assert!(pace.broken() >= Duration::from_secs(240));
        // Only a good stream, or a long one, ends the growth.
        pace.news(MOMENT, false);
        assert!(pace.broken() < Duration::from_secs(13));
        let last = (0..9).map(|_| pace.broken()).last().unwrap();
        assert!(last >= Duration::from_secs(240), "{last:?}");
        assert!(pace.failed(LIVED, Code::FailedPrecondition) < Duration::from_secs(13));
    }
}
