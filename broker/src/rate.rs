//! How often a neighbour (GitLab, Gitaly) may be asked: a token bucket in which callers wait for their turn. Each lane is
//! served in order, and lanes that wait at the same time are served by turns, so that none starves another. Before it: a
//! call. After it: the request. A turn that a caller's deadline cannot wait for is refused at once.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// A renewal that would wait longer is put off by whoever asks for it.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(1);
/// Who waits looks at least this often whether others left and its turn comes sooner.
const LOOK: Duration = Duration::from_millis(250);

/// How much a bucket gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Turns per second in the long run; positive.
    pub per_second: f64,
    /// Turns at once after a quiet time; at least 1.
    pub burst: u32,
}

impl Default for Rate {
    /// What a kas of 14.1 does towards GitLab unless its configuration says otherwise.
    fn default() -> Self {
        Self { per_second: 10.0, burst: 50 }
    }
}

/// Who waits together. While several wait, each has an equal share of the turns; what one does not need the others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Agents, and everything that has no lane of its own.
    Agents,
    /// Callers of the Kubernetes API. They may fill half of the time that anybody waits.
    Callers,
    /// About tokens that were good a while ago: they wait a second or not at all.
    Renewals,
}

const LANES: usize = 3;

/// There are too many before this caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    /// How long the wait would have been.
    pub(crate) wait: Duration,
}

#[derive(Debug)]
pub(crate) struct Bucket {
    /// Nobody waits longer than this, and so no more than fit into it wait at all.
    patience: Duration,
    state: Mutex<State>,
    /// The rate is another one.
    changed: Notify,
}

/// A rate as times.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Refill {
    interval: Duration,
    /// What may be taken ahead of time.
    ahead: Duration,
}

impl From<Rate> for Refill {
    fn from(rate: Rate) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate.per_second.clamp(0.001, 1e6));
        Self { interval, ahead: interval.saturating_mul(rate.burst.saturating_sub(1)) }
    }
}

#[derive(Debug)]
struct State {
    refill: Refill,
    /// Counts the changes of the rate.
    epoch: u64,
    /// When the bucket is full again.
    full_at: Instant,
    /// Who waits, by number, in order.
    waiting: [VecDeque<u64>; LANES],
    number: u64,
    /// The lane that is served first among those that wait.
    first: usize,
}

/// A place in a lane, and then a turn; given up when it is dropped unused.
struct Place<'a> {
    bucket: &'a Bucket,
    lane: Lane,
    number: u64,
    /// The rate under which it may wait here.
    epoch: u64,
    used: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.used {
            return;
        }
        let mut state = self.bucket.lock();
        match state.index(self.lane, self.number) {
            Some(index) => drop(state.waiting[self.lane as usize].remove(index)),
            None => {
                let interval = state.refill.interval;
                state.full_at = state.full_at.checked_sub(interval).unwrap_or(state.full_at);
            }
        }
    }
}

impl State {
    /// How many turns go before that of the one at this place of its lane.
    fn before(&self, lane: usize, index: usize) -> usize {
        let round = |lane: usize| (lane + LANES - self.first) % LANES;
        let others = (0..LANES).filter(|other| *other != lane);
        let theirs = others.map(|other| {
            let ahead = index + usize::from(round(other) < round(lane));
            self.waiting[other].len().min(ahead)
        });
        index + theirs.sum::<usize>()
    }

    /// The place in its lane; `None`: it has its turn.
    fn index(&self, lane: Lane, number: u64) -> Option<usize> {
        self.waiting[lane as usize].binary_search(&number).ok()
    }

    /// How long the turn after `before` others is away.
    fn until(&self, before: usize, now: Instant) -> Duration {
        let turns = self.refill.interval.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX));
        self.full_at.saturating_duration_since(now).saturating_add(turns).saturating_sub(self.refill.ahead)
    }

    /// Whose turn came has it now, looking or not: nobody is held up by one that does not look.
    fn serve(&mut self, now: Instant) {
        let Refill { interval, ahead } = self.refill;
        while self.full_at.saturating_duration_since(now) <= ahead {
            let round = (0..LANES).map(|lane| (self.first + lane) % LANES);
            let Some(lane) = round.into_iter().find(|lane| !self.waiting[*lane].is_empty()) else { return };
            self.waiting[lane].pop_front();
            self.full_at += interval;
            self.first = (lane + 1) % LANES;
        }
    }
}

impl Bucket {
    pub(crate) fn new(rate: Rate, patience: Duration) -> Self {
        let state = State {
            refill: rate.into(),
            epoch: 0,
            full_at: Instant::now(),
            waiting: Default::default(),
            number: 0,
            first: Lane::Agents as usize,
        };
        Self { patience, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Gives so much from now on. Turns that were taken stay taken, in turns and not in time, and no more of them than the
    /// new burst has; who waits is judged anew: it has its turn sooner or later, or is told that it would wait too long.
    pub(crate) fn set(&self, rate: Rate) {
        let now = Instant::now();
        let refill = Refill::from(rate);
        let mut state = self.lock();
        state.serve(now);
        if refill == state.refill {
            return;
        }
        let taken = state.full_at.saturating_duration_since(now).div_duration_f64(state.refill.interval);
        // An empty bucket is the most that anybody owes: a burst that is gone is not waited for.
        let empty = refill.ahead.saturating_add(refill.interval);
        let owed = Duration::try_from_secs_f64(taken * refill.interval.as_secs_f64());
        let owed = owed.map_or(empty, |owed| owed.min(empty));
        state.full_at = now.checked_add(owed).unwrap_or(state.full_at);
        state.refill = refill;
        state.epoch += 1;
        state.serve(now);
        drop(state);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Bucket::wait_in`] where there is one lane.
    pub(crate) async fn wait(&self, deadline: Option<Instant>) -> Result<(), TooLong> {
        self.wait_in(Lane::Agents, deadline).await
    }

    /// Waits for this caller's turn. Dropping the future leaves the queue.
    pub(crate) async fn wait_in(&self, lane: Lane, deadline: Option<Instant>) -> Result<(), TooLong> {
        let Some(mut place) = self.enter(lane, deadline)? else { return Ok(()) };
        loop {
            // Before the look, so that no change is missed after it.
            let changed = self.changed.notified();
            let now = Instant::now();
            let at = {
                let mut state = self.lock();
                state.serve(now);
                let Some(index) = state.index(lane, place.number) else {
                    place.used = true;
                    return Ok(());
                };
                let wait = state.until(state.before(lane as usize, index), now);
                let late = place.epoch != state.epoch && self.is_late(&state, lane, (index, wait), now);
                if late || deadline.is_some_and(|deadline| now + wait > deadline) {
                    return Err(TooLong { wait });
                }
                place.epoch = state.epoch;
                now + wait.min(LOOK)
            };
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = changed => {}
            }
        }
    }

    /// Whether nobody at this place of a lane may wait so long.
    fn is_late(&self, state: &State, lane: Lane, (index, wait): (usize, Duration), now: Instant) -> bool {
        match lane {
            Lane::Agents => wait > self.patience,
            Lane::Callers => wait > self.patience || state.until(index, now) > self.patience / 2,
            Lane::Renewals => wait > RENEWAL_PATIENCE.min(self.patience),
        }
    }

    /// A place to wait in; `None`: the turn was there and is taken.
    fn enter(&self, lane: Lane, deadline: Option<Instant>) -> Result<Option<Place<'_>>, TooLong> {
        let now = Instant::now();
        let mut state = self.lock();
        state.serve(now);
        let index = state.waiting[lane as usize].len();
        let wait = state.until(state.before(lane as usize, index), now);
        if wait.is_zero() {
            state.full_at = state.full_at.max(now) + state.refill.interval;
            state.first = (lane as usize + 1) % LANES;
            return Ok(None);
        }
        let late = self.is_late(&state, lane, (index, wait), now);
        if late || deadline.is_some_and(|deadline| now + wait > deadline) {
            return Err(TooLong { wait });
        }
        state.number += 1;
        let number = state.number;
        state.waiting[lane as usize].push_back(number);
        Ok(Some(Place { bucket: self, lane, number, epoch: state.epoch, used: false }))
    }
}

#[cfg(test)]
mod tests;
