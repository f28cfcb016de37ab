//! Manifests, from a broker in this process to what an applier would get: whole commits or nothing, within bounds, and
//! only of the projects that the configuration names now.

use crate::{
    fake_api::FakeApi,
    fake_broker::{FakeBroker, Via},
    harness::{Running, count_logged, logged, soon, start},
};
use postern_agent::gitops::{Project, Received};
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::ConfigurationResponse,
    agentcfg::{
        AgentConfiguration, GitRefCf, GitopsCf, ManifestProjectCf, PathCf, git_ref_cf::Ref, path_cf::Path,
    },
};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::Status;

/// Project names are unique to a test: all tests share one log.
fn project(id: &str) -> ManifestProjectCf {
    ManifestProjectCf { id: id.to_owned(), ..Default::default() }
}

/// Makes the broker push a configuration with these projects.
fn configure(broker: &FakeBroker, commit_id: &str, projects: &[ManifestProjectCf]) {
    let configuration = AgentConfiguration {
        agent_id: 7,
        project_path: "group/configuration".to_owned(),
        gitops: Some(GitopsCf { manifest_projects: projects.to_vec() }),
        ..Default::default()
    };
    let response =
        ConfigurationResponse { configuration: Some(configuration), commit_id: commit_id.to_owned() };
    broker.state.configuration.send_replace(Some(response));
}

async fn agent_of(projects: &[ManifestProjectCf]) -> (FakeBroker, Running) {
    let broker = FakeBroker::start(Via::Grpc).await;
    configure(&broker, "0", projects);
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    (broker, agent)
}

/// The published project, once it is there.
async fn published(agent: &Running, id: &str) -> Project {
    let mut manifests = agent.manifests.clone();
    let found =
        soon(id, manifests.wait_for(|projects| projects.contains_key(id))).await.expect("the agent runs");
    found[id].clone()
}

/// The commit, once it is the latest.
async fn received(project: &Project, commit_id: &str) -> Arc<Received> {
    let mut latest: watch::Receiver<_> = project.received.clone();
    let wanted = |latest: &Option<Arc<Received>>| latest.as_ref().is_some_and(|r| r.commit_id == commit_id);
    soon(commit_id, latest.wait_for(wanted)).await.expect("the project is followed").clone().expect("wanted")
}

/// Five MiB and some, in which each position tells where it is.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

#[tokio::test]
async fn a_commit_is_published_whole_and_byte_for_byte() {
    let (mut broker, agent) = agent_of(&[project("whole/one")]).await;
    let sync = broker.synchronization("whole/one").await;
    let globs = [PathCf { path: Some(Path::Glob("**/*.{yaml,yml,json}".to_owned())) }];
    assert_eq!(sync.request.paths, globs);
    assert_eq!((sync.request.commit_id.as_str(), &sync.request.r#ref), ("", &None));
    let (long, binary) = (pattern(1_000_000), vec![0, 0xff, b'\r', b'\n', 0]);
    sync.header("c1").await;
    sync.file("long.yaml", &long, 128 * 1024).await;
    sync.file("dir/empty.yaml", b"", 1).await;
    sync.file("dir/binary.yml", &binary, 2).await;
    let project = published(&agent, "whole/one").await;
    assert!(project.received.borrow().is_none());
    sync.complete().await;

    let commit = received(&project, "c1").await;
    assert_eq!((commit.project.as_str(), commit.project_id), ("whole/one", 42));
    let names: Vec<_> = commit.files.iter().map(|file| file.source.as_str()).collect();
    assert_eq!(names, ["long.yaml", "dir/empty.yaml", "dir/binary.yml"]);
    assert!(commit.files[0].data == long && commit.files[1].data.is_empty());
    assert_eq!(commit.files[2].data, binary);

    let line = logged(&["manifests received", "whole/one", "\"c1\""]).await;
    assert!(line.contains("\"files\":3") && line.contains("\"bytes\":1000005"), "{line}");
    let (_, metrics) = agent.probe("/metrics").await;
    assert!(metrics.contains("agentk_gitops_commits_total 1"), "{metrics}");
    assert!(metrics.contains("agentk_gitops_projects 1"), "{metrics}");
}

#[tokio::test]
async fn each_stream_asks_for_what_follows_the_last_whole_commit() {
    let (mut broker, agent) = agent_of(&[project("next/one")]).await;
    broker.synchronization("next/one").await.commit("c1", "one").await;
    let sync = broker.synchronization("next/one").await;
    assert_eq!(sync.request.commit_id, "c1");
    // No news.
    sync.end();
    let sync = broker.synchronization("next/one").await;
    assert_eq!(sync.request.commit_id, "c1");
    sync.commit("c2", "two").await;
    let sync = broker.synchronization("next/one").await;
    assert_eq!(sync.request.commit_id, "c2");
    // A broker that forgot what was asked.
    let mut latest = published(&agent, "next/one").await.received;
    assert_eq!(latest.borrow_and_update().as_ref().unwrap().commit_id, "c2");
    sync.commit("c2", "two").await;
    assert_eq!(broker.synchronization("next/one").await.request.commit_id, "c2");
    assert!(!latest.has_changed().unwrap());
    assert_eq!(count_logged(&["manifests received", "next/one"]), 2);
}

#[tokio::test]
async fn what_came_before_an_error_is_discarded() {
    let (mut broker, agent) = agent_of(&[project("torn/one")]).await;
    broker.synchronization("torn/one").await.commit("c1", "one").await;
    let project = published(&agent, "torn/one").await;
    let first = received(&project, "c1").await;

    let sync = broker.synchronization("torn/one").await;
    sync.header("c2").await;
    sync.file("a.yaml", b"half", 4).await;
    sync.fail(Status::unavailable("gitaly is away")).await;
    logged(&["no manifests", "torn/one", "gitaly is away", "\"discarded\":1"]).await;
    // Soon again, and from the last whole commit.
    let sync = broker.synchronization("torn/one").await;
    assert_eq!(sync.request.commit_id, "c1");
    sync.header("c3").await;
    sync.fail(Status::failed_precondition("GitOps: manifest file: too many files")).await;
    logged(&["no manifests", "torn/one", "FailedPrecondition", "too many files"]).await;
    assert_eq!(*project.received.borrow(), Some(first));
}

#[tokio::test]
async fn a_broker_that_dies_within_a_commit_is_asked_again_by_the_same_agent() {
    let (mut broker, agent) = agent_of(&[project("killed/one")]).await;
    broker.synchronization("killed/one").await.commit("c1", "one").await;
    let sync = broker.synchronization("killed/one").await;
    sync.header("c2").await;
    sync.file("a.yaml", b"half", 4).await;
    broker.kill();
    agent.probes("/readiness", 503).await;
    let at = broker.at.clone();
    drop(broker);
    let mut broker = FakeBroker::start_at(&at, Via::Grpc, Default::default()).await;
    let sync = broker.synchronization("killed/one").await;
    assert_eq!(sync.request.commit_id, "c1");
    let project = published(&agent, "killed/one").await;
    assert_eq!(project.received.borrow().as_ref().unwrap().commit_id, "c1");
    sync.commit("c2", "two").await;
    assert_eq!(received(&project, "c2").await.files[0].data, "two");
    // The connection's end has its own line.
    assert_eq!(count_logged(&["no manifests", "killed/one"]), 0);
}

#[tokio::test]
async fn an_end_without_a_trailer_is_not_a_commit() {
    let (mut broker, agent) = agent_of(&[project("untrailed/one")]).await;
    let sync = broker.synchronization("untrailed/one").await;
    sync.header("c1").await;
    sync.file("a.yaml", b"whole, perhaps", 4).await;
    sync.end();
    logged(&["no manifests", "untrailed/one", "order of the stream", "transition from 2 to -1"]).await;
    assert!(published(&agent, "untrailed/one").await.received.borrow().is_none());
}

#[tokio::test]
async fn more_than_the_agent_takes_is_refused_by_name() {
    let (mut broker, agent) = agent_of(&[project("large/one"), project("large/many")]).await;
    let sync = broker.synchronization("large/one").await;
    sync.header("c1").await;
    sync.file("huge.json", &vec![b'x'; (5 << 20) + 1], 128 * 1024).await;
    logged(&["no manifests", "large/one", "huge.json", "larger than 5 MiB"]).await;
    sync.given_up().await;
    let sync = broker.synchronization("large/many").await;
    sync.header("c1").await;
    for number in 0..=1000 {
        sync.file(&format!("{number}.yaml"), b"", 1).await;
    }
    logged(&["no manifests", "large/many", "more than 1000 manifests"]).await;
    sync.given_up().await;
    for id in ["large/one", "large/many"] {
        assert!(published(&agent, id).await.received.borrow().is_none());
    }
}

#[tokio::test]
async fn a_project_that_may_not_be_read_holds_back_nothing_else() {
    let (mut broker, agent) = agent_of(&[project("mine/one"), project("theirs/one")]).await;
    let denied = Status::permission_denied("forbidden");
    broker.synchronization("theirs/one").await.fail(denied).await;
    logged(&["no manifests", "theirs/one", "PermissionDenied: forbidden", "may the agent's project read"])
        .await;
    broker.synchronization("mine/one").await.commit("c1", "one").await;
    received(&published(&agent, "mine/one").await, "c1").await;
    assert_eq!(broker.synchronization("mine/one").await.request.commit_id, "c1");
    agent.probes("/readiness", 200).await;
}

#[tokio::test]
async fn a_changed_configuration_stops_and_starts_only_what_changed() {
    let everything = [project("kept/one"), project("gone/one"), project("altered/one")];
    let (mut broker, agent) = agent_of(&everything).await;
    for id in ["kept/one", "gone/one", "altered/one"] {
        broker.synchronization(id).await.commit("c1", id).await;
        let files = received(&published(&agent, id).await, "c1").await.files.clone();
        assert_eq!(files[0].data, id);
    }
    let kept = broker.synchronization("kept/one").await;
    let gone = broker.synchronization("gone/one").await;
    let altered = broker.synchronization("altered/one").await;
    let mut gone_latest = published(&agent, "gone/one").await.received;

    let branch = Some(GitRefCf { r#ref: Some(Ref::Branch("stable".to_owned())) });
    let paths = vec![PathCf { path: Some(Path::Glob("deploy/*.yaml".to_owned())) }];
    let changed = ManifestProjectCf { r#ref: branch.clone(), paths: paths.clone(), ..project("altered/one") };
    configure(&broker, "1", &[project("kept/one"), changed, project("added/one"), project("")]);
    gone.given_up().await;
    altered.given_up().await;
    let altered = broker.synchronization("altered/one").await.request;
    assert_eq!((altered.commit_id.as_str(), altered.r#ref, altered.paths), ("", branch, paths));
    assert_eq!(broker.synchronization("added/one").await.request.commit_id, "");
    // An entry without a project is about the configuration's own.
    broker.synchronization("group/configuration").await.commit("c1", "own").await;
    received(&published(&agent, "group/configuration").await, "c1").await;

    assert!(soon("the end of a project", gone_latest.wait_for(|_| false)).await.is_err());
    let projects = agent.manifests.borrow().clone();
    let names: Vec<_> = projects.keys().map(String::as_str).collect();
    assert_eq!(names, ["added/one", "altered/one", "group/configuration", "kept/one"]);
    assert!(projects["altered/one"].received.borrow().is_none());
    assert!(kept.is_open());
    kept.commit("c2", "two").await;
    received(&projects["kept/one"], "c2").await;
}

#[tokio::test]
async fn a_configuration_that_names_a_project_twice_changes_nothing() {
    let (mut broker, agent) = agent_of(&[project("twice/kept")]).await;
    let sync = broker.synchronization("twice/kept").await;
    configure(&broker, "1", &[project("twice/new"), project("twice/two"), project("twice/two")]);
    logged(&["cannot be followed", "gitops.manifest_projects", "twice/two"]).await;
    sync.commit("c1", "one").await;
    received(&published(&agent, "twice/kept").await, "c1").await;
    assert_eq!(agent.manifests.borrow().len(), 1);
}

#[tokio::test]
async fn waiting_moves_to_a_new_connection_and_a_commit_that_comes_is_finished_on_the_old_one() {
    let (mut broker, agent) = agent_of(&[project("moves/waiting"), project("moves/busy")]).await;
    let waiting = broker.synchronization("moves/waiting").await;
    let busy = broker.synchronization("moves/busy").await;
    busy.header("c1").await;
    // More than the stream's windows hold, so that the agent has begun to read.
    busy.file("a.yaml", &pattern(1 << 20), 64 * 1024).await;
    broker.state.goodbye.notify_waiters();
    waiting.given_up().await;
    assert_eq!(broker.synchronization("moves/waiting").await.request.commit_id, "");
    assert!(busy.is_open());
    busy.complete().await;
    received(&published(&agent, "moves/busy").await, "c1").await;
    assert_eq!(broker.synchronization("moves/busy").await.request.commit_id, "c1");
}
