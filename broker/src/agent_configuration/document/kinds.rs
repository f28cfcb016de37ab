//! The kinds of values in an agent's configuration, each in three forms: as written, as the field of a message, and as
//! JSON. `schema.rs` declares with them which keys there are.

use postern_yaml::{Cursor, Node, Read, Span, Value as Written, Words, WordsOf};
use serde_json::{Map, Value};

/// From what was written, if anything, to the field that is sent.
pub(super) trait Meant<T> {
    fn meant(self) -> T;
}

/// Protobuf's JSON form.
pub(super) trait Json {
    fn json(&self) -> Value;

    /// Whether it says as much as if it were not there.
    fn is_default(&self) -> bool {
        false
    }
}

/// Marks mappings, so that the conversions of lists and options do not overlap.
pub(super) trait Message {}

/// A value that says something even if it is the default of its kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Explicit<T>(pub(super) T);

/// A word that is sent as its number in the order of the words; the first is the default.
#[derive(Clone, Copy, Debug)]
pub(super) struct Enum<T>(pub(super) T);

/// Content of a key that no agent gets from here. Rails does.
#[derive(Clone, Debug)]
pub(super) struct ForRails(Value);

impl Meant<String> for Option<String> {
    fn meant(self) -> String {
        self.unwrap_or_default()
    }
}

impl Meant<bool> for Option<bool> {
    fn meant(self) -> bool {
        self.unwrap_or_default()
    }
}

impl Meant<u32> for Option<u32> {
    fn meant(self) -> u32 {
        self.unwrap_or_default()
    }
}

impl Meant<Option<bool>> for Option<Explicit<bool>> {
    fn meant(self) -> Option<bool> {
        self.map(|given| given.0)
    }
}

impl Meant<Vec<String>> for Option<Vec<String>> {
    fn meant(self) -> Vec<String> {
        self.unwrap_or_default()
    }
}

impl<A: Message, B: From<A>> Meant<Option<B>> for Option<A> {
    fn meant(self) -> Option<B> {
        self.map(B::from)
    }
}

impl<A: Message, B: From<A>> Meant<Vec<B>> for Option<Vec<A>> {
    fn meant(self) -> Vec<B> {
        self.into_iter().flatten().map(B::from).collect()
    }
}

impl Meant<Option<prost_types::Duration>> for Option<Span> {
    fn meant(self) -> Option<prost_types::Duration> {
        self.and_then(|span| span.0.try_into().ok())
    }
}

fn word<T: Words + PartialEq>(value: T) -> &'static str {
    T::WORDS.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| *word)
}

impl<T: Words + PartialEq> Meant<String> for Option<WordsOf<T>> {
    fn meant(self) -> String {
        self.map_or("", |given| word(given.0)).to_owned()
    }
}

impl Json for String {
    fn json(&self) -> Value {
        self.as_str().into()
    }

    fn is_default(&self) -> bool {
        self.is_empty()
    }
}

impl Json for bool {
    fn json(&self) -> Value {
        (*self).into()
    }

    fn is_default(&self) -> bool {
        !self
    }
}

impl Json for u32 {
    fn json(&self) -> Value {
        (*self).into()
    }

    fn is_default(&self) -> bool {
        *self == 0
    }
}

impl<T: Json> Json for Vec<T> {
    fn json(&self) -> Value {
        self.iter().map(Json::json).collect()
    }

    fn is_default(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Json> Json for Explicit<T> {
    fn json(&self) -> Value {
        self.0.json()
    }
}

impl<T: Read> Read for Explicit<T> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        T::read(node, cursor).map(Self)
    }
}

impl<T: Words + PartialEq> Json for WordsOf<T> {
    fn json(&self) -> Value {
        word(self.0).into()
    }
}

impl<T: Words + PartialEq> Read for Enum<T> {
    const BLANK: bool = true;

    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        WordsOf::<T>::read(node, cursor).map(|word| Self(word.0))
    }
}

impl<T: Words + PartialEq> Json for Enum<T> {
    fn json(&self) -> Value {
        word(self.0).into()
    }

    fn is_default(&self) -> bool {
        T::WORDS.first().is_some_and(|(_, first)| *first == self.0)
    }
}

impl Json for Span {
    fn json(&self) -> Value {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        // Three digits, six or nine, as many as are needed.
        match nanos {
            0 => format!("{seconds}s"),
            _ if nanos % 1_000_000 == 0 => format!("{seconds}.{:03}s", nanos / 1_000_000),
            _ if nanos % 1_000 == 0 => format!("{seconds}.{:06}s", nanos / 1_000),
            _ => format!("{seconds}.{nanos:09}s"),
        }
        .into()
    }
}

impl Json for ForRails {
    fn json(&self) -> Value {
        self.0.clone()
    }
}

impl Read for ForRails {
    fn read(node: &Node, _: &mut Cursor<'_>) -> Option<Self> {
        Some(Self(as_written(node)))
    }
}

/// As deep as the parser lets anything be.
fn as_written(node: &Node) -> Value {
    match &node.value {
        Written::Null => Value::Null,
        Written::Bool(value) => (*value).into(),
        Written::Number(text) => number(text),
        Written::Text(text) => text.as_str().into(),
        Written::List(items) => items.iter().map(|item| as_written(item)).collect(),
        Written::Mapping(entries) => {
            let given = entries.iter().filter(|entry| !matches!(entry.value.value, Written::Null));
            let pairs = given.map(|entry| (entry.key.to_string(), as_written(&entry.value)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

fn number(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) => number.into(),
        // Infinities and the like have no JSON form but their text.
        Err(_) => text
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map_or_else(|| text.into(), Value::Number),
    }
}

/// A mapping whose fields convert one to one into the message of the same shape; `needs` names those that must not be
/// missing or empty, `for_rails` those that have no field there.
macro_rules! message {
    (
        $name:ident => $wire:ident { $($field:ident: $kind:ty),* $(,)? }
        $(needs [$($needed:ident),*])? $(for_rails [$($rails:ident),* $(,)?])?
    ) => {
        #[derive(Debug, Default)]
        pub(super) struct $name { $($field: Option<$kind>,)* $($($rails: Option<ForRails>,)*)? }

        impl Message for $name {}

        impl Read for $name {
            fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
                const KEYS: &[&str] = &[$(key(stringify!($field)),)* $($(stringify!($rails),)*)?];
                let entries = cursor.entries(node)?;
                cursor.only(entries, KEYS);
                $($(cursor.needs(entries, node.at, stringify!($needed));)*)?
                Some(Self {
                    $($field: cursor.field(entries, key(stringify!($field))).map(|given| given.value),)*
                    $($($rails: cursor.field(entries, stringify!($rails)).map(|given| given.value),)*)?
                })
            }
        }

        impl From<$name> for wire::$wire {
            fn from(written: $name) -> Self {
                Self { $($field: Meant::meant(written.$field)),* }
            }
        }

        impl Json for $name {
            fn json(&self) -> serde_json::Value {
                let mut fields = serde_json::Map::new();
                $(put(&mut fields, key(stringify!($field)), &self.$field);)*
                $($(put(&mut fields, stringify!($rails), &self.$rails);)*)?
                fields.into()
            }
        }
    };
}
pub(super) use message;

/// A mapping of which exactly one key is written.
macro_rules! one_of {
    ($name:ident => $wire:ident, $oneof:path, $field:ident { $($key:ident: $kind:ty => $member:expr),* $(,)? }) => {
        #[derive(Debug)]
        #[expect(non_camel_case_types, reason = "variants are named as the keys are written")]
        pub(super) enum $name { $($key($kind)),* }

        impl Message for $name {}

        impl Read for $name {
            fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
                const KEYS: &[&str] = &[$(stringify!($key)),*];
                let entries = cursor.entries(node)?;
                cursor.only(entries, KEYS);
                let entry = cursor.one(entries, node.at, KEYS)?;
                cursor.within(&entry.key, |cursor| match &*entry.key {
                    $(stringify!($key) => <$kind>::read(&entry.value, cursor).map(Self::$key),)*
                    _ => None,
                })
            }
        }

        impl From<$name> for wire::$wire {
            fn from(written: $name) -> Self {
                use $oneof as Oneof;
                let member: Option<Oneof> = match written { $($name::$key(value) => $member(value).into()),* };
                Self { $field: member }
            }
        }

        impl Json for $name {
            fn json(&self) -> serde_json::Value {
                let (key, value) = match self { $(Self::$key(value) => (stringify!($key), value.json())),* };
                serde_json::Map::from_iter([(key.to_owned(), value)]).into()
            }
        }
    };
}
pub(super) use one_of;

/// A field's name as a key: `r#ref` is only Rust's spelling, and a one-of of one member is named after that.
pub(super) const fn key(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        [key @ .., b'_', b'o', b'n', b'e', b'o', b'f'] => field.split_at(key.len()).0,
        _ => field,
    }
}

pub(super) fn put<T: Json>(fields: &mut Map<String, Value>, key: &str, value: &Option<T>) {
    if let Some(value) = value.as_ref().filter(|value| !value.is_default()) {
        fields.insert(key.to_owned(), value.json());
    }
}
