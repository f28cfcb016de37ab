//! Tells when the files of a directory change, whichever they are. Before it: the path of a directory. After it:
//! `postern-policies` reads the files again. Like the rest of `watch` it never reads content; unlike it, it never makes
//! the async threads wait for a file system.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use notify::event::ModifyKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::way::{self, Way};
use super::{DirectoryId, SETTLE_AT_MOST, Stamp, directory_id, only_read};

#[cfg(test)]
mod tests;

/// Quiet time after which a burst of changes counts as one. Longer than [`TICK`], so that what is read after it is settled.
const SETTLE: Duration = Duration::from_millis(20);
/// Two writes within this time may leave the same stamp: file systems take the time of a change from a clock that ticks
/// every 4 or 10 ms.
const TICK: Duration = Duration::from_millis(15);
/// For network file systems, which tell nobody of changes that another machine made, and for exhausted limits of inotify.
const POLL: Duration = Duration::from_secs(10);
/// A directory with more files than this is looked at no further; nobody who reads it takes as many.
const MOST_FILES: usize = 2_000;
/// Links may be swapped while they are followed; after so many rounds the next event has to do.
const ROUNDS: usize = 4;

/// Which names in the directory count.
pub type Wanted = fn(&OsStr) -> bool;

/// How the files of a directory were at one time, without their content: which there are, behind which links, and their
/// size, identity and time of change. Two that are equal had the same content between them, unless the earlier one was
/// not [settled](Snapshot::settled).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Device and inode; the times of a directory change with files that do not count.
    directory: Result<(u64, u64), io::ErrorKind>,
    links: Vec<Stamp>,
    /// The links on the way of each file, and what is behind them.
    files: BTreeMap<OsString, (Vec<Stamp>, Result<Stamp, io::ErrorKind>)>,
}

impl Snapshot {
    /// Looks at a directory. Blocking, as long as its file system likes.
    pub fn take(directory: &Path, wanted: Wanted) -> Snapshot {
        examine(&absolute(directory), wanted).0
    }

    /// Whether everything in it is old enough for another write to be told from the last one.
    pub fn settled(&self) -> bool {
        let now = SystemTime::now();
        let behind = self.files.values().filter_map(|(_, end)| end.as_ref().ok());
        let links = self.files.values().flat_map(|(links, _)| links);
        let mut stamps = self.links.iter().chain(links).chain(behind);
        stamps.all(|stamp| {
            // A change in the future was made by a clock of another machine, which says nothing about ours.
            let changed = stamp.changed_at();
            now.duration_since(changed)
                .or_else(|_| changed.duration_since(now))
                .is_ok_and(|apart| apart > TICK)
        })
    }
}

/// Watches the files of a directory: written in place, renamed over, added, removed, swapped by a symbolic link on the way
/// of the directory or of a file (as Kubernetes swaps `..data`), and the directory itself deleted, made again, moved or
/// replaced by a link. It need not exist yet.
pub struct DirectoryWatch {
    eye: Arc<Mutex<Eye>>,
    shared: Arc<Shared>,
}

/// What notify's thread sees of us.
#[derive(Default)]
struct Shared {
    /// Holds one wake-up at most: events are a hint to look.
    wake: Notify,
    interest: Mutex<Interest>,
    /// Watched directories that were moved or removed: notify forgets their watches, perhaps after we renewed them.
    gone: Mutex<BTreeSet<PathBuf>>,
}

/// Which events say anything: a directory on the way may be as busy as `/tmp`.
#[derive(Default)]
struct Interest {
    /// The watched directories, and the names in them that lead on.
    steps: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// The directory itself, without links in its path, and which names count there.
    files: Option<(PathBuf, Wanted)>,
}

struct Eye {
    directory: PathBuf,
    wanted: Wanted,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<DirectoryId, PathBuf>,
    /// Told once each.
    unwatchable: BTreeSet<PathBuf>,
    shared: Arc<Shared>,
}

impl DirectoryWatch {
    /// Starts to watch. Where the system has no watches left, polling (every 10 s) takes over and a warning says so.
    pub async fn start(directory: PathBuf, wanted: Wanted) -> DirectoryWatch {
        let watch = Self::polling(directory, wanted);
        let (eye, shared) = (Arc::clone(&watch.eye), Arc::clone(&watch.shared));
        let begun = blocking(move || {
            let mut eye = eye.lock().unwrap_or_else(PoisonError::into_inner);
            match notify::recommended_watcher(move |event| shared.told(event)) {
                Ok(watcher) => eye.watcher = Some(watcher),
                Err(error) => {
                    tracing::warn!(error = %error, "no file events from the system; files are polled every 10 s instead");
                }
            }
            eye.look();
        });
        // Where it failed, the next look goes on with what there is.
        begun.await.unwrap_or(());
        watch
    }

    fn polling(directory: PathBuf, wanted: Wanted) -> DirectoryWatch {
        let shared = Arc::new(Shared::default());
        let eye = Eye {
            directory: absolute(&directory),
            wanted,
            watcher: None,
            watched: BTreeMap::new(),
            unwatchable: BTreeSet::new(),
            shared: Arc::clone(&shared),
        };
        DirectoryWatch { eye: Arc::new(Mutex::new(eye)), shared }
    }

    /// Returns when the directory is not as in `known`: about 20 ms after a burst of changes is over, 1 s after it began
    /// at the latest. Changes made while nobody awaits it are not lost. Cancel safe.
    pub async fn changed_since(&self, known: &Snapshot) {
        let mut now = self.look().await;
        loop {
            while now == *known {
                // Either way it is time to look.
                let _ = timeout(POLL, self.shared.wake.notified()).await;
                now = self.look().await;
            }
            self.settle(now).await;
            now = self.look().await;
            if now != *known {
                return;
            }
        }
    }

    /// Returns when nothing has changed for 20 ms, after 1 s at the latest. Cancel safe.
    pub async fn quiet(&self) {
        let now = self.look().await;
        self.settle(now).await;
    }

    async fn settle(&self, mut now: Snapshot) {
        let latest = Instant::now() + SETTLE_AT_MOST;
        let mut quiet = Instant::now() + SETTLE;
        while timeout_at(quiet.min(latest), self.shared.wake.notified()).await.is_ok() {
            let next = self.look().await;
            if next != now {
                now = next;
                quiet = Instant::now() + SETTLE;
            }
            if Instant::now() >= latest {
                return;
            }
        }
    }

    async fn look(&self) -> Snapshot {
        loop {
            let eye = Arc::clone(&self.eye);
            let look = move || eye.lock().unwrap_or_else(PoisonError::into_inner).look();
            if let Some(seen) = blocking(look).await {
                return seen;
            }
            sleep(POLL).await;
        }
    }
}

/// A file system may take its time, on a thread where nobody else waits. `None`: the work panicked, and the log says so.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => {
            tracing::error!("watching files failed inside postern; they are looked at again in 10 s");
            None
        }
        // The runtime ends, and this task with it.
        Err(_) => std::future::pending().await,
    }
}

impl Shared {
    /// On notify's own thread: leave a mark and return.
    fn told(&self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else { return self.wake.notify_one() };
        if only_read(&event.kind) {
            return;
        }
        let lost = event.need_rescan() || event.paths.is_empty();
        let gone = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        let interest = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        if lost || gone {
            let watched = interest.steps.keys().filter(|path| lost || event.paths.contains(path));
            self.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(watched.cloned());
        }
        if lost || event.paths.iter().any(|path| interest.concerns(path)) {
            self.wake.notify_one();
        }
    }
}

impl Interest {
    fn concerns(&self, path: &Path) -> bool {
        if self.steps.contains_key(path) {
            return true;
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return true };
        self.steps.get(directory).is_some_and(|names| names.contains(name))
            || self.files.as_ref().is_some_and(|(files, wanted)| files == directory && wanted(name))
    }
}

impl Eye {
    /// Looks, and watches every directory on the way. What changes after a look is told.
    fn look(&mut self) -> Snapshot {
        let mut round = 1;
        loop {
            let (snapshot, interest) = examine(&self.directory, self.wanted);
            if !self.watch(interest) || round == ROUNDS {
                return snapshot;
            }
            round += 1;
        }
    }

    /// Returns whether something is watched that was not: what changed before that was told to nobody.
    fn watch(&mut self, interest: Interest) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let gone = std::mem::take(&mut *self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner));
        let Interest { steps, mut files } = interest;
        // The kernel has one watch for a directory, even if it has two names.
        let mut wanted = BTreeMap::<DirectoryId, (PathBuf, BTreeSet<OsString>)>::new();
        for (path, names) in steps {
            let Ok(id) = directory_id(&path) else { continue };
            let (known, known_names) = wanted.entry(id).or_insert_with(|| (path.clone(), BTreeSet::new()));
            known_names.extend(names);
            if let Some((files, _)) = files.as_mut().filter(|(files, _)| *files == path) {
                files.clone_from(known);
            }
        }
        self.watched.retain(|id, path| {
            let kept = !gone.contains(path) && wanted.get(id).is_some_and(|(wanted, _)| wanted == path);
            if !kept {
                // Fails where it is gone, and its watch with it.
                let _ = watcher.unwatch(path);
            }
            kept
        });
        let steps = wanted.values().cloned().collect();
        *self.shared.interest.lock().unwrap_or_else(PoisonError::into_inner) = Interest { steps, files };
        self.unwatchable.retain(|path| wanted.values().any(|(wanted, _)| wanted == path));
        let mut more = false;
        for (id, (path, _)) in wanted {
            if self.watched.contains_key(&id) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    more = true;
                    self.unwatchable.remove(&path);
                    self.watched.insert(id, path);
                }
                Err(error) => {
                    if self.unwatchable.insert(path.clone()) {
                        let directory = path.display();
                        tracing::warn!(%directory, error = %error, "cannot watch a directory; what changes in it is seen every 10 s");
                    }
                }
            }
        }
        more
    }
}

/// Only the empty path, and any path without a working directory, has none; there is nothing at either.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn examine(directory: &Path, wanted: Wanted) -> (Snapshot, Interest) {
    let mut interest = Interest::default();
    let Way { steps, links, end } = way::follow(directory);
    interest.add(steps);
    let mut snapshot = Snapshot {
        directory: end.as_ref().map(|(_, stamp)| stamp.id()).map_err(|kind| *kind),
        links,
        files: BTreeMap::new(),
    };
    let Ok((found, _)) = end else { return (snapshot, interest) };
    // Also without any file in it yet.
    interest.steps.entry(found.clone()).or_default();
    interest.files = Some((found.clone(), wanted));
    match std::fs::read_dir(&found) {
        Ok(entries) => {
            let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
            for name in names.filter(|name| wanted(name)).take(MOST_FILES) {
                let Way { steps, links, end } = way::from(found.clone(), Path::new(&name));
                // A plain file is in the directory, which is watched anyway.
                if !links.is_empty() {
                    interest.add(steps);
                }
                snapshot.files.insert(name, (links, end.map(|(_, stamp)| stamp)));
            }
        }
        Err(error) => snapshot.directory = Err(error.kind()),
    }
    (snapshot, interest)
}

impl Interest {
    fn add(&mut self, steps: Vec<(PathBuf, OsString)>) {
        for (directory, name) in steps {
            self.steps.entry(directory).or_default().insert(name);
        }
    }
}
