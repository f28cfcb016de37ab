//! Label and field selectors as they stand in a query, parsed once per request and asked per object by lists and
//! watches. Label selectors know `=`, `==`, `!=`, `in`, `notin`, `name` and `!name`; field selectors know `=`, `==`
//! and `!=` on any dotted path, where the real server knows a fixed set.

use serde_json::Value;

use super::status::Failure;

/// Both selectors of one request; the default matches everything.
#[derive(Debug, Default, Clone)]
pub(super) struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Debug, Clone)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Debug, Clone)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Selector, Failure> {
        let labels = split_outside_brackets(labels).into_iter().map(label_term).collect::<Result<_, _>>()?;
        let fields = split_outside_brackets(fields).into_iter().map(field_term).collect::<Result<_, _>>()?;
        Ok(Selector { labels, fields })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        self.labels.iter().all(|term| match term {
            LabelTerm::In(key, values) => label(key).is_some_and(|have| values.iter().any(|v| v == have)),
            LabelTerm::NotIn(key, values) => !label(key).is_some_and(|have| values.iter().any(|v| v == have)),
            LabelTerm::Exists(key) => label(key).is_some(),
            LabelTerm::Absent(key) => label(key).is_none(),
        }) && self.fields.iter().all(|term| (field(object, &term.path) == term.value) == term.equal)
    }
}

/// The field as text; an absent field is empty, as the real server has it.
fn field(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, name| value.get(name));
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Splits at commas that are not inside `in (a, b)`.
fn split_outside_brackets(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
    .collect()
}

fn label_term(term: &str) -> Result<LabelTerm, Failure> {
    let unable =
        || Failure::bad_request(format!("unable to parse requirement {term:?} of the label selector"));
    if let Some((head, set)) = term.split_once('(') {
        let values = set.strip_suffix(')').ok_or_else(unable)?;
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Ok(LabelTerm::In(key.to_owned(), values)),
            [key, "notin"] => Ok(LabelTerm::NotIn(key.to_owned(), values)),
            _ => Err(unable()),
        };
    }
    let owned = |key: &str, value: &str| (key.trim().to_owned(), vec![value.trim().to_owned()]);
    if let Some((key, value)) = term.split_once("!=") {
        let (key, values) = owned(key, value);
        return Ok(LabelTerm::NotIn(key, values));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        let (key, values) = owned(key, value);
        return Ok(LabelTerm::In(key, values));
    }
    match term.strip_prefix('!') {
        Some(key) => Ok(LabelTerm::Absent(key.trim().to_owned())),
        None if term.contains(char::is_whitespace) => Err(unable()),
        None => Ok(LabelTerm::Exists(term.to_owned())),
    }
}

fn field_term(term: &str) -> Result<FieldTerm, Failure> {
    let (split, equal) = match term.split_once("!=") {
        Some(split) => (Some(split), false),
        None => (term.split_once("==").or_else(|| term.split_once('=')), true),
    };
    let (path, value) = split
        .ok_or_else(|| Failure::bad_request(format!("invalid field selector {term:?}: want path=value")))?;
    Ok(FieldTerm { path: path.trim().to_owned(), value: value.trim().to_owned(), equal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Selector;

    #[test]
    fn selectors_choose_by_labels_and_by_fields() {
        let object = json!({"metadata": {"name": "web-0", "labels": {"app": "web", "tier": "front"}}});
        let cases = [
            ("", "", true),
            ("app=web", "", true),
            ("app==web,tier=front", "", true),
            ("app=db", "", false),
            ("app!=db", "", true),
            ("app in (db, web), tier", "", true),
            ("app notin (db,web)", "", false),
            ("missing", "", false),
            ("!missing", "", true),
            ("missing!=x", "", true),
            ("", "metadata.name=web-0", true),
            ("", "metadata.name!=web-0", false),
            ("", "metadata.namespace=", true),
        ];
        for (labels, fields, want) in cases {
            let selector = Selector::parse(labels, fields).unwrap();
            assert_eq!(selector.matches(&object), want, "labels {labels:?}, fields {fields:?}");
        }
    }

    #[test]
    fn a_selector_that_makes_no_sense_is_refused() {
        for (labels, fields) in
            [("app within (a)", ""), ("a b", ""), ("app in (a", ""), ("", "metadata.name")]
        {
            assert!(Selector::parse(labels, fields).is_err(), "{labels:?} {fields:?}");
        }
    }
}
