//! YAML with positions, for files that people write: text -> a tree that knows where everything stands (`parse.rs`) ->
//! typed values and every mistake at once (`read.rs`). Before it: bytes of an operator or of a stranger with a
//! repository. After it: the broker's configuration, agents' documents, policies. It knows no key of theirs and never panics.
//!
//! serde stops at the first mistake, so the tree is built here from the events of `granit-parser`: it forbids unsafe
//! code, keeps its state on the heap instead of the stack, bounds nesting and lookahead, and takes a panic or a hang
//! for a security flaw. What documents may cost beyond that is bounded in `parse.rs`: aliases and merged mappings
//! share their target and are paid for at its full size. Plain scalars mean what YAML 1.2's core schema says, so
//! `yes` and `on` are text, except where a boolean is wanted, or in another [`Dialect`]; `<<` merges, since kas' parser
//! does it too.

pub mod hostile;
mod kinds;
mod parse;
mod read;
mod suggest;

pub use kinds::{Positive, Span, UrlPath, Words, WordsOf, duration};
pub use parse::{Dialect, parse, parse_as, parse_part};
pub use read::{Bare, Cursor, Given, Place, Read, Section};
use std::{fmt, rc::Rc};

/// Where something stands in its file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Of the file.
    pub line: usize,
    /// In characters.
    pub column: usize,
}

impl Default for Position {
    fn default() -> Self {
        Self { line: 1, column: 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Of the value, or of the key if the key is the mistake.
    pub at: Position,
    /// Dotted path of the key; empty: the document as a whole.
    pub path: String,
    /// What is there.
    pub found: String,
    /// What should be.
    pub wanted: String,
}

impl fmt::Display for Problem {
    /// Behind a file's name and a colon, a place that tools understand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.words())
    }
}

impl Problem {
    /// What is wrong and what is wanted, without the place.
    pub fn words(&self) -> String {
        let Self { path, found, wanted, .. } = self;
        if path.is_empty() { format!("{found}; {wanted}") } else { format!("{path}: {found}; {wanted}") }
    }
}

/// Mistakes beyond these are counted only.
const MAX_PROBLEMS: usize = 500;
/// Longer words of a file are cut where messages quote them, in characters.
const MAX_QUOTED: usize = 60;

/// All mistakes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub fn add(
        &mut self,
        at: Position,
        path: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
    ) {
        if self.is_full() {
            self.more += 1;
            return;
        }
        self.list.push(Problem { at, path: path.into(), found: found.into(), wanted: wanted.into() });
    }

    /// Whether more of them would be counted only.
    fn is_full(&self) -> bool {
        self.list.len() == MAX_PROBLEMS
    }

    /// The known word that was probably meant. Files are written by strangers and looking for it takes time, so nothing
    /// is found for those problems that are counted only.
    fn nearest<'a>(&self, word: &str, known: &[&'a str]) -> Option<&'a str> {
        if self.is_full() { None } else { suggest::nearest(word, known) }
    }

    /// Whether something was said about this path already.
    pub fn mentions(&self, path: &str) -> bool {
        self.list.iter().any(|problem| problem.path == path)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.len() + self.more
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order of the file; the second is how many more there are.
    pub fn sorted(mut self) -> (Vec<Problem>, usize) {
        self.list.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
        (self.list, self.more)
    }
}

/// Shown at once; a gRPC status travels in a header, and those are no place for long texts. In bytes.
const MAX_SHOWN_TEXT: usize = 3_000;
/// See [`MAX_SHOWN_TEXT`].
const MAX_SHOWN: usize = 20;

impl fmt::Display for Problems {
    /// The first ones, one a line, and how many more there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (list, more) = self.clone().sorted();
        let (mut shown, mut bytes) = (0, 0);
        for problem in list.iter().take(MAX_SHOWN) {
            let Position { line, column } = problem.at;
            let line = format!("line {line} column {column}: {}", problem.words());
            bytes += line.len();
            if shown > 0 && bytes > MAX_SHOWN_TEXT {
                break;
            }
            write!(f, "{}{line}", if shown > 0 { "\n" } else { "" })?;
            shown += 1;
        }
        match list.len() - shown + more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    pub at: Position,
    pub value: Value,
    /// How many values it is with all aliases written out.
    weight: usize,
    /// How many collections are within each other, this one included, with all aliases written out.
    depth: usize,
}

#[derive(Debug)]
pub enum Value {
    Null,
    Bool(bool),
    /// As written, since only the reader knows which range is wanted.
    Number(String),
    Text(String),
    List(Vec<Rc<Node>>),
    Mapping(Vec<Entry>),
}

/// No two of a mapping have the same key.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Rc<str>,
    pub at: Position,
    pub value: Rc<Node>,
}

impl Node {
    /// The value in words, for messages.
    pub fn shown(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => cut(text),
            Value::Text(text) => format!("{:?}", cut(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }

    /// Whether a dotted path leads somewhere.
    pub fn has(&self, path: &str) -> bool {
        let mut node = Some(self);
        for key in path.split('.') {
            node = node.and_then(|node| node.get(key));
        }
        node.is_some()
    }

    fn get(&self, key: &str) -> Option<&Self> {
        let Value::Mapping(entries) = &self.value else { return None };
        entries.iter().find(|entry| &*entry.key == key).map(|entry| &*entry.value)
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
