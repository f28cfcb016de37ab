//! Tree -> typed values. [`section!`] declares the keys of a mapping and their kinds once; what is not declared is
//! unknown. A value that cannot be read is reported and left out, so that the rest is still looked at.

use super::{Entry, Node, Position, Problems, Value, cut, suggest};
use std::{rc::Rc, time::Duration};

/// A kind of value.
pub(crate) trait Read: Sized {
    /// Whether empty text means "not given", as it does in protobuf.
    const BLANK: bool = false;

    /// Reads it, or reports why not. Never called with [`Value::Null`].
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self>;

    /// What a key without a value means; by default as much as no key.
    fn null() -> Option<Self> {
        None
    }
}

/// Where a value stands, for what is found out about it later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) at: Position,
    pub(crate) path: String,
}

impl Place {
    /// Of a key that should be in this section.
    pub(crate) fn key(&self, key: &str) -> Self {
        Self { at: self.at, path: join(&self.path, key) }
    }
}

/// A value that was written.
#[derive(Clone, Debug)]
pub(crate) struct Given<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// Knows where the reader is and takes its reports.
pub(crate) struct Cursor<'a> {
    problems: &'a mut Problems,
    path: String,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(problems: &'a mut Problems) -> Self {
        Self { problems, path: String::new() }
    }

    /// Reports what is wrong with the value that is being read.
    pub(crate) fn problem(&mut self, at: Position, found: impl Into<String>, wanted: impl Into<String>) {
        self.problems.add(at, self.path.clone(), found, wanted);
    }

    /// Reports that the value is of another kind.
    pub(crate) fn mismatch<T>(&mut self, node: &Node, wanted: &str) -> Option<T> {
        self.problem(node.at, node.shown(), format!("{wanted} is wanted"));
        None
    }

    /// The entries of a mapping; nothing has none.
    pub(crate) fn entries<'n>(&mut self, node: &'n Node) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            Value::Null => Some(&[]),
            _ => self.mismatch(node, "a mapping of keys to values"),
        }
    }

    /// Reports the keys that are not among these.
    pub(crate) fn only(&mut self, entries: &[Entry], known: &[&str]) {
        for entry in entries.iter().filter(|entry| !known.contains(&&*entry.key)) {
            let wanted = match suggest::nearest(&entry.key, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "no key is wanted here".to_owned(),
                None => format!("the keys here are {}", known.join(", ")),
            };
            let path = join(&self.path, &cut(&entry.key));
            self.problems.add(entry.at, path, "unknown key", wanted);
        }
    }

    /// The value of a key, `None` if there is none or it was reported.
    pub(crate) fn field<T: Read>(&mut self, entries: &[Entry], key: &str) -> Option<Given<T>> {
        let entry = entries.iter().find(|entry| &*entry.key == key)?;
        let node = &*entry.value;
        let value = self.within(key, |cursor| match &node.value {
            Value::Null => T::null(),
            Value::Text(text) if text.is_empty() && T::BLANK => None,
            _ => T::read(node, cursor),
        })?;
        let at = if matches!(node.value, Value::Mapping(_) | Value::Null) { entry.at } else { node.at };
        Some(Given { value, place: Place { at, path: join(&self.path, key) } })
    }

    /// Runs `read` with the path of this key.
    pub(crate) fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        self.path = join(&self.path, key);
        let result = read(self);
        self.path.truncate(before);
        result
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() || key.starts_with('[') { format!("{path}{key}") } else { format!("{path}.{key}") }
}

/// A mapping declared by [`section!`].
pub(crate) trait Section: Sized + 'static {
    /// One without any key.
    fn empty() -> &'static Self;
}

impl<T: Section> Given<T> {
    /// The section, or an empty one.
    pub(crate) fn or_empty(given: &Option<Self>) -> &T {
        given.as_ref().map_or(T::empty(), |given| &given.value)
    }
}

/// Declares a mapping: its keys and their kinds. Every key may be missing; whoever reads it knows which must not.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[allow(dead_code, reason = "a key that changes nothing is checked all the same")]
        pub(super) struct $name { $(pub(super) $field: Option<$crate::yaml::Given<$kind>>),* }

        impl $crate::yaml::Section for $name {
            fn empty() -> &'static Self {
                static EMPTY: $name = $name { $($field: None),* };
                &EMPTY
            }
        }

        impl $crate::yaml::Read for $name {
            fn read(node: &$crate::yaml::Node, cursor: &mut $crate::yaml::Cursor<'_>) -> Option<Self> {
                const KEYS: &[&str] = &[$(stringify!($field)),*];
                let entries = cursor.entries(node)?;
                cursor.only(entries, KEYS);
                Some(Self { $($field: cursor.field(entries, stringify!($field))),* })
            }
        }
    };
}
pub(crate) use section;

/// A section that is there even if nothing is in it.
#[derive(Debug, Default)]
pub(crate) struct Bare<T>(pub(crate) T);

impl<T: Read + Default> Read for Bare<T> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        T::read(node, cursor).map(Self)
    }

    fn null() -> Option<Self> {
        Some(Self(T::default()))
    }
}

impl Read for String {
    const BLANK: bool = true;

    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Number(text) => {
                let found = format!("{} is a number", cut(text));
                cursor.problem(
                    node.at,
                    found,
                    format!("text is wanted: put quotes around it, \"{}\"", cut(text)),
                );
                None
            }
            Value::Bool(value) => {
                let wanted = format!("text is wanted: put quotes around it, \"{value}\"");
                cursor.problem(node.at, format!("{value} is a truth value"), wanted);
                None
            }
            _ => cursor.mismatch(node, "text"),
        }
    }
}

impl Read for bool {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        match &node.value {
            Value::Bool(value) => Some(*value),
            _ => cursor.mismatch(node, "true or false"),
        }
    }
}

impl Read for u32 {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let number = match &node.value {
            Value::Number(text) => whole(text),
            // As protobuf's JSON has it.
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        match number.and_then(|number| Self::try_from(number).ok()) {
            Some(number) => Some(number),
            None => cursor.mismatch(node, "a whole number from 0 to 4294967295"),
        }
    }
}

/// `None`: not whole, or far too large.
fn whole(text: &str) -> Option<i64> {
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok();
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok();
    }
    text.parse().ok()
}

impl Read for f64 {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let number = match &node.value {
            Value::Number(text) => whole(text).map(|number| number as Self).or_else(|| text.parse().ok()),
            _ => None,
        };
        match number {
            Some(number) if number.is_finite() && number >= 0.0 => Some(number),
            _ => cursor.mismatch(node, "a number not below 0"),
        }
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let Value::List(items) = &node.value else { return cursor.mismatch(node, "a list") };
        let item = |(at, item): (usize, &Rc<Node>)| {
            cursor.within(&format!("[{at}]"), |cursor| match &item.value {
                Value::Null => T::null().or_else(|| cursor.mismatch(item, "a value")),
                _ => T::read(item, cursor),
            })
        };
        // A bad entry is reported, so nobody acts on the list without it.
        Some(items.iter().enumerate().filter_map(item).collect())
    }
}

/// `30s`, `0.5s`: protobuf's JSON form of a duration, not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A [`Span`] longer than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Positive(pub(crate) Duration);

/// What protobuf allows, in seconds: ten thousand years.
const MAX_SPAN: f64 = 315_576_000_000.0;

/// `None`: not of this form, negative, or out of protobuf's range.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (seconds, nanos) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || nanos.len() > 9 || !digits(nanos) || number.ends_with('.') {
        return None;
    }
    let seconds: u64 = seconds.parse().ok()?;
    let nanos: u32 = format!("{nanos:0<9}").parse().ok()?;
    (seconds as f64 <= MAX_SPAN).then(|| Duration::new(seconds, nanos))
}

impl Read for Span {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let span = match &node.value {
            Value::Text(text) => duration(text),
            _ => None,
        };
        match span {
            Some(span) => Some(Self(span)),
            None => cursor.mismatch(node, "a duration in seconds such as 30s or 0.5s"),
        }
    }
}

impl Read for Positive {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let Span(span) = Span::read(node, cursor)?;
        if span.is_zero() {
            return cursor.mismatch(node, "a duration longer than 0s");
        }
        Some(Self(span))
    }
}

/// A path of a URL.
#[derive(Clone, Debug)]
pub(crate) struct UrlPath(pub(crate) String);

impl Read for UrlPath {
    const BLANK: bool = true;

    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let text = String::read(node, cursor)?;
        if !text.starts_with('/') {
            return cursor.mismatch(node, "a path that begins with a slash");
        }
        Some(Self(text))
    }
}

/// One word out of a few.
pub(crate) trait Words: Copy + 'static {
    /// All of them, as written.
    const WORDS: &'static [(&'static str, Self)];
}

/// A value of `T`, read from its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WordsOf<T>(pub(crate) T);

impl<T: Words> Read for WordsOf<T> {
    const BLANK: bool = true;

    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let known = || T::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        let Value::Text(text) = &node.value else {
            return cursor.mismatch(node, &format!("one of {}", known().join(", ")));
        };
        if let Some((_, value)) = T::WORDS.iter().find(|(word, _)| word == text) {
            return Some(Self(*value));
        }
        let wanted = match suggest::nearest(text, &known()) {
            Some(near) => format!("one of {} is wanted; did you mean `{near}`?", known().join(", ")),
            None => format!("one of {} is wanted", known().join(", ")),
        };
        cursor.problem(node.at, node.shown(), wanted);
        None
    }
}

/// Declares an enum and how its members are written.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($member:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name { $($member),* }

        impl $crate::yaml::Words for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$member)),*];
        }
    };
}
pub(crate) use words;
