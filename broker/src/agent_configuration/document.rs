//! `.gitlab/agents/<name>/config.yaml` as written -> the message an agent receives, and the JSON that Rails stores.
//! Strict: a key that no generation knows is refused, and every mistake is reported at once with its line. Before it:
//! bytes of a stranger's repository. Defaults stay the agent's business.

mod kinds;
mod schema;

use crate::yaml::{Cursor, Position, Problems, Read as _, Value as Written, parse as parse_yaml};
use kinds::Json as _;
use postern_wire::proto::gitlab::agent::agentcfg;

/// A document that an agent can run by.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parsed {
    /// What agents get.
    pub(super) file: agentcfg::ConfigurationFile,
    /// What Rails gets: protobuf's JSON form with the keys as written, without defaults and nulls.
    pub(super) document: serde_json::Value,
}

impl Default for Parsed {
    /// What an empty document says.
    fn default() -> Self {
        Self { file: agentcfg::ConfigurationFile::default(), document: serde_json::json!({}) }
    }
}

/// Parses the document; an empty one is an empty configuration.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Problems> {
    let mut problems = Problems::default();
    let parsed = read(bytes, &mut problems);
    match parsed {
        Some(file) if problems.is_empty() => Ok(Parsed { document: file.json(), file: file.into() }),
        _ => Err(problems),
    }
}

fn read(bytes: &[u8], problems: &mut Problems) -> Option<schema::File> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            problems.add(Position { line, column: 1 }, "", "bytes that are not UTF-8", "UTF-8 is wanted");
            return None;
        }
    };
    let tree = parse_yaml(text, problems)?;
    if matches!(tree.value, Written::Null) {
        return Some(schema::File::default());
    }
    schema::File::read(&tree, &mut Cursor::new(problems))
}

#[cfg(test)]
mod tests;
