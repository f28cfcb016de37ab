//! Times in which the whole machine stood still, as those of CI do: what is promised within a time is promised for a
//! machine that runs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

const LOOK: Duration = Duration::from_millis(10);
/// No busy machine lets a process wait this long for a turn, as a rule.
const STALL: Duration = Duration::from_millis(250);

/// Looks at the clock all the time, until it is dropped.
pub(crate) struct Stalls {
    seen: Arc<Mutex<Seen>>,
    _looking: AbortOnDropHandle<()>,
}

struct Seen {
    last: Instant,
    stalls: Vec<(Instant, Instant)>,
}

impl Seen {
    fn look(&mut self) {
        let now = Instant::now();
        if now - self.last > STALL {
            self.stalls.push((self.last, now));
        }
        self.last = now;
    }
}

impl Stalls {
    pub(crate) fn watch() -> Self {
        let seen = Arc::new(Mutex::new(Seen { last: Instant::now(), stalls: Vec::new() }));
        let noting = Arc::clone(&seen);
        let looking = tokio::spawn(async move {
            let mut ticks = interval(LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                noting.lock().unwrap_or_else(PoisonError::into_inner).look();
            }
        });
        Self { seen, _looking: AbortOnDropHandle::new(looking) }
    }

    /// How long it was from one moment to the other, less the time in which nothing ran.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.look();
        let within =
            |(begin, end): &(Instant, Instant)| (*end.min(&to)).saturating_duration_since(*begin.max(&from));
        let stood: Duration = seen.stalls.iter().map(within).sum();
        to.saturating_duration_since(from).saturating_sub(stood)
    }
}
