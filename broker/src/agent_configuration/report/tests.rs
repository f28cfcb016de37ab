//! Against the stand-in GitLab.

use super::*;
use crate::{
    app::PROGRAM,
    gitlab::{Config, Limits},
    rate::Rate,
};
use postern_certs::client::ClientTrust;
use serde_json::json;
use stand_ins::rails::{self, Agent, Endpoint, Faults, Options, Project};
use std::io::Write;
use tokio::time::timeout;

struct Field {
    gitlab: rails::Rails,
    reports: Arc<Reports>,
    tasks: TaskTracker,
}

impl Field {
    async fn new() -> Self {
        postern_certs::install_provider();
        let project = Project::new(1, "group/config");
        let agent = Agent { token: "t".into(), id: 7, name: "prod".into(), project };
        let gitlab =
            rails::Rails::start(Options { agents: vec![agent], ..Options::default() }).await.unwrap();
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        write!(secret, "{}", gitlab.secret_file()).unwrap();
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        write!(ca, "{}", postern_certs::dev::Ca::new().pem()).unwrap();
        let rails = Rails::new(Config {
            address: gitlab.url().parse().unwrap(),
            authentication_secret_file: secret.path().to_owned(),
            trust: ClientTrust::load(Some(ca.path().to_owned())).unwrap(),
            program: PROGRAM,
            rate: Rate::default(),
            limits: Limits::default(),
        });
        let tasks = TaskTracker::new();
        let reports = Reports::new(Arc::new(rails.unwrap()), CancellationToken::new(), tasks.clone());
        Self { gitlab, reports, tasks }
    }

    async fn settled(&self) {
        self.tasks.close();
        timeout(Duration::from_secs(20), self.tasks.wait()).await.expect("all is told");
        self.tasks.reopen();
    }
}

#[tokio::test]
async fn a_content_is_told_once_however_many_replicas_and_commits_there_are() {
    let field = Field::new().await;
    let one = json!({"observability": {"logging": {"level": "debug"}}});
    for _ in 0..20 {
        field.reports.report(AgentId(7), &one);
    }
    field.settled().await;
    field.reports.report(AgentId(7), &one);
    field.settled().await;
    assert_eq!(field.gitlab.calls(Endpoint::AgentConfiguration), 1);
    assert_eq!(field.gitlab.configuration(7), Some(one));
    field.reports.report(AgentId(7), &json!({}));
    field.settled().await;
    assert_eq!(field.gitlab.calls(Endpoint::AgentConfiguration), 2);
    assert_eq!(field.gitlab.configuration(7), Some(json!({})));
}

#[tokio::test]
async fn an_agent_that_gitlab_does_not_know_is_not_told_of_again_and_again() {
    let field = Field::new().await;
    for _ in 0..3 {
        field.reports.report(AgentId(8), &json!({}));
        field.settled().await;
    }
    assert_eq!(field.gitlab.calls(Endpoint::AgentConfiguration), 1);
}

#[tokio::test]
async fn what_gitlab_missed_it_hears_when_it_is_back_and_only_the_newest_of_it() {
    let field = Field::new().await;
    let down = Faults { status: Some(http::StatusCode::BAD_GATEWAY), ..Faults::default() };
    field.gitlab.set_faults(Endpoint::AgentConfiguration, down);
    let mut arrivals = field.gitlab.arrivals();
    for number in 0..50 {
        field.reports.report(AgentId(7), &json!({"flux": {"webhook_receiver_url": number.to_string()}}));
    }
    timeout(Duration::from_secs(20), arrivals.changed()).await.unwrap().unwrap();
    field.gitlab.set_faults(Endpoint::AgentConfiguration, Faults::default());
    field.settled().await;
    let newest = json!({"flux": {"webhook_receiver_url": "49"}});
    assert_eq!(field.gitlab.configuration(7), Some(newest));
    assert!(field.gitlab.calls(Endpoint::AgentConfiguration) <= 3);
}
