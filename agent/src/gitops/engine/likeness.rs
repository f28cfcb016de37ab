//! Whether a live object is as the engine left it, and as a manifest wants it. Pure. Nothing of an object's content is
//! kept: a [`Seen`] holds numbers, its owner and how far it is.

use crate::gitops::{
    inventory,
    object::{ObjectId, digest},
    status::{self, Status},
};
use serde_json::{Map, Value, json};

/// What every server changes by itself.
const FLEETING: [&str; 4] = ["managedFields", "resourceVersion", "generation", "selfLink"];

/// What the engine remembers of a live object.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Of its content, [`fingerprint`].
    pub(crate) print: u128,
    pub(crate) uid: String,
    /// Newer ones are larger; absent where the server counts in some other way.
    pub(crate) version: Option<u64>,
    /// As much of it as tells whose it is.
    pub(crate) outline: Value,
    pub(crate) status: Status,
}

impl Seen {
    pub(crate) fn of(live: &Value) -> Self {
        let metadata = &live["metadata"];
        Self {
            print: fingerprint(live),
            uid: metadata["uid"].as_str().unwrap_or_default().to_owned(),
            version: version(live),
            outline: outline(live),
            status: status::status(live),
        }
    }

    /// Whether this is an older state of the object than `other`.
    pub(crate) fn older_than(&self, other: &Self) -> bool {
        self.version.zip(other.version).is_some_and(|(this, other)| this < other)
    }
}

fn version(live: &Value) -> Option<u64> {
    live["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// What decides about ownership: its identity, labels and annotations that are about that, and whether it is going.
fn outline(live: &Value) -> Value {
    let metadata = &live["metadata"];
    let annotations = metadata["annotations"].as_object().map(|annotations| {
        let of_ownership = |key: &&String| inventory::is_about_ownership(key);
        let kept = annotations.iter().filter(|(key, _)| of_ownership(key));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>()
    });
    let mut outline = json!({ "metadata": { "name": metadata["name"], "annotations": annotations } });
    for key in ["namespace", "uid", "deletionTimestamp"] {
        if let Some(value) = metadata.get(key) {
            outline["metadata"][key] = value.clone();
        }
    }
    outline
}

/// The identity of a live object of a kind of `group`.
pub(crate) fn id_of(group: &str, kind: &str, live: &Value) -> ObjectId {
    let text = |key: &str| live["metadata"][key].as_str().unwrap_or_default().to_owned();
    ObjectId {
        group: group.to_owned(),
        kind: kind.to_owned(),
        namespace: text("namespace"),
        name: text("name"),
    }
}

/// A number for what somebody decided about an object: without its status and what the server counts.
pub(crate) fn fingerprint(live: &Value) -> u128 {
    let Some(object) = live.as_object() else {
        return digest(live);
    };
    let mut parts = Map::new();
    for (key, value) in object {
        let number = match (key.as_str(), value) {
            ("status", _) => continue,
            ("metadata", Value::Object(metadata)) => {
                let lasting = metadata.iter().filter(|(key, _)| !FLEETING.contains(&key.as_str()));
                let metadata: Map<_, _> =
                    lasting.map(|(key, value)| (key.clone(), digest(value).to_string().into())).collect();
                digest(&Value::Object(metadata))
            }
            _ => digest(value),
        };
        parts.insert(key.clone(), number.to_string().into());
    }
    digest(&Value::Object(parts))
}

/// Whether all that a manifest says is so in the live object. `false` does not mean that something must be done: the
/// server may write the same in another way, for example `0.5` CPUs as `500m`.
pub(crate) fn holds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let live = live.get(key);
            match wanted {
                Value::Null => live.is_none_or(Value::is_null),
                _ => live.is_some_and(|live| holds(live, wanted)),
            }
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| holds(live, wanted))
        }
        _ => live == wanted,
    }
}

/// A number for what a live object has at the places that a manifest names, in the server's own writing. Where the server
/// keeps what is wanted somewhere else, as with a Secret's `stringData`, it counts all that is beside that place.
pub(crate) fn likeness(live: &Value, wanted: &Value) -> u128 {
    let (Some(live), Some(wanted)) = (live.as_object(), wanted.as_object()) else {
        return digest(live);
    };
    let without_status = |object: &Map<String, Value>| -> Map<String, Value> {
        let fields = object.iter().filter(|(key, _)| *key != "status");
        fields.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let mut lasting = without_status(live);
    if let Some(metadata) = lasting.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !FLEETING.contains(&key.as_str()));
    }
    digest(&cut(&Value::Object(lasting), &Value::Object(without_status(wanted))))
}

/// What is in `live` where `wanted` has something.
fn cut(live: &Value, wanted: &Value) -> Value {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            if wanted.iter().any(|(key, wanted)| !live.contains_key(key) && !is_empty(wanted)) {
                return Value::Object(live.clone());
            }
            let kept = wanted.iter().filter_map(|(key, wanted)| Some((key, wanted, live.get(key)?)));
            Value::Object(kept.map(|(key, wanted, live)| (key.clone(), cut(live, wanted))).collect())
        }
        (Value::Array(live), Value::Array(wanted)) if live.len() == wanted.len() => {
            live.iter().zip(wanted).map(|(live, wanted)| cut(live, wanted)).collect()
        }
        _ => live.clone(),
    }
}

/// What servers leave out as they like.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_bookkeeping_are_no_part_of_a_fingerprint_and_everything_else_is() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1", "b": "2"},
            "metadata": {"name": "a", "labels": {"l": "1"}, "resourceVersion": "5", "managedFields": [1]},
        });
        let mut same = object.clone();
        same["metadata"]["resourceVersion"] = "6".into();
        same["metadata"]["managedFields"] = json!([]);
        same["metadata"]["generation"] = 2.into();
        same["status"] = json!({"ready": true});
        assert_eq!(fingerprint(&object), fingerprint(&same));
        for (pointer, value) in [("/data/a", "2"), ("/metadata/labels/l", "2"), ("/kind", "Secret")] {
            let mut other = object.clone();
            *other.pointer_mut(pointer).unwrap() = value.into();
            assert_ne!(fingerprint(&object), fingerprint(&other), "{pointer}");
        }
    }

    #[test]
    fn a_manifest_holds_whatever_others_and_the_server_added() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "empty": null, "replicas": 2}});
        for (live, expected) in [
            (json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "replicas": 2}, "status": {}}), true),
            (json!({"spec": {"ports": [{"port": 1}], "replicas": 3}}), false),
            (json!({"spec": {"ports": [{"port": 1}, {"port": 2}], "replicas": 2}}), false),
            (json!({"spec": {"ports": [], "replicas": 2}}), false),
            (json!({"spec": {"ports": [{"port": 1}], "replicas": 2, "empty": 1}}), false),
            (json!({}), false),
        ] {
            assert_eq!(holds(&live, &wanted), expected, "{live}");
        }
    }

    #[test]
    fn what_a_manifest_names_is_compared_in_the_servers_own_writing() {
        let wanted = json!({"spec": {"cpu": 0.5, "items": [{"name": "a"}], "paused": false}});
        let live = json!({
            "spec": {"cpu": "500m", "items": [{"name": "a"}, {"name": "injected"}], "replicas": 1},
            "metadata": {"resourceVersion": "1"}, "status": {},
        });
        let with = |pointer: &str, value: Value| {
            let mut other = live.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            likeness(&other, &wanted) == likeness(&live, &wanted)
        };
        for (pointer, value, same) in [
            ("/spec/replicas", json!(2), true),
            ("/metadata/resourceVersion", json!("2"), true),
            ("/status", json!({"ready": true}), true),
            ("/spec/cpu", json!("600m"), false),
            ("/spec/items/0/name", json!("b"), false),
        ] {
            assert_eq!(with(pointer, value), same, "{pointer}");
        }
        let wanted = json!({"stringData": {"key": "1"}});
        let of =
            |data: Value| likeness(&json!({"data": data, "metadata": {"resourceVersion": "1"}}), &wanted);
        assert_eq!(of(json!({"key": "MQ=="})), of(json!({"key": "MQ=="})));
        assert_ne!(of(json!({"key": "MQ=="})), of(json!({"key": "Mg=="})));
    }

    #[test]
    fn what_is_remembered_of_a_secret_is_none_of_its_values() {
        let seen = Seen::of(&json!({
            "apiVersion": "v1", "kind": "Secret", "data": {"key": "aHVzaA=="},
            "metadata": {"name": "a", "namespace": "b", "annotations": {
                "config.k8s.io/owning-inventory": "1-2", "notes": "aHVzaA==",
            }, "resourceVersion": "12"},
        }));
        assert!(!format!("{seen:?}").contains("aHVzaA"), "{seen:?}");
        assert_eq!(seen.outline["metadata"]["annotations"]["config.k8s.io/owning-inventory"], "1-2");
        assert_eq!(seen.version, Some(12));
    }
}
