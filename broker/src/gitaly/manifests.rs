//! The manifests at a commit: which files an agent's globs select, then their bytes in pieces, read from the server as
//! fast as the caller takes them. Before it comes a request for objects, after it the agent. It parses no manifest.

use super::{
    Gitaly, GitalyError, Source,
    blob::{Blob, Opened},
    glob::Glob,
};
use crate::repositories::CommitId;
use bytes::Bytes;
use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
};
use tokio::time::Instant;

/// The longest [`Piece`], in bytes.
pub const PIECE_MAX: usize = 128 << 10;

/// What an agent may ask for; the default is what kas allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Globs in one request.
    pub paths: usize,
    /// Files in the directories of all globs, counted again for each glob, matching or not.
    pub files: usize,
    /// Of one file.
    pub file_bytes: u64,
    /// Of all files together.
    pub total_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { paths: 100, files: 1_000, file_bytes: 5 << 20, total_bytes: 20 << 20 }
    }
}

/// A part of a file, at most [`PIECE_MAX`] long. An empty file is one empty piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// From the repository's root; the same for all pieces of a file, which follow each other.
    pub source: Arc<str>,
    /// Of the file, in order.
    pub data: Bytes,
}

/// The selected files, not yet read.
pub struct Manifests {
    gitaly: Arc<Gitaly>,
    source: Source,
    commit: CommitId,
    limits: Limits,
    files: VecDeque<Arc<str>>,
    remaining: u64,
    open: Option<Open>,
}

struct Open {
    file: Arc<str>,
    blob: Box<Blob>,
    unread: Bytes,
    handed_out: bool,
}

type Listing = Vec<Vec<u8>>;

impl Manifests {
    pub(super) async fn select(
        gitaly: Arc<Gitaly>,
        source: Source,
        commit: CommitId,
        globs: &[String],
        limits: Limits,
    ) -> Result<Self, GitalyError> {
        if globs.len() > limits.paths {
            return Err(GitalyError::TooManyPaths { count: globs.len(), limit: limits.paths });
        }
        let parse = |text: &String| {
            Glob::parse(text).map_err(|reason| GitalyError::Glob { glob: text.clone(), reason })
        };
        let globs = globs.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut listings: HashMap<(&str, bool), Listing> = HashMap::new();
        let (mut visited, mut files, mut selected) = (0, VecDeque::new(), HashSet::new());
        for glob in &globs {
            let directory = glob.directory();
            let listing = match listings.entry(directory) {
                Entry::Occupied(listed) => listed.into_mut(),
                Entry::Vacant(missing) => {
                    missing.insert(list(&gitaly, &source, &commit, directory, limits.files).await?)
                }
            };
            visited += listing.len();
            if visited > limits.files {
                return Err(GitalyError::TooManyFiles { limit: limits.files });
            }
            for path in listing {
                let name = String::from_utf8_lossy(path);
                if !glob.matches(&name) || is_hidden(&name) {
                    continue;
                }
                if name.as_bytes() != path.as_slice() {
                    return Err(GitalyError::Name { file: name.into_owned() });
                }
                let file: Arc<str> = name.into();
                if !selected.insert(Arc::clone(&file)) {
                    return Err(GitalyError::SelectedTwice { file: file.as_ref().to_owned() });
                }
                files.push_back(file);
            }
        }
        let remaining = limits.total_bytes;
        Ok(Self { gitaly, source, commit, limits, files, remaining, open: None })
    }

    /// The commit that is read.
    pub fn commit(&self) -> &CommitId {
        &self.commit
    }

    /// The next piece; `None` after the last. Safe to cancel.
    ///
    /// # Errors
    /// As [`GitalyError::fault`] says; after one, there is nothing more to be had.
    pub async fn next(&mut self) -> Result<Option<Piece>, GitalyError> {
        loop {
            let deadline = Instant::now() + self.gitaly.step_timeout;
            if let Some(open) = &mut self.open {
                if open.unread.is_empty()
                    && let Some(data) = open.blob.piece(deadline).await?
                {
                    open.unread = data;
                }
                let length = open.unread.len().min(PIECE_MAX);
                if length > 0 || !open.handed_out {
                    open.handed_out = true;
                    let data = open.unread.split_to(length);
                    return Ok(Some(Piece { source: Arc::clone(&open.file), data }));
                }
                self.open = None;
            }
            let Some(file) = self.files.front() else { return Ok(None) };
            let blob = self.open(file, deadline).await?;
            self.remaining -= blob.size();
            let file = self.files.pop_front().expect("it was there a moment ago");
            self.open = Some(Open { file, blob, unread: Bytes::new(), handed_out: false });
        }
    }

    async fn open(&self, file: &str, deadline: Instant) -> Result<Box<Blob>, GitalyError> {
        let limit = self.limits.file_bytes.min(self.remaining);
        match self.gitaly.open(&self.source, &self.commit, file, limit, deadline).await? {
            Opened::Blob(blob) => Ok(blob),
            Opened::Missing => {
                Err(GitalyError::Missing { file: file.to_owned(), commit: self.commit.to_string() })
            }
            Opened::TooLarge if limit < self.limits.file_bytes => {
                Err(GitalyError::AllTooLarge { file: file.to_owned(), limit: self.limits.total_bytes })
            }
            Opened::TooLarge => {
                let commit = self.commit.to_string();
                Err(GitalyError::TooLarge { file: file.to_owned(), commit, limit })
            }
        }
    }
}

async fn list(
    gitaly: &Gitaly,
    source: &Source,
    commit: &CommitId,
    directory: (&str, bool),
    limit: usize,
) -> Result<Listing, GitalyError> {
    let deadline = Instant::now() + gitaly.step_timeout;
    let mut listing = Listing::new();
    let visit = |entry: postern_wire::proto::gitaly::TreeEntry| {
        if listing.len() == limit {
            return Err(GitalyError::TooManyFiles { limit });
        }
        listing.push(entry.path.to_vec());
        Ok(())
    };
    gitaly.list(source, commit, directory, deadline, visit).await?;
    Ok(listing)
}

/// Whether it is below a directory whose name starts with a dot. A file's own name may.
fn is_hidden(path: &str) -> bool {
    path.rsplit('/').skip(1).any(|directory| directory.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_hide_files() {
        for (path, hidden) in [
            ("a", false),
            (".a", false),
            ("b/.a", false),
            (".b/a", true),
            ("c/.b/a", true),
            ("c/b./a", false),
        ] {
            assert_eq!(is_hidden(path), hidden, "{path}");
        }
    }
}
