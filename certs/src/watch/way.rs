//! Follows a path step by step, as the kernel does, and writes down what it passed: whoever watches a path must watch
//! every link on its way. Under `directory`. It opens nothing.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Stamp, stamp_of};

/// As the kernel's own limit.
const MOST_LINKS: usize = 40;

/// How a path leads to what it names.
pub(super) struct Way {
    /// Every directory that was passed, without links in its path, and the name that was looked up in it.
    pub(super) steps: Vec<(PathBuf, OsString)>,
    /// Every link that was passed: one that was swapped for another with the same target is another.
    pub(super) links: Vec<Stamp>,
    /// What is there, with its path without links; or why there is nothing.
    pub(super) end: Result<(PathBuf, Stamp), io::ErrorKind>,
}

/// Follows an absolute path from the root.
pub(super) fn follow(path: &Path) -> Way {
    from(PathBuf::from("/"), path)
}

/// Follows a path from a directory whose own path has no links.
pub(super) fn from(start: PathBuf, path: &Path) -> Way {
    let mut way = Way { steps: Vec::new(), links: Vec::new(), end: Err(io::ErrorKind::NotFound) };
    way.end = way.walk(start, path);
    way
}

impl Way {
    fn walk(&mut self, start: PathBuf, path: &Path) -> Result<(PathBuf, Stamp), io::ErrorKind> {
        let mut at = start;
        let mut left = reversed(path);
        while let Some(step) = left.pop() {
            let name = match step {
                Step::Root => {
                    at = PathBuf::from("/");
                    continue;
                }
                Step::Up => {
                    at.pop();
                    continue;
                }
                Step::Name(name) => name,
            };
            let next = at.join(&name);
            self.steps.push((at.clone(), name));
            let found = std::fs::symlink_metadata(&next).map_err(|error| error.kind())?;
            if found.is_symlink() {
                if self.links.len() == MOST_LINKS {
                    return Err(io::ErrorKind::InvalidInput);
                }
                self.links.push(stamp_of(&found));
                let target = std::fs::read_link(&next).map_err(|error| error.kind())?;
                left.extend(reversed(&target));
            } else {
                at = next;
            }
        }
        let found = std::fs::symlink_metadata(&at).map_err(|error| error.kind())?;
        Ok((at, stamp_of(&found)))
    }
}

enum Step {
    Root,
    Up,
    Name(OsString),
}

fn reversed(path: &Path) -> Vec<Step> {
    let steps = path.components().rev().filter_map(|component| match component {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Name(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    });
    steps.collect()
}
