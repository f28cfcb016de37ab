//! Keys with nothing behind them. Under `validate`.
//!
//! In kas' files such a key is as good as none. In policies it could turn a document for one agent into one for everybody.

use postern_yaml::{Entry, Problems, Value};

/// Documents are not as deep.
const MAX_DEPTH: usize = 8;

/// Reports them all, but those that are needed and so were reported already.
pub(super) fn report(entries: &[Entry], problems: &mut Problems) {
    within(entries, "", &mut String::new(), MAX_DEPTH, problems);
}

fn within(entries: &[Entry], section: &str, path: &mut String, depth: usize, problems: &mut Problems) {
    let before = path.len();
    for Entry { key, at, value } in entries {
        path.truncate(before);
        if before > 0 {
            path.push('.');
        }
        path.push_str(key);
        match &value.value {
            Value::Null if key.as_ref() == "match" => {
                problems.add(*at, &**path, "nothing", "a selector is wanted, or {} for everybody");
            }
            Value::Null if !is_needed(section, key) => {
                problems.add(*at, &**path, "nothing", "a value is wanted, or no such key");
            }
            Value::Text(text) if text.is_empty() && matches!(&**key, "mode" | "redisLost") => {
                problems.add(*at, &**path, "empty text", "a value is wanted, or no such key");
            }
            Value::Mapping(entries) if depth > 0 => within(entries, key, path, depth - 1, problems),
            Value::List(items) if depth > 0 => {
                let list = path.len();
                for (index, item) in items.iter().enumerate() {
                    if let Value::Mapping(entries) = &item.value {
                        path.truncate(list);
                        path.push_str(&format!("[{index}]"));
                        within(entries, key, path, depth - 1, problems);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether whoever reads the section says so.
fn is_needed(section: &str, key: &str) -> bool {
    match section {
        "" => matches!(key, "apiVersion" | "kind" | "metadata" | "spec"),
        "metadata" => key == "name",
        "kubernetesApi" => key == "otherwise",
        "rules" => key == "effect",
        "rate" | "perServer" => true,
        rate => rate.starts_with("requestsPer"),
    }
}
