//! How often a repository is looked at for all who follow it, and waits that obey another period at once.
//!
//! Between `policies.rs`, which knows each agent's period, and the loops that look (`gitaly/poller.rs`,
//! `repositories/local.rs`, `gitops.rs`). It looks at nothing itself.

use super::{Followed, Pace, Policies, Who};
use postern_policies::Subject;
use rand::Rng;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

/// Waits that another period ends now end within so long, so that those of many repositories do not end in one moment.
const SPREAD: Duration = Duration::from_millis(500);

type Judge = dyn Fn(Followed, &Subject<'_>) -> Pace + Send + Sync;

/// Who says how often, and when that changes.
#[derive(Clone)]
pub struct Pacing {
    judge: Arc<Judge>,
    changes: watch::Receiver<u64>,
}

impl fmt::Debug for Pacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pacing").finish_non_exhaustive()
    }
}

impl Pacing {
    /// What the policies in force say.
    pub fn of(policies: &Policies) -> Self {
        let changes = policies.live().changes();
        let policies = policies.clone();
        Self::by(move |followed, who| policies.pace(followed, who), changes)
    }

    /// The same for everybody, for ever.
    pub fn steady(period: Duration) -> Self {
        let pace = Pace { period, jitter_percent: super::POLL_JITTER };
        Self::by(move |_, _| pace, watch::Sender::new(0).subscribe())
    }

    pub(crate) fn by(
        judge: impl Fn(Followed, &Subject<'_>) -> Pace + Send + Sync + 'static,
        changes: watch::Receiver<u64>,
    ) -> Self {
        Self { judge: Arc::new(judge), changes }
    }

    /// Waits for one period of someone's, whatever it becomes meanwhile.
    pub async fn period(&self, followed: Followed, who: &Who) {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        let mut wait = Wait::new((self.judge)(followed, &who.subject()));
        loop {
            tokio::select! {
                () = sleep_until(wait.until()) => return,
                () = changed(&mut changes) => wait.rearm((self.judge)(followed, &who.subject())),
            }
        }
    }
}

/// Never ends where nothing changes any more.
async fn changed(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// All who follow one repository. The shortest of their periods holds.
#[derive(Debug)]
pub(crate) struct Followers {
    pacing: Pacing,
    first: Followed,
    present: Mutex<Present>,
    /// The pace of all is another one.
    news: Notify,
}

#[derive(Debug)]
struct Present {
    each: HashMap<u64, (Followed, Who, Pace)>,
    /// How many have each pace. The first is that of all: the shortest period, and of these the most jitter.
    paces: BTreeMap<(Duration, Reverse<u8>), usize>,
    next: u64,
    /// While nobody is there: that of the last, or of everybody.
    last: Pace,
}

impl Present {
    fn pace(&self) -> Pace {
        let first = self.paces.first_key_value();
        first.map_or(self.last, |((period, Reverse(jitter)), _)| Pace {
            period: *period,
            jitter_percent: *jitter,
        })
    }

    fn add(&mut self, pace: Pace) {
        *self.paces.entry((pace.period, Reverse(pace.jitter_percent))).or_default() += 1;
    }

    fn remove(&mut self, pace: Pace) {
        self.last = self.pace();
        let key = (pace.period, Reverse(pace.jitter_percent));
        if let Some(count) = self.paces.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.paces.remove(&key);
            }
        }
    }
}

/// One who follows; gone when it is dropped.
#[derive(Debug)]
pub struct Follower {
    of: Arc<Followers>,
    number: u64,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut present = self.of.lock();
        if let Some((.., pace)) = present.each.remove(&self.number) {
            let before = present.pace();
            present.remove(pace);
            self.of.tell(before, present);
        }
    }
}

impl Followers {
    /// Nobody yet; what is followed first says whose period holds until somebody comes.
    pub(crate) fn new(pacing: Pacing, first: Followed) -> Arc<Self> {
        let last = (pacing.judge)(first, &Subject::default());
        let present = Present { each: HashMap::new(), paces: BTreeMap::new(), next: 0, last };
        Arc::new(Self { pacing, first, present: Mutex::new(present), news: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, before: Pace, present: MutexGuard<'_, Present>) {
        let differs = present.pace() != before;
        drop(present);
        if differs {
            self.news.notify_one();
        }
    }

    /// Somebody follows from now on.
    pub(crate) fn enter(self: &Arc<Self>, followed: Followed, who: Who) -> Follower {
        let mut present = self.lock();
        // Under the lock, or what is judged anew just now would leave this one out.
        let pace = (self.pacing.judge)(followed, &who.subject());
        let before = present.pace();
        let number = present.next;
        present.next += 1;
        present.add(pace);
        present.each.insert(number, (followed, who, pace));
        self.tell(before, present);
        Follower { of: Arc::clone(self), number }
    }

    /// That of all who are there.
    pub(crate) fn pace(&self) -> Pace {
        self.lock().pace()
    }

    /// What is said of each may be something else now.
    fn judge(&self) {
        let mut present = self.lock();
        let mut paces = Vec::with_capacity(present.each.len());
        for (followed, who, pace) in present.each.values_mut() {
            *pace = (self.pacing.judge)(*followed, &who.subject());
            paces.push(*pace);
        }
        if paces.is_empty() {
            present.last = (self.pacing.judge)(self.first, &Subject::default());
        }
        present.paces.clear();
        paces.into_iter().for_each(|pace| present.add(pace));
    }

    /// For the one loop that looks.
    pub(crate) fn rhythm(self: &Arc<Self>) -> Rhythm {
        let mut changes = self.pacing.changes.clone();
        changes.mark_unchanged();
        Rhythm { followers: Arc::clone(self), changes }
    }
}

/// When the one loop that looks for all is to look.
#[derive(Debug)]
pub(crate) struct Rhythm {
    followers: Arc<Followers>,
    changes: watch::Receiver<u64>,
}

impl Rhythm {
    /// A wait of one period from now.
    pub(crate) fn wait(&self) -> Wait {
        Wait::new(self.followers.pace())
    }

    /// Ends when a wait is over, which it may be sooner or later than it was to be at first. Dropped and called again, it
    /// goes on.
    pub(crate) async fn over(&mut self, wait: &mut Wait) {
        loop {
            wait.rearm(self.followers.pace());
            tokio::select! {
                () = sleep_until(wait.until()) => return,
                () = changed(&mut self.changes) => self.followers.judge(),
                () = self.followers.news.notified() => {}
            }
        }
    }
}

/// A wait of a period that may change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    since: Instant,
    /// 0 to 1: how much of the jitter is taken.
    random: f64,
    pace: Pace,
    until: Instant,
}

impl Wait {
    fn new(pace: Pace) -> Self {
        let random = rand::rng().random_range(0.0..=1.0);
        let mut wait = Self { since: Instant::now(), random, pace, until: Instant::now() };
        wait.until = wait.end(pace);
        wait
    }

    fn end(&self, pace: Pace) -> Instant {
        let part = 1.0 - self.random * f64::from(pace.jitter_percent.min(100)) / 100.0;
        self.since + pace.period.mul_f64(part)
    }

    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Counts from the same beginning. What is over by now ends soon, at random, and no later than it would have.
    fn rearm(&mut self, pace: Pace) {
        if pace == self.pace {
            return;
        }
        self.pace = pace;
        let (now, end) = (Instant::now(), self.end(pace));
        self.until = if end > now {
            end
        } else {
            let jitter = pace.period.mul_f64(f64::from(pace.jitter_percent.min(100)) / 100.0);
            let spread = jitter.max(SPREAD.min(pace.period)).mul_f64(rand::rng().random_range(0.0..=1.0));
            self.until.max(now).min(now + spread)
        };
    }
}

#[cfg(test)]
mod tests;
