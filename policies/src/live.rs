//! The policy files of a directory, in force while they change.
//!
//! Every process with policies keeps one. Before it, `load` reads the files and `postern_certs::watch` tells when to. After
//! it, edge and broker ask [`Live::set`] for each decision. A set is swapped as a whole, and only for one without a problem
//! that nobody wrote to while it was read. It tells subscribers that there is another one and never calls anybody.

use crate::load::{Loaded, is_policy_file, load};
use crate::{PolicySet, Problem, Problems, diff};
use arc_swap::{ArcSwap, Guard};
use postern_certs::watch::{DirectoryWatch, Snapshot};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod edits;
#[cfg(test)]
mod tests;

/// Bad files are tried again without another change: exhausted file descriptors and a network file system that is away both
/// pass without one.
const RETRY: Duration = Duration::from_secs(10);
/// Files that were being written so many times in a row, a second apart, are told about.
const UNSETTLED_AT_MOST: u32 = 5;
/// At start nobody waits: so many readings must do.
const FIRST_READINGS: u32 = 20;
/// Of one set of problems; the pages have all of them.
const LOGGED_PROBLEMS: usize = 20;
/// Of one change; `postern policy diff` has all of them.
const LOGGED_CHANGES: usize = 20;

/// Policies in force. A clone is the same one.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    directory: Option<PathBuf>,
    load: Loader,
    set: ArcSwap<PolicySet>,
    generation: watch::Sender<u64>,
    state: Mutex<State>,
}

type Loader = Box<dyn Fn(&Path) -> Result<Loaded, Problems> + Send + Sync>;

/// What goes with the set in force.
struct State {
    fingerprint: String,
    since: Instant,
    bad: Option<Bad>,
}

/// The files as they are now.
struct Bad {
    problems: Problems,
    since: Instant,
}

/// What is in force, for people and metrics.
#[derive(Clone, Debug)]
pub struct Status {
    /// `None`: no policies, only the program's own configuration.
    pub directory: Option<PathBuf>,
    /// Counts the changes that this process has put in force; the start is 1.
    pub generation: u64,
    /// Twelve hexadecimal digits of the SHA-256 of all documents: the same in every process that has the same files in
    /// force. Empty without a directory.
    pub fingerprint: String,
    pub age: Duration,
    /// What is wrong with the files as they are now; empty: they are in force.
    pub problems: Vec<Problem>,
    pub more_problems: usize,
    /// Since when the files are bad.
    pub bad_for: Option<Duration>,
}

impl Status {
    /// As `GET /policies` of every program shows it: `directory`, `generation`, `fingerprint`, `age_seconds`, `problems`
    /// (a text each), `bad_for_seconds` (`null`: they are in force).
    pub fn page(&self) -> serde_json::Value {
        let mut problems: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        if self.more_problems > 0 {
            problems.push(format!("and {} more problems", self.more_problems));
        }
        serde_json::json!({
            "directory": self.directory,
            "generation": self.generation,
            "fingerprint": self.fingerprint,
            "age_seconds": self.age.as_secs_f64(),
            "problems": problems,
            "bad_for_seconds": self.bad_for.map(|time| time.as_secs_f64()),
        })
    }
}

impl Live {
    /// Reads the directory. Blocking; at start, when a problem is an error. `None`: no policies ever.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn open(directory: Option<&Path>) -> Result<Self, Problems> {
        Self::with_loader(directory, load)
    }

    fn with_loader(
        directory: Option<&Path>,
        load: impl Fn(&Path) -> Result<Loaded, Problems> + Send + Sync + 'static,
    ) -> Result<Self, Problems> {
        let load: Loader = Box::new(load);
        let loaded = match directory {
            Some(directory) => first_reading(directory, &load)?,
            None => Loaded::default(),
        };
        Ok(Self(Arc::new(Inner {
            directory: directory.map(Path::to_owned),
            load,
            set: ArcSwap::from_pointee(loaded.set),
            generation: watch::Sender::new(1),
            state: Mutex::new(State { fingerprint: loaded.fingerprint, since: Instant::now(), bad: None }),
        })))
    }

    /// What is in force, to be held for one decision.
    pub fn set(&self) -> Guard<Arc<PolicySet>> {
        self.0.set.load()
    }

    /// Changes with every set that is put in force. [`Live::set`] is the new one by then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    pub fn status(&self) -> Status {
        let state = self.0.state();
        let bad = state.bad.as_ref();
        Status {
            directory: self.0.directory.clone(),
            generation: *self.0.generation.borrow(),
            fingerprint: state.fingerprint.clone(),
            age: state.since.elapsed(),
            problems: bad.map(|bad| bad.problems.list.clone()).unwrap_or_default(),
            more_problems: bad.map_or(0, |bad| bad.problems.more),
            bad_for: bad.map(|bad| bad.since.elapsed()),
        }
    }

    /// Reads the files again whenever they change, until `stop`. One task of the process should.
    pub async fn keep_fresh(&self, stop: CancellationToken) {
        match self.0.directory.clone() {
            // A file system that does not answer holds up nothing but this.
            Some(directory) => drop(stop.run_until_cancelled(self.follow(directory)).await),
            None => stop.cancelled().await,
        }
    }

    async fn follow(&self, directory: PathBuf) {
        let watch = DirectoryWatch::start(directory.clone(), is_policy_file).await;
        let mut unsettled = 0;
        // The first round closes the gap between the first reading and the watch.
        loop {
            let (inner, directory) = (Arc::clone(&self.0), directory.clone());
            let read = spawn_blocking(move || {
                let before = Snapshot::take(&directory, is_policy_file);
                let verdict = inner.read_and_judge(&directory, &before, unsettled + 1 == UNSETTLED_AT_MOST);
                (before, verdict)
            });
            let Ok((known, verdict)) = read.await else {
                // Or the runtime ends, and this task with it.
                tracing::error!("following the policies failed inside postern; it is tried again");
                sleep(RETRY).await;
                continue;
            };
            if verdict == Verdict::Unsettled {
                unsettled += 1;
                watch.quiet().await;
                continue;
            }
            unsettled = 0;
            tokio::select! {
                () = watch.changed_since(&known) => {}
                () = sleep(RETRY), if verdict == Verdict::Bad => {}
            }
        }
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.status()).finish()
    }
}

/// What became of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    InForce,
    Bad,
    /// Somebody was writing: what was read may be half of it and was dropped.
    Unsettled,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocking. `patience_ends`: files that are still being written are a problem.
    fn read_and_judge(&self, directory: &Path, before: &Snapshot, patience_ends: bool) -> Verdict {
        if before.settled() {
            let read = std::panic::catch_unwind(AssertUnwindSafe(|| (self.load)(directory)));
            if *before == Snapshot::take(directory, is_policy_file) {
                return self.judge(read.unwrap_or_else(|_| {
                    let found = "reading the policies failed inside Postern";
                    Err(trouble(
                        directory,
                        found,
                        "please report it with these files and with what the log says before this",
                    ))
                }));
            }
        }
        if patience_ends { self.judge(Err(endless(directory))) } else { Verdict::Unsettled }
    }

    fn judge(&self, read: Result<Loaded, Problems>) -> Verdict {
        match read {
            Ok(loaded) => {
                self.accept(loaded);
                Verdict::InForce
            }
            Err(problems) => {
                self.refuse(problems);
                Verdict::Bad
            }
        }
    }

    fn accept(&self, loaded: Loaded) {
        let Loaded { set, fingerprint, documents } = loaded;
        let set = Arc::new(set);
        let mut state = self.state();
        let recovered = state.bad.take().is_some();
        // Also where nothing changed in meaning: documents may be in other files now.
        let before = self.set.swap(Arc::clone(&set));
        if state.fingerprint != fingerprint {
            state.fingerprint = fingerprint;
            state.since = Instant::now();
            self.generation.send_modify(|generation| *generation += 1);
            let (generation, fingerprint) = (*self.generation.borrow(), &state.fingerprint);
            tracing::info!(generation, %fingerprint, documents, "changed policies are in force");
            drop(state);
            tell_changes(&before, &set);
        } else if recovered {
            tracing::info!(fingerprint = %state.fingerprint, documents, "the policy files are good again and say what is in force");
        }
    }

    fn refuse(&self, problems: Problems) {
        let mut state = self.state();
        if state.bad.as_ref().is_some_and(|bad| bad.problems == problems) {
            return;
        }
        for problem in problems.list.iter().take(LOGGED_PROBLEMS) {
            tracing::error!(problem = %problem, "bad policy; the last good ones stay in force");
        }
        let more = problems.more + problems.list.len().saturating_sub(LOGGED_PROBLEMS);
        if more > 0 {
            tracing::error!(more, "bad policies: there are more problems than these");
        }
        let since = state.bad.as_ref().map_or_else(Instant::now, |bad| bad.since);
        state.bad = Some(Bad { problems, since });
    }
}

/// Says what a change did, after it was done.
fn tell_changes(before: &PolicySet, after: &PolicySet) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let changes = diff(before, after);
    for change in changes.iter().take(LOGGED_CHANGES) {
        tracing::info!(change = %change, "what the policies say has changed");
    }
    if let more @ 1.. = changes.len().saturating_sub(LOGGED_CHANGES) {
        tracing::info!(more, "what the policies say has changed in more ways");
    }
}

fn first_reading(directory: &Path, load: &Loader) -> Result<Loaded, Problems> {
    for _ in 0..FIRST_READINGS {
        let before = Snapshot::take(directory, is_policy_file);
        let read = load(directory);
        if before == Snapshot::take(directory, is_policy_file) {
            return read;
        }
    }
    Err(endless(directory))
}

fn endless(directory: &Path) -> Problems {
    trouble(
        directory,
        "its files change all the time, also while they are read",
        "files that stay as they are; write a new file and rename it over the old one",
    )
}

fn trouble(directory: &Path, found: &str, wanted: &str) -> Problems {
    let problem = Problem {
        file: directory.to_owned(),
        line: None,
        column: None,
        path: String::new(),
        found: found.to_owned(),
        wanted: wanted.to_owned(),
    };
    Problems { list: vec![problem], more: 0 }
}
