//! The manifests at a commit: which files an agent's paths select, then their bytes in pieces, read from the server as
//! fast as the caller takes them. Before it comes a request for objects, after it the agent. It parses no manifest.

use super::{
    Gitaly, GitalyError, Source,
    blob::{Blob, Opened},
    selection::{Limits, Listing, ManifestPath, Selection},
};
use crate::repositories::CommitId;
use bytes::Bytes;
use std::{collections::VecDeque, sync::Arc};
use tokio::time::Instant;

/// The longest [`Piece`], in bytes.
pub const PIECE_MAX: usize = 128 << 10;

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

impl Manifests {
    pub(super) async fn select(
        gitaly: Arc<Gitaly>,
        source: Source,
        commit: CommitId,
        paths: &[ManifestPath],
        limits: Limits,
    ) -> Result<Self, GitalyError> {
        let mut selection = Selection::new(paths, limits)?;
        while let Some(directory) = selection.next()? {
            let (name, recursive) = (directory.0.as_str(), directory.1);
            let listing = list(&gitaly, &source, &commit, (name, recursive), limits.files).await?;
            selection.listed(directory, listing);
        }
        let files = selection.files();
        let remaining = limits.total_bytes;
        let mut manifests = Self { gitaly, source, commit, limits, files, remaining, open: None };
        manifests.open_next().await?;
        Ok(manifests)
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
            if !self.open_next().await? {
                return Ok(None);
            }
        }
    }

    /// Opens the next file; `false` after the last. Safe to cancel.
    async fn open_next(&mut self) -> Result<bool, GitalyError> {
        let deadline = Instant::now() + self.gitaly.step_timeout;
        let Some(file) = self.files.front() else { return Ok(false) };
        let blob = self.open(file, deadline).await?;
        self.remaining -= blob.size();
        let file = self.files.pop_front().expect("it was there a moment ago");
        self.open = Some(Open { file, blob, unread: Bytes::new(), handed_out: false });
        Ok(true)
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
    gitaly.list(source, Some(commit), directory, deadline, visit).await?;
    Ok(listing)
}
