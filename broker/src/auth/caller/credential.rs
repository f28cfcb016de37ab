//! What a request brings along -> which agent it wants and what proves who sends it. It comes first of all that is done for
//! a caller; whether the proof is any good, `auth/caller.rs` finds out. No secret is in any of its errors.

use crate::gitlab::{JobToken, ProxyAccess};
use http::{HeaderMap, header};
use postern_wire::{
    caller,
    ids::AgentId,
    token::{TokenKey, bearer},
};
use std::sync::Arc;

/// Names the agent for requests with a cookie.
pub const AGENT_ID: &str = caller::AGENT_ID;
/// Belongs to the cookie.
pub const CSRF_TOKEN: &str = "x-csrf-token";
/// [`AGENT_ID`] for a browser's WebSockets, which cannot have headers.
pub const AGENT_ID_QUERY: &str = caller::AGENT_ID;
/// [`CSRF_TOKEN`] likewise.
pub const CSRF_TOKEN_QUERY: &str = "gitlab-csrf-token";
/// Bytes of a secret. GitLab's are shorter, those that are JWTs and encrypted cookies included.
const MAX_SECRET: usize = 8 << 10;

/// Who can say whether a credential is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// The identities file.
    File,
    /// GitLab.
    GitLab,
}

/// A way to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A token of the identities file.
    Postern,
    /// A CI job's token.
    CiJob,
    /// A user's personal access token.
    PersonalAccessToken,
    /// A user's session with GitLab.
    SessionCookie,
}

impl Kind {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postern => "postern",
            Self::CiJob => "ci",
            Self::PersonalAccessToken => "pat",
            Self::SessionCookie => "cookie",
        }
    }
}

/// Whom a caller wants, and why it should be let in.
#[derive(Debug)]
pub struct Credential {
    /// The agent.
    pub agent: AgentId,
    /// Names what was shown in policies and logs, as the edge does: the hash of all that stands behind `Bearer`; of a cookie
    /// that of the agent's id, a space and the value. Of another spelling of the same it is the same.
    pub token: TokenKey,
    pub(super) proof: Proof,
}

/// Not looked at yet by those who can tell.
#[derive(Debug)]
pub(super) enum Proof {
    Postern(TokenKey),
    Job(JobToken),
    User(Arc<ProxyAccess>),
}

/// Why there is no credential to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegible {
    #[error("no valid credentials provided")]
    Missing,
    #[error("Authorization header: expecting a single header")]
    Several,
    #[error("Authorization header: expecting Bearer token")]
    NoBearer,
    #[error("Authorization header: invalid value, expecting {}", forms(*.0))]
    Form(Issuer),
    #[error("Authorization header: unknown token type, expecting {}", forms(*.0))]
    Type(Issuer),
    #[error("Authorization header: empty token")]
    Empty,
    #[error("Authorization header: the token has characters that none of GitLab's has")]
    Characters,
    #[error("{0}: the agent id is not a number above 0")]
    AgentId(&'static str),
    #[error("{0}: expecting exactly one value")]
    NotOne(&'static str),
    #[error("{0}: longer than {MAX_SECRET} bytes")]
    TooLong(&'static str),
    #[error("_gitlab_kas cookie: the value is empty or not text")]
    Cookie,
}

fn forms(issuer: Issuer) -> &'static str {
    match issuer {
        Issuer::File => "postern:<agent id>:<token>",
        Issuer::GitLab => "ci:<agent id>:<job token> or pat:<agent id>:<personal access token>",
    }
}

const AUTHORIZATION: &str = "Authorization header";

impl Credential {
    /// Reads headers and, for cookies, the query. An `Authorization` header decides alone, even if it is no good.
    pub fn read(issuer: Issuer, headers: &HeaderMap, query: Option<&str>) -> Result<Self, Illegible> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(value) = values.next() {
            if values.next().is_some() {
                return Err(Illegible::Several);
            }
            return Self::of_token(issuer, bearer(value).ok_or(Illegible::NoBearer)?);
        }
        match caller::session_cookie(headers) {
            Some(value) if issuer == Issuer::GitLab => Self::of_cookie(value, headers, query.unwrap_or("")),
            _ => Err(Illegible::Missing),
        }
    }

    /// How it was proved.
    pub fn kind(&self) -> Kind {
        match &self.proof {
            Proof::Postern(_) => Kind::Postern,
            Proof::Job(_) => Kind::CiJob,
            Proof::User(access) => match **access {
                ProxyAccess::PersonalAccessToken { .. } => Kind::PersonalAccessToken,
                ProxyAccess::SessionCookie { .. } => Kind::SessionCookie,
            },
        }
    }

    /// `<type>:<agent id>:<token>`; the token may have colons itself.
    fn of_token(issuer: Issuer, text: &str) -> Result<Self, Illegible> {
        let (kind, rest) = text.split_once(':').ok_or(Illegible::Form(issuer))?;
        let kind = match (issuer, kind) {
            (Issuer::File, "postern") => Kind::Postern,
            (Issuer::GitLab, "ci") => Kind::CiJob,
            (Issuer::GitLab, "pat") => Kind::PersonalAccessToken,
            _ => return Err(Illegible::Type(issuer)),
        };
        let (agent, token) = rest.split_once(':').ok_or(Illegible::Form(issuer))?;
        let word = kind.as_str();
        let agent = agent_id(agent, AUTHORIZATION)?;
        if token.is_empty() {
            return Err(Illegible::Empty);
        }
        let token = bounded(token, AUTHORIZATION)?;
        let proof = match kind {
            Kind::Postern => Proof::Postern(TokenKey::of(token.as_bytes())),
            Kind::CiJob => Proof::Job(JobToken::new(token).map_err(|_| Illegible::Characters)?),
            _ => Proof::User(Arc::new(ProxyAccess::PersonalAccessToken { key: token.to_owned() })),
        };
        Ok(Self { agent, token: caller::token_key(word, agent, token), proof })
    }

    fn of_cookie(value: &str, headers: &HeaderMap, query: &str) -> Result<Self, Illegible> {
        let value = bounded(value, "_gitlab_kas cookie")?;
        let key = caller::session(value).ok_or(Illegible::Cookie)?;
        let agent = one(headers, AGENT_ID, "Gitlab-Agent-Id header")?;
        let agent = match agent {
            Some(agent) => agent_id(&agent, "Gitlab-Agent-Id header")?,
            None => {
                let what = "gitlab-agent-id query parameter";
                agent_id(&one_of_query(query, AGENT_ID_QUERY, what)?, what)?
            }
        };
        let csrf_token = match one(headers, CSRF_TOKEN, "X-Csrf-Token header")? {
            Some(token) => token,
            None => one_of_query(query, CSRF_TOKEN_QUERY, "gitlab-csrf-token query parameter")?,
        };
        let token = caller::session_key(agent, &key);
        Ok(Self {
            agent,
            token,
            proof: Proof::User(Arc::new(ProxyAccess::SessionCookie { key, csrf_token })),
        })
    }
}

fn agent_id(text: &str, what: &'static str) -> Result<AgentId, Illegible> {
    caller::agent_id(text).ok_or(Illegible::AgentId(what))
}

fn bounded<'a>(text: &'a str, what: &'static str) -> Result<&'a str, Illegible> {
    if text.len() <= MAX_SECRET { Ok(text) } else { Err(Illegible::TooLong(what)) }
}

/// The only value of a header, if it is there at all.
fn one(headers: &HeaderMap, name: &str, what: &'static str) -> Result<Option<String>, Illegible> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Illegible::NotOne(what))?;
            Ok(Some(bounded(text, what)?.to_owned()))
        }
        _ => Err(Illegible::NotOne(what)),
    }
}

fn one_of_query(query: &str, name: &str, what: &'static str) -> Result<String, Illegible> {
    let value = caller::parameter(query, name).ok_or(Illegible::NotOne(what))?;
    bounded(&value, what)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn read(issuer: Issuer, lines: &[(&str, &str)], query: &str) -> Result<(Kind, i64), Illegible> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let read = Credential::read(issuer, &headers, Some(query));
        assert!(!format!("{read:?}").contains("SECRET"), "{read:?}");
        read.map(|credential| (credential.kind(), credential.agent.0))
    }

    #[test]
    fn each_provider_has_its_own_tokens() {
        use Issuer::{File, GitLab};
        let long = format!("Bearer ci:1:{}", "x".repeat(MAX_SECRET + 1));
        for (issuer, value, wanted) in [
            (File, "Bearer postern:1:SECRET", Ok((Kind::Postern, 1))),
            (File, "Bearer ci:1:SECRET", Err(Illegible::Type(File))),
            (File, "Bearer pat:1:SECRET", Err(Illegible::Type(File))),
            (GitLab, "Bearer postern:1:SECRET", Err(Illegible::Type(GitLab))),
            (GitLab, "Bearer ci:17:SECRET", Ok((Kind::CiJob, 17))),
            (GitLab, "bearer pat:9:a:b", Ok((Kind::PersonalAccessToken, 9))),
            (GitLab, "Basic SECRET", Err(Illegible::NoBearer)),
            (GitLab, "Bearer ", Err(Illegible::NoBearer)),
            (GitLab, "Bearer SECRET", Err(Illegible::Form(GitLab))),
            (GitLab, "Bearer ci:SECRET", Err(Illegible::Form(GitLab))),
            (GitLab, "Bearer ci:x:SECRET", Err(Illegible::AgentId(AUTHORIZATION))),
            (GitLab, "Bearer ci:0:SECRET", Err(Illegible::AgentId(AUTHORIZATION))),
            (GitLab, "Bearer ci:-1:SECRET", Err(Illegible::AgentId(AUTHORIZATION))),
            (GitLab, "Bearer ci:9223372036854775808:S", Err(Illegible::AgentId(AUTHORIZATION))),
            (GitLab, "Bearer ci:1:", Err(Illegible::Empty)),
            (GitLab, "Bearer ci:1:SEC RET", Err(Illegible::Characters)),
            (GitLab, long.as_str(), Err(Illegible::TooLong(AUTHORIZATION))),
        ] {
            assert_eq!(read(issuer, &[("authorization", value)], ""), wanted, "{value:.60}");
        }
        let good = ("authorization", "Bearer ci:1:SECRET");
        assert_eq!(read(GitLab, &[good, good], ""), Err(Illegible::Several));
        assert_eq!(read(GitLab, &[], ""), Err(Illegible::Missing));
    }

    #[test]
    fn a_cookie_needs_one_agent_and_one_csrf_token() {
        let cookie = ("cookie", "a=b; _gitlab_kas=SECRET%2Bx; c=d");
        let (agent, csrf) = ((AGENT_ID, "5"), (CSRF_TOKEN, "SECRET"));
        let good = Ok((Kind::SessionCookie, 5));
        let header = "Gitlab-Agent-Id header";
        let parameter = "gitlab-agent-id query parameter";
        for (lines, query, wanted) in [
            (vec![cookie, agent, csrf], "", good),
            (vec![cookie], "gitlab-agent-id=5&gitlab-csrf-token=SECRET&x=y", good),
            (vec![cookie, agent], "gitlab-agent-id=6&gitlab-csrf-token=SECRET", good),
            (vec![cookie, agent, agent, csrf], "", Err(Illegible::NotOne(header))),
            (vec![cookie, csrf], "", Err(Illegible::NotOne(parameter))),
            (vec![cookie, csrf], "gitlab-agent-id=5&gitlab-agent-id=6", Err(Illegible::NotOne(parameter))),
            (vec![cookie, csrf], "gitlab-agent-id=five", Err(Illegible::AgentId(parameter))),
            (vec![cookie, agent], "", Err(Illegible::NotOne("gitlab-csrf-token query parameter"))),
            (vec![cookie, agent, csrf, csrf], "", Err(Illegible::NotOne("X-Csrf-Token header"))),
            (vec![("cookie", "_gitlab_kas=%ff"), agent, csrf], "", Err(Illegible::Cookie)),
            (vec![("cookie", "_gitlab_kas="), agent, csrf], "", Err(Illegible::Cookie)),
            (vec![("cookie", "x_gitlab_kas=1"), agent, csrf], "", Err(Illegible::Missing)),
            // A bad header is not made good by a cookie.
            (vec![cookie, agent, csrf, ("authorization", "Basic x")], "", Err(Illegible::NoBearer)),
        ] {
            assert_eq!(read(Issuer::GitLab, &lines, query), wanted, "{lines:?} {query}");
        }
        assert_eq!(read(Issuer::File, &[cookie, agent, csrf], ""), Err(Illegible::Missing));
    }

    #[test]
    fn a_credential_has_one_hash_however_it_is_spelt() {
        let of = |issuer, lines: &[(&'static str, &str)]| {
            let lines = lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
            Credential::read(issuer, &lines.collect(), None).unwrap().token
        };
        for (issuer, value, wanted) in [
            (Issuer::GitLab, "Bearer ci:1:x", "ci:1:x"),
            (Issuer::GitLab, "bearer ci:01:x", "ci:1:x"),
            (Issuer::GitLab, "Bearer ci:+1:x", "ci:1:x"),
            (Issuer::GitLab, "Bearer pat:7:a:b", "pat:7:a:b"),
            (Issuer::File, "Bearer postern:2:x", "postern:2:x"),
        ] {
            assert_eq!(of(issuer, &[("authorization", value)]), TokenKey::of(wanted.as_bytes()), "{value}");
        }
        for value in ["abc", "\"abc\"", "%61bc"] {
            let cookie = format!("_gitlab_kas={value}");
            let lines = [("cookie", cookie.as_str()), (AGENT_ID, "1"), (CSRF_TOKEN, "t")];
            assert_eq!(of(Issuer::GitLab, &lines), TokenKey::of(b"1 abc"), "{value}");
        }
    }

    #[test]
    fn a_cookie_is_unescaped_as_a_query_is() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("_gitlab_kas=\"a+b%2Bc%3D\""));
        headers.insert(AGENT_ID, HeaderValue::from_static("1"));
        headers.insert(CSRF_TOKEN, HeaderValue::from_static("t"));
        let Proof::User(access) = Credential::read(Issuer::GitLab, &headers, None).unwrap().proof else {
            panic!("a user")
        };
        let ProxyAccess::SessionCookie { key, csrf_token } = &*access else { panic!("a cookie") };
        assert_eq!((key.as_str(), csrf_token.as_str()), ("a b+c=", "t"));
    }
}
