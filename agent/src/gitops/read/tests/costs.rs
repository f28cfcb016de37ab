//! What short files may cost whoever reads them: memory, however they are written, and time.

use super::*;

/// Bytes of memory that a value takes beside itself, counted low: no allocator gives less.
fn footprint(value: &Value) -> usize {
    let text = |text: &str| if text.is_empty() { 0 } else { text.len().max(24) };
    let entry = size_of::<String>() + size_of::<Value>();
    match value {
        Value::String(value) => text(value),
        Value::Array(items) => items.iter().map(|item| size_of::<Value>() + footprint(item)).sum(),
        Value::Object(entries) => {
            let inner: usize = entries.iter().map(|(key, value)| text(key) + footprint(value)).sum();
            // Eleven entries make a node of a B-tree, as do fewer.
            inner + entries.len().div_ceil(11) * 11 * entry
        }
        _ => 0,
    }
}

#[test]
fn a_commits_values_take_no_more_than_100_megabytes() {
    let bomb =
        |inner: &str| format!("x: [&a [{}], {}]\n", format!("{inner}, ").repeat(500), "*a, ".repeat(200));
    let keys = |count: usize| (0..count).map(|at| format!("k{at}: 1")).collect::<Vec<_>>().join(", ");
    for inner in [
        "{k: 1}".to_owned(),
        "{k: {}}".to_owned(),
        "{k: []}".to_owned(),
        "[1]".to_owned(),
        "[[]]".to_owned(),
        "x".to_owned(),
        format!("{{{}}}", keys(11)),
        format!("{{{}}}", keys(12)),
        "{a: {b: {c: {d: x}}}}".to_owned(),
    ] {
        let bomb = bomb(&inner);
        let text: String = (0..100).map(|at| format!("{}{bomb}---\n", map(&format!("a{at}")))).collect();
        let Read { objects, .. } = read(&[file("a.yaml", text)]);
        let bytes: usize = objects.iter().map(|object| footprint(&object.value)).sum();
        assert!(bytes < 100_000_000, "{inner:.40}: {} objects, {bytes} bytes", objects.len());
    }
}

/// Two objects of JSON in one line, which is no YAML; the second one has this.
fn json(inner: &str) -> String {
    object("first", "1") + &object("second", inner)
}

fn object(name: &str, inner: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"K","metadata":{{"name":"{name}"}},"a":{inner}}}"#)
}

#[test]
fn values_of_json_weigh_what_those_of_yaml_do() {
    let many = |inner: &str, count: usize| format!("[{}1]", format!("{inner},").repeat(count));
    let heavy = "a.json:1:65: there is too much content in the manifests with all aliases written out; nothing after \
        this was read; split the project, or narrow its paths";
    for (inner, problem) in [
        (many(r#"{"k":1}"#, 100_000), None),
        (many(r#"{"k":1}"#, 120_000), Some(heavy)),
        (many("1", 1_100_000), Some(heavy)),
        (many(&format!("\"{}\"", "x".repeat(160)), 180_000), Some(heavy)),
    ] {
        let (objects, problems) = shown(&[file("a.json", json(&inner))]);
        let wanted: &[&str] = if problem.is_some() { &["1 K first"] } else { &["1 K first", "1 K second"] };
        let told: Vec<String> = problem.map(str::to_owned).into_iter().collect();
        assert_eq!((objects, problems), (texts(wanted), told));
    }
}

#[test]
fn what_is_too_large_or_too_deep_as_yaml_is_not_tried_as_json() {
    let deep = "[".repeat(110) + &"]".repeat(110);
    for (text, wanted) in [
        (
            object("second", &format!("[{}1]", "1,".repeat(600_000))),
            "too much content with all aliases written out; ",
        ),
        (object("second", &deep), "not YAML: recursion limit exceeded; "),
        (json(&deep), "not YAML: recursion limit exceeded; "),
    ] {
        let (objects, problems) = shown(&[file("a.json", text)]);
        assert!(
            !objects.contains(&"1 K second".to_owned()) && problems.len() == 1,
            "{objects:?} {problems:?}"
        );
        assert!(problems[0].starts_with("a.json:1:") && problems[0].contains(wanted), "{problems:?}");
    }
}

#[test]
fn a_list_behind_many_keys_takes_no_longer_than_one_before_them() {
    let keys: String = (0..100_000).map(|at| format!("k{at}: 1\n")).collect();
    let items: String = (0..OBJECTS)
        .map(|at| format!("- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: a{at}}}}}\n"))
        .collect();
    let took = |text: String| {
        let cost = Cost::begin();
        assert_eq!(read(&[file("a.yaml", text)]).objects.len(), OBJECTS);
        cost.so_far()
    };
    let before = took(format!("kind: List\nitems:\n{items}{keys}"));
    let behind = took(format!("kind: List\n{keys}items:\n{items}"));
    assert!(behind < before * 3, "{behind:?}, {before:?}");
}
