//! The client's questions behind memories: who an agent is, what it may read, what a job or a user may reach. Before it:
//! every request of every agent and caller. After it: GitLab, once per token and period. Each caller waits no longer than
//! its own deadline, while the question itself depends on no caller.

use super::{
    AgentInfo, AllowedAgents, Call, Fault, JobToken, ProjectInfo, ProxyAccess, ProxyUser, Rails, RailsError,
    cache::{Cache, Settings},
    standing::{Standing, Standings},
};
use postern_wire::{
    ids::AgentId,
    token::{AgentToken, TokenKey},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long answers are good for.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Agents; the bound within which a revoked one is noticed.
    pub agents: Settings,
    /// Projects of agents.
    pub projects: Settings,
    /// CI jobs and users; the bound within which a job that ended is noticed.
    pub callers: Settings,
}

impl Default for Periods {
    /// A kas' own times; bounded, which a kas' caches are not.
    fn default() -> Self {
        let settings = |capacity, ok, error| Settings {
            capacity,
            ok: Duration::from_secs(ok),
            error: Duration::from_secs(error),
        };
        Self {
            agents: settings(50_000, 300, 60),
            projects: settings(50_000, 300, 60),
            callers: settings(50_000, 60, 10),
        }
    }
}

/// A user's credential and the agent it was shown for, as hashes.
type UserKey = (AgentId, TokenKey);

/// The client and what it learnt.
pub struct Remembered {
    rails: Arc<Rails>,
    agents: Standings<TokenKey, AgentInfo>,
    projects: Cache<(TokenKey, String), Arc<ProjectInfo>, RailsError>,
    jobs: Standings<TokenKey, AllowedAgents>,
    users: Standings<UserKey, ProxyUser>,
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembered").field("rails", &self.rails).finish_non_exhaustive()
    }
}

impl Remembered {
    /// With nothing learnt yet. Tokens in use are asked for again until `stop`.
    pub fn new(rails: Arc<Rails>, periods: Periods, stop: &CancellationToken, tasks: &TaskTracker) -> Self {
        Self {
            rails,
            agents: Standings::new(periods.agents, stop.clone(), tasks.clone()),
            projects: Cache::new(periods.projects),
            jobs: Standings::new(periods.callers, stop.clone(), tasks.clone()),
            users: Standings::new(periods.callers, stop.clone(), tasks.clone()),
        }
    }

    /// The client itself, for what is never remembered.
    pub fn rails(&self) -> &Arc<Rails> {
        &self.rails
    }

    /// [`Rails::agent_info`].
    pub async fn agent(&self, token: &AgentToken, call: &Call) -> Result<Standing<AgentInfo>, RailsError> {
        let (rails, own, around) = (Arc::clone(&self.rails), token.clone(), call.for_all());
        let standing = self.agents.of(token.key(), move |occasion| {
            let (rails, token, call) = (Arc::clone(&rails), own.clone(), around.on(occasion));
            async move { rails.agent_info(&token, &call).await.map(Arc::new) }
        });
        self.within(call, "agent_info", standing).await
    }

    /// [`Rails::project_info`].
    pub async fn project_info(
        &self,
        token: &AgentToken,
        project: &str,
        call: &Call,
    ) -> Result<Arc<ProjectInfo>, RailsError> {
        let answer = self.projects.get((token.key(), project.to_owned()), || {
            let (rails, token, call) = (Arc::clone(&self.rails), token.clone(), call.for_all());
            let project = project.to_owned();
            async move { rails.project_info(&token, &project, &call).await.map(Arc::new) }
        });
        self.within(call, "project_info", answer).await
    }

    /// [`Rails::allowed_agents`].
    pub async fn job(&self, token: &JobToken, call: &Call) -> Result<Standing<AllowedAgents>, RailsError> {
        let (rails, own, around) = (Arc::clone(&self.rails), token.clone(), call.for_all());
        let standing = self.jobs.of(token.key(), move |occasion| {
            let (rails, token, call) = (Arc::clone(&rails), own.clone(), around.on(occasion));
            async move { rails.allowed_agents(&token, &call).await.map(Arc::new) }
        });
        self.within(call, "allowed_agents", standing).await
    }

    /// [`Rails::authorize_proxy_user`].
    pub async fn user(
        &self,
        agent: AgentId,
        access: &Arc<ProxyAccess>,
        call: &Call,
    ) -> Result<Standing<ProxyUser>, RailsError> {
        let (rails, own, around) = (Arc::clone(&self.rails), Arc::clone(access), call.for_all());
        let standing = self.users.of((agent, access.key()), move |occasion| {
            let (rails, access, call) = (Arc::clone(&rails), Arc::clone(&own), around.on(occasion));
            async move { rails.authorize_proxy_user(agent, &access, &call).await.map(Arc::new) }
        });
        self.within(call, "authorize_proxy_user", standing).await
    }

    async fn within<T>(
        &self,
        call: &Call,
        name: &'static str,
        answer: impl Future<Output = Result<T, RailsError>>,
    ) -> Result<T, RailsError> {
        let Some(deadline) = call.deadline else { return answer.await };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.rails.error(name, Fault::Deadline)),
        }
    }
}
