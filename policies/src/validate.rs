//! From as written to as meant: checks every value of a document and gathers all problems, each with file,
//! line where known, and path. Before it: `schema`. After it: [`Policy`], or [`Problems`] and nothing in
//! force.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::schema::{Document, LimitSpec, Rate};
use crate::{Limit, Policy, RateLimit};

/// One thing that is wrong with the policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1. `None` where the problem is with the file as a whole.
    pub line: Option<usize>,
    /// The field, as `spec.requestsPerToken.perMinute`; empty where the problem is not with one field.
    pub path: String,
    /// What is there, and what should be.
    pub text: String,
}

impl Problem {
    pub(crate) fn about_file(file: &Path, text: String) -> Problem {
        Problem { file: file.to_owned(), line: None, path: String::new(), text }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Why the policies cannot be put in force; never empty. Displays one problem per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

/// One document's text and where it stands.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a Path,
    /// Lines of the file before this document.
    pub(crate) before: usize,
    pub(crate) text: &'a str,
}

impl Source<'_> {
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_yaml::from_str(self.text).map_err(|error| {
            let text = error.to_string();
            let Some(place) = error.location() else {
                return Problem { line: Some(self.before + 1), ..Problem::about_file(self.file, text) };
            };
            // The parser ends its text with the line within this document, which would contradict the one in
            // the file.
            let own = format!(" at line {} column {}", place.line(), place.column());
            let text = text.replace(&own, "");
            Problem { line: Some(self.before + place.line()), ..Problem::about_file(self.file, text) }
        })
    }

    pub(crate) fn problem(&self, path: &[&str], text: String) -> Problem {
        Problem { file: self.file.to_owned(), line: Some(self.line_of(path)), path: path.join("."), text }
    }

    /// The line of a field, found by its keys in turn, as YAML is usually laid out; in flow style (`{a: 1}`)
    /// the line of the last key that begins a line.
    fn line_of(&self, path: &[&str]) -> usize {
        let mut keys = path.iter().peekable();
        let mut last = 1;
        for (index, line) in self.text.lines().enumerate() {
            let Some(key) = keys.peek() else { break };
            if line.trim_start().strip_prefix(**key).is_some_and(|rest| rest.trim_start().starts_with(':')) {
                last = index + 1;
                keys.next();
            }
        }
        self.before + last
    }
}

/// The documents of a directory, becoming one policy.
#[derive(Default)]
pub(crate) struct Merged {
    policy: Policy,
    problems: Vec<Problem>,
    /// Kind and name of each document, and the file it is in.
    names: BTreeMap<(&'static str, String), PathBuf>,
}

impl Merged {
    pub(crate) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub(crate) fn finish(self) -> Result<Policy, Problems> {
        match self.problems.is_empty() {
            true => Ok(self.policy),
            false => Err(Problems(self.problems)),
        }
    }

    pub(crate) fn limits(&mut self, source: &Source<'_>, document: &Document<LimitSpec>) {
        let name = &document.metadata.name;
        if !is_name(name) {
            let want = "want 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
            self.problem(source.problem(&["metadata", "name"], format!("got {name:?}, {want}")));
        }
        if let Some(other) = self.names.insert(("LimitPolicy", name.clone()), source.file.to_owned()) {
            let text = format!("there is another LimitPolicy {name:?} in {}", other.display());
            self.problem(source.problem(&["metadata", "name"], text));
        }
        let Some(written) = &document.spec.requests_per_token else { return };
        let path = ["spec", "requestsPerToken"];
        match RateLimit::try_from(written) {
            Err(mistakes) => {
                for Mistake { field, text } in mistakes {
                    let problem = source.problem(&[path[0], path[1], field], text);
                    self.problem(problem);
                }
            }
            Ok(rate) => {
                let limit = Limit { rule: name.clone(), rate };
                if let Some(other) = self.policy.requests_per_token.replace(limit) {
                    let rule = other.rule;
                    let text =
                        format!("LimitPolicy {rule:?} sets it for everybody too; only one of them can");
                    self.problem(source.problem(&path, text));
                }
            }
        }
    }
}

/// A wrong value of a rate: which field, and what is wrong.
#[derive(Debug)]
pub(crate) struct Mistake {
    field: &'static str,
    text: String,
}

impl TryFrom<&Rate> for RateLimit {
    type Error = Vec<Mistake>;

    fn try_from(written: &Rate) -> Result<RateLimit, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let per_minute = count(&mut mistakes, "perMinute", written.per_minute);
        let rate = count(&mut mistakes, "rate", written.rate);
        let burst = count(&mut mistakes, "burst", written.burst);
        let mut mistake = |field, text: &str| mistakes.push(Mistake { field, text: text.to_owned() });
        match (written.per_minute, written.rate, written.burst) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            (Some(_), ..) => mistake("perMinute", "stands alone; want either perMinute, or rate and burst"),
            (None, Some(_), None) => mistake("burst", "missing; rate needs it"),
            (None, None, Some(_)) => mistake("rate", "missing; burst needs it"),
            (None, None, None) => mistake("perMinute", "missing; want either perMinute, or rate and burst"),
        }
        match (per_minute, rate, burst) {
            (Some(count), ..) if mistakes.is_empty() => Ok(RateLimit::per_minute(count)),
            (None, Some(rate), Some(burst)) if mistakes.is_empty() => Ok(RateLimit::per_second(rate, burst)),
            _ => Err(mistakes),
        }
    }
}

fn count(mistakes: &mut Vec<Mistake>, field: &'static str, written: Option<i64>) -> Option<NonZeroU32> {
    let written = written?;
    let count = u32::try_from(written).ok().and_then(NonZeroU32::new);
    if count.is_none() {
        mistakes.push(Mistake { field, text: format!("got {written}, want 1 to {}", u32::MAX) });
    }
    count
}

/// A DNS label, as Kubernetes wants most names.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}
