//! Tree -> typed values. [`section!`] declares the keys of a mapping and their kinds once; what is not declared is
//! unknown. A value that cannot be read is reported and left out, so that the rest is still looked at.

use super::{Entry, Node, Position, Problems, Value, cut};

/// A kind of value.
pub trait Read: Sized {
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
pub struct Place {
    pub at: Position,
    pub path: String,
}

impl Place {
    /// Of a key that should be in this section.
    pub fn key(&self, key: &str) -> Self {
        Self { at: self.at, path: join(&self.path, key) }
    }
}

/// A value that was written.
#[derive(Clone, Debug)]
pub struct Given<T> {
    pub value: T,
    pub place: Place,
}

/// Knows where the reader is and takes its reports.
pub struct Cursor<'a> {
    problems: &'a mut Problems,
    path: String,
}

impl<'a> Cursor<'a> {
    pub fn new(problems: &'a mut Problems) -> Self {
        Self { problems, path: String::new() }
    }

    /// Reports what is wrong with the value that is being read.
    pub fn problem(&mut self, at: Position, found: impl Into<String>, wanted: impl Into<String>) {
        self.problems.add(at, self.path.clone(), found, wanted);
    }

    /// The known word that was probably meant, for messages.
    pub fn nearest<'k>(&self, word: &str, known: &[&'k str]) -> Option<&'k str> {
        self.problems.nearest(word, known)
    }

    /// How many problems were reported so far.
    pub fn reported(&self) -> usize {
        self.problems.count()
    }

    /// Reports that the value is of another kind.
    pub fn mismatch<T>(&mut self, node: &Node, wanted: &str) -> Option<T> {
        self.problem(node.at, node.shown(), format!("{wanted} is wanted"));
        None
    }

    /// The entries of a mapping; nothing has none.
    pub fn entries<'n>(&mut self, node: &'n Node) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            Value::Null => Some(&[]),
            _ => self.mismatch(node, "a mapping of keys to values"),
        }
    }

    /// Reports the keys that are not among these.
    pub fn only(&mut self, entries: &[Entry], known: &[&str]) {
        for entry in entries.iter().filter(|entry| !known.contains(&&*entry.key)) {
            let wanted = match self.problems.nearest(&entry.key, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "no key is wanted here".to_owned(),
                None => format!("the keys here are {}", known.join(", ")),
            };
            let path = join(&self.path, &cut(&entry.key));
            self.problems.add(entry.at, path, "unknown key", wanted);
        }
    }

    /// The value of a key, `None` if there is none or it was reported.
    pub fn field<T: Read>(&mut self, entries: &[Entry], key: &str) -> Option<Given<T>> {
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

    /// Reports a key that is not written, or written with nothing.
    pub fn needs(&mut self, entries: &[Entry], at: Position, key: &str) {
        let entry = entries.iter().find(|entry| &*entry.key == key);
        let (at, found) = match entry.map(|entry| (entry.at, &entry.value.value)) {
            None => (at, "it is missing"),
            Some((at, Value::Null)) => (at, "nothing"),
            Some((at, Value::Text(text))) if text.is_empty() => (at, "empty text"),
            Some(_) => return,
        };
        self.within(key, |cursor| cursor.problem(at, found, "a value is wanted"));
    }

    /// The only entry of these keys that has a value.
    pub fn one<'n>(&mut self, entries: &'n [Entry], at: Position, keys: &[&str]) -> Option<&'n Entry> {
        let mut given = entries.iter().filter(|entry| keys.contains(&&*entry.key));
        let mut with_value = given.clone().filter(|entry| !matches!(entry.value.value, Value::Null));
        let wanted = || format!("exactly one of {} is wanted", keys.join(", "));
        match (with_value.next(), with_value.next()) {
            (Some(entry), None) if matches!(&entry.value.value, Value::Text(text) if text.is_empty()) => {
                self.within(&entry.key, |cursor| {
                    cursor.problem(entry.value.at, "empty text", "a value is wanted")
                });
                None
            }
            (Some(entry), None) => Some(entry),
            (Some(first), Some(second)) => {
                self.problem(second.at, format!("both {} and {}", first.key, second.key), wanted());
                None
            }
            (None, _) => {
                match given.next() {
                    Some(entry) => {
                        let found = format!("{} without a value", entry.key);
                        self.problem(entry.at, found, wanted());
                    }
                    // Otherwise one is probably misspelt, and that was reported.
                    None if entries.is_empty() => self.problem(at, "an empty mapping", wanted()),
                    None => {}
                }
                None
            }
        }
    }

    /// Runs `read` with the path of this key.
    pub fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        extend(&mut self.path, key);
        let result = read(self);
        self.path.truncate(before);
        result
    }
}

fn join(path: &str, key: &str) -> String {
    let mut joined = String::with_capacity(path.len() + 1 + key.len());
    joined.push_str(path);
    extend(&mut joined, key);
    joined
}

fn extend(path: &mut String, key: &str) {
    if !path.is_empty() && !key.starts_with('[') {
        path.push('.');
    }
    path.push_str(key);
}

/// A mapping declared by [`section!`].
pub trait Section: Sized + 'static {
    /// One without any key.
    fn empty() -> &'static Self;
}

impl<T: Section> Given<T> {
    /// The section, or an empty one.
    pub fn or_empty(given: &Option<Self>) -> &T {
        given.as_ref().map_or(T::empty(), |given| &given.value)
    }
}

/// Declares a mapping: its keys and their kinds. Every key may be missing; whoever reads it knows which must not. A key
/// is written as its field is called, or as is said behind it: `poll_period = "pollPeriod": Span`.
#[macro_export]
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($field:ident $(= $key:literal)?: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[allow(dead_code, reason = "a key that changes nothing is checked all the same")]
        pub(crate) struct $name { $(pub(crate) $field: Option<$crate::Given<$kind>>),* }

        impl $crate::Section for $name {
            fn empty() -> &'static Self {
                static EMPTY: $name = $name { $($field: None),* };
                &EMPTY
            }
        }

        impl $crate::Read for $name {
            fn read(node: &$crate::Node, cursor: &mut $crate::Cursor<'_>) -> Option<Self> {
                const KEYS: &[&str] = &[$($crate::section!(@key $field $($key)?)),*];
                let entries = cursor.entries(node)?;
                cursor.only(entries, KEYS);
                Some(Self { $($field: cursor.field(entries, $crate::section!(@key $field $($key)?))),* })
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
}

/// A section that is there even if nothing is in it.
#[derive(Debug, Default)]
pub struct Bare<T>(pub T);

impl<T: Read + Default> Read for Bare<T> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        T::read(node, cursor).map(Self)
    }

    fn null() -> Option<Self> {
        Some(Self(T::default()))
    }
}
