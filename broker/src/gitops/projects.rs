//! Which projects an agent may read manifests from, and where they are. Before it: an agent's request. After it: GitLab,
//! asked with that agent's own token, or the identities file. One follower a repository is shared by all agents, but
//! none gets it without a yes for its own token.

use crate::{
    auth::AgentPermit,
    gitaly::poller::Pollers,
    gitlab::{
        Call, Fault, RailsError, Remembered,
        cache::{Lasting, Remember},
    },
    policies::{Followed, Who},
    repositories::{Place, Reference, Repositories, Repository},
};
use postern_wire::ids::ProjectId;
use std::sync::Arc;
use tonic::Status;

/// Who knows the projects.
#[derive(Clone, Debug)]
pub enum Projects {
    /// GitLab; they are on Gitaly servers.
    GitLab {
        /// Asked about every project.
        rails: Arc<Remembered>,
        /// Of manifest projects.
        pollers: Arc<Pollers>,
    },
    /// The identities file. An agent reads its own repository only.
    Local(Arc<Repositories>),
}

/// A project that the agent may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Project {
    pub(super) id: ProjectId,
    pub(super) place: Place,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Refused {
    /// The agent is told this.
    For(Status),
    /// GitLab says that there is no such project for this agent. It may be there later, and until then nothing of it is
    /// read; the agent is not told, as by kas.
    Missing(RailsError),
    /// It may be answered a moment later.
    Later(RailsError),
}

impl Projects {
    /// The project of this path; an empty one is that of the agent's configuration.
    pub(super) async fn of(&self, permit: &AgentPermit, path: &str) -> Result<Project, Refused> {
        let agent = &permit.agent;
        match self {
            Self::GitLab { rails, .. } => {
                let own = || match agent.project_path.as_str() {
                    "" => agent.project_id.to_string(),
                    path => path.to_owned(),
                };
                let path = if path.is_empty() { own() } else { path.to_owned() };
                let is_own = path == agent.project_path || path == agent.project_id.to_string();
                match rails.project_info(&permit.token, &path, &Call::default()).await {
                    Ok(info) => {
                        Ok(Project { id: info.project_id, place: Place::Gitaly(Arc::new(info.source())) })
                    }
                    Err(error) if error.lasting() != Lasting::Definitive => Err(Refused::Later(error)),
                    // Newest GitLab answers no questions about projects; where its own one is, an agent may know anyway.
                    Err(RailsError { fault: Fault::NotFound { .. }, .. }) if is_own => {
                        Ok(Project { id: agent.project_id, place: agent.repository.clone() })
                    }
                    Err(error @ RailsError { fault: Fault::NotFound { .. }, .. }) => {
                        Err(Refused::Missing(error))
                    }
                    Err(error) => Err(Refused::For(error.for_agent())),
                }
            }
            Self::Local(_) if path.is_empty() || path == agent.project_path => {
                Ok(Project { id: agent.project_id, place: agent.repository.clone() })
            }
            Self::Local(_) => Err(Refused::For(Status::permission_denied(
                "forbidden: without GitLab, an agent reads manifests from its own configuration project only",
            ))),
        }
    }

    /// Follows a reference of a project. `None`: it has no repository.
    pub(super) async fn follow(
        &self,
        project: &Project,
        reference: &Reference,
        who: Who,
    ) -> Option<Repository> {
        match (self, &project.place) {
            (Self::GitLab { pollers, .. }, Place::Gitaly(source)) => {
                let shared = pollers.follow_reference(source, reference).await;
                Some(Repository::gitaly(shared, who, Followed::Manifests))
            }
            (Self::Local(repositories), Place::Local(path)) => {
                let shared = repositories.local.follow_reference(path, reference).await;
                Some(Repository::local(shared, who, Followed::Manifests))
            }
            _ => None,
        }
    }
}
