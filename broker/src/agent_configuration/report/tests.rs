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
        timeout(Duration::from_secs(60), self.tasks.wait()).await.expect("all is told");
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

/// Reports it again and again, and waits until GitLab refused it.
async fn refused(field: &Field, agent: AgentId, document: &Value) {
    for _ in 0..3 {
        field.reports.report(agent, document);
    }
    let refused = async {
        while field.reports.agents()[&agent].refusals == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), refused).await.expect("it is told");
    field.reports.report(agent, document);
    assert_eq!(field.gitlab.calls(Endpoint::AgentConfiguration), 1);
}

#[tokio::test]
async fn what_gitlab_refused_it_is_told_again_long_after() {
    let field = Field::new().await;
    let missing = Faults { status: Some(http::StatusCode::NOT_FOUND), ..Faults::default() };
    field.gitlab.set_faults(Endpoint::AgentConfiguration, missing);
    let document = json!({"observability": {}});
    refused(&field, AgentId(7), &document).await;
    field.gitlab.set_faults(Endpoint::AgentConfiguration, Faults::default());
    tokio::time::pause();
    let begin = Instant::now();
    let mut arrivals = field.gitlab.arrivals();
    timeout(2 * REFUSED, arrivals.changed()).await.expect("it is told again").unwrap();
    assert!(begin.elapsed() >= REFUSED * 9 / 10, "{:?}", begin.elapsed());
    tokio::time::resume();
    field.settled().await;
    assert_eq!(field.gitlab.configuration(7), Some(document));
}

#[tokio::test]
async fn another_content_does_not_wait_for_one_that_gitlab_refused() {
    let field = Field::new().await;
    let missing = Faults { status: Some(http::StatusCode::NOT_FOUND), ..Faults::default() };
    field.gitlab.set_faults(Endpoint::AgentConfiguration, missing);
    refused(&field, AgentId(7), &json!({"one": 1})).await;
    field.gitlab.set_faults(Endpoint::AgentConfiguration, Faults::default());
    field.reports.report(AgentId(7), &json!({"two": 2}));
    field.settled().await;
    assert_eq!(field.gitlab.configuration(7), Some(json!({"two": 2})));
}

#[test]
fn refusals_are_told_again_after_ten_minutes_to_an_hour() {
    for (refusals, random, minutes) in [(0, 0.0, 10), (0, 1.0, 15), (1, 0.0, 20), (2, 1.0, 60), (40, 1.0, 60)]
    {
        assert_eq!(refusal_pause(refusals, random), Duration::from_secs(minutes * 60), "{refusals} {random}");
    }
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
    timeout(Duration::from_secs(60), arrivals.changed()).await.unwrap().unwrap();
    field.gitlab.set_faults(Endpoint::AgentConfiguration, Faults::default());
    field.settled().await;
    let newest = json!({"flux": {"webhook_receiver_url": "49"}});
    assert_eq!(field.gitlab.configuration(7), Some(newest));
    assert!(field.gitlab.calls(Endpoint::AgentConfiguration) <= 3);
}
