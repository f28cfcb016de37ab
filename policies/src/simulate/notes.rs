//! What a simulation could not know, so that nobody takes its numbers for more than they are.
//!
//! Under `simulate`, at its end.

use crate::PolicySet;
use crate::explain::{Document, FIELDS};
use crate::rules::Selector;

/// The digits that decide whether a token is in a canary.
const DRAWN: u8 = 16;

/// Where streams that were refused would not be by the candidate.
pub(super) const NEWLY_ADMITTED: &str = "\"would not be\" counts streams that were refused for whatever reason, also for what no \
                                         policy decides and these do not change";

/// Fields that edges judge streams by.
const JUDGED: [&str; 8] = [
    "requestsPerToken",
    "streamsPerToken",
    "requestsPerIp",
    "streamsPerIp",
    "requestsPerAgent",
    "streamsPerAgent",
    "bodyBytes",
    "clients",
];

/// `digits`: the fewest of a token's hash that a line had.
pub(super) fn of(set: &PolicySet, digits: Option<u8>) -> Vec<String> {
    let judged = FIELDS.iter().filter(|field| JUDGED.contains(&field.name));
    let documents: Vec<Document<'_>> = judged.flat_map(|field| (field.of)(set).documents()).collect();
    let selectors = || documents.iter().map(|one| &one.header.selector);
    let mut notes = Vec::new();
    let digits = digits.unwrap_or(DRAWN);
    let longest =
        selectors().flat_map(|one| &one.token_hashes).map(|prefix| prefix.digits()).max().unwrap_or(0);
    if longest > digits {
        notes.push(format!(
            "lines have {digits} digits of a token's hash: tokenHashes with more of them matched nobody"
        ));
    }
    if digits < DRAWN && documents.iter().any(|one| one.header.canary.is_some()) {
        notes.push(format!(
            "lines have {digits} digits of a token's hash, and {DRAWN} decide who is in a canary: as many tokens were drawn \
             for it, but others"
        ));
    }
    let asked = |has: fn(&Selector) -> bool| selectors().any(has);
    if asked(|one| !one.agent_versions.is_empty()) {
        notes.push(
            "lines do not say what agentVersions ask for: documents with them matched nobody".to_owned(),
        );
    }
    if asked(|one| !one.agent_ids.is_empty()) {
        notes.push("documents with agentIds matched only lines that have an agent".to_owned());
    }
    if !set.limits.connections_per_ip.is_empty() {
        notes.push("connectionsPerIp was not judged: lines tell of streams, not of connections".to_owned());
    }
    notes
}
