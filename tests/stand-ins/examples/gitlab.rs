//! The stand-ins for Rails and Gitaly by themselves, for a kas of any make:
//! `cargo run -p stand-ins --example gitlab -- REPOSITORIES AGENT...`, where an AGENT is `token:id:name:project id:project path`.
//!
//! REPOSITORIES holds the git repository of project 42 as `@hashed/42.git`. Every agent may be reached with the job token
//! `job-<id>`. Prints where it listens and serves until it is interrupted.

use serde_json::json;
use stand_ins::{gitaly, rails};
use std::{error::Error, path::PathBuf};

const USAGE: &str = "usage: gitlab REPOSITORIES TOKEN:ID:NAME:PROJECT_ID:PROJECT_PATH...";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let repositories = PathBuf::from(arguments.next().ok_or(USAGE)?);
    let gitaly = gitaly::Gitaly::start(gitaly::Options {
        token: Some("gitaly-secret".to_owned()),
        ..gitaly::Options::new(repositories)
    })
    .await?;
    let mut options = rails::Options::default();
    for argument in arguments {
        let parts: Vec<&str> = argument.splitn(5, ':').collect();
        let [token, id, name, project, path] = parts[..] else { return Err(USAGE.into()) };
        let mut project = rails::Project::new(project.parse()?, path);
        project.gitaly_address = gitaly.address().to_owned();
        project.gitaly_token = "gitaly-secret".to_owned();
        let (id, project_id): (i64, i64) = (id.parse()?, project.id);
        options.agents.push(rails::Agent { token: token.to_owned(), id, name: name.to_owned(), project });
        options.jobs.push(rails::Job {
            token: format!("job-{id}"),
            allowed_agents: json!({
                "allowed_agents": [{"id": id, "config_project": {"id": project_id}}],
                "job": {"id": 1}, "pipeline": {"id": 2}, "project": {"id": project_id, "groups": []},
                "user": {"id": 3, "username": "user"},
            }),
            feature_flags: None,
        });
    }
    let rails = rails::Rails::start(options).await?;
    println!("RAILS_URL={}", rails.url());
    println!("GITALY={}", gitaly.address());
    println!("SECRET={}", rails.secret_file().trim_end());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
