//! Finds the caller's token and turns it into a key; the token itself goes no further than the broker.
//!
//! After the head is read, before `limits`. An agent sends its agent token, a Kubernetes caller `ci:<id>:<token>`,
//! `pat:<id>:<token>` or one of ours: all are bearer tokens. A user of GitLab's pages shows a cookie instead. Whether one
//! is any good is for the broker to say.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use postern_wire::caller::{AGENT_ID, agent_id, parameter, session, session_cookie, session_key, token_key};
use postern_wire::ids::AgentId;
use postern_wire::token::{TokenKey, bearer};

/// What the request says about who calls whom.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Caller {
    /// The hash of a bearer token or of a session, the same for all spellings that a broker takes for the same caller.
    /// `None`: nothing that could be a token.
    pub key: Option<TokenKey>,
    /// The agent that a caller of the Kubernetes API wants, as far as it can be read here.
    pub agent: Option<u64>,
}

impl Caller {
    /// Reads the `authorization` header, and where there is none the cookie that brokers know, as they do. Several of the
    /// header are nobody's.
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
        let named = match (parts.next(), parts.next(), parts.next()) {
            (Some(kind @ ("ci" | "pat" | "postern")), Some(agent), Some(secret)) => {
                agent_id(agent).map(|agent| (agent, token_key(kind, agent, secret)))
            }
            _ => None,
        };
        match named {
            Some((agent, key)) => Self { key: Some(key), agent: number(agent) },
            None => Self { key: Some(TokenKey::of(token.as_bytes())), agent: None },
        }
    }

    /// The agent is part of the key: a broker that does not let a session reach one agent says nothing of others.
    fn of_cookie(headers: &HeaderMap, query: Option<&str>) -> Self {
        let Some(session) = session_cookie(headers).and_then(session) else { return Self::default() };
        let mut named = headers.get_all(AGENT_ID).iter();
        let agent = match (named.next(), named.next()) {
            (Some(only), None) => only.to_str().ok().and_then(agent_id),
            (None, _) => query.and_then(|query| agent_id(&parameter(query, AGENT_ID)?)),
            _ => None,
        };
        let key = match agent {
            Some(agent) => session_key(agent, &session),
            // No broker serves it.
            None => TokenKey::of(format!(" {session}").as_bytes()),
        };
        Self { key: Some(key), agent: agent.and_then(number) }
    }
}

fn number(agent: AgentId) -> Option<u64> {
    u64::try_from(agent.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::COOKIE;

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
            ("Bearer postern:9223372036854775807:x", Some(i64::MAX.unsigned_abs())),
            ("Bearer ci:9223372036854775808:x", None),
            ("Bearer ci:0:x", None),
            ("Bearer ci:-7:x", None),
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
        let id = http::HeaderName::from_static(AGENT_ID);
        let cookie = (COOKIE, "a=b; _gitlab_kas=abc; c=d");
        assert_eq!(of(std::slice::from_ref(&cookie), None), Caller { key: session(""), agent: None });
        let named = [cookie.clone(), (id, "5")];
        assert_eq!(of(&named, Some("gitlab-agent-id=6")), Caller { key: session("5"), agent: Some(5) });
        let asked = of(&[cookie], Some("watch=1&gitlab-agent-id=6"));
        assert_eq!(asked, Caller { key: session("6"), agent: Some(6) });
        assert_eq!(of(&[(COOKIE, "_gitlab_kas=abc"), (AUTHORIZATION, "Basic x")], None), Caller::default());
        for nobody in [
            "_gitlab_kas=",
            "_gitlab_kas=%ff",
            "_gitlab_kas=; _gitlab_kas=b",
            "x_gitlab_kas=a",
            "_gitlab_kas",
        ] {
            assert_eq!(of(&[(COOKIE, nobody)], None), Caller::default(), "{nobody}");
        }
    }

    #[test]
    fn no_spelling_that_a_broker_accepts_makes_another_caller() {
        for (spelt, kind) in [
            ("Bearer ci:7:T:x", "ci"),
            ("bearer ci:+7:T:x", "ci"),
            ("Bearer pat:007:T:x", "pat"),
            ("BEARER pat:+07:T:x", "pat"),
            ("Bearer postern:0000000007:T:x", "postern"),
        ] {
            let wanted =
                Caller { key: Some(TokenKey::of(format!("{kind}:7:T:x").as_bytes())), agent: Some(7) };
            assert_eq!(caller(&[spelt]), wanted, "{spelt}");
        }
        let wanted = Caller { key: Some(TokenKey::of(b"7 a c=")), agent: Some(7) };
        let (cookie, agent) = ("_gitlab_kas=a+c=", Some("7"));
        for (cookie, header, query) in [
            (cookie, agent, ""),
            (cookie, Some("+007"), "gitlab-agent-id=8"),
            ("_gitlab_kas=%61%20c%3D", agent, ""),
            ("_gitlab_kas=\"a c=\"", agent, ""),
            ("x=y; _gitlab_kas=a+c=; _gitlab_kas=other", agent, ""),
            (cookie, None, "gitlab-agent-id=7"),
            (cookie, None, "gitlab%2Dagent-id=7"),
            (cookie, None, "watch=1&gitlab%2dagent%2Did=%2B0%37"),
            (cookie, None, "gitlab-agent-id=07"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, HeaderValue::from_static(cookie));
            headers.extend(
                header.map(|id| (http::HeaderName::from_static(AGENT_ID), HeaderValue::from_static(id))),
            );
            assert_eq!(Caller::of(&headers, Some(query)), wanted, "{headers:?} {query}");
        }
    }

    #[test]
    fn no_form_of_a_caller_shows_the_token() {
        assert!(!format!("{:?}", caller(&["Bearer glagent-secret"])).contains("secret"));
    }
}
