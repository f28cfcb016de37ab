//! Whether a live object has become what was asked for, from nothing but its own content: the rules of kstatus, which
//! agentk used. Before it: what the cluster answered or a watch brought. After it: whoever waits. It asks nobody, knows
//! no clock, and takes whatever content there is without failing.

mod builtin;

#[cfg(test)]
mod tests;

use serde_json::Value;
use std::fmt;

/// The most characters of a condition's text that are repeated: controllers write what they like.
const TEXT: usize = 300;

/// How far an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is as asked for.
    Current,
    /// It is on its way: what is missing.
    InProgress(String),
    /// It will not get there by itself: why.
    Failed(String),
    /// It is being deleted.
    Terminating,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("ready"),
            Self::InProgress(what) => write!(f, "not ready yet: {what}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Terminating => f.write_str("being deleted"),
        }
    }
}

/// Of a live object, with its status. Objects of kinds without rules are [`Status::Current`] unless they say otherwise
/// in the conditions that most controllers share.
pub fn status(object: &Value) -> Status {
    if !text(object, "/metadata/deletionTimestamp").is_empty() {
        return Status::Terminating;
    }
    if let (Some(wanted), Some(seen)) =
        (number(object, "/metadata/generation"), number(object, "/status/observedGeneration"))
        && wanted != seen
    {
        return Status::InProgress(format!(
            "its controller has seen generation {seen} and not yet {wanted}, the latest"
        ));
    }
    for condition in conditions(object) {
        match (condition.kind, condition.status) {
            ("Reconciling", "True") => return Status::InProgress(condition.says()),
            ("Stalled", "True") => return Status::Failed(condition.says()),
            _ => {}
        }
    }
    builtin::status(object).unwrap_or_else(|| ready(object))
}

/// The last resort: the condition that many custom resources have. One that is not there yet tells nothing.
fn ready(object: &Value) -> Status {
    for condition in conditions(object).filter(|condition| condition.kind == "Ready") {
        match condition.status {
            "True" => return Status::Current,
            "False" | "Unknown" => return Status::InProgress(condition.says()),
            _ => {}
        }
    }
    Status::Current
}

/// One of `status.conditions`.
struct Condition<'a> {
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
}

impl Condition<'_> {
    /// The message, else the reason, else its name: one line of at most [`TEXT`] characters.
    fn says(&self) -> String {
        match (self.message, self.reason) {
            ("", "") => format!("{} is {}", short(self.kind), short(self.status)),
            ("", reason) => short(reason),
            (message, _) => short(message),
        }
    }
}

fn conditions(object: &Value) -> impl Iterator<Item = Condition<'_>> {
    let list = object.pointer("/status/conditions").and_then(Value::as_array);
    list.into_iter().flatten().map(|condition| Condition {
        kind: text(condition, "/type"),
        status: text(condition, "/status"),
        reason: text(condition, "/reason"),
        message: text(condition, "/message"),
    })
}

/// The string at `path`, empty if there is none.
fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The whole number at `path`.
fn number(object: &Value, path: &str) -> Option<i64> {
    object.pointer(path).and_then(Value::as_i64)
}

/// One line of at most [`TEXT`] characters.
fn short(text: &str) -> String {
    let (kept, rest) = match text.char_indices().nth(TEXT) {
        Some((end, _)) => (&text[..end], "…"),
        None => (text, ""),
    };
    kept.replace(char::is_control, " ") + rest
}
