//! The schema beside what is really read: keys, words, bounds, selectors, and what ships.

use super::schema;
use crate::{Problems, load_dir};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A key of a mapping, or the entry of a list.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Entry,
}

/// What `$ref` stands for, and the object that refers to it.
fn resolved<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    match node["$ref"].as_str() {
        Some(reference) => resolved(root, &root["$defs"][reference.trim_start_matches("#/$defs/")]),
        None => node,
    }
}

/// The node itself, or each of what it can be.
fn forms<'a>(root: &'a Value, node: &'a Value) -> Vec<&'a Value> {
    let node = resolved(root, node);
    match node["oneOf"].as_array() {
        Some(forms) => forms.iter().flat_map(|form| self::forms(root, form)).collect(),
        None => vec![node],
    }
}

/// The smallest value of a form: what is required, and something where anything must be.
fn example(root: &Value, node: &Value) -> Value {
    let node = forms(root, node)[0];
    if let Some(value) = node.get("const").or(node["examples"].get(0)).or(node["enum"].get(0)) {
        return value.clone();
    }
    match node["type"].as_str() {
        Some("object") => {
            let required = node["required"].as_array().cloned().unwrap_or_default();
            let required = required.iter().map(|key| key.as_str().unwrap());
            let mut object: Map<String, Value> =
                required.map(|key| (key.to_owned(), example(root, &node["properties"][key]))).collect();
            if object.is_empty() && node["minProperties"] == 1 {
                // Some are for everybody only, or for few.
                let narrow =
                    ["match", "drain", "clients", "agentCallsPerMinute", "agentWait", "grace", "idle"];
                let known = node["properties"].as_object().unwrap().keys();
                let mut free = known.filter(|key| !narrow.contains(&key.as_str()));
                let first = free.next().unwrap();
                object.insert(first.clone(), example(root, &node["properties"][first]));
            }
            Value::Object(object)
        }
        Some("array") => json!([example(root, &node["items"])]),
        Some("integer" | "number") => json!(7.min(node["maximum"].as_u64().unwrap())),
        other => panic!("no example of {other:?}: {node}"),
    }
}

/// A document with a value at the end of a way.
fn document(root: &Value, node: &Value, way: &[Step], value: Value) -> Value {
    let Some((step, rest)) = way.split_first() else { return value };
    match step {
        Step::Entry => json!([document(root, &resolved(root, node)["items"], rest, value)]),
        Step::Key(key) => {
            let form =
                forms(root, node).into_iter().find(|form| form["properties"].get(key).is_some()).unwrap();
            let mut object = match example(root, &strip(form)) {
                Value::Object(object) => object,
                other => panic!("{other}"),
            };
            // What is there only because something must be.
            if form["minProperties"] == 1 && form["required"].as_array().is_none_or(Vec::is_empty) {
                object.clear();
            }
            object.insert(key.clone(), document(root, &form["properties"][key], rest, value));
            Value::Object(object)
        }
    }
}

/// Without its own example, which may have too much.
fn strip(node: &Value) -> Value {
    let mut node = node.clone();
    node.as_object_mut().unwrap().remove("examples");
    node
}

/// Every node of a kind and the way to it.
fn visit(root: &Value, node: &Value, way: &mut Vec<Step>, seen: &mut dyn FnMut(&[Step], &Value)) {
    for form in forms(root, node) {
        seen(way, form);
        if let Some(properties) = form["properties"].as_object() {
            for (key, node) in properties {
                way.push(Step::Key(key.clone()));
                visit(root, node, way, seen);
                way.pop();
            }
        }
        if let Some(items) = form.get("items") {
            way.push(Step::Entry);
            visit(root, items, way, seen);
            way.pop();
        }
    }
}

/// Every node of every kind, with a way to put another value there.
fn every(mut seen: impl FnMut(&[Step], &Value, &dyn Fn(Value) -> Value)) {
    let root = schema();
    for kind in root["oneOf"].as_array().unwrap() {
        visit(&root, kind, &mut Vec::new(), &mut |way, node| {
            // What the first version has is what stands beside `spec`.
            let old =
                matches!(way, [Step::Key(spec), Step::Key(inner), ..] if spec == "spec" && inner == "match");
            if !old {
                seen(way, node, &|value| document(&root, kind, way, value));
            }
        });
    }
}

/// JSON is YAML.
fn load(document: &Value) -> Result<(), Problems> {
    let mut document = document.clone();
    // Of limits only these can be for projects.
    if document["kind"] == "LimitPolicy" && document["match"].get("projectIds").is_some() {
        document["spec"] = json!({ "agentCallsPerMinute": 7 });
    }
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), document.to_string()).unwrap();
    load_dir(directory.path()).map(|_| ())
}

#[test]
fn every_mapping_has_the_keys_that_are_read() {
    let mut mappings = 0;
    every(|way, node, with| {
        let Some(properties) = node["properties"].as_object() else { return };
        let problems = load(&with(json!({ "zzzzzzzzzzzzzzzz": 1 }))).unwrap_err();
        let problem =
            problems.list.iter().find(|problem| problem.path.ends_with("zzzzzzzzzzzzzzzz")).unwrap();
        let read = problem.wanted.strip_prefix("the keys here are ").unwrap();
        let read: BTreeSet<&str> = read.split(", ").collect();
        let mut known: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        if matches!(way, [Step::Key(key)] if key == "match") {
            // What a kind cannot ask for is another test's.
            known = read.clone();
        }
        // A form of several: the others' keys are known there too.
        if known.is_subset(&read) && known.len() < read.len() {
            assert!(["perMinute", "rate", "burst"].iter().all(|key| read.contains(key)), "{way:?}: {read:?}");
        } else {
            assert_eq!(read, known, "{way:?}");
        }
        mappings += 1;
    });
    assert!(mappings >= 40, "{mappings}");
}

#[test]
fn words_numbers_and_examples_are_what_is_read() {
    let (mut words, mut numbers, mut examples) = (0, 0, 0);
    every(|way, node, with| {
        let good = |value: Value| {
            let document = with(value);
            load(&document).unwrap_or_else(|problems| panic!("{way:?}: {document}: {problems}"));
        };
        let bad = |value: Value| {
            let document = with(value);
            assert!(load(&document).is_err(), "{way:?}: {document} was taken");
        };
        // Backends are for everybody, and drains, and clients' addresses.
        for word in node["enum"].as_array().into_iter().flatten() {
            good(word.clone());
            bad(json!("another"));
            words += 1;
        }
        if let (Some(least), Some(most)) = (node["minimum"].as_u64(), node["maximum"].as_u64()) {
            good(json!(least));
            good(json!(most));
            bad(json!(least as i64 - 1));
            bad(json!(most + 1));
            numbers += 1;
        }
        for example in node["examples"].as_array().into_iter().flatten() {
            good(example.clone());
            examples += 1;
        }
        if node["minItems"] == 1 {
            bad(json!([]));
        }
    });
    assert!(words > 20 && numbers > 20 && examples > 30, "{words} {numbers} {examples}");
}

#[test]
fn selectors_ask_for_what_the_schema_lets_them_ask_for() {
    let root = schema();
    let dimensions = [
        ("agentIds", json!([1])),
        ("tokenHashes", json!(["ab"])),
        ("projectIds", json!([1])),
        ("clientCidrs", json!(["10.0.0.0/8"])),
        ("agentVersions", json!(["16.*"])),
    ];
    for kind in root["oneOf"].as_array().unwrap() {
        let form = resolved(&root, kind);
        for (dimension, value) in &dimensions {
            let way = [Step::Key("match".to_owned()), Step::Key((*dimension).to_owned())];
            let known = form["properties"]["match"]["properties"].get(dimension).is_some();
            let document = match known {
                true => document(&root, kind, &way, value.clone()),
                false => document(&root, kind, &way[..1], json!({ *dimension: value })),
            };
            let told = load(&document);
            // What drains and clients' addresses cannot be set for is theirs, and not the kind's.
            let of_the_match = told
                .as_ref()
                .is_err_and(|problems| problems.list.iter().any(|problem| problem.path.starts_with("match")));
            assert_eq!(of_the_match, !known, "{document}: {told:?}");
        }
        let modes = form["properties"]["mode"]["enum"].as_array().unwrap();
        let way = [Step::Key("mode".to_owned())];
        let report = document(&root, kind, &way, json!("report"));
        assert_eq!(load(&report).is_ok(), modes.contains(&json!("report")), "{report}");
        let way = [Step::Key("canary".to_owned())];
        let canary = document(&root, kind, &way, json!("5%"));
        let told = load(&canary);
        let of_the_canary =
            told.is_err_and(|problems| problems.list.iter().any(|problem| problem.path == "canary"));
        assert_eq!(of_the_canary, form["properties"]["canary"].get("not").is_some(), "{canary}");
    }
}

/// As far as this schema goes; patterns are not looked at.
fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    let schema = resolved(root, schema);
    if let Some(forms) = schema["oneOf"].as_array() {
        return forms.iter().filter(|form| fits(root, form, value)).count() == 1;
    }
    let kind = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    let constant = schema.get("const").is_none_or(|wanted| wanted == value);
    let word = schema["enum"].as_array().is_none_or(|words| words.contains(value));
    let range = value.as_f64().is_none_or(|number| {
        schema["minimum"].as_f64().is_none_or(|least| number >= least)
            && schema["maximum"].as_f64().is_none_or(|most| number <= most)
    });
    let keys = value.as_object().is_none_or(|object| {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        required.iter().all(|key| object.contains_key(key.as_str().unwrap()))
            && object.iter().all(|(key, value)| match schema["properties"].get(key) {
                Some(property) => fits(root, property, value),
                None => schema.get("additionalProperties").is_none(),
            })
    });
    let items =
        value.as_array().is_none_or(|items| items.iter().all(|item| fits(root, &schema["items"], item)));
    kind && constant && word && range && keys && items && schema.get("not").is_none()
}

fn json_of(node: &postern_yaml::Node) -> Value {
    match &node.value {
        postern_yaml::Value::Null => Value::Null,
        postern_yaml::Value::Bool(value) => json!(value),
        postern_yaml::Value::Number(text) => serde_json::from_str(text).unwrap(),
        postern_yaml::Value::Text(text) => json!(text),
        postern_yaml::Value::List(items) => items.iter().map(|item| json_of(item)).collect(),
        postern_yaml::Value::Mapping(entries) => {
            let entries = entries.iter().map(|entry| (entry.key.to_string(), json_of(&entry.value)));
            Value::Object(entries.collect())
        }
    }
}

#[test]
fn what_ships_fits_the_schema() {
    let root = schema();
    let mut documents = 0;
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("\n---\n") {
            let mut problems = postern_yaml::Problems::default();
            let document = json_of(&postern_yaml::parse(part, &mut problems).unwrap());
            assert!(fits(&root, &root, &document), "{}: {document}", path.display());
            let mut more = document.clone();
            more["spec"]["another"] = json!(1);
            assert!(!fits(&root, &root, &more), "{more}");
            documents += 1;
        }
    }
    assert_eq!(documents, 7);
}
