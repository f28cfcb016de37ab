//! Local git repositories as the source of agent configurations: the embedded provider beside Gitaly. One follower
//! a repository, however many agents read from it. It only reads; it never fetches, writes or runs a hook.

mod manifests;

pub use manifests::Manifests;

use super::{CommitId, Reference};
use crate::policies::{Followed, Follower, Followers, Pacing, Rhythm, Who};
use postern_certs::watch::FileWatch;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Why a repository or a file in it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryError {
    /// The path is no git repository, or not ours to read.
    #[error("cannot open the git repository {}: {reason}", path.display())]
    Open {
        /// As the identities file says.
        path: PathBuf,
        /// git's words.
        reason: String,
    },
    /// `HEAD` names a branch without a commit.
    #[error("the git repository {} has no commit yet", path.display())]
    Empty {
        /// As the identities file says.
        path: PathBuf,
    },
    /// There is no such branch, tag or commit.
    #[error("the git repository {} has no {reference}", path.display())]
    NoSuchReference {
        /// As the identities file says.
        path: PathBuf,
        /// Full name, or the commit's id.
        reference: String,
    },
    /// An object is missing or damaged.
    #[error("cannot read {file} at {commit} in {}: {reason}", path.display())]
    Object {
        /// As the identities file says.
        path: PathBuf,
        /// Path inside the repository.
        file: String,
        /// The commit that was read.
        commit: String,
        /// git's words.
        reason: String,
    },
    /// There is something under that name which is not a file.
    #[error("{file} at {commit} is not a file")]
    NotAFile {
        /// Path inside the repository.
        file: String,
        /// The commit that was read.
        commit: String,
    },
    /// The file is larger than allowed.
    #[error("{file} at {commit} has {size} bytes; {limit} are allowed")]
    TooLarge {
        /// Path inside the repository.
        file: String,
        /// The commit that was read.
        commit: String,
        /// In bytes.
        size: u64,
        /// In bytes.
        limit: u64,
    },
}

/// The latest commit, or why there is none.
pub type Head = Result<CommitId, RepositoryError>;

/// Followers of repositories, shared by all streams that read from the same one.
#[derive(Debug)]
pub struct Repositories {
    followed: Mutex<HashMap<(PathBuf, Reference), Weak<Repository>>>,
    pacing: Pacing,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// One repository and the newest commit of one of its references.
#[derive(Debug)]
pub struct Repository {
    path: PathBuf,
    head: watch::Sender<Head>,
    followers: Arc<Followers>,
    _stop: tokio_util::sync::DropGuard,
}

impl Repositories {
    /// Followers look at their repository at every change of its files, and at least as often as `pacing` says.
    pub fn new(pacing: Pacing, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { followed: Mutex::default(), pacing, stop, tasks }
    }

    /// The follower of this path; started by its first reader, stopped after its last.
    pub async fn follow(&self, path: &Path) -> Arc<Repository> {
        self.follow_reference(path, &Reference::Default).await
    }

    /// [`Repositories::follow`] for any reference: one follower for each that somebody reads.
    pub async fn follow_reference(&self, path: &Path, reference: &Reference) -> Arc<Repository> {
        let key = (path.to_owned(), reference.clone());
        if let Some(known) = self.known(&key) {
            return known;
        }
        let first = read_head(key.clone()).await;
        let mut followed = self.followed.lock().expect("no code under this lock panics");
        if let Some(known) = followed.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        followed.retain(|_, repository| repository.strong_count() > 0);
        let stop = self.stop.child_token();
        let head = watch::Sender::new(first);
        let repository = Arc::new(Repository {
            path: path.to_owned(),
            head: head.clone(),
            followers: Followers::new(self.pacing.clone(), Followed::Configuration),
            _stop: stop.clone().drop_guard(),
        });
        followed.insert(key.clone(), Arc::downgrade(&repository));
        let following = follow(key, head, repository.followers.rhythm());
        self.tasks.spawn(async move { stop.run_until_cancelled(following).await });
        repository
    }

    fn known(&self, key: &(PathBuf, Reference)) -> Option<Arc<Repository>> {
        let followed = self.followed.lock().expect("no code under this lock panics");
        followed.get(key).and_then(Weak::upgrade)
    }
}

impl Repository {
    /// The newest commit now and at every change.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Looks as often as this one may want, too, while the answer lives.
    pub fn followed_by(&self, who: Who, followed: Followed) -> Follower {
        self.followers.enter(followed, who)
    }

    /// The bytes of a file at a commit; `None` if there is no such file.
    pub async fn read(
        &self,
        commit: &CommitId,
        file: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let (path, commit, file) = (self.path.clone(), Arc::clone(commit), file.to_owned());
        blocking(move || read_file(&path, &commit, &file, limit)).await
    }
}

async fn follow(key: (PathBuf, Reference), head: watch::Sender<Head>, mut rhythm: Rhythm) {
    let path = &key.0;
    let mut watch = FileWatch::new(watched(path, &key.1)).map_err(|error| {
        tracing::warn!(repository = %path.display(), %error, "changes are noticed by polling only");
    });
    loop {
        let changed = async {
            match &mut watch {
                Ok(watch) => watch.changed().await,
                Err(()) => std::future::pending().await,
            }
        };
        let mut wait = rhythm.wait();
        tokio::select! {
            () = rhythm.over(&mut wait) => {}
            _ = changed => {}
        }
        let now = read_head(key.clone()).await;
        head.send_if_modified(|last| {
            if *last == now {
                return false;
            }
            match &now {
                Ok(commit) => tracing::info!(repository = %path.display(), commit_id = %commit, "new commit"),
                Err(error) => tracing::error!(%error, "repository unreadable"),
            }
            *last = now;
            true
        });
    }
}

/// The files that git replaces when the reference moves: `HEAD` itself, its branch, and the packed references.
fn watched(path: &Path, reference: &Reference) -> Vec<PathBuf> {
    let nested = path.join(".git");
    let git_dir = if nested.is_dir() { nested } else { path.to_owned() };
    if let Some(name) = reference.full_name() {
        return vec![git_dir.join(name), git_dir.join("packed-refs")];
    }
    let mut files = vec![git_dir.join("HEAD"), git_dir.join("packed-refs")];
    let head = std::fs::read_to_string(git_dir.join("HEAD")).unwrap_or_default();
    if let Some(branch) = head.trim().strip_prefix("ref: ") {
        files.push(git_dir.join(branch));
    }
    files
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    tokio::task::spawn_blocking(work).await.expect("reading a repository does not panic")
}

async fn read_head((path, reference): (PathBuf, Reference)) -> Head {
    blocking(move || {
        let repository = open(&path)?;
        let id = match (&reference, reference.full_name()) {
            (Reference::Commit(id), _) => gix::ObjectId::from_hex(id.as_bytes())
                .ok()
                .and_then(|id| Some(repository.find_commit(id).ok()?.id)),
            (_, Some(name)) => repository
                .try_find_reference(name.as_str())
                .ok()
                .flatten()
                .and_then(|mut reference| reference.peel_to_id().ok())
                .and_then(|id| Some(id.object().ok()?.try_into_commit().ok()?.id)),
            (_, None) => repository.head_id().ok().map(|id| id.detach()),
        };
        match (id, reference.full_name()) {
            (Some(id), _) => Ok(id.to_hex().to_string().into()),
            (None, Some(reference)) => Err(RepositoryError::NoSuchReference { path, reference }),
            (None, None) => Err(RepositoryError::Empty { path }),
        }
    })
    .await
}

fn open(path: &Path) -> Result<gix::Repository, RepositoryError> {
    // Isolated: neither the user's nor the system's git configuration has a say here.
    let options = gix::open::Options::isolated();
    gix::open_opts(path, options)
        .map_err(|error| RepositoryError::Open { path: path.to_owned(), reason: error.to_string() })
}

fn tree_of<'a>(
    repository: &'a gix::Repository,
    commit: &str,
    object: impl Fn(String) -> RepositoryError,
) -> Result<gix::Tree<'a>, RepositoryError> {
    let id = gix::ObjectId::from_hex(commit.as_bytes()).map_err(|error| object(error.to_string()))?;
    let commit = repository.find_commit(id).map_err(|error| object(error.to_string()))?;
    commit.tree().map_err(|error| object(error.to_string()))
}

fn read_file(path: &Path, commit: &str, file: &str, limit: u64) -> Result<Option<Vec<u8>>, RepositoryError> {
    let object = |reason: String| RepositoryError::Object {
        path: path.to_owned(),
        file: file.to_owned(),
        commit: commit.to_owned(),
        reason,
    };
    let repository = open(path)?;
    let tree = tree_of(&repository, commit, object)?;
    let entry = tree.lookup_entry_by_path(file).map_err(|error| object(error.to_string()))?;
    let Some(entry) = entry else { return Ok(None) };
    if !entry.mode().is_blob() {
        return Err(RepositoryError::NotAFile { file: file.to_owned(), commit: commit.to_owned() });
    }
    let header = repository.find_header(entry.object_id()).map_err(|error| object(error.to_string()))?;
    if header.size() > limit {
        let (file, commit) = (file.to_owned(), commit.to_owned());
        return Err(RepositoryError::TooLarge { file, commit, size: header.size(), limit });
    }
    let blob = entry.object().map_err(|error| object(error.to_string()))?;
    Ok(Some(blob.detach().data))
}

#[cfg(test)]
mod tests;
