//! The client's questions behind caches: who an agent is, what it may read, what a job may reach. Before it: every request
//! of every agent and job. After it: GitLab, once per token and period. Each caller waits no longer than its own
//! deadline, while the question itself depends on no caller.

use super::{
    AgentInfo, AllowedAgents, Call, Fault, JobToken, ProjectInfo, Rails, RailsError,
    cache::{Cache, Settings},
};
use postern_wire::token::{AgentToken, TokenKey};
use std::{sync::Arc, time::Duration};

/// How long answers are good for.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Agents; the bound within which a revoked one is noticed.
    pub agents: Settings,
    /// Projects of agents.
    pub projects: Settings,
    /// CI jobs; the bound within which one that ended is noticed.
    pub jobs: Settings,
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
            jobs: settings(50_000, 60, 10),
        }
    }
}

/// The client and what it learnt.
pub struct Remembered {
    rails: Arc<Rails>,
    agents: Cache<TokenKey, Arc<AgentInfo>, RailsError>,
    projects: Cache<(TokenKey, String), Arc<ProjectInfo>, RailsError>,
    jobs: Cache<TokenKey, Arc<AllowedAgents>, RailsError>,
}

impl Remembered {
    /// With nothing learnt yet.
    pub fn new(rails: Arc<Rails>, periods: Periods) -> Self {
        Self {
            rails,
            agents: Cache::new(periods.agents),
            projects: Cache::new(periods.projects),
            jobs: Cache::new(periods.jobs),
        }
    }

    /// The client itself, for what is never remembered.
    pub fn rails(&self) -> &Arc<Rails> {
        &self.rails
    }

    /// [`Rails::agent_info`].
    pub async fn agent_info(&self, token: &AgentToken, call: &Call) -> Result<Arc<AgentInfo>, RailsError> {
        let answer = self.agents.get(token.key(), || {
            let (rails, token, call) = (Arc::clone(&self.rails), token.clone(), call.for_all());
            async move { rails.agent_info(&token, &call).await.map(Arc::new) }
        });
        self.within(call, "agent_info", answer).await
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
    pub async fn allowed_agents(
        &self,
        token: &JobToken,
        call: &Call,
    ) -> Result<Arc<AllowedAgents>, RailsError> {
        let answer = self.jobs.get(token.key(), || {
            let (rails, token, call) = (Arc::clone(&self.rails), token.clone(), call.for_all());
            async move { rails.allowed_agents(&token, &call).await.map(Arc::new) }
        });
        self.within(call, "allowed_agents", answer).await
    }

    /// The next question about this agent goes to GitLab.
    pub fn forget_agent(&self, token: &TokenKey) {
        self.agents.forget(token);
    }

    /// The next question about this job goes to GitLab.
    pub fn forget_job(&self, token: &TokenKey) {
        self.jobs.forget(token);
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
