//! What manifests are once they were read: an object's identity, its content, where it was written, and what is wrong
//! with one. Before it: `read.rs`, which makes them. After it: `order.rs` and the engine. Nothing here asks the cluster,
//! and no message tells a value of an object, which may be a Secret's.

use serde_json::Value;
use std::{
    collections::hash_map::DefaultHasher,
    fmt,
    hash::{Hash as _, Hasher as _},
    sync::Arc,
};

/// Which object; the version of its API is no part of that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Of its API; empty: the core group.
    pub group: String,
    /// As in its manifest, such as `Deployment`.
    pub kind: String,
    /// Empty: it belongs to the whole cluster, or its manifest names none and is not settled yet.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for ObjectId {
    /// `apps/Deployment default/web`, `Namespace a`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, kind, namespace, name } = self;
        let (after_group, after_namespace) = (slash_after(group), slash_after(namespace));
        write!(f, "{group}{after_group}{kind} {namespace}{after_namespace}{name}")
    }
}

fn slash_after(text: &str) -> &'static str {
    if text.is_empty() { "" } else { "/" }
}

/// An object as a commit wants it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Which object.
    pub id: ObjectId,
    /// Of its API, without the group: `v1`.
    pub version: String,
    /// All of it: a mapping with `apiVersion`, `kind` and `metadata.name`.
    pub value: Arc<Value>,
    /// In which file of the repository.
    pub file: Arc<str>,
    /// Where it begins in its file, from 1.
    pub line: usize,
    /// [`digest`] of `value`.
    pub digest: u128,
}

impl Manifest {
    /// Puts the object where its kind belongs, once the cluster's answer about the kind is known: one of a namespaced
    /// kind without a namespace goes to the default one, and one of the whole cluster loses its namespace.
    ///
    /// # Errors
    /// It needs a namespace and neither it nor the project names one.
    pub fn settle(mut self, namespaced: bool, default_namespace: &str) -> Result<Self, Problem> {
        if namespaced != self.id.namespace.is_empty() {
            return Ok(self);
        }
        if namespaced && default_namespace.is_empty() {
            let text = format!(
                "{} needs a namespace: write metadata.namespace, or default_namespace in the agent's configuration",
                self.id
            );
            return Err(Problem { file: self.file, line: self.line, column: 1, text });
        }
        let value = Arc::make_mut(&mut self.value);
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            if namespaced {
                metadata.insert("namespace".to_owned(), default_namespace.into());
            } else {
                metadata.remove("namespace");
            }
        }
        self.digest = digest(value);
        self.id.namespace = if namespaced { default_namespace.to_owned() } else { String::new() };
        Ok(self)
    }
}

/// What is wrong with a manifest, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In which file of the repository.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is there and what should be. Never a value of a Secret.
    pub text: String,
}

impl fmt::Display for Problem {
    /// `file:line:column: text`, a place that tools understand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, text } = self;
        write!(f, "{file}:{line}:{column}: {text}")
    }
}

/// A number for a value: the same for equal values, whatever the order of their keys, and another one for others. It
/// means nothing to another process.
pub fn digest(value: &Value) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        feed(value, &mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Recurses as deep as the value is nested, which whoever read it has bounded.
fn feed(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Null => 0_u8.hash(hasher),
        Value::Bool(value) => (1_u8, value).hash(hasher),
        // A number's own hash is the same for -1 and the largest one.
        Value::Number(number) => (2_u8, number.is_f64(), number.is_i64(), number).hash(hasher),
        Value::String(text) => (3_u8, text).hash(hasher),
        Value::Array(items) => {
            (4_u8, items.len()).hash(hasher);
            for item in items {
                feed(item, hasher);
            }
        }
        Value::Object(entries) => {
            (5_u8, entries.len()).hash(hasher);
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in entries {
                key.hash(hasher);
                feed(value, hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(value: Value) -> Manifest {
        let text = |at: &str| value.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = ObjectId {
            group: "apps".to_owned(),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        };
        let digest = digest(&value);
        Manifest { id, version: "v1".to_owned(), value: value.into(), file: "a.yaml".into(), line: 3, digest }
    }

    #[test]
    fn ids_are_shown_as_people_write_them() {
        for (group, namespace, shown) in [
            ("apps", "default", "apps/Deployment default/web"),
            ("", "default", "Deployment default/web"),
            ("apps", "", "apps/Deployment web"),
            ("", "", "Deployment web"),
        ] {
            let [group, namespace] = [group, namespace].map(str::to_owned);
            let id = ObjectId { group, kind: "Deployment".to_owned(), namespace, name: "web".to_owned() };
            assert_eq!(id.to_string(), shown);
        }
    }

    #[test]
    fn objects_settle_where_their_kind_belongs() {
        for (namespace, namespaced, default, wanted) in [
            (None, true, "default", Some("default")),
            (Some("a"), true, "default", Some("a")),
            (Some("a"), true, "", Some("a")),
            (None, false, "default", None),
            (None, false, "", None),
            (Some("a"), false, "default", None),
        ] {
            let mut value = json!({"kind": "K", "metadata": {"name": "n", "uid": "u"}});
            if let Some(namespace) = namespace {
                value["metadata"]["namespace"] = namespace.into();
            }
            let settled = manifest(value).settle(namespaced, default).unwrap();
            let written = settled.value.pointer("/metadata/namespace").and_then(Value::as_str);
            assert_eq!(written, wanted, "{namespace:?} {namespaced} {default:?}");
            assert_eq!(settled.id.namespace, wanted.unwrap_or_default());
            assert_eq!(settled.digest, digest(&settled.value));
            assert_eq!(settled.value["metadata"]["uid"], "u");
        }
        let problem = manifest(json!({"kind": "K", "metadata": {"name": "n"}})).settle(true, "").unwrap_err();
        assert_eq!(
            problem.to_string(),
            "a.yaml:3:1: apps/K n needs a namespace: write metadata.namespace, or default_namespace in the agent's \
             configuration"
        );
    }

    #[test]
    fn settling_one_of_two_that_share_a_value_leaves_the_other_as_it_was() {
        let shared = manifest(json!({"kind": "K", "metadata": {"name": "n"}}));
        let settled = shared.clone().settle(true, "a").unwrap();
        assert_eq!(shared.value.pointer("/metadata/namespace"), None);
        assert_ne!(shared.digest, settled.digest);
    }

    #[test]
    fn digests_tell_values_apart_but_not_the_order_of_their_keys() {
        let same =
            [r#"{"a": {"x": 1, "y": [1, 2]}, "b": null}"#, r#"{"b": null, "a": {"y": [1, 2], "x": 1}}"#];
        let [first, second] = same.map(|text| digest(&serde_json::from_str(text).unwrap()));
        assert_eq!(first, second);
        let values = [
            json!(null),
            json!(false),
            json!(true),
            json!(0),
            json!(1),
            json!(-1),
            json!(u64::MAX),
            json!(0.5),
            json!("1"),
            json!(""),
            json!([]),
            json!({}),
            json!([[]]),
            json!([1, 2]),
            json!([2, 1]),
            json!([[1], 2]),
            json!([[1, 2]]),
            json!({"a": 1}),
            json!({"a": "1"}),
            json!({"b": 1}),
            json!({"a": 1, "b": 2}),
            json!({"a": {"b": 2}}),
            json!({"ab": ""}),
            json!({"a": "b"}),
        ];
        let mut digests: Vec<_> = values.iter().map(digest).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), values.len());
    }
}
