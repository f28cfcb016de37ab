//! Strategic merge: maps merge, a list of things with a key merges by that key, every other list is replaced. The real
//! server takes the keys from the types; here they follow from the field's name, which is enough for the kinds served.
//! Knows the directives `$patch`, `$retainKeys`, `$setElementOrder/..` and `$deleteFromPrimitiveList/..`.

use serde_json::{Map, Value};

/// The field by which items of the list `field` are told apart.
fn merge_key(field: &str, items: &[Value]) -> Option<&'static str> {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets"
        | "resourceClaims" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "ports" if items.iter().any(|item| item.get("containerPort").is_some()) => Some("containerPort"),
        "ports" => Some("port"),
        "conditions" => Some("type"),
        "ownerReferences" => Some("uid"),
        "hostAliases" | "podIPs" | "hostIPs" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    let replace = changes.get("$patch").is_some_and(|directive| directive == "replace");
    if replace || !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    if let Some(Value::Array(kept)) = changes.get("$retainKeys") {
        fields.retain(|key, _| kept.iter().any(|k| k == key.as_str()));
    }
    for (key, change) in changes {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (fields.get_mut(list), change) {
                items.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            merge_field(fields, key, change);
        }
    }
    for (key, order) in changes {
        let Some(list) = key.strip_prefix("$setElementOrder/") else { continue };
        if let (Some(Value::Array(items)), Value::Array(order)) = (fields.get_mut(list), order) {
            sort(list, items, order);
        }
    }
}

fn merge_field(fields: &mut Map<String, Value>, key: &str, change: &Value) {
    match change {
        Value::Null => {
            fields.remove(key);
        }
        Value::Object(inner) if inner.get("$patch").is_some_and(|directive| directive == "delete") => {
            fields.remove(key);
        }
        Value::Object(_) => merge(fields.entry(key).or_insert(Value::Null), change),
        Value::Array(items) => merge_list(fields.entry(key).or_insert(Value::Null), key, items),
        plain => {
            fields.insert(key.to_owned(), plain.clone());
        }
    }
}

fn merge_list(target: &mut Value, field: &str, changes: &[Value]) {
    let replace = changes.iter().any(|change| change["$patch"] == "replace");
    if replace || !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(items) = target else { return };
    if field == "finalizers" {
        items.extend(changes.iter().filter(|change| !items.contains(change)).cloned().collect::<Vec<_>>());
        return;
    }
    let Some(key) = merge_key(field, changes).or_else(|| merge_key(field, items)) else {
        *items = changes.to_vec();
        return;
    };
    for change in changes {
        match change["$patch"].as_str() {
            Some("replace") => continue,
            Some("delete") => {
                items.retain(|item| item[key] != change[key]);
                continue;
            }
            _ => {}
        }
        match items.iter_mut().find(|item| item[key] == change[key]) {
            Some(item) => merge(item, change),
            None => {
                let mut item = Value::Null;
                merge(&mut item, change);
                items.push(item);
            }
        }
    }
}

/// Puts items into the order asked for; items that the order does not name stay behind those it names.
fn sort(field: &str, items: &mut [Value], order: &[Value]) {
    let key = merge_key(field, order).or_else(|| merge_key(field, items));
    let rank = |item: &Value| {
        order
            .iter()
            .position(|wanted| match key {
                Some(key) => wanted[key] == item[key],
                None => wanted == item,
            })
            .unwrap_or(order.len())
    };
    items.sort_by_key(rank);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::merge;

    fn merged(mut object: Value, patch: Value) -> Value {
        merge(&mut object, &patch);
        object
    }

    #[test]
    fn containers_merge_by_name_and_keep_the_order_asked_for() {
        let object = json!({"containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b"}]});
        let patch = json!({
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [
                {"name": "a", "image": "2", "args": ["z"]},
                {"name": "b", "$patch": "delete"},
                {"name": "c", "ports": [{"containerPort": 80}]},
            ],
        });
        let want = json!({"containers": [
            {"name": "c", "ports": [{"containerPort": 80}]},
            {"name": "a", "image": "2", "args": ["z"]},
        ]});
        assert_eq!(merged(object, patch), want);
    }

    #[test]
    fn directives_replace_retain_and_delete() {
        let object = json!({
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "labels": {"a": "1"},
            "selector": {"b": "2"},
            "finalizers": ["one", "two"],
            "env": [{"name": "A", "value": "1"}],
        });
        let patch = json!({
            "strategy": {"$retainKeys": ["type"], "type": "Recreate"},
            "labels": {"$patch": "replace", "c": "3"},
            "selector": {"$patch": "delete"},
            "$deleteFromPrimitiveList/finalizers": ["one"],
            "finalizers": ["three"],
            "env": [{"$patch": "replace"}, {"name": "B"}],
        });
        let want = json!({
            "strategy": {"type": "Recreate"},
            "labels": {"c": "3"},
            "finalizers": ["two", "three"],
            "env": [{"name": "B"}],
        });
        assert_eq!(merged(object, patch), want);
    }

    #[test]
    fn service_ports_merge_by_port_and_plain_lists_are_replaced() {
        let object = json!({"ports": [{"port": 80, "name": "http"}], "args": [1, 2]});
        let patch = json!({"ports": [{"port": 443}, {"port": 80, "name": "web"}], "args": [3]});
        let want = json!({"ports": [{"port": 80, "name": "web"}, {"port": 443}], "args": [3]});
        assert_eq!(merged(object, patch), want);
    }
}
