//! Tells connections to leave one after the other, so that their agents do not come back all at once; and wakes them a few
//! at a time when something else holds.
//!
//! Started by `server`, when the drain begins and on each worker; `life` hears it on each connection. Whoever is late is
//! never made up for by a burst.

use super::Roll;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Short enough to look even, long enough for a timer that counts in milliseconds.
const TICK: Duration = Duration::from_millis(20);
/// How many connections are woken in a row to look at what holds now, and how long all others have the worker for
/// themselves then: 20,000 in a third of a second, in which no stream waits for more than some hundred microseconds.
const ROUSED: usize = 64;
const REST: Duration = Duration::from_millis(1);

/// How many connections may be told, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// `None`: all at once.
    per_second: Option<f64>,
    /// What is left of a turn.
    part: f64,
    last: Option<Instant>,
}

impl Pace {
    /// `per_second` connections, or more where `count` of them would otherwise take longer than `within`. 0: all at once.
    pub fn new(per_second: u32, count: usize, within: Duration) -> Self {
        let mut pace = Self { per_second: None, part: 0.0, last: None };
        pace.set(per_second, count, within);
        pace
    }

    /// Goes on like that. What was told in the present tick counts.
    pub fn set(&mut self, per_second: u32, count: usize, within: Duration) {
        let needed = count as f64 / within.as_secs_f64().max(f64::MIN_POSITIVE);
        self.per_second = (per_second > 0).then(|| f64::from(per_second).max(needed));
    }

    /// The turns at this moment. Asked sooner than a tick after the last turns, there are none.
    pub fn turns(&mut self, now: Instant) -> usize {
        let Some(per_second) = self.per_second else { return usize::MAX };
        if self.last.is_some_and(|last| now < last + TICK) {
            return 0;
        }
        self.last = Some(now);
        self.part += (per_second * TICK.as_secs_f64()).min(usize::MAX as f64);
        let whole = self.part.floor();
        self.part -= whole;
        whole as usize
    }

    /// Connections per second; `None`: all at once.
    pub fn per_second(&self) -> Option<f64> {
        self.per_second
    }
}

/// Walks the rolls for as long as it is polled, as connections may still begin. Reports whether all were told.
pub async fn tell_off(rolls: &[Arc<Roll>], pace: &mut Pace, all_told: &watch::Sender<bool>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = 0;
    loop {
        let now = ticks.tick().await;
        let mut turns = pace.turns(now.max(Instant::now()));
        // In turn from each worker: none of them shall be busy with nothing else.
        let mut refused = 0;
        while turns > 0 && refused < rolls.len() {
            first = (first + 1) % rolls.len();
            if rolls[first].tell_next() {
                turns -= 1;
                refused = 0;
            } else {
                refused += 1;
            }
        }
        let done = rolls.iter().all(|roll| roll.count().1 == 0);
        all_told.send_if_modified(|told| std::mem::replace(told, done) != done);
    }
}

/// Has the connections of a worker look at what holds whenever that changed. For the worker's own thread, as long as there
/// is one.
pub async fn pass_on(roll: &Roll) {
    let mut changes = roll.terms().changes();
    while changes.changed().await.is_ok() {
        let mut rests = interval(REST);
        rests.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = Some(0);
        while let Some(from) = next {
            rests.tick().await;
            next = roll.rouse(from, ROUSED);
        }
    }
}
