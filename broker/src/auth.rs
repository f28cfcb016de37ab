//! Token -> who: agents on the agent listener, callers on the Kubernetes API listener. Decides from the identities
//! in force at this moment; it never keeps a token, and never says more than the caller needs to know.

use crate::{
    error::ApiFailure,
    identities::{Agent, Caller, IdentitySource, Verdict},
    tunnel::registry::Registry,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use postern_wire::{
    ids::AgentId,
    token::{TokenKey, bearer},
};
use std::{future::Future, sync::Arc};
use tonic::{Request, Status, metadata::MetadataMap};

/// An agent whose token was good when it was looked at.
#[derive(Clone, Debug)]
pub struct AgentPermit {
    /// Who it is.
    pub agent: Arc<Agent>,
    key: TokenKey,
    identities: Arc<IdentitySource>,
}

impl AgentPermit {
    /// Waits until the token is no longer good for this agent: a stream that holds the permit then ends with this.
    pub fn withdrawn(&self) -> impl Future<Output = Status> + Send + 'static {
        let mut changes = self.identities.changes();
        let Self { agent, key, identities } = self.clone();
        async move {
            loop {
                match identities.current().agent(&key) {
                    Verdict::Known(now) if now.id == agent.id => {}
                    Verdict::Known(_) | Verdict::Unknown => return unknown_token(),
                    Verdict::Revoked(_) => return revoked_token(),
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Waits until the agent is described otherwise, or the token is no longer good for it.
    pub fn altered(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.identities.changes();
        let Self { agent, key, identities } = self.clone();
        async move {
            while identities.current().agent(&key) == Verdict::Known(Arc::clone(&agent)) {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// What identifies the token in logs.
    pub fn key(&self) -> TokenKey {
        self.key
    }
}

fn unknown_token() -> Status {
    Status::unauthenticated("unauthenticated: the agent token is not known here")
}

fn revoked_token() -> Status {
    Status::permission_denied("forbidden: the agent token was revoked")
}

/// The permit that the interceptor left with a request.
pub fn permit<T>(request: &Request<T>) -> Result<AgentPermit, Status> {
    let permit = request.extensions().get::<AgentPermit>().cloned();
    permit.ok_or_else(|| Status::internal("no interceptor authenticated this call"))
}

/// Authenticates a call by its head alone, before any of its body is read.
pub fn intercept(
    identities: Arc<IdentitySource>,
    registry: Arc<Registry>,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |mut request| {
        let permit = agent(&identities, &registry, request.metadata())?;
        request.extensions_mut().insert(permit);
        Ok(request)
    }
}

/// Which agent sent this metadata; `registry` remembers a refusal for those who ask where the agent is.
pub fn agent(
    identities: &Arc<IdentitySource>,
    registry: &Registry,
    metadata: &MetadataMap,
) -> Result<AgentPermit, Status> {
    let missing = || Status::unauthenticated("Request unauthenticated with bearer");
    let value = metadata.get("authorization").ok_or_else(missing)?;
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| missing())?;
    let key = TokenKey::of(bearer(&value).ok_or_else(missing)?.as_bytes());
    match identities.current().agent(&key) {
        Verdict::Known(agent) => Ok(AgentPermit { agent, key, identities: Arc::clone(identities) }),
        Verdict::Revoked(owner) => {
            let status = revoked_token();
            if let Some(agent) = owner {
                registry.refused(agent, status.message().to_owned());
            }
            Err(status)
        }
        Verdict::Unknown => Err(unknown_token()),
    }
}

/// A caller that may reach this agent.
#[derive(Clone, Debug)]
pub struct CallerPermit {
    /// Who it is.
    pub caller: Arc<Caller>,
    /// Whom it asked for.
    pub agent: AgentId,
    key: TokenKey,
    identities: Arc<IdentitySource>,
}

impl CallerPermit {
    /// Waits until the caller may no longer reach the agent.
    pub fn withdrawn(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.identities.changes();
        let Self { agent, key, identities, .. } = self.clone();
        async move {
            loop {
                match identities.current().caller(&key) {
                    Verdict::Known(caller) if caller.agents.contains(&agent) => {}
                    _ => return,
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Which caller sent these headers, and which agent it wants: `Authorization: Bearer postern:<agent id>:<token>`.
pub fn caller(identities: &Arc<IdentitySource>, headers: &HeaderMap) -> Result<CallerPermit, ApiFailure> {
    let refuse =
        |message: &str| ApiFailure::new(StatusCode::UNAUTHORIZED, format!("Unauthorized: {message}"));
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| refuse("no valid credentials provided"))?;
    if values.next().is_some() {
        return Err(refuse("Authorization header: expecting a single header"));
    }
    let secret = bearer(value).ok_or_else(|| refuse("Authorization header: expecting Bearer token"))?;
    let invalid = || refuse("Authorization header: expecting postern:<agent id>:<token>");
    let (kind, rest) = secret.split_once(':').ok_or_else(invalid)?;
    if kind != "postern" {
        return Err(refuse("Authorization header: unknown token type"));
    }
    let (agent, token) = rest.split_once(':').ok_or_else(invalid)?;
    let agent: AgentId =
        agent.parse().map_err(|_| refuse("Authorization header: the agent id is not a number"))?;
    if token.is_empty() {
        return Err(refuse("Authorization header: empty token"));
    }
    let key = TokenKey::of(token.as_bytes());
    match identities.current().caller(&key) {
        Verdict::Known(caller) if caller.agents.contains(&agent) => {
            Ok(CallerPermit { caller, agent, key, identities: Arc::clone(identities) })
        }
        // The same answer whether the agent exists or not: ids cannot be probed.
        Verdict::Known(_) => Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden: this token may not reach agent {agent}; the identities file says which it may"
            ),
        )),
        Verdict::Revoked(_) => Err(refuse("the token was revoked")),
        Verdict::Unknown => Err(refuse("the token is not known here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn source(text: &str) -> (tempfile::NamedTempFile, Arc<IdentitySource>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let source = IdentitySource::load(file.path().to_owned()).unwrap();
        (file, source)
    }

    #[test]
    fn callers_are_refused_with_the_reason_and_without_the_token() {
        let hash = TokenKey::of(b"SECRET").to_hex();
        let (_file, identities) = source(&format!(
            "agents: [{{id: 1, name: a, token_sha256: []}}, {{id: 2, name: b, token_sha256: []}}]\n\
             callers: [{{name: ci, agents: [1], token_sha256: [{hash}]}}]"
        ));
        let ask = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            caller(&identities, &headers).map(|permit| permit.caller.name.clone())
        };
        assert_eq!(ask(Some("Bearer postern:1:SECRET")), Ok("ci".to_owned()));
        for (value, code, words) in [
            (None, 401, "no valid credentials"),
            (Some("Basic SECRET"), 401, "expecting Bearer"),
            (Some("Bearer SECRET"), 401, "postern:<agent id>"),
            (Some("Bearer ci:1:SECRET"), 401, "unknown token type"),
            (Some("Bearer postern:x:SECRET"), 401, "not a number"),
            (Some("Bearer postern:1:"), 401, "empty token"),
            (Some("Bearer postern:1:SECRETx"), 401, "not known"),
            (Some("Bearer postern:2:SECRET"), 403, "may not reach agent 2"),
            (Some("Bearer postern:3:SECRET"), 403, "may not reach agent 3"),
        ] {
            let failure = ask(value).unwrap_err();
            assert_eq!(failure.code.as_u16(), code, "{value:?}");
            assert!(failure.message.contains(words), "{failure:?}");
            assert!(!failure.message.contains("SECRET"));
        }
    }
}
