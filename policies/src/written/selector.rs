//! `match`: whom a document is for. Under `written`.

use super::{Id, Several};
use crate::rules::{Cidr, CidrMistake, HexPrefix, VersionPattern};
use postern_yaml::{Cursor, Node, Place, Read, section};

section!(Match {
    agent_ids = "agentIds": Several<Id>,
    token_hashes = "tokenHashes": Several<TokenHash>,
    project_ids = "projectIds": Several<Id>,
    client_cidrs = "clientCidrs": Several<Network>,
    agent_versions = "agentVersions": Several<Version>,
});

impl Match {
    /// What it asks for, as it is written, and where.
    pub(crate) fn asks(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        [
            self.agent_ids.as_ref().map(|given| ("agentIds", &given.place)),
            self.token_hashes.as_ref().map(|given| ("tokenHashes", &given.place)),
            self.project_ids.as_ref().map(|given| ("projectIds", &given.place)),
            self.client_cidrs.as_ref().map(|given| ("clientCidrs", &given.place)),
            self.agent_versions.as_ref().map(|given| ("agentVersions", &given.place)),
        ]
        .into_iter()
        .flatten()
    }
}

/// The first digits of a credential's SHA-256.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenHash(pub(crate) HexPrefix);

impl Read for TokenHash {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        const WANTED: &str = "1 to 64 hexadecimal digits in lower case are wanted";
        let text = String::read(node, cursor)?;
        if let Some(prefix) = HexPrefix::parse(&text) {
            return Some(Self(prefix));
        }
        let lower = text.to_ascii_lowercase();
        let wanted = match HexPrefix::parse(&lower) {
            Some(_) => format!("{WANTED}; did you mean `{lower}`?"),
            None => WANTED.to_owned(),
        };
        // What looks like no hash at all could be the token itself, which belongs in no log.
        let found = if text.bytes().all(|byte| byte.is_ascii_hexdigit()) && text.len() <= 64 {
            node.shown()
        } else {
            format!("a text of {} characters that is no such hash", text.chars().count())
        };
        cursor.problem(node.at, found, wanted);
        None
    }
}

/// Addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network(pub(crate) Cidr);

impl Read for Network {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let text = String::read(node, cursor)?;
        match Cidr::parse(&text) {
            Ok(network) => Some(Self(network)),
            Err(CidrMistake::NotACidr) => {
                cursor.mismatch(node, "a network such as 10.0.0.0/8 or 2001:db8::/32")
            }
            Err(CidrMistake::HostBits(network)) => {
                let found = format!("{} has bits beyond its prefix", node.shown());
                cursor.problem(node.at, found, format!("a network is wanted; did you mean `{network}`?"));
                None
            }
        }
    }
}

/// Of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Version(pub(crate) VersionPattern);

impl Read for Version {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        const WANTED: &str = "a version such as 16.11.2, 16.11.* or 16.* is wanted";
        let text = String::read(node, cursor)?;
        // `16.11` is no agent's version, and would match nobody.
        let short = text.matches('.').count() < 2 && !text.contains(['*', '-']);
        let meant = text.trim_end_matches(['.', '*', 'x']);
        match VersionPattern::parse(&text) {
            Some(version) if !short => Some(Self(version)),
            _ => {
                let wanted = match VersionPattern::parse(&format!("{meant}.*")) {
                    Some(_) if meant.bytes().any(|byte| byte.is_ascii_digit()) => {
                        format!("{WANTED}; did you mean `{meant}.*`?")
                    }
                    _ => WANTED.to_owned(),
                };
                cursor.problem(node.at, node.shown(), wanted);
                None
            }
        }
    }
}
