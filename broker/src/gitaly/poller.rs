//! Repositories on Gitaly servers, followed: one poller a repository, however many streams read from it, and a file is
//! fetched once a commit. The same shape as `repositories`, so that one seam can hold both. Before it comes whoever
//! knows a repository's [`Source`]. It polls nothing that nobody reads.

use super::{Fault, Gitaly, GitalyError, ManifestLimits, ManifestPath, Manifests, Source};
use crate::{
    policies::{Followed, Follower, Followers, Pacing, Rhythm, Who},
    repositories::{CommitId, Reference},
};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use rand::Rng;
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// For one look at the head, its turn included.
const LOOK: Duration = Duration::from_secs(30);
/// How long a look waits for its turn: it can as well be made a period later, and whoever reads a file or opens a page
/// waits behind all looks that wait already.
const TURN: Duration = Duration::from_secs(1);
/// The same for a look that somebody waits for: the first one, and that after a push.
const AWAITED_TURN: Duration = Duration::from_secs(10);
/// From a push to a look at a server that failed the last one; it may be well again, and others look at it too.
const HASTE: Duration = Duration::from_secs(1);
/// Between two looks at what does not change.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// For one file, its turn included.
const READ: Duration = Duration::from_secs(30);
/// Files of the newest commit that are kept; a project with more agents reads some of them again.
const FILES_KEPT: usize = 64;

/// After the first and after any further attempt to reach a server that is away.
const AWAY: Duration = Duration::from_secs(2);
const AWAY_MAX: Duration = Duration::from_secs(4);

/// The newest commit, or why there is none.
pub type Head = Result<CommitId, GitalyError>;

/// When to try again what failed; the default is what kas does, spread out. How often to look where nothing failed is
/// [`Pacing`]'s business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// After the first failure; doubled after each further one, plus up to as much again at random.
    pub retry: Duration,
    /// At most this long after a failure, before the random part.
    pub retry_max: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self { retry: Duration::from_secs(10), retry_max: Duration::from_secs(60) }
    }
}

/// Pollers of repositories, shared by all streams that read from the same one.
#[derive(Debug)]
pub struct Pollers {
    gitaly: Arc<Gitaly>,
    followed: Mutex<HashMap<Key, Weak<Repository>>>,
    periods: Periods,
    pacing: (Pacing, Followed),
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    address: String,
    token: [u8; 32],
    storage_name: String,
    relative_path: String,
    reference: Reference,
}

/// One repository and the newest commit of one of its references.
#[derive(Debug)]
pub struct Repository {
    gitaly: Arc<Gitaly>,
    source: Arc<Current>,
    head: watch::Sender<Head>,
    look: Arc<Notify>,
    followers: Arc<Followers>,
    files: Mutex<Files>,
    _stop: DropGuard,
}

/// Where the repository is, as Rails said it last: a project's name and its server's features change.
#[derive(Debug)]
struct Current(Mutex<Arc<Source>>);

impl Current {
    fn get(&self) -> Arc<Source> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, source: &Source) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(source.clone());
    }
}

type Content = Result<Option<Bytes>, GitalyError>;
type Fetch = BoxFuture<'static, Content>;
/// Commit, path, limit.
type FileKey = (CommitId, String, u64);

#[derive(Debug, Default)]
struct Files {
    /// Of the newest commit only.
    known: HashMap<FileKey, Option<Bytes>>,
    /// Gone when the last who waits is.
    asked: HashMap<FileKey, WeakShared<Fetch>>,
}

impl Pollers {
    /// Nothing is polled until somebody follows it, and nothing after `stop`.
    pub fn new(
        gitaly: Arc<Gitaly>,
        periods: Periods,
        pacing: (Pacing, Followed),
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self { gitaly, followed: Mutex::default(), periods, pacing, stop, tasks }
    }

    /// The poller of this repository; started by its first reader, stopped after its last. Waits for the first look.
    /// A changed address or token makes it another repository; a new name of the project and changed features take effect
    /// with the next look.
    pub async fn follow(&self, source: &Source) -> Arc<Repository> {
        self.follow_reference(source, &Reference::Default).await
    }

    /// [`Pollers::follow`] for any reference: one poller for each that somebody reads. A commit is looked for until it is
    /// there, and not after.
    pub async fn follow_reference(&self, source: &Source, reference: &Reference) -> Arc<Repository> {
        let repository = self.enter(source, reference);
        let mut head = repository.head();
        let first = head.wait_for(|head| !matches!(head, Err(GitalyError::NotAsked)));
        let _ = self.stop.run_until_cancelled(first).await;
        repository
    }

    /// Looks at once at every followed repository of this project, for somebody pushed to it.
    pub fn pushed(&self, project_path: &str) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        for repository in followed.values().filter_map(Weak::upgrade) {
            if repository.source.get().repository.gl_project_path == project_path {
                repository.look.notify_one();
            }
        }
    }

    fn enter(&self, source: &Source, reference: &Reference) -> Arc<Repository> {
        let key = Key {
            address: source.server.address.clone(),
            token: source.server.token.hash(),
            storage_name: source.repository.storage_name.clone(),
            relative_path: source.repository.relative_path.clone(),
            reference: reference.clone(),
        };
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = followed.get(&key).and_then(Weak::upgrade) {
            known.source.set(source);
            return known;
        }
        followed.retain(|_, repository| repository.strong_count() > 0);
        let stop = self.stop.child_token();
        let repository = Arc::new(Repository {
            gitaly: Arc::clone(&self.gitaly),
            source: Arc::new(Current(Mutex::new(Arc::new(source.clone())))),
            head: watch::Sender::new(Err(GitalyError::NotAsked)),
            look: Arc::default(),
            followers: Followers::new(self.pacing.0.clone(), self.pacing.1),
            files: Mutex::default(),
            _stop: stop.clone().drop_guard(),
        });
        followed.insert(key, Arc::downgrade(&repository));
        let (head, look) = (repository.head.clone(), Arc::clone(&repository.look));
        let (gitaly, source) = (Arc::clone(&self.gitaly), Arc::clone(&repository.source));
        let reference = reference.clone();
        let plan = Plan { periods: self.periods, fixed: reference.is_fixed() };
        let rhythm = repository.followers.rhythm();
        self.tasks.spawn(async move {
            let name = || source.get().name().to_owned();
            let (gitaly, reference) = (&gitaly, &reference);
            let ask = |turn| {
                let source = source.get();
                async move { gitaly.look(&source, reference, (turn, Instant::now() + LOOK)).await }
            };
            stop.run_until_cancelled(poll(name, ask, head, &look, (plan, rhythm))).await;
        });
        repository
    }
}

impl Repository {
    /// The newest commit now and at every change. A server that is away for a while does not take back a commit that
    /// is known.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Looks as often as this one may want, too, while the answer lives.
    pub fn followed_by(&self, who: Who, followed: Followed) -> Follower {
        self.followers.enter(followed, who)
    }

    /// The bytes of a file at a commit; `None` if there is no such file. All who ask for the same file at the same time
    /// share one call and its failure; what was read at the newest commit is kept until there is a newer one.
    ///
    /// # Errors
    /// As [`Gitaly::read`].
    pub async fn read(&self, commit: &CommitId, file: &str, limit: u64) -> Content {
        let key = (Arc::clone(commit), file.to_owned(), limit);
        let content = match self.known_or_asked(&key) {
            Ok(known) => return Ok(known),
            Err(asked) => asked.await?,
        };
        let newest = self.head.borrow().as_ref().is_ok_and(|head| head == commit);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if newest {
            files.known.retain(|(known, ..), _| known == commit);
            if files.known.len() < FILES_KEPT {
                files.known.insert(key, content.clone());
            }
        }
        Ok(content)
    }

    /// The manifests that `paths` select at a commit.
    ///
    /// # Errors
    /// As [`Gitaly::manifests`].
    pub async fn manifests(
        &self,
        commit: &CommitId,
        paths: &[ManifestPath],
        limits: ManifestLimits,
    ) -> Result<Manifests, GitalyError> {
        self.gitaly.manifests(&self.source.get(), commit, paths, limits).await
    }

    fn known_or_asked(&self, key: &FileKey) -> Result<Option<Bytes>, Shared<Fetch>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = files.known.get(key) {
            return Ok(known.clone());
        }
        if let Some(asked) = files.asked.get(key).and_then(WeakShared::upgrade) {
            return Err(asked);
        }
        let (gitaly, source, deadline) = (Arc::clone(&self.gitaly), self.source.get(), Instant::now() + READ);
        let (commit, file, limit) = key.clone();
        let fetch = async move { gitaly.read(&source, &commit, &file, limit, deadline).await };
        let asked = fetch.boxed().shared();
        files.asked.retain(|_, asked| asked.upgrade().is_some());
        files.asked.extend(asked.downgrade().map(|weak| (key.clone(), weak)));
        Err(asked)
    }
}

#[derive(Clone, Copy)]
struct Plan {
    periods: Periods,
    /// What was found once stays.
    fixed: bool,
}

/// Until the next look.
enum Pause {
    /// As long as those who follow want.
    Period,
    /// As long as this.
    For(Duration),
}

impl Plan {
    /// The pause after an answer.
    fn pause(&self, found: bool) -> Pause {
        if found && self.fixed { Pause::For(FOR_EVER) } else { Pause::Period }
    }
}

/// Looks again and again, and tells of each change. `ask` is told how long it may wait for its turn.
async fn poll<F>(
    name: impl Fn() -> String,
    ask: impl Fn(Duration) -> F,
    head: watch::Sender<Head>,
    look: &Notify,
    (plan, mut rhythm): (Plan, Rhythm),
) where
    F: Future<Output = Head>,
{
    let mut failures = 0_u32;
    let mut awaited = true;
    loop {
        let now = ask(if awaited { AWAITED_TURN } else { TURN }).await;
        let unknown = head.borrow().is_err();
        let pause = match &now {
            Ok(_) => {
                failures = 0;
                awaited = false;
                plan.pause(true)
            }
            // Nobody failed: too many look at this server, and they take turns in skipping one.
            Err(error @ GitalyError::Throttled { .. }) => {
                tracing::debug!(repository = name(), %error, "looks for new commits a period later");
                awaited &= unknown;
                plan.pause(false)
            }
            // An answer, too: the first push is noticed as soon as any other.
            Err(error) if is_answer(error) => {
                if *head.borrow() != now {
                    tracing::info!(repository = name(), %error, "no commit to look at yet");
                }
                failures = 0;
                awaited = false;
                plan.pause(false)
            }
            Err(error) => {
                let pause = again(plan.periods, failures, error.is_away());
                let retry_in = tracing::field::debug(pause);
                // Once, not at every attempt: a server that is down for a night fills no disk.
                if failures == 0 {
                    tracing::warn!(repository = name(), %error, retry_in, "cannot look for new commits");
                } else {
                    tracing::debug!(repository = name(), %error, retry_in, failures, "still cannot look for new commits");
                }
                failures = failures.saturating_add(1);
                awaited = false;
                Pause::For(pause)
            }
        };
        head.send_if_modified(|last| tell(&name, last, now));
        let mut wait = rhythm.wait();
        let fixed = match pause {
            Pause::For(pause) => Some(Instant::now() + pause),
            Pause::Period => None,
        };
        let over = async {
            match fixed {
                Some(until) => sleep_until(until).await,
                None => rhythm.over(&mut wait).await,
            }
        };
        tokio::select! {
            () = over => {}
            () = look.notified() => {
                awaited = true;
                // A push may mean that a server which did not answer is back, and more pushes mean no more than one.
                if let (Some(until), 1..) = (fixed, failures) {
                    sleep_until(until.min(Instant::now() + HASTE)).await;
                }
            }
        }
    }
}

fn tell(name: impl Fn() -> String, last: &mut Head, now: Head) -> bool {
    let known = last.is_ok();
    match &now {
        Ok(commit) if last.as_ref() != Ok(commit) => {
            tracing::info!(repository = name(), commit_id = %commit, "new commit");
        }
        Err(error) if known && keeps_head(error) => return false,
        Err(GitalyError::Throttled { .. }) if !matches!(last, Err(GitalyError::NotAsked)) => return false,
        _ if *last == now => return false,
        _ => {}
    }
    *last = now;
    true
}

/// Whether the last commit is still the best that is known: not where the repository says that it has none.
fn keeps_head(error: &GitalyError) -> bool {
    error.fault() == Fault::Transient && !is_answer(error)
}

/// Whether the server says that there is no such commit.
fn is_answer(error: &GitalyError) -> bool {
    matches!(error, GitalyError::NoDefaultBranch { .. } | GitalyError::NoSuchReference { .. })
}

/// How long to wait after so many failures. A server that is `away` is looked for every few seconds: that it is back is
/// noticed at once, and all that look for it together keep to its call rate.
pub(crate) fn again(periods: Periods, failures: u32, away: bool) -> Duration {
    let periods = match away {
        true => Periods { retry: periods.retry.min(AWAY), retry_max: periods.retry_max.min(AWAY_MAX) },
        false => periods,
    };
    retry(periods, failures, rand::rng().random_range(0.0..=1.0))
}

/// The pause after so many failures and one more. `random` is between 0 and 1.
fn retry(periods: Periods, failures: u32, random: f64) -> Duration {
    let doubled = periods.retry.saturating_mul(2_u32.saturating_pow(failures));
    doubled.min(periods.retry_max).mul_f64(1.0 + random)
}

#[cfg(test)]
mod tests;
