//! Which files an agent's paths select: counted, matched and told apart, whoever lists them. Before it: an agent's
//! request. After it: reading the files. It reads nothing itself.

use super::{GitalyError, glob::Glob};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// What an agent may ask for; the default is what kas allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Globs and files in one request.
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

/// One path of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestPath {
    /// Every file that matches, except below hidden directories.
    Glob(String),
    /// This file, wherever it is.
    File(String),
}

/// Paths of all files of a directory, from the repository's root; within its directories too if asked for.
pub(crate) type Listing = Vec<Vec<u8>>;

/// What is selected so far. Ask [`Selection::next`] for a directory and answer with [`Selection::listed`], until it wants
/// no more.
#[derive(Debug)]
pub(crate) struct Selection {
    limits: Limits,
    wanted: VecDeque<Wanted>,
    listings: HashMap<(String, bool), Listing>,
    visited: usize,
    known: HashSet<Arc<str>>,
    files: VecDeque<Arc<str>>,
}

impl Selection {
    /// Of nothing yet.
    ///
    /// # Errors
    /// Too many paths, and paths that are none.
    pub(crate) fn new(paths: &[ManifestPath], limits: Limits) -> Result<Self, GitalyError> {
        if paths.len() > limits.paths {
            return Err(GitalyError::TooManyPaths { count: paths.len(), limit: limits.paths });
        }
        Ok(Self {
            limits,
            wanted: paths.iter().map(Wanted::parse).collect::<Result<_, _>>()?,
            listings: HashMap::new(),
            visited: 0,
            known: HashSet::new(),
            files: VecDeque::new(),
        })
    }

    /// The next directory to list, and whether its directories matter too. A listing of more files than
    /// [`Limits::files`] need not be whole.
    ///
    /// # Errors
    /// Too many files, and files that are selected twice or cannot be told to an agent.
    pub(crate) fn next(&mut self) -> Result<Option<(String, bool)>, GitalyError> {
        while let Some(wanted) = self.wanted.pop_front() {
            let glob = match &wanted {
                Wanted::File(file) => {
                    self.visit(1)?;
                    self.take(file)?;
                    continue;
                }
                Wanted::Glob(glob) => glob,
            };
            let (directory, recursive) = glob.directory();
            let key = (directory.to_owned(), recursive);
            let Some(listing) = self.listings.remove(&key) else {
                self.wanted.push_front(wanted);
                return Ok(Some(key));
            };
            self.visit(listing.len())?;
            for path in &listing {
                let name = String::from_utf8_lossy(path);
                if !glob.matches(&name) || is_hidden(&name) {
                    continue;
                }
                if path.len() > FILE_MAX || name.as_bytes() != path.as_slice() {
                    return Err(GitalyError::Name { file: name.chars().take(FILE_MAX).collect() });
                }
                self.take(&name)?;
            }
            self.listings.insert(key, listing);
        }
        Ok(None)
    }

    /// The answer to [`Selection::next`].
    pub(crate) fn listed(&mut self, directory: (String, bool), listing: Listing) {
        self.listings.insert(directory, listing);
    }

    /// The selected files, in the order of the paths.
    pub(crate) fn files(self) -> VecDeque<Arc<str>> {
        self.files
    }

    fn visit(&mut self, files: usize) -> Result<(), GitalyError> {
        self.visited += files;
        if self.visited > self.limits.files {
            return Err(GitalyError::TooManyFiles { limit: self.limits.files });
        }
        Ok(())
    }

    fn take(&mut self, file: &str) -> Result<(), GitalyError> {
        let file: Arc<str> = file.into();
        if !self.known.insert(Arc::clone(&file)) {
            return Err(GitalyError::SelectedTwice { file: file.as_ref().to_owned() });
        }
        self.files.push_back(file);
        Ok(())
    }
}

/// Of a file's path, in bytes.
const FILE_MAX: usize = 4_096;

#[derive(Debug)]
enum Wanted {
    Glob(Glob),
    File(String),
}

impl Wanted {
    fn parse(path: &ManifestPath) -> Result<Self, GitalyError> {
        let (text, parsed) = match path {
            ManifestPath::Glob(text) => (text, Glob::parse(text).map(Self::Glob)),
            ManifestPath::File(text) => {
                let file = text.strip_prefix('/').unwrap_or(text);
                let named = file.split('/').all(|part| !matches!(part, "" | "." | ".."));
                let legal = named && file.len() <= FILE_MAX && !file.contains('\0');
                (text, if legal { Ok(Self::File(file.to_owned())) } else { Err("not the path of a file") })
            }
        };
        parsed.map_err(|reason| GitalyError::Glob { glob: text.chars().take(FILE_MAX).collect(), reason })
    }
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

    #[test]
    fn a_path_too_long_to_be_told_is_refused_if_it_is_selected() {
        let select = |glob: &str, length: usize| {
            let glob = ManifestPath::Glob(glob.to_owned());
            let mut selection = Selection::new(&[glob], Limits::default()).unwrap();
            let directory = selection.next().unwrap().unwrap();
            selection.listed(directory, vec![[vec![b'x'; length - 5], b".yaml".to_vec()].concat()]);
            selection.next()
        };
        assert_eq!(select("*.yaml", FILE_MAX), Ok(None));
        assert_eq!(select("*.json", FILE_MAX + 1), Ok(None));
        for length in [FILE_MAX + 1, 1 << 20] {
            let Err(GitalyError::Name { file }) = select("*.yaml", length) else { panic!("{length}") };
            assert_eq!(file.len(), FILE_MAX);
        }
    }

    #[test]
    fn a_file_s_path_is_one() {
        for (path, legal) in [
            ("a.yaml", true),
            ("/.b/[c].yaml", true),
            ("", false),
            ("/", false),
            ("a//b", false),
            ("a/", false),
            ("../a", false),
            ("a/./b", false),
            ("a\0", false),
        ] {
            assert_eq!(Wanted::parse(&ManifestPath::File(path.to_owned())).is_ok(), legal, "{path:?}");
        }
    }
}
