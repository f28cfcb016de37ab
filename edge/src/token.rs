//! Finds the caller's token and turns it into a key; the token itself goes no further than the broker.
//!
//! After the head is read, before `limits`. An agent sends its agent token, a Kubernetes caller `ci:<id>:<token>`,
//! `pat:<id>:<token>` or one of ours: all are bearer tokens, and whether one is any good is for the broker to say.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use postern_wire::token::{TokenKey, bearer};

/// What the request says about who calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Caller {
    /// Has a bearer token; only its hash is kept.
    Token(TokenKey),
    /// Sent nothing that could be a token.
    Nobody,
}

impl Caller {
    /// Reads the `authorization` header. Several of them are nobody's: which one the broker would take is not ours to guess.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next().and_then(bearer), values.next()) {
            (Some(token), None) => Self::Token(TokenKey::of(token.trim_ascii().as_bytes())),
            _ => Self::Nobody,
        }
    }

    pub fn key(&self) -> Option<TokenKey> {
        match self {
            Self::Token(key) => Some(*key),
            Self::Nobody => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn caller(values: &[&'static str]) -> Caller {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        Caller::of(&headers)
    }

    #[test]
    fn the_same_token_has_the_same_key_however_the_scheme_is_written() {
        assert_eq!(caller(&["Bearer ci:1:x"]), caller(&["bearer ci:1:x"]));
        assert_eq!(caller(&["Bearer ci:1:x"]).key(), Some(TokenKey::of(b"ci:1:x")));
        assert_ne!(caller(&["Bearer ci:1:x"]), caller(&["Bearer ci:2:x"]));
    }

    #[test]
    fn anything_else_is_nobody() {
        for values in [&[][..], &["Basic eDp5"], &["Bearer "], &["token"], &["Bearer a", "Bearer b"]] {
            assert_eq!(caller(values), Caller::Nobody, "{values:?}");
        }
    }

    #[test]
    fn no_form_of_a_caller_shows_the_token() {
        assert!(!format!("{:?}", caller(&["Bearer glagent-secret"])).contains("secret"));
    }
}
