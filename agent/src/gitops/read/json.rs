//! JSON that is no YAML: several objects behind each other, pairs of surrogates, tabs where YAML wants none. Before it:
//! `read.rs`, once the YAML parser refused a document. It knows no places but those where values begin.

use postern_yaml::Position;
use serde_json::{Deserializer, Value};

/// A value and where it begins, or what is wrong and where.
pub(super) type Found = Result<(Position, Value), (Position, String)>;

/// The values of a text, as far as they are JSON. `None`: it is none, and was hardly meant to be.
pub(super) fn read(text: &str, lines_before: usize, named_json: bool) -> Option<Vec<Found>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut places = Walker::new(text, lines_before);
    let mut values = Deserializer::from_str(text).into_iter::<Value>();
    let mut found = Vec::new();
    loop {
        let offset = values.byte_offset();
        let blank = text[offset..].len() - text[offset..].trim_start().len();
        match values.next() {
            None => break,
            Some(Ok(value)) => found.push(Ok((places.at(offset + blank), value))),
            Some(Err(_)) if found.is_empty() && !named_json => return None,
            Some(Err(error)) => {
                let at = Position { line: lines_before + error.line(), column: error.column().max(1) };
                // Its place is told by ours.
                let words = error.to_string();
                let words = words.split(" at line ").next().unwrap_or_default();
                found.push(Err((at, format!("not JSON: {words}; nothing behind it was read"))));
                break;
            }
        }
    }
    Some(found)
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
