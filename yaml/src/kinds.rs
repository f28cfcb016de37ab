//! The kinds of values that files have in common: text, numbers, durations, words out of a few. `read.rs` calls them;
//! they follow protobuf's JSON form, as kas does.

use super::{Cursor, Node, Read, Value, cut};
use std::{rc::Rc, time::Duration};

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
            // kas reads YAML 1.1, where these are booleans too.
            Value::Text(text) if matches!(&**text, "yes" | "Yes" | "YES" | "on" | "On" | "ON") => Some(true),
            Value::Text(text) if matches!(&**text, "no" | "No" | "NO" | "off" | "Off" | "OFF") => Some(false),
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
pub struct Span(pub Duration);

/// A [`Span`] longer than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positive(pub Duration);

/// What protobuf allows, in seconds: ten thousand years.
const MAX_SPAN: f64 = 315_576_000_000.0;

/// `None`: not of this form, negative, or out of protobuf's range.
pub fn duration(text: &str) -> Option<Duration> {
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
pub struct UrlPath(pub String);

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
pub trait Words: Copy + 'static {
    /// All of them, as written.
    const WORDS: &'static [(&'static str, Self)];
}

/// A value of `T`, read from its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordsOf<T>(pub T);

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
        let wanted = match cursor.nearest(text, &known()) {
            Some(near) => format!("one of {} is wanted; did you mean `{near}`?", known().join(", ")),
            None => format!("one of {} is wanted", known().join(", ")),
        };
        cursor.problem(node.at, node.shown(), wanted);
        None
    }
}

/// Declares an enum and how its members are written.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($member:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(clippy::enum_variant_names, reason = "members are named as they are written")]
        pub(crate) enum $name { $($member),* }

        impl $crate::Words for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$member)),*];
        }
    };
}
