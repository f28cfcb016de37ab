//! The way in: a directory of YAML files to one [`PolicySet`], or to everything that is wrong with them.
//!
//! `load::files` reads what is there, `written` says what the keys are, `validate` what they mean together. Nothing is ever
//! half taken: there is a set, or there are problems.

mod documents;
mod files;

pub(crate) use files::is_policy_file;

use crate::validate::Builder;
use crate::{PolicySet, Problem, Problems};
use files::Text;
use sha2::{Digest, Sha256};
use std::path::Path;

/// More documents than anybody writes; a program that went mad ends here.
const MAX_DOCUMENTS: usize = 10_000;
/// Problems beyond these are counted only.
const MAX_PROBLEMS: usize = 500;

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Loaded {
    pub set: PolicySet,
    /// Twelve hexadecimal digits of the SHA-256 of all files' texts in the order of their names.
    pub fingerprint: String,
    pub documents: usize,
}

/// Reads the policies of a directory once: every `*.yaml` and `*.yml` file directly in it, in the order of their names.
/// Hidden files and subdirectories are left out; Kubernetes keeps its own there when it mounts a ConfigMap. Blocking.
///
/// # Errors
/// Every problem of every file. A directory without any such file is one too.
pub fn load_dir(directory: &Path) -> Result<PolicySet, Problems> {
    load(directory).map(|loaded| loaded.set)
}

/// As [`load_dir`], and what `/policies` of a process says that has the same files in force.
///
/// # Errors
/// As [`load_dir`].
pub fn load(directory: &Path) -> Result<Loaded, Problems> {
    let mut found = Found::default();
    let mut builder = Builder::default();
    let mut hash = Sha256::new();
    let texts = files::read(directory).unwrap_or_else(|problem| {
        found.add(*problem);
        Vec::new()
    });
    let mut documents = 0;
    for file in texts {
        match file {
            Ok(Text { path, text }) => {
                // So that nothing is the same after it moved from one file to the next.
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(&text);
                if !read(&path, &text, &mut documents, &mut builder, &mut found) {
                    break;
                }
            }
            Err(problem) => found.add(*problem),
        }
    }
    if !found.list.is_empty() {
        return Err(Problems { list: found.list, more: found.more });
    }
    let fingerprint = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(Loaded { set: builder.finish(), fingerprint, documents })
}

/// Takes a file's documents in. `false`: there are too many, which was reported.
fn read(path: &Path, text: &str, documents: &mut usize, builder: &mut Builder, found: &mut Found) -> bool {
    let mut problems = postern_yaml::Problems::default();
    for (lines_before, part) in documents::split(text) {
        *documents += 1;
        if *documents > MAX_DOCUMENTS {
            let at = postern_yaml::Position { line: lines_before + 1, column: 1 };
            let wanted = format!("{MAX_DOCUMENTS} in all files together are wanted at most");
            problems.add(at, "", "one document more than can be taken", wanted);
            break;
        }
        if let Some(tree) = postern_yaml::parse_part(part, lines_before, &mut problems)
            && !matches!(tree.value, postern_yaml::Value::Null)
        {
            builder.read(path, &tree, &mut problems);
        }
    }
    let (list, more) = problems.sorted();
    for postern_yaml::Problem { at, path: key, found: there, wanted } in list {
        found.add(Problem {
            file: path.to_owned(),
            line: Some(at.line),
            column: Some(at.column),
            path: key,
            found: there,
            wanted,
        });
    }
    found.more += more;
    *documents <= MAX_DOCUMENTS
}

/// Problems of all files.
#[derive(Debug, Default)]
struct Found {
    list: Vec<Problem>,
    more: usize,
}

impl Found {
    fn add(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        } else {
            self.more += 1;
        }
    }
}

#[cfg(test)]
mod tests;
