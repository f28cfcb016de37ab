//! Who and what this GitLab knows, and the JSON that says so.

use serde_json::{Value, json};

use super::Options;

/// An agent, its token and the project of its configuration.
#[derive(Clone)]
pub struct Agent {
    pub token: String,
    pub id: i64,
    pub name: String,
    pub project: Project,
}

/// A project and where Gitaly keeps it.
#[derive(Clone)]
pub struct Project {
    pub id: i64,
    /// `group/project`.
    pub path: String,
    /// Whether agents of other projects may read it.
    pub public: bool,
    pub gitaly_address: String,
    pub gitaly_token: String,
    pub default_branch: String,
}

/// A running CI job: its token, and the document that `allowed_agents` answers.
#[derive(Clone)]
pub struct Job {
    pub token: String,
    pub allowed_agents: Value,
    /// The `Gitlab-Feature-Flag` header, if any.
    pub feature_flags: Option<String>,
}

/// A person: how they prove who they are, and what they get.
#[derive(Clone)]
pub struct User {
    pub id: i64,
    pub username: String,
    pub personal_access_token: String,
    /// Whether the token has the scope `k8s_proxy`.
    pub scope: bool,
    pub session_cookie: String,
    pub csrf_token: String,
    /// Agents they may reach, each with the `access_as` of the answer.
    pub agents: Vec<(i64, Value)>,
}

impl Project {
    /// A private project of this id and path, with a Gitaly that nobody asks.
    pub fn new(id: i64, path: &str) -> Project {
        Project {
            id,
            path: path.to_owned(),
            public: false,
            gitaly_address: "tcp://127.0.0.1:1".to_owned(),
            gitaly_token: String::new(),
            default_branch: "main".to_owned(),
        }
    }

    fn document(&self, options: &Options) -> Value {
        let mut document = json!({
            "project_id": self.id,
            "gitaly_info": {
                "address": self.gitaly_address,
                "token": self.gitaly_token,
                "features": {"gitaly-feature-stand-in": "true"},
            },
            "gitaly_repository": {
                "storage_name": "default",
                "relative_path": format!("@hashed/{}.git", self.id),
                "gl_repository": format!("project-{}", self.id),
                "gl_project_path": self.path,
            },
        });
        if options.default_branch {
            document["default_branch"] = json!(self.default_branch);
        }
        document
    }
}

pub(super) fn agent_info(agent: &Agent, options: &Options) -> Value {
    let mut document = agent.project.document(options);
    document["agent_id"] = json!(agent.id);
    document["agent_name"] = json!(agent.name);
    document
}

/// The project of this id or path, unless this agent may not read it.
pub(super) fn project_info(id: &str, agent: &Agent, options: &Options) -> Option<Value> {
    let projects = options.projects.iter().chain(options.agents.iter().map(|agent| &agent.project));
    let mut projects = projects.filter(|project| project.path == id || project.id.to_string() == id);
    let project = projects.next()?;
    (project.public || project.id == agent.project.id).then(|| project.document(options))
}
