//! Finds the caller's token and turns it into a key; the token itself goes no further than the broker.
//!
//! After the head is read, before `limits`. An agent sends its agent token, a Kubernetes caller `ci:<id>:<token>`,
//! `pat:<id>:<token>` or one of ours: all are bearer tokens. A user of GitLab's pages shows a cookie instead. Whether one
//! is any good is for the broker to say.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use postern_wire::token::{TokenKey, bearer};

/// The session of a user at GitLab, set for the address of its kas.
const SESSION_COOKIE: &str = "_gitlab_kas";

/// What the request says about who calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Caller {
    /// Has a bearer token or a session's cookie; only its hash is kept.
    Token(TokenKey),
    /// Sent nothing that could be a token.
    Nobody,
}

impl Caller {
    /// Reads the `authorization` header, and where there is none the cookie that brokers know. Several of them are
    /// nobody's: which one the broker would take is not ours to guess.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => match bearer(value) {
                Some(token) => Self::Token(TokenKey::of(token.trim_ascii().as_bytes())),
                None => Self::Nobody,
            },
            (None, _) => Self::of_cookie(headers),
            _ => Self::Nobody,
        }
    }

    fn of_cookie(headers: &HeaderMap) -> Self {
        let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut sessions = pairs.filter(|(name, value)| *name == SESSION_COOKIE && !value.is_empty());
        match (sessions.next(), sessions.next()) {
            (Some((_, session)), None) => Self::Token(TokenKey::of(session.as_bytes())),
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
    fn a_session_counts_where_there_is_no_token() {
        let of = |headers: &[(http::HeaderName, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            Caller::of(&headers.collect())
        };
        let session = Caller::Token(TokenKey::of(b"abc"));
        assert_eq!(of(&[(COOKIE, "a=b; _gitlab_kas=abc; c=d")]), session);
        assert_eq!(of(&[(COOKIE, "_gitlab_kas=abc"), (AUTHORIZATION, "Basic x")]), Caller::Nobody);
        for nobody in ["_gitlab_kas=", "_gitlab_kas=a; _gitlab_kas=b", "x_gitlab_kas=a", "_gitlab_kas"] {
            assert_eq!(of(&[(COOKIE, nobody)]), Caller::Nobody, "{nobody}");
        }
    }

    #[test]
    fn no_form_of_a_caller_shows_the_token() {
        assert!(!format!("{:?}", caller(&["Bearer glagent-secret"])).contains("secret"));
    }
}
