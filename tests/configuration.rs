//! Configuration from a git repository to an agent: what a commit changes, what a broken one does, and how it is mended.

use crate::harness::{Field, Options, PATIENCE, Process, git, http::Client, until};
use serde_json::Value;
use std::{fs, net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

const FILE: &str = ".gitlab/agents/test/config.yaml";

/// Commits the document, or its absence, to the field's repository; returns the commit's id.
fn commit(field: &Field, document: Option<&str>) -> String {
    let repository = field.folder.path().join("config");
    match document {
        Some(text) => fs::write(repository.join(FILE), text).unwrap(),
        None => fs::remove_file(repository.join(FILE)).unwrap(),
    }
    git(&repository, &["add", "-A"]);
    git(&repository, &["commit", "-qm", "next"]);
    head(&repository)
}

fn head(repository: &Path) -> String {
    let output = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(repository)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn received(agent: &mut Process, commit: &str) -> Value {
    agent.logged("configuration received", |line| line["commit_id"] == commit).await
}

/// Sends nonsense to the agent's probes, which it mentions at `debug`, and waits until it has hung up.
async fn pester(probes: SocketAddr) {
    let mut stream = TcpStream::connect(probes).await.unwrap();
    stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the agent hangs up");
}

fn mentions(agent: &Process) -> usize {
    agent.lines().iter().filter(|line| line["message"] == "a prober's request failed").count()
}

#[tokio::test]
async fn a_commit_reaches_the_agent_within_seconds_and_moves_its_log_level() {
    let options =
        Options { configuration: "observability: {logging: {level: info}}\n", ..Options::default() };
    let mut field = Field::with(options).await;
    let first = head(&field.folder.path().join("config"));
    received(&mut field.agent, &first).await;
    let probes = field.addresses.agent_probes;
    pester(probes).await;

    let start = Instant::now();
    let second = commit(&field, Some("observability: {logging: {level: debug}}\n"));
    let line = received(&mut field.agent, &second).await;
    println!("a commit was received after {:?}", start.elapsed());
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    assert_eq!(line["agent_id"].to_string().trim_matches('"'), "7");
    assert_eq!(mentions(&field.agent), 0, "debug lines at info");
    until("the agent speaks at debug", async || {
        pester(probes).await;
        (mentions(&field.agent) > 0).then_some(())
    })
    .await;

    // An agent without a file is an agent with an empty configuration.
    let third = commit(&field, None);
    received(&mut field.agent, &third).await;
    assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
}

#[tokio::test]
async fn a_repository_without_the_file_is_an_empty_configuration_for_a_new_agent_too() {
    let mut field = Field::with(Options { configuration: "{}\n", ..Options::default() }).await;
    let without = commit(&field, None);
    field.replace_agent(|_| {}).await;
    received(&mut field.agent, &without).await;
    assert!(!field.agent.text().contains("no configuration"), "{}", field.agent.text());
}

/// A broken document: what the broker says and what the agent is told, until the next commit mends it.
async fn broken_then_mended(broken: &'static str, place: &str, what: &str) {
    let mut field = Field::start().await;
    let first = head(&field.folder.path().join("config"));
    received(&mut field.agent, &first).await;
    let bad = commit(&field, Some(broken));
    let line = field.broker.logged("configuration refused", |line| line["commit_id"] == bad).await;
    for word in [FILE, &bad, place, what] {
        assert!(line["error"].as_str().unwrap().contains(word), "{word:?} is missing in: {line}");
    }
    let line = field.agent.logged("no configuration", |_| true).await;
    for word in ["FailedPrecondition", FILE, place] {
        assert!(line["error"].as_str().unwrap().contains(word), "{word:?} is missing in: {line}");
    }
    // What works goes on working.
    assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
    assert!(field.broker.alive() && field.agent.alive());

    let good = commit(&field, Some("observability: {logging: {level: info}}\n"));
    let start = Instant::now();
    received(&mut field.agent, &good).await;
    println!("a mended configuration was received after {:?}", start.elapsed());
}

#[tokio::test]
async fn a_commit_that_is_not_yaml_is_refused_with_its_line_until_the_next_one_mends_it() {
    broken_then_mended("observability:\n  logging: {level: debug}\n bad: [\n", "line 3", "").await;
}

#[tokio::test]
async fn a_commit_with_an_unknown_key_is_refused_with_its_line_until_the_next_one_mends_it() {
    broken_then_mended("observability:\n  logging:\n    levle: debug\n", "line 3", "levle").await;
}
