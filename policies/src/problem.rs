//! What is wrong with policy files: where, what is there, what is wanted.

use serde::{Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong with the policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    #[serde(serialize_with = "shown")]
    pub file: PathBuf,
    /// From 1. `None` where the problem is with the file or the directory as a whole.
    pub line: Option<usize>,
    /// From 1, in characters.
    pub column: Option<usize>,
    /// The field, as `spec.requestsPerToken.perMinute`; empty where the problem is not with one field.
    pub path: String,
    /// What is there.
    pub found: String,
    /// What should be; with a suggestion where a key or a word is probably misspelt.
    pub wanted: String,
}

/// JSON has no place for names that are not UTF-8, and a problem must be told whatever its file is called.
fn shown<S: Serializer>(file: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&file.display())
}

impl fmt::Display for Problem {
    /// `FILE:LINE:COLUMN: PATH: FOUND; WANTED`, which editors and CI understand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}; {}", self.found, self.wanted)
    }
}

/// Why the policies cannot be put in force; never empty. Displays one problem per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// In the order of files and lines; some hundreds at most.
    pub list: Vec<Problem>,
    /// How many there are beyond those.
    pub more: usize,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}
