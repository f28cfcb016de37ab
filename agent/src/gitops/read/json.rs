//! JSON that is no YAML: several objects behind each other, pairs of surrogates, tabs where YAML wants none. Before it:
//! `read.rs`, once the YAML parser refused a document. It knows no places but those where values begin.

use super::values::{Counted, VALUES};
use postern_yaml::Position;
use serde::de::{DeserializeSeed as _, IgnoredAny};
use serde_json::{Deserializer, Value};

/// What is wrong.
pub(super) enum Wrong {
    /// More than all values together may weigh.
    TooMuch,
    /// It is no JSON.
    Text(String),
}

/// A value and where it begins, or what is wrong and where.
pub(super) type Found = Result<(Position, Value), (Position, Wrong)>;

/// The values of a text, as far as they are JSON; what they weigh is added to `spent`. `None`: it is none, and was
/// hardly meant to be.
pub(super) fn read(
    text: &str,
    lines_before: usize,
    named_json: bool,
    nesting: usize,
    spent: &mut usize,
) -> Option<Vec<Found>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut places = Walker::new(text, lines_before);
    // A value is read once it is known where it ends, and only then takes memory.
    let mut values = Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut found = Vec::new();
    loop {
        let offset = values.byte_offset();
        let blank = text[offset..].len() - text[offset..].trim_start().len();
        let (from, error) = match values.next() {
            None => break,
            Some(Ok(_)) => {
                let begin = offset + blank;
                let at = places.at(begin);
                let value = text.get(begin..values.byte_offset()).unwrap_or_default();
                let counted = Counted { spent: &mut *spent, nesting };
                match counted.deserialize(&mut Deserializer::from_str(value)) {
                    Ok(value) => {
                        found.push(Ok((at, value)));
                        continue;
                    }
                    Err(_) if *spent > VALUES => {
                        found.push(Err((at, Wrong::TooMuch)));
                        break;
                    }
                    Err(error) => (at, error),
                }
            }
            Some(Err(error)) => (Position { line: lines_before + 1, column: 1 }, error),
        };
        if found.is_empty() && !named_json {
            return None;
        }
        // Its place is told by ours.
        let words = error.to_string();
        let words = words.split(" at line ").next().unwrap_or_default();
        let wrong = Wrong::Text(format!("not JSON: {words}; nothing behind it was read"));
        found.push(Err((behind(from, &error), wrong)));
        break;
    }
    Some(found)
}

/// The place of an error in a text that begins at `from`.
fn behind(from: Position, error: &serde_json::Error) -> Position {
    let Position { line, column } = from;
    match error.line() {
        0 | 1 => Position { line, column: column + error.column().saturating_sub(1) },
        more => Position { line: line + more - 1, column: error.column().max(1) },
    }
}

/// Turns offsets into places; they only grow, so a text is walked through once.
pub(super) struct Walker<'a> {
    text: &'a str,
    offset: usize,
    at: Position,
}

impl<'a> Walker<'a> {
    pub(super) fn new(text: &'a str, lines_before: usize) -> Self {
        Self { text, offset: 0, at: Position { line: lines_before + 1, column: 1 } }
    }

    /// The place of this offset, which is no smaller than the one before.
    pub(super) fn at(&mut self, offset: usize) -> Position {
        let mut chars = self.text.get(self.offset..offset).unwrap_or_default().chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\r' if chars.peek() == Some(&'\n') => {}
                '\n' | '\r' => self.at = Position { line: self.at.line + 1, column: 1 },
                _ => self.at.column += 1,
            }
        }
        self.offset = offset;
        self.at
    }
}
