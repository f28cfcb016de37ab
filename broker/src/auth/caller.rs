//! Callers of the Kubernetes API: credential -> who it is, which agent it may reach, and as whom. Before it: the head of a
//! request. After it: `kubernetes_api.rs`, with a permit that says when it is withdrawn. Environments and branches that
//! `ci_access` asks for are GitLab's to check: an agent that they keep a job from is not in its answer.

mod access;
mod credential;

pub use access::{Access, Nobody};
pub use credential::{
    AGENT_ID, AGENT_ID_QUERY, CSRF_TOKEN, CSRF_TOKEN_QUERY, Credential, Illegible, Issuer, Kind,
};

use super::{Identities, followed};
use crate::{
    error::ApiFailure,
    gitlab::{
        AllowedAgents, Call, Fault, JobToken, ProxyAccess, ProxyUser, RailsError, Remembered,
        cache::{Lasting, Remember},
        standing::Standing,
    },
    identities::{IdentitySource, Verdict},
};
use credential::Proof;
use http::StatusCode;
use postern_wire::{
    ids::{AgentId, ProjectId},
    token::TokenKey,
};
use std::{fmt, future::Future, sync::Arc};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// By the name in the identities file.
    Named(String),
    /// A CI job.
    Job {
        /// Its id.
        job: i64,
        /// The id of its project.
        project: i64,
        /// The id of who started it.
        user: i64,
        /// Their name.
        username: String,
    },
    /// A user.
    User {
        /// Their id.
        user: i64,
        /// Their name.
        username: String,
    },
}

impl Who {
    /// The user behind it, if GitLab knows one.
    pub fn user_id(&self) -> Option<i64> {
        match self {
            Self::Named(_) => None,
            Self::Job { user, .. } | Self::User { user, .. } => Some(*user),
        }
    }

    fn job(allowed: &AllowedAgents) -> Self {
        Self::Job {
            job: allowed.job.id,
            project: allowed.project.id,
            user: allowed.user.id,
            username: allowed.user.username.clone(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Job { job, .. } => write!(f, "job {job}"),
            Self::User { username, .. } => f.write_str(username),
        }
    }
}

/// A caller that may reach this agent.
#[derive(Clone, Debug)]
pub struct CallerPermit {
    /// Who it is.
    pub who: Who,
    /// How it proved that.
    pub kind: Kind,
    /// Whom it asked for.
    pub agent: AgentId,
    /// Where the agent is configured; the identities file does not say.
    pub config_project: Option<ProjectId>,
    /// As whom it comes.
    pub access: Access,
    standing: CallerStanding,
}

/// What a permit rests on.
#[derive(Clone, Debug)]
enum CallerStanding {
    File(TokenKey, Arc<IdentitySource>),
    Job(Standing<AllowedAgents>),
    User(Standing<ProxyUser>, &'static str),
}

impl CallerPermit {
    /// Waits until the caller may no longer reach the agent, or no longer as the one it came as.
    pub fn withdrawn(&self) -> impl Future<Output = ()> + Send + 'static {
        let Self { who, agent, access, standing, .. } = self.clone();
        async move {
            match standing {
                CallerStanding::File(key, identities) => {
                    let withdrawn = |_: &u64| match identities.current().caller(&key) {
                        Verdict::Known(caller) if caller.agents.contains(&agent) => None,
                        _ => Some(()),
                    };
                    followed(identities.changes(), withdrawn).await;
                }
                CallerStanding::Job(standing) => {
                    let same = |allowed: &AllowedAgents| {
                        let mut agents = allowed.allowed_agents.iter();
                        let entry = agents.find(|entry| entry.id == agent.0);
                        Who::job(allowed) == who
                            && entry.map(|entry| access::of_job(allowed, entry)) == Some(Ok(access.clone()))
                    };
                    let gone = |now: &Result<Arc<AllowedAgents>, RailsError>| match now {
                        Ok(allowed) if same(allowed) => None,
                        _ => Some(()),
                    };
                    followed(standing.watch(), gone).await;
                }
                CallerStanding::User(standing, access_type) => {
                    let gone = |now: &Result<Arc<ProxyUser>, RailsError>| match now {
                        Ok(user)
                            if Some(user.user.id) == who.user_id()
                                && access::of_user(user, access_type) == Ok(access.clone()) =>
                        {
                            None
                        }
                        _ => Some(()),
                    };
                    followed(standing.watch(), gone).await;
                }
            }
        }
    }
}

/// A caller that is not let in.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is told.
    pub failure: ApiFailure,
    /// Who it is, if that is known; for the audit log.
    pub who: Option<Who>,
}

impl From<ApiFailure> for Refusal {
    fn from(failure: ApiFailure) -> Self {
        Self { failure, who: None }
    }
}

impl From<Illegible> for ApiFailure {
    fn from(why: Illegible) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, format!("Unauthorized: {why}"))
    }
}

impl From<Nobody> for ApiFailure {
    fn from(why: Nobody) -> Self {
        Self::new(StatusCode::FORBIDDEN, format!("Forbidden: {why}"))
    }
}

impl Identities {
    /// Whose tokens are good.
    pub fn issuer(&self) -> Issuer {
        match self {
            Self::File(_) => Issuer::File,
            Self::GitLab(_) => Issuer::GitLab,
        }
    }

    /// The project of the configuration of the agent that a caller may reach.
    pub fn agent_project(&self, permit: &CallerPermit) -> Option<ProjectId> {
        match self {
            Self::File(identities) => identities.current().project(permit.agent),
            Self::GitLab(_) => permit.config_project,
        }
    }

    /// Finds out who shows this credential and whether they may reach the agent.
    pub async fn admit(&self, credential: Credential, call: &Call) -> Result<CallerPermit, Refusal> {
        let (agent, kind) = (credential.agent, credential.kind());
        match (self, credential.proof) {
            (Self::File(identities), Proof::Postern(key)) => Ok(of_file(identities, agent, key)?),
            (Self::GitLab(gitlab), Proof::Job(token)) => of_job(gitlab, agent, &token, call).await,
            (Self::GitLab(gitlab), Proof::User(access)) => of_user(gitlab, agent, kind, &access, call).await,
            // The reader of credentials knows the issuer, so that this never comes.
            _ => Err(ApiFailure::from(Illegible::Type(self.issuer())).into()),
        }
    }
}

fn of_file(identities: &Arc<IdentitySource>, agent: AgentId, key: TokenKey) -> Result<CallerPermit, Refusal> {
    let refuse =
        |message: &str| ApiFailure::new(StatusCode::UNAUTHORIZED, format!("Unauthorized: {message}"));
    match identities.current().caller(&key) {
        Verdict::Known(caller) if caller.agents.contains(&agent) => Ok(CallerPermit {
            who: Who::Named(caller.name.clone()),
            kind: Kind::Postern,
            agent,
            config_project: None,
            access: Access::Agent,
            standing: CallerStanding::File(key, Arc::clone(identities)),
        }),
        // The same answer whether the agent exists or not: ids cannot be probed.
        Verdict::Known(caller) => {
            let message = format!(
                "Forbidden: this token may not reach agent {agent}; the identities file says which it may"
            );
            let failure = ApiFailure::new(StatusCode::FORBIDDEN, message);
            Err(Refusal { failure, who: Some(Who::Named(caller.name.clone())) })
        }
        Verdict::Revoked(_) => Err(refuse("the token was revoked").into()),
        Verdict::Unknown => Err(refuse("the token is not known here").into()),
    }
}

async fn of_job(
    gitlab: &Remembered,
    agent: AgentId,
    token: &JobToken,
    call: &Call,
) -> Result<CallerPermit, Refusal> {
    let standing = gitlab.job(token, call).await.map_err(job_failure)?;
    let allowed = standing.now().map_err(job_failure)?;
    let who = Who::job(&allowed);
    let refused = |failure| Refusal { failure, who: Some(Who::job(&allowed)) };
    let entry = allowed.allowed_agents.iter().find(|entry| entry.id == agent.0).ok_or_else(|| {
        // The same answer whether the agent exists or not.
        refused(ApiFailure::new(
            StatusCode::FORBIDDEN,
            "Forbidden: agentId is not allowed; ci_access in the agent's configuration says which projects \
             and environments are",
        ))
    })?;
    let access = access::of_job(&allowed, entry).map_err(|nobody| refused(nobody.into()))?;
    Ok(CallerPermit {
        who,
        kind: Kind::CiJob,
        agent,
        config_project: Some(ProjectId(entry.config_project.id)),
        access,
        standing: CallerStanding::Job(standing),
    })
}

async fn of_user(
    gitlab: &Remembered,
    agent: AgentId,
    kind: Kind,
    access: &Arc<ProxyAccess>,
    call: &Call,
) -> Result<CallerPermit, Refusal> {
    let access_type = match **access {
        ProxyAccess::PersonalAccessToken { .. } => "personal_access_token",
        ProxyAccess::SessionCookie { .. } => "session_cookie",
    };
    let standing = gitlab.user(agent, access, call).await.map_err(user_failure)?;
    let user = standing.now().map_err(user_failure)?;
    let who = Who::User { user: user.user.id, username: user.user.username.clone() };
    match access::of_user(&user, access_type) {
        Ok(access) => Ok(CallerPermit {
            who,
            kind,
            agent,
            config_project: Some(ProjectId(user.agent.config_project.id)),
            access,
            standing: CallerStanding::User(standing, access_type),
        }),
        Err(nobody) => Err(Refusal { failure: nobody.into(), who: Some(who) }),
    }
}

/// A kas' words, and what GitLab means by it. What GitLab itself said, and where it is, only the log says.
fn job_failure(error: RailsError) -> ApiFailure {
    let (code, message) = match &error.fault {
        Fault::Unauthorized { .. } => (
            StatusCode::UNAUTHORIZED,
            "Unauthorized: CI job token: GitLab does not know it, or its job is over",
        ),
        Fault::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden: CI job token"),
        Fault::NotFound { .. } => (StatusCode::NOT_FOUND, "Not found: agents for CI job token"),
        _ => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "Failed to get allowed agents for CI job token: GitLab gave no usable answer; try again",
        ),
    };
    ApiFailure::new(code, message).because(&error)
}

/// The same answer for a bad credential, an agent that does not exist and one that is not for this user: GitLab's statuses
/// tell them apart, and an agent's id must not be found by trying.
fn user_failure(error: RailsError) -> ApiFailure {
    let (code, message) = match error.lasting() {
        Lasting::Definitive => (
            StatusCode::UNAUTHORIZED,
            "Unauthorized: GitLab does not let this user reach this agent, or the credential is not good for it",
        ),
        Lasting::Transient | Lasting::Never => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "Failed to authorize user session: GitLab gave no usable answer; try again",
        ),
    };
    ApiFailure::new(code, message).because(&error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, header};
    use std::io::Write;

    fn source(text: &str) -> (tempfile::NamedTempFile, Identities) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let source = IdentitySource::load(file.path().to_owned()).unwrap();
        (file, Identities::File(source))
    }

    #[tokio::test]
    async fn callers_of_the_file_are_refused_with_the_reason_and_without_the_token() {
        let hash = TokenKey::of(b"SECRET").to_hex();
        let (_file, identities) = source(&format!(
            "agents: [{{id: 1, name: a, token_sha256: []}}, {{id: 2, name: b, token_sha256: []}}]\n\
             callers: [{{name: ci, agents: [1], token_sha256: [{hash}]}}]"
        ));
        let ask = async |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            let credential = Credential::read(identities.issuer(), &headers, None).unwrap();
            identities.admit(credential, &Call::default()).await.map(|permit| permit.who.to_string())
        };
        assert_eq!(ask("Bearer postern:1:SECRET").await, Ok("ci".to_owned()));
        for (value, code, words, who) in [
            ("Bearer postern:1:SECRETx", 401, "not known", None),
            ("Bearer postern:2:SECRET", 403, "may not reach agent 2", Some("ci")),
            ("Bearer postern:3:SECRET", 403, "may not reach agent 3", Some("ci")),
        ] {
            let refusal = ask(value).await.unwrap_err();
            assert_eq!(refusal.failure.code.as_u16(), code, "{value:?}");
            assert!(refusal.failure.message.contains(words), "{refusal:?}");
            assert!(!format!("{refusal:?}").contains("SECRET"));
            assert_eq!(refusal.who.map(|who| who.to_string()).as_deref(), who);
        }
    }

    #[test]
    fn each_fault_has_one_status_for_jobs_and_one_for_users() {
        let of = |status: u16, reason: Option<&str>| {
            let reason = crate::gitlab::Reason(reason.map(str::to_owned));
            let status = StatusCode::from_u16(status).unwrap();
            let fault = match status.as_u16() {
                401 => Fault::Unauthorized { reason },
                403 => Fault::Forbidden { reason },
                404 => Fault::NotFound { reason },
                _ => Fault::Other { status, reason },
            };
            RailsError { call: "authorize_proxy_user", host: "internal.example:1".into(), fault }
        };
        let table = [
            (of(401, None), 401, 401),
            (of(403, None), 403, 401),
            (of(404, None), 404, 401),
            (of(400, None), 500, 401),
            (of(401, Some("KAS JWT authentication invalid")), 401, 500),
            (of(500, None), 500, 500),
            (of(302, None), 500, 500),
        ];
        for (error, job, user) in table {
            for (failure, code) in [(job_failure(error.clone()), job), (user_failure(error.clone()), user)] {
                assert_eq!(failure.code.as_u16(), code, "{error:?}");
                assert!(!failure.message.contains("internal.example"), "{failure:?}");
                assert!(failure.cause.as_ref().is_some_and(|cause| cause.contains("internal.example")));
            }
        }
    }
}
