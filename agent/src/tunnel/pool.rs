//! How many tunnels there are: a few idle ones always, more as requests come, fewer after a quiet minute.
//! It opens tunnels through a function it is given and knows nothing of connections or requests.

#[cfg(test)]
mod tests;

use crate::{backoff::Backoff, error, tunnel::Ended};
use std::{collections::HashMap, future::Future, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{error, warn};

/// No agent holds more; each is a stream that edge and broker hold too.
pub const MOST: usize = 500;
/// When requests come faster than tunnels, this many are opened at a time.
const GROWTH: usize = 10;
/// After this long without a request the pool shrinks back.
const QUIET: Duration = Duration::from_secs(60);
/// A broker that ends idle tunnels sooner is in trouble, however politely it does so; reopening at once would spin.
const SHORTEST: Duration = Duration::from_secs(1);
/// Those that a leaving broker ends so soon after they were opened are held off one by one, a little longer each time.
const FIRST_DISMISSAL: Duration = Duration::from_millis(50);
/// A tunnel that lived this long shows that the trouble before it is over.
const LIVED: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(20);
const RETRY_GROWTH: f64 = 1.3;

/// What a tunnel says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The broker has taken it in.
    Standing,
    /// It got a request.
    Busy,
    /// It is about to go and does not count as idle any more.
    Leaving,
}

/// A tunnel's place in the pool.
pub struct Slot {
    /// Cancelled when an idle tunnel is to go; a busy one ignores it.
    pub leave: CancellationToken,
    number: u64,
    changes: mpsc::Sender<(u64, Change)>,
    counts: watch::Receiver<Counts>,
}

impl Slot {
    /// Tells the pool.
    pub async fn tell(&self, change: Change) {
        // A pool that is gone takes its tunnels with it.
        let _ = self.changes.send((self.number, change)).await;
    }

    /// Returns once another tunnel stands that does not leave.
    pub async fn replaced(&self) {
        if self.counts.clone().wait_for(|counts| counts.standing > 0).await.is_err() {
            std::future::pending().await
        }
    }
}

/// The pool at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for a request, taken in by the broker.
    pub standing: usize,
    /// Waiting for a request, or on the way to that.
    pub idle: usize,
    /// Carrying a request.
    pub busy: usize,
    /// About to go; a request that comes is still carried.
    pub leaving: usize,
}

/// Keeps tunnels open until `drain`, then returns once the last request is done. `least` idle tunnels are kept.
pub async fn keep<F>(
    open: impl Fn(Slot) -> F,
    mut least: watch::Receiver<usize>,
    counts: watch::Sender<Counts>,
    drain: CancellationToken,
) where
    F: Future<Output = Ended> + Send + 'static,
{
    let (sender, mut changes) = mpsc::channel(64);
    let first = *least.borrow_and_update();
    let mut pool = Pool::new(first, sender, counts.subscribe());
    loop {
        if !drain.is_cancelled() {
            pool.fill(&open);
        }
        counts.send_if_modified(|counts| {
            let now = pool.counts();
            std::mem::replace(counts, now) != now
        });
        if drain.is_cancelled() && pool.tasks.is_empty() {
            return;
        }
        let alarm = pool.alarm();
        tokio::select! {
            biased;
            Some((number, change)) = changes.recv() => pool.changed(number, change),
            Some(ended) = pool.tasks.join_next_with_id() => match ended {
                Ok((task, ended)) => pool.ended(task, ended),
                Err(failed) => {
                    error!(error = %error::chain(&failed), "a tunnel's task failed");
                    pool.ended(failed.id(), Ended::Failed(Status::internal("the tunnel's task failed")));
                }
            },
            Ok(()) = least.changed() => pool.keep_at_least(*least.borrow_and_update()),
            () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => pool.rest(),
            () = drain.cancelled(), if !pool.sent_home => pool.send_idle_home(0),
        }
    }
}

struct Pool {
    slots: HashMap<u64, Entry>,
    numbers: HashMap<Id, u64>,
    tasks: JoinSet<Ended>,
    changes: mpsc::Sender<(u64, Change)>,
    shown: watch::Receiver<Counts>,
    next: u64,
    least: usize,
    /// Tunnels there should be, idle and busy.
    wanted: usize,
    last_request: Instant,
    backoff: Backoff,
    retry_at: Option<Instant>,
    dismissals: Backoff,
    /// Places whose next tunnel the broker asked to come then. As many as there were tunnels at the most.
    resting: Vec<Instant>,
    sent_home: bool,
}

struct Entry {
    phase: Phase,
    since: Instant,
    leave: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Standing,
    Busy,
    Leaving,
}

impl Pool {
    fn new(least: usize, changes: mpsc::Sender<(u64, Change)>, shown: watch::Receiver<Counts>) -> Self {
        Self {
            slots: HashMap::new(),
            numbers: HashMap::new(),
            tasks: JoinSet::new(),
            changes,
            shown,
            next: 0,
            least,
            wanted: least,
            last_request: Instant::now(),
            backoff: Backoff::new(FIRST_RETRY, LAST_RETRY, RETRY_GROWTH),
            retry_at: None,
            dismissals: Backoff::new(FIRST_DISMISSAL, LAST_RETRY, RETRY_GROWTH),
            resting: Vec::new(),
            sent_home: false,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.slots.values() {
            match entry.phase {
                Phase::Opening => counts.idle += 1,
                Phase::Standing => {
                    counts.idle += 1;
                    counts.standing += 1;
                }
                Phase::Busy => counts.busy += 1,
                Phase::Leaving => counts.leaving += 1,
            }
        }
        counts
    }

    fn fill<F>(&mut self, open: &impl Fn(Slot) -> F)
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.retry_at = None;
        let now = Instant::now();
        self.resting.retain(|until| *until > now);
        let counts = self.counts();
        for _ in counts.idle + counts.busy + self.resting.len()..self.wanted.min(MOST) {
            let number = self.next;
            self.next += 1;
            let leave = CancellationToken::new();
            let (changes, counts) = (self.changes.clone(), self.shown.clone());
            let slot = Slot { leave: leave.clone(), number, changes, counts };
            let task = self.tasks.spawn(open(slot)).id();
            self.numbers.insert(task, number);
            self.slots.insert(number, Entry { phase: Phase::Opening, since: Instant::now(), leave });
        }
    }

    fn changed(&mut self, number: u64, change: Change) {
        let Some(entry) = self.slots.get_mut(&number) else {
            return;
        };
        entry.phase = match (entry.phase, change) {
            (Phase::Opening, Change::Standing) => Phase::Standing,
            (_, Change::Busy) => Phase::Busy,
            (Phase::Opening | Phase::Standing, Change::Leaving) => Phase::Leaving,
            (phase, _) => phase,
        };
        if change == Change::Busy {
            self.last_request = Instant::now();
            self.backoff.reset();
            let counts = self.counts();
            if counts.idle < self.least {
                self.wanted = (counts.idle + counts.busy + GROWTH).min(MOST);
            }
        }
    }

    fn ended(&mut self, task: Id, ended: Ended) {
        let entry = self.numbers.remove(&task).and_then(|number| self.slots.remove(&number));
        let lived = entry.map_or(Duration::ZERO, |entry| entry.since.elapsed());
        if lived >= LIVED {
            self.backoff.reset();
        }
        match ended {
            Ended::Served | Ended::Left | Ended::Interrupted => {}
            Ended::Dismissed(pause) => self.dismissed(pause, lived),
            Ended::Idle if lived >= SHORTEST => {}
            Ended::Idle => self.failed(&Status::unavailable("the broker ends idle tunnels at once")),
            Ended::Failed(status) => self.failed(&status),
        }
    }

    /// A leaving broker says when to come again. The others of its kind may be about to leave too, so that a tunnel which
    /// was ended at once shows no trouble; but whatever is said, nobody is asked over and over without a pause.
    fn dismissed(&mut self, pause: Duration, lived: Duration) {
        let pause = if lived >= SHORTEST {
            self.dismissals.reset();
            pause
        } else {
            pause.max(self.dismissals.step())
        };
        if !pause.is_zero() {
            self.resting.push(Instant::now() + pause);
        }
    }

    /// One line and one delay for all tunnels that fail together; afterwards the least number tries again.
    fn failed(&mut self, status: &Status) {
        self.wanted = (self.counts().busy + self.least).min(MOST);
        if self.retry_at.is_some() {
            return;
        }
        let delay = self.backoff.step();
        self.retry_at = Some(Instant::now() + delay);
        warn!(error = %error::status(status), retry_in = ?delay, "tunnel failed");
    }

    fn keep_at_least(&mut self, least: usize) {
        self.least = least;
        let counts = self.counts();
        self.wanted = self.wanted.max(counts.busy + least).min(MOST);
    }

    /// When something is due without anybody saying so: the next try, the end of a rest, or that of a quiet time.
    fn alarm(&self) -> Option<Instant> {
        let counts = self.counts();
        let surplus = self.wanted > counts.busy + self.least;
        let quiet = surplus.then(|| self.last_request + QUIET);
        let rested = self.resting.iter().min().copied();
        [self.retry_at, quiet, rested].into_iter().flatten().min()
    }

    fn rest(&mut self) {
        if self.last_request.elapsed() >= QUIET {
            self.wanted = (self.counts().busy + self.least).min(MOST);
            self.send_idle_home(self.least);
        }
    }

    /// Asks idle tunnels to go, all but the `keep` newest: those are the ones a broker takes first.
    fn send_idle_home(&mut self, keep: usize) {
        self.sent_home = keep == 0;
        let idle = |entry: &Entry| matches!(entry.phase, Phase::Opening | Phase::Standing);
        let mut idle: Vec<u64> =
            self.slots.iter().filter(|(_, entry)| idle(entry)).map(|(number, _)| *number).collect();
        idle.sort_unstable();
        idle.truncate(idle.len().saturating_sub(keep));
        for number in idle {
            if let Some(entry) = self.slots.get_mut(&number) {
                entry.phase = Phase::Leaving;
                entry.leave.cancel();
            }
        }
    }
}
