//! Why something did not happen in the cluster, in words for an operator's log, a report or an Event. The API server's
//! own words are kept, on one line, except where they may quote what a Secret holds.

use super::Kind;
use http::StatusCode;
use serde_json::Value;

/// Of the API server's words; webhooks may say as much as they like.
const MOST_WORDS: usize = 500;

/// The API's reason for an object that is not as its kind must be.
const INVALID: &str = "Invalid";

/// Why the cluster did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nothing in the cluster serves this kind now.
    #[error(
        "the cluster does not serve {kind} of {group_version}; is its CustomResourceDefinition installed, and is this \
         version served?"
    )]
    UnknownKind {
        /// `v1`, `apps/v1`, or the group alone where no version was named.
        group_version: String,
        kind: String,
    },
    /// The API server said no.
    #[error("cannot {what}: {message} ({})", code(.status, .reason))]
    Refused {
        /// What was asked, as in `apply Deployment default/web`.
        what: String,
        status: u16,
        /// The API's word for it, `Invalid` say; may be empty.
        reason: String,
        /// One line. Never a part of a Secret's data.
        message: String,
    },
    /// There was no answer, or only a part of one.
    #[error("cannot {what}: the Kubernetes API does not answer: {cause}")]
    Unreachable {
        what: String,
        /// One line.
        cause: String,
    },
    /// A question that cannot be asked or an answer that is not one.
    #[error("{what}: {problem}")]
    Odd {
        what: String,
        /// One line; never a part of an object.
        problem: String,
    },
    /// Nothing was asked: another replica may lead by now.
    #[error("cannot {what}: the lease was not renewed in time, another replica may lead")]
    TermOver { what: String },
}

impl ClusterError {
    /// Whether the same may well succeed soon without anybody doing anything.
    pub fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TermOver { .. } => true,
            Self::Refused { .. } if self.is_invalid() => false,
            Self::Refused { status, .. } => matches!(status, 408 | 409 | 429 | 500 | 502 | 503 | 504),
            Self::UnknownKind { .. } | Self::Odd { .. } => false,
        }
    }

    /// Somebody else changed the object in between, or made it already.
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// The object is not one that the API server takes.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 422, .. })
            || matches!(self, Self::Refused { reason, .. } if reason == INVALID)
    }

    /// The agent may not do this.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.status(), Some(401 | 403))
    }

    /// There is no such object, or no namespace for it.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// What was known of the past is forgotten: lists and watches begin anew.
    pub(super) fn is_expired(&self) -> bool {
        self.status() == Some(410)
    }

    /// The whole kind is missing, not only an object.
    pub(super) fn lacks_path(&self) -> bool {
        // The API server's own words: it has no field for this.
        let unserved = |message: &String| {
            message.contains("could not find the requested resource") || message.contains("page not found")
        };
        matches!(self, Self::Refused { status: 404, message, .. } if unserved(message))
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// From the body of an answer that is no success, or of an ERROR in a watch. `secret`: it is about Secrets.
    pub(super) fn refused(what: &str, status: StatusCode, body: &[u8], secret: bool) -> Self {
        let document: Option<Value> = serde_json::from_slice(body).ok();
        let document = document.filter(|document| document["kind"] == "Status");
        let (reason, message) = match &document {
            Some(document) => {
                let words = document["message"].as_str().unwrap_or_default();
                let told = if secret { about_secrets(status, words, document) } else { words.to_owned() };
                let reason =
                    if is_typing(words) { INVALID } else { document["reason"].as_str().unwrap_or_default() };
                (one_line(reason), told)
            }
            None if secret => (String::new(), String::new()),
            None => {
                (String::new(), String::from_utf8_lossy(&body[..body.len().min(MOST_WORDS)]).into_owned())
            }
        };
        let message = match one_line(&message) {
            message if message.is_empty() => "the API server does not say why".to_owned(),
            message => message,
        };
        Self::Refused { what: what.to_owned(), status: status.as_u16(), reason, message }
    }
}

fn code(status: &u16, reason: &str) -> String {
    match reason {
        "" => status.to_string(),
        reason => format!("{status} {reason}"),
    }
}

/// `apply Deployment default/web`.
pub(super) fn about(verb: &str, kind: &Kind, namespace: &str, name: &str) -> String {
    match namespace {
        "" => format!("{verb} {} {name}", kind.kind),
        namespace => format!("{verb} {} {namespace}/{name}", kind.kind),
    }
}

/// Refusals that quote nothing are told, of all others only which fields they are about.
fn about_secrets(status: StatusCode, words: &str, document: &Value) -> String {
    match status.as_u16() {
        401 | 404 | 409 | 410 | 429 | 503 => return words.to_owned(),
        // RBAC, and nothing else that answers 403, says it in these words.
        403 if words.contains(" is forbidden: User \"") => return words.to_owned(),
        _ => {}
    }
    if let Some((webhook, _)) = words.split_once(" denied the request") {
        return format!("{webhook} denied the request");
    }
    if let Some((_, rest)) = words.split_once("): ").filter(|_| is_typing(words))
        && let Some((field, _)) = rest.split_once(": ").filter(|(field, _)| field.starts_with('.'))
    {
        return left_out(field);
    }
    let causes = document["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let fields: Vec<&str> = causes.iter().filter_map(|cause| cause["field"].as_str()).take(10).collect();
    match fields[..] {
        [] => "why is left out, because it may quote what the Secret holds".to_owned(),
        _ => left_out(&fields.join(", ")),
    }
}

fn left_out(field: &str) -> String {
    format!("{field}: what is wrong is left out, because it may quote what the Secret holds")
}

/// Server-side apply calls it a failure of its own if an object does not fit its kind's schema.
fn is_typing(words: &str) -> bool {
    ["failed to create typed patch object", "failed to convert new object"]
        .iter()
        .any(|begin| words.starts_with(begin))
}

/// Without line ends and other control characters, and not too long.
pub(super) fn one_line(text: &str) -> String {
    let mut out = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        if out.len() > MOST_WORDS {
            return cut(&out, MOST_WORDS);
        }
    }
    out
}

/// At most so many bytes, marked where something is missing.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most.saturating_sub(3)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(status: u16, document: &Value, secret: bool) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        ClusterError::refused("apply Secret a/b", status, document.to_string().as_bytes(), secret).to_string()
    }

    fn status(reason: &str, message: &str) -> Value {
        json!({"kind": "Status", "reason": reason, "message": message})
    }

    #[test]
    fn a_refusal_is_told_on_one_line_in_the_servers_words() {
        let document = status("Invalid", "Pod \"x\" is invalid:\n  spec: Required value");
        assert_eq!(
            told(422, &document, false),
            "cannot apply Secret a/b: Pod \"x\" is invalid: spec: Required value (422 Invalid)"
        );
        let page = ClusterError::refused("get Pod a/b", StatusCode::BAD_GATEWAY, b"<html>\nbad\n", false);
        assert_eq!(page.to_string(), "cannot get Pod a/b: <html> bad (502)");
    }

    #[test]
    fn what_a_secret_holds_is_in_no_refusal() {
        let typed = ".stringData.password: expected string, got &value.valueUnstructured{Value:hunter2}";
        let mut invalid = status("Invalid", "data[x]: Invalid value: \"hunter2\"");
        invalid["details"] = json!({"causes": [{"field": "data[x]", "message": "hunter2"}]});
        let cases = [
            (400, status("BadRequest", typed)),
            (500, status("InternalError", typed)),
            (422, invalid),
            (
                403,
                status("Forbidden", "admission webhook \"no.example\" denied the request: hunter2 is weak"),
            ),
            (403, status("Forbidden", "secrets \"b\" is forbidden: hunter2")),
        ];
        for (code, document) in cases {
            let told = told(code, &document, true);
            assert!(!told.contains("hunter2"), "{told}");
            assert!(told.contains("cannot apply Secret a/b"), "{told}");
        }
        let rbac = "secrets \"b\" is forbidden: User \"agentk\" cannot patch resource \"secrets\"";
        assert!(told(403, &status("Forbidden", rbac), true).contains(rbac));
    }

    #[test]
    fn callers_can_tell_what_passes_from_what_does_not() {
        let of = |code: u16| ClusterError::refused("x", StatusCode::from_u16(code).unwrap(), b"", false);
        for code in [408, 409, 429, 500, 502, 503, 504] {
            assert!(of(code).passes(), "{code}");
        }
        for code in [400, 401, 403, 404, 405, 413, 415, 422] {
            assert!(!of(code).passes(), "{code}");
        }
        assert!(of(409).is_conflict() && of(422).is_invalid() && of(400).is_invalid());
        assert!(of(403).is_forbidden() && of(401).is_forbidden() && of(404).is_not_found());
        assert!(ClusterError::Unreachable { what: String::new(), cause: String::new() }.passes());
    }

    #[test]
    fn an_object_that_does_not_fit_its_schema_is_invalid_and_no_failure_of_the_server() {
        let words = "failed to create typed patch object (a/b; /v1, Kind=Secret): .stringData.x: expected string, got \
                     &value.valueUnstructured{Value:12345}";
        let document = status("", words).to_string();
        let of = |secret| {
            ClusterError::refused("x", StatusCode::INTERNAL_SERVER_ERROR, document.as_bytes(), secret)
        };
        for secret in [false, true] {
            assert!(of(secret).is_invalid() && !of(secret).passes());
        }
        assert!(of(false).to_string().contains("12345"));
        let said = of(true).to_string();
        assert!(
            said.contains(": .stringData.x: what is wrong is left out") && !said.contains("12345"),
            "{said}"
        );
    }

    #[test]
    fn cutting_respects_characters() {
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("äöüäöü", 8), "äö...");
        assert!(one_line(&"word ".repeat(1000)).len() <= MOST_WORDS);
    }
}
