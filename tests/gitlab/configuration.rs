//! Commits in the configuration project: how soon an agent has them, what it is told of a broken one, and what Rails
//! hears of each.

use super::{FILE, received};
use crate::harness::{
    AGENT, Options,
    gitlab::{GitLabField, Setup},
    until,
};
use serde_json::json;
use stand_ins::rails::Endpoint;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_commit_reaches_a_connected_agent_within_one_poll_period() {
    let mut field = GitLabField::with(Setup { poll_period: "2s", ..Setup::default() }).await;
    let first = field.head(1);
    received(&mut field.agent, &first).await;
    for level in ["info", "debug"] {
        let start = Instant::now();
        let text = format!("observability: {{logging: {{level: {level}}}}}\n");
        let commit = field.commit(1, &[(FILE, Some(&text))]);
        let line = received(&mut field.agent, &commit).await;
        println!("a commit was received after {:?}", start.elapsed());
        // Without a period of its own the broker looks every twenty seconds.
        assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
        assert_eq!(line["agent_id"].to_string().trim_matches('"'), AGENT.to_string());
    }
}

#[tokio::test]
async fn a_push_that_rails_announces_reaches_the_agent_long_before_the_next_poll() {
    let mut field = GitLabField::with(Setup { poll_period: "300s", ..Setup::default() }).await;
    let first = field.head(1);
    received(&mut field.agent, &first).await;
    let mut rails = field.grpcio().await;
    let method = "notifications.rpc.Notifications/GitPushEvent";
    let event =
        |id: i64, path: &str| json!({"event": {"project": {"id": id.to_string(), "full_path": path}}});
    // Of another project first, and of one that nobody reads.
    for (id, path) in [(2, "secret/config"), (99, "group/unknown")] {
        let answer = rails.rails(method, event(id, path)).await;
        assert_eq!(answer["code"], "OK", "{answer}");
    }
    for level in ["info", "debug", "warn"] {
        let text = format!("observability: {{logging: {{level: {level}}}}}\n");
        let commit = field.commit(1, &[(FILE, Some(&text))]);
        let start = Instant::now();
        let answer = rails.rails(method, event(1, "group/config")).await;
        assert_eq!(answer["code"], "OK", "{answer}");
        received(&mut field.agent, &commit).await;
        println!("an announced commit was received after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn three_replicas_get_each_content_and_rails_hears_of_it_once() {
    let configuration = "observability: {logging: {level: debug}}\n";
    let options = Options { configuration, ..Options::default() };
    let mut field = GitLabField::with(Setup { field: options, ..Setup::default() }).await;
    let mut replicas = [field.replica().await, field.replica().await];
    let said = json!({"observability": {"logging": {"level": "debug"}}});
    let told = async |field: &GitLabField, calls: u64, said: &serde_json::Value| {
        let known = async || (field.rails().configuration(AGENT).as_ref() == Some(said)).then_some(());
        until("Rails knows the configuration", known).await;
        assert_eq!(field.rails().calls(Endpoint::AgentConfiguration), calls);
    };
    let first = field.head(1);
    for agent in std::iter::once(&mut field.field.agent).chain(&mut replicas) {
        received(agent, &first).await;
    }
    told(&field, 1, &said).await;

    // A commit that leaves the file as it is, or as good as it is.
    let spelt = "observability:\n  logging:\n    level: debug  # as before\n";
    for files in [("README.md", Some("hello\n")), (FILE, Some(spelt))] {
        let commit = field.commit(1, &[files]);
        for agent in std::iter::once(&mut field.field.agent).chain(&mut replicas) {
            received(agent, &commit).await;
        }
    }
    let commit = field.commit(1, &[(FILE, Some("ci_access: {projects: [{id: group/app}]}\n"))]);
    for agent in std::iter::once(&mut field.field.agent).chain(&mut replicas) {
        received(agent, &commit).await;
    }
    told(&field, 2, &json!({"ci_access": {"projects": [{"id": "group/app"}]}})).await;

    // A missing file is an empty configuration, for an agent that is new, too.
    let commit = field.commit(1, &[(FILE, None)]);
    for agent in std::iter::once(&mut field.field.agent).chain(&mut replicas) {
        received(agent, &commit).await;
    }
    let mut late = field.replica().await;
    received(&mut late, &commit).await;
    told(&field, 3, &json!({})).await;
}

#[tokio::test]
async fn a_broken_file_shows_the_agent_every_problem_with_its_line() {
    let mut field = GitLabField::start().await;
    let first = field.head(1);
    received(&mut field.agent, &first).await;
    // Rails may hear of it after the agent does.
    let reports = async || (field.rails().calls(Endpoint::AgentConfiguration) == 1).then_some(());
    until("Rails hears of the first", reports).await;
    let broken = "observability:\n  logging:\n    levle: debug\ngitops:\n  manifest_projects:\n  \
                  - id: group/manifests\n    prunes: true\nci_access:\n  projects:\n  - id: 7\n    sometimes: yes\n";
    let commit = field.commit(1, &[(FILE, Some(broken))]);
    // On a busy machine it may have missed a configuration before.
    let about =
        |line: &serde_json::Value| line["error"].as_str().is_some_and(|error| error.contains(&commit));
    let line = field.agent.logged("no configuration", about).await;
    let error = line["error"].as_str().unwrap();
    for word in [
        "FailedPrecondition",
        FILE,
        &commit,
        "levle",
        "line 3 column 5",
        "prunes",
        "line 7 column 5",
        "sometimes",
        "line 11 column 5",
    ] {
        assert!(error.contains(word), "{word:?} is missing in: {error}");
    }
    let line = field.broker.logged("configuration refused", |line| line["commit_id"] == commit).await;
    assert!(line["error"].as_str().unwrap().contains("line 11 column 5"), "{line}");
    // What works goes on working, and Rails keeps what it knows.
    assert_eq!(crate::harness::http::Client::new(&field).await.get("/version").await.0, 200);
    assert_eq!(field.rails().calls(Endpoint::AgentConfiguration), 1);
}
