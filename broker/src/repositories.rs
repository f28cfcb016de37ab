//! Where configurations and manifests are: local git repositories or Gitaly, behind one shape. Before it comes whoever
//! knows an agent's [`Place`]; after it `local` or [`crate::gitaly`]. One follower a repository, however many read.

pub mod local;
mod reference;

pub use reference::{BadReference, Reference};

use crate::gitaly::{
    self, GitalyError, ManifestLimits, ManifestPath, Piece, Source,
    poller::{self, Pollers},
};
use crate::policies::{Followed, Follower, Who};
use bytes::Bytes;
use local::RepositoryError;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::watch;

/// Hexadecimal id of a commit.
pub type CommitId = Arc<str>;

/// Where the repository of a project is.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// There is none: its configuration is empty.
    #[default]
    Nowhere,
    /// A git repository in this machine's file system.
    Local(PathBuf),
    /// On a Gitaly server.
    Gitaly(Arc<Source>),
}

impl PartialEq for Place {
    /// Whether it is the same repository, asked in the same way; a server's feature flags come and go.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nowhere, Self::Nowhere) => true,
            (Self::Local(one), Self::Local(other)) => one == other,
            (Self::Gitaly(one), Self::Gitaly(other)) => {
                one.repository == other.repository
                    && one.server.address == other.server.address
                    && one.server.token == other.server.token
            }
            _ => false,
        }
    }
}

impl Eq for Place {}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// From this machine.
    #[error(transparent)]
    Local(#[from] RepositoryError),
    /// From Gitaly.
    #[error(transparent)]
    Gitaly(#[from] GitalyError),
}

impl ReadError {
    /// Whether a server is away and may be back at any moment.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Gitaly(error) if error.is_away())
    }

    /// Whether the one who wrote the file has to mend it; else it may work a moment later.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Local(error) => {
                matches!(error, RepositoryError::TooLarge { .. } | RepositoryError::NotAFile { .. })
            }
            Self::Gitaly(error) => error.fault() == gitaly::Fault::User,
        }
    }
}

/// The selected manifests at a commit, not yet read.
pub enum Manifests {
    /// On this machine.
    Local(local::Manifests),
    /// On a Gitaly server.
    Gitaly(Box<gitaly::Manifests>),
}

impl Manifests {
    /// The next piece; `None` after the last. Not before the one before was taken.
    ///
    /// # Errors
    /// As [`ReadError::is_users`] says; after one, there is nothing more to be had.
    pub async fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        match self {
            Self::Local(manifests) => manifests.next().await,
            Self::Gitaly(manifests) => Ok(manifests.next().await?),
        }
    }
}

/// All repositories that anybody reads from.
#[derive(Debug)]
pub struct Repositories {
    /// Those of this machine.
    pub local: local::Repositories,
    /// Those of Gitaly; absent without GitLab.
    pub gitaly: Option<Pollers>,
}

/// One repository, followed.
#[derive(Clone, Debug)]
pub struct Repository {
    shared: Shared,
    /// Whose policies say how often it is looked at, too.
    _follower: Arc<Follower>,
}

#[derive(Clone, Debug)]
enum Shared {
    Local(Arc<local::Repository>),
    Gitaly(Arc<poller::Repository>),
}

impl Repositories {
    /// The follower of an agent's configuration repository; started by its first reader, stopped after its last. `None`:
    /// there is no repository.
    pub async fn follow(&self, place: &Place, who: Who) -> Option<Repository> {
        match place {
            Place::Nowhere => None,
            Place::Local(path) => {
                Some(Repository::local(self.local.follow(path).await, who, Followed::Configuration))
            }
            Place::Gitaly(source) => {
                let pollers = self.gitaly.as_ref()?;
                Some(Repository::gitaly(pollers.follow(source).await, who, Followed::Configuration))
            }
        }
    }
}

impl Repository {
    /// On this machine, followed by this one as well.
    pub(crate) fn local(shared: Arc<local::Repository>, who: Who, followed: Followed) -> Self {
        let follower = Arc::new(shared.followed_by(who, followed));
        Self { shared: Shared::Local(shared), _follower: follower }
    }

    /// On a Gitaly server, followed by this one as well.
    pub(crate) fn gitaly(shared: Arc<poller::Repository>, who: Who, followed: Followed) -> Self {
        let follower = Arc::new(shared.followed_by(who, followed));
        Self { shared: Shared::Gitaly(shared), _follower: follower }
    }

    /// Its newest commit, now and at every change.
    pub fn head(&self) -> Head {
        match &self.shared {
            Shared::Local(repository) => Head::Local(repository.head()),
            Shared::Gitaly(repository) => Head::Gitaly(repository.head()),
        }
    }

    /// The bytes of a file at a commit; `None` if there is no such file.
    ///
    /// # Errors
    /// A file larger than `limit` bytes, something that is no file, and whatever keeps the repository from being read.
    pub async fn read(&self, commit: &CommitId, file: &str, limit: u64) -> Result<Option<Bytes>, ReadError> {
        match &self.shared {
            Shared::Local(repository) => Ok(repository.read(commit, file, limit).await?.map(Bytes::from)),
            Shared::Gitaly(repository) => Ok(repository.read(commit, file, limit).await?),
        }
    }

    /// The manifests that `paths` select at a commit; their names are all known then.
    ///
    /// # Errors
    /// What the paths' author got wrong, and whatever keeps the repository from being read.
    pub async fn manifests(
        &self,
        commit: &CommitId,
        paths: &[ManifestPath],
        limits: ManifestLimits,
    ) -> Result<Manifests, ReadError> {
        match &self.shared {
            Shared::Local(repository) => {
                Ok(Manifests::Local(repository.manifests(commit, paths, limits).await?))
            }
            Shared::Gitaly(repository) => {
                Ok(Manifests::Gitaly(Box::new(repository.manifests(commit, paths, limits).await?)))
            }
        }
    }
}

/// Watches the newest commit of a repository.
#[derive(Debug)]
pub enum Head {
    /// On this machine.
    Local(watch::Receiver<local::Head>),
    /// On a Gitaly server.
    Gitaly(watch::Receiver<poller::Head>),
}

impl Head {
    /// The newest commit; `None` while there is none or the repository cannot be read, which its follower logs.
    pub fn now(&mut self) -> Option<CommitId> {
        match self {
            Self::Local(head) => head.borrow_and_update().as_ref().ok().cloned(),
            Self::Gitaly(head) => head.borrow_and_update().as_ref().ok().cloned(),
        }
    }

    /// Waits until there is news since [`Head::now`]; `false` once nobody follows the repository any more.
    pub async fn changed(&mut self) -> bool {
        match self {
            Self::Local(head) => head.changed().await.is_ok(),
            Self::Gitaly(head) => head.changed().await.is_ok(),
        }
    }
}
