//! Which object a mapping is, and whether the API would take it for one. Before it: `read.rs`. It looks at `apiVersion`,
//! `kind` and `metadata` only; what the rest should be is up to the cluster, which knows the kind.

use crate::gitops::object::ObjectId;
use postern_yaml::{Node, Position, Value as Written};
use serde_json::{Map, Value};
use std::rc::Rc;

/// What is wrong with an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The keys that lead to it.
    pub(super) path: Vec<String>,
    pub(super) text: String,
}

/// Where an object stands.
pub(super) struct Place<'a> {
    /// `None`: only its beginning is known.
    pub(super) node: Option<&'a Node>,
    pub(super) at: Position,
}

impl<'a> Place<'a> {
    /// Where this path leads, as far as it leads anywhere.
    pub(super) fn find(&self, path: &[String]) -> Position {
        let (mut node, mut at) = (self.node, self.at);
        for key in path {
            let Some(Written::Mapping(entries)) = node.map(|node| &node.value) else { break };
            let Some(entry) = entries.iter().find(|entry| *entry.key == **key) else { break };
            let at_key = matches!(entry.value.value, Written::Null | Written::Mapping(_));
            at = if at_key { entry.at } else { entry.value.at };
            node = Some(&*entry.value);
        }
        at
    }

    /// What is in the list under this key.
    pub(super) fn items(&self, key: &str) -> &'a [Rc<Node>] {
        let Some(Written::Mapping(entries)) = self.node.map(|node| &node.value) else { return &[] };
        match entries.iter().find(|entry| &*entry.key == key).map(|entry| &entry.value.value) {
            Some(Written::List(items)) => items,
            _ => &[],
        }
    }

    /// Of one of its [items](Self::items).
    pub(super) fn item(&self, item: Option<&'a Rc<Node>>) -> Self {
        let node = item.map(|item| &**item);
        Self { node, at: node.map_or(self.at, |node| node.at) }
    }
}

/// What a value is, without the value.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The object's id and the version of its API, or everything that is wrong with it.
pub(super) fn identify(object: &Map<String, Value>) -> Result<(ObjectId, String), Vec<Mistake>> {
    let mut check = Check::default();
    let api_version = check.text(object, &["apiVersion"]);
    let kind = check.text(object, &["kind"]);
    let (group, version) = match api_version.split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", api_version),
    };
    let is_legal = is_label(version) && (group.is_empty() != api_version.contains('/'));
    let is_legal = is_legal && (group.is_empty() || is_subdomain(group));
    if !(api_version.is_empty() || is_legal) {
        check.mistake(
            &["apiVersion"],
            format!("{} is not legal; group/version, or v1, is wanted", quoted(kind, api_version)),
        );
    }
    if !kind.is_empty() && !is_kind(kind) {
        check.mistake(
            &["kind"],
            format!("{} is not legal; a word such as Deployment is wanted", quoted(kind, kind)),
        );
    }
    let (mut name, mut namespace) = ("", "");
    match object.get("metadata") {
        Some(Value::Object(metadata)) => {
            name = check.name(metadata);
            namespace = check.optional(metadata, "namespace");
            if let Some(wanted) = illegal(group, kind, name) {
                check
                    .mistake(&["metadata", "name"], format!("{} is not legal; {wanted}", quoted(kind, name)));
            }
            if !namespace.is_empty() && !is_label(namespace) {
                check.mistake(
                    &["metadata", "namespace"],
                    format!("{} is not legal; {LABEL}", quoted(kind, namespace)),
                );
            }
            check.texts(metadata, "labels");
            check.texts(metadata, "annotations");
        }
        None | Some(Value::Null) => {
            check.mistake(&["metadata"], "it is missing; metadata.name is wanted".to_owned())
        }
        Some(other) => check.mistake(&["metadata"], format!("{}; a mapping is wanted", kind_of(other))),
    }
    if !check.mistakes.is_empty() {
        return Err(check.mistakes);
    }
    let [group, kind, namespace, name, version] = [group, kind, namespace, name, version].map(str::to_owned);
    Ok((ObjectId { group, kind, namespace, name }, version))
}

#[derive(Default)]
struct Check {
    mistakes: Vec<Mistake>,
}

impl Check {
    fn mistake(&mut self, path: &[&str], text: String) {
        let shown: Vec<_> = path.iter().map(|key| cut(key)).collect();
        let text = format!("{}: {text}", shown.join("."));
        self.mistakes.push(Mistake { path: path.iter().map(|&key| key.to_owned()).collect(), text });
    }

    /// Text that must be there; empty if it is not, which was said then.
    fn text<'v>(&mut self, object: &'v Map<String, Value>, path: &[&str]) -> &'v str {
        let last = path.last().copied().unwrap_or_default();
        match object.get(last) {
            Some(Value::String(text)) if !text.is_empty() => return text,
            None | Some(Value::Null) => self.mistake(path, "it is missing; text is wanted".to_owned()),
            Some(Value::String(_)) => self.mistake(path, "empty text; a word is wanted".to_owned()),
            Some(other) => self.not_text(path, other),
        }
        ""
    }

    fn not_text(&mut self, path: &[&str], found: &Value) {
        let advice = match found {
            Value::Bool(_) | Value::Number(_) => ": put it in quotes",
            _ => "",
        };
        self.mistake(path, format!("{}; text is wanted{advice}", kind_of(found)));
    }

    fn name<'v>(&mut self, metadata: &'v Map<String, Value>) -> &'v str {
        let named = metadata.get("name").is_some_and(|name| !name.is_null());
        if !named && metadata.contains_key("generateName") {
            let text =
                "a name is wanted: with generateName every commit would make one more object".to_owned();
            self.mistake(&["metadata", "generateName"], text);
            return "";
        }
        self.text(metadata, &["metadata", "name"])
    }

    fn optional<'v>(&mut self, metadata: &'v Map<String, Value>, key: &str) -> &'v str {
        match metadata.get(key) {
            None | Some(Value::Null) => "",
            Some(Value::String(text)) => text,
            Some(other) => {
                self.not_text(&["metadata", key], other);
                ""
            }
        }
    }

    /// A mapping of text to text, as the API wants labels and annotations of every kind.
    fn texts(&mut self, metadata: &Map<String, Value>, key: &str) {
        match metadata.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(entries)) => {
                for (entry, value) in entries {
                    if !value.is_string() && !value.is_null() {
                        self.not_text(&["metadata", key, entry], value);
                    }
                }
            }
            Some(other) => {
                self.mistake(&["metadata", key], format!("{}; a mapping is wanted", kind_of(other)))
            }
        }
    }
}

/// Longer words are cut where messages quote them, in characters.
const QUOTED: usize = 60;

fn cut(text: &str) -> String {
    let text = text.replace(char::is_control, "\u{fffd}");
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// What is not legal, where it is a word. Where an object is broken it may be anything, such as a line of a Secret.
fn quoted(kind: &str, text: &str) -> String {
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-/".contains(&byte));
    if is_word && kind != "Secret" { format!("{:?}", cut(text)) } else { "this".to_owned() }
}

const LABEL: &str =
    "at most 63 lower-case letters, digits and dashes are wanted, with a letter or digit at both ends";

/// Groups all of whose kinds take a DNS subdomain for a name. Of others, some kinds take more, and the cluster knows.
const DNS_NAMES: &[&str] = &["", "apps", "autoscaling", "batch", "policy", "apiextensions.k8s.io"];

/// What is wanted of a name, if this is not legal.
fn illegal(group: &str, kind: &str, name: &str) -> Option<&'static str> {
    if name.is_empty() {
        // Said already.
        return None;
    }
    if group.is_empty() && kind == "Namespace" {
        return (!is_label(name)).then_some(LABEL);
    }
    if DNS_NAMES.contains(&group) {
        return (!is_subdomain(name)).then_some(
            "at most 253 lower-case letters, digits, dashes and dots are wanted, with a letter or digit at both ends of each part",
        );
    }
    let in_path = !matches!(name, "." | "..")
        && name.len() <= 253
        && !name
            .contains(|char: char| matches!(char, '/' | '%') || char.is_whitespace() || char.is_control());
    (!in_path).then_some("at most 253 characters without blanks, slashes and percent signs are wanted")
}

fn is_kind(kind: &str) -> bool {
    kind.len() <= 63
        && kind.starts_with(|char: char| char.is_ascii_alphabetic())
        && kind.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A DNS label as RFC 1123 has it, in lower case.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// Parts with dots between them; unlike DNS, the API bounds the length of the whole only.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
}
