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
                (one_line(if secret { known_reason(reason) } else { reason }), told)
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

/// The API server's own refusals are told, of all others only who refused or which fields they are about.
fn about_secrets(status: StatusCode, words: &str, document: &Value) -> String {
    // Before anything else: a webhook chooses its code, its reason and its words, and has seen the Secret.
    if let Some(webhook) = denier(words) {
        return format!("admission webhook \"{webhook}\" denied the request");
    }
    if is_own(status, words) {
        return words.to_owned();
    }
    if let Some((_, rest)) = words.split_once(')').filter(|_| is_typing(words))
        && let Some((field, _)) = rest.strip_prefix(": ").and_then(|rest| rest.split_once(": "))
        && field.starts_with('.')
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

/// The webhook that denied the request, as its configuration names it.
fn denier(words: &str) -> Option<&str> {
    let (name, rest) = words.strip_prefix("admission webhook \"")?.split_once('"')?;
    rest.starts_with(" denied the request").then_some(name)
}

/// Whether the API server itself answers this code with these words, none of which are out of an object.
fn is_own(status: StatusCode, words: &str) -> bool {
    let begins = |with: &[&str]| with.iter().any(|with| words.starts_with(with));
    match status.as_u16() {
        401 => words == "Unauthorized",
        // Who authorizes has not seen the object.
        403 => after_subject(words).is_some_and(|rest| rest.starts_with(" is forbidden: User \"")),
        404 => {
            after_subject(words) == Some(" not found")
                || words == "the server could not find the requested resource"
                || words == "404 page not found"
        }
        409 => {
            after_subject(words) == Some(" already exists")
                || words.strip_prefix("Operation cannot be fulfilled on ").and_then(after_subject).is_some_and(|rest| {
                    [": the object has been modified;", ": Precondition failed:", ": StorageError: invalid object,"]
                        .iter()
                        .any(|why| rest.starts_with(why))
                })
                // Of fields it tells the path.
                || begins(&["Apply failed with "])
        }
        410 => begins(&[
            "too old resource version",
            "The resourceVersion for the provided ",
            "The provided continue parameter is too old",
            "The provided from parameter is too old",
        ]),
        429 => begins(&[
            "Too many requests, please try again later",
            "The server has received too many requests and has asked us to try again later",
            "the server has received too many requests and has asked us to try again later",
            "storage is (re)initializing",
        ]),
        503 => begins(&["the server is currently unable to handle the request"]),
        _ => false,
    }
}

/// What follows `secrets`, `secrets "name"` or the like. `None`: the words begin otherwise.
fn after_subject(words: &str) -> Option<&str> {
    let subjects = ["secrets", "namespaces", "resourcequotas", "users", "groups", "serviceaccounts"];
    let rest = subjects.iter().find_map(|subject| words.strip_prefix(subject))?;
    match rest.strip_prefix(" \"") {
        Some(named) => named.split_once('"').map(|(_, rest)| rest),
        None => Some(rest),
    }
}

/// The API's own reasons; webhooks may give any.
fn known_reason(reason: &str) -> &str {
    const KNOWN: [&str; 18] = [
        "AlreadyExists",
        "BadRequest",
        "Conflict",
        "Expired",
        "Forbidden",
        "Gone",
        "InternalError",
        INVALID,
        "MethodNotAllowed",
        "NotAcceptable",
        "NotFound",
        "RequestEntityTooLarge",
        "ServerTimeout",
        "ServiceUnavailable",
        "Timeout",
        "TooManyRequests",
        "Unauthorized",
        "UnsupportedMediaType",
    ];
    if KNOWN.contains(&reason) { reason } else { "" }
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
mod tests;
