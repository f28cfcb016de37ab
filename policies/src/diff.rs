//! What another set of policies would change, and for whom.
//!
//! Before a change is put in force, for people and CI, through `postern policy diff`; and what a reload did, for the log.
//! Compares documents as they are meant: that one moved to another line or file is no change.

#[cfg(test)]
mod tests;

use crate::explain::{Document, Effective, FIELDS, Field, share};
use crate::rules::{Header, Mode};
use crate::{Kind, PolicySet, Rule, Subject};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;

/// One document's field that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub kind: Kind,
    /// As in the documents, under `spec`.
    pub field: &'static str,
    /// `None`: the document does not set it before.
    pub before: Option<Stated>,
    /// `None`: the document does not set it any more.
    pub after: Option<Stated>,
    /// Where only one of the two is there: what holds without it, for the first subject that its selector names; `None`
    /// again is the program's own configuration.
    pub instead: Option<Effective>,
}

/// What a document says of one field, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stated {
    /// `agentIds: [42], clientCidrs: [10.0.0.0/8]`, or `everybody`; long lists are cut.
    pub whom: String,
    /// As it would be written.
    pub value: String,
    /// Whether it is only judged and counted.
    pub report: bool,
    /// The share of the tokens, as it would be written.
    pub canary: Option<String>,
    pub rule: Rule,
}

/// All that is not the same, in the order of kinds and fields.
pub fn diff(before: &PolicySet, after: &PolicySet) -> Vec<Change> {
    FIELDS.iter().flat_map(|field| of_field(field, before, after)).collect()
}

fn of_field(field: &Field, before: &PolicySet, after: &PolicySet) -> Vec<Change> {
    let (rules_before, rules_after) = ((field.of)(before), (field.of)(after));
    let (old, new) = (rules_before.documents(), rules_after.documents());
    let mut partners = Partners::new(&new);
    let paired: Vec<_> = old.iter().map(|one| (one, partners.named(one))).collect();
    // A document with another name that says the same to the same subjects is the same to them.
    let paired: Vec<_> =
        paired.into_iter().map(|(one, found)| (one, found.or_else(|| partners.alike(one)))).collect();
    let mut changes = Vec::new();
    let change =
        |before, after, instead| Change { kind: field.kind, field: field.name, before, after, instead };
    for (one, partner) in paired {
        match partner.map(|partner| &new[partner]) {
            Some(other) if one.value == other.value && one.header == other.header => {}
            Some(other) => changes.push(change(Some(stated(one)), Some(stated(other)), None)),
            None => {
                let (instead, _) = with_example(one, field, |subject| rules_after.effective(subject));
                changes.push(change(Some(stated(one)), None, instead));
            }
        }
    }
    for one in partners.left() {
        let (instead, _) = with_example(one, field, |subject| rules_before.effective(subject));
        changes.push(change(None, Some(stated(one)), instead));
    }
    changes
}

/// Which documents of the other set are spoken for.
struct Partners<'a> {
    documents: &'a [Document<'a>],
    taken: Vec<bool>,
    by_name: HashMap<&'a str, usize>,
    by_text: HashMap<(String, &'a str), usize>,
}

impl<'a> Partners<'a> {
    fn new(documents: &'a [Document<'a>]) -> Self {
        let numbered = || documents.iter().enumerate();
        Self {
            documents,
            taken: vec![false; documents.len()],
            by_name: numbered().map(|(index, one)| (one.rule.name.as_str(), index)).collect(),
            by_text: numbered().map(|(index, one)| ((key(one.header), one.value.as_str()), index)).collect(),
        }
    }

    fn named(&mut self, document: &Document<'_>) -> Option<usize> {
        let found = self.by_name.get(document.rule.name.as_str()).copied();
        self.take(found)
    }

    fn alike(&mut self, document: &Document<'_>) -> Option<usize> {
        let found = self.by_text.get(&(key(document.header), document.value.as_str())).copied();
        self.take(found)
    }

    fn take(&mut self, found: Option<usize>) -> Option<usize> {
        found.filter(|index| !std::mem::replace(&mut self.taken[*index], true))
    }

    fn left(&self) -> impl Iterator<Item = &'a Document<'a>> {
        self.documents.iter().zip(&self.taken).filter(|(_, taken)| !**taken).map(|(one, _)| one)
    }
}

/// The same for two headers only if they are equal.
fn key(header: &Header) -> String {
    format!("{header:?}")
}

fn stated(document: &Document<'_>) -> Stated {
    Stated {
        whom: document.header.selector.to_string(),
        value: document.value.clone(),
        report: document.header.mode == Mode::Report,
        canary: share(document.header),
        rule: document.rule.clone(),
    }
}

/// Asks about one subject that a document names: the first value of each dimension.
fn with_example<R>(document: &Document<'_>, field: &Field, ask: impl FnOnce(&Subject<'_>) -> R) -> R {
    let selector = &document.header.selector;
    let hash = selector.token_hashes.first().map(|prefix| prefix.filled());
    let version = selector.agent_versions.first().map(|pattern| pattern.example());
    let subject = Subject {
        agent_id: selector.agent_ids.first().copied(),
        project_id: selector.project_ids.first().copied(),
        token_hash: hash.as_ref(),
        client: selector.client_cidrs.first().map(|network| network.address()),
        agent_version: version.as_deref(),
    };
    ask(&field.asked(&subject))
}

impl fmt::Display for Change {
    /// `+` for what is new, `-` for what is gone, `~` for what is another value or for others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instead = match &self.instead {
            Some(Effective { value, rule }) => format!("{value} ({rule})"),
            None => "as the program's own configuration says".to_owned(),
        };
        let Self { kind, field, .. } = self;
        match (&self.before, &self.after) {
            (None, None) => Ok(()),
            (None, Some(new)) => write!(f, "+ {kind} {field} for {new}; was {instead}"),
            (Some(old), None) => write!(f, "- {kind} {field} for {old}; then {instead}"),
            (Some(old), Some(new)) if old.to_whom() == new.to_whom() => {
                write!(
                    f,
                    "~ {kind} {field} for {}: {} -> {} ({})",
                    old.to_whom(),
                    old.value,
                    new.value,
                    new.rule
                )
            }
            (Some(old), Some(new)) => write!(f, "~ {kind} {field} for {old} -> for {new}"),
        }
    }
}

impl Stated {
    fn to_whom(&self) -> String {
        let mut whom = self.whom.clone();
        if let Some(canary) = &self.canary {
            whom += &format!(", canary: {canary}");
        }
        if self.report {
            whom += ", mode: report";
        }
        whom
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.to_whom(), self.value, self.rule)
    }
}
