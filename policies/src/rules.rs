//! One value, set by any number of documents for different subjects: the most specific one wins.
//!
//! Under `meant`. Built once a reload; asked for each decision, without an allocation.

mod index;
mod selector;
#[cfg(test)]
mod tests;

use crate::Subject;
use index::{Found, Index};
pub(crate) use selector::{
    Cidr, CidrMistake, Header, HexPrefix, MAX_CELLS, MAX_CELLS_IN_ALL, Mode, Selector, VersionPattern, lot,
};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

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

impl fmt::Display for Kind {
    /// As in the documents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LimitPolicy => "LimitPolicy",
            Self::PollingPolicy => "PollingPolicy",
            Self::ConnectionPolicy => "ConnectionPolicy",
            Self::AccessPolicy => "AccessPolicy",
            Self::BackendPolicy => "BackendPolicy",
            Self::TunnelPolicy => "TunnelPolicy",
        })
    }
}

impl fmt::Display for Rule {
    /// `NAME, FILE:LINE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}:{}", self.name, self.file.display(), self.line)
    }
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
    entries: Vec<Entry<T>>,
    index: Index,
}

/// What one document says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry<T> {
    pub(crate) value: T,
    pub(crate) rule: Rule,
    pub(crate) header: Arc<Header>,
}

impl<T> Default for Rules<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), index: Index::default() }
    }
}

/// Whether the same documents say the same, in the same places.
impl<T: PartialEq> PartialEq for Rules<T> {
    fn eq(&self, other: &Self) -> bool {
        // The index follows from them.
        self.entries == other.entries
    }
}

impl<T> Rules<T> {
    /// Adds a document's value. Its selector has at most [`MAX_CELLS`] cells: the parser asks before.
    ///
    /// # Errors
    /// The rule it ties with; nothing was added then.
    pub(crate) fn add(&mut self, header: &Arc<Header>, rule: Rule, value: T) -> Result<(), Rule> {
        self.index.add(header, self.entries.len()).map_err(|tie| self.entries[tie].rule.clone())?;
        self.entries.push(Entry { value, rule, header: header.clone() });
        Ok(())
    }

    /// When all documents are added.
    pub(crate) fn seal(mut self) -> Self {
        self.entries.shrink_to_fit();
        self.index.shrink();
        self
    }

    /// In the order in which they were added.
    pub(crate) fn entries(&self) -> &[Entry<T>] {
        &self.entries
    }

    /// Whether no document sets the field for anybody: then there is nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The most specific values for a subject. Allocates nothing; its time hardly depends on the number of documents.
    pub fn choose(&self, subject: &Subject<'_>) -> Choice<'_, T> {
        let Found { in_force, reported } = self.index.choose(subject);
        Choice { in_force: self.ruled(in_force), reported: self.ruled(reported) }
    }

    /// What is in force for a subject.
    pub fn find(&self, subject: &Subject<'_>) -> Option<Ruled<'_, T>> {
        self.choose(subject).in_force
    }

    /// The first documents that hold for this subject only where its client is somewhere in particular: what nobody can
    /// judge who cannot tell where that is. Looks at each document.
    pub fn hinging_on_client(&self, subject: &Subject<'_>) -> Choice<'_, T> {
        let lot = lot(subject);
        let hinges = |header: &Header| {
            let client = header.selector.client_cidrs.first().map(|cidr| cidr.address());
            let somewhere = Subject { client, ..*subject };
            client.is_some() && header.takes(lot) && header.selector.mismatch_of(&somewhere).is_none()
        };
        let first = |mode| self.entries.iter().position(|one| one.header.mode == mode && hinges(&one.header));
        Choice { in_force: self.ruled(first(Mode::Enforce)), reported: self.ruled(first(Mode::Report)) }
    }

    fn ruled(&self, position: Option<usize>) -> Option<Ruled<'_, T>> {
        let Entry { value, rule, .. } = self.entries.get(position?)?;
        Some(Ruled { value, rule })
    }
}
