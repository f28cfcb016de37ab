//! Tells when files change: certificates, CA bundles, tokens, identity files. Before it: paths. After it:
//! whoever reads the files does so again. It never reads content, and an event source that fails or runs dry
//! costs time, not changes: it then looks every half a minute.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;

mod directory;
#[cfg(test)]
mod tests;
mod way;

pub use directory::{DirectoryWatch, Snapshot, Wanted};

/// Quiet time after which a burst of changes counts as one: certificate and key are rarely written at once. Short
/// enough that a change is in force 100 ms after it was made.
const SETTLE: Duration = Duration::from_millis(30);
/// Files that are written without end must not put off a change for ever.
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);
/// For network file systems, exhausted inotify limits and links that lead through directories nobody watches.
const POLL: Duration = Duration::from_secs(30);

/// Why a set of files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The list of files is empty.
    #[error("no file to watch")]
    NoFile,
    /// The path has no file name, as `/` and `..` have none.
    #[error("cannot watch {}: not a path to a file", .path.display())]
    NotAFile { path: PathBuf },
}

/// Watches files through their directories, so that a file may be written in place, renamed over, deleted and
/// made again, or swapped by a symbolic link further up, as Kubernetes does with ConfigMaps and Secrets
/// (`..data`). A file need not exist yet; appearing and disappearing are changes too.
pub struct FileWatch {
    files: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    /// Holds one wake-up at most: events are a hint to look, so a thousand of them say no more than one.
    wake: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<DirectoryId, PathBuf>,
}

/// Device, inode and birth: a directory that was made anew under its old name must be watched anew, and the
/// kernel gives inodes out again. One directory under two names must be watched once: the kernel has one
/// watch for both.
type DirectoryId = (u64, u64, Option<SystemTime>);

/// What `stat` says of a file, links followed. The change time (ctime) cannot be set back, so no write goes
/// unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl FileWatch {
    /// Starts to watch: changes from here on are seen. Create it before reading the files, or read them once
    /// more after. Where the system has no watches left, polling (every 30 s) takes over and a warning says
    /// so.
    ///
    /// # Errors
    /// [`WatchError`] for an empty list and for a path that cannot be a file's.
    pub fn new(paths: Vec<PathBuf>) -> Result<FileWatch, WatchError> {
        let mut watch = FileWatch::polling(paths)?;
        let wake = Arc::clone(&watch.wake);
        // Runs on notify's own thread: leave a mark and return.
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| only_read(&event.kind)) {
                return;
            }
            wake.notify_one();
        };
        match notify::recommended_watcher(on_event) {
            Ok(watcher) => watch.watcher = Some(watcher),
            Err(error) => {
                tracing::warn!(error = %error, "no file events from the system; files are polled every 30 s instead");
            }
        }
        watch.follow_directories();
        watch.seen = watch.stamps();
        Ok(watch)
    }

    fn polling(files: Vec<PathBuf>) -> Result<FileWatch, WatchError> {
        if files.is_empty() {
            return Err(WatchError::NoFile);
        }
        if let Some(path) = files.iter().find(|path| path.file_name().is_none()) {
            return Err(WatchError::NotAFile { path: path.clone() });
        }
        let mut watch = FileWatch {
            files,
            seen: Vec::new(),
            wake: Arc::new(Notify::new()),
            watcher: None,
            watched: BTreeMap::new(),
        };
        watch.seen = watch.stamps();
        Ok(watch)
    }

    /// Returns when at least one of the files has changed since the last return (or since
    /// [`FileWatch::new`]), about 30 ms after the burst of changes is over, 1 s after it began at the latest.
    /// What happens to other files in the same directory puts nothing off. Changes made while nobody awaits it are not lost. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            if self.stamps() == self.seen {
                // Either way it is time to look.
                let _ = tokio::time::timeout(POLL, self.wake.notified()).await;
            }
            self.settle().await;
            // Before looking, so that no change falls between the look and the watch.
            self.follow_directories();
            let now = self.stamps();
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    async fn settle(&self) {
        let latest = Instant::now() + SETTLE_AT_MOST;
        let mut quiet = Instant::now() + SETTLE;
        let mut stamps = self.stamps();
        while tokio::time::timeout_at(quiet.min(latest), self.wake.notified()).await.is_ok() {
            if Instant::now() >= latest {
                return;
            }
            let now = self.stamps();
            if now != stamps {
                stamps = now;
                quiet = Instant::now() + SETTLE;
            }
        }
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        self.files.iter().map(|path| stamp(path)).collect()
    }

    /// Watches the directory of each file as named, and of what it leads to through links; forgets those that
    /// are no longer on the way.
    fn follow_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted = BTreeMap::new();
        for file in &self.files {
            let target = std::fs::canonicalize(file).ok();
            for path in [Some(file), target.as_ref()].into_iter().flatten() {
                let directory = directory_of(path);
                if let Ok(id) = directory_id(&directory) {
                    wanted.entry(id).or_insert(directory);
                }
            }
        }
        for directory in self.watched.iter().filter(|(id, _)| !wanted.contains_key(*id)).map(|(_, path)| path)
        {
            // Fails where the directory is gone, and its watch with it.
            let _ = watcher.unwatch(directory);
        }
        wanted.retain(|id, directory| {
            if let Some(known) = self.watched.get(id) {
                directory.clone_from(known);
                return true;
            }
            let result = watcher.watch(directory, RecursiveMode::NonRecursive);
            if let Err(error) = &result {
                let directory = directory.display();
                tracing::warn!(%directory, error = %error, "cannot watch a directory; its files are polled every 30 s");
            }
            result.is_ok()
        });
        self.watched = wanted;
    }
}

fn only_read(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn directory_id(path: &Path) -> io::Result<DirectoryId> {
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino(), found.created().ok()))
}

fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|found| stamp_of(&found))
}

fn stamp_of(found: &Metadata) -> Stamp {
    Stamp {
        device: found.dev(),
        inode: found.ino(),
        length: found.len(),
        changed: (found.ctime(), found.ctime_nsec()),
    }
}

impl Stamp {
    fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// A time before 1970 is 1970: nobody asks for more than how long ago it was.
    fn changed_at(&self) -> SystemTime {
        let (seconds, nanoseconds) = self.changed;
        let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}
