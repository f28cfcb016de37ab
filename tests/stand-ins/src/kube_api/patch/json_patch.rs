//! RFC 6902: a list of operations, all or none (the caller drops the object when one fails).

use serde_json::Value;

use super::Failure;

pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), Failure> {
    let operations =
        patch.as_array().ok_or_else(|| Failure::bad_request("a JSON patch is a list of operations"))?;
    for operation in operations {
        step(object, operation).map_err(|why| {
            Failure::bad_request(format!("the JSON patch operation {operation} cannot be applied: {why}"))
        })?;
    }
    Ok(())
}

fn step(object: &mut Value, operation: &Value) -> Result<(), &'static str> {
    let path = operation["path"].as_str().ok_or("it has no path")?;
    let from = || operation["from"].as_str().ok_or("it has no from");
    let value = || operation.get("value").cloned().ok_or("it has no value");
    match operation["op"].as_str().unwrap_or_default() {
        "add" => add(object, path, value()?),
        "remove" => remove(object, path).map(drop),
        "replace" => {
            *object.pointer_mut(path).ok_or("nothing is at its path")? = value()?;
            Ok(())
        }
        "move" => {
            let moved = remove(object, from()?)?;
            add(object, path, moved)
        }
        "copy" => {
            let copied = object.pointer(from()?).cloned().ok_or("nothing is at its from")?;
            add(object, path, copied)
        }
        "test" => match object.pointer(path) == Some(&value()?) {
            true => Ok(()),
            false => Err("the test failed"),
        },
        _ => Err("its op is not one of add, remove, replace, move, copy, test"),
    }
}

/// The container that the last part of a path is in, and that part.
fn parent<'a>(object: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), &'static str> {
    let (head, last) = path.rsplit_once('/').ok_or("its path does not begin with a slash")?;
    let container = object.pointer_mut(head).ok_or("the parent of its path does not exist")?;
    Ok((container, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), &'static str> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    match parent(object, path)? {
        (Value::Object(fields), key) => {
            fields.insert(key, value);
            Ok(())
        }
        (Value::Array(items), key) => {
            let at = match key.as_str() {
                "-" => items.len(),
                index => index.parse().map_err(|_| "its index is not a number")?,
            };
            if at > items.len() {
                return Err("its index is past the end");
            }
            items.insert(at, value);
            Ok(())
        }
        _ => Err("the parent of its path is neither an object nor a list"),
    }
}

fn remove(object: &mut Value, path: &str) -> Result<Value, &'static str> {
    match parent(object, path)? {
        (Value::Object(fields), key) => fields.remove(&key).ok_or("nothing is at its path"),
        (Value::Array(items), key) => {
            let at: usize = key.parse().map_err(|_| "its index is not a number")?;
            if at >= items.len() {
                return Err("its index is past the end");
            }
            Ok(items.remove(at))
        }
        _ => Err("nothing is at its path"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::apply;

    #[test]
    fn every_operation_does_what_the_rfc_says() {
        let mut object = json!({"a": {"b/c": 1}, "list": [1, 3]});
        let patch = json!([
            {"op": "test", "path": "/a/b~1c", "value": 1},
            {"op": "add", "path": "/list/1", "value": 2},
            {"op": "add", "path": "/list/-", "value": 4},
            {"op": "replace", "path": "/a/b~1c", "value": 5},
            {"op": "copy", "from": "/a/b~1c", "path": "/copied"},
            {"op": "move", "from": "/a", "path": "/moved"},
            {"op": "remove", "path": "/list/0"},
        ]);
        apply(&mut object, &patch).unwrap();
        assert_eq!(object, json!({"copied": 5, "moved": {"b/c": 5}, "list": [2, 3, 4]}));
    }

    #[test]
    fn an_operation_that_cannot_be_applied_is_refused() {
        let operations = [
            json!({"op": "remove", "path": "/missing"}),
            json!({"op": "replace", "path": "/missing", "value": 1}),
            json!({"op": "add", "path": "/missing/deep", "value": 1}),
            json!({"op": "add", "path": "/list/7", "value": 1}),
            json!({"op": "test", "path": "/list", "value": 1}),
            json!({"op": "add", "path": "no-slash", "value": 1}),
            json!({"op": "add", "path": "/a"}),
            json!({"op": "nonsense", "path": "/a"}),
        ];
        for operation in operations {
            let mut object = json!({"list": []});
            assert!(apply(&mut object, &json!([operation])).is_err(), "{operation}");
        }
    }
}
