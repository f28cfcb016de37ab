//! What views keep of an object: a few fields, each of bounded size, copied out so that the object can go. Nothing here
//! reads an annotation, an environment, a command line or data.

mod event;
mod node;
mod pod;
mod workload;

pub(crate) use event::Event;
pub(crate) use node::Node;
pub(crate) use pod::{Trouble, Use};
pub(crate) use workload::Workload;

use serde_json::Value;

/// Names of objects are at most 253 bytes, everywhere.
const NAME: usize = 253;
/// Reasons, versions, times, roles and the like.
pub(crate) const WORD: usize = 128;
/// Of conditions and Events.
const MESSAGE: usize = 512;

/// Text of at most so many bytes, on one line, without what cannot be seen; empty if there is none.
pub(crate) fn text(value: &Value, most: usize) -> Box<str> {
    let mut text = String::new();
    for letter in value.as_str().unwrap_or_default().chars() {
        let letter = if is_visible(letter) { letter } else { ' ' };
        if text.len() + letter.len_utf8() > most {
            break;
        }
        text.push(letter);
    }
    text.into()
}

/// Neither moves a cursor nor turns the direction of text.
fn is_visible(letter: char) -> bool {
    let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    !turns && !letter.is_control()
}

/// A count; 0 if there is none.
fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// The elements of a list, none if it is not one.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The condition of this type.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(&object["status"]["conditions"]).find(|condition| condition["type"] == kind)
}

/// Whether an object could have this name.
fn is_name(name: &str) -> bool {
    (1..=NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An object's namespace and name; `None` if it has no name that an object could have.
pub(crate) fn names(object: &Value) -> Option<(&str, &str)> {
    let name = object["metadata"]["name"].as_str()?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    (is_name(name) && (namespace.is_empty() || is_name(namespace))).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_cut_between_characters_and_stays_on_its_line() {
        assert_eq!(&*text(&json!("aä"), 2), "a");
        assert_eq!(&*text(&json!("aä"), 3), "aä");
        assert_eq!(&*text(&json!(5), 3), "");
        assert_eq!(&*text(&json!("a\r\n\u{1b}[1m\u{202e}b"), 100), "a   [1m b");
    }

    #[test]
    fn an_object_without_a_proper_name_has_none() {
        assert_eq!(names(&json!({"metadata": {"name": "a", "namespace": "n"}})), Some(("n", "a")));
        assert_eq!(names(&json!({"metadata": {"name": "a"}})), Some(("", "a")));
        for odd in
            [json!(null), json!({}), json!({"metadata": {"name": ""}}), json!({"metadata": {"name": 1}})]
        {
            assert_eq!(names(&odd), None);
        }
        for odd in ["a".repeat(254), "a b".to_owned(), "a\n".to_owned(), "ä".to_owned()] {
            assert_eq!(names(&json!({"metadata": {"name": odd}})), None);
            assert_eq!(names(&json!({"metadata": {"name": "a", "namespace": odd}})), None);
        }
    }
}
