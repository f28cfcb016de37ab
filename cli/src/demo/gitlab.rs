//! The GitLab of `--gitlab`: stand-ins for Rails and Gitaly in this process. Rails knows one agent and three CI jobs that
//! may reach it; Gitaly serves the repository of its configuration. Before the broker starts, and until it has ended.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use stand_ins::gitaly::{self, Gitaly};
use stand_ins::rails::{self, Agent, Job, Options, Project, Rails};

use super::place::{AGENT_ID, AGENT_NAME, Place};
use crate::tokens;

const PROJECT_ID: i64 = 1;
const PROJECT: &str = "demo/config";

/// Why there is no GitLab.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitLabError {
    #[error("the stand-in for Gitaly does not start")]
    Gitaly(#[source] io::Error),
    #[error(transparent)]
    Rails(#[from] rails::StartError),
}

/// A GitLab in use; gone when this is dropped.
pub(super) struct GitLab {
    rails: Rails,
    gitaly: Gitaly,
    /// Of the agent's configuration; not made yet.
    pub(super) repository: PathBuf,
}

impl GitLab {
    pub(super) async fn start(place: &Place) -> Result<GitLab, GitLabError> {
        let storage = place.path("gitaly");
        let token = tokens::new_token();
        let options = gitaly::Options { token: Some(token.clone()), ..gitaly::Options::new(&storage) };
        let gitaly = Gitaly::start(options).await.map_err(GitLabError::Gitaly)?;

        let (agent, jobs) = place.gitlab_tokens();
        let project = Project {
            gitaly_address: gitaly.address().to_owned(),
            gitaly_token: token,
            ..Project::new(PROJECT_ID, PROJECT)
        };
        let agent = Agent { token: agent.to_owned(), id: AGENT_ID, name: AGENT_NAME.to_owned(), project };
        let job = |(id, token): (i64, &str)| Job {
            token: token.to_owned(),
            allowed_agents: allowed_agents(id),
            feature_flags: None,
        };
        let options = Options {
            secret: rand::random(),
            agents: vec![agent],
            jobs: (1..).zip(jobs).map(job).collect(),
            ..Options::default()
        };
        let rails = Rails::start(options).await?;
        // Where Rails says that Gitaly has it.
        let repository = storage.join(format!("@hashed/{PROJECT_ID}.git"));
        Ok(GitLab { rails, gitaly, repository })
    }

    /// What the broker is told.
    pub(super) fn address(&self) -> String {
        self.rails.url()
    }

    /// Where Gitaly is; the broker hears that from Rails.
    pub(super) fn gitaly(&self) -> &str {
        self.gitaly.address()
    }

    /// The file that Rails and the broker share.
    pub(super) fn secret(&self) -> String {
        self.rails.secret_file()
    }
}

/// What Rails says of a job. It comes as the agent: no real cluster has rights for its own name.
fn allowed_agents(job: i64) -> Value {
    json!({
        "allowed_agents": [{
            "id": AGENT_ID,
            "config_project": {"id": PROJECT_ID},
            "configuration": {"access_as": {"agent": {}}},
        }],
        "job": {"id": job},
        "pipeline": {"id": 1},
        "project": {"id": PROJECT_ID, "groups": []},
        "user": {"id": 1, "username": "you", "roles_in_project": ["developer"]},
    })
}
