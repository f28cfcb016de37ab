//! What holds for one subject, field by field: the value, the document that sets it, and those that did not.
//!
//! After `meant`; for people who look up why, through `postern policy explain`. Never on the path of a
//! request: it reads through all documents and writes texts.

pub(crate) mod fields;
mod said;
#[cfg(test)]
pub(crate) mod tests;

use crate::rules::{Header, Mode, lot};
use crate::{Kind, PolicySet, Rule, Subject};
pub(crate) use fields::{Document, FIELDS, Field};
use serde::Serialize;
use std::fmt;

/// Documents that are named with the reason why they do not decide.
const PASSED_OVER: usize = 100;

/// One field, for one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    pub kind: Kind,
    /// As in the documents, under `spec`: `requestsPerToken`, `drain.grace`.
    pub field: &'static str,
    /// As it would be written; `None`: no document says anything, so the program's own configuration holds.
    pub value: Option<String>,
    pub rule: Option<Rule>,
    /// What would hold if documents that only report were in force, where that is something else.
    pub reported: Option<Effective>,
    /// Other documents with this field, those that match first; a hundred at most.
    pub passed_over: Vec<PassedOver>,
    /// How many there are beyond those.
    pub more_passed_over: usize,
}

/// A value and the document that sets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    pub value: String,
    pub rule: Rule,
}

/// A document that sets a field, but not for this subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    pub rule: Rule,
    pub why: String,
}

impl PolicySet {
    /// Every field of every kind for a subject, in the order of the documents' own description. Where edge and broker look a
    /// field up without a client's address, so does this.
    pub fn explain(&self, subject: &Subject<'_>) -> Vec<Explained> {
        FIELDS.iter().map(|field| explained(self, field, subject)).collect()
    }

    /// Whether no document says anything about anybody.
    pub fn is_empty(&self) -> bool {
        FIELDS.iter().all(|field| (field.of)(self).is_empty())
    }
}

fn explained(set: &PolicySet, field: &Field, subject: &Subject<'_>) -> Explained {
    let subject = &field.asked(subject);
    let rules = (field.of)(set);
    let (in_force, reported) = rules.effective(subject);
    let winners = [&in_force, &reported].map(|one| one.as_ref().map(|one| one.rule.clone()));
    let others = rules.documents().into_iter().filter(|one| !winners.contains(&Some(one.rule.clone())));
    // A document that matches says more about this subject than one that does not.
    let (matching, others): (Vec<_>, Vec<_>) =
        others.partition(|one| one.header.selector.mismatch_of(subject).is_none());
    let count = matching.len() + others.len();
    let passed_over: Vec<_> = matching
        .iter()
        .chain(&others)
        .take(PASSED_OVER)
        .map(|one| PassedOver { rule: one.rule.clone(), why: why_not(one.header, subject) })
        .collect();
    let (value, rule) = in_force.map(|Effective { value, rule }| (value, rule)).unzip();
    Explained {
        kind: field.kind,
        field: field.name,
        value,
        rule,
        reported,
        more_passed_over: count - passed_over.len(),
        passed_over,
    }
}

fn why_not(header: &Header, subject: &Subject<'_>) -> String {
    if let Some(dimension) = header.selector.mismatch_of(subject) {
        let known = match dimension {
            "agentIds" => subject.agent_id.is_some(),
            "tokenHashes" => subject.token_hash.is_some(),
            "projectIds" => subject.project_id.is_some(),
            "clientCidrs" => subject.client.is_some(),
            _ => subject.agent_version.is_some(),
        };
        return match known {
            true => format!("its {dimension} are others"),
            false => format!("it asks for {dimension}, which are not known here"),
        };
    }
    let lot = lot(subject);
    if !header.takes(lot) {
        let share = share(header).unwrap_or_default();
        return match lot {
            Some(_) => format!("it is a canary for {share} of the tokens, and this is none of them"),
            None => format!("it is a canary for {share} of the tokens, and no token is known here"),
        };
    }
    match header.mode {
        Mode::Enforce => "another document is more specific".to_owned(),
        Mode::Report => "it only reports, and another document is more specific".to_owned(),
    }
}

/// The canary's share as it is written.
pub(crate) fn share(header: &Header) -> Option<String> {
    let share = header.canary?;
    Some(match (share / 100, share % 100) {
        (whole, 0) => format!("{whole}%"),
        (whole, rest) if rest % 10 == 0 => format!("{whole}.{}%", rest / 10),
        (whole, rest) => format!("{whole}.{rest:02}%"),
    })
}

impl fmt::Display for Explained {
    /// One line for the field, one more for what is only reported.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.kind, self.field)?;
        match (&self.value, &self.rule) {
            (Some(value), Some(rule)) => write!(f, "{value} ({rule})")?,
            _ => f.write_str("as the program's own configuration says")?,
        }
        match &self.reported {
            Some(Effective { value, rule }) => write!(f, "\n  reported, not enforced: {value} ({rule})"),
            None => Ok(()),
        }
    }
}
