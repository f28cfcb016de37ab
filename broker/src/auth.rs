//! Token -> who: agents on the agent listener here, callers of the Kubernetes API in `auth/caller.rs`. Decides from the
//! identities in force at this moment; it never says more than the one who asks needs to know.

pub mod caller;

use crate::{
    agent_limit::AgentLimit,
    gitlab::{AgentInfo, Call, RailsError, Remembered, standing::Standing},
    identities::{Agent, IdentitySource, Verdict},
    policies::Who,
    repositories::Place,
    tunnel::registry::Registry,
};
use futures::future::BoxFuture;
use http::{HeaderMap, header};
use postern_wire::{
    metadata::{CORRELATION_ID, agent_version_text},
    token::{AgentToken, TokenKey, bearer},
};
use rand::Rng;
use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Status, server::NamedService};

/// How long an agent's call is held while GitLab cannot say who it is; less than any agent waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two questions meanwhile; up to twice that.
const AGAIN: Duration = Duration::from_secs(1);
/// The same with a question that is under way: long enough for one, and short of the time after which the server would
/// cancel the call. Agents that are cancelled come back at once.
const ADMISSION: Duration = Duration::from_secs(22);

/// Who says who is who.
#[derive(Clone, Debug)]
pub enum Identities {
    /// A file of hashed tokens.
    File(Arc<IdentitySource>),
    /// GitLab.
    GitLab(Arc<Remembered>),
}

/// An agent whose token was good when it was looked at.
#[derive(Clone, Debug)]
pub struct AgentPermit {
    /// Who it is.
    pub agent: Arc<Agent>,
    /// For what is asked in the agent's name.
    pub token: AgentToken,
    /// As it says it itself, such as `v16.11.2`.
    pub version: Option<Arc<str>>,
    key: TokenKey,
    standing: AgentStanding,
}

/// What a permit rests on.
#[derive(Clone, Debug)]
enum AgentStanding {
    File(Arc<IdentitySource>),
    GitLab(Standing<AgentInfo>),
}

impl AgentPermit {
    /// Waits until the token is no longer good for this agent: a stream that holds the permit then ends with this.
    pub fn withdrawn(&self) -> impl Future<Output = Status> + Send + 'static {
        let Self { agent, key, standing, .. } = self.clone();
        async move {
            match standing {
                AgentStanding::File(identities) => {
                    let withdrawn = |_: &u64| match identities.current().agent(&key) {
                        Verdict::Known(now) if now.id == agent.id => None,
                        Verdict::Known(_) | Verdict::Unknown => Some(unknown_token()),
                        Verdict::Revoked(_) => Some(revoked_token()),
                    };
                    followed(identities.changes(), withdrawn).await
                }
                AgentStanding::GitLab(standing) => {
                    followed(standing.watch(), |now| match now {
                        Ok(info) if info.agent_id == agent.id => None,
                        Ok(_) => Some(unknown_token()),
                        Err(error) => Some(error.for_agent()),
                    })
                    .await
                }
            }
        }
    }

    /// Waits until the agent is described otherwise, or the token is no longer good for it.
    pub fn altered(&self) -> impl Future<Output = ()> + Send + 'static {
        let Self { agent, key, standing, .. } = self.clone();
        async move {
            match standing {
                AgentStanding::File(identities) => {
                    let same = Verdict::Known(agent);
                    let differs = |_: &u64| (identities.current().agent(&key) != same).then_some(());
                    followed(identities.changes(), differs).await;
                }
                AgentStanding::GitLab(standing) => {
                    followed(standing.watch(), |now| match now {
                        Ok(info) if described(info) == *agent => None,
                        _ => Some(()),
                    })
                    .await;
                }
            }
        }
    }

    /// As policies know it.
    pub fn who(&self) -> Who {
        Who {
            agent_id: u64::try_from(self.agent.id.0).ok(),
            project_id: u64::try_from(self.agent.project_id.0).ok(),
            token_hash: *self.key.as_bytes(),
            version: self.version.clone(),
        }
    }

    /// What identifies the token in logs.
    pub fn key(&self) -> TokenKey {
        self.key
    }
}

/// Looks now and at every change until `found` finds something; for ever if nothing changes any more.
async fn followed<T, R>(mut changes: watch::Receiver<T>, found: impl Fn(&T) -> Option<R>) -> R {
    loop {
        let now = found(&changes.borrow_and_update());
        if let Some(result) = now {
            return result;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// An agent as GitLab describes it.
fn described(info: &AgentInfo) -> Agent {
    let source = info.project.source();
    Agent {
        id: info.agent_id,
        name: info.agent_name.clone(),
        project_id: info.project.project_id,
        project_path: source.repository.gl_project_path.clone(),
        repository: Place::Gitaly(Arc::new(source)),
    }
}

fn unknown_token() -> Status {
    Status::unauthenticated("unauthenticated: the agent token is not known here")
}

fn revoked_token() -> Status {
    Status::permission_denied("forbidden: the agent token was revoked")
}

/// The permit that [`Guarded`] left with a request.
pub fn permit<T>(request: &tonic::Request<T>) -> Result<AgentPermit, Status> {
    let permit = request.extensions().get::<AgentPermit>().cloned();
    permit.ok_or_else(|| Status::internal("nobody authenticated this call"))
}

/// Authenticates the agents of every service it guards.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Who is asked.
    pub identities: Identities,
    /// Remembers refusals for those who ask where an agent is.
    pub registry: Arc<Registry>,
    /// How often one token may call; absent: nobody counts.
    pub limit: Option<Arc<AgentLimit>>,
}

impl Admission {
    /// Puts this before a service.
    pub fn guard<S>(&self, inner: S) -> Guarded<S> {
        Guarded { inner, admission: self.clone() }
    }

    /// Which agent sent this head.
    pub async fn agent(&self, headers: &HeaderMap) -> Result<AgentPermit, Status> {
        let missing = || Status::unauthenticated("Request unauthenticated with bearer");
        let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
        let token = AgentToken::new(bearer(value).ok_or_else(missing)?).map_err(|_| missing())?;
        let Some(limit) = &self.limit else { return self.identify(headers, token).await };
        // Before anybody is asked about the token: a flood of calls must not become one of questions.
        limit.begin(&token)?;
        let permit = self.identify(headers, token).await?;
        // Only now for the whole fleet: tokens that nobody issued take no room in Redis.
        let admitted = limit.admit(&permit.token, &permit.who().subject()).await;
        let refused = |status: &Status| self.registry.refused(permit.agent.id, status.message().to_owned());
        admitted.inspect_err(refused)?;
        Ok(permit)
    }

    async fn identify(&self, headers: &HeaderMap, token: AgentToken) -> Result<AgentPermit, Status> {
        let key = token.key();
        let version = version(headers);
        match &self.identities {
            Identities::File(identities) => match identities.current().agent(&key) {
                Verdict::Known(agent) => {
                    let standing = AgentStanding::File(Arc::clone(identities));
                    Ok(AgentPermit { agent, token, version, key, standing })
                }
                Verdict::Revoked(owner) => {
                    let status = revoked_token();
                    if let Some(agent) = owner {
                        self.registry.refused(agent, status.message().to_owned());
                    }
                    Err(status)
                }
                Verdict::Unknown => Err(unknown_token()),
            },
            Identities::GitLab(gitlab) => {
                let correlation_id = headers.get(CORRELATION_ID).and_then(|value| value.to_str().ok());
                let call = Call {
                    deadline: None,
                    correlation_id: correlation_id.map(str::to_owned),
                    ..Call::default()
                };
                let (info, standing) = held(token.key(), || ask(gitlab, &token, &call)).await?;
                let agent = Arc::new(described(&info));
                Ok(AgentPermit { agent, token, version, key, standing: AgentStanding::GitLab(standing) })
            }
        }
    }
}

fn version(headers: &HeaderMap) -> Option<Arc<str>> {
    let user_agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
    agent_version_text(user_agent).map(Arc::from)
}

async fn ask(
    gitlab: &Remembered,
    token: &AgentToken,
    call: &Call,
) -> Result<(Arc<AgentInfo>, Standing<AgentInfo>), RailsError> {
    let standing = gitlab.agent(token, call).await?;
    Ok((standing.now()?, standing))
}

/// Ends in time, whatever GitLab does, with what the agent is told.
async fn held<T, F>(token: TokenKey, ask: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, RailsError>>,
{
    match timeout(ADMISSION, patiently(ask)).await {
        Ok(Ok(known)) => Ok(known),
        Ok(Err(error)) => {
            tracing::warn!(%token, error = %crate::error::chain(&error), "agent turned away");
            Err(error.for_agent())
        }
        Err(_) => {
            tracing::warn!(%token, error = "no answer from GitLab in time", "agent turned away");
            Err(Status::unavailable("unavailable"))
        }
    }
}

/// Asks again for a while where GitLab has trouble: agents that are turned away stay away for minutes.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, RailsError>
where
    F: Future<Output = Result<T, RailsError>>,
{
    let until = Instant::now() + PATIENCE;
    loop {
        let pause = AGAIN.mul_f64(rand::rng().random_range(1.0..2.0));
        match ask().await {
            Err(error) if error.is_trouble() && Instant::now() + pause < until => sleep(pause).await,
            settled => return settled,
        }
    }
}

/// A service for agents only: a call is authenticated by its head alone, before any of its body is read.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    admission: Admission,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> tower_service::Service<http::Request<B>> for Guarded<S>
where
    S: tower_service::Service<http::Request<B>, Response = http::Response<tonic::body::Body>>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The one that was polled ready is the one to call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let admission = self.admission.clone();
        Box::pin(async move {
            match admission.agent(request.headers()).await {
                Ok(permit) => {
                    request.extensions_mut().insert(permit);
                    inner.call(request).await.map(crate::status_text::cut)
                }
                Err(status) => Ok(crate::status_text::cut(status.into_http())),
            }
        })
    }
}

#[cfg(test)]
mod tests;
