//! `.gitlab/agents/<name>/config.yaml` as written -> the message an agent receives, and the JSON that Rails stores.
//! Strict: a key that no generation knows is refused, and every mistake is reported at once with its line. Before it:
//! bytes of a stranger's repository. Defaults stay the agent's business.

mod kinds;
mod schema;

use kinds::Json as _;
use postern_wire::proto::gitlab::agent::agentcfg;
use postern_yaml::{Cursor, Position, Problems, Read as _, Value as Written, parse as parse_yaml};
use std::io;

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

/// Rails is sent no more than this, in bytes of JSON, and agents not much more; or four times the file, which only
/// aliases exceed.
const MAX_DOCUMENT: usize = 512 * 1024;

/// Parses the document; an empty one is an empty configuration.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Problems> {
    let mut problems = Problems::default();
    let parsed = match read(bytes, &mut problems) {
        Some(file) if problems.is_empty() => Parsed { document: file.json(), file: file.into() },
        _ => return Err(problems),
    };
    let (length, limit) = (length(&parsed.document), MAX_DOCUMENT.max(4 * bytes.len()));
    if length > limit {
        let found = format!("{length} bytes of JSON with all aliases written out");
        problems.add(
            Position::default(),
            "",
            found,
            format!("{limit} at most are wanted; use fewer aliases"),
        );
        return Err(problems);
    }
    Ok(parsed)
}

/// In bytes of JSON.
fn length(document: &serde_json::Value) -> usize {
    struct Count(usize);

    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut count = Count(0);
    serde_json::to_writer(&mut count, document).expect("a value is JSON, and counting does not fail");
    count.0
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
