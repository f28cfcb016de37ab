//! The manifests at a commit of a local repository: selected as those on Gitaly are, their sizes checked before the
//! first is read, then one file in memory at a time. It parses no manifest.

use super::{CommitId, Repository, RepositoryError, blocking, open, tree_of};
use crate::{
    gitaly::{
        GitalyError, ManifestLimits, ManifestPath, PIECE_MAX, Piece,
        selection::{Listing, Selection},
    },
    repositories::ReadError,
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Directories within directories; deeper ones are nobody's manifests.
const DEPTH_MAX: usize = 64;
/// Directories that one listing goes into: a few objects of git can stand for more than anybody can visit.
const DIRECTORIES_MAX: usize = 10_000;

/// The selected files, not yet read.
pub struct Manifests {
    path: PathBuf,
    files: VecDeque<(Arc<str>, gix::ObjectId)>,
    open: Option<Open>,
}

struct Open {
    file: Arc<str>,
    unread: Bytes,
    handed_out: bool,
}

impl Repository {
    /// The manifests that `paths` select at a commit.
    ///
    /// # Errors
    /// All that the paths' author got wrong, and whatever keeps the repository from being read.
    pub async fn manifests(
        &self,
        commit: &CommitId,
        paths: &[ManifestPath],
        limits: ManifestLimits,
    ) -> Result<Manifests, ReadError> {
        let (path, commit, paths) = (self.path.clone(), Arc::clone(commit), paths.to_vec());
        let selected = move || Ok(select(&path, &commit, &paths, limits).map(|files| (path, files)));
        let (path, files) = blocking(selected).await??;
        Ok(Manifests { path, files, open: None })
    }
}

impl Manifests {
    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// Whatever keeps the repository from being read.
    pub async fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        loop {
            if let Some(open) = &mut self.open {
                let length = open.unread.len().min(PIECE_MAX);
                if length > 0 || !open.handed_out {
                    open.handed_out = true;
                    let data = open.unread.split_to(length);
                    return Ok(Some(Piece { source: Arc::clone(&open.file), data }));
                }
                self.open = None;
            }
            let Some((file, id)) = self.files.pop_front() else { return Ok(None) };
            let (path, name) = (self.path.clone(), Arc::clone(&file));
            let unread = blocking(move || {
                let blob = open(&path)?.find_object(id).map(|object| object.detach().data);
                blob.map_err(|error| damaged(&path, &name, &id.to_hex().to_string(), &error))
            });
            self.open = Some(Open { file, unread: unread.await?.into(), handed_out: false });
        }
    }
}

fn damaged(path: &Path, file: &str, commit: &str, error: &dyn std::fmt::Display) -> RepositoryError {
    RepositoryError::Object {
        path: path.to_owned(),
        file: file.to_owned(),
        commit: commit.to_owned(),
        reason: error.to_string(),
    }
}

fn select(
    path: &Path,
    commit: &CommitId,
    paths: &[ManifestPath],
    limits: ManifestLimits,
) -> Result<VecDeque<(Arc<str>, gix::ObjectId)>, ReadError> {
    let repository = open(path)?;
    let tree = tree_of(&repository, commit, |reason| damaged(path, "the tree", commit, &reason))?;
    let mut selection = Selection::new(paths, limits)?;
    while let Some(directory) = selection.next()? {
        let mut listing = Listing::new();
        let (name, recursive) = (directory.0.as_str(), directory.1);
        let failed = |error: &dyn std::fmt::Display| damaged(path, name, commit, error);
        let found = match name {
            "." => Some(tree.clone()),
            name => {
                let entry = tree.lookup_entry_by_path(name).map_err(|error| failed(&error))?;
                let entry = entry.filter(|entry| entry.mode().is_tree());
                entry
                    .map(|entry| entry.object())
                    .transpose()
                    .map_err(|error| failed(&error))?
                    .map(gix::Object::into_tree)
            }
        };
        let prefix = if name == "." { Vec::new() } else { format!("{name}/").into_bytes() };
        if let Some(found) = found {
            let mut walk = Walk { recursive, limit: limits.files, directories: 0 };
            walk.list(&found, &prefix, 0, &mut listing, &failed)?;
        }
        selection.listed(directory, listing);
    }
    let mut files = VecDeque::new();
    let mut remaining = limits.total_bytes;
    for file in selection.files() {
        let failed = |error: &dyn std::fmt::Display| damaged(path, &file, commit, error);
        let entry = tree.lookup_entry_by_path(&*file).map_err(|error| failed(&error))?;
        let (name, at) = (file.as_ref().to_owned(), commit.to_string());
        let Some(entry) = entry else { return Err(GitalyError::Missing { file: name, commit: at }.into()) };
        if !entry.mode().is_blob_or_symlink() {
            return Err(GitalyError::NotAFile { file: name, commit: at }.into());
        }
        let id = entry.object_id();
        let size = repository.find_header(id).map_err(|error| failed(&error))?.size();
        if size > limits.file_bytes {
            let limit = limits.file_bytes;
            return Err(GitalyError::TooLarge { file: name, commit: at, limit }.into());
        }
        remaining = remaining
            .checked_sub(size)
            .ok_or(GitalyError::AllTooLarge { file: name, limit: limits.total_bytes })?;
        files.push_back((file, id));
    }
    Ok(files)
}

/// How a directory is listed.
struct Walk {
    recursive: bool,
    limit: usize,
    directories: usize,
}

impl Walk {
    /// Links are files: their content is where they lead to. What other repositories hold is not.
    fn list(
        &mut self,
        tree: &gix::Tree<'_>,
        prefix: &[u8],
        depth: usize,
        listing: &mut Listing,
        failed: &impl Fn(&dyn std::fmt::Display) -> RepositoryError,
    ) -> Result<(), ReadError> {
        self.directories += 1;
        if self.directories > DIRECTORIES_MAX {
            return Err(GitalyError::TooManyFiles { limit: self.limit }.into());
        }
        for entry in tree.iter() {
            let entry = entry.map_err(|error| failed(&error))?;
            let path = [prefix, entry.filename().as_ref()].concat();
            if entry.mode().is_blob_or_symlink() {
                if listing.len() == self.limit {
                    return Err(GitalyError::TooManyFiles { limit: self.limit }.into());
                }
                listing.push(path);
            } else if self.recursive && entry.mode().is_tree() && depth < DEPTH_MAX {
                let below = entry.object().map_err(|error| failed(&error))?.into_tree();
                self.list(&below, &[path.as_slice(), b"/"].concat(), depth + 1, listing, failed)?;
            }
        }
        Ok(())
    }
}
