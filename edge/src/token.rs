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

/// Names the agent, where a session says who calls.
const AGENT_HEADER: &str = "gitlab-agent-id";
/// The same in the query.
const AGENT_PARAMETER: &str = "gitlab-agent-id";

/// What the request says about who calls whom.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Caller {
    /// The hash of a bearer token or of a session's cookie. `None`: nothing that could be a token.
    pub key: Option<TokenKey>,
    /// The agent that a caller of the Kubernetes API wants, as far as it can be read here.
    pub agent: Option<u64>,
}

impl Caller {
    /// Reads the `authorization` header, and where there is none the cookie that brokers know. Several of them are
    /// nobody's: which one the broker would take is not ours to guess.
    pub fn of(headers: &HeaderMap, query: Option<&str>) -> Self {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => match bearer(value) {
                Some(token) => Self::of_token(token.trim_ascii()),
                None => Self::default(),
            },
            (None, _) => Self::of_cookie(headers, query),
            _ => Self::default(),
        }
    }

    fn of_token(token: &str) -> Self {
        let mut parts = token.splitn(3, ':');
        let agent = match (parts.next(), parts.next(), parts.next()) {
            (Some("ci" | "pat" | "postern"), Some(agent), Some(_)) => number(agent),
            _ => None,
        };
        Self { key: Some(TokenKey::of(token.as_bytes())), agent }
    }

    /// The agent is part of the key: a broker that does not let a session reach one agent says nothing of others.
    fn of_cookie(headers: &HeaderMap, query: Option<&str>) -> Self {
        let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut sessions = pairs.filter(|(name, value)| *name == SESSION_COOKIE && !value.is_empty());
        let (Some((_, session)), None) = (sessions.next(), sessions.next()) else { return Self::default() };
        let named = headers.get(AGENT_HEADER).and_then(|value| value.to_str().ok());
        let mut asked = query.into_iter().flat_map(|query| query.split('&'));
        let asked = || asked.find_map(|pair| pair.strip_prefix(AGENT_PARAMETER)?.strip_prefix('='));
        let agent = named.or_else(asked).unwrap_or_default();
        Self { key: Some(TokenKey::of(format!("{agent} {session}").as_bytes())), agent: number(agent) }
    }
}

fn number(text: &str) -> Option<u64> {
    // `parse` would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
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
        Caller::of(&headers, None)
    }

    #[test]
    fn the_same_token_has_the_same_key_however_the_scheme_is_written() {
        assert_eq!(caller(&["Bearer ci:1:x"]), caller(&["bearer ci:1:x"]));
        assert_eq!(caller(&["Bearer ci:1:x"]).key, Some(TokenKey::of(b"ci:1:x")));
        assert_ne!(caller(&["Bearer ci:1:x"]), caller(&["Bearer ci:2:x"]));
    }

    #[test]
    fn anything_else_is_nobody() {
        for values in [&[][..], &["Basic eDp5"], &["Bearer "], &["token"], &["Bearer a", "Bearer b"]] {
            assert_eq!(caller(values), Caller::default(), "{values:?}");
        }
    }

    #[test]
    fn the_agent_is_read_where_a_callers_token_names_one() {
        for (token, agent) in [
            ("Bearer ci:7:x", Some(7)),
            ("Bearer pat:7:a:b", Some(7)),
            ("Bearer postern:18446744073709551615:x", Some(u64::MAX)),
            ("Bearer ci:18446744073709551616:x", None),
            ("Bearer ci:+7:x", None),
            ("Bearer ci::x", None),
            ("Bearer ci:7", None),
            ("Bearer other:7:x", None),
            ("Bearer glagent-7", None),
        ] {
            assert_eq!(caller(&[token]).agent, agent, "{token}");
        }
    }

    #[test]
    fn a_session_counts_where_there_is_no_token_and_for_the_agent_that_it_names() {
        let of = |headers: &[(http::HeaderName, &'static str)], query| {
            let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            Caller::of(&headers.collect(), query)
        };
        let session = |agent: &str| Some(TokenKey::of(format!("{agent} abc").as_bytes()));
        let id = http::HeaderName::from_static(AGENT_HEADER);
        let cookie = (COOKIE, "a=b; _gitlab_kas=abc; c=d");
        assert_eq!(of(std::slice::from_ref(&cookie), None), Caller { key: session(""), agent: None });
        let named = [cookie.clone(), (id, "5")];
        assert_eq!(of(&named, Some("gitlab-agent-id=6")), Caller { key: session("5"), agent: Some(5) });
        let asked = of(&[cookie], Some("watch=1&gitlab-agent-id=6"));
        assert_eq!(asked, Caller { key: session("6"), agent: Some(6) });
        assert_eq!(of(&[(COOKIE, "_gitlab_kas=abc"), (AUTHORIZATION, "Basic x")], None), Caller::default());
        for nobody in ["_gitlab_kas=", "_gitlab_kas=a; _gitlab_kas=b", "x_gitlab_kas=a", "_gitlab_kas"] {
            assert_eq!(of(&[(COOKIE, nobody)], None), Caller::default(), "{nobody}");
        }
    }

    #[test]
    fn no_form_of_a_caller_shows_the_token() {
        assert!(!format!("{:?}", caller(&["Bearer glagent-secret"])).contains("secret"));
    }
}
