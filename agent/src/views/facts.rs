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
pub(crate) const NAME: usize = 253;
/// Reasons, versions, times, roles and the like.
const WORD: usize = 128;
/// Of conditions and Events.
const MESSAGE: usize = 512;

/// Text of at most so many bytes, cut between characters; empty if there is none.
fn text(value: &Value, most: usize) -> Box<str> {
    let text = value.as_str().unwrap_or_default();
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
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

/// An object's namespace and name; `None` if it has no name that an object could have.
pub(crate) fn names(object: &Value) -> Option<(&str, &str)> {
    let name = object["metadata"]["name"].as_str()?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    (!name.is_empty() && name.len() <= NAME && namespace.len() <= NAME).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(&*text(&json!("aä"), 2), "a");
        assert_eq!(&*text(&json!("aä"), 3), "aä");
        assert_eq!(&*text(&json!(5), 3), "");
    }

    #[test]
    fn an_object_without_a_proper_name_has_none() {
        assert_eq!(names(&json!({"metadata": {"name": "a", "namespace": "n"}})), Some(("n", "a")));
        assert_eq!(names(&json!({"metadata": {"name": "a"}})), Some(("", "a")));
        for odd in [json!(null), json!({}), json!({"metadata": {"name": ""}}), json!({"metadata": {"name": 1}})] {
            assert_eq!(names(&odd), None);
        }
        assert_eq!(names(&json!({"metadata": {"name": "a".repeat(254)}})), None);
    }
}
