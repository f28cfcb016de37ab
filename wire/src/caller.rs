//! How a caller of the Kubernetes API says which agent it wants and who it is, and the one hash of that.
//!
//! Read by the edge, which counts callers before anybody knows them, and by the broker, which finds out who they are: by
//! the same functions, so that no second spelling of a credential is a second caller to either. Decides nothing.

use crate::ids::AgentId;
use crate::token::TokenKey;
use http::HeaderMap;
use http::header::COOKIE;
use percent_encoding::percent_decode_str;

/// The session that GitLab gives a browser.
pub const SESSION_COOKIE: &str = "_gitlab_kas";
/// Names the agent beside a session: a header, or a parameter of the query.
pub const AGENT_ID: &str = "gitlab-agent-id";

/// An agent's id in decimal digits. `None`: no number above 0.
pub fn agent_id(text: &str) -> Option<AgentId> {
    let id: Option<AgentId> = text.parse().ok();
    id.filter(|id| id.0 > 0)
}

/// The hash of `<kind>:<agent id>:<token>`, however the id was written.
pub fn token_key(kind: &str, agent: AgentId, token: &str) -> TokenKey {
    TokenKey::of(format!("{kind}:{agent}:{token}").as_bytes())
}

/// The hash of a session, as [`session`] reads it, for one agent.
pub fn session_key(agent: AgentId, session: &str) -> TokenKey {
    TokenKey::of(format!("{agent} {session}").as_bytes())
}

/// The session's cookie as it was sent: the first of several.
pub fn session_cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value)
}

/// The session in a cookie's value, as Go reads it: the value may be quoted, and a plus sign is a space. `None`: it is
/// empty, or not text.
pub fn session(value: &str) -> Option<String> {
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    let value = value.replace('+', " ");
    let session = percent_decode_str(&value).decode_utf8().ok()?;
    (!session.is_empty()).then(|| session.into_owned())
}

/// The value of the only parameter of that name in a query. `None` where there is none, an empty one, or several.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) if !value.is_empty() => Some(value.into_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn an_agents_id_is_a_number_above_0_however_it_is_written() {
        for (text, id) in [
            ("7", Some(7)),
            ("007", Some(7)),
            ("+7", Some(7)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("0", None),
            ("-7", None),
            (" 7", None),
            ("", None),
        ] {
            assert_eq!(agent_id(text).map(|id| id.0), id, "{text}");
        }
    }

    #[test]
    fn a_session_is_the_same_however_its_cookie_is_written() {
        for (lines, wanted) in [
            (&["a=b; _gitlab_kas=x%3D; c=d"][..], Some("x=")),
            (&["_gitlab_kas=\"x=\""], Some("x=")),
            (&["a=b", "_gitlab_kas=%78="], Some("x=")),
            (&["_gitlab_kas=x=; _gitlab_kas=y"], Some("x=")),
            (&["_gitlab_kas=a+b"], Some("a b")),
            (&["_gitlab_kas="], None),
            (&["_gitlab_kas=\"\""], None),
            (&["_gitlab_kas=%ff"], None),
            (&["x_gitlab_kas=x"], None),
        ] {
            let lines = lines.iter().map(|line| (COOKIE, HeaderValue::from_static(line)));
            let headers: HeaderMap = lines.collect();
            assert_eq!(session_cookie(&headers).and_then(session).as_deref(), wanted, "{headers:?}");
        }
    }

    #[test]
    fn a_parameter_counts_once_and_by_its_name_decoded() {
        for (query, wanted) in [
            ("a=b&gitlab-agent-id=7", Some("7")),
            ("gitlab%2Dagent-id=%37", Some("7")),
            ("gitlab-agent-id=7&gitlab%2Dagent-id=8", None),
            ("gitlab-agent-id=", None),
            ("", None),
        ] {
            assert_eq!(parameter(query, AGENT_ID).as_deref(), wanted, "{query}");
        }
    }
}
