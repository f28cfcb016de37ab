//! The patches of the Kubernetes API, chosen by content type, as plain functions from an object to the next one.
//! Server-side apply is treated as a strategic merge that may also create: without managed fields there are no owners,
//! so nothing is pruned when an applier stops naming a field, and appliers never conflict.

mod json_patch;
mod strategic;

use serde_json::{Map, Value};

use super::status::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
     application/strategic-merge-patch+json, application/apply-patch+yaml";

impl Kind {
    pub(super) fn of(content_type: &str) -> Result<Kind, Failure> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Kind::Json),
            "application/merge-patch+json" => Ok(Kind::Merge),
            "application/strategic-merge-patch+json" => Ok(Kind::Strategic),
            "application/apply-patch+yaml" => Ok(Kind::Apply),
            other => Err(Failure::unsupported_media_type(other, ACCEPTED)),
        }
    }
}

/// The object after the patch.
pub(super) fn apply(kind: Kind, object: &Value, patch: &Value) -> Result<Value, Failure> {
    let mut next = object.clone();
    match kind {
        Kind::Json => json_patch::apply(&mut next, patch)?,
        Kind::Merge => merge(&mut next, patch),
        Kind::Strategic | Kind::Apply => strategic::merge(&mut next, patch),
    }
    Ok(next)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, change) in changes {
        if change.is_null() {
            target.as_object_mut().map(|fields| fields.remove(key));
        } else {
            merge(&mut target[key], change);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Kind, apply};

    #[test]
    fn a_merge_patch_changes_adds_and_removes() {
        let object = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
        let patch = json!({"a": {"b": null, "d": {"e": 3}}, "list": [9]});
        let next = apply(Kind::Merge, &object, &patch).unwrap();
        assert_eq!(next, json!({"a": {"c": 2, "d": {"e": 3}}, "list": [9]}));
    }

    #[test]
    fn a_patch_of_an_unknown_type_is_refused() {
        assert_eq!(Kind::of("application/json").unwrap_err().code, 415);
        assert_eq!(Kind::of("application/merge-patch+json; charset=utf-8").unwrap(), Kind::Merge);
    }
}
